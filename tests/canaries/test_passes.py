"""How `generate` calls a decoder, and what a cache knows."""

from __future__ import annotations

import inspect
import weakref
from typing import Any

import pytest
import torch
import transformers
from canaries.conftest import Watched
from tiny_models import tiny_model
from torch import Tensor

PROMPT = torch.arange(10, 26).view(2, 8)
PADDED = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
NEW = 4


def caches_in(kwargs: dict[str, Any]) -> list[Any]:
    return [value for value in kwargs.values() if isinstance(value, transformers.Cache)]


def generate(watched: Watched, **kwargs: Any) -> Any:
    given = {"attention_mask": torch.ones_like(PROMPT), "max_new_tokens": NEW, "do_sample": False, **kwargs}
    return watched.model.generate(PROMPT, eos_token_id=None, pad_token_id=0, **given)


def test_decoder_takes_ids_first(watched: Watched) -> None:
    """A decoder's first argument is input_ids, and it takes inputs_embeds by name."""
    names = list(inspect.signature(watched.decoder.forward).parameters)
    assert names[0] == "input_ids"
    assert "inputs_embeds" in names


def test_generate_calls_the_decoder_as_a_module(watched: Watched) -> None:
    """generate runs the decoder once for the prompt and once for each new token but the last, through its hooks."""
    generate(watched)
    assert [len(one.output[0][0]) for one in watched.passes()] == [PROMPT.shape[1]] + [1] * (NEW - 1)


def test_generate_hands_over_ids_or_embeddings_by_name(watched: Watched) -> None:
    """generate gives the decoder input_ids or inputs_embeds by name, of shape (batch, new tokens)."""
    generate(watched)
    for one in watched.passes():
        tokens = one.kwargs.get("input_ids", one.args[0] if one.args else None)
        tokens = one.kwargs.get("inputs_embeds") if tokens is None else tokens
        assert tokens.shape[:2] == one.output[0].shape[:2]


def test_generate_hands_over_one_cache(watched: Watched) -> None:
    """generate gives the decoder exactly one Cache, by name, the same in every pass."""
    generate(watched)
    caches = [caches_in(one.kwargs) for one in watched.passes()]
    assert {len(found) for found in caches} == {1}
    assert len({id(found[0]) for found in caches}) == 1


def test_cache_counts_what_was_read(watched: Watched) -> None:
    """Cache.get_seq_length() is the number of tokens read before: 0 in the prompt's pass, one more after each."""
    generate(watched)
    held = [one.held for one in watched.passes()]
    assert held == [0] + [PROMPT.shape[1] + step for step in range(NEW - 1)]


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cache_of_every_implementation_counts(kind: str) -> None:
    """A cache of any cache_implementation is a Cache and counts the same."""
    watched = Watched(tiny_model("mixtral"))
    generate(watched, cache_implementation=kind)
    assert [one.held for one in watched.passes()] == [0] + [PROMPT.shape[1] + step for step in range(NEW - 1)]


def test_output_carries_the_cache(watched: Watched) -> None:
    """A pass with use_cache=True and no cache returns a new Cache among the values of its output."""
    output = watched.model(PROMPT, use_cache=True)
    assert [int(cache.get_seq_length()) for cache in caches_in(dict(output))] == [PROMPT.shape[1]]
    ((_, _, _, returned),) = watched.passes()
    assert caches_in(dict(returned)) == caches_in(dict(output))


def test_pass_without_cache_returns_none(watched: Watched) -> None:
    """A pass with use_cache=False takes and returns no Cache."""
    output = watched.model(PROMPT, use_cache=False)
    assert not caches_in(dict(output))
    assert not caches_in(watched.passes()[0].kwargs)


def test_cache_layers_hold_keys(watched: Watched) -> None:
    """Cache.layers hold keys (batch, heads, tokens, head_dim) in .keys, None where a layer has no attention."""
    watched.model(PROMPT, use_cache=True)
    (cache,) = caches_in(dict(watched.passes()[0].output))
    keys = [layer.keys for layer in cache.layers if isinstance(getattr(layer, "keys", None), Tensor)]
    assert keys, "no layer has keys"
    for found in keys:
        assert (found.ndim, found.shape[0], found.shape[2]) == (4, *PROMPT.shape)


