"""Models spread over two processes: by tensors, by experts, in shards, as copies. Two gloo processes on the CPU."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny_models import tiny_model
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig
from two_processes import EXPERTS, NAMES, PAIR, gradients, seen_of

from hf_mote import MoTEConfig, apply_mote, find_routers
from hf_mote.errors import UnsupportedError

SECONDS = 240


def plain_model(name: str) -> PreTrainedModel:
    # Two processes share a vocabulary of an even number of tokens.
    return tiny_model(name, vocab_size=102)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw of every model in every setting."""
    if "ep_size" not in inspect.signature(DistributedConfig).parameters:
        pytest.skip("needs a transformers whose DistributedConfig tells experts from tensors")
    folder = tmp_path_factory.mktemp("two_processes")
    for name in NAMES:
        plain_model(name).save_pretrained(folder / name)
    script = Path(__file__).parents[1] / "two_processes.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=SECONDS)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    for worker, output in zip(workers, outputs, strict=True):
        assert worker.returncode == 0, output[-4000:]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, torch.Tensor]]:
    """What one process sees of the models."""
    models = {name: plain_model(name) for name in NAMES}
    with torch.no_grad():
        return {name: seen_of(model, MoTEConfig.for_model(model, **EXPERTS)) for name, model in models.items()}


@pytest.fixture
def one_process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("setting", ["tensor", "experts", "sharded"])
@pytest.mark.parametrize("name", NAMES)
def test_apply_mote_model_spread_over_processes_does_what_one_process_does(
    two_processes: list[dict[str, Any]], alone: dict[str, dict[str, torch.Tensor]], name: str, setting: str
) -> None:
    wanted = alone[name]
    for seen in (process[f"{name} {setting}"] for process in two_processes):
        assert set(seen) == set(wanted), seen
        # The processes add up halves, which rounds differently.
        torch.testing.assert_close(seen["patched"], wanted["patched"], rtol=1e-4, atol=2e-5)
        assert torch.equal(seen["counts"], wanted["counts"])
        assert torch.equal(seen["written"], wanted["written"])
        assert torch.equal(seen["removed"], seen["native"])
        assert not torch.allclose(seen["patched"], seen["native"], atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_apply_mote_routers_that_give_each_process_its_own_experts_are_refused(
    two_processes: list[dict[str, Any]], name: str
) -> None:
    """The remedy, tensor parallelism, is the setting "tensor" above; newer versions no longer have such routers."""
    for seen in (process[f"{name} experts by router"] for process in two_processes):
        if "not here" in seen:
            assert "`ep_router` style was removed" in seen["not here"]
        else:
            assert "tp_plan='auto' and no expert parallelism" in seen["error"]


@pytest.mark.parametrize("name", NAMES)
def test_apply_mote_pipeline_is_refused(two_processes: list[dict[str, Any]], name: str) -> None:
    """The remedy, tensor parallelism, is the setting "tensor" above."""
    for seen in (process[f"{name} pipeline"] for process in two_processes):
        assert set(seen) == {"error"}, seen
        assert "each process of a pipeline holds some of the layers" in seen["error"]
        assert "tp_plan='auto'" in seen["error"]


@pytest.mark.parametrize("name", NAMES)
def test_apply_mote_data_parallel_training_step_equals_that_of_the_whole_batch(
    two_processes: list[dict[str, Any]], alone: dict[str, dict[str, torch.Tensor]], name: str
) -> None:
    wanted = gradients(plain_model(name), PAIR)
    for seen in (process[f"{name} data"] for process in two_processes):
        assert torch.equal(seen["patched"], alone[name]["patched"])
        assert set(seen["gradients"]) >= set(wanted)
        for parameter, gradient in seen["gradients"].items():
            expected = wanted.get(parameter, torch.zeros_like(gradient))
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5, msg=parameter)


def test_apply_mote_config_of_the_plain_model_fits_its_data_parallel_wrapper(one_process_group: None) -> None:
    model = plain_model("mixtral")
    config = MoTEConfig.for_model(model, **EXPERTS)
    wrapped = nn.parallel.DistributedDataParallel(model)
    assert MoTEConfig.for_model(wrapped, **EXPERTS).fingerprint == config.fingerprint
    with apply_mote(model, config):
        wanted = model(PAIR).logits
        assert torch.equal(wrapped(PAIR).logits, wanted)
    with apply_mote(wrapped, config):
        assert torch.equal(model(PAIR).logits, wanted)


def test_find_routers_data_parallel_in_threads_is_refused_and_the_remedy_works() -> None:
    model = plain_model("mixtral")
    wrapped = nn.DataParallel(model)
    config = MoTEConfig.for_model(model, **EXPERTS)
    with pytest.raises(UnsupportedError, match=r"DistributedDataParallel, or give the model inside, model\.module"):
        apply_mote(wrapped, config)
    with apply_mote(wrapped.module, config):
        patched = model(PAIR).logits
    assert not torch.equal(patched, model(PAIR).logits)


@pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning")
def test_find_routers_flat_shards_are_refused(one_process_group: None) -> None:
    wrapped = FullyShardedDataParallel(plain_model("mixtral"), device_id=torch.device("cpu"))
    with pytest.raises(UnsupportedError, match=r"fully_shard \(FSDP2\), or attach before wrapping"):
        find_routers(wrapped)


@pytest.mark.parametrize("name", NAMES)
def test_apply_mote_before_flat_shards_the_patch_takes_effect(
    two_processes: list[dict[str, Any]], alone: dict[str, dict[str, torch.Tensor]], name: str
) -> None:
    """One remedy of the refusal; the other, fully_shard, is the setting "sharded" above."""
    for seen in (process[f"{name} flat shards"] for process in two_processes):
        assert torch.equal(seen["patched"], alone[name]["patched"])
