"""Texts traced token by token: the tokens are the text, the weights the recorded ones."""

from __future__ import annotations

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_mote import find_routers, record_routing
from hf_mote.commands.token_routing import chosen_texts, token_texts, trace_texts
from hf_mote.generation.asking import Chat


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token per byte, as large ones have for what they do not know."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("text", ["Tell me: how?", "naïve 🎉🏽 日本語 x", "\n\n a  b\t", "e\u0301🙂"])
def test_token_texts_joined_are_the_text(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    pieces = token_texts(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_token_texts_of_broken_characters_ends() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("🎉")["input_ids"][:1] * 6
    pieces = token_texts(tokenizer, ids)
    assert len(pieces) == 6
    assert set("".join(pieces)) == {"\ufffd"}


@pytest.mark.parametrize("more", [0, 1])
def test_trace_texts_weights_add_up_to_the_recorded_ones(more: int) -> None:
    model, tokenizer = tiny_model("deepseek_v3"), tiny_tokenizer()
    find_routers(model)[-1].module.top_k += more  # routers may choose different numbers of experts
    experts = [(1, 3), (2, 0), (2, 7)]
    texts = trace_texts(model, Chat(tokenizer), ["what is b?", "cc"], ["Yes.", ""], ["x", "y"], experts)
    assert [text.label for text in texts] == ["x", "y"]
    for text, prompt, response in zip(texts, ["what is b?", "cc"], ["Yes.", ""], strict=True):
        (ids,) = Chat(tokenizer).encode([prompt])
        said = list(tokenizer(response, add_special_tokens=False)["input_ids"]) if response else []
        assert text.prompt_tokens == len(ids)
        assert "".join(text.pieces) == f"<user>{prompt}<assistant>{response}"
        with record_routing(model) as record, torch.no_grad():
            model(torch.tensor([ids + said]))
        seen = record.maps("prompt")[0]
        for weights, (layer, expert) in zip(text.weights, experts, strict=True):
            assert len(weights) == len(ids) + len(said)
            assert sum(weights) == pytest.approx(seen.at(layer, expert, "weight"), abs=1e-5)
            assert sum(weight != 0 for weight in weights) == seen.at(layer, expert)


def test_trace_texts_of_tokens_keeps_special_ones() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    said = tokenizer("<user>ab<assistant>c<eos>", add_special_tokens=False)["input_ids"]
    (text,) = trace_texts(model, Chat(tokenizer), ["x"], [said], ["a"], [(0, 1)])
    assert text.pieces[text.prompt_tokens :] == ["<user>", "a", "b", "<assistant>", "c", "<eos>"]
    assert len(text.weights[0]) == len(text.pieces)


def test_trace_texts_without_experts_are_none() -> None:
    assert trace_texts(tiny_model("mixtral"), Chat(tiny_tokenizer()), ["a"], ["b"], ["x"], []) == []


def test_chosen_texts_are_of_both_sides_and_others_take_turns() -> None:
    classes = ["b", "b", "a", "c", "a", "a", "b"]
    assert chosen_texts(classes, "a", 2) == [2, 4, 0, 3]
    assert chosen_texts(classes, "a", 9) == [2, 4, 5, 0, 3, 1, 6]
    assert chosen_texts(classes, "a", 0) == []
