"""Ways of loading against the oracle, as `ways_of_loading.py` tries them: one family of each, on what is installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import ways_of_loading
from ways_of_loading import STRONG_EDITS, WAYS, Cell, Way, markdown, missing, try_way


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
@pytest.mark.filterwarnings("default")  # of foreign libraries
def test_way_of_loading_works_as_the_oracle_or_is_refused_with_the_remedy(way: Way) -> None:
    if absent := missing(way):
        pytest.skip(f"not installed: {', '.join(absent)}")
    family = way.families[0]
    cells = try_way(way, family)
    if way.elsewhere and all(cell.outcome == "not tried" for cell in cells):
        pytest.skip(cells[0].note)
    assert [cell for cell in cells if cell.outcome not in ("works", "refused")] == []
    outcomes = {cell.outcome for cell in cells}
    assert outcomes == {"refused"} if way.refused is not None else "works" in outcomes


def test_table_has_a_row_for_each_way_and_says_what_was_refused() -> None:
    cells = [Cell("float32", "mixtral", edit, "works", "exact") for edit in STRONG_EDITS]
    cells += [Cell("pruned, num_experts left stale", "mixtral", edit, "refused", "Set it.") for edit in STRONG_EDITS]
    lines = markdown(cells).splitlines()
    assert lines[2] == "| float32 | mixtral |" + " works (exact) |" * len(STRONG_EDITS)
    assert lines[3] == "| pruned, num_experts left stale | mixtral |" + " refused [1] |" * len(STRONG_EDITS)
    assert lines[-1] == "1. Set it."


def test_script_writes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ways_of_loading.py", str(tmp_path / "docs" / "ways.md"), "--only", "stale"])
    monkeypatch.setattr(ways_of_loading.logging, "disable", lambda level: None)
    assert ways_of_loading.main() == 0
    text = (tmp_path / "docs" / "ways.md").read_text(encoding="utf-8")
    assert "| pruned, num_experts left stale | mixtral | refused [1] |" in text
    assert "transformers" in text
