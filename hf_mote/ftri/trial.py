"""`Trial`: the score of each prompt without some experts, for rankings that take experts out."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import ConfigError
from hf_mote.ftri.gains import Gains
from hf_mote.ftri.preference import LogitScore, Preference
from hf_mote.ftri.responses import Prompt
from hf_mote.routing.discover import RouterSite, find_routers
from hf_mote.routing.grid import row_of

__all__ = ["Pair", "Trial"]

Pair: TypeAlias = tuple[int, int]
"""(layer, expert) outside, (row of the sites, expert) within."""


class Trial:
    """A score for each prompt of a model that runs without some experts.

    Args:
        where (`str`): What an error names; the others are those of [`Preference`].
    """

    def __init__(
        self,
        where: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        target: str | Sequence[str] | None,
        baseline: str | Sequence[str] | None,
        score: LogitScore | None,
        system_prompt: str | None,
        batch_size: int,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.where = where
        self.preference = Preference(
            where,
            model,
            tokenizer,
            prompts,
            target,
            baseline,
            score,
            system_prompt=system_prompt,
            batch_size=batch_size,
            chat_template_kwargs=chat_template_kwargs,
        )
        self.sites: list[RouterSite] = find_routers(model)
        self.gains = Gains(self.sites)
        self.shape = (len(self.sites), max(site.num_experts for site in self.sites))
        self._blocks = [(side, block) for side in self.preference.sides for block in self.preference.blocks(side)]

    def rows_of(self, experts: Iterable[Pair] | None) -> list[Pair]:
        """Return (layer, expert) as (row, expert), each once; all by default."""
        if experts is None:
            return [(row, expert) for row, site in enumerate(self.sites) for expert in range(site.num_experts)]
        layers = tuple(site.layer for site in self.sites)
        found = []
        for layer, expert in dict.fromkeys(self._pairs(experts)):
            row = row_of(f"{self.where}.experts", layers, self.shape[1], layer, expert)
            row_of(f"{self.where}.experts", layers, self.sites[row].num_experts, layer, expert)
            found.append((row, expert))
        if not found:
            raise ConfigError(f"{self.where}.experts", "nothing to try", got="no experts")
        return found

    def _pairs(self, experts: Iterable[Pair]) -> list[Pair]:
        pairs = []
        for pair in experts if isinstance(experts, Iterable) else [experts]:
            try:
                layer, expert = (operator.index(number) for number in pair)
            except (TypeError, ValueError) as error:
                got = repr(pair)[:60]
                raise ConfigError(
                    f"{self.where}.experts", "not an expert", got=got, expected="(layer, expert), whole numbers"
                ) from error
            pairs.append((layer, expert))
        return pairs

    def values(self, without: list[Pair]) -> Tensor:
        """Return the score of each prompt, `(prompts,)`, float64 on the CPU."""
        found = torch.zeros(self.preference.num_prompts, dtype=torch.float64)
        for side, block in self._blocks:
            self.gains.zeros = [without] * len(block.lengths)
            rows = slice(block.first, block.first + len(block.lengths))
            found[rows] += side * self.preference.values(block).double().cpu()
        return found
