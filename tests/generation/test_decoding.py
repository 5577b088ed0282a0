"""Decoding: arguments that are refused before anything runs, the tokens of an answer, and its special tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import LogitsProcessorList, PreTrainedTokenizerFast

from hf_mote import FTRIResult, MoTEConfig, evaluate_mote, ftri
from hf_mote.errors import ConfigError
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.decoding import answer_text, answer_tokens
from hf_mote.generation.responses import generate_responses
from hf_mote.judges.language import LanguageJudge

SAMPLED = {"do_sample": True}


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": "5"}, "max_new_tokens"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"seed": "x"}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**60}, "seed"),
        ({"generate_kwargs": {**SAMPLED, "temperature": 0.0}}, "temperature.*leave it out"),
        ({"generate_kwargs": {**SAMPLED, "temperature": float("nan")}}, "temperature"),
        ({"generate_kwargs": {**SAMPLED, "top_p": 1.5}}, "top_p"),
        ({"generate_kwargs": {"max_new_tokens": -1}}, "max_new_tokens"),
        ({"generate_kwargs": ["do_sample"]}, "must be a mapping of names to values"),
        ({"generate_kwargs": {"tempratur": 1.0}}, "tempratur.*spelling"),
    ],
)
def test_ftri_refuses_decoding_out_of_range_before_it_runs(options: dict[str, Any], word: str) -> None:
    model = tiny_model("mixtral")
    model.model.forward = lambda *args, **kwargs: pytest.fail("ran")
    with pytest.raises(ConfigError, match=word):
        ftri(
            model, tiny_tokenizer(), ["a"], lambda response: "a", **{"max_new_tokens": 3, "progress": False, **options}
        )


def test_answer_tokens_end_with_the_end_and_hold_no_padding() -> None:
    tokenizer = tiny_tokenizer()
    settings = Decoding(4).settings(tokenizer)
    model = tiny_model("mixtral")
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id
    batch = {"input_ids": torch.tensor([[5, 6]] * 4)}
    answers = [[7, end, pad, pad], [7, 8, 9, 10], [end, pad, pad, pad], [7, 8, pad, pad]]
    model.generate = lambda **kwargs: torch.tensor([[5, 6, *answer] for answer in answers])  # type: ignore[method-assign,assignment]
    assert answer_tokens(model, batch, settings) == [[7, end], [7, 8, 9, 10], [end], [7, 8]]


def test_answer_text_keeps_special_tokens_but_the_end() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("<user>ab<assistant>c<eos>", add_special_tokens=False)["input_ids"]
    assert answer_text(tokenizer, [ids]) == ["abc"]
    assert answer_text(tokenizer, [ids], special_tokens=True) == ["<user>ab<assistant>c"]


def thinking_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<user>", "<assistant>"]})
    return tokenizer


def saying(text: str) -> tuple[Any, PreTrainedTokenizerFast]:
    """Return a model that answers with a text, whatever it is asked, and its tokenizer."""
    model, tokenizer = tiny_model("mixtral", vocab_size=128), thinking_tokenizer()
    usual, said = model.generate, tokenizer(f"{text}<eos>", add_special_tokens=False)["input_ids"]

    def generate(**kwargs: Any) -> Any:
        start = kwargs["input_ids"].shape[1]

        def say(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor(said[ids.shape[1] - start]), 0.0)

        others = kwargs.pop("logits_processor", [])
        processors = LogitsProcessorList([*others, say])
        return usual(**{**kwargs, "max_new_tokens": len(said)}, logits_processor=processors)

    model.generate = generate  # type: ignore[method-assign,assignment]
    return model, tokenizer


SPOKEN = "<think>This is what the user wants to know, I think.</think>Das ist eine gute Frage, mein Freund."


@pytest.mark.parametrize(("part", "language"), [("thinking", "en"), ("answer", "de")])
def test_language_judge_of_a_part_sees_marks_that_are_special_tokens(part: Any, language: str) -> None:
    pytest.importorskip("lingua")
    model, tokenizer = saying(SPOKEN)
    judge = LanguageJudge(["en", "de"], part=part)
    result = ftri(model, tokenizer, ["a"], judge, progress=False)
    assert result.classes == [language]
    assert result.responses == [SPOKEN]
    config = MoTEConfig.for_model(model, suppress=[[0, 1]])
    report = evaluate_mote(model, tokenizer, config, ["a"], judge, target=language, num_controls=0, progress=False)
    assert report.labels_before == [language]


def test_other_judges_see_no_special_tokens() -> None:
    model, tokenizer = saying(SPOKEN)
    result = ftri(model, tokenizer, ["a"], lambda response: "<" in response, progress=False)
    assert result.classes == ["False"]
    assert result.response_tokens is not None
    assert result.response_tokens[0] == tokenizer(f"{SPOKEN}<eos>", add_special_tokens=False)["input_ids"]


def test_ftri_result_saves_the_tokens_of_responses(tmp_path: Any) -> None:
    result = ftri(
        tiny_model("mixtral"), tiny_tokenizer(), ["a", "bb", "c d"], lambda response: "a", max_new_tokens=4,
        run_folder=tmp_path / "run", progress=False,
    )  # fmt: skip
    assert result.response_tokens is not None
    assert answer_text(tiny_tokenizer(), result.response_tokens) == result.responses
    result.save_pretrained(tmp_path / "saved")
    assert FTRIResult.from_pretrained(tmp_path / "saved").response_tokens == result.response_tokens


def test_generate_responses_with_a_seed_are_the_same_and_leave_the_state_alone() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()

    def said(seed: int | None) -> list[str]:
        options: dict[str, Any] = {"max_new_tokens": 8, "generate_kwargs": SAMPLED, "seed": seed}
        return [
            text
            for _, texts in generate_responses(model, Chat(tokenizer), ["a", "b"], Decoding(**options))
            for text in texts
        ]

    state = torch.get_rng_state()
    assert said(1) == said(1) != said(2)
    assert torch.equal(torch.get_rng_state(), state)
    said(None)
    assert not torch.equal(torch.get_rng_state(), state)
