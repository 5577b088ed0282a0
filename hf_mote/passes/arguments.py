"""What a decoder was called with, read by the types of the arguments and not by their names, which releases change.

A cache is a `Cache` wherever it stands among the arguments or in the output. How many tokens were read before follows
from its own length, from the width of the attention mask and from the position ids. The readings are compared,
and where they contradict each other the reason is stated, so that nothing is labelled by a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from transformers import Cache, PreTrainedConfig

__all__ = [
    "PassArguments",
    "caches_in",
    "contradiction",
    "covers_whole_cache",
    "read_arguments",
    "why_packed",
    "widest",
]

DEPTH = 2  # how deep containers are searched for a cache
PLAIN = (Tensor, bool, int, float, str, torch.dtype, torch.device, BlockMask, PreTrainedConfig, type(None))


class PassArguments(NamedTuple):
    """The arguments of one pass.

    Attributes:
        tokens (`torch.Tensor`): Token ids, `(batch, length)`, or embeddings, `(batch, length, hidden_size)`.
        ids (`torch.Tensor`, *optional*): Token ids, `(batch, length)`; `None` if embeddings were given.
        cache (`Cache`, *optional*): What holds the tokens that were read before, if one was given.
        mask (`object`): The attention mask.
        positions (`torch.Tensor`, *optional*): Position ids, `(..., length)`.
        by_generate (`bool`): Whether position ids and `use_cache=False` were given, as by `generate`.
        lengths (`dict`): Lengths of packed sequences, summed up, as kernels for them take them, by their name.
        parts (`torch.Tensor`, *optional*): Number of each token's sequence, `(batch, length)`.
        unclear (`str`, *optional*): Why the arguments do not show what was read before; `None` if they do.
    """

    tokens: Tensor
    ids: Tensor | None
    cache: Any | None
    mask: object
    positions: Tensor | None
    by_generate: bool
    lengths: Mapping[str, Tensor]
    parts: Tensor | None
    unclear: str | None


def read_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PassArguments | None:
    """Return what a decoder was called with, or `None` if there are neither token ids nor embeddings.

    Args:
        args (`tuple`): Its positional arguments.
        kwargs (`Mapping[str, Any]`): Its other arguments.
    """
    ids = kwargs.get("input_ids", args[0] if args else None)
    tokens = ids if ids is not None else kwargs.get("inputs_embeds")
    if not isinstance(tokens, Tensor) or tokens.ndim < 2:
        return None
    unclear = None
    caches = list(caches_in((*args, *kwargs.values())))
    if len(caches) > 1:
        unclear = f"{len(caches)} caches were given"
    elif not caches:
        unclear = _holder_of_tokens(args, kwargs)
    positions = kwargs.get("position_ids")
    if not isinstance(positions, Tensor) or positions.is_floating_point() or not positions.ndim:
        positions = None
    by_generate = kwargs.get("use_cache") is False and positions is not None
    mask = kwargs.get("attention_mask")
    cache = caches[0] if caches else None
    lengths = {
        name: value for name, value in kwargs.items() if name.startswith("cu_seq") and isinstance(value, Tensor)
    }
    parts = kwargs.get("seq_idx")
    parts = parts if isinstance(parts, Tensor) and parts.shape == tokens.shape[:2] else None
    return PassArguments(tokens, ids, cache, mask, positions, by_generate, lengths, parts, unclear)


def caches_in(values: object, depth: int = DEPTH) -> Iterator[Any]:
    """Yield each cache among some values once, including those in containers.

    Args:
        values (`object`): A value, or a tuple, list or mapping of values.
        depth (`int`, *optional*, defaults to 2): How deep to search.
    """
    found: list[int] = []
    for cache in _caches(values, depth):
        if id(cache) not in found:
            found.append(id(cache))
            yield cache


def _caches(values: object, depth: int) -> Iterator[Any]:
    if isinstance(values, Tensor):
        return
    if _is_cache(values):
        yield values
    elif depth >= 0 and isinstance(values, Mapping):
        for value in values.values():
            yield from _caches(value, depth - 1)
    elif depth >= 0 and isinstance(values, list | tuple):
        for value in values:
            yield from _caches(value, depth - 1)


def _is_cache(value: object) -> bool:
    # Remote code has cache classes of its own, which have a length, too.
    return isinstance(value, Cache) or (
        not isinstance(value, PLAIN) and callable(getattr(value, "get_seq_length", None)) and hasattr(value, "update")
    )


def _holder_of_tokens(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Describe an argument that may hold tokens read before, in an unknown form."""
    named = [*((f"argument {place}", value) for place, value in enumerate(args)), *kwargs.items()]
    for name, value in named:
        if isinstance(value, PLAIN):
            continue
        if isinstance(value, list | tuple):
            pairs = [item for item in value if isinstance(item, list | tuple)]
            if any(isinstance(part, Tensor) and part.ndim >= 3 for pair in pairs for part in pair):
                return f"{name} holds keys and values as tuples of tensors, whose length is not known"
        elif not isinstance(value, Mapping) and not callable(value):
            return f"{name} is a {type(value).__name__}, which may hold tokens read before"
    return None


