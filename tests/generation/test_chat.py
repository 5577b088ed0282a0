"""Chat templates: what they are told, what they refuse, and what no tokens come of."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from hf_mote import MoTEConfig, ablate_experts, attribute_experts, evaluate_mote, ftri, search_experts
from hf_mote.errors import ConfigError, DataError, UnknownNameError
from hf_mote.evaluation.conversations import run_conversations
from hf_mote.generation import chat
from hf_mote.generation.asking import Chat

NO_THINKING = {"enable_thinking": False}
PLAIN: dict[str, Any] = {"progress": False}
SAYING: dict[str, Any] = {**PLAIN, "max_new_tokens": 3}
CAUSAL: dict[str, Any] = {**PLAIN, "response": "yes", "baseline_response": "no"}


def thinking_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose template ends in "!" unless it is told not to think."""
    tokenizer = tiny_tokenizer()
    assert isinstance(tokenizer.chat_template, str)
    tokenizer.chat_template += "{% if enable_thinking is not defined or enable_thinking %}!{% endif %}"
    return tokenizer


def test_chat_encode_tells_the_template_its_arguments() -> None:
    tokenizer = thinking_tokenizer()
    (usual,) = Chat(tokenizer).encode(["hi"])
    (told,) = Chat(tokenizer, template_kwargs=NO_THINKING).encode(["hi"])
    assert usual == [*told, *tokenizer("!")["input_ids"]]
    (marks,) = Chat(tokenizer, template_kwargs=NO_THINKING).user_text(["hi"])
    assert [marks.index(True), sum(marks), len(marks)] == [1, 2, len(told)]


def test_every_function_passes_chat_template_kwargs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("mixtral"), thinking_tokenizer()
    told: list[object] = []
    usual = tokenizer.apply_chat_template

    def listening(*args: Any, **kwargs: Any) -> Any:
        told.append(kwargs.get("enable_thinking"))
        return usual(*args, **kwargs)

    monkeypatch.setattr(tokenizer, "apply_chat_template", listening)
    config = MoTEConfig.for_model(model, suppress=[[0, 1]])
    judge = lambda response: "a"  # noqa: E731
    chat: dict[str, Any] = {"chat_template_kwargs": NO_THINKING}
    calls = [
        lambda: ftri(model, tokenizer, ["a", "b"], judge, scope="user", **SAYING, **chat),
        lambda: evaluate_mote(
            model, tokenizer, config, ["a"], judge, target="a", unrelated=["b"], conversations=[["a", "b"]],
            num_controls=1, **SAYING, **chat,
        ),
        lambda: run_conversations(model, tokenizer, config, [["a", "b"]], **SAYING, **chat),
        lambda: attribute_experts(model, tokenizer, ["a"], resamples=0, **CAUSAL, **chat),
        lambda: ablate_experts(model, tokenizer, ["a"], resamples=0, experts=[(0, 1)], **CAUSAL, **chat),
        lambda: search_experts(model, tokenizer, ["a"], max_experts=1, experts=[(0, 1)], **CAUSAL, **chat),
    ]  # fmt: skip
    for call in calls:
        told.clear()
        call()  # type: ignore[no-untyped-call]
        assert told
        assert set(told) == {False}


def test_ftri_of_another_template_argument_is_another_run(tmp_path: Any) -> None:
    model, tokenizer = tiny_model("mixtral"), thinking_tokenizer()
    judge = lambda response: "a"  # noqa: E731
    first = ftri(model, tokenizer, ["a"], judge, run_folder=tmp_path, chat_template_kwargs=NO_THINKING, **SAYING)
    usual = ftri(model, tokenizer, ["a"], judge, **SAYING)
    assert int(usual.num_tokens) == int(first.num_tokens) + 1
    with pytest.raises(ValueError, match="chat_template_kwargs"):
        ftri(model, tokenizer, ["a"], judge, run_folder=tmp_path, **SAYING)


