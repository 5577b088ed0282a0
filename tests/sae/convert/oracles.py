"""Makes the environment of the real libraries that tests marked `oracle` need: SAELens, sparsify,
dictionary_learning, circuit-tracer, Llamascopium.

    HF_MOTE_ORACLES=<folder> python tests/sae/convert/oracles.py

An environment of its own in that folder, on top of the one this runs in, from which torch and transformers come. It
is made once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REQUIREMENTS = [
    "sae-lens==6.54.12",
    "eai-sparsify==1.3.3",
    "cattrs",
    "json-repair",
    "more-itertools",
    "pillow",
    "pydantic-settings",
    "pymongo",
    "python-socketio[client]",
    "zstandard",
]
# Their own pins would bring another torch, with CUDA and 5 GB; what they import is among the above.
WITHOUT_DEPENDENCIES = [
    "circuit-tracer==0.5.0",
    "dictionary-learning==0.1.0",
    "llamascopium==2.0.0b34",
    "nnsight==0.3.7",
]


def python_of(folder: Path) -> Path:
    """Return the interpreter of the environment in a folder."""
    return folder / "environment" / "bin" / "python"


def make(folder: Path) -> None:
    """Make the environment, unless it is complete already."""
    python, done = python_of(folder), folder / "complete"
    wanted = "\n".join([*REQUIREMENTS, *WITHOUT_DEPENDENCIES, sysconfig.get_path("purelib")])
    if done.is_file() and done.read_text(encoding="utf-8") == wanted:
        return
    venv.create(folder / "environment", clear=True)
    answer = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True
    )
    # Packages of the environment below, pip among them, are found after its own.
    below = Path(answer.stdout.decode().strip(), "below.pth")
    below.write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*pip, *REQUIREMENTS], check=True)
    subprocess.run([*pip, "--no-deps", *WITHOUT_DEPENDENCIES], check=True)
    done.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    if "HF_MOTE_ORACLES" not in os.environ:
        sys.exit("oracles.py: set HF_MOTE_ORACLES to the folder to make the environment in")
    make(Path(os.environ["HF_MOTE_ORACLES"]))
