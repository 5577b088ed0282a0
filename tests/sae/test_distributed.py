"""`DistributedDataParallel`: every parameter takes part in every step, and ranks meet in the mean of gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_saes import SOME_SAES, TinySAE
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

_TWO_RANKS = """
import sys
import torch
from tiny_saes import SOME_SAES
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

rank = int(sys.argv[1])
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
for sae in SOME_SAES:
    model, alone = sae.model(torch.float64).train(), sae.model(torch.float64).train()
    parallel = DistributedDataParallel(model)
    parallel(**sae.batch(24, dtype=torch.float64, seed=10 + rank)).loss.backward()
    for seed in (10, 11):
        (alone(**sae.batch(24, dtype=torch.float64, seed=seed)).loss / 2).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, alone.get_parameter(name).grad, msg=f"{sae}: {name}")
distributed.destroy_process_group()
"""


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("sae", SOME_SAES, ids=str)
@pytest.mark.usefixtures("one_rank")
def test_data_parallel_steps_equal_plain_ones(sae: TinySAE) -> None:
    plain, wrapped = sae.model(dead_after_tokens=20).train(), sae.model(dead_after_tokens=20).train()
    parallel = DistributedDataParallel(wrapped)
    for seed in range(3):  # a parameter without a gradient stops the second
        batch = sae.batch(24, seed=seed)
        plain(**batch).loss.backward()
        parallel(**batch).loss.backward()
    for name, parameter in wrapped.named_parameters():
        assert torch.equal(parameter.grad, plain.get_parameter(name).grad), name
    for name, value in wrapped.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name


@pytest.mark.slow
def test_two_ranks_meet_in_the_mean_of_their_gradients(tmp_path: Path) -> None:
    here = Path(__file__).parents[1]
    paths = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _TWO_RANKS]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=environment) for rank in (0, 1)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
