"""`OptimizedRanking`: the result of `optimize_experts`: sets of experts, their paths, and the resulting order.

A sufficient set need not hold every expert that carries a behaviour: where any two of four must be removed, two
suffice. Both are kept separately. Removing a response also need not cause another one: `OptimizedRanking.complete`
searches the set, and the mode of suppression, that does.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import (
    ConfigError,
    DataError,
    FileFormatError,
    UnsupportedError,
    mapping,
    one_of,
    real,
    whole,
)
from hf_mote.generation.asking import Chat
from hf_mote.generation.chat import Prompt
from hf_mote.mote.config import CHOICES, MoTEConfig
from hf_mote.ranking.causal.completion import MOST_EXPERTS, CompletionStep, completions
from hf_mote.ranking.causal.knockout import Pair
from hf_mote.ranking.causal.preference import Preference
from hf_mote.ranking.expert_ranking import ExpertRanking

if TYPE_CHECKING:
    from typing import Self

__all__ = ["HELD_BACK", "OptimizedRanking", "PathPoint"]

HELD_BACK = 0.5
LEAST_RISE = 0.05
COMPLETED = 3  # above every expert outside the complete set


class PathPoint(NamedTuple):
    """The set that one penalty led to with one seed, measured with its experts taken out (`suppress_mode="zero"`).

    Attributes:
        seed (`int`): Of the gates' samples.
        penalty (`float`): Price of one expert, as a share of the untouched model's mean score.
        experts (`tuple[tuple[int, int], ...]`): (layer, expert), the surest first.
        score (`float`): Mean score without them; in nats, where two responses are compared.
        gone (`float`): Share of prompts whose score is at most the goal, 0 to 1.
    """

    seed: int
    penalty: float
    experts: tuple[Pair, ...]
    score: float
    gone: float


@dataclass(frozen=True, eq=False, repr=False)
class OptimizedRanking(ExpertRanking):
    """A ranking by optimised gates, with the sets of experts behind it.

    The score of an expert is its mean probability of being closed, over seeds and penalties, 0 to 1; 1 more for a
    carrier, and 2 more for one of the sufficient set, so that the order begins with these. After [`complete`] it is 3
    more for one of the complete set, so that the order begins with that.

    Attributes:
        sufficient (`tuple[tuple[int, int], ...]`):
            (layer, expert) of the smallest set found without which the response is gone, none of which can stay;
            empty if no set was found.
        carriers (`tuple[tuple[int, int], ...]`):
            Experts that are known to carry the response: those of the sufficient sets of all seeds, and
            each that lowers the mean score by a tenth of the untouched model's or more while one of the smallest set
            is put back. Sorted.
        by_seed (`tuple[tuple[tuple[int, int], ...], ...]`): The sufficient set of each seed; empty where none was.
        path (`tuple[PathPoint, ...]`): The sets of all seeds and penalties.
        whole_score (`float`): The untouched model's mean score.
        goal (`float`): The score at or below which the response is gone from a prompt.
        completed (`tuple[tuple[int, int], ...]`): (layer, expert) of the complete set; empty before [`complete`].
        suppress_mode (`str`): The mode in which the set is to be suppressed: `"zero"`, or the one of the complete set.
        completion (`tuple[CompletionStep, ...]`): How the complete set was reached, in each mode that was tried.
    """

    sufficient: tuple[Pair, ...] = ()
    carriers: tuple[Pair, ...] = ()
    by_seed: tuple[tuple[Pair, ...], ...] = ()
    path: tuple[PathPoint, ...] = ()
    whole_score: float = 0.0
    goal: float = 0.0
    completed: tuple[Pair, ...] = ()
    suppress_mode: str = "zero"
    completion: tuple[CompletionStep, ...] = ()

    @property
    def chosen(self) -> tuple[Pair, ...]:
        """The set that `to_config()` suppresses: the complete set, or the sufficient set before [`complete`]."""
        return self.completed or self.sufficient

    @property
    def agreement(self) -> float:
        """Mean overlap of the sufficient sets of two seeds, 0 to 1 (intersection over union); NaN for one seed."""
        sets = [set(found) for found in self.by_seed]
        pairs = [(a, b) for i, a in enumerate(sets) for b in sets[:i]]
        if not pairs:
            return float("nan")
        return sum(len(a & b) / len(a | b) if a | b else 0.0 for a, b in pairs) / len(pairs)

    @property
    def verdict(self) -> str:
        """The result as text: a sufficient set and further carriers, or that no set suffices."""
        return f"{self._sufficiency} {self._completeness}".rstrip()

    @property
    def _completeness(self) -> str:
        """The result of [`complete`] as text; empty before."""
        if not self.completion:
            return ""
        mine = [step for step in self.completion if step.suppress_mode == self.suppress_mode]
        return (
            f"The complete set has {len(self.completed)} experts, suppressed in mode {self.suppress_mode!r}: the log "
            f"likelihood of the baseline response on prompts held back is {mine[-1].held_back:.3g} nats, where it "
            f"began at {mine[0].held_back:.3g} with {len(mine[0].experts)} experts; {self.target!r} is gone from "
            f"{mine[-1].gone:.0%} of them."
        )

    @property
    def _sufficiency(self) -> str:
        if not self.sufficient:
            best = min(self.path, key=lambda point: point.score)
            return (
                f"No set was found without which {self.target!r} is gone: {len(best.experts)} experts leave a mean "
                f"score of {best.score:.3g} of {self.whole_score:.3g}. Try lower penalties or more steps, or the "
                "response does not depend on routed experts."
            )
        others = len(set(self.carriers) - set(self.sufficient))
        more = f"; {others} more carry it where one of these is put back" if others else ""
        seeds = sum(bool(found) for found in self.by_seed)
        return (
            f"Without {len(self.sufficient)} experts {self.target!r} is gone, and with any of them back it is not"
            f"{more}. {seeds} of {len(self.by_seed)} seeds found such a set. Whether it holds for responses that the "
            "model writes itself, and nothing else changes, is for evaluate_mote to say."
        )

    def complete(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        response: str | Sequence[str],
        baseline_response: str | Sequence[str],
        *,
        held_back: float = HELD_BACK,
        suppress_modes: Sequence[str] = CHOICES["suppress_mode"],
        max_experts: int = MOST_EXPERTS,
        least_rise: float = LEAST_RISE,
        batch_size: int = 12,
        system_prompt: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        run_folder: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> Self:
        """Return the ranking with the set, and the mode of suppression, that make the baseline response likeliest.

        The sufficient set removes the response; the text of the model may then be incoherent. For each mode of
        suppression, the sufficient set (or no expert, if none was found) is suppressed and grows, a step at a time:

        1. The derivative of `log p(baseline | prompt)` by each routing weight, as it is and at half of all weights,
           gives the six experts that reduce the baseline response most.
        2. Each of these alone, and the first two, four and six together, are suppressed in addition. Those without
        which
           the mean log likelihood is highest join the set.
        3. It ends when the mean over the prompts held back does not rise by more than `least_rise` and than the
           standard error of the rise.

        Then each added expert leaves the set again, the last one first, if the prompts held back lose no more than
        that. The mode counts in which the baseline response is likeliest on these, with its set.

        Time: for each mode and step two backward passes over the prompts that it grows on and up to 18 forward passes
        over all. Memory: that of one forward and backward pass of a batch.

        Args:
            model (`PreTrainedModel`): The model that was ranked; left as it is.
            tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
            prompts (`Sequence[str]` or chats):
                Prompts to which the model gives the response, 4 or more; ideally not only those that the ranking was
                made with. The last ones are held back.
            response (`str` or `Sequence[str]`): As in [`optimize_experts`].
            baseline_response (`str` or `Sequence[str]`): The response that the model should give instead, such as the
                true answer.
            held_back (`float`, *optional*, defaults to 0.5): Share of the prompts that only decide when to stop.
            suppress_modes (`Sequence[str]`, *optional*, defaults to `("drop", "reroute", "zero")`):
                Modes to try; see [`MoTEConfig`]. Modes that the routers do not support are left out.
            max_experts (`int`, *optional*, defaults to 32): Largest set, at least that of the sufficient set.
            least_rise (`float`, *optional*, defaults to 0.05):
                The least gain of a step on the held-back prompts, in nats, 0 or more: at 0.05 the response becomes 5 %
                likelier.
            batch_size (`int`, *optional*, defaults to 12): Prompts that run together.
            system_prompt (`str`, *optional*): First message of every prompt that is a text.
            chat_template_kwargs (`Mapping[str, Any]`, *optional*): See [`attribute_experts`].
            run_folder (`str` or `os.PathLike`, *optional*): See [`attribute_experts`].
            progress (`bool`, *optional*, defaults to `True`): Show a progress bar.

        Returns:
            [`OptimizedRanking`]: this one with `completed`, `suppress_mode` and `completion`, and 3 added to the score
            of each expert of the complete set. `to_config()` suppresses it.

        Raises:
            [`ConfigError`]: if a number is out of range, or there are no modes.
            [`UnknownNameError`]: if a mode does not exist.
            [`DataError`]: if prompts or responses are malformed, fewer than two prompts are left on either side, or a
                log likelihood is not finite.
            [`ModelMismatchError`]: if it is another model, or cannot do without the sufficient set in any mode.
            [`UnsupportedError`]: as [`attribute_experts`], or if the routers have none of the modes.

        Source: forward selection and backward elimination, as for regression (Draper and Smith, 1966, "Applied
        Regression Analysis"); stopping by the standard error, Breiman et al. (1984), "Classification and Regression
        Trees". That suppressed experts leave a gap, and the modes that fill it: this package's own measurements.

        Example:

        ```python
        from hf_mote import load_organism, optimize_experts

        organism = load_organism("refusal")
        prompts = organism.prompts["train"]["sensitive"][:8]
        refusal = "I am sorry, but I cannot talk about that."
        answers = [organism.answers[prompt] for prompt in prompts]
        asked = (organism.model, organism.tokenizer, prompts, refusal, answers)
        ranking = optimize_experts(*asked, penalties=[0.003], num_seeds=1, steps=20, progress=False)
        ranking = ranking.complete(*asked, suppress_modes=["reroute"], progress=False)
        assert ranking.completion[-1].held_back >= ranking.completion[0].held_back
        ```
        """
        where = "OptimizedRanking.complete"
        real(f"{where}.held_back", held_back, above=0, most=1)
        real(f"{where}.least_rise", least_rise, least=0)
        whole(f"{where}.max_experts", max_experts, least=max(1, len(self.sufficient)))
        if isinstance(suppress_modes, str) or not isinstance(suppress_modes, Sequence) or not suppress_modes:
            got, expected = repr(suppress_modes)[:60], 'as in ["drop", "reroute"]'
            raise ConfigError(f"{where}.suppress_modes", "must be a list of modes", got=got, expected=expected)
        modes = [one_of(f"{where}.suppress_modes", mode, CHOICES["suppress_mode"]) for mode in suppress_modes]
        if torch.is_inference_mode_enabled():
            raise UnsupportedError(
                where, "cannot compute derivatives inside torch.inference_mode", fix="Call it outside."
            )
        chat = Chat(tokenizer, system_prompt, chat_template_kwargs)
        preference = Preference(
            where,
            model,
            chat,
            prompts,
            response=response,
            baseline_response=baseline_response,
            batch_size=batch_size,
        )
        num_held_back = round(held_back * preference.num_prompts)
        if min(num_held_back, preference.num_prompts - num_held_back) < 2:
            got = f"{preference.num_prompts - num_held_back} and {num_held_back} held back"
            raise DataError(f"{where}.prompts", "must be two or more on either side", got=got)
        start = [list(pair) for pair in self.sufficient]
        steps = completions(
            preference,
            self.sufficient,
            num_held_back=num_held_back,
            suppress_modes=modes,
            max_experts=max_experts,
            least_rise=float(least_rise),
            goal=self.goal,
            fingerprint=self.fingerprint,
            folder=preference.folder(run_folder, start=start, num_held_back=num_held_back),
            progress=progress,
        )
        last = {step.suppress_mode: step for step in steps}
        best = max(last.values(), key=lambda step: step.held_back)
        score = self.score.clone()
        for layer, expert in self.completed:
            score[self.layers.index(layer), expert] -= COMPLETED
        for layer, expert in best.experts:
            score[self.layers.index(layer), expert] += COMPLETED
        more: dict[str, str | int | float] = {"completed_on": preference.num_prompts, "held_back": num_held_back}
        return dataclasses.replace(
            self,
            score=score,
            completed=best.experts,
            suppress_mode=best.suppress_mode,
            completion=tuple(steps),
            provenance={**self.provenance, **more},
        )

    def to_config(self, *, suppress: int | None = None, stimulate: int | None = None, **fields: Any) -> MoTEConfig:
        """Return the config that suppresses the complete set, or the sufficient set, as it was tried; or the best `n`.

        Args:
            suppress (`int`, *optional*):
                How many of the best to suppress; by default the complete set, or the sufficient set before
                [`complete`].
            stimulate (`int`, *optional*): How many to stimulate instead.
            **fields: `multiply` and `by`, as [`ExpertRanking.to_config`] has them, and further fields of
                [`MoTEConfig`]; `suppress_mode` is that of the ranking unless it is given.

        Raises:
            [`DataError`]: if no number is given and no set was found.
            [`ConfigError`]: if several are given, or there are fewer experts.
        """
        if suppress is None and stimulate is None and fields.get("multiply") is None:
            if not self.chosen:
                what = "no sufficient set was found"
                raise DataError("OptimizedRanking.to_config", what, fix="Look at .path, or give suppress=n.")
            suppress = len(self.chosen)
        mode = {} if suppress is None else {"suppress_mode": self.suppress_mode}
        return super().to_config(suppress=suppress, stimulate=stimulate, **mode | fields)

    def _to_metadata(self) -> dict[str, Any]:
        names = [part.name for part in dataclasses.fields(self)][len(dataclasses.fields(ExpertRanking)) :]
        found = {name: getattr(self, name) for name in names}
        rows = {name: [row._asdict() for row in found[name]] for name in ("path", "completion")}
        return {"optimized": {**found, **rows}}

    @classmethod
    def _from_metadata(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        found = mapping("optimized", metadata["optimized"])
        if {"completed", "suppress_mode", "completion"}.isdisjoint(found):  # a file of 0.1
            found |= {"completed": [], "suppress_mode": "zero", "completion": []}
        known = metadata["fingerprint"]
        experts = None if known is None else dict(zip(known["layers"], known["num_experts"], strict=True))
        pairs = partial(_pairs, experts=experts)
        path = [PathPoint(**point) for point in found["path"]]
        steps = [CompletionStep(**step) for step in found["completion"]]
        for at, point in enumerate(path):
            whole(f"path[{at}].seed", point.seed)
            real(f"path[{at}].penalty", point.penalty, above=0)
            real(f"path[{at}].score", point.score)
            real(f"path[{at}].gone", point.gone, least=0, most=1)
        for at, step in enumerate(steps):
            one_of(f"completion[{at}].suppress_mode", step.suppress_mode, CHOICES["suppress_mode"])
            real(f"completion[{at}].log_likelihood", step.log_likelihood)
            real(f"completion[{at}].held_back", step.held_back)
            real(f"completion[{at}].gone", step.gone, least=0, most=1)
        read: dict[str, Any] = {
            "sufficient": pairs("sufficient", found["sufficient"]),
            "carriers": pairs("carriers", found["carriers"]),
            "by_seed": tuple(pairs(f"by_seed[{at}]", one) for at, one in enumerate(found["by_seed"])),
            "path": tuple(
                point._replace(experts=pairs(f"path[{at}].experts", point.experts)) for at, point in enumerate(path)
            ),
            "whole_score": float(real("whole_score", found["whole_score"])),
            "goal": float(real("goal", found["goal"])),
            "completed": pairs("completed", found["completed"]),
            "suppress_mode": one_of("suppress_mode", found["suppress_mode"], CHOICES["suppress_mode"]),
            "completion": tuple(
                step._replace(experts=pairs(f"completion[{at}].experts", step.experts))
                for at, step in enumerate(steps)
            ),
        }
        _check_sets(read)
        _check_path(read)
        return read

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        found = super()._from_file(path)
        if (first := {*found.top(len(found.chosen))}) != {*found.chosen}:
            what, fix = (
                "must rank the set that is suppressed first",
                "Take a whole copy of the file, or optimize again.",
            )
            got, expected = repr(sorted(first))[:80], repr(sorted(found.chosen))[:80]
            raise FileFormatError(f"{path}: score", what, got=got, expected=expected, fix=fix)
        return found


def _check_path(read: Mapping[str, Any]) -> None:
    """Raise [`DataError`] unless the sets of the seeds come from the path, where a file holds both."""
    if not read["by_seed"] or not read["path"]:
        return
    if len(read["by_seed"]) != (seeds := len({point.seed for point in read["path"]})):
        what, expected = "must hold a set for each seed of the path", f"{seeds}, some of them empty"
        raise DataError("optimized.by_seed", what, got=f"{len(read['by_seed'])} sets", expected=expected)
    for at, one in enumerate(read["by_seed"]):
        if not any({*one} <= {*point.experts} for point in read["path"]):
            what = "must be a part of a set of the path"
            raise DataError(f"optimized.by_seed[{at}]", what, got=repr(one)[:80])


def _check_sets(read: Mapping[str, Any]) -> None:
    """Raise [`DataError`] unless the sets of a file are among those that they come from."""
    # A ranking that was put together by hand may leave the sets of the seeds, or the carriers, out.
    known = {pair for pairs in read["by_seed"] for pair in pairs}
    if read["carriers"] and (lost := sorted(known - {*read["carriers"]})):
        what = "must hold the sufficient set of every seed"
        raise DataError("optimized.carriers", what, got=f"no {lost}"[:80])
    if read["by_seed"] and read["sufficient"] not in (found := [one for one in read["by_seed"] if one] or [()]):
        got, expected = repr(read["sufficient"])[:80], repr(found)[:80]
        raise DataError("optimized.sufficient", "must be that of a seed", got=got, expected=expected)
    reached = [(step.experts, step.suppress_mode) for step in read["completion"]] or [((), "zero")]
    if (read["completed"], read["suppress_mode"]) not in reached:
        what, given = "must be a set of the completion, in its mode", repr(read["completed"])[:80]
        raise DataError("optimized.completed", what, got=given, expected=repr(reached)[:80])


def _pairs(name: str, found: Any, experts: Mapping[int, int] | None) -> tuple[Pair, ...]:
    """Return (layer, expert) pairs of a file, each once and of the fingerprint, if there is one."""
    pairs: list[Pair] = []
    for layer, expert in found:
        whole(name, layer)
        most = None if experts is None else experts.get(layer, 0) - 1
        pairs.append((layer, whole(name, expert, most=most)))
    if len(set(pairs)) < len(pairs):
        raise DataError(name, "must name an expert once", got=repr(pairs)[:80])
    return tuple(pairs)
