"""Finds what else to suppress besides a set of experts, and in which mode, to get another coherent response.

Removing a response need not cause another: the remaining carriers still write, and an expert whose weight is set to 0
leaves a gap where the model would have chosen another. Here a set grows by the expert that makes the other response
likeliest, in each mode of suppression; held-back prompts decide when to stop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_mote.errors import ModelMismatchError, UnsupportedError
from hf_mote.mote.checks import check_against_model
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.gains import attach_gains
from hf_mote.mote.patch import attach_config
from hf_mote.progress import progress_bar
from hf_mote.ranking.causal.knockout import Knockout, Pair, name_of
from hf_mote.ranking.causal.preference import Preference
from hf_mote.runs.folder import RunFolder

__all__ = ["GAINS", "MOST_EXPERTS", "MOST_TRIED", "CompletionStep", "completions"]

BASELINE = -1  # the term of a preference that is the baseline response's log likelihood
GAINS = (1.0, 0.5)  # of the other experts, at which derivatives are taken: unchanged, and with no choice certain
TRIED = 6  # experts of each gain that are tried alone
TOGETHER = (2, 4, 6)  # how many of these are tried together
MOST_TRIED = len(GAINS) * (TRIED + len(TOGETHER))  # sets that are tried in one step
MOST_EXPERTS = 32


class CompletionStep(NamedTuple):
    """A set on the way to the complete set, measured with its experts suppressed.

    Attributes:
        suppress_mode (`str`): How they are suppressed; see [`MoTEConfig`].
        experts (`tuple[tuple[int, int], ...]`): (layer, expert), in the order in which they were added.
        log_likelihood (`float`): Mean log likelihood of the baseline response, in nats, on the prompts it grew on.
        held_back (`float`): The same on held-back prompts.
        gone (`float`): Share of the held-back prompts on which the response is at most as likely as the goal.
    """

    suppress_mode: str
    experts: tuple[Pair, ...]
    log_likelihood: float
    held_back: float
    gone: float


def completions(
    preference: Preference,
    start: Sequence[Pair],
    *,
    num_held_back: int,
    suppress_modes: Sequence[str],
    max_experts: int,
    least_rise: float,
    goal: float,
    fingerprint: dict[str, Any] | None,
    folder: RunFolder | None,
    progress: bool,
) -> list[CompletionStep]:
    """Return how a set grows in each mode of suppression; the last step of a mode is the set that it ends with.

    Args:
        preference (`Preference`): Prompts with both responses.
        start (`Sequence[tuple[int, int]]`): (layer, expert) to begin with.
        num_held_back (`int`): How many of the prompts, the last ones, only decide when to stop.
        suppress_modes (`Sequence[str]`): Modes to try.
        max_experts (`int`): Largest set.
        least_rise (`float`): Least rise of the mean log likelihood on held-back prompts by a step, in nats.
        goal (`float`): Of the preference.
        fingerprint (`dict`, *optional*): Of the model that `start` is of.
        folder (`RunFolder`, *optional*): Where log likelihoods and derivatives are kept as they come.
        progress (`bool`): Show a progress bar.

    Raises:
        [`ModelMismatchError`]: if the model is another, or cannot do without the first experts in any mode.
        [`UnsupportedError`]: if its routers have none of the modes.
        [`DataError`]: if a log likelihood is not finite.
    """
    growth = _Growth(Knockout(preference), num_held_back, least_rise, goal, folder)
    check_against_model(MoTEConfig(fingerprint=fingerprint), growth.routed)
    steps: list[CompletionStep] = []
    total = len(suppress_modes) * max(1, max_experts - len(start) + 1)
    with progress_bar(total=total, desc="completing", disable=not progress) as bar:
        for place, mode in enumerate(suppress_modes):
            try:
                steps += growth.grown(mode, start, max_experts, bar.update)
            except (ModelMismatchError, UnsupportedError):
                if not steps and place == len(suppress_modes) - 1:
                    raise
    return steps


class _Growth:
    """Sets of one model's experts, and how likely the baseline response is without them."""

    def __init__(
        self, knockout: Knockout, num_held_back: int, least_rise: float, goal: float, folder: RunFolder | None
    ) -> None:
        self.routed, self.gains, self.shape = knockout.routed, knockout.gains, knockout.shape
        self.preference, self.least_rise, self.goal, self.folder = knockout.preference, least_rise, goal, folder
        number = self.preference.num_prompts
        self._grown_on, self._held_back = range(number - num_held_back), range(number - num_held_back, number)
        self._exists = torch.zeros(self.shape, dtype=torch.bool)
        for row, site in enumerate(knockout.sites):
            self._exists[row, : site.num_experts] = True

    def grown(self, mode: str, start: Sequence[Pair], most: int, advance: Any) -> list[CompletionStep]:
        """Return the sets of one mode, each with one more expert, while the held-back prompts gain from it."""
        chosen = list(start)
        before = self._likelihoods(mode, chosen)
        steps = [self._step(mode, chosen, before)]
        advance()
        while len(chosen) < most:
            tried = []
            for more in self._candidates(mode, chosen):
                if len(more) <= most - len(chosen):
                    try:
                        tried.append((self._likelihoods(mode, [*chosen, *more]), more))
                    except (ModelMismatchError, UnsupportedError):  # too few experts would be left
                        continue
            if not tried:
                break
            after, best = max(tried, key=lambda one: float(one[0][: len(self._grown_on)].mean()))
            if not self._rises(before, after):
                break
            chosen += best
            before = after
            steps.append(self._step(mode, chosen, after))
            advance(len(best))
        spared = self._spared(mode, chosen, before, len(start))
        if len(spared) < len(chosen):
            steps.append(self._step(mode, spared, self._likelihoods(mode, spared)))
        return steps

    def _spared(self, mode: str, chosen: list[Pair], found: Tensor, fixed: int) -> list[Pair]:
        """Return a set without added experts that do not make the baseline response likelier, the last first."""
        left = list(chosen)
        for pair in reversed(chosen[fixed:]):
            fewer = [other for other in left if other != pair]
            # Always compared with the whole set, so that losses do not add up.
            if not self._rises(self._likelihoods(mode, fewer), found):
                left = fewer
        return left

    def _rises(self, before: Tensor, after: Tensor) -> bool:
        """Whether the held-back prompts gain enough, and more than the standard error of the gain."""
        gained = (after - before)[len(self._grown_on) :]
        return float(gained.mean()) > max(self.least_rise, float(gained.std()) / math.sqrt(len(gained)))

    def _step(self, mode: str, chosen: Sequence[Pair], found: Tensor) -> CompletionStep:
        held = found[len(self._grown_on) :]
        rival = self._terms(mode, chosen, 1, self._held_back)
        gone = float((rival - held <= self.goal).double().mean())
        return CompletionStep(
            mode, tuple(chosen), float(found[: len(self._grown_on)].mean()), float(held.mean()), gone
        )

    def _candidates(self, mode: str, chosen: Sequence[Pair]) -> list[list[Pair]]:
        """Return the experts whose weights, to first order, reduce the baseline response most.

        Each alone, and the first few together: of experts that replace each other none helps alone.
        """
        found: dict[tuple[Pair, ...], None] = {}
        layers = self.routed.layers
        for gain in GAINS:
            effects = self._effects(mode, chosen, gain).masked_fill(~self._exists, torch.inf)
            for layer, expert in chosen:
                effects[layers.index(layer), expert] = torch.inf
            places = effects.flatten().topk(min(TRIED, effects.numel()), largest=False).indices.tolist()
            first = [divmod(place, self.shape[1]) for place in places if float(effects.flatten()[place]) < 0]
            pairs = [(layers[row], expert) for row, expert in first]
            found |= {(pair,): None for pair in pairs}
            found |= {tuple(sorted(pairs[:number])): None for number in TOGETHER if number <= len(pairs)}
        return [list(more) for more in found]

    def _suppressed(self, mode: str, chosen: Sequence[Pair]) -> Any:
        if not chosen:
            return nullcontext()
        suppressed: dict[str, Any] = {"suppress": sorted([layer, expert] for layer, expert in chosen)}
        suppressed["suppress_mode"] = mode
        return attach_config(self.routed, MoTEConfig(**suppressed))

    def _likelihoods(self, mode: str, chosen: Sequence[Pair]) -> Tensor:
        """Return the log likelihood of the baseline response to each prompt, `(prompts,)`, float64."""
        return self._terms(mode, chosen, BASELINE, range(self.preference.num_prompts))

    def _terms(self, mode: str, chosen: Sequence[Pair], side: int, rows: range) -> Tensor:
        def make() -> dict[str, Tensor]:
            with self._suppressed(mode, chosen), torch.no_grad():
                found = [self.preference.values(block).double().cpu() for block in self.preference.blocks(side, rows)]
            return {"log_likelihoods": torch.cat(found)}

        shapes = {"log_likelihoods": (len(rows),)}
        name = f"{'baseline' if side == BASELINE else 'response'}-{mode}-{name_of(chosen)}"
        return (make() if self.folder is None else self.folder.kept(name, make, shapes))["log_likelihoods"]

    def _effects(self, mode: str, chosen: Sequence[Pair], gain: float) -> Tensor:
        """Return the derivative of the mean log likelihood by each expert's gain, `(layers, experts)`, float64."""

        def make() -> dict[str, Tensor]:
            total = torch.zeros(self.shape, dtype=torch.float64)
            self.gains.value, self.gains.differentiable = gain, True
            with self._suppressed(mode, chosen), attach_gains(self.routed, self.gains), torch.enable_grad():
                for block in self.preference.blocks(BASELINE, self._grown_on):
                    total += self.gains.derivatives(self.preference.values(block).sum()).sum(dim=0)
            return {"effects": total}

        name = f"effects-{mode}-{gain.hex()}-{name_of(chosen)}"
        return (make() if self.folder is None else self.folder.kept(name, make, {"effects": self.shape}))["effects"]
