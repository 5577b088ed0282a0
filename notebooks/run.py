"""Runs the notebooks of this folder from a clean state, as a reader would.

    python notebooks/run.py            # run all, keep the files as they are; fails if one does
    python notebooks/run.py --write    # keep the outputs
    python notebooks/run.py 03 05      # those alone

Each runs in an empty folder, offline, on one thread. Its first cell installs the package and is left out, since the
package is installed here. One that needs vLLM is left out where vLLM is not installed, and says so.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = Path(__file__).parent
LONGEST = 180  # seconds that a notebook may take, on two cores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="Numbers of the notebooks, such as 03.")
    parser.add_argument("--write", action="store_true", help="Keep the outputs in the files.")
    options = parser.parse_args()
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    # Without widgets, which a page could not show.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    failed = []
    for path in sorted(FOLDER.glob("*.ipynb")):
        if options.numbers and path.name[:2] not in options.numbers:
            continue
        notebook = nbformat.read(path, as_version=4)
        needs = notebook.metadata.get("hf_mote", {}).get("needs")
        if needs and find_spec(needs) is None:
            print(f"{path.name}: not run, since {needs} is not installed")
            continue
        start = time.monotonic()
        reason = run(notebook)
        seconds = time.monotonic() - start
        print(f"{path.name}: {'failed' if reason else 'ran'}, {seconds:.0f} s")
        if reason:
            print(reason)
            failed.append(path.name)
        elif seconds > LONGEST:
            print(f"longer than {LONGEST} s")
            failed.append(path.name)
        elif options.write:
            nbformat.write(notebook, path)
    return 1 if failed else 0


def run(notebook: Any) -> str:
    """Run a notebook in place, and return what went wrong, or nothing."""
    installing = {index for index, cell in enumerate(notebook.cells) if "install" in cell.metadata.get("tags", ())}
    kept = {index: notebook.cells[index].source for index in installing}
    for index in installing:
        notebook.cells[index].source = "pass"
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as sockets:
        # Not over TCP, where others on the machine could listen.
        talks = (
            Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
            if os.name == "posix"
            else Config()
        )
        resources = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=2 * LONGEST, resources=resources, config=talks)
        try:
            client.execute()
        except Exception as error:  # whatever a cell raises
            return str(error)
        finally:
            for index, source in kept.items():
                notebook.cells[index].source = source
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" in cell and notebook.metadata.get("hf_mote", {}).get("needs"):
            # Engines say much about the machine.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return ""


if __name__ == "__main__":
    sys.exit(main())
