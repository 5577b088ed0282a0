"""Models whose weights accelerate keeps elsewhere: on the disk, or on several devices by a map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules
from routing_cases import no_gradients, suppressing  # noqa: F401
from tiny_families import TINY_FAMILIES
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_mote import MoTEConfig, apply_mote, record_routing

TOKENS = torch.randint(5, 85, (3, 9), generator=torch.Generator().manual_seed(5))
# Rules that read the router alone, a bias of the router's, and a bias of the block around it.
FAMILIES = ["mixtral", "deepseek_v3", "minimax_m2"]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    name = request.param
    return TINY_FAMILIES[name]() if name == "minimax_m2" else tiny_model(name)


def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


def rerouting(model: PreTrainedModel) -> MoTEConfig:
    return suppressing(model, 0, 3, 6, suppress_mode="reroute")


def some_on_disk(model: PreTrainedModel) -> dict[str, str]:
    """A map that keeps some routers on the disk and others not."""
    parts = [path for path, _ in model.model.named_children() if path != "layers"]
    layers = {f"model.layers.{i}": "cpu" if i == 1 else "disk" for i in range(len(model.model.layers))}
    return {"lm_head": "cpu", **{f"model.{part}": "cpu" for part in parts}, **layers}


def _to_disk(model: PreTrainedModel, folder: Path) -> None:
    accelerate.disk_offload(model, str(folder), execution_device="cpu")


def _to_disk_with_buffers(model: PreTrainedModel, folder: Path) -> None:
    accelerate.disk_offload(model, str(folder), execution_device="cpu", offload_buffers=True)


def _by_map(model: PreTrainedModel, folder: Path) -> None:
    accelerate.dispatch_model(model, some_on_disk(model), main_device="cpu", offload_dir=str(folder))


def _by_map_of_one_device(model: PreTrainedModel, folder: Path) -> None:
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)


SPREADS = [_to_disk, _to_disk_with_buffers, _by_map, _by_map_of_one_device]


@pytest.mark.parametrize("attach_first", [True, False], ids=["patched before", "patched after"])
@pytest.mark.parametrize("spread", SPREADS)
def test_apply_mote_spread_model_is_patched_as_the_whole_one(
    model: PreTrainedModel, tmp_path: Path, spread: Callable[[PreTrainedModel, Path], None], attach_first: bool
) -> None:
    config, native = rerouting(model), logits(model)
    with apply_mote(model, config):
        wanted = logits(model)
    handle = apply_mote(model, config) if attach_first else None
    spread(model, tmp_path)
    handle = handle or apply_mote(model, config)
    assert torch.equal(logits(model), wanted)
    handle.remove()
    assert torch.equal(logits(model), native)
    assert not torch.equal(wanted, native)
    assert rerouting(model).fingerprint["router_sha256"] == config.fingerprint["router_sha256"]


def test_apply_mote_model_gathered_again_under_the_patch_keeps_it(model: PreTrainedModel, tmp_path: Path) -> None:
    config, native = rerouting(model), logits(model)
    _to_disk(model, tmp_path)
    handle = apply_mote(model, config)
    wanted = logits(model)
    remove_hook_from_submodules(model)
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(logits(model), wanted)
    handle.remove()
    assert torch.equal(logits(model), native)


@pytest.mark.parametrize("on_disk", [True, False])
def test_apply_mote_model_loaded_by_a_device_map_is_patched_as_the_whole_one(
    model: PreTrainedModel, tmp_path: Path, on_disk: bool
) -> None:
    config, native = rerouting(model), logits(model)
    with apply_mote(model, config):
        wanted = logits(model)
    model.save_pretrained(tmp_path / "model")
    where = {"device_map": some_on_disk(model), "offload_folder": str(tmp_path)} if on_disk else {"device_map": "cpu"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, **where)
    assert any(parameter.is_meta for parameter in loaded.parameters()) == on_disk
    with apply_mote(loaded, config):
        assert torch.equal(logits(loaded), wanted)
    assert torch.equal(logits(loaded), native)


def test_record_routing_spread_model_counts_as_the_whole_one(model: PreTrainedModel, tmp_path: Path) -> None:
    with record_routing(model) as whole:
        logits(model)
    _by_map(model, tmp_path)
    with record_routing(model) as spread:
        logits(model)
    for one, other in zip(whole.maps(), spread.maps(), strict=True):
        assert torch.equal(one.counts, other.counts)
        assert torch.equal(one.weights, other.weights)
