"""Hooks on a decoder given without the model that generates: that model's `generate` is watched all the same."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from transformers import GenerationMixin, PreTrainedModel

from hf_mote import MoTEConfig, apply_mote, record_routing
from hf_mote.errors import HFMoTEError, RouterContractError, UnsupportedError

IDS = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 5}


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("mixtral", num_hidden_layers=2)


def scoped(decoder: Any) -> Any:
    return apply_mote(decoder, MoTEConfig(suppress=[[1, 0], [1, 1]], scope="prompt"))


def recorded(decoder: Any) -> Any:
    return record_routing(decoder, eos_token_id=[])


@pytest.mark.parametrize("attached", [scoped, recorded])
def test_generate_with_hooks_on_the_bare_decoder_is_watched(
    model: PreTrainedModel, attached: Callable[[Any], Any]
) -> None:
    with attached(model) as whole:
        wanted = model.generate(IDS, **GREEDY)
    with attached(model.model) as bare:
        assert torch.equal(model.generate(IDS, **GREEDY), wanted)
        with pytest.raises(UnsupportedError, match="guesses of assisted decoding"):
            model.generate(IDS, prompt_lookup_num_tokens=3, **GREEDY)
        with pytest.raises((UnsupportedError, RouterContractError), match="do not add up to the output"):
            model.generate(IDS, prefill_chunk_size=9, **GREEDY)
    if attached is recorded:
        assert bare.maps("prompt")[0].num_tokens == whole.maps("prompt")[0].num_tokens == 10
    assert "generate" not in vars(model)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.skipif(not hasattr(GenerationMixin, "generate_batch"), reason="this transformers has no generate_batch")
@pytest.mark.parametrize("attached", [scoped, recorded])
def test_generate_batch_with_hooks_on_the_bare_decoder_is_refused_in_the_callers_thread(
    model: PreTrainedModel, attached: Callable[[Any], Any]
) -> None:
    with attached(model.model), pytest.raises(UnsupportedError, match="continuous batching packs the tokens"):
        model.generate_batch([[5, 6, 7]])


def test_decoder_of_no_model_and_hooks_that_need_no_phases_look_for_none(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = model.model
    del model.model
    with recorded(decoder) as record:
        decoder(IDS)
    assert record.maps("prompt")[0].num_tokens == 10
    monkeypatch.setattr(gc, "get_objects", None)
    with apply_mote(decoder, MoTEConfig(suppress=[[1, 0]])):
        decoder(IDS)


def test_guidance_by_a_negative_prompt_is_refused_where_phases_matter_and_works_elsewhere(
    model: PreTrainedModel,
) -> None:
    how = {**GREEDY, "guidance_scale": 1.7, "negative_prompt_ids": torch.tensor([[9, 10, 11]])}
    native = model.generate(IDS, output_scores=True, return_dict_in_generate=True, **how)
    for attached in (scoped, recorded):
        with (
            attached(model),
            pytest.raises(HFMoTEError, match="as guidance or a stopping criterion may|do not add up"),
        ):
            model.generate(IDS, **how)
    suppress = [[layer, expert] for layer in (0, 1) for expert in range(3)]
    for fields in ({}, {"scope": "thinking", "thinking_tokens": [8, 98]}):
        scores = []
        for cached in (True, False):  # without a cache each pass reads its whole text
            with apply_mote(model, MoTEConfig(suppress=suppress, **fields)):
                found = model.generate(IDS, use_cache=cached, output_scores=True, return_dict_in_generate=True, **how)
            scores.append(torch.stack(found.scores))
        assert torch.allclose(scores[0], scores[1], atol=1e-4)
        assert not torch.allclose(scores[0][0], native.scores[0], atol=1e-3)
