"""`hf-mote evaluate` as a whole: opposite prompts, margins, other weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from command_runs import QUICK, ran, run, said

from hf_mote import EvaluationReport, MoTEConfig, evaluate_mote, load_organism


def test_evaluate_shows_both_ways_in_one_table(attribute_run: Path, tmp_path: Path) -> None:
    result = ran(
        "evaluate", "organism:refusal", attribute_run, "organism:refusal/heldout/sensitive", "--limit", 6,
        "--controls", 2, "--opposite", "organism:refusal/heldout/neutral", "--output", tmp_path / "a", *QUICK,
    )  # fmt: skip
    stimulated = EvaluationReport.from_pretrained(tmp_path / "a" / "stimulated")
    assert stimulated.after.rate > stimulated.before.rate
    assert "| suppressed | 100.0%" in said(result)
    assert "| stimulated | 0.0%" in said(result)
    assert stimulated.config["stimulate_weight"] == "max"  # as evaluate_both_ways has it
    files = json.loads((tmp_path / "a" / "report.json").read_text())["files"]
    assert "stimulated" in files["stimulated/evaluation_report.json"]
    figures = json.loads((tmp_path / "a" / "report.json").read_text())["both_ways"]
    assert [row["experts"] for row in figures] == ["suppressed", "stimulated"]
    assert figures[1]["with the config"] == str(stimulated.after)
    assert "Suppressed, random, stimulated" in (tmp_path / "a" / "report.html").read_text()


def test_evaluate_refuses_a_margin_that_nothing_is_held_against(attribute_run: Path, tmp_path: Path) -> None:
    asked = ("evaluate", "organism:refusal", attribute_run, "organism:refusal/heldout/sensitive", "--limit", 2)
    result = run(*asked, "--margin", 0.05, "--output", tmp_path / "a", *QUICK)
    assert result.exit_code != 0
    assert "--margin: needs --unrelated prompts" in said(result)
    assert not (tmp_path / "a").exists()


def test_evaluate_refuses_opposite_of_a_config_that_suppresses_nothing_before_it_runs(tmp_path: Path) -> None:
    organism = load_organism("refusal")
    MoTEConfig.for_model(organism.model, stimulate=organism.planted[:1]).save_pretrained(tmp_path / "config")
    result = run(
        "evaluate", "organism:refusal", tmp_path / "config", "organism:refusal/heldout/sensitive", "--limit", 2,
        "--opposite", "organism:refusal/heldout/neutral", "--output", tmp_path / "a", *QUICK,
    )  # fmt: skip
    assert result.exit_code == 1
    assert "suppresses nothing" in said(result)
    assert "evaluating" not in said(result)
    assert [path.name for path in tmp_path.iterdir()] == ["config"]


def test_evaluate_groups_the_opposite_prompts_too(
    attribute_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, turned = tmp_path / "asked.jsonl", tmp_path / "turned.jsonl"
    held = load_organism("refusal").prompts["heldout"]
    for path, kind in ((asked, "sensitive"), (turned, "neutral")):
        rows = [{"prompt": prompt, "subject": f"{kind} {index % 2}"} for index, prompt in enumerate(held[kind][:4])]
        path.write_text("\n".join(map(json.dumps, rows)))
    words = ["evaluate", "organism:refusal", attribute_run, asked, "--controls", 0, "--group-field", "subject", *QUICK]
    refused = run(*words, "--opposite", "organism:refusal/heldout/neutral", "--output", tmp_path / "a")
    assert refused.exit_code == 1
    assert "subject" in said(refused)
    assert "evaluating" not in said(refused)
    seen: list[list[str]] = []

    def spying(*arguments: Any, **options: Any) -> EvaluationReport:
        seen.append(options["groups"])
        return evaluate_mote(*arguments, **options)

    monkeypatch.setattr("hf_mote.evaluation.evaluate.evaluate_mote", spying)
    ran(*words, "--opposite", turned, "--output", tmp_path / "a")
    assert seen == [["sensitive 0", "sensitive 1"] * 2, ["neutral 0", "neutral 1"] * 2]


def test_evaluate_on_other_weights_needs_the_flag_and_says_so_everywhere(tmp_path: Path) -> None:
    organism = load_organism("refusal")
    config = MoTEConfig.for_model(organism.model, suppress=organism.planted)
    other = dataclasses.replace(config, fingerprint={**config.fingerprint, "router_sha256": "0" * 64})
    other.save_pretrained(tmp_path / "config")
    out, plan = tmp_path / "a", tmp_path / "plan.json"
    asked = [
        "evaluate", "organism:refusal", tmp_path / "config", "organism:refusal/heldout/sensitive", "--limit", 3,
        "--controls", 2, "--opposite", "organism:refusal/heldout/neutral", "--against", tmp_path / "config",
        "--output", out, *QUICK,
    ]  # fmt: skip
    refused = run(*asked)
    assert refused.exit_code == 1
    assert "other router weights" in said(refused)
    assert not out.exists()
    asked += ["--allow-other-weights", "--preregister", plan]
    ran(*asked)
    assert not out.exists()
    result = said(ran(*asked))
    assert "on other weights than it was made for" in result
    digest = json.loads(plan.read_text())["digest"]
    for folder in (out, out / "against", out / "stimulated"):
        report = EvaluationReport.from_pretrained(folder)
        assert "allow_other_weights" in report.config["provenance"]
        assert "on other weights than it was made for" in report.verdict
        assert report.preregistration == digest
    assert "config is used" in json.loads((out / "report.json").read_text())["provenance"]
    assert "on other weights than it was made for" in (out / "report.html").read_text(encoding="utf-8")
