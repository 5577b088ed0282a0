"""Writers killed at their steps and in their files: the old state or the new one, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


# Of every writer some places, drawn with a seed.
SOME = ["--draw", "2"]


@pytest.mark.parametrize("options", [SOME, pytest.param([], marks=pytest.mark.slow)], ids=["some", "all"])
def test_no_writer_leaves_a_mixture_wherever_it_is_killed(options: list[str]) -> None:
    path = os.pathsep.join(map(str, (HERE.parent.parent, HERE.parent, HERE)))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(HERE / "kill.py"), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
