"""`evaluate` and `sweep`: what can be known beforehand is said beforehand, and a rate of zero is a result."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from command_runs import QUICK, ran, run, said
from html_pages import Element, check_page

from hf_mote import EvaluationReport, ExpertRanking, MoTEConfig
from hf_mote.evaluation.rates import RateMeasurement

CHOICE: list[object] = ["--judge", "choice:ABCD", "--limit", 3, *QUICK]


def figures(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def page(folder: Path) -> Element:
    return check_page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", ["evaluate", "sweep"])
def test_label_that_no_response_gets_has_rate_zero(command: str, attribute_run: Path, tmp_path: Path) -> None:
    more = ["--experts", "1,2"] if command == "sweep" else []
    asked = "organism:refusal/heldout/sensitive"
    ran(command, "organism:refusal", attribute_run, asked, "--target", "A", "--controls", 2, *more, *CHOICE,
        "--output", tmp_path / "out")  # fmt: skip
    found = figures(tmp_path / "out")
    measured = found["settings"] if command == "sweep" else [found]
    assert [(one["before"], one["after"], one["controls"]) for one in measured] == [(0.0, 0.0, [0.0, 0.0])] * len(
        measured
    )
    assert not found["found"]
    assert "p cannot be below 0.333" in page(tmp_path / "out").one("verdict").text


@pytest.mark.parametrize("command", ["evaluate", "sweep"])
def test_label_that_the_judge_cannot_give_is_refused_first(command: str, attribute_run: Path, tmp_path: Path) -> None:
    asked = "organism:refusal/heldout/sensitive"
    result = run(
        command, "organism:refusal", attribute_run, asked, "--target", "E", *CHOICE, "--output", tmp_path / "o"
    )
    assert result.exit_code == 1
    assert "--target: unknown name" in said(result)
    assert list(tmp_path.iterdir()) == []


def test_evaluate_text_that_is_too_short_is_said_before_anything_is_generated(
    attribute_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.txt").write_text("What happened in 1833?\na\n")
    monkeypatch.setattr(RateMeasurement, "respond", lambda *_, **__: pytest.fail("generated"))
    result = run(
        "evaluate", "organism:refusal", attribute_run, "organism:refusal/heldout/sensitive", "--texts",
        tmp_path / "texts.txt", "--output", tmp_path / "out", "--limit", 3, *QUICK,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "texts[1]: too short" in said(result)
    assert not (tmp_path / "out").exists()


def test_evaluate_side_effects_of_a_config_for_generated_tokens_say_their_scope(
    attribute_run: Path, tmp_path: Path
) -> None:
    own = MoTEConfig.from_pretrained(attribute_run)
    MoTEConfig.from_dict({**own.to_dict(), "scope": "generation"}).save_pretrained(tmp_path / "config")
    ran(
        "evaluate", "organism:refusal", tmp_path / "config", "organism:refusal/heldout/sensitive", "--controls", 0,
        "--texts", "organism:refusal/heldout/sensitive", "--output", tmp_path / "out", "--limit", 3, *QUICK,
    )  # fmt: skip
    report = EvaluationReport.from_pretrained(tmp_path / "out")
    assert report.side_effects is not None
    assert report.side_effects.scope == "all"
    assert report.side_effects.kl > 0
    assert "all, as plain text is all prompt" in page(tmp_path / "out").one("sides").text


def test_sweep_on_a_fine_tune_needs_the_flag_and_says_so(tmp_path: Path, attribute_run: Path) -> None:
    ranking = ExpertRanking.from_pretrained(attribute_run)
    sampled = dict(ranking.fingerprint["sampled_weights"])
    sampled["embeddings"] = f"{sampled['embeddings'].partition(':')[0]}:{'0' * 16}"
    other = dataclasses.replace(ranking, fingerprint={**ranking.fingerprint, "sampled_weights": sampled})
    other.save_pretrained(tmp_path / "ranking")
    words = [
        "sweep", "organism:refusal", tmp_path / "ranking", "organism:refusal/heldout/sensitive", "--limit", 3,
        "--controls", 2, "--experts", 1, "--max-new-tokens", 4, "--output", tmp_path / "out",
    ]  # fmt: skip
    refused = run(*words)
    assert refused.exit_code == 1
    assert f"1 of {len(sampled)} weights that were compared differ, such as embeddings" in said(refused)
    assert not (tmp_path / "out").exists()
    ran(*words, "--allow-other-weights")
    report = EvaluationReport.from_pretrained(tmp_path / "out" / "settings" / "first_1_at_1")
    kept = report.config["provenance"]["allow_other_weights"]
    assert kept["elsewhere"] == f"1 of {len(sampled)} sampled weights differ"
    assert "on other weights than it was made for" in report.verdict
