"""`OptimizedRanking`: what `optimize_experts` found: sets of experts, how each was reached, and the order they give.

A set that suffices need not hold every expert that carries a behaviour: where any two of four must go, two suffice.
Both are kept apart here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

from hf_mote.errors import DataError
from hf_mote.mote.config import MoTEConfig
from hf_mote.ranking.causal.knockout import Pair
from hf_mote.ranking.expert_ranking import ExpertRanking

__all__ = ["OptimizedRanking", "PathPoint"]


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
    carrier, and 2 more for one of the sufficient set, so that the order begins with these.

    Attributes:
        sufficient (`tuple[tuple[int, int], ...]`):
            (layer, expert) of the smallest set found without which the response is gone, none of which can stay;
            empty if no set was found.
        carriers (`tuple[tuple[int, int], ...]`):
            Experts of which it is known that they carry the response: those of the sufficient sets of all seeds, and
            each that lowers the mean score by a tenth of the untouched model's or more while one of the smallest set
            is put back. Sorted.
        by_seed (`tuple[tuple[tuple[int, int], ...], ...]`): The sufficient set of each seed; empty where none was.
        path (`tuple[PathPoint, ...]`): The sets of all seeds and penalties.
        whole_score (`float`): The untouched model's mean score.
        goal (`float`): The score at or below which the response is gone from a prompt.
    """

    sufficient: tuple[Pair, ...] = ()
    carriers: tuple[Pair, ...] = ()
    by_seed: tuple[tuple[Pair, ...], ...] = ()
    path: tuple[PathPoint, ...] = ()
    whole_score: float = 0.0
    goal: float = 0.0

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
        """What was found, in words: a sufficient set and further carriers, or that none of the sets suffices."""
        if not self.sufficient:
            best = min(self.path, key=lambda point: point.score)
            return (
                f"No set was found without which {self.target!r} is gone: {len(best.experts)} experts leave a mean "
                f"score of {best.score:.3g} of {self.whole_score:.3g}. Try lower penalties or more steps, or the "
                "response does not hang on routed experts."
            )
        others = len(set(self.carriers) - set(self.sufficient))
        more = f"; {others} more carry it where one of these is put back" if others else ""
        seeds = sum(bool(found) for found in self.by_seed)
        return (
            f"Without {len(self.sufficient)} experts {self.target!r} is gone, and with any of them back it is not"
            f"{more}. {seeds} of {len(self.by_seed)} seeds found such a set. Whether it holds for responses that the "
            "model writes itself, and nothing else changes, is for evaluate_mote to say."
        )

    def to_config(self, *, suppress: int | None = None, stimulate: int | None = None, **fields: Any) -> MoTEConfig:
        """Return the config that suppresses the sufficient set as it was tried, in mode `"zero"`; or the best `n`.

        Args:
            suppress (`int`, *optional*): How many of the best to suppress; by default the sufficient set.
            stimulate (`int`, *optional*): How many to stimulate instead.
            **fields: Further fields of [`MoTEConfig`]; `suppress_mode` is `"zero"` unless it is given.

        Raises:
            [`DataError`]: if neither number is given and no sufficient set was found.
            [`ConfigError`]: if both are given, or there are fewer experts.
        """
        if suppress is None and stimulate is None:
            if not self.sufficient:
                what = "no sufficient set was found"
                raise DataError("OptimizedRanking.to_config", what, fix="Look at .path, or give suppress=n.")
            suppress = len(self.sufficient)
        mode = {} if suppress is None else {"suppress_mode": "zero"}
        return super().to_config(suppress=suppress, stimulate=stimulate, **mode | fields)

    def _to_metadata(self) -> dict[str, Any]:
        names = [part.name for part in dataclasses.fields(self)][len(dataclasses.fields(ExpertRanking)) :]
        found = {name: getattr(self, name) for name in names}
        return {"optimized": {**found, "path": [point._asdict() for point in self.path]}}

    @classmethod
    def _from_metadata(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        found = dict(metadata["optimized"])
        path = [PathPoint(**point) for point in found["path"]]
        return {
            "sufficient": _pairs(found["sufficient"]),
            "carriers": _pairs(found["carriers"]),
            "by_seed": tuple(_pairs(pairs) for pairs in found["by_seed"]),
            "path": tuple(point._replace(experts=_pairs(point.experts)) for point in path),
            "whole_score": float(found["whole_score"]),
            "goal": float(found["goal"]),
        }


def _pairs(found: Any) -> tuple[Pair, ...]:
    return tuple((int(layer), int(expert)) for layer, expert in found)
