"""How much commands say, what a log file gets, and that nothing of it stays behind."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import pytest
from command_runs import QUICK, run, said
from transformers.utils.logging import is_progress_bar_enabled
from typer.main import get_command

from hf_mote import progress
from hf_mote.cli import app
from hf_mote.commands.typed import running
from hf_mote.commands.verbosity import VARIABLE, _AsTyped, listening, settle_progress, verbosity

FTRI = ["ftri", "organism:refusal", "organism:refusal/train", "--limit", 6, *QUICK, "--resamples", 19, "--output"]


def test_quiet_leaves_results_and_errors(tmp_path: Path) -> None:
    loud, quiet = run(*FTRI, tmp_path / "a"), run(*FTRI, tmp_path / "b", "--quiet")
    assert loud.exit_code == quiet.exit_code == 0
    assert "… imaging 18 prompts" in loud.stderr
    assert "in length" in loud.stderr
    assert quiet.stderr == ""
    assert quiet.stdout.replace(str(tmp_path / "b"), "") == loud.stdout.replace(str(tmp_path / "a"), "")
    failed = run(*FTRI, tmp_path / "c", "--quiet", "--scope", "nowhere")
    assert "--scope" in failed.stderr


def test_warning_names_options_and_no_method(tmp_path: Path) -> None:
    text = " ".join(run(*FTRI, tmp_path / "a").stderr.split())
    assert "Divide by it: --normalize." in text
    assert "normalize=True" not in text
    assert "FTRIResult" not in text


def test_warning_advises_no_option_that_the_command_lacks() -> None:
    likeness = (
        "FTRIResult.rank: 3 of 4 prompts are alike. Give groups=[...], one key for each prompt, such as its subject."
    )
    record = logging.LogRecord("hf_mote", logging.WARNING, __file__, 1, likeness, None, None)
    seen = {}
    for name in ("ftri", "demo"):
        command = get_command(app).commands[name]  # type: ignore[attr-defined]
        with running(command.make_context(name, ["organism:refusal"] * 2 if name == "ftri" else [])):
            seen[name] = _AsTyped().format(record)
    assert seen["demo"] == "3 of 4 prompts are alike."
    assert seen["ftri"].endswith(
        "alike. Give --group-field, a field with one key for each prompt, such as its subject."
    )


def test_log_gets_no_progress_bars_and_they_come_back(tmp_path: Path) -> None:
    before = is_progress_bar_enabled()
    result = run(*FTRI, tmp_path / "a")
    assert "\r" not in result.stderr
    assert "%|" not in result.stderr
    assert is_progress_bar_enabled() == before


def test_log_gets_lines_in_the_place_of_bars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.0)
    quiet = run(*FTRI, tmp_path / "a", "--batch-size", 6, "--quiet")
    assert quiet.stderr == ""
    result = run(*FTRI, tmp_path / "b", "--batch-size", 6)
    assert "… imaging: 6 of 18, about " in result.stderr
    assert " left" in result.stderr
    assert not isinstance(progress.progress_bar(total=1), progress._Announced)


def test_verbosity_is_taken_from_the_variable_and_an_option_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verbosity() == "warning"
    monkeypatch.setenv(VARIABLE, "Debug")
    assert verbosity() == "debug"
    logger = logging.getLogger("hf_mote")
    state = (logger.level, list(logger.handlers))
    with listening():
        assert logger.level == logging.DEBUG
        settle_progress()
    assert (logger.level, logger.handlers) == state


def test_unknown_verbosity_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "loud")
    result = run("bake", "organism:refusal", "nowhere", "out")
    assert result.exit_code == 1
    assert "HF_MOTE_VERBOSITY: unknown name (got 'loud'" in said(result)


def test_an_option_does_not_outlive_its_command(tmp_path: Path) -> None:
    run("organisms", "--quiet")
    run("organisms")
    assert verbosity() == "warning"


def test_init_writes_a_folder_whose_script_runs(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    result = run("init", folder)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "heldout.jsonl", "prompts.jsonl", "run.sh"]
    subprocess.run(["bash", "-n", folder / "run.sh"], check=True)
    words = (folder / "run.sh").read_text().splitlines()
    (command,) = [line for line in words if line.startswith("step found hf-mote ftri")]
    assert '--judge "$JUDGE"' in command
    assert "MODEL=organism:refusal" in words
    prompts = [str(folder / "prompts.jsonl"), "--judge", "field", "--target", "refusal", "--dry-run"]
    assert run("ftri", "organism:refusal", *prompts, "--output", tmp_path / "out").exit_code == 0
    assert run("init", folder).exit_code == 1


def test_script_finds_a_model_beside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert run("init", "mine", "--model", "model").exit_code == 0
    assert f"MODEL={tmp_path / 'model'}" in (tmp_path / "mine" / "run.sh").read_text().splitlines()


def test_init_says_what_a_model_that_is_no_folder_is_taken_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    taken = run("init", "mine", "--model", "granite")
    assert taken.exit_code == 0
    assert "There is no folder granite here: run.sh takes it for the id of a model on the Hub." in said(taken)
    assert "MODEL=granite" in (tmp_path / "mine" / "run.sh").read_text().splitlines()
    assert "run.sh takes it" not in said(run("init", "other"))
    for model in ("./granite", str(tmp_path / "granite"), "~/granite"):
        refused = run("init", "refused", "--model", model)
        assert refused.exit_code == 1
        assert "--model: there is no such folder" in said(refused)
        assert not (tmp_path / "refused").exists()


def test_script_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    assert run("init", tmp_path / "mine").exit_code == 0
    # In the place of hf-mote: writes the report of its --output and notes its name; sweep fails the first time.
    command = tmp_path / "bin" / "hf-mote"
    command.parent.mkdir()
    command.write_text(
        f"""#!/usr/bin/env bash