def test_cache_is_known_by_identity(mixtral: transformers.PreTrainedModel) -> None:
    """A Cache can be a key of a weak dictionary, and is equal to itself alone."""
    watched = Watched(mixtral)
    first, second = (caches_in(dict(mixtral(PROMPT, use_cache=True)))[0] for _ in range(2))
    known = weakref.WeakKeyDictionary({first: 1})
    assert second not in known
    assert known[first] == len(watched.passes()) - 1


def test_generate_gives_position_ids(watched: Watched) -> None:
    """generate gives the decoder int64 position_ids that go on from what the cache holds."""
    generate(watched)
    for one in watched.passes():
        positions = one.kwargs["position_ids"]
        assert positions.dtype == torch.int64
        assert positions.shape[-1] == one.output[0].shape[1]
        wanted = torch.arange(one.held, one.held + positions.shape[-1])
        assert torch.equal(positions.reshape(-1, len(wanted))[-1], wanted)


def test_generate_counts_positions_from_the_first_real_token(mixtral: transformers.PreTrainedModel) -> None:
    """Of left-padded prompts, position_ids count real tokens from 0, and the 2-D mask spans cache and new tokens."""
    watched = Watched(mixtral)
    generate(watched, attention_mask=PADDED)
    for one in watched.passes():
        mask = one.kwargs["attention_mask"]
        length = one.output[0].shape[1]
        assert mask.shape == (2, one.held + length)
        wanted = (mask.long().cumsum(-1) - 1)[:, -length:]
        real = mask[:, -length:].bool()
        assert torch.equal(one.kwargs["position_ids"].expand_as(wanted)[real], wanted[real])


def test_generate_without_cache_repeats_the_text(watched: Watched) -> None:
    """generate(use_cache=False) gives the whole text in each pass, with position_ids, use_cache=False and no Cache."""
    generate(watched, use_cache=False)
    passes = watched.passes()
    assert [one.output[0].shape[1] for one in passes] == [PROMPT.shape[1] + step for step in range(NEW)]
    for one in passes:
        assert not caches_in(one.kwargs)
        assert one.kwargs["use_cache"] is False
        assert one.kwargs["position_ids"] is not None


def test_plain_forward_gives_no_position_ids(watched: Watched) -> None:
    """A plain forward leaves position_ids and use_cache to the model, so that only generate gives both."""
    watched.model(PROMPT)
    kwargs = watched.passes()[0].kwargs
    assert kwargs.get("position_ids") is None
    assert kwargs.get("use_cache") is not False


def test_generate_returns_prompt_and_new_tokens(watched: Watched) -> None:
    """generate returns prompt and new tokens, (batch, prompt + new), alone or as .sequences."""
    ids = generate(watched)
    assert torch.equal(ids[:, : PROMPT.shape[1]], PROMPT)
    assert ids.shape == (2, PROMPT.shape[1] + NEW)
    assert torch.equal(generate(watched, return_dict_in_generate=True).sequences, ids)


def test_generate_several_sequences_stand_side_by_side(mixtral: transformers.PreTrainedModel) -> None:
    """generate with num_return_sequences repeats each prompt in neighbouring rows."""
    watched = Watched(mixtral)
    torch.manual_seed(0)
    ids = generate(watched, do_sample=True, num_return_sequences=3)
    assert torch.equal(ids[:, : PROMPT.shape[1]], PROMPT.repeat_interleave(3, dim=0))


def test_prompt_lookup_asks_for_logits_behind_each_guess(mixtral: transformers.PreTrainedModel) -> None:
    """Assisted decoding asks the model, by logits_to_keep, for more than one position's logits in a pass."""
    asked: list[Any] = []
    mixtral.register_forward_pre_hook(lambda module, args, kwargs: asked.append(kwargs), with_kwargs=True)
    text = torch.tensor([[7, 8, 9, 7, 8, 9, 7, 8]])
    mixtral.generate(text, prompt_lookup_num_tokens=3, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert max(kwargs.get("logits_to_keep", 0) for kwargs in asked) > 1
    assert all(kwargs.get("position_ids") is not None and len(caches_in(kwargs)) == 1 for kwargs in asked)


def test_logits_to_keep_keeps_the_last(watched: Watched) -> None:
    """logits_to_keep=n gives logits of the last n positions, the same as without it."""
    whole, last = watched.model(PROMPT).logits, watched.model(PROMPT, logits_to_keep=2).logits
    assert last.shape[1] == 2
    torch.testing.assert_close(last, whole[:, -2:])
