"""Damaged files to every reader: our own errors or something whole, within 5 s and 1 GB, and nothing else happens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
INPUTS = 2000


def fuzzed(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the fuzzer as a process of its own, as the limits and the audit are of a process."""
    path = os.pathsep.join(map(str, (HERE.parent.parent, HERE.parent, HERE)))
    command = [sys.executable, str(HERE / "fuzz.py"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


def test_no_input_of_any_reader_finds_anything() -> None:
    done = fuzzed("--inputs", INPUTS, "--seed", 0)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    total = int(done.stdout.splitlines()[-1].split()[0])
    assert abs(total - INPUTS) < 50
    # Not everything is refused, nor everything accepted: the damage is neither too much nor too little.
    kinds = [line.split()[-2:] for line in done.stdout.splitlines()[:-1] if line]
    numbers = {kind: sum(int(number) for one, number in kinds if one == kind) for kind in ("accepted", "refused")}
    assert min(numbers.values()) > INPUTS / 10
