"""Options that several commands share: chat templates, sampling, devices, and what is said of wrong ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import ran, run, said
from tiny_models import tiny_model, tiny_tokenizer
from typer.main import get_command
from typer.testing import CliRunner

from hf_mote import FTRIResult
from hf_mote.cli import COMMANDS, SAE_COMMANDS, app
from hf_mote.commands.options import sampling, template_args
from hf_mote.errors import ConfigError

QUICK = ("--max-new-tokens", "3", "--resamples", "19", "--judge", "regex:[a-m]")
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}{{ ending | default('?') }}"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("hello\nwhat is it\ngo on\n")
    return path


def refused(*arguments: Any) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
    return " ".join(result.output.split())


def test_template_args_are_json_by_name() -> None:
    assert template_args(None) == {}
    given = ["enable_thinking=false", 'effort="low"', "tools=[1]", "x="]
    assert template_args(given[:3]) == {"enable_thinking": False, "effort": "low", "tools": [1]}
    for wrong in (["enable_thinking"], ["x=low"], given[3:], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(ConfigError, match="--template-arg"):
            template_args(wrong)


def test_sampling_options_are_generate_arguments() -> None:
    assert sampling(None, None) == {}
    assert sampling(0.5, None) == {"do_sample": True, "temperature": 0.5}
    assert sampling(None, 0.9) == {"do_sample": True, "top_p": 0.9}
    for wrong in ((0.0, None), (-1.0, None), (float("nan"), None), (float("inf"), None), (None, 1.1), (None, 0.0)):
        with pytest.raises(ConfigError, match="out of range"):
            sampling(*wrong)


def test_chat_template_and_its_arguments_reach_the_model(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text(TEMPLATE)
    lengths = []
    for index, more in enumerate(([], ["--template-arg", 'ending="abc"'])):
        output = tmp_path / str(index)
        ran(
            "ftri", tiny_folder, prompts, "--chat-template", template, "--traced", 1, "--output", output, *QUICK, *more
        )
        lengths.append(FTRIResult.from_pretrained(output / "imaging").num_tokens)
    assert torch.equal(lengths[0] + 2, lengths[1])
    assert lengths[0].tolist() == [6, 11, 6]
    command = (tmp_path / "1" / "report.html").read_text()
    assert "--template-arg" in command


@pytest.mark.parametrize("command", ["ftri", "evaluate", "sweep", "attribute", "find"])
def test_every_command_refuses_a_template_argument_without_effect(
    command: str, tiny_folder: Path, prompts: Path, tmp_path: Path, attribute_run: Path
) -> None:
    given: dict[str, list[Any]] = {
        "ftri": [tiny_folder, prompts, "--judge", "regex:a"],
        "evaluate": ["organism:refusal", attribute_run, prompts, "--judge", "refusal"],
        "sweep": ["organism:refusal", attribute_run, prompts, "--judge", "refusal"],
        "attribute": [tiny_folder, prompts, "--target", "a", "--baseline", "b"],
        "find": [tiny_folder, prompts, "--judge", "regex:a"],
    }
    told = refused(command, *given[command], "--output", tmp_path / "out", "--template-arg", "enable_thinking=false")
    assert "enable_thinking" in told
    assert "no effect" in told
    assert not (tmp_path / "out").exists()


def test_evaluate_samples_the_same_responses_for_the_same_seed(attribute_run: Path, tmp_path: Path) -> None:
    seen = []
    for index, seed in enumerate((1, 1, 2)):
        output = tmp_path / str(index)
        ran(
            "evaluate", "organism:refusal", attribute_run, "organism:refusal/heldout/neutral", "--limit", 3,
            "--controls", 1, "--max-new-tokens", 6, "--temperature", 3, "--top-p", 0.99, "--seed", seed,
            "--output", output,
        )  # fmt: skip
        report = next(path for path in output.glob("*.json") if "responses_before" in path.read_text())
        seen.append(json.loads(report.read_text())["responses_before"])
    assert seen[0] == seen[1] != seen[2]


def test_wrong_options_are_messages_and_nothing_runs(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    base = ("ftri", tiny_folder, prompts, "--output", tmp_path / "out", *QUICK)
    assert "--temperature" in refused(*base, "--temperature", 0)
    assert "--chat-template" in refused(*base, "--chat-template", tmp_path / "none.jinja")
    assert "no such device" in refused(*base, "--device", "nonsense")
    template = tmp_path / "template.jinja"
    template.write_text("{{ raise_exception('System role not supported') }}")
    assert "System role not supported" in refused(*base, "--chat-template", template, "--system-prompt", "x")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device")
def test_device_that_is_not_there_is_a_message(tiny_folder: Path, prompts: Path, tmp_path: Path) -> None:
    told = refused("ftri", tiny_folder, prompts, "--output", tmp_path / "out", *QUICK, "--device", "cuda:0")
    assert "no such device here" in told
    assert "expected cpu" in told


def test_record_without_a_class_is_named_by_its_line(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "a", "class": "x"}, {"prompt": "b", "class": "y"}, {"prompt": "c", "class": " "}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    told = refused("ftri", tiny_folder, path, "--judge", "field", "--target", "x", "--output", tmp_path / "out")
    assert "line 3" in told
    assert "'class'" in told


@pytest.mark.parametrize("option", ["--suppress", "--stimulate"])
def test_more_experts_than_there_are_is_refused_before_anything_runs(
    tiny_folder: Path, prompts: Path, tmp_path: Path, option: str
) -> None:
    output = tmp_path / "out"
    for command in (
        ["ftri", tiny_folder, prompts, *QUICK],
        ["attribute", tiny_folder, prompts, "--target", "a", "--baseline", "b"],
    ):
        said = refused(*command, option, 999, "--output", output)
        assert f"{option}: asks for more experts than there are (got 999" in said
        assert "imaging" not in said
        assert "attributing" not in said
    assert not output.exists()


def commands() -> Iterator[tuple[str, Any]]:
    group: Any = get_command(app)
    for name in COMMANDS:
        yield name, group.commands[name]
    for name in SAE_COMMANDS:
        yield f"sae {name}", group.commands["sae"].commands[name]


def test_help_of_every_option_says_what_holds_without_it() -> None:
    silent = [
        f"{name} {option.opts[0]}"
        for name, command in commands()
        for option in command.params
        if option.param_type_name == "option" and not (option.required or option.multiple or option.is_flag)
        if option.default is None and "default" not in (option.help or "")
    ]
    assert silent == []


def test_help_and_messages_name_no_python_path() -> None:
    told = [(f"{name} {one.name}", one.help or "") for name, command in commands() for one in command.params]
    told += [(name, command.help or "") for name, command in commands()]
    assert len(told) > 300
    for name, text in told:
        assert not re.search(r"\bhf_mote\.\w|\b(?:ftri|evaluate_mote|evaluate_sae|MoTEConfig)\.\w|\w\(\)", text), name


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize(
    "words",
    [
        ["ftri", "--judge", "regex:[a-m]", "--suppress", "99"],
        ["attribute", "--target", "a", "--baseline", "b", "--top", "99"],
        ["attribute", "--target", "a", "--baseline", "b", "--method", "ablation", "--shortlist", "99"],
    ],
    ids=" ".join,
)
def test_more_experts_than_there_are_are_refused_before_weights_are_read(words: list[str], tmp_path: Path) -> None:
    for saved in (tiny_model("mixtral"), tiny_tokenizer()):
        saved.save_pretrained(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("what is\nwho was\n")
    command, *options = words
    result = run(command, tmp_path / "model", tmp_path / "prompts.txt", *options, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert f"{options[-2]}: asks for more experts than there are (got 99, expected up to 24)" in said(result)
    assert not (tmp_path / "out").exists()
