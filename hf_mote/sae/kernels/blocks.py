"""Pre-activations in blocks, shown to the rules that choose from them.

A block of tokens takes tokens from all over the batch, so that every block is a fair sample. One product serves all
rules with tokens in lines; a rule with latents in lines uses the transposed product, which costs the same.
Where every rule chooses among some latents only, only these are encoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mote.sae.kernels.largest import GROUP
from hf_mote.sae.kernels.pattern import Pattern
from hf_mote.sae.kernels.selectors import Block, Entries, Selector

__all__ = ["Chosen", "encode_and_choose"]

# Entries of a block: large enough for the matrix product to run at full speed, and small beside the parameters.
_BLOCK_ENTRIES = {"cpu": 2**24}
_BLOCK_ENTRIES_ELSEWHERE = 2**27
# Most lines of a block, so that results for a block are still in the cache when they are read.
_BLOCK_LINES = {"cpu": 512}


class Chosen(NamedTuple):
    """The choice of a rule: pre-activations `(active,)`, and their places."""

    values: Tensor
    pattern: Pattern


@torch.no_grad()
def encode_and_choose(
    x: Tensor, weight: Tensor, bias: Tensor, selectors: Sequence[Selector], valid: Tensor | None = None
) -> list[Chosen]:
    """Return what each rule chooses from `x @ weight.T + bias`, which is never held as a whole.

    Args:
        x (`torch.Tensor` of shape `(tokens, hidden_size)`, any float dtype): Finite.
        weight (`torch.Tensor` of shape `(num_latents, hidden_size)`): Of the dtype of `x`.
        bias (`torch.Tensor` of shape `(num_latents,)`): Of the dtype of `x`.
        selectors (`Sequence[Selector]`): The rules.
        valid (`torch.Tensor` of shape `(tokens,)`, bool, *optional*): `False` at padding, which is left out.
    """
    if valid is None:
        return _search(_Encoded(x, weight, bias), selectors)
    tokens = valid.nonzero().squeeze(1)
    return [_spread(chosen, tokens, len(x)) for chosen in _search(_Encoded(x[tokens], weight, bias), selectors)]


class _Encoded:
    """Pre-activations that are computed when they are shown, into memory that all blocks share."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        self.shape = (x.shape[0], weight.shape[0])

    def by_token(self, latents: Tensor | None) -> Iterator[Block]:
        weight, bias = (self.weight, self.bias) if latents is None else (self.weight[latents], self.bias[latents])
        columns = _all(self.shape[1], self.x) if latents is None else latents
        every = -(-len(self.x) // _lines(len(columns), self.x))
        memory = _memory(-(-len(self.x) // every), len(columns), self.x)
        tokens = _all(len(self.x), self.x)
        for start in range(every):
            lines = tokens[start::every]
            block = memory[: len(lines)]
            torch.addmm(bias, self.x[start::every], weight.t(), out=block[:, : len(columns)])
            yield Block(block, lines, columns)

    def by_latent(self, order: Tensor | None) -> Iterator[Block]:
        latents = _all(self.shape[1], self.x) if order is None else order
        columns = _all(len(self.x), self.x)
        size = min(_lines(len(columns), self.x), len(latents))
        memory = _memory(size, len(columns), self.x)
        for lines in latents.split(size):
            block = memory[: len(lines)]
            bias, weight = self.bias[lines, None], self.weight[lines]
            torch.addmm(bias, weight, self.x.t(), out=block[:, : len(columns)])
            yield Block(block, lines, columns)


def _search(source: _Encoded, selectors: Sequence[Selector]) -> list[Chosen]:
    num_tokens, num_latents = source.shape
    nothing = torch.empty(0, dtype=torch.long, device=source.x.device)
    found: list[Entries | None] = [None] * len(selectors)
    searches = [selector.search(num_tokens, num_latents) for selector in selectors]
    together = [index for index, selector in enumerate(selectors) if selector.layout == "tokens"]
    alone = [[index] for index, selector in enumerate(selectors) if selector.layout == "latents"]
    for group in [together, *alone] if num_tokens and num_latents else []:
        pending = group
        while pending:
            rules = [selectors[index] for index in pending]
            for block in _show(source, rules):
                for index in pending:
                    searches[index].add(block)
            for index in pending:
                found[index] = searches[index].finish()
            pending = [index for index in pending if found[index] is None]
    return [
        _in_order(entries or Entries(source.x.new_empty(0), nothing, nothing), num_tokens, num_latents)
        for entries in found
    ]


def _show(source: _Encoded, rules: Sequence[Selector]) -> Iterator[Block]:
    if rules[0].layout == "latents":
        return source.by_latent(rules[0].order())
    masks = [rule.among for rule in rules if rule.among is not None]
    if len(masks) < len(rules):
        return source.by_token(None)
    latents = torch.stack(masks).any(0).nonzero().squeeze(1)
    return source.by_token(latents)


def _in_order(entries: Entries, num_tokens: int, num_latents: int) -> Chosen:
    order = (entries.tokens * num_latents + entries.latents).argsort()
    values, tokens, latents = (tensor.index_select(0, order) for tensor in entries)
    return Chosen(values, Pattern(tokens, latents, num_tokens, num_latents))


def _spread(chosen: Chosen, tokens: Tensor, num_tokens: int) -> Chosen:
    """Put the tokens back where they were among padding."""
    pattern = chosen.pattern
    return chosen._replace(pattern=replace(pattern, rows=tokens[pattern.rows], num_rows=num_tokens))


def _all(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, device=like.device)


def _lines(width: int, like: Tensor) -> int:
    entries = _BLOCK_ENTRIES.get(like.device.type, _BLOCK_ENTRIES_ELSEWHERE)
    lines = max(entries // max(_padded_width(width), 1), 1)
    return min(lines, _BLOCK_LINES.get(like.device.type, lines))


def _memory(lines: int, width: int, like: Tensor) -> Tensor:
    memory = like.new_empty(lines, _padded_width(width))
    memory[:, width:] = 0
    return memory


def _padded_width(width: int) -> int:
    return width + -width % GROUP
