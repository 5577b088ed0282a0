"""`Knockout`: the score of each prompt without some experts; and grids of the experts that were tried."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from hf_mote.errors import ConfigError
from hf_mote.maps.grid import row_of
from hf_mote.mote.gains import Gains
from hf_mote.ranking.causal.preference import Preference
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.runs.folder import RunFolder, digest_of
from hf_mote.statistics.contrast import Contrast

__all__ = ["Knockout", "Pair", "grids_of", "name_of"]

Pair: TypeAlias = tuple[int, int]
"""(layer, expert) in arguments, (row of the sites, expert) inside."""


class Knockout:
    """The scores of a [`Preference`] while the model runs without some experts.

    Args:
        preference (`Preference`): The measured score and its model.
        folder ([`RunFolder`], *optional*): Where scores are kept as they come.
    """

    def __init__(self, preference: Preference, folder: RunFolder | None = None) -> None:
        self.preference, self.folder = preference, folder
        self.routed = RoutedModel(preference.model)
        self.sites, self.shape = self.routed.sites, self.routed.shape
        self.gains = Gains(self.sites)

    def rows_of(self, experts: Iterable[Pair] | None) -> list[Pair]:
        """Return (layer, expert) as (row, expert), each once; all by default."""
        if experts is None:
            return [(row, expert) for row, site in enumerate(self.sites) for expert in range(site.num_experts)]
        layers, where = self.routed.layers, f"{self.preference.where}.experts"
        found = []
        for layer, expert in dict.fromkeys(_pairs(where, experts)):
            row = row_of(where, layers, self.shape[1], layer, expert)
            row_of(where, layers, self.sites[row].num_experts, layer, expert)
            found.append((row, expert))
        if not found:
            raise ConfigError(where, "nothing to try", got="no experts")
        return found

    def values(self, without: list[Pair]) -> Tensor:
        """Return the score of each prompt, `(prompts,)`, float64 on the CPU."""
        self.gains.zeros = without
        if self.folder is None:
            return self.preference.scores()
        shapes = {"scores": (self.preference.num_prompts,)}
        return self.folder.kept(f"without-{name_of(without)}", self._scores, shapes)["scores"]

    def _scores(self) -> dict[str, Tensor]:
        return {"scores": self.preference.scores()}


def grids_of(found: Contrast, tried: Sequence[Pair], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Return score, interval, p and q value of the tried experts as grids `(layers, experts)`, float64.

    Experts that were not tried have score 0 and NaN for the others.

    Args:
        found (`Contrast`): The tried experts, as one layer of them.
        tried (`Sequence[tuple[int, int]]`): The (row, expert) of each.
        shape (`tuple[int, int]`): Layers, experts.
    """
    rows, places = (list(part) for part in zip(*tried, strict=True))
    grids = {}
    for name in ("score", "low", "high", "p", "q"):
        values = getattr(found, name)
        if values is not None:
            grids[name] = torch.full(shape, 0.0 if name == "score" else torch.nan, dtype=torch.float64)
            grids[name][rows, places] = torch.tensor(values[0])
    return grids


def name_of(without: Sequence[Pair]) -> str:
    """Return the name of a set of experts, in this order, in a run folder."""
    return digest_of([list(pair) for pair in without])[:24]


def _pairs(where: str, experts: Iterable[Pair]) -> list[Pair]:
    pairs = []
    for pair in experts if isinstance(experts, Iterable) else [experts]:
        try:
            layer, expert = (operator.index(number) for number in pair)
        except (TypeError, ValueError) as error:
            got, expected = repr(pair)[:60], "(layer, expert), whole numbers"
            raise ConfigError(where, "not an expert", got=got, expected=expected) from error
        pairs.append((layer, expert))
    return pairs
