"""How training opens and shuts experts: through a router's selection bias, or, where it has none, by `apply_mote`.

The two kinds of gate also balance their experts differently, and their margins have different units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote
from hf_mote.routing.sites.discover import find_routers

__all__ = ["BANNED", "BiasGates", "Gates", "HookGates", "Pair", "gates_of"]

BANNED = -1e4  # a selection score that nothing can outweigh
_BALANCE_RATE = 1e-3
_BALANCE_LOSS = 1e-2
# The planted score that suffices for selection on an average neutral token. It is low, to leave room above it: where
# the planted experts of earlier layers have written, the scores of all experts rise.
_THRESHOLD = 0.4

Pair = tuple[int, int]


class Gates(ABC):
    """The routers of a model in training.

    Attributes:
        model (`PreTrainedModel`): The model.
        routers (`dict[int, Any]`): The router of each MoE layer, by absolute decoder layer.
        margin (`float`): By how much a planted expert should clear the bar, or stay below it, in units of `scores`.
        margin_weight (`float`): Weight of that margin in the loss.
    """

    margin: float
    margin_weight: float

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.routers: dict[int, Any] = {site.layer: site.module for site in find_routers(model)}

    @abstractmethod
    def reserve(self, pairs: Sequence[Pair]) -> None:
        """Keep experts from being selected during the whole training."""

    @abstractmethod
    def shut(self, pairs: Iterable[Pair]) -> AbstractContextManager[object]:
        """Keep experts from being selected within a `with` block."""

    @abstractmethod
    def force(self, pairs: Iterable[Pair]) -> AbstractContextManager[object]:
        """Select experts on every token within a `with` block, with a considerable weight."""

    def drop(self, pairs: Iterable[Pair]) -> AbstractContextManager[object]:
        """Suppress experts within a `with` block: selected as ever, with weight 0."""
        return apply_mote(self.model, MoTEConfig(suppress=sorted(map(list, pairs))))

    @abstractmethod
    def scores(self, layer: int, logits: Tensor) -> Tensor:
        """Return the selection scores of a layer's experts, `(tokens, experts)`, from its router logits."""

    @abstractmethod
    def even(self, pairs: Sequence[Pair], logits: Sequence[Tensor]) -> None:
        """Set the score that selection takes to the same for all experts, from logits of ordinary tokens, if possible.

        Args:
            pairs (`Sequence[tuple[int, int]]`): (layer, expert) pairs, all of them reserved until now.
            logits (`Sequence[torch.Tensor]`): Router logits of each MoE layer, `(tokens, experts)`.
        """

    @abstractmethod
    def balance_loss(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the loss for uneven use of experts; called within the `shut` block."""

    @abstractmethod
    def rebalance(self, logits: Sequence[Tensor]) -> None:
        """Balance the use of experts after a step, where the bias does this; called within the `shut` block."""


class BiasGates(Gates):
    """Gates with a selection bias in the checkpoint (DeepSeek-V3, arXiv 2412.19437, section 2.1.2)."""

    margin = 0.06  # in selection scores, which lie between 0 and 1
    margin_weight = 20.0

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._biases = {layer: router.e_score_correction_bias.clone() for layer, router in self.routers.items()}

    def reserve(self, pairs: Sequence[Pair]) -> None:
        """Ban experts by their bias, in the checkpoint too."""
        for layer, expert in pairs:
            self._biases[layer][expert] = BANNED
        self._write(())

    def shut(self, pairs: Iterable[Pair]) -> AbstractContextManager[object]:
        """Ban experts by their bias."""
        return self._biased(pairs, BANNED)

    def force(self, pairs: Iterable[Pair]) -> AbstractContextManager[object]:
        """Put experts first by their bias, with the weights that their sigmoid scores give them."""
        return self._biased(pairs, -BANNED)

    def scores(self, layer: int, logits: Tensor) -> Tensor:
        """Return sigmoid scores with the bias that is in force."""
        bias: Tensor = self.routers[layer].e_score_correction_bias
        return logits.sigmoid() + bias

    def even(self, pairs: Sequence[Pair], logits: Sequence[Tensor]) -> None:
        """Set biases by which a fixed score is enough, on an average token."""
        for (layer, router), given in zip(self.routers.items(), logits, strict=True):
            bar = self.scores(layer, given).topk(router.top_k).values[:, -1].mean().item()
            for at, expert in pairs:
                if at == layer:
                    self._biases[layer][expert] = bar - _THRESHOLD
        self._write(())

    def balance_loss(self, logits: Sequence[Tensor]) -> Tensor:
        """Return zero: the biases balance the use."""
        return torch.zeros(())

    @torch.no_grad()
    def rebalance(self, logits: Sequence[Tensor]) -> None:
        """Move each bias one step towards even use."""
        for (layer, router), given in zip(self.routers.items(), logits, strict=True):
            bias = self._biases[layer]
            chosen = self.scores(layer, given).topk(router.top_k).indices
            load = torch.bincount(chosen.flatten(), minlength=len(bias)).float()
            free = router.e_score_correction_bias > BANNED / 2
            bias[free] += _BALANCE_RATE * (load[free].mean() - load[free]).sign()

    @contextmanager
    def _biased(self, pairs: Iterable[Pair], value: float) -> Iterator[None]:
        self._write(pairs, value)
        try:
            yield
        finally:
            self._write(())

    @torch.no_grad()
    def _write(self, pairs: Iterable[Pair], value: float = 0.0) -> None:
        for layer, router in self.routers.items():
            router.e_score_correction_bias.copy_(self._biases[layer])
        for layer, expert in pairs:
            self.routers[layer].e_score_correction_bias[expert] = value


class HookGates(Gates):
    """Gates that select by their logits alone, balanced by a loss (Switch Transformer, arXiv 2101.03961, eqs. 4-6)."""

    margin = 0.5  # in router logits
    margin_weight = 2.0

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._reserved: list[Pair] = []
        self._out: set[Pair] = set()

    def reserve(self, pairs: Sequence[Pair]) -> None:
        """Store the experts that every `shut` shuts."""
        self._reserved = list(pairs)

    @contextmanager
    def shut(self, pairs: Iterable[Pair]) -> Iterator[None]:
        """Ban experts, the reserved ones among them, from the selection."""
        self._out = {*self._reserved, *pairs}
        out = MoTEConfig(suppress=sorted(map(list, self._out)), suppress_mode="reroute")
        try:
            with apply_mote(self.model, out):
                yield
        finally:
            self._out = set()

    def force(self, pairs: Iterable[Pair]) -> AbstractContextManager[object]:
        """Stimulate experts, with the largest weight of those chosen.

        The softmax gives an expert that it would not choose almost no weight; with that weight the expert would learn
        to write far too much.
        """
        return apply_mote(self.model, MoTEConfig(stimulate=sorted(map(list, pairs)), stimulate_weight="max"))

    def scores(self, layer: int, logits: Tensor) -> Tensor:
        """Return the logits themselves."""
        return logits

    def even(self, pairs: Sequence[Pair], logits: Sequence[Tensor]) -> None:
        """Nothing can be set: the router rows learn the selection."""

    def balance_loss(self, logits: Sequence[Tensor]) -> Tensor:
        """Return the products of use and mean probability, summed over experts and layers."""
        total = torch.zeros(())
        for (layer, router), given in zip(self.routers.items(), logits, strict=True):
            banned = [expert for at, expert in self._out if at == layer]
            left = given.float().index_fill(-1, torch.tensor(banned, dtype=torch.long), float("-inf"))
            chosen = left.topk(router.top_k).indices
            share = torch.bincount(chosen.flatten(), minlength=left.shape[-1]) / chosen.numel()
            total = total + (left.shape[-1] - len(banned)) * (share * left.softmax(dim=-1).mean(dim=0)).sum()
        return _BALANCE_LOSS * total

    def rebalance(self, logits: Sequence[Tensor]) -> None:
        """Nothing to do: the loss balances the use."""


def gates_of(model: PreTrainedModel) -> Gates:
    """Return the gates of `model`, of the kind that fits its routers.

    Args:
        model (`PreTrainedModel`): A mixture-of-experts model whose layers select in one way.
    """
    biased = all(hasattr(site.module, "e_score_correction_bias") for site in find_routers(model))
    return BiasGates(model) if biased else HookGates(model)
