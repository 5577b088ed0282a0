"""A release that hands the cache over in another way: what a pass is must still be right, or refused with a reason.

transformers 5.24 renamed `past_key_values` to `cache`, and every decode step counted as a prompt of its own. Each
decoder here takes its cache from a place that nothing knows of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import taking
from tiny_models import tiny_model
from transformers import Cache, PreTrainedModel

import hf_mote.passes.arguments
import hf_mote.passes.decoder_hook
from hf_mote import MoTEConfig, apply_mote, record_routing
from hf_mote.errors import RouterContractError, UnsupportedError

IDS = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
MASK = (IDS != 0).long()
NEW = 6


class Box:
    """Holds a cache, and says nothing of it."""

    def __init__(self, cache: Cache | None) -> None:
        self.held = cache


def with_argument(model: PreTrainedModel, pack: Callable[[Any], dict[str, Any]], hidden: tuple[str, ...] = ()) -> None:
    """Make a model hand its decoder the cache as `pack` says, without the arguments named in `hidden`."""
    decoder = model.model
    name = next(iter(taking(decoder, None)))
    plain = type(decoder).forward

    class Decoder(type(decoder)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            cache = kwargs.pop(name, None)
            self.kept = {key: kwargs.pop(key, None) for key in hidden}
            return super().__call__(*args, **kwargs, **pack(cache))

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            held = [kwargs.pop(key) for key in list(kwargs) if key.startswith("strange")]
            cache = held[0] if held else None
            while isinstance(cache, Box | tuple | list | dict):
                cache = (
                    cache.held
                    if isinstance(cache, Box)
                    else next(iter(cache.values() if isinstance(cache, dict) else cache))
                )
            return plain(self, *args, **kwargs, **self.kept, **{name: cache})

    decoder.__class__ = Decoder


WAYS: dict[str, tuple[Callable[[Any], dict[str, Any]], bool]] = {
    "another name": (lambda cache: {"strange_state": cache}, True),
    "in a tuple": (lambda cache: {"strange_state": (cache, None)}, True),
    "in a dict": (lambda cache: {"strange_state": {"self": cache}}, True),
    "in an object": (lambda cache: {"strange_state": Box(cache)}, False),
    "in an object in a list": (lambda cache: {"strange_state": [[Box(cache)]]}, False),
}


def generated(model: PreTrainedModel) -> torch.Tensor:
    return model.generate(
        IDS, attention_mask=MASK, max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
    )


@pytest.mark.parametrize("hidden", [(), ("attention_mask",), ("position_ids",)], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_record_routing_of_a_cache_handed_over_in_another_way_is_right_or_refused(
    way: str, hidden: tuple[str, ...]
) -> None:
    model = tiny_model("mixtral")
    with record_routing(model, eos_token_id=[]) as usual:
        wanted = generated(model)
    pack, works = WAYS[way]
    works = works and hidden != ("attention_mask",)  # without it, padding on the left looks like a packed text
    with_argument(model, pack, hidden)
    assert torch.equal(generated(model), wanted)
    with record_routing(model, eos_token_id=[]) as record:
        if works:
            generated(model)
        else:
            with pytest.raises(UnsupportedError, match=r"may hold tokens|attention mask|position ids"):
                generated(model)
    if works:
        for phase in ("prompt", "generation"):
            assert [m.num_tokens for m in record.maps(phase)] == [m.num_tokens for m in usual.maps(phase)]
    else:
        assert record.stacked("generation")[0].sum() == 0


@pytest.mark.parametrize("scope", ["prompt", "generation", "answer"])
@pytest.mark.parametrize("way", WAYS)
def test_apply_mote_scopes_with_a_cache_handed_over_in_another_way_are_right_or_refused(way: str, scope: str) -> None:
    model = tiny_model("mixtral")
    config = MoTEConfig(
        suppress=[[1, 0], [1, 1], [2, 2]], scope=scope, thinking_tokens=[7, 12] if scope == "answer" else None
    )
    with apply_mote(model, config):
        wanted = generated(model)
    pack, works = WAYS[way]
    with_argument(model, pack)
    with apply_mote(model, config):
        if works:
            assert torch.equal(generated(model), wanted)
        else:
            with pytest.raises(UnsupportedError, match=r"may hold tokens|attention mask|position ids"):
                generated(model)


def test_record_routing_two_caches_are_refused() -> None:
    model = tiny_model("mixtral")
    other: list[Any] = []

    def pack(cache: Any) -> dict[str, Any]:
        other.append(type(cache)(config=model.config))
        return {"strange_state": cache, "strange_more": other[-1]}

    with_argument(model, pack)
    with record_routing(model), pytest.raises(UnsupportedError, match="2 caches were given"):
        generated(model)


def test_record_routing_packed_sequences_are_refused_and_one_to_a_row_works() -> None:
    model = tiny_model("mixtral")
    ids, positions = torch.tensor([[5, 6, 7, 8, 9]]), torch.tensor([[0, 1, 2, 0, 1]])
    with record_routing(model) as record:
        with pytest.raises(UnsupportedError, match="position ids start anew in the middle of a row"):
            model(ids, position_ids=positions)
        model(ids[:, :3])
        model(ids[:, 3:])
    assert [found.num_tokens for found in record.maps("prompt")] == [3, 2]


def test_record_routing_padding_on_the_right_is_not_packing() -> None:
    model = tiny_model("mixtral")
    ids, mask = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]]), torch.tensor([[1, 1, 1, 0, 0], [1] * 5])
    positions = torch.tensor([[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]])
    with record_routing(model) as record:
        model(ids, attention_mask=mask, position_ids=positions)
    assert [found.num_tokens for found in record.maps("prompt")] == [3, 5]


def test_record_routing_positions_of_a_text_that_began_elsewhere_are_refused() -> None:
    model = tiny_model("mixtral")
    with record_routing(model), pytest.raises(UnsupportedError, match="position ids begin at 7, and no cache"):
        model(torch.tensor([[5, 6]]), position_ids=torch.tensor([[7, 8]]))


@pytest.mark.parametrize("scope", ["prompt", "generation"])
def test_generate_whose_prompt_ends_in_a_chunk_of_one_token_is_refused(scope: str) -> None:
    """Of one token on a cache, the decoder alone cannot know that it ends a prompt read in chunks."""
    model = tiny_model("mixtral")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    how = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with apply_mote(model, MoTEConfig(suppress=[[1, 0]], scope=scope)):
        with pytest.raises(RouterContractError, match="got 4 prompt and 3 generated tokens, expected 5 and 2"):
            model.generate(ids, prefill_chunk_size=4, **how)
        model.generate(ids, **how)
        model.generate(input_ids=ids, num_beams=3, **how)
        model.generate(ids, num_return_sequences=2, **{**how, "do_sample": True}, return_dict_in_generate=True)


def test_generate_whose_decode_steps_are_taken_for_prompts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers 5.24 did to a hook that knew the cache by name alone, with every other reading gone."""
    model = tiny_model("mixtral")
    monkeypatch.setattr(hf_mote.passes.decoder_hook, "contradiction", lambda *_, **__: None)
    monkeypatch.setattr(hf_mote.passes.arguments, "_is_cache", lambda _: False)
    monkeypatch.setattr(hf_mote.passes.arguments, "_holder_of_tokens", lambda *_: None)
    with (
        apply_mote(model, MoTEConfig(suppress=[[1, 0]], scope="generation")),
        pytest.raises(
            UnsupportedError, match="inside generate a pass began a text of its own, .* or its cache was not found"
        ),
    ):
        generated(model)
