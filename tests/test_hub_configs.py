"""Every folder of hub_configs is valid, loads by its name, ships, and says what is measured again here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_runs import ran, run, said
from hub_server import HubServer
from make_hub_configs import BEHAVIOURS, NUM_IMAGED, NUM_TESTED, SEED, choosing_prompts, folder_of, measured
from typer.main import get_command

from hf_mote import EvaluationReport, ExpertRanking, MoTEConfig, load_organism
from hf_mote.cli import app
from hf_mote.commands.plan import amount
from hf_mote.commands.validate import MARKS, RECIPE, problems_in
from hf_mote.errors import FileFormatError, UnknownNameError
from hf_mote.files import read_json
from hf_mote.organisms.scoring import draw_prompts
from hf_mote.sharing.shipped import list_shipped, shipped_folder, shipped_root

ROOT = Path(__file__).parents[1] / "hub_configs"
NAMES = [name for name in list_shipped() if (shipped_root() / name).is_dir()]
CONFIGS = [name for name in NAMES if not (shipped_root() / name / RECIPE).is_file()]
RECIPES = [name for name in NAMES if name not in CONFIGS]
REFUSAL = "hf_mote--refusal-organism/refusal"


@pytest.mark.parametrize("name", NAMES)
def test_hub_config_is_valid(name: str) -> None:
    assert problems_in(shipped_root() / name) == []


def test_hub_configs_hold_nothing_else_and_the_list_names_all() -> None:
    assert {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("*/*/*") if path.is_file()} == set(NAMES)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"| `{name}` |" not in readme] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_hub_config_loads_by_its_name_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = MoTEConfig.from_pretrained(f"hub_configs/{name}")
    assert MoTEConfig.from_pretrained(name) == config
    if config.provenance["status"] == MARKS[0]:
        assert ExpertRanking.from_pretrained(name).to_config(suppress=len(config.suppress)).suppress == config.suppress
        # What exists locally wins.
        MoTEConfig(suppress=[[0, 0]]).save_pretrained(tmp_path / "hub_configs" / name)
        assert MoTEConfig.from_pretrained(f"hub_configs/{name}").suppress == [[0, 0]]


def test_name_that_does_not_ship_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("hub_configs/hf_mote--none/refusal", f"hub_configs/{REFUSAL}/../../../pyproject.toml", "a--b/c"):
        assert shipped_folder(name) is None
        with pytest.raises(UnknownNameError):
            MoTEConfig.from_pretrained(name, cache_dir=tmp_path)


@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_hub_config_of_an_organism_is_measured_again_as_its_report_says(name: str) -> None:
    folder = folder_of(name)
    theirs = EvaluationReport.from_pretrained(folder)
    ours = measured(load_organism(name), MoTEConfig.from_pretrained(folder), num_controls=0)
    assert (ours.before, ours.after) == (theirs.before, theirs.after)
    assert ours.unrelated_unchanged == theirs.unrelated_unchanged
    assert (ours.labels_before, ours.labels_after) == (theirs.labels_before, theirs.labels_after)
    assert theirs.beats_controls() is (name != "diffuse-refusal")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert theirs.verdict in card
    provenance = MoTEConfig.from_pretrained(folder).provenance
    assert f"({provenance['rankings_tried']}). The effect above was measured on held-out questions" in card
    assert "training questions that no ranking was made from" in provenance["chosen_by"]


@pytest.mark.parametrize("name", sorted(BEHAVIOURS))
def test_ranking_of_an_organism_was_chosen_by_prompts_of_their_own(name: str) -> None:
    organism = load_organism(name)
    choosing = set(choosing_prompts(organism))
    imaged, tested = draw_prompts(organism, seed=SEED, num_imaged=NUM_IMAGED, num_tested=NUM_TESTED)
    assert len(choosing) == NUM_TESTED
    assert not choosing & {prompt for drawn in (imaged, tested) for prompts in drawn.values() for prompt in prompts}


@pytest.mark.parametrize(
    ("name", "expert"),
    [("deepseek-ai--DeepSeek-R1/refusal", [48, 176]), ("deepseek-ai--DeepSeek-R1/english-reasoning", [4, 143])],
)
def test_hub_config_of_a_paper_is_marked_and_says_what_is_not_known(name: str, expert: list[int]) -> None:
    config = MoTEConfig.from_pretrained(name)
    assert config.suppress == [expert]
    assert config.fingerprint is None
    assert config.unverified is not None
    card = (ROOT / name / "README.md").read_text(encoding="utf-8")
    for wanted in ("arXiv 2502.11096", "not measured here", f"| {expert[0] + 3} |", "allow_other_weights=True"):
        assert wanted in card


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_taken_by_the_command(name: str) -> None:
    group: Any = get_command(app)
    train = group.commands["sae"].commands["train"]
    path = shipped_root() / name / RECIPE
    context = train.make_context("train", ["MODEL", "TEXT", "--settings", str(path), "--output", "x"])
    for option, value in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        assert context.params[option.replace("-", "_")] == value


def _edited(name: str, **changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        data = read_json(folder / name)
        for key, value in changes.items():
            place = data
            *outer, last = key.split("__")
            for part in outer:
                place = place[part]
            place[last] = value
        (folder / name).write_text(json.dumps(data))

    return edit


def _replaced(old: str, new: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        text = (folder / "README.md").read_text(encoding="utf-8")
        assert old in text
        (folder / "README.md").write_text(text.replace(old, new), encoding="utf-8")

    return edit


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "mote_config.json").unlink(), "holds none of"),
    "broken config": (lambda folder: (folder / "mote_config.json").write_text("{"), "must be valid JSON"),
    "foreign file": (lambda folder: (folder / "weights.pkl").write_bytes(b""), "is not a file of such a folder"),
    "large file": (lambda folder: (folder / "a.png").write_bytes(b"0" * 2**23 + b"1"), "more than"),
    "link": (lambda folder: (folder / "b.png").symlink_to("/etc/passwd"), "is a link"),
    "no mark": (
        _edited("mote_config.json", provenance__status="sure"),
        "mote_config.json: provenance.status: unknown name",
    ),
    "no source": (
        _edited("mote_config.json", provenance__source=" "),
        "mote_config.json: provenance.source: must say",
    ),
    "no fingerprint": (_edited("mote_config.json", fingerprint=None), "no fingerprint"),
    "not measured": (_edited("mote_config.json", provenance__status=MARKS[1]), "no mark `unverified`"),
    "unverified": (_edited("mote_config.json", unverified="why"), "marked as unverified"),
    "changes nothing": (_edited("mote_config.json", suppress=[]), "changes nothing"),
    "other experts": (_edited("mote_config.json", suppress=[[1, 1]]), "was measured with another config: suppress"),
    "other weight": (
        _edited("mote_config.json", stimulate_weight=0.1),
        "was measured with another config: stimulate_weight",
    ),
    "other positions": (_edited("mote_config.json", positions=[-1]), "was measured with another config: positions"),
    "no report": (lambda folder: (folder / "evaluation_report.json").unlink(), "there is no evaluation_report.json"),
    "broken ranking": (lambda folder: (folder / "expert_ranking.safetensors").write_bytes(b""), "safetensors"),
    "no card": (lambda folder: (folder / "README.md").unlink(), "README.md: is missing"),
    "no section": (_replaced("## Misuse and limits", "## Else"), "has no section Use and misuse or Misuse and limits"),
    "no mark on the card": (_replaced("measured here", "seen"), "README.md: must say one of"),
    "broken metadata": (_replaced("library_name: hf_mote", "library_name: [hf_mote"), "metadata"),
    "other library": (_replaced("library_name: hf_mote", "library_name: else"), "library_name must be hf_mote"),
    "picture gone": (lambda folder: (folder / "effect.png").unlink(), "shows effect.png, which does not exist"),
    "no picture": (lambda folder: (folder / "effect.png").write_bytes(b"<html>"), "effect.png: must be a PNG"),
    "token": (_replaced("# Mixture", f"hf_{'x' * 34}\n# Mixture"), "README.md: holds what looks like a token"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_validate_finds_what_is_wrong_and_push_sends_nothing(name: str, tmp_path: Path, hub: HubServer) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(ROOT / REFUSAL, folder)
    breaking, reason = BROKEN[name]
    breaking(folder)
    assert [problem for problem in problems_in(folder) if reason in problem]
    for command in (["validate", folder], ["push", folder, "alice/one"]):
        result = run(*command)
        assert result.exit_code == 1
        assert reason in said(result)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("architecture: [", "recipe.yaml: must be valid YAML"),
        ("- a", "holds no options"),
        ("architecture: topk\ncolour: red", "colour"),
        ("architecture: topk\ntokens: many", "recipe.yaml: tokens: must be a valid integer"),
        ("architecture: topk\nbatch: 0", "recipe.yaml: batch: must be greater than"),
        ("architecture: best", "recipe.yaml: architecture: unknown name"),
        ("architecture: topk\nmodel: gpt2", "model"),
    ],
)
def test_validate_recipe_that_the_command_would_refuse_is_found(tmp_path: Path, text: str, reason: str) -> None:
    shutil.copytree(ROOT / RECIPES[0], tmp_path / "recipe")
    (tmp_path / "recipe" / RECIPE).write_text(text)
    assert [problem for problem in problems_in(tmp_path / "recipe") if reason in problem]


def test_validate_shows_all_that_is_wrong_with_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    shutil.copytree(ROOT / REFUSAL, tmp_path / "mine")
    changes = {
        "suppress": [[0, 1], [0, "x"], [1, 2], [2]],
        "gain": [[3, 5], [3, 6]],
        "suppress_mode": "drp",
        "scope": "thinkin",
        "thinking_tokens": [4, 4],
        "strength": -1,
        "strenght": 1,
        "base_model": 7,
        "provenance": {"status": "sure"},
    }
    _edited("mote_config.json", **changes)(tmp_path / "mine")
    found = problems_in(tmp_path / "mine")
    wanted = [
        "unknown field (got 'strenght', expected one of",
        "suppress[1]: not an index (got 'x', expected an integer, 0 or more)",
        "suppress[3]: malformed entry (got [2], expected [layer, expert] pairs)",
        "gain[0]: malformed entry (got [3, 5]",
        "gain[1]: malformed entry (got [3, 6]",
        "suppress_mode: unknown value (got 'drp'",
        "scope: unknown value (got 'thinkin'",
        "thinking_tokens: not two token ids (got [4, 4]",
        "strength: out of range (got -1.0",
        "base_model: is not text (got 7",
        "provenance.status: unknown name (got 'sure'",
        "provenance.source: must say where it is from (got None",
    ]
    for problem in wanted:
        assert [one for one in found if one.startswith(f"mote_config.json: {problem}")], (problem, found)
    assert len([one for one in found if one.startswith("mote_config.json")]) == len(wanted), found
    result = run("validate", tmp_path / "mine")
    assert result.exit_code == 1
    assert f"has {len(found)} problems, listed above" in said(result)
    assert all(" ".join(problem.split()) in said(result) for problem in found)


def test_validate_shows_all_that_is_wrong_with_a_steering_config(tmp_path: Path) -> None:
    data = {"schema_version": 9, "edits": [[1, "grow", 2]], "scope": "thinking", "strength": "x", "colour": 1}
    (tmp_path / "steering_config.json").write_text(json.dumps(data))
    found = {one.split(" (")[0] for one in problems_in(tmp_path) if one.startswith("steering_config.json")}
    assert {one.removeprefix("steering_config.json: ") for one in found} == {
        "unknown field",
        "hookpoint: is missing",
        "schema_version: this version cannot be read",
        "edits[1]: must be an edit",
        "thinking_tokens: and scope 'thinking' do not fit",
        "strength: must be a finite number",
        "provenance.status: unknown name",
        "provenance.source: must say where it is from",
        "has no digest of its SAE",
    }


def test_validate_shows_every_file_that_holds_something_private(tmp_path: Path) -> None:
    shutil.copytree(ROOT / RECIPES[0], tmp_path / "mine")
    for name in ("README.md", RECIPE):
        path = tmp_path / "mine" / name
        path.write_text(f"{path.read_text()}\n# hf_{'x' * 34}\n")
    told = "holds what looks like a token, which others would read"
    assert problems_in(tmp_path / "mine") == [f"README.md: {told}", f"{RECIPE}: {told}"]


def test_validate_valid_folder_says_so_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    assert "valid" in said(ran("validate", ROOT / REFUSAL))
    assert "must be a folder" in said(run("validate", tmp_path / "none"))
    with pytest.raises(FileFormatError, match="must be a folder"):
        problems_in(tmp_path / "none")


def test_push_uploads_the_folder_and_what_it_holds_is_loaded(hub: HubServer) -> None:
    url = said(ran("push", ROOT / REFUSAL, "alice/refusal", "--private", "--subfolder", "refusal"))
    assert f"{hub.url}/alice/refusal/commit/" in url.replace(" ", "")
    assert hub.repositories["alice/refusal"].private
    place = {"subfolder": "refusal"}
    assert MoTEConfig.from_pretrained("alice/refusal", **place) == MoTEConfig.from_pretrained(ROOT / REFUSAL)
    there, here = {name.removeprefix("refusal/") for name in hub.files("alice/refusal")}, ROOT / REFUSAL
    assert there - {".gitattributes"} == {p.relative_to(here).as_posix() for p in here.rglob("*") if p.is_file()}


def test_push_leaves_prompts_and_responses_here_unless_asked(hub: HubServer, tmp_path: Path) -> None:
    shutil.copytree(ROOT / REFUSAL, tmp_path / "mine")
    report = EvaluationReport.from_pretrained(tmp_path / "mine")
    prompts = [f"a secret question of number {n}" for n in range(report.before.n)]
    data = {**report.to_dict(), "prompts": prompts, "responses_before": prompts, "responses_after": prompts}
    (tmp_path / "mine" / "evaluation_report.json").write_text(json.dumps(data))
    ran("push", tmp_path / "mine", "alice/one")
    assert b"secret question" not in hub.everything()
    assert EvaluationReport.from_pretrained("alice/one").prompts == []
    ran("push", tmp_path / "mine", "alice/two", "--with-texts")
    assert EvaluationReport.from_pretrained("alice/two").prompts == prompts


def test_push_dry_run_says_what_would_go_and_asks_no_server(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    shutil.copytree(ROOT / REFUSAL, tmp_path / "mine")
    report = EvaluationReport.from_pretrained(tmp_path / "mine")
    prompts = [f"a secret question of number {n}" for n in range(report.before.n)]
    data = {**report.to_dict(), "prompts": prompts, "responses_before": prompts, "responses_after": prompts}
    (tmp_path / "mine" / "evaluation_report.json").write_text(json.dumps(data))
    words = ["push", tmp_path / "mine", "alice/one", "--private", "--subfolder", "refusal", "--dry-run"]
    shown = ran(*words)
    text = said(shown)
    assert "repository alice/one, private if it is made" in text
    assert "commit 'Upload mine' to main" in text
    here = {
        path.relative_to(tmp_path / "mine").as_posix() for path in (tmp_path / "mine").rglob("*") if path.is_file()
    }
    assert f"files {len(here)}, " in text
    lines = {line.split()[0]: line.split()[1:] for line in shown.output.splitlines() if "refusal/" in line}
    assert {name.removeprefix("refusal/") for name in lines} >= here
    size = (tmp_path / "mine" / "README.md").stat().st_size
    assert lines["refusal/README.md"] == amount(size).split()
    assert "card # Mixture of tunable experts" in text
    kept = f"the texts of {report.before.n} prompts and of the responses to them"
    assert f"stays here {kept}, in evaluation_report.json" in text
    assert text.endswith("Nothing was uploaded. The same command without --dry-run does it.")
    assert f"nothing: {kept} are uploaded" in said(ran(*words, "--with-texts"))
    assert "public, or by your account's default, if it is made" in said(
        ran("push", ROOT / REFUSAL, "alice/one", "--dry-run")
    )
    assert "stays here nothing Nothing was uploaded" in said(ran("push", ROOT / REFUSAL, "alice/one", "--dry-run"))
    assert hub.requests == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["alice/one/two"], "cannot be a Hub id"),
        (["alice/one", "--subfolder", "../up"], "subfolder"),
        (["alice/one", "--revision", "/main"], "revision"),
    ],
)
def test_push_dry_run_refuses_what_the_upload_would(options: list[str], reason: str, hub: HubServer) -> None:
    for dry in ([], ["--dry-run"]):
        result = run("push", ROOT / REFUSAL, *options, *dry)
        assert result.exit_code == 1
        assert reason in said(result)
    assert hub.requests == []


def test_configs_lists_all_with_their_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # a cell on one line
    shown = "".join(ran("configs").output.split())
    for name in CONFIGS:
        config = MoTEConfig.from_pretrained(name)
        assert str(config.provenance["source"]).replace(" ", "")[:20] in shown
    for part in ("DeepSeek-R1", "refusal-organism", "SmolLM2", "OLMoE"):
        assert part in shown.replace("│", "")


def test_validate_of_a_folder_with_very_many_problems_shows_the_first(tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / f"{number}.bin").write_bytes(b"")
    number = len(problems_in(tmp_path))
    assert number > 300
    shown = said(run("validate", tmp_path))
    assert shown.count(".bin: ") == shown.count("is not a file of such a folder") <= 200
    assert f"- and {number - 200} more" in shown
