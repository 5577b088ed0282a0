"""Judges by the names that the command line gives them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import ChoiceJudge, LanguageJudge, LMJudge, RefusalJudge, RegexJudge, ServerJudge, ftri
from hf_mote.commands.judge_specs import FieldJudge, make_judge, response_judge, target_of
from hf_mote.commands.model import Organisms
from hf_mote.commands.prompts import PromptSet
from hf_mote.commands.record_files import Record
from hf_mote.errors import ConfigError, DataError, HFMoTEError, UnknownNameError
from hf_mote.generation.chat import Prompt
from hf_mote.judges.judge import classify

PROMPTS = ["a", "b", "c"]


def prompt_set(classes: list[str] | None = None, prompts: list[str] | None = None) -> PromptSet:
    texts = prompts or PROMPTS
    records = [Record(f"f: line {i}", {"prompt": text, "kind": f"k{i}"}) for i, text in enumerate(texts)]
    return PromptSet("f", list(texts), records, classes)


@pytest.mark.parametrize(
    ("spec", "kind", "target"),
    [
        ("refusal", RefusalJudge, "refusal"),
        ("refusal:en,de", RefusalJudge, "refusal"),
        ("regex:(?i)yes: [a-z]", RegexJudge, "match"),
        ("language:de,en:answer", LanguageJudge, "de"),
        ("choice:ABC", ChoiceJudge, None),
        ("field", FieldJudge, None),
    ],
)
def test_make_judge_names_make_judges(spec: str, kind: type, target: str | None) -> None:
    judge = make_judge(spec, prompt_set(["x", "y", "x"]), Organisms())
    assert type(judge) is kind
    assert getattr(judge, "target", None) == target


def test_make_judge_settings_reach_the_judge() -> None:
    def judge(spec: str) -> object:
        return make_judge(spec, prompt_set(), Organisms())

    assert judge("refusal:en,de").languages == ("en", "de")  # type: ignore[attr-defined]
    assert judge("regex:(?i)yes: [a-z]")("YES: n") == "match"  # type: ignore[operator]
    assert judge("choice:ABC").options == ("A", "B", "C")  # type: ignore[attr-defined]
    assert judge("language:de,en:thinking").part == "thinking"  # type: ignore[attr-defined]
    assert judge("field:kind")("b", "whatever") == "k1"  # type: ignore[operator]


def test_make_judge_language_model_is_one_here_or_behind_a_server(tiny_folder: Path) -> None:
    here = make_judge("lm:Is it: so?", prompt_set(), Organisms(), judge_model=str(tiny_folder))
    assert isinstance(here, LMJudge)
    assert here.question == "Is it: so?"
    there = make_judge("lm:So?", prompt_set(), Organisms(), judge_model="name", judge_url="http://localhost:1/v1")
    assert isinstance(there, ServerJudge)
    assert (there.model, there.url) == ("name", "http://localhost:1/v1/chat/completions")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (None, {}, "--judge: is missing"),
        ("refusl", {}, "Did you mean 'refusal'"),
        ("regex:", {}, "expected regex:PATTERN"),
        ("regex:(", {}, "does not compile"),
        ("refusal:xx", {}, "unknown name"),
        ("language:en", {}, "nothing to choose from"),
        ("language:en,de:middle", {}, "unknown name"),
        ("choice", {}, "expected choice:ABCD"),
        ("field", {}, "names no classes"),
        ("field:topic", {}, "unknown name"),
        ("lm:So?", {}, "--judge-model: is needed"),
        ("refusal", {"judge_model": "x"}, "is for the judge lm"),
    ],
)
def test_make_judge_what_is_wrong_is_said(spec: str | None, options: dict[str, str], message: str) -> None:
    with pytest.raises(HFMoTEError) as caught:
        make_judge(spec, prompt_set(), Organisms(), **options)
    assert message in str(caught.value)


def test_field_judge_prompt_of_two_classes_is_refused() -> None:
    with pytest.raises(DataError, match="f: line 1: the same prompt has two classes"):
        make_judge("field", prompt_set(["x", "y"], ["same", "same"]), Organisms())


def chats_that_differ_in_the_system_message() -> PromptSet:
    prompts: list[Prompt] = [
        [{"role": "system", "content": system}, {"role": "user", "content": question}]
        for question in ("a?", "b?")
        for system in ("be kind", "be rude")
    ]
    records = [Record(f"f: line {i}", {"messages": prompt}) for i, prompt in enumerate(prompts)]
    return PromptSet("f", prompts, records, ["kind", "rude"] * 2)


def test_field_judge_tells_chats_apart_by_all_their_messages() -> None:
    asked = chats_that_differ_in_the_system_message()
    judge = make_judge("field", asked, Organisms())
    assert classify(judge, asked.prompts, [""] * 4) == ["kind", "rude", "kind", "rude"]
    assert target_of(judge, "rude", asked) == "rude"


def test_field_judge_sees_the_whole_chat_in_ftri() -> None:
    asked = chats_that_differ_in_the_system_message()
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    judge = make_judge("field", asked, Organisms())
    result = ftri(tiny_model("mixtral"), tokenizer, asked.prompts, judge, max_new_tokens=2, progress=False)
    assert result.classes == ["kind", "rude", "kind", "rude"]


def test_target_of_judge_that_tells_its_labels_is_one_of_them() -> None:
    judge = make_judge("choice:ABCD", prompt_set(), Organisms())
    assert target_of(judge, "A", prompt_set()) == "A"
    with pytest.raises(UnknownNameError, match="--target: unknown name"):
        target_of(judge, "E", prompt_set())


def test_target_of_judge_without_one_must_be_given() -> None:
    prompts = prompt_set(["x", "y", "x"])
    judge = make_judge("field", prompts, Organisms())
    with pytest.raises(ConfigError, match="one of x, y"):
        target_of(judge, None, prompts)
    with pytest.raises(UnknownNameError, match="'z'"):
        target_of(judge, "z", prompts)
    assert target_of(judge, "y", prompts) == "y"
    assert target_of(RefusalJudge(), None, prompts) == "refusal"
    assert target_of(RefusalJudge(), "answer", prompts) == "answer"


def test_response_judge_refuses_one_that_goes_by_the_prompt() -> None:
    with pytest.raises(ConfigError, match="no rate can change"):
        response_judge(make_judge("field", prompt_set(["x", "y", "x"]), Organisms()))
