"""The sums that a recording keeps: one row of experts for each router, sequence and phase.

The decisions of one pass are kept while it runs and added up when it ends. Long passes are added up router by router.

A router of a looped layer runs several times in one pass; a token then counts for the mean of its visits, so that it
counts as much in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mote.errors import UnsupportedError
from hf_mote.passes.forward import Forward, Phase, all_of
from hf_mote.routing.recording.trace import TraceKeeper
from hf_mote.routing.rules.selection import Routing

__all__ = ["Tally"]

TOKENS_AT_ONCE = 2048  # longer passes are added up router by router


class RoutedRows(NamedTuple):
    """The decisions of routers of one kind and width in one pass; both tensors `(routers, rows, top_k)`."""

    kind: str
    rows: list[int]
    indices: Tensor
    weights: Tensor


class Tally:
    """The sequences that run together.

    `kind` is `"both"` for routing that was applied as the router decided it, else `"native"` or `"applied"`.

    Args:
        forward (`Forward`): Their first pass.
        num_layers (`int`): Routers.
        num_experts (`int`): Experts of the router that has most.
        stops (`torch.Tensor` of shape `(tokens,)`, int64): Tokens that end a generation.
        phases (`Sequence[str]`): What to count.
        trace (`bool`): Whether to keep every token's routing as well.
    """

    def __init__(
        self,
        forward: Forward,
        num_layers: int,
        num_experts: int,
        *,
        stops: Tensor,
        phases: Sequence[Phase],
        trace: bool,
    ) -> None:
        self.size = forward.batch
        self.shape = (num_layers, forward.batch, num_experts)
        self.device = forward.device
        self.phases = phases
        self.tokens: dict[Phase, Tensor | int] = {}
        self.columns: dict[Phase, int] = {"prompt": 0, "generation": 0}  # read so far, padding and all
        self.sums: dict[tuple[Phase, str], tuple[Tensor, Tensor]] = {}
        self.trace = TraceKeeper() if trace else None
        # How often each router runs in a pass: the current pass, and earlier ones.
        self._visits, self._visits_before = [0] * num_layers, [0] * num_layers
        self._stops = stops.to(self.device)
        self._ended: Tensor | None = None
        # The current pass.
        self._counts = self._long = False
        self._masks: list[tuple[Phase, Tensor | None]] = []
        self._pending: dict[str, list[tuple[int, Routing]]] = {}
        # Where in the sums the first expert of each router and sequence stands.
        starts = torch.arange(0, math.prod(self.shape), num_experts, device=self.device)
        self._starts = starts.view(num_layers, forward.batch, 1, 1)
        self._all_rows = list(range(num_layers))

    def begin(self, forward: Forward, only: Tensor | None = None) -> None:
        """Register a pass that begins.

        Args:
            forward (`Forward`): The pass.
            only (`torch.Tensor` of shape `(rows,)`, bool, *optional*): Which rows to count.
        """
        self._pending = {}
        self._visits = [0] * len(self._visits)
        if self.trace is not None:
            self.trace.begin()
        phases = forward.phases
        self.columns["prompt"] += max(forward.generation_from - forward.first_new_column, 0)
        self.columns["generation"] += forward.length - max(forward.generation_from, forward.first_new_column)
        if "generation" not in phases:
            self._ended = None
        counted = [phase for phase in phases if phase in self.phases]
        self._counts = bool(counted)
        if not counted:
            return
        self._long = self.size * forward.length > TOKENS_AT_ONCE
        going = self._going(None if forward.ids is None else forward.ids[:, -1], phases)
        going = None if going is None else going.repeat_interleave(forward.length)
        self._masks = [(phase, all_of(forward.countable(phase), going, only)) for phase in counted]

    def add_router(self, row: int, native: Routing, applied: Routing) -> None:
        """Keep the decision of one router, and the applied one.

        Args:
            row (`int`): The router's place among all.
            native (`Routing`): What it decided.
            applied (`Routing`): What took effect; the same object if nothing was edited.
        """
        if not self._counts:
            return
        self._visits[row] += 1
        if applied is native:
            self._pending.setdefault("both", []).append((row, native))
        else:
            self._pending.setdefault("native", []).append((row, native))
            self._pending.setdefault("applied", []).append((row, applied))
        if self.trace is not None:
            self.trace.see(row, applied)
        if self._long:
            self._add_up()

    def end(self, forward: Forward) -> None:
        """Add up the kept decisions of the pass.

        Args:
            forward (`Forward`): The pass that has begun.
        """
        if not self._counts:
            return
        if self._visits != self._visits_before:
            self._take_note_of_visits()
        self._add_up()
        for phase, mask in self._masks:
            seen = forward.length if mask is None else mask.view(self.size, -1).sum(dim=1)
            self.tokens[phase] = self.tokens.get(phase, 0) + seen
        if self.trace is not None:
            self.trace.end(*self._marks(forward))
        self._masks = []

    def totals(self, phases: tuple[Phase, ...], kind: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return counts and weights, `(sequences, layers, experts)`, and tokens, `(sequences,)`, float64 on the CPU.

        Args:
            phases (`tuple[str, ...]`): What to add together.
            kind (`str`): `"native"` or `"applied"`.
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
        visits = torch.tensor(self._visits_before).clamp(min=1).view(-1, 1, 1)
        counts, weights = counts / visits, weights / visits
        return counts.transpose(0, 1), weights.transpose(0, 1), tokens

    def _take_note_of_visits(self) -> None:
        """Store how often each router runs in a pass; raise if that changes, as means would be inconsistent."""
        for row, (now, before) in enumerate(zip(self._visits, self._visits_before, strict=True)):
            if now and before and now != before:
                raise UnsupportedError(
                    "record_routing",
                    "a router runs more often in some passes than in others, so that a token's count is not defined",
                    got=f"router {row} of the model: {now} times",
                    expected=f"{before}, as in the passes before",
                    fix="Record passes with one number of loops at a time.",
                )
            self._visits_before[row] = now or before

    def _going(self, ids: Tensor | None, phases: Sequence[Phase]) -> Tensor | None:
        """Which sequences have not ended before a pass, bool `(sequences,)`; `None` if none can have.

        Args:
            ids (`torch.Tensor` of shape `(sequences,)`, *optional*): The last token of each that the pass reads.
            phases (`Sequence[str]`): The phases of the pass's tokens.
        """
        if "generation" not in phases or ids is None or not len(self._stops):
            return None
        ended = torch.isin(ids, self._stops)
        self._ended = ended if self._ended is None else ended | self._ended
        return ~self._ended

    def _add_up(self) -> None:
        """Add up the kept decisions of the current pass."""
        for kind, rows, indices, weights in self._gather():
            self._add(kind, rows, indices, weights)

    def _gather(self) -> list[RoutedRows]:
        """The kept decisions, grouped by kind and width of the routers."""
        parts = []
        for kind, entries in self._pending.items():
            by_width: dict[int, list[tuple[int, Routing]]] = {}
            for entry in entries:
                by_width.setdefault(entry[1].indices.shape[-1], []).append(entry)
            for same_width in by_width.values():
                indices = self._gathered([routing.indices for _, routing in same_width])
                weights = self._gathered([routing.weights for _, routing in same_width])
                parts.append(RoutedRows(kind, [row for row, _ in same_width], indices, weights))
        self._pending = {}
        return parts

    def _add(
        self,
        kind: str,
        rows: list[int],
        indices: Tensor,
        weights: Tensor,
    ) -> None:
        """Add what routers of one width decided to the sums.

        Args:
            kind (`str`): `"both"`, `"native"` or `"applied"`.
            rows (`list[int]`): The routers.
            indices (`torch.Tensor` of shape `(routers, tokens, top_k)`, int64): Chosen experts.
            weights (`torch.Tensor` of the same shape): Their weights.
        """
        weights = weights.float()
        starts = self._starts if rows == self._all_rows else self._starts[rows]
        places = (starts + indices.view(len(indices), self.size, -1, indices.shape[-1])).view_as(weights)
        for phase, mask in self._masks:
            if (phase, kind) not in self.sums:
                counts = torch.zeros(math.prod(self.shape), dtype=torch.long, device=self.device)
                self.sums[phase, kind] = (counts, torch.zeros_like(counts, dtype=torch.float))
            counted = (weights != 0).long() if kind == "applied" else torch.ones_like(places)
            weighed = weights
            if mask is not None:
                rows_counted = mask.view(1, -1, 1)
                counted, weighed = counted * rows_counted, weights * rows_counted
            self.sums[phase, kind][0].scatter_add_(0, places.view(-1), counted.view(-1))
            self.sums[phase, kind][1].scatter_add_(0, places.view(-1), weighed.view(-1))

    def _gathered(self, tensors: list[Tensor]) -> Tensor:
        """The decisions of routers, `(routers, rows, top_k)`, which may be on several devices."""
        if len({tensor.device for tensor in tensors}) > 1:
            tensors = [tensor.to(self.device) for tensor in tensors]
        gathered = torch.cat(tensors).to(self.device).view(len(tensors), -1, tensors[0].shape[-1])
        return gathered.detach() if gathered.requires_grad else gathered

    def _marks(self, forward: Forward) -> tuple[Tensor, Tensor]:
        """Which rows of the pass are kept in the trace, and which of them are generated."""
        everything = torch.ones(self.size * forward.length, dtype=torch.bool, device=self.device)
        masks = {phase: everything if mask is None else mask for phase, mask in self._masks}
        kept = torch.stack(list(masks.values())).any(dim=0)
        return kept, masks.get("generation", ~everything)
