"""Conversations: each model answers a later turn after its own earlier answers, in batches as one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_reports import report_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from hf_mote import EvaluationReport, MoTEConfig, apply_mote, evaluate_mote
from hf_mote.errors import ConfigError, DataError, FileFormatError, ModelMismatchError
from hf_mote.evaluation.conversations import Conversation, checked_conversations, run_conversations
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.responses import generate_responses
from hf_mote.hub import read_json, write_json
from hf_mote.statistics.rates import Rate

TALKS = [["tell me of b", "and of c?"], ["x"], ["why?", "how long does it take?", "so"], ["a", "b"]]
OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "progress": False}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("deepseek_v3")


@pytest.fixture(scope="module")
def config(model: PreTrainedModel) -> MoTEConfig:
    return MoTEConfig.for_model(model, suppress=[[1, 0], [1, 2], [2, 5], [2, 1]])


@pytest.fixture(scope="module")
def found(model: PreTrainedModel, config: MoTEConfig) -> list[Conversation]:
    return run_conversations(model, tiny_tokenizer(), config, TALKS, **OPTIONS)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def answer(model: PreTrainedModel, chat: list[dict[str, str]]) -> str:
    """The answer to one chat, by the template and `generate` alone."""
    tokenizer = tiny_tokenizer()
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=6, do_sample=False)
    return str(tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)).strip()


def hooks(model: PreTrainedModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_run_conversations_second_turn_follows_the_models_own_first_answer(
    model: PreTrainedModel, config: MoTEConfig, found: list[Conversation]
) -> None:
    for turns, one in zip(TALKS, found, strict=True):
        assert one.turns == turns
        for side, answers in ((None, one.answers_before), (config, one.answers_after)):
            chat: list[dict[str, str]] = []
            for turn, said in zip(turns, answers, strict=True):
                chat.append(user(turn))
                with apply_mote(model, side if side is not None else MoTEConfig()):
                    assert answer(model, chat) == said
                chat.append(assistant(said))
    # The other model's first answer would have led somewhere else, so that the check above could fail.
    one = found[0]
    assert one.answers_before[0] != one.answers_after[0]
    crossed = [user(one.turns[0]), assistant(one.answers_before[0]), user(one.turns[1])]
    with apply_mote(model, config):
        assert answer(model, crossed) != one.answers_after[1]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_run_conversations_batched_equals_one_by_one(
    model: PreTrainedModel, config: MoTEConfig, found: list[Conversation], batch_size: int
) -> None:
    tokenizer = tiny_tokenizer()
    assert run_conversations(model, tokenizer, config, TALKS, batch_size=batch_size, **OPTIONS) == found
    alone = [run_conversations(model, tokenizer, config, [turns], **OPTIONS)[0] for turns in TALKS]
    assert alone == found


def test_run_conversations_keeps_id_category_and_leaves_the_model(model: PreTrainedModel, config: MoTEConfig) -> None:
    before = hooks(model)
    given = Conversation(["x", "y"], id="81", category="writing")
    (one,) = run_conversations(model, tiny_tokenizer(), config, [given], **OPTIONS)
    assert (one.id, one.category, len(one.answers_before), len(one.answers_after)) == ("81", "writing", 2, 2)
    assert given.answers_before == []
    assert hooks(model) == before == 0


def test_run_conversations_config_without_targets_changes_nothing(model: PreTrainedModel) -> None:
    for one in run_conversations(model, tiny_tokenizer(), MoTEConfig(), TALKS, **OPTIONS):
        assert one.unchanged == [True] * len(one.turns)


def test_run_conversations_system_prompt_and_generate_kwargs_reach_every_turn(
    model: PreTrainedModel, config: MoTEConfig
) -> None:
    tokenizer = tiny_tokenizer()
    seen: list[str] = []
    rendered = type(tokenizer).apply_chat_template

    class Spy(type(tokenizer)):  # type: ignore[misc]
        def apply_chat_template(self, chat: Any, **options: Any) -> Any:
            seen.append("".join(f"<{message['role']}>{message['content']}" for message in chat))
            return rendered(self, chat, **options)

    tokenizer.__class__ = Spy
    (one,) = run_conversations(
        model, tokenizer, config, [["x", "y"]], system_prompt="be brief", generate_kwargs={"max_new_tokens": 2},
        progress=False,
    )  # fmt: skip
    expected = []
    for answers in (one.answers_before, one.answers_after):
        assert all(len(text) <= 2 for text in answers)
        expected += ["<system>be brief<user>x", f"<system>be brief<user>x<assistant>{answers[0]}<user>y"]
    assert seen == expected


class Fails(StoppingCriteria):
    """Raises in the first step of a patched model's second turn, or of the untouched model's."""

    def __init__(self, model: PreTrainedModel, *, patched: bool) -> None:
        self.model, self.patched, self.longest = model, patched, 0
        self.failed_with_hooks: bool | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if bool(hooks(self.model)) == self.patched and (input_ids == 4).sum() > 1:  # <assistant>, for a second time
            self.failed_with_hooks = bool(hooks(self.model))
            raise RuntimeError("out of memory")
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize("patched", [False, True])
def test_run_conversations_error_in_between_leaves_no_hooks(
    model: PreTrainedModel, config: MoTEConfig, found: list[Conversation], patched: bool
) -> None:
    failing = Fails(model, patched=patched)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_conversations(
            model, tiny_tokenizer(), config, [["x", "y"]],
            generate_kwargs={"stopping_criteria": StoppingCriteriaList([failing])}, **OPTIONS,
        )  # fmt: skip
    assert failing.failed_with_hooks == patched
    assert hooks(model) == 0
    assert run_conversations(model, tiny_tokenizer(), config, TALKS, **OPTIONS) == found


def test_run_conversations_without_chat_template_takes_single_turns_alone(
    model: PreTrainedModel, config: MoTEConfig
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    (one,) = run_conversations(model, tokenizer, config, [["some text"]], **OPTIONS)
    ((_, plain),) = generate_responses(model, Chat(tokenizer), ["some text"], Decoding(max_new_tokens=6))
    assert one.answers_before == plain
    with pytest.raises(ConfigError, match=r"conversations\[1\]: has several turns.*chat template"):
        run_conversations(model, tokenizer, config, [["x"], ["x", "y"]], **OPTIONS)
    with pytest.raises(ConfigError, match="chat_template"):
        run_conversations(model, tokenizer, config, [["x"]], system_prompt="be brief", **OPTIONS)


def test_run_conversations_config_of_another_model_is_refused_before_anything_runs(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "generate", lambda **_: pytest.fail("it ran"))
    with pytest.raises(ModelMismatchError, match="layer 7"):
        run_conversations(model, tiny_tokenizer(), MoTEConfig(suppress=[[7, 1]]), TALKS, **OPTIONS)


@pytest.mark.parametrize("wrong", ["a text", [], {"turns": ["x"]}, None, 3])
def test_checked_conversations_no_list_is_refused(wrong: Any) -> None:
    with pytest.raises(DataError, match="somewhere: must hold conversations"):
        checked_conversations("somewhere", wrong, tiny_tokenizer())


@pytest.mark.parametrize("wrong", ["a text", [], [""], ["x", " "], ["x", 3], None, {"turns": ["x"]}, [["x"]]])
def test_checked_conversations_wrong_one_is_named(wrong: Any) -> None:
    with pytest.raises(DataError, match=r"somewhere\[1\]: must be a conversation.*list of the user's turns"):
        checked_conversations("somewhere", [["fine"], wrong], tiny_tokenizer())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"turns": ("x",)}, "turns"),
        ({"turns": ["x"], "answers_before": ["a"]}, "differ in number"),
        ({"turns": ["x"], "answers_before": ["a", "b"], "answers_after": ["a", "b"]}, "differ in number"),
        ({"turns": ["x"], "answers_before": [None], "answers_after": ["b"]}, "answers_before"),
        ({"turns": ["x"], "category": 3}, "category"),
        ({"turns": ["x"], "id": 81}, "id"),
    ],
)
def test_conversation_impossible_fields_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        Conversation(**fields)


def report_with(conversations: list[Conversation]) -> EvaluationReport:
    kept = [same for one in conversations for same in one.unchanged]
    return report_of(
        "yes", Rate.of(5, 5), Rate.of(1, 5), [1.0],
        conversations=conversations, turns_unchanged=Rate.of(sum(kept), len(kept)) if kept else None,
    )  # fmt: skip


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
ASKED = st.lists(st.tuples(TEXTS.filter(str.strip), TEXTS, TEXTS), min_size=1, max_size=3)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(ASKED, st.none() | TEXTS, st.none() | TEXTS), max_size=3))
def test_report_with_any_conversations_survives_saving(
    tmp_path_factory: pytest.TempPathFactory, given: list[tuple[list[tuple[str, str, str]], str | None, str | None]]
) -> None:
    talks = [Conversation(*map(list, zip(*turns, strict=True)), *names) for turns, *names in given]  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("report")
    report_with(talks).save_pretrained(folder)
    assert EvaluationReport.from_pretrained(folder) == report_with(talks)


def test_report_without_the_fields_of_conversations_still_loads(tmp_path: Path) -> None:
    report_with([]).save_pretrained(tmp_path)
    file = tmp_path / "evaluation_report.json"
    data = read_json(file)
    later = (
        "disjoint_chances",
        "coherence",
        "selectivity",
        "not_worse",
        "preregistration",
        "controls_exhausted",
        "notes",
    )
    for name in ("conversations", "turns_unchanged", *later):
        del data[name]
    write_json(file, data)
    assert EvaluationReport.from_pretrained(tmp_path) == report_with([])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("conversations", None),
        ("conversations", "text"),
        ("conversations", ["text"]),
        ("conversations", [{"turns": ["x"]}]),
        ("conversations", [{"turns": ["x"], "answers_before": ["a"], "answers_after": ["a"], "by": "me"}]),
        ("conversations", [{"turns": [], "answers_before": [], "answers_after": []}]),
        ("conversations", []),
        ("turns_unchanged", None),
        ("turns_unchanged", 0.5),
        ("turns_unchanged", {"successes": 2, "n": 2, "rate": 1.0, "low": 0.1, "high": 1.0}),
    ],
)
def test_report_with_conversations_that_cannot_be_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    report_with([Conversation(["x", "y"], ["a", "b"], ["a", "c"])]).save_pretrained(tmp_path)
    file = tmp_path / "evaluation_report.json"
    write_json(file, {**read_json(file), field: value})
    with pytest.raises(FileFormatError, match="evaluation_report"):
        EvaluationReport.from_pretrained(tmp_path)


def test_evaluate_mote_keeps_conversations_and_the_share_that_stays(
    model: PreTrainedModel, config: MoTEConfig, found: list[Conversation], tmp_path: Path
) -> None:
    report = evaluate_mote(
        model, tiny_tokenizer(), config, ["a", "b"], lambda response: "yes", target="yes", conversations=TALKS,
        num_controls=0, **OPTIONS,
    )  # fmt: skip
    assert report.conversations == found
    kept = [same for one in found for same in one.unchanged]
    assert report.turns_unchanged == Rate.of(sum(kept), 8)
    report.save_pretrained(tmp_path)
    assert EvaluationReport.from_pretrained(tmp_path) == report
    assert hooks(model) == 0


def test_evaluate_mote_sampled_conversations_follow_the_seed(model: PreTrainedModel) -> None:
    nothing_done = MoTEConfig.for_model(model, bias=[[1, 0, 1e-12]])

    def answers(seed: int) -> list[Conversation]:
        return evaluate_mote(
            model, tiny_tokenizer(), nothing_done, ["a"], lambda _: "said", target="said", num_controls=0, seed=seed,
            conversations=TALKS, generate_kwargs={"do_sample": True, "temperature": 1.5}, **OPTIONS,
        ).conversations  # fmt: skip

    first = answers(1)
    assert first == answers(1)
    assert all(talk.answers_before == talk.answers_after for talk in first)
    assert first != answers(2)


def test_evaluate_mote_wrong_conversations_are_refused_before_anything_runs(
    model: PreTrainedModel, config: MoTEConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "generate", lambda **_: pytest.fail("it ran"))
    tokenizer = tiny_tokenizer()
    arguments = (model, tokenizer, config, ["a"], len)
    with pytest.raises(DataError, match=r"evaluate_mote\.conversations\[0\]"):
        evaluate_mote(*arguments, target=1, conversations=["a text"], **OPTIONS)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match=r"evaluate_mote\.conversations\[0\]: has several turns"):
        evaluate_mote(*arguments, target=1, conversations=TALKS, **OPTIONS)
