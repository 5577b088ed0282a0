"""How long the package takes to import, and the command line to answer: each in new interpreters, in turns.

Prints the median and the quartiles of the processor time (user and system) of each, and what it takes beyond its
base: an interpreter that does nothing, or `import torch, transformers`. The first round, in which files are read from
the disk, is left out.

    python tests/benchmarks/bench_import.py --rounds 9
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

NOTHING, TORCH = "python", "import torch, transformers"
CASES = {
    NOTHING: (None, ["-c", "pass"]),
    "import hf_mote": (NOTHING, ["-c", "import hf_mote"]),
    "hf-mote --version": (NOTHING, ["-m", "hf_mote", "--version"]),
    "hf-mote --help": (NOTHING, ["-m", "hf_mote", "--help"]),
    "hf-mote ftri --help": (NOTHING, ["-m", "hf_mote", "ftri", "--help"]),
    "hf-mote fitr": (NOTHING, ["-m", "hf_mote", "fitr"]),
    "hf-mote ftri M P --scope bogus": (NOTHING, ["-m", "hf_mote", "ftri", "M", "P", "--scope", "bogus"]),
    "hf-mote sae train M T --architecture bogus": (
        NOTHING,
        ["-m", "hf_mote", "sae", "train", "M", __file__, "--output", "new", "--architecture", "bogus"],
    ),
    TORCH: (None, ["-c", TORCH]),
    f"{TORCH}, hf_mote": (TORCH, ["-c", f"{TORCH}, hf_mote"]),
}


def seconds(arguments: list[str]) -> float:
    """Processor time of a new interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], capture_output=True, check=False, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for number in range(rounds + 1):
        for name, (_, arguments) in CASES.items():
            taken = seconds(arguments)
            if number:
                times[name].append(taken)
    sys.stdout.write("| | s | beyond its base, s |\n| --- | --: | --: |\n")
    for name, (base, _) in CASES.items():
        beyond = "" if base is None else _spread([a - b for a, b in zip(times[name], times[base], strict=True)])
        sys.stdout.write(f"| `{name}` | {_spread(times[name])} | {beyond} |\n")


def _spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
