"""Rows that somebody reorders, selects, repeats or shortens between two passes: followed, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import taking
from tiny_models import tiny_model
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from hf_mote import MoTEConfig, apply_mote, record_routing
from hf_mote.errors import ConfigError, UnsupportedError

OPENS, CLOSES = 6, 9
IDS = torch.tensor([[5, OPENS, 7, 8], [5, OPENS, CLOSES, 8], [5, 7, 7, 8]])  # thinking, answer, neither
NEXT = torch.tensor([[11], [12], [13]])
SUPPRESS = [[layer, expert] for layer in range(1, 3) for expert in range(3)]
CACHES: dict[str, Callable[[PreTrainedModel], Cache]] = {
    "growing": lambda model: DynamicCache(config=model.config),
    "fixed": lambda model: StaticCache(config=model.config, max_cache_len=12),
}


@pytest.fixture(params=[1, 3], ids=["one layer", "three layers"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model("mixtral", num_hidden_layers=request.param).requires_grad_(False)


def run(model: PreTrainedModel, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    return model(ids, use_cache=True, **taking(model, cache)).logits


def thinking(model: PreTrainedModel, scope: str = "thinking") -> MoTEConfig:
    first = len(model.model.layers) - 1
    return MoTEConfig(suppress=[[first, e] for e in range(3)], scope=scope, thinking_tokens=[OPENS, CLOSES])


ROWS = {"swapped": [1, 0, 2], "turned": [2, 0, 1], "selected": [1, 2], "one": [1], "repeated": [0, 0, 1, 1, 2, 2]}


def rearrange(cache: Cache, rows: list[int], how: str) -> None:
    chosen = torch.tensor(rows)
    if how == "reorder_cache":
        cache.reorder_cache(chosen)
    elif how == "batch_select_indices":
        cache.batch_select_indices(chosen)
    else:
        cache.batch_repeat_interleave(2)


WAYS = [
    ("growing", "reorder_cache", "swapped"),
    ("growing", "reorder_cache", "turned"),
    ("growing", "batch_select_indices", "selected"),
    ("growing", "batch_select_indices", "one"),
    ("growing", "batch_repeat_interleave", "repeated"),
    ("fixed", "reorder_cache", "turned"),
]


@pytest.mark.parametrize("scope", ["thinking", "answer"])
@pytest.mark.parametrize(("kind", "how", "name"), WAYS)
def test_thinking_follows_rows_that_are_rearranged_between_passes(
    model: PreTrainedModel, kind: str, how: str, name: str, scope: str
) -> None:
    rows = ROWS[name]
    ids = NEXT.repeat_interleave(2, 0) if name == "repeated" else NEXT[: len(rows)]
    with apply_mote(model, thinking(model, scope)):
        cache = CACHES[kind](model)
        run(model, IDS, cache)
        rearrange(cache, rows, how)
        found = run(model, ids, cache)[:, -1]
        # Each sequence alone, from its beginning on.
        wanted = torch.stack(
            [model(torch.cat([IDS[row], ids[at]])[None]).logits[0, -1] for at, row in enumerate(rows)]
        )
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", CACHES)
def test_configs_by_row_and_records_refuse_rows_that_came_from_others(model: PreTrainedModel, kind: str) -> None:
    config = MoTEConfig(suppress=[[0, 1]])
    for attached, match in (
        (lambda: apply_mote(model, [config, None, None]), "came there from a row with another config"),
        (lambda: record_routing(model, eos_token_id=[]), "changed their rows during the generation"),
    ):
        with attached():
            cache = CACHES[kind](model)
            run(model, IDS, cache)
            run(model, NEXT, cache)
            cache.reorder_cache(torch.tensor([1, 0, 2]))
            with pytest.raises(UnsupportedError, match=match):
                run(model, NEXT, cache)
    with apply_mote(model, [config, None, None]):
        cache = CACHES[kind](model)
        run(model, IDS, cache)
        cache.reorder_cache(torch.tensor([0, 2, 1]))  # between rows without a config
        run(model, NEXT, cache)


def test_other_numbers_of_rows_are_refused_by_configs_by_row_and_records(model: PreTrainedModel) -> None:
    for attached in (
        lambda: apply_mote(model, [MoTEConfig(suppress=[[0, 1]]), None, None]),
        lambda: record_routing(model),
    ):
        with attached():
            cache = DynamicCache(config=model.config)
            run(model, IDS, cache)
            cache.batch_select_indices(torch.tensor([1, 2]))
            with pytest.raises((UnsupportedError, ConfigError)):
                run(model, NEXT[:2], cache)


def test_thinking_in_a_cache_whose_keys_were_overwritten_in_place_is_refused(model: PreTrainedModel) -> None:
    with apply_mote(model, thinking(model)):
        cache = StaticCache(config=model.config, max_cache_len=12)
        run(model, IDS, cache)
        for layer in cache.layers:
            for held in (layer.keys, layer.values):
                held.copy_(held[torch.tensor([1, 0, 2])])
        with pytest.raises(UnsupportedError, match="does not show which row each sequence is in now"):
            run(model, NEXT, cache)


@pytest.mark.parametrize("taken", [1, 2])
@pytest.mark.parametrize("kind", CACHES)
def test_thinking_follows_a_cache_that_is_cropped_and_reordered(model: PreTrainedModel, kind: str, taken: int) -> None:
    more = torch.tensor([[14, CLOSES], [OPENS, 14], [OPENS, 14]])
    with apply_mote(model, thinking(model)):
        cache = CACHES[kind](model)
        run(model, IDS, cache)
        run(model, more, cache)
        if not all(hasattr(layer, "crop") for layer in cache.layers):
            pytest.skip("this transformers does not crop a cache of fixed size")
        cache.crop(-taken)
        cache.reorder_cache(torch.tensor([1, 0, 2]))
        whole = torch.cat([IDS, more], dim=1)[:, :-taken][torch.tensor([1, 0, 2])]
        wanted = model(torch.cat([whole, NEXT], dim=1)).logits[:, -1]
        assert torch.allclose(run(model, NEXT, cache)[:, -1], wanted, atol=1e-5)


def test_record_of_an_untouched_batch_does_not_compare_keys(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hf_mote.passes.cached_text

    monkeypatch.setattr(hf_mote.passes.cached_text, "moved_from", None)  # what would wait for the device
    rows = IDS[[0, 0, 1]]  # sequences that begin alike
    with record_routing(model, eos_token_id=[]) as record:
        cache = DynamicCache(config=model.config)
        run(model, rows, cache)
        run(model, NEXT, cache)
    assert [found.num_tokens for found in record.maps("generation")] == [1, 1, 1]


def test_copied_cache_is_a_text_that_nobody_saw(model: PreTrainedModel) -> None:
    with apply_mote(model, thinking(model)):
        cache = DynamicCache(config=model.config)
        run(model, IDS, cache)
        with pytest.raises(UnsupportedError, match="filled in passes that were not seen"):
            run(model, NEXT, copy.deepcopy(cache))


def test_beams_that_a_caller_keeps_by_hand_think_as_their_sequences_do(model: PreTrainedModel) -> None:
    """A beam search of one's own: three beams of one prompt, which part and are reordered at each step."""
    generator = torch.Generator().manual_seed(0)
    with apply_mote(model, thinking(model)):
        cache: Any = DynamicCache(config=model.config)
        texts = IDS[:1].repeat(3, 1)
        run(model, texts, cache)
        for _ in range(6):
            ids = torch.randint(5, 10, (3, 1), generator=generator)
            texts = torch.cat([texts, ids], dim=1)
            found = run(model, ids, cache)[:, -1]
            assert torch.allclose(found, model(texts).logits[:, -1], atol=1e-4)
            order = torch.randint(0, 3, (3,), generator=generator)
            cache.reorder_cache(order)
            texts = texts[order]
