"""Bundles of options: what they refuse, and what they hand on."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_mote.cli import COMMANDS, SAE_COMMANDS, function_at
from hf_mote.commands.bundles.asking import Generating, Sampling, Templating
from hf_mote.commands.bundles.evidence import Judging, Pairing, Reading
from hf_mote.commands.bundles.loading import Loading, Serving
from hf_mote.commands.bundles.results import Choosing, Writing
from hf_mote.commands.model import Organisms
from hf_mote.commands.served import refuse_loading
from hf_mote.errors import ConfigError, DataError, FileFormatError, UnknownNameError
from hf_mote.judges.regex import RegexJudge

TOGETHER = (Choosing, Generating, Judging, Loading, Pairing, Reading, Sampling, Serving, Templating, Writing)
# What each command with a file of prompts, and the chat, takes as bundles.
BUNDLES = {
    "ftri": {Choosing, Generating, Judging, Loading, Reading, Sampling, Templating, Writing},
    "attribute": {Choosing, Loading, Pairing, Reading, Templating, Writing},
    "routes": {Loading, Pairing, Templating, Writing},
    "sweep": {Generating, Judging, Loading, Reading, Sampling, Templating, Writing},
    "evaluate": {Generating, Judging, Loading, Reading, Sampling, Serving, Templating, Writing},
    "find": {Generating, Judging, Loading, Reading, Templating, Writing},
    "chat": {Loading, Sampling, Serving, Templating},
}


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    entries = [{"question": f"q{index}", "class": "ab"[index % 2], "topic": f"t{index // 2}"} for index in range(8)]
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return str(path)


@pytest.mark.parametrize("name", BUNDLES)
def test_command_has_every_option_of_its_bundles_by_name(name: str) -> None:
    options = inspect.signature(function_at(COMMANDS[name])).parameters
    for bundle in BUNDLES[name]:
        for option, field in inspect.signature(bundle).parameters.items():
            assert option in options, (bundle, option)
            if option != "output":
                assert options[option].default == field.default


def _options(callee: Callable[..., object]) -> set[tuple[str, str]]:
    return {(name, str(found.annotation)) for name, found in inspect.signature(callee).parameters.items()}


@pytest.mark.parametrize("place", [*COMMANDS.values(), *SAE_COMMANDS.values()])
def test_options_that_a_command_names_by_itself_are_no_whole_bundle(place: str) -> None:
    command = function_at(place)
    # By name and annotation: `output` of an SAE command has a text of its own, and may be left out.
    own = _options(inspect.unwrap(command))
    for bundle in TOGETHER:
        assert not _options(bundle) <= own, f"{place} lists what {bundle.__name__} stands for"


def test_reading_draws_prompts_and_groups_them(rows: str) -> None:
    reading = Reading(limit=2, prompt_field="question", group_field="topic")
    asked = reading.prompts(rows, Organisms(), seed=0)
    assert sorted(asked.classes or []) == ["a", "a", "b", "b"]
    assert reading.groups(asked) == [f"t{int(text[1:]) // 2}" for text in asked.texts]
    assert Reading(prompt_field="question").groups(asked) is None
    by_topic = reading.prompts(rows, Organisms(), seed=0, class_field="topic")
    assert len(by_topic.prompts) == 8
    with pytest.raises(UnknownNameError, match="subject"):
        Reading(group_field="subject").groups(asked)
    with pytest.raises(DataError, match="--prompt-field"):
        Reading().prompts(rows, Organisms(), seed=0)


def test_judging_makes_the_judge_and_names_it(rows: str) -> None:
    asked = Reading(prompt_field="question").prompts(rows, Organisms(), seed=0)
    judging = Judging("regex:a+", target="match")
    assert isinstance(judging.make(asked, Organisms(), model="some/model"), RegexJudge)
    assert judging.named == "regex:a+"
    assert Judging().named == "the organism's own"
    with pytest.raises(ConfigError, match="--judge: is missing"):
        Judging().make(asked, Organisms(), model="some/model")
    with pytest.raises(ConfigError, match="--judge-allow-http"):
        Judging("refusal", judge_allow_http=True).make(asked, Organisms(), model="some/model")


def test_templating_settings_are_checked_arguments() -> None:
    assert Templating().settings() == {"system_prompt": None, "chat_template_kwargs": {}}
    given = Templating("Be brief.", None, ["enable_thinking=false"])
    assert given.settings() == {"system_prompt": "Be brief.", "chat_template_kwargs": {"enable_thinking": False}}
    with pytest.raises(ConfigError, match="--template-arg"):
        Templating(template_arg=["enable_thinking"]).settings()


def test_sampling_and_generating_say_how_responses_are_decoded() -> None:
    sampled = Sampling(temperature=0.5).arguments()
    decoding = Generating(2, 9).decoding(5, sampled)
    assert (decoding.batch_size, decoding.max_new_tokens, decoding.seed) == (2, 9, 5)
    assert decoding.generate_kwargs == sampled == {"do_sample": True, "temperature": 0.5}
    assert Sampling().arguments() == {}
    with pytest.raises(ConfigError, match="--top-p"):
        Sampling(top_p=2.0).arguments()


def test_loading_options_are_refused_with_a_server_by_the_name_that_is_typed() -> None:
    refuse_loading(Loading().options())
    for loading, option in (
        (Loading(dtype="float32"), "--dtype"),
        (Loading(attn_implementation="eager"), "--attn-implementation"),
        (Loading(trust_remote_code=True), "--trust-remote-code"),
    ):
        with pytest.raises(ConfigError, match=f"^{option}: "):
            refuse_loading(loading.options())


def test_serving_profile_needs_a_server() -> None:
    Serving().check("a CONFIG")
    Serving("http://127.0.0.1:1", "calm").check("a CONFIG")
    with pytest.raises(ConfigError, match="--profile.*or --mote CONFIG"):
        Serving(profile="calm").check("--mote CONFIG")


def test_choosing_number_is_that_of_the_config_and_at_most_what_there_is() -> None:
    assert Choosing().number(100) == 5
    assert Choosing().number(3) == 3
    assert Choosing(suppress=7).number(100) == 7
    assert Choosing(stimulate=8).number(100) == 8
    assert Choosing(suppress=7, top=2).number(100) == 2
    with pytest.raises(ConfigError, match="--suppress, --stimulate"):
        Choosing(suppress=1, stimulate=1).check()
    assert Choosing(multiply=6, by=2.0).number(100) == 6
    Choosing(multiply=6, by=0.0).check()
    with pytest.raises(ConfigError, match="--stimulate, --multiply: are both given"):
        Choosing(stimulate=1, multiply=1, by=2.0).check()
    with pytest.raises(ConfigError, match="--by: is missing"):
        Choosing(multiply=1).check()
    with pytest.raises(ConfigError, match="--multiply: is missing"):
        Choosing(by=2.0).check()
    Choosing(suppress=1, positions="-1,0").check()
    for given, why in (("x", "be a list of numbers"), ("1.5", "be a list of numbers"), ("-1", "none is written")):
        with pytest.raises(ConfigError, match=f"--positions: .*{why}"):
            Choosing(suppress=None if given == "-1" else 1, positions=given).check()
    for wrong in (-1.0, math.inf, math.nan, 1e39):
        with pytest.raises(ConfigError, match="--by: "):
            Choosing(multiply=1, by=wrong).check()
    with pytest.raises(UnknownNameError, match="--mode"):
        Choosing(mode="delete").check()


def test_writing_refuses_a_folder_in_use_and_a_file_for_the_run(tmp_path: Path) -> None:
    Writing(tmp_path / "new").check()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    with pytest.raises(FileFormatError, match="holds something already"):
        Writing(tmp_path / "full").check()
    Writing(tmp_path / "full", force=True).check()
    with pytest.raises(FileFormatError, match="--run-folder .*is a file"):
        Writing(tmp_path / "new", run_folder=tmp_path / "full" / "mine").check()
    (tmp_path / "new.run").write_text("x")
    with pytest.raises(FileFormatError, match="--output .*is a file"):
        Writing(tmp_path / "new").check()
    with Writing(tmp_path / "other").folder() as folder:
        (folder / "report").write_text("x")
    assert (tmp_path / "other" / "report").read_text() == "x"
