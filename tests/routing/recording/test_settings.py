"""Recordings under every way of decoding and running, and what is refused: each refusal, then its way out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from caches import cache_of, taking
from routing_cases import GREEDY, no_gradients, transformers_calls_itself_deprecated  # noqa: F401
from tiny_models import tiny_model
from transformers import PreTrainedModel

from hf_mote import ActivationMap, MoTEConfig, apply_mote, find_routers, record_routing
from hf_mote.errors import UnsupportedError

PROMPT = torch.tensor([[10, 11, 12, 13] * 4])
PAIR = torch.tensor([[10, 11, 12, 13, 14, 15, 16], [40, 41, 42, 43, 44, 45, 46]])
EXPERTS = {"suppress": [[layer, expert] for layer in (1, 2) for expert in (0, 3, 5)], "suppress_mode": "reroute"}


@pytest.fixture(params=["deepseek_v3", "mixtral"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def written(model: PreTrainedModel, ids: torch.Tensor, new: int = 8, **how: Any) -> torch.Tensor:
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, **GREEDY, **how}
    return model.generate(ids, **options)


def maps_of(model: PreTrainedModel, ids: torch.Tensor, phase: str = "all", **how: Any) -> list[ActivationMap]:
    with record_routing(model, eos_token_id=[]) as record:
        written(model, ids, **how)
    return record.maps(phase)


def assert_same(one: list[ActivationMap], other: list[ActivationMap]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.num_tokens == theirs.num_tokens
        assert torch.equal(mine.counts, theirs.counts)
        torch.testing.assert_close(mine.weights, theirs.weights, rtol=1e-4, atol=1e-4)


def assistant_for(model: PreTrainedModel) -> PreTrainedModel:
    assistant = copy.deepcopy(model)
    assistant.generation_config.update(num_assistant_tokens=4, num_assistant_tokens_schedule="constant")
    assistant.generation_config.update(assistant_confidence_threshold=0.0)
    return assistant


@pytest.mark.parametrize("use_cache", [True, False])
def test_record_routing_beams_are_refused_and_the_remedies_work(model: PreTrainedModel, use_cache: bool) -> None:
    how = {"num_beams": 3, "use_cache": use_cache}
    with pytest.raises(UnsupportedError, match=r"greedy search or sampling, or run the finished sequences through"):
        maps_of(model, PAIR, **how)
    assert [found.num_tokens for found in maps_of(model, PAIR, use_cache=use_cache)] == [14, 14]
    finished = written(model, PAIR, **how)
    with record_routing(model, eos_token_id=[]) as record:
        model(finished[:, :-1])
    assert [found.num_tokens for found in record.maps()] == [14, 14]


@pytest.mark.parametrize("new", [2, 5, 12])
def test_record_routing_guesses_are_refused_and_the_remedy_works(model: PreTrainedModel, new: int) -> None:
    """However short: a text that is guessed right ends with the pass that reads the prompt."""
    plain = maps_of(model, PROMPT, "prompt", new=new)
    assert plain[0].num_tokens == PROMPT.shape[1]
    for how in ({"assistant_model": assistant_for(model)}, {"prompt_lookup_num_tokens": 4}):
        with pytest.raises(UnsupportedError, match=r"Generate without .*assistant or prompt lookup"):
            maps_of(model, PROMPT, new=new, **how)
        assert_same(maps_of(model, PROMPT, "prompt", new=new), plain)


def test_record_routing_prompt_in_chunks_is_refused_and_the_remedy_works(model: PreTrainedModel) -> None:
    plain = maps_of(model, PROMPT)
    with pytest.raises(UnsupportedError, match="Generate without prefill_chunk_size"):
        maps_of(model, PROMPT, prefill_chunk_size=5)
    assert_same(maps_of(model, PROMPT), plain)


def test_record_routing_batch_that_shrinks_is_refused_and_the_remedy_works(model: PreTrainedModel) -> None:
    def read(ids: torch.Tensor, *, drop_ended: bool) -> None:
        cache = cache_of(model(ids[:, :4], use_cache=True))
        rows = torch.tensor([0] if drop_ended else [0, 1])
        cache.batch_select_indices(rows)
        model(ids[rows, 4:5], **taking(model, cache))

    with record_routing(model), pytest.raises(UnsupportedError, match="Record greedy search or sampling"):
        read(PAIR, drop_ended=True)
    with record_routing(model) as record:
        read(PAIR, drop_ended=False)
    assert [found.num_tokens for found in record.maps()] == [5, 5]


def test_record_routing_shortened_cache_is_refused_and_the_remedy_works(model: PreTrainedModel) -> None:
    """What is taken back was counted already, and would have to be forgotten."""
    with record_routing(model) as record:
        cache = cache_of(model(PROMPT, use_cache=True))
        model(PROMPT[:, :1], **taking(model, cache))
        cache.crop(-1)
        with pytest.raises(UnsupportedError, match="without a cache from before"):
            model(PROMPT[:, :1], **taking(model, cache))
        cache = cache_of(model(PROMPT, use_cache=True))
        model(PROMPT[:, :1], **taking(model, cache))
    assert [found.num_tokens for found in record.maps()] == [17, 17]


def test_record_routing_texts_read_by_turns_are_counted_each_by_itself(model: PreTrainedModel) -> None:
    texts = [PAIR[:1], PAIR[1:]]
    with record_routing(model, eos_token_id=[]) as alone:
        for text in texts:
            cache = cache_of(model(text[:, :4], use_cache=True))
            for column in (4, 5, 6):
                model(text[:, column : column + 1], **taking(model, cache))
    with record_routing(model, eos_token_id=[]) as by_turns:
        caches = [cache_of(model(text[:, :4], use_cache=True)) for text in texts]
        for column in (4, 5, 6):
            for text, cache in zip(texts, caches, strict=True):
                model(text[:, column : column + 1], **taking(model, cache))
    for phase in ("prompt", "generation"):
        assert_same(by_turns.maps(phase), alone.maps(phase))


def test_apply_mote_mask_of_another_kind_is_refused_and_the_remedy_works(model: PreTrainedModel) -> None:
    ready = torch.ones(len(PAIR), 7, 7, dtype=torch.bool).tril()
    with apply_mote(model, MoTEConfig(**EXPERTS, scope="prompt")):
        wanted = model(PAIR).logits
        with pytest.raises(UnsupportedError, match=r"expected a 2-D mask \(batch, seq\), or none"):
            model(PAIR, attention_mask=ready)
        assert torch.equal(model(PAIR, attention_mask=torch.ones_like(PAIR)).logits, wanted)
        torch.testing.assert_close(model(PAIR, attention_mask=ready[:, None]).logits, wanted, rtol=1e-4, atol=1e-4)


def test_apply_mote_part_run_by_itself_under_a_scope_is_refused_and_the_remedy_works(model: PreTrainedModel) -> None:
    block = model.get_submodule("model.layers.2.mlp")
    for config in (MoTEConfig(**EXPERTS, scope="prompt"), [MoTEConfig(**EXPERTS), None]):
        with apply_mote(model, config):
            with pytest.raises(UnsupportedError, match="Call the model itself rather than its parts"):
                block(torch.randn(2, 7, 32))
            assert not torch.equal(model(PAIR).logits, tiny_model(model.config.model_type)(PAIR).logits)


def test_apply_mote_decoder_and_whole_model_patched_are_merged(model: PreTrainedModel) -> None:
    """The same routers under two names."""
    bias = MoTEConfig(bias=[[1, 4, 2.0], [2, 6, 3.0]])
    with apply_mote(model, MoTEConfig(**EXPERTS)), apply_mote(model, bias):
        wanted = model(PAIR).logits
    for first, second in ((model.model, model), (model, model.model)):
        with apply_mote(first, MoTEConfig(**EXPERTS)), apply_mote(second, bias), record_routing(model.model) as record:
            assert torch.equal(model(PAIR).logits, wanted)
        assert record.num_sequences == 2


def test_find_routers_two_routers_in_a_layer_are_refused_and_the_remedy_works(model: PreTrainedModel) -> None:
    both = torch.nn.ModuleDict({"thinker": model, "talker": tiny_model("mixtral")})
    with pytest.raises(UnsupportedError, match=r"Give the part of the model .* such as model\.thinker"):
        find_routers(both)
    assert find_routers(both["thinker"]) == find_routers(model)


@pytest.mark.parametrize("scope", ["all", "prompt"])
def test_compile_layer_by_layer_follows_patching_and_recording(compiler: None, scope: str) -> None:
    """The decoder itself is not compiled, and tells the graphs of its layers what they work on."""
    model = tiny_model("mixtral", num_hidden_layers=2)

    def seen() -> tuple[torch.Tensor, list[ActivationMap]]:
        with record_routing(model, eos_token_id=[]) as record:
            return model(PAIR, use_cache=False).logits, record.maps()

    with apply_mote(model, MoTEConfig(suppress=[[1, 0], [1, 3], [1, 5]], scope=scope)) as handle:
        patched = seen()
        handle.active = False
        native = seen()
        for layer in model.model.layers:
            layer.compile(backend="eager")
        for active, wanted in ((True, patched), (False, native)):
            handle.active = active
            logits, maps = seen()
            # The graph fuses nothing, but views and sums may round in another order.
            torch.testing.assert_close(logits, wanted[0], rtol=1e-4, atol=1e-5)
            assert_same(maps, wanted[1])
    assert not torch.allclose(patched[0], native[0], atol=1e-2)
