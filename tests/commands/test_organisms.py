"""What the commands say of an organism: of a planted one what is found, of the control that nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_runs import REFUSAL, ran, said

LIMIT = ["--limit", 16, "--batch-size", 16, "--max-new-tokens", 14, "--seed", 1]
CONTROLS = ["--controls", 19]  # the fewest by which a verdict can be reached


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The control's experts by attribution, with a config of its first 5."""
    folder = tmp_path_factory.mktemp("ranked") / "causes"
    ran(
        "attribute", "organism:diffuse-refusal", "organism:diffuse-refusal/train/sensitive", "--limit", 16,
        "--target", REFUSAL, "--baseline-field", "answer", "--gain", 0.5, "--suppress", 5, "--batch-size", 16,
        "--resamples", 0, "--traced", 1, "--output", folder,
    )  # fmt: skip
    return folder


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def test_evaluate_of_a_planted_organism_finds_and_says_so(tmp_path: Path) -> None:
    ran(
        "ftri", "organism:language", "organism:language/train", "--suppress", 5, "--resamples", 0, "--traced", 1,
        "--output", tmp_path / "maps", *LIMIT,
    )  # fmt: skip
    result = ran(
        "evaluate", "organism:language", tmp_path / "maps", "organism:language/heldout/sensitive",
        "--output", tmp_path / "effect", *LIMIT, *CONTROLS,
    )  # fmt: skip
    report = figures(tmp_path / "effect")
    assert report["found"] is True
    assert report["before"] >= 0.95
    assert report["after"] <= 0.2
    assert "The config beats its controls: german goes from" in said(result)


def test_evaluate_of_the_negative_control_says_that_nothing_is_found(ranked: Path, tmp_path: Path) -> None:
    result = ran(
        "evaluate", "organism:diffuse-refusal", ranked, "organism:diffuse-refusal/heldout/sensitive",
        "--output", tmp_path / "effect", *LIMIT, *CONTROLS,
    )  # fmt: skip
    report = figures(tmp_path / "effect")
    assert report["found"] is False
    assert report["before"] >= 0.95
    assert report["after"] >= 0.9
    assert "The config does not beat its controls: refusal goes from" in said(result)


def test_sweep_of_the_negative_control_says_that_no_setting_does(ranked: Path, tmp_path: Path) -> None:
    result = ran(
        "sweep", "organism:diffuse-refusal", ranked, "organism:diffuse-refusal/heldout/sensitive",
        "--experts", "1,5", "--output", tmp_path / "dose", *LIMIT, *CONTROLS,
    )  # fmt: skip
    assert figures(tmp_path / "dose")["found"] is False
    assert "No setting of 2 beats its 19 random controls." in said(result)
