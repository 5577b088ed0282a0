"""Writers killed at every step: the old state or the new one, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


SOME = ["--every", "9", "--sizes", "2"]
for _name in (
    *("write_json", "RunFolder", "evaluate_mote", "SAEModel.save_pretrained, in shards", "a command"),
    *("MoTEConfig with", "the cache", "maps in a file", "write_neuronpedia", "hf-mote", "push_to_hub"),
):
    SOME += ["--writer", _name]


@pytest.mark.parametrize("options", [SOME, pytest.param([], marks=pytest.mark.slow)], ids=["some", "all"])
def test_no_writer_leaves_a_mixture_wherever_it_is_killed(options: list[str]) -> None:
    path = os.pathsep.join(map(str, (HERE.parent.parent, HERE.parent, HERE)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(HERE / "kill.py"), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
