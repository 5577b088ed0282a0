"""The notebooks open anywhere: the first code cell installs, nothing names this machine, outputs are of a whole run.

They are run by `notebooks/run.py`, which `.ci/run` calls.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_LOCAL = re.compile(r"(?<![\w.])/(home|tmp|work|root|Users|mnt|opt)/|[A-Z]:\\")
_LARGEST = 400_000  # bytes


def cells_of(path: Path) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def code_of(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in cells_of(path) if cell["cell_type"] == "code"]


def test_there_are_six_numbered_from_one() -> None:
    assert [path.name[:3] for path in NOTEBOOKS] == [f"0{number}_" for number in range(1, 7)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_installs_first_and_names_no_place_of_this_machine(path: Path) -> None:
    first, *others = code_of(path)
    assert "".join(first["source"]).startswith("%pip install -q")
    assert first["metadata"]["tags"] == ["install"]
    assert first["outputs"] == []
    assert not any("%pip" in "".join(cell["source"]) for cell in others)
    assert cells_of(path)[0]["cell_type"] == "markdown"
    assert not _LOCAL.search(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < _LARGEST


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_those_of_one_run_from_top_to_bottom(path: Path) -> None:
    cells = code_of(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds
    assert len(kinds) >= 5
    told = [output for cell in cells for output in cell["outputs"] if output.get("name") == "stderr"]
    assert not told, told


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_picture_is_shown_as_one(path: Path) -> None:
    shown = [output["data"] for cell in code_of(path) for output in cell["outputs"] if "data" in output]
    figures = [data for data in shown if "".join(data.get("text/plain", "")).startswith("<Figure")]
    assert all("image/png" in data for data in figures), "a figure is there as text alone: %matplotlib inline"
    assert bool(figures) == any("plot_" in "".join(cell["source"]) for cell in code_of(path))
