"""The sums that a recording keeps: one row of experts for each router, sequence and phase, whatever the tokens.

What the routers of one pass decided is put aside as they run and added up in one go when the pass ends, so that a
decode step pays for a few operations and not for a few per layer. Long passes are added up router by router.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mote.routing.forward import Forward, Phase
from hf_mote.routing.maps import ActivationMap
from hf_mote.routing.selection import Routing

__all__ = ["RoutingTrace", "Tally"]

TOKENS_AT_ONCE = 2048  # longer passes are not put aside


class RoutingTrace(NamedTuple):
    """Token by token routing of one sequence, as applied.

    Attributes:
        indices (`torch.Tensor` of shape `(tokens, layers, top_k)`, int32): Chosen experts.
        weights (`torch.Tensor` of shape `(tokens, layers, top_k)`, float32): Their weights.
        generated (`torch.Tensor` of shape `(tokens,)`, bool): True for generated tokens, False for the prompt's.
        layers (`tuple[int, ...]`): Absolute decoder layer of each router.
    """

    indices: Tensor
    weights: Tensor
    generated: Tensor
    layers: tuple[int, ...]


class Tally:
    """The sequences that run together.

    `kind` is `"both"` for routing that was applied as the router decided it, else `"native"` or `"applied"`.

    Args:
        forward (`Forward`): Their first pass.
        num_layers (`int`): Routers.
        num_experts (`int`): Experts of the router that has most.
        trace (`bool`): Whether to keep every token's routing as well.
    """

    def __init__(self, forward: Forward, num_layers: int, num_experts: int, trace: bool) -> None:
        self.run = forward.run
        self.size = forward.batch
        self.shape = (num_layers, forward.batch, num_experts)
        self.device = forward.device
        self.tokens: dict[Phase, Tensor | int] = {}
        self.sums: dict[tuple[Phase, str], tuple[Tensor, Tensor]] = {}
        self.steps: list[list[tuple[Tensor, Tensor]]] | None = [] if trace else None
        self.marks: list[tuple[Tensor, Tensor]] = []
        self._masks: list[tuple[Phase, Tensor | None]] = []
        self._aside: dict[str, list[tuple[int, Routing]]] = {}
        self._ended: Tensor | None = None
        self._length = 0
        # Where in the sums the first expert of each router and sequence stands.
        starts = torch.arange(0, math.prod(self.shape), num_experts, device=self.device)
        self._starts = starts.view(num_layers, forward.batch, 1, 1)
        self._all_rows = list(range(num_layers))

    def begin(self, forward: Forward, stops: Tensor, only: Tensor | None = None) -> None:
        """Take note of a pass that begins.

        Args:
            forward (`Forward`): The pass.
            stops (`torch.Tensor` of shape `(tokens,)`, int64): Tokens that end a generation.
            only (`torch.Tensor` of shape `(rows,)`, bool, *optional*): The rows to count, of those that would be.
        """
        self._aside = {}
        self._masks = [(phase, forward.countable(phase)) for phase in forward.phases]
        if "generation" not in forward.phases:
            self._ended = None
        elif forward.ids is not None and len(stops):
            last = torch.isin(forward.ids[:, -1], stops)
            self._ended = last if self._ended is None else self._ended | last
            going = (~self._ended).repeat_interleave(forward.length)
            self._masks = [(phase, going if mask is None else mask & going) for phase, mask in self._masks]
        if only is not None:
            self._masks = [(phase, only if mask is None else mask & only) for phase, mask in self._masks]
        self._length = forward.length
        if self.steps is not None:
            self.steps.append([])
            self.marks.append(self._marks())

    def see(self, row: int, native: Routing, applied: Routing) -> None:
        """Take in what one router decided and what was applied.

        Args:
            row (`int`): The router's place among all.
            native (`Routing`): What it decided.
            applied (`Routing`): What took effect; the same object if nothing was edited.
        """
        if applied is native:
            self._aside.setdefault("both", []).append((row, native))
        else:
            self._aside.setdefault("native", []).append((row, native))
            self._aside.setdefault("applied", []).append((row, applied))
        if self.steps is not None:
            self.steps[-1].append((applied.indices.int().cpu(), applied.weights.detach().float().cpu()))
        if self.size * self._length > TOKENS_AT_ONCE:
            self._add_up()

    def end(self) -> None:
        """Add up what the pass left."""
        self._add_up()
        for phase, mask in self._masks:
            seen = self._length if mask is None else mask.view(self.size, -1).sum(dim=1)
            self.tokens[phase] = self.tokens.get(phase, 0) + seen

    def maps(self, phases: tuple[Phase, ...], kind: str, layers: tuple[int, ...]) -> list[ActivationMap]:
        """Return one map for each sequence.

        Args:
            phases (`tuple[str, ...]`): What to add together.
            kind (`str`): `"native"` or `"applied"`.
            layers (`tuple[int, ...]`): Absolute decoder layer of each router.
        """
        counts = torch.zeros(self.shape, dtype=torch.float64)
        weights = torch.zeros(self.shape, dtype=torch.float64)
        tokens = torch.zeros(self.size, dtype=torch.float64)
        for phase in phases:
            seen = self.tokens.get(phase, 0)
            tokens += seen.cpu() if isinstance(seen, Tensor) else seen
            for part in ("both", kind):
                if (phase, part) in self.sums:
                    counted, weighed = self.sums[phase, part]
                    counts += counted.view(self.shape).cpu()
                    weights += weighed.view(self.shape).cpu()
        return [
            ActivationMap(counts=counts[:, i], weights=weights[:, i], layers=layers, num_tokens=float(tokens[i]))
            for i in range(self.size)
        ]

    def traces(self, layers: tuple[int, ...]) -> list[RoutingTrace]:
        """Return each sequence's routing token by token.

        Args:
            layers (`tuple[int, ...]`): Absolute decoder layer of each router.
        """
        found = []
        for sequence in range(self.size):
            indices, weights, generated = [], [], []
            for step, (keep, mark) in zip(self.steps or [], self.marks, strict=True):
                mine = keep.view(self.size, -1)[sequence]
                indices.append(torch.stack([i.view(self.size, -1, i.shape[-1])[sequence][mine] for i, _ in step], 1))
                weights.append(torch.stack([w.view(self.size, -1, w.shape[-1])[sequence][mine] for _, w in step], 1))
                generated.append(mark.view(self.size, -1)[sequence][mine])
            found.append(RoutingTrace(torch.cat(indices), torch.cat(weights), torch.cat(generated), layers))
        return found

    def _add_up(self) -> None:
        for kind, entries in self._aside.items():
            by_width: dict[int, list[tuple[int, Routing]]] = {}
            for entry in entries:
                by_width.setdefault(entry[1].indices.shape[-1], []).append(entry)
            for alike in by_width.values():
                self._add(kind, alike)
        self._aside = {}

    def _add(self, kind: str, entries: list[tuple[int, Routing]]) -> None:
        """Add routers of one width to the sums, all at once."""
        rows = [row for row, _ in entries]
        starts = self._starts if rows == self._all_rows else self._starts[rows]
        indices = self._stack([routing.indices for _, routing in entries])
        weights = self._stack([routing.weights for _, routing in entries]).detach().float()
        places = starts + indices.view(len(rows), self.size, self._length, -1)
        for phase, mask in self._masks:
            if (phase, kind) not in self.sums:
                counts = torch.zeros(math.prod(self.shape), dtype=torch.long, device=self.device)
                self.sums[phase, kind] = (counts, torch.zeros_like(counts, dtype=torch.float))
            counted = (weights != 0).long() if kind == "applied" else torch.ones_like(places)
            weighed = weights
            if mask is not None:
                counted, weighed = counted.view_as(weights) * mask[:, None], weights * mask[:, None]
            self.sums[phase, kind][0].scatter_add_(0, places.view(-1), counted.view(-1))
            self.sums[phase, kind][1].scatter_add_(0, places.view(-1), weighed.view(-1))

    def _stack(self, tensors: list[Tensor]) -> Tensor:
        """What routers hand over, in one tensor; they need not be on one device."""
        if len({tensor.device for tensor in tensors}) > 1:
            tensors = [tensor.to(self.device) for tensor in tensors]
        return torch.stack(tensors).to(self.device)

    def _marks(self) -> tuple[Tensor, Tensor]:
        """Which rows of the pass are kept in the trace, and which of them are generated."""
        everything = torch.ones(self.size * self._length, dtype=torch.bool, device=self.device)
        masks = {phase: everything if mask is None else mask for phase, mask in self._masks}
        kept = torch.stack(list(masks.values())).any(dim=0)
        return kept.cpu(), masks.get("generation", ~everything).cpu()
