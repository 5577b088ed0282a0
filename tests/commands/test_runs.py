"""Each command on a small model: what it writes, that it can be used again, and what it refuses."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from command_runs import ATTACK, QUICK, REFUSAL, ran, run, said
from html_pages import Element, check_page

from hf_mote import (
    ActivationMap,
    EvaluationReport,
    ExpertRanking,
    FTRIResult,
    MoTEConfig,
    OptimizedRanking,
    load_organism,
)
from hf_mote.commands import imaging, session

PNG = b"\x89PNG\r\n\x1a\n"


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def page(folder: Path) -> Element:
    return check_page((folder / "report.html").read_text(encoding="utf-8"))


def rows(element: Element, table: int = 0) -> list[list[str]]:
    return [[cell.text for cell in row.children] for row in element.all("table")[table].all("tr")[1:]]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["ftri_run", "attribute_run", "evaluate_run", "sweep_run", "hostile_run"])
def any_run(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


def test_run_folder_is_listed_in_full_and_nothing_else_is_left(any_run: Path) -> None:
    report = figures(any_run)
    assert set(report["files"]) == files(any_run)
    assert [path.name for path in any_run.parent.iterdir()] == [any_run.name]
    assert any(name.endswith(".png") for name in report["files"])
    assert all((any_run / name).read_bytes().startswith(PNG) for name in report["files"] if name.endswith(".png"))


def test_run_page_is_self_contained_and_begins_with_the_verdict(any_run: Path) -> None:
    text = (any_run / "report.html").read_text(encoding="utf-8")
    root = check_page(text)
    assert root.one("verdict").text == figures(any_run)["verdict"].replace("\x1b", "␛")
    sections = [section.attributes["id"] for section in root.all("section")]
    assert sections[-1] == "provenance"
    assert not re.search(
        r"\b(?:src|href)=\"(?:https?:)?//", text
    )  # text has its quotation marks escaped in attributes


def test_run_provenance_says_how_and_names_the_files(any_run: Path) -> None:
    how, what = rows(page(any_run).one("provenance"), 0), rows(page(any_run).one("provenance"), 1)
    known = dict(how)
    assert {"model", "seed", "hf_mote", "transformers", "torch", "python", "command"} <= set(known)
    assert shlex.split(figures(any_run)["provenance"]["command"])[0] == "hf-mote"
    assert {name for name, _ in what} <= files(any_run)
    assert "report.json" in {name for name, _ in what}


def test_ftri_files_are_those_of_the_library(ftri_run: Path) -> None:
    result = FTRIResult.from_pretrained(ftri_run / "imaging")
    ranking = ExpertRanking.from_pretrained(ftri_run)
    assert result.class_sizes == {"answer": 20, "refusal": 10}
    assert ranking.top(20) == result.rank("refusal", resamples=0).top(20)
    other = ExpertRanking.from_pretrained(ftri_run / "rankings" / "npmi")
    assert other.top(5) == result.rank("refusal", score="npmi", resamples=0).top(5)
    seen = ActivationMap.from_pretrained(ftri_run / "maps" / "1_refusal")
    assert seen.top(5) == result.maps["refusal"].top(5)
    config = MoTEConfig.from_pretrained(ftri_run)
    assert config.suppress == sorted([layer, expert] for layer, expert in ranking.top(4))
    assert config.base_model == "organism:refusal"
    config.check(load_organism("refusal").model)


def test_ftri_page_has_the_ranking_and_the_tokens(ftri_run: Path) -> None:
    root, report = page(ftri_run), figures(ftri_run)
    best = report["experts"]["mean_difference"]
    shown = rows(root.one("experts"))
    assert len(shown) == 20
    assert [row[0] for row in shown] == [f"{row['layer']}.{row['expert']}" for row in best[:20]]
    assert len(root.one("maps").all("figure")) == 3
    series = [drawing.attributes.get("data-series") for drawing in root.one("maps").all("svg", "chart")]
    assert series == ["score:0", "class:0", "class:1"]
    assert len(root.one("tokens").all("h3")) == 4
    assert [text.all("span", "chip")[0].text for text in root.one("tokens").all("p", "tokens")[:4]] == [
        *["refusal"] * 2,
        *["answer"] * 2,
    ]
    refused = root.one("tokens").all("p", "tokens")[0]
    assert REFUSAL in refused.text
    assert refused.all("span", "t")


def test_attribute_files_and_figures(attribute_run: Path) -> None:
    ranking = ExpertRanking.from_pretrained(attribute_run)
    assert ranking.method == "attribution"
    assert set(ranking.top(4)) == set(load_organism("refusal").planted)
    assert MoTEConfig.from_pretrained(attribute_run).suppress == sorted(map(list, ranking.top(4)))
    report = figures(attribute_run)
    assert len(report["prompts"]) == 8
    assert all(entry["preference"] > 10 for entry in report["prompts"])
    assert len(page(attribute_run).one("tokens").all("p", "tokens")) == 2 * 4


def test_evaluate_files_and_figures(evaluate_run: Path) -> None:
    report = EvaluationReport.from_pretrained(evaluate_run)
    assert (report.before.rate, report.after.rate, len(report.controls)) == (1.0, 0.0, 3)
    assert [strength for strength, _ in report.dose] == [0.5]
    assert report.side_effects is not None
    assert len(report.unrelated) == 12
    root = page(evaluate_run)
    assert root.one("verdict").text == report.verdict
    assert len(root.one("effect").all("circle", "control")) == 3
    assert len(root.one("responses").all("p", "asked")) == 12
    assert figures(evaluate_run)["labels_before"] == ["refusal"] * 12
    assert MoTEConfig.from_pretrained(evaluate_run / "config").suppress == report.config["suppress"]


def test_sweep_tries_every_setting_with_controls(sweep_run: Path) -> None:
    report = figures(sweep_run)
    tried = [(setting["num_experts"], setting["strength"]) for setting in report["settings"]]
    assert tried == [(1, 0.5), (1, 1.0), (4, 0.5), (4, 1.0)]
    assert all(len(setting["controls"]) == 2 for setting in report["settings"])
    assert report["settings"][-1]["after"] == 0.0
    assert not report["found"]  # no p value below 1/3 with two controls
    one = EvaluationReport.from_pretrained(sweep_run / "settings" / "first_4_at_0.5")
    assert one.config["strength"] == 0.5
    assert len(one.config["suppress"]) == 4
    assert len(rows(page(sweep_run).one("settings"))) == 4
    assert len(page(sweep_run).one("curves").all("circle", "control")) == 8


def test_hostile_prompts_stay_text_and_stay_in_the_folder(hostile_run: Path) -> None:
    root = page(hostile_run)
    assert len(root.all("script")) == 2  # the page's own, and its data
    assert root.all("img") == []
    asked = root.one("responses").all("p", "asked")
    assert all(text.text.startswith(ATTACK) and "␛[31m" in text.text for text in asked)
    assert {name for name in files(hostile_run) if name.startswith("maps/")} == {
        *(
            f"maps/0_style_script_document_title_taken_scrip/{name}"
            for name in ("README.md", "activation_map.safetensors")
        ),
        *(f"maps/1_b/{name}" for name in ("README.md", "activation_map.safetensors")),
    }
    sizes = FTRIResult.from_pretrained(hostile_run / "imaging").class_sizes
    assert sizes == {"b": 3, f"../../{ATTACK}": 3}


def test_ftri_same_seed_gives_the_same_page_but_for_the_time(ftri_run: Path, tmp_path: Path) -> None:
    command = shlex.split(figures(ftri_run)["provenance"]["command"])[1:]
    command[command.index("--output") + 1] = str(tmp_path / "again")
    ran(*command)
    texts = [
        (folder / "report.html").read_text().partition('id="provenance"')[0]
        for folder in (ftri_run, tmp_path / "again")
    ]
    assert texts[0] == texts[1]


def test_existing_folder_is_kept_without_force_and_replaced_with_it(tiny_folder: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "{letter}", "class": "{letter > "c"}"}}\n' for letter in "abcdef"))
    command = ["ftri", tiny_folder, prompts, "--judge", "field", "--target", "True", "--max-new-tokens", 2]
    command += ["--resamples", 0, "--traced", 0, "--output", tmp_path / "out"]
    ran(*command, "--suppress", 2)
    before = (tmp_path / "out" / "report.json").read_bytes()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refused = run(*command)
    assert refused.exit_code == 1
    assert "holds something already" in said(refused)
    assert (tmp_path / "out" / "report.json").read_bytes() == before
    ran(*command, "--force")
    left = files(tmp_path / "out")
    assert "notes.txt" in left
    assert "mote_config.json" not in left  # of the first run, which the second does not write
    assert figures(tmp_path / "out")["experts"]["mean_difference"][0]["q"] is None


def test_ftri_without_the_target_class_keeps_what_it_saw_and_fails(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # so that no path is cut
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    result = run(
        "ftri", tiny_folder, tmp_path / "prompts.txt", "--judge", "regex:no such text", "--max-new-tokens", 2,
        "--suppress", 2, "--output", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "Nothing to compare: No response is of class “match”" in said(result)
    assert said(result).count("of class") == 1  # not said again by an error
    assert "FTRIResult" not in said(result) + page(tmp_path / "out").one("verdict").text
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in said(result)
    assert "mote_config.json" not in files(tmp_path / "out")
    assert FTRIResult.from_pretrained(tmp_path / "out" / "imaging").class_sizes == {"other": 3}
    assert page(tmp_path / "out").one("verdict").text.startswith("Nothing to compare")


def test_ftri_run_folder_sampling_and_thinking_tokens_reach_imaging(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    command = ["ftri", tiny_folder, tmp_path / "prompts.txt", "--judge", "regex:[a-m]", "--max-new-tokens", 6]
    command += ["--resamples", 0, "--traced", 1, "--temperature", 2, "--repeats", 4, "--seed", 3]
    command += ["--run-folder", tmp_path / "kept", "--output", tmp_path / "out"]
    run(*command)
    first = FTRIResult.from_pretrained(tmp_path / "out" / "imaging")
    assert len(first.prompts) == 8
    assert len(set(first.responses)) > 2
    assert files(tmp_path / "kept")
    run(*command, "--force")
    assert FTRIResult.from_pretrained(tmp_path / "out" / "imaging").responses == first.responses
    refused = run(*command[:-1], tmp_path / "other", "--scope", "thinking", "--thinking-tokens", "<think>,</think>")
    assert "must be two tokens" in said(refused)
    assert not (tmp_path / "other").exists()


def test_ftri_other_processes_write_nothing(
    tiny_folder: Path, hostile_prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (imaging, session):
        monkeypatch.setattr(module, "launched_as", lambda: (1, 2))
    monkeypatch.setattr(session, "disable_progress_bar", lambda: None)  # it would last
    command = ["ftri", tiny_folder, hostile_prompts, "--judge", "field", "--target", "b", "--max-new-tokens", 2]
    result = run(*command, "--output", tmp_path / "out")
    assert (result.exit_code, result.stdout) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_attribute_by_ablation_of_a_shortlist_ranks_these_experts(tmp_path: Path) -> None:
    ran(
        "attribute", "organism:refusal", "organism:refusal/train/sensitive", "--limit", 4, "--target", REFUSAL,
        "--baseline-field", "answer", "--gain", 0.5, "--method", "ablation", "--shortlist", 6, "--stimulate", 2,
        "--resamples", 99, "--traced", 0, "--output", tmp_path / "out",
    )  # fmt: skip
    ranking = ExpertRanking.from_pretrained(tmp_path / "out")
    assert ranking.method == "ablation"
    assert ranking.q is not None
    assert int((~ranking.q.isnan()).sum()) == 6
    assert len(MoTEConfig.from_pretrained(tmp_path / "out").stimulate) == 2
    assert "with 4 prompts: p cannot be below 0.125, whatever the 6 experts do" in figures(tmp_path / "out")["verdict"]
    assert "6 experts were tried" in page(tmp_path / "out").one("experts").text


def test_attribute_responses_come_from_fields_of_their_names(tiny_folder: Path, tmp_path: Path) -> None:
    rows_of = [{"prompt": letter, "target": letter * 2, "baseline": "z"} for letter in "abc"]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows_of))
    ran("attribute", tiny_folder, tmp_path / "prompts.jsonl", "--resamples", 0, "--output", tmp_path / "out")
    said_by = page(tmp_path / "out").one("responses").all("dd")
    assert [text.text for text in said_by] == ["aa", "z", "bb", "z", "cc", "z"]


def test_attribute_optimize_that_finds_no_set_says_so_and_writes_no_config(tmp_path: Path) -> None:
    output = tmp_path / "found"
    result = ran(
        "attribute", "organism:refusal", "organism:refusal/train/sensitive", "--limit", 2, "--target", REFUSAL,
        "--baseline-field", "answer", "--method", "optimize", "--steps", 2, "--traced", 0, "--output", output,
    )  # fmt: skip
    ranking = OptimizedRanking.from_pretrained(output)
    assert "No set was found" in ranking.verdict
    assert ranking.verdict in said(result)
    assert ranking.verdict in page(output).text
    assert not figures(output)["found"]
    assert not (output / MoTEConfig.file_name).exists()


def test_attribute_optimize_complete_writes_the_complete_set_and_its_mode(tmp_path: Path) -> None:
    output = tmp_path / "found"
    result = ran(
        "attribute", "organism:refusal", "organism:refusal/train/sensitive", "--limit", 4, "--target", REFUSAL,
        "--baseline-field", "answer", "--method", "optimize", "--steps", 2, "--complete", "--traced", 0,
        "--output", output,
    )  # fmt: skip
    ranking = OptimizedRanking.from_pretrained(output)
    assert ranking.completed
    assert (ranking.provenance["prompts"], ranking.provenance["held_back"]) == (2, 2)
    config = MoTEConfig.from_pretrained(output)
    assert config.suppress == sorted([layer, expert] for layer, expert in ranking.completed)
    assert config.suppress_mode == ranking.suppress_mode
    assert ranking.verdict in said(result)
    assert figures(output)["found"]
    assert "2 prompts held back" in page(output).one("experts").text


@pytest.mark.slow
def test_attribute_optimize_writes_the_set_that_suffices_and_says_so(tmp_path: Path) -> None:
    output = tmp_path / "found"
    result = ran(
        "attribute", "organism:refusal", "organism:refusal/train/sensitive", "--limit", 4, "--target", REFUSAL,
        "--baseline-field", "answer", "--method", "optimize", "--steps", 40, "--traced", 0, "--output", output,
    )  # fmt: skip
    ranking = OptimizedRanking.from_pretrained(output)
    assert ranking.verdict in said(result)
    config = MoTEConfig.from_pretrained(output)
    assert config.suppress_mode == "zero"
    suppressed = {(layer, expert) for layer, expert in config.suppress}
    assert suppressed == set(ranking.sufficient) <= set(load_organism("refusal").planted)
    assert ranking.verdict in page(output).text


@pytest.mark.parametrize(
    ("option", "more"),
    [
        ("--gain", ("--method", "optimize", "--gain", 0.5)),
        ("--resamples", ("--method", "optimize", "--resamples", 9)),
        ("--steps", ("--steps", 5)),
        ("--complete", ("--complete",)),
        ("--complete: has too few prompts", ("--method", "optimize", "--complete", "--limit", 3)),
    ],
)
def test_attribute_refuses_an_option_that_says_nothing_to_its_method(
    option: str, more: tuple[object, ...], tmp_path: Path
) -> None:
    result = run(
        "attribute", "organism:refusal", "organism:refusal/train/sensitive", "--target", "a", "--baseline", "b",
        "--output", tmp_path / "o", *more,
    )  # fmt: skip
    assert result.exit_code != 0
    assert option in said(result)


def test_sweep_can_stimulate(attribute_run: Path, tmp_path: Path) -> None:
    ran(
        "sweep", "organism:refusal", attribute_run, "organism:refusal/heldout/neutral", "--limit", 4, "--experts", 4,
        "--strengths", "1.5", "--stimulate", "--controls", 0, "--output", tmp_path / "out", *QUICK,
    )  # fmt: skip
    (setting,) = figures(tmp_path / "out")["settings"]
    assert setting["after"] > setting["before"] == 0.0
    assert "experts stimulated" in page(tmp_path / "out").text


WRONG: list[tuple[list[object], str]] = [
    (["ftri", "MODEL", "missing.jsonl", "--judge", "refusal"], "no such file"),
    (["ftri", "MODEL", "PROMPTS"], "--judge: is missing"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "field"], "--target: is missing"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "refusal", "--scope", "half"], "--scope: unknown name"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "refusal", "--score", "best"], "--score: unknown name"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "refusal", "--suppress", 1, "--stimulate", 1], "are both given"),
    (["ftri", "MODEL", "PROMPTS", "--judge", "refusal", "--mode", "half"], "--mode: unknown name"),
    (["ftri", "nobody/has-this", "PROMPTS", "--judge", "refusal"], "no model can be loaded from there"),
    (["attribute", "MODEL", "PROMPTS"], "--target: is missing"),
    (["attribute", "MODEL", "PROMPTS", "--target", "a", "--baseline", "b", "--gain", 2], "--gain: must be a number"),
    (["attribute", "MODEL", "PROMPTS", "--target", "a", "--baseline", "b", "--method", "x"], "--method: unknown name"),
    (["attribute", "MODEL", "PROMPTS", "--target", "a", "--baseline", "b", "--shortlist", 3], "--shortlist: is for"),
    (["evaluate", "MODEL", "nowhere/config", "PROMPTS", "--judge", "refusal"], "nowhere/config"),
    (["evaluate", "MODEL", "RUN", "PROMPTS", "--judge", "field", "--target", "b"], "no rate can change"),
    (["evaluate", "MODEL", "RUN", "PROMPTS", "--judge", "refusal"], "MoTEConfig.fingerprint"),
    (["evaluate", "MODEL", "RUN", "PROMPTS", "--judge", "refusal", "--strengths", "a"], "--strengths: must be a list"),
    (["evaluate", "MODEL", "RUN", "PROMPTS", "--judge", "refusal", "--control-kind", "x"], "--control-kind: unknown"),
    (["sweep", "MODEL", "PROMPTS", "PROMPTS", "--judge", "refusal"], "cannot be read as safetensors"),
    (["sweep", "MODEL", "RUN", "PROMPTS", "--judge", "refusal", "--experts", "0"], "must be above 0"),
    (["sweep", "MODEL", "RUN", "PROMPTS", "--judge", "refusal", "--experts", "999"], "must be a number of experts"),
    (["sweep", "MODEL", "RUN", "PROMPTS", "--judge", "refusal", "--strengths", "2"], "--strengths: out of range"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else ""
)
def test_wrong_input_is_a_message_and_leaves_no_folder(
    arguments: list[object],
    message: str,
    tiny_folder: Path,
    hostile_prompts: Path,
    attribute_run: Path,
    tmp_path: Path,
) -> None:
    places = {"MODEL": tiny_folder, "PROMPTS": hostile_prompts, "RUN": attribute_run}
    words = [places.get(str(word), word) for word in arguments]
    result = run(*words, "--output", tmp_path / "deep" / "out")
    assert result.exit_code == 1, result.output
    assert message in said(result)
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["ftri", "attribute", "evaluate", "sweep"])
def test_help_names_every_source_of_prompts(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "organism:NAME" in said(result)
    assert "--force" in said(result)


PLACES = [
    ("Vienna", "Shrewsbury", "What took place in 1809 in {}?"),
    ("Vienna", "Danbury", "What took place in 1874 in {}?"),
]


def pairs_of_places(folder: Path, *, field: str = "corrupted") -> Path:
    """Questions that the organism refuses, each beside one that differs in the place."""
    answers = load_organism("refusal").answers
    texts = [(text.format(clean), text.format(other)) for clean, other, text in PLACES]
    rows_of = [{"prompt": clean, field: other, "baseline": answers[other]} for clean, other in texts]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows_of))
    return folder / "pairs.jsonl"


def test_attribute_by_patching_takes_pairs_and_finds_what_is_planted(tmp_path: Path) -> None:
    result = ran(
        "attribute", "organism:refusal", pairs_of_places(tmp_path), "--target", REFUSAL, "--method", "patching",
        "--positions", "-1", "--suppress", 2, "--resamples", 99, "--traced", 1, "--output", tmp_path / "out",
    )  # fmt: skip
    ranking = ExpertRanking.from_pretrained(tmp_path / "out")
    assert ranking.method == "patching"
    assert set(ranking.top(4)) == set(map(tuple, load_organism("refusal").planted))
    assert ranking.provenance["positions"] == [-1]
    config = MoTEConfig.from_pretrained(tmp_path / "out")
    assert (config.suppress, config.positions) == (sorted(map(list, ranking.top(2))), [-1])
    text = page(tmp_path / "out").text
    assert "corrupted: What took place in 1809 in Shrewsbury?" in text
    assert "at the positions [-1]. The score is the share that comes back" in text
    assert "2 pairs of prompts" in said(result)


def test_attribute_by_patching_takes_a_shortlist_and_another_field(tmp_path: Path) -> None:
    ran(
        "attribute", "organism:refusal", pairs_of_places(tmp_path, field="other"), "--target", REFUSAL, "--method",
        "patching", "--corrupted-field", "other", "--gain", 0.5, "--shortlist", 5, "--resamples", 99, "--traced", 0,
        "--output", tmp_path / "out",
    )  # fmt: skip
    ranking = ExpertRanking.from_pretrained(tmp_path / "out")
    assert ranking.q is not None
    assert int((~ranking.q.isnan()).sum()) == 5
    assert "5 experts were tried" in page(tmp_path / "out").one("experts").text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "patching"], "has no field 'corrupted'"),
        (["--method", "patching", "--corrupted-field", "prompt"], "nothing to bring back"),
        (["--corrupted-field", "prompt"], "--corrupted-field: is for the method patching"),
        (["--method", "patching", "--gain", "0.5"], "says nothing to the method patching without a shortlist"),
        (["--method", "ablation", "--gain", "0.5"], "says nothing to the method ablation without a shortlist"),
        (["--method", "patching", "--corrupted-field", "longer"], "must have as many tokens as its clean prompt"),
    ],
)
def test_attribute_by_patching_says_what_is_wrong(
    words: list[str], message: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    rows_of = [{"prompt": letter, "longer": letter * 3} for letter in "ab"]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows_of))
    result = run(
        "attribute", tiny_folder, tmp_path / "prompts.jsonl", "--target", "x", "--baseline", "y", *words, "--output",
        tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code != 0
    assert message in said(result)
    assert not (tmp_path / "out").exists()