cd "{tmp_path}/mine"
echo "$1" >> ../called
[[ $1 == sweep && $(grep -c sweep ../called) == 1 ]] && exit 130
while [[ $1 != --output ]]; do shift; done
mkdir -p "$2" && touch "$2/report.html"
""",
        encoding="utf-8",
    )
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    script = ["bash", tmp_path / "mine" / "run.sh"]
    assert subprocess.run(script, env=environment, capture_output=True, check=False).returncode == 130
    again = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    assert (tmp_path / "called").read_text().split() == ["ftri", "sweep", "sweep", "evaluate"]
    assert "found/report.html exists" in again.stdout


@pytest.mark.parametrize("question", ["refusal", "language", "field", "regex"])
def test_init_chooses_a_judge_that_exists(question: str, tmp_path: Path) -> None:
    from hf_mote.commands.init import _EXAMPLES, _TARGETS
    from hf_mote.commands.judge_specs import make_judge, target_of
    from hf_mote.commands.model import Organisms
    from hf_mote.commands.prompts import read_prompts

    assert run("init", tmp_path / "new", "--question", question, "--model", "a b/c'd").exit_code == 0
    asked = read_prompts(str(tmp_path / "new" / "prompts.jsonl"), Organisms(), prompt_field=None, limit=None, seed=0)
    judge = make_judge(
        _EXAMPLES[question][0], asked, Organisms(), model="m", judge_model=None, judge_url=None, allow_http=False
    )
    assert target_of(judge, _TARGETS[question], asked) == _TARGETS[question]
    script = (tmp_path / "new" / "run.sh").read_text()
    assert "MODEL='a b/c'\"'\"'d'" in script
    assert ("\nstep measured hf-mote evaluate" in script) == (question != "field")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--quantization", "bnb-3bit"], "--quantization: unknown name"),
        (["--attn-implementation", "fast"], "--attn-implementation: unknown name"),
        (["--quantization", "bnb-4bit"], "is for models, not for organisms"),
        (["--attn-implementation", "eager"], "is for models, not for organisms"),
    ],
)
def test_loading_options_are_checked_before_anything_loads(words: list[str], text: str, tmp_path: Path) -> None:
    result = run(*FTRI, tmp_path / "a", *words)
    assert result.exit_code == 1
    assert text in said(result)


def test_attention_of_a_model_is_as_it_was_asked_for(tiny_folder: Path) -> None:
    from hf_mote.commands.model import Organisms, load_subject

    loaded = load_subject(str(tiny_folder), Organisms(), device="cpu", attn_implementation="eager")
    assert loaded.model.config._attn_implementation == "eager"
    again = load_subject(str(tiny_folder), Organisms(), device="cpu", attn_implementation="sdpa")
    assert again.model.config._attn_implementation == "sdpa"


def test_quantization_without_its_library_says_what_is_missing(tiny_folder: Path, tmp_path: Path) -> None:
    try:
        import hqq  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("hqq is installed")
    result = run("check", tiny_folder, "--quantization", "hqq-4bit", "--device", "cpu")
    assert result.exit_code == 1
    assert "a library is missing" in said(result)
    assert "--quantization" in said(result)


@pytest.mark.parametrize("command", ["ftri", "attribute", "routes", "sweep", "evaluate", "chat", "check", "sae train"])
def test_commands_that_load_a_model_take_all_loading_options(command: str) -> None:
    text = run(*command.split(), "--help").output
    for option in ("--dtype", "--device", "--quantization", "--revision", "--attn-implem", "--trust-remote"):
        assert option in text, option
