"""The real libraries as a fixture: a process in their own environment (see `oracles.py`) that answers task by task."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_mote import SAEModel

HOW = "set HF_MOTE_ORACLES to a folder and run tests/sae/convert/oracles.py"


class Used(NamedTuple):
    """What a library did with a dictionary: its latents and reconstruction, and the folder it saved it to again."""

    latents: Tensor
    reconstruction: Tensor
    again: Path

    def assert_is_what(self, sae: SAEModel, inputs: Tensor, *, slack: float = 1) -> None:
        """Assert that a model computes the same from the same inputs; `slack` widens the bound."""
        with torch.no_grad():
            output = sae(inputs, output_latents=True, return_loss=False)
        assert_close(output.latents, self.latents, slack=slack)
        assert_close(output.reconstruction, self.reconstruction, slack=slack)
        assert torch.equal(output.latents > 0, self.latents > 0)


def assert_close(ours: Tensor, theirs: Tensor, *, slack: float = 1) -> None:
    """Assert equality up to the rounding of another order of summation: 1e-6 of the largest value in float32."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    bound = slack * 1e-6 * theirs.abs().max() * torch.finfo(ours.dtype).eps / torch.finfo(torch.float32).eps
    assert (ours - theirs).abs().max() <= bound
    assert theirs.abs().max() > 0.1


class Oracle:
    """Hands tasks to `oracle_worker.py`."""

    def __init__(self, process: subprocess.Popen[str], scratch: Path) -> None:
        self.process = process
        self.scratch = scratch
        self.tasks = 0

    def make(self, library: str, folder: Path, **options: Any) -> Path:
        """Have a library make a dictionary with random weights and save it."""
        self._ask({"task": "make", "library": library, "folder": str(folder), "options": options})
        return folder

    def use(self, library: str, folder: Path, inputs: Tensor, **options: Any) -> Used:
        """Have a library load a dictionary, encode and decode, and save the dictionary again."""
        self.tasks += 1
        places = {name: self.scratch / f"{name}-{self.tasks}" for name in ("inputs", "outputs", "again")}
        save_file({"inputs": inputs.contiguous()}, places["inputs"])
        paths = {name: str(place) for name, place in places.items()}
        self._ask({"task": "use", "library": library, "folder": str(folder), "options": options, **paths})
        return Used(**load_file(places["outputs"]), again=places["again"])

    def _ask(self, task: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process with the real libraries ended"
        error = json.loads(answer)["error"]
        assert error is None, error


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    """The real libraries; the test is skipped where nobody asked for them."""
    folder = os.environ.get("HF_MOTE_ORACLES")
    if not folder:
        pytest.skip(f"needs the real libraries: {HOW}")
    python = Path(folder, "environment", "bin", "python")
    assert python.exists(), f"{python} is missing: {HOW}"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "SPARSIFY_DISABLE_TRITON": "1", "OMP_NUM_THREADS": "1"}
    scratch = tmp_path_factory.mktemp("oracle")
    with (
        (scratch / "errors").open("w") as errors,
        subprocess.Popen(
            [python, Path(__file__).with_name("oracle_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        ) as process,
    ):
        yield Oracle(process, scratch)
        process.stdin.close()