@pytest.mark.parametrize(
    ("given", "error", "word"),
    [
        ({"enable_thinkin": False}, UnknownNameError, "would have no effect"),
        ({"tokenize": True}, ConfigError, "not for the template"),
        ({"chat_template": "x"}, ConfigError, "Set tokenizer.chat_template"),
        ("enable_thinking", ConfigError, "must be a mapping of names to values"),
        ({1: 2}, ConfigError, "must be a mapping of names to values"),
    ],
)
def test_chat_encode_refuses_arguments_without_effect(given: Any, error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        Chat(thinking_tokenizer(), template_kwargs=given).encode(["hi"])


def test_chat_encode_without_a_template_refuses_its_arguments() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    assert Chat(tokenizer, template_kwargs={}).encode(["hi"]) == [tokenizer("hi")["input_ids"]]
    with pytest.raises(ConfigError, match="chat template"):
        Chat(tokenizer, template_kwargs=NO_THINKING).encode(["hi"])


def test_chat_encode_names_what_a_template_refuses() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    assert len(Chat(tokenizer).encode(["hi"])) == 1
    with pytest.raises(ConfigError, match=r"prompts\[0\].*no system role.*Leave the system prompt out"):
        Chat(tokenizer, system_prompt="x").encode(["hi"])
    tokenizer.chat_template = "{% for"
    with pytest.raises(ConfigError, match="TemplateSyntaxError"):
        Chat(tokenizer).encode(["hi"])


def test_ftri_refuses_prompts_without_tokens_and_half_surrogates_before_it_runs() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    model.generate = lambda **kwargs: pytest.fail("ran")  # type: ignore[method-assign,assignment]
    judge = lambda response: "a"  # noqa: E731
    with pytest.raises(DataError, match=r"ftri\.prompts\[1\].*surrogate"):
        ftri(model, tokenizer, ["a", "b\ud800"], judge, **SAYING)
    with pytest.raises(DataError, match=r"surrogate"):
        ftri(model, tokenizer, ["a"], judge, system_prompt="\udfff", **SAYING)
    tokenizer.chat_template = "{{ messages[0].content | replace('x', '') }}"
    with pytest.raises(DataError, match=r"ftri\.prompts\[1\].*no token"):
        ftri(model, tokenizer, ["a", "x"], judge, **SAYING)
    with pytest.raises(DataError, match=r"attribute_experts\.prompts\[0\].*no token"):
        attribute_experts(model, tokenizer, ["x"], **CAUSAL)
    score = lambda logits, batch: logits.float().sum((1, 2))  # noqa: E731
    with pytest.raises(DataError, match=r"prompts\[0\].*no token"):
        attribute_experts(model, tokenizer, ["x", "a"], logit_score=score, resamples=0, progress=False)
    assert torch.is_grad_enabled()


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_chat_encode_gives_up_on_a_template_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "TEMPLATE_SECONDS", 0.3)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if messages[0].content == 'b' %}" + ENDLESS + "{% endif %}x"
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"prompts\[1\]: .*chat template takes longer than 0.3 s"):
        Chat(tokenizer).encode(["a", "b"], where="prompts")
    assert time.monotonic() - begun < 3
    # The thread that rendered it has stopped, too.
    for _ in range(100):
        if not any(thread.name == "chat template" for thread in threading.enumerate()):
            return
        time.sleep(0.05)
    pytest.fail("the template still runs")


def test_chat_encode_refuses_a_template_that_writes_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MOST_CHARACTERS", 10_000)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for a in range(20000) %}x{% endfor %}"
    with pytest.raises(ConfigError, match=r"too long a text .got 20000 characters, expected at most 10000"):
        Chat(tokenizer).encode(["a"])


def test_chat_encode_template_cannot_reach_python(tmp_path: Any) -> None:
    tokenizer = tiny_tokenizer()
    for attack in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('x') }}",
        "{% include '/etc/passwd' %}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
    ):
        tokenizer.chat_template = attack
        with pytest.raises(ConfigError, match="chat template fails"):
            Chat(tokenizer).encode(["a"])