def contradiction(read: PassArguments, past: int, *, values: bool) -> str | None:
    """Describe where mask or positions contradict the number of tokens read before; `None` if they do not.

    Args:
        read (`PassArguments`): The arguments.
        past (`int`): Tokens that the cache holds.
        values (`bool`): Whether to look at values, which waits for the device, and not only at shapes.
    """
    length = read.tokens.shape[1]
    mask = widest(read.mask)
    if isinstance(mask, Tensor):
        width = mask.shape[-1]
        if mask.ndim == 2 and width != past + length and not (covers_whole_cache(read) and width > past + length):
            return f"the attention mask covers {width} tokens, and {past} in the cache and {length} new ones are known"
        if mask.ndim == 4 and read.cache is None and width != length:
            return f"the attention mask covers {width} tokens, and the pass reads {length} without a cache"
    if read.positions is None or read.positions.shape[-1] != length or not values:
        return None
    positions = read.positions
    if positions.ndim > 2 and positions.shape[0] > 1:
        return None  # a position along each axis of an image
    positions = positions.reshape(-1, length)
    if past and length == 1 and bool((positions == 0).all()):
        return f"the position ids say that the text begins, and the cache holds {past} tokens"
    if not past and bool((positions.min(dim=1).values > 0).all()):
        return f"the position ids begin at {int(positions.min())}, and no cache of earlier tokens was found"
    return None


def why_packed(read: PassArguments, real: Tensor | None, past: int, *, values: bool = True) -> str | None:
    """Describe what shows that a row holds several sequences, one after the other; `None` if nothing does.

    Args:
        read (`PassArguments`): The arguments.
        real (`torch.Tensor`, *optional*): False for padding, `(batch, length)`; `None` if there is none.
        past (`int`): Tokens that the cache holds.
        values (`bool`, *optional*, defaults to `True`): Whether to look at values, and not only at shapes.
    """
    batch, length = read.tokens.shape[:2]
    for name, ends in read.lengths.items():
        if ends.numel() - 1 > batch:
            return f"{name} has {ends.numel() - 1} sequences for {batch} rows"
    if length < 2 or not values:
        return None
    # Two tokens that stand side by side, neither of them padding.
    pairs = torch.ones(batch, length - 1, dtype=torch.bool, device=read.tokens.device)
    if real is not None:
        pairs = real[:, 1:] & real[:, :-1]
    positions = read.positions
    if positions is not None and positions.shape[-1] == length:
        axes = positions if positions.ndim > 2 else positions.reshape(1, -1, length)
        steps = axes.diff(dim=-1)
        # Of positions along the axes of an image, a text begins where all are 0.
        begins = ((steps <= 0) & (axes[..., 1:] == 0)).all(dim=0)
        if len(axes) == 1:
            begins = begins | (steps[0] < 0)
        if bool((begins & pairs).any()):
            return "position ids start anew in the middle of a row"
    if read.parts is not None and bool(((read.parts.diff(dim=-1) != 0) & pairs).any()):
        return "seq_idx numbers several sequences in a row"
    mask = widest(read.mask)
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.dtype != torch.bool:
        own = mask[:, past : past + length] if covers_whole_cache(read) else mask[:, -length:]
        if bool(((own.diff(dim=-1) != 0) & pairs).any()):
            return "the attention mask numbers several sequences in a row"
    return _why_cut(read, pairs, past)


def _why_cut(read: PassArguments, pairs: Tensor, past: int) -> str | None:
    """Return where in prepared masks tokens do not attend to the one before, in the masks of all layers."""
    length = read.tokens.shape[1]
    masks = list(read.mask.values()) if isinstance(read.mask, dict) else [read.mask]
    cut = pairs
    for mask in masks:
        # A cache past the end of its window has its columns shifted, and so no sequence that begins here.
        if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-1] < past + length:
            return None
        attended = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        before = attended[:, 0, 1:, past : past + length - 1].diagonal(dim1=-2, dim2=-1)
        cut = cut & ~before
    return "the attention mask keeps tokens from the one before, as between sequences" if bool(cut.any()) else None


def covers_whole_cache(read: PassArguments) -> bool:
    """Return whether a 2-D mask has a column for each place of a cache of fixed size, read or not.

    Args:
        read (`PassArguments`): The arguments.
    """
    mask = widest(read.mask)
    if not isinstance(mask, Tensor) or mask.ndim != 2 or read.cache is None:
        return False
    places = [getattr(layer, "max_cache_len", None) for layer in getattr(read.cache, "layers", ())]
    return mask.shape[1] == max((place for place in places if isinstance(place, int)), default=-1)


def widest(mask: object) -> object:
    """Return an attention mask; of a dict of masks the widest, as layers with a window have narrower ones.

    Args:
        mask (`object`): What a decoder was given as its mask.
    """
    if not isinstance(mask, dict):
        return mask
    tensors = [value for value in mask.values() if isinstance(value, Tensor)]
    return max(tensors, key=lambda value: (value.ndim, value.shape[-1]), default=next(iter(mask.values()), None))
