"""Token by token routing, kept on request beside the sums: memory grows with the tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from hf_mote.errors import UnsupportedError
from hf_mote.routing.rules.selection import Routing

__all__ = ["RoutingTrace", "TraceKeeper"]


class RoutingTrace(NamedTuple):
    """Token by token routing of one sequence, as applied.

    Attributes:
        indices (`torch.Tensor` of shape `(tokens, layers, top_k)`, int32):
            Chosen experts; -1 where a router chooses fewer than the one that chooses most.
        weights (`torch.Tensor` of shape `(tokens, layers, top_k)`, float32): Their weights; 0 there.
        generated (`torch.Tensor` of shape `(tokens,)`, bool): True for generated tokens, False for the prompt's.
        layers (`tuple[int, ...]`): Absolute decoder layer of each router.
    """

    indices: Tensor
    weights: Tensor
    generated: Tensor
    layers: tuple[int, ...]


class TraceKeeper:
    """The routing of sequences that run together, pass by pass."""

    def __init__(self) -> None:
        self._passes: list[_Pass] = []
        self._now: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self) -> None:
        """Called when a pass begins; the rest of a failed one is deleted."""
        self._now = {}

    def see(self, row: int, applied: Routing) -> None:
        """Keep the routing of a router.

        Raises:
            [`UnsupportedError`]: if it has run in this pass already, as in a looped layer.
        """
        if row in self._now:
            raise UnsupportedError(
                "record_routing.trace",
                "a router runs several times in one pass, so that a token has several routings in one layer",
                got=f"router {row} of the model",
                expected="one run in each pass",
                fix="Record without trace; counts and weights are means over the runs.",
            )
        self._now[row] = applied.indices.int().cpu(), applied.weights.detach().float().cpu()

    def end(self, kept: Tensor, generated: Tensor) -> None:
        """Keep the pass.

        Args:
            kept (`torch.Tensor` of shape `(rows,)`, bool): Which of its rows are counted.
            generated (`torch.Tensor` of shape `(rows,)`, bool): Which of them are generated tokens.
        """
        seen = [self._now[row] for row in sorted(self._now)]  # routers may run in another order
        widest = max(indices.shape[-1] for indices, _ in seen)
        indices = [pad(indices, (0, widest - indices.shape[-1]), value=-1) for indices, _ in seen]
        weights = [pad(weights, (0, widest - weights.shape[-1])) for _, weights in seen]
        self._passes.append(_Pass(torch.stack(indices, 1), torch.stack(weights, 1), kept.cpu(), generated.cpu()))
        self._now = {}

    def of(self, num_sequences: int, layers: tuple[int, ...]) -> list[RoutingTrace]:
        """Return each sequence's routing.

        Args:
            num_sequences (`int`): How many run together.
            layers (`tuple[int, ...]`): Absolute decoder layer of each router.
        """
        found = []
        for sequence in range(num_sequences):
            parts = [_rows_of(one, num_sequences, sequence) for one in self._passes]
            if not parts:  # no pass had tokens to count
                none = torch.zeros(0, len(layers), 0)
                found.append(RoutingTrace(none.int(), none, torch.zeros(0, dtype=torch.bool), layers))
                continue
            indices, weights, generated = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            found.append(RoutingTrace(indices, weights, generated, layers))
        return found


class _Pass(NamedTuple):
    """Indices and weights `(rows, routers, top_k)`, and which rows are kept, which of them generated."""

    indices: Tensor
    weights: Tensor
    kept: Tensor
    generated: Tensor


def _rows_of(one: _Pass, num_sequences: int, sequence: int) -> tuple[Tensor, Tensor, Tensor]:
    mine, indices, weights, generated = (
        tensor.view(num_sequences, -1, *tensor.shape[1:])[sequence]
        for tensor in (one.kept, one.indices, one.weights, one.generated)
    )
    return indices[mine], weights[mine], generated[mine]
