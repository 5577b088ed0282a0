"""Searches the experts behind an organism's behaviour as a user would, and scores the result.

Imaging and attribution on training questions, then the best 2 % of experts of either ranking suppressed on held-out
ones, against matched random controls. The planted experts are only used to score the rankings.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from hf_mote.errors import DataError
from hf_mote.evaluation.evaluate import evaluate_mote
from hf_mote.evaluation.report import EvaluationReport
from hf_mote.organisms.building.gates import Pair
from hf_mote.organisms.organism import Organism
from hf_mote.ranking.causal.attribution import attribute_experts
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.ranking.imaging.pipeline import ftri
from hf_mote.ranking.imaging.result import FTRIResult

__all__ = [
    "ATTRIBUTION_GAIN",
    "MAX_NEW_TOKENS",
    "AgainstPlanted",
    "MethodScores",
    "Shown",
    "against_planted",
    "auroc",
    "draw_prompts",
    "image",
    "num_suppressed",
    "rank_experts",
    "score_methods",
    "shown_in",
]

SHARE_SUPPRESSED = 0.02  # most experts to suppress, as a share of all
ATTRIBUTION_GAIN = 0.5  # below 1, as the behaviour is almost certain there; see `attribute_experts`
MAX_NEW_TOKENS = 24


@dataclass(frozen=True)
class MethodScores:
    """The scores of the rankings of one search.

    Attributes:
        seed (`int`): Seed of prompts and controls.
        planted (`list[tuple[int, int]]`): The planted (layer, expert) pairs.
        rankings (`dict[str, ExpertRanking]`): By method.
        reports (`dict[str, EvaluationReport]`): By method: its best experts suppressed on held-out questions.
    """

    seed: int
    planted: list[Pair]
    rankings: dict[str, ExpertRanking]
    reports: dict[str, EvaluationReport]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, JSON-native; precision and AUROC are `None` where nothing was planted."""
        return {"seed": self.seed, "methods": {name: self._figures(name) for name in self.rankings}}

    def _figures(self, name: str) -> dict[str, Any]:
        ranking, report = self.rankings[name], self.reports[name]
        experts = ranking.top(len(report.config["suppress"]))
        found = against_planted(ranking, self.planted) if self.planted else None
        return {
            "experts": [list(pair) for pair in experts],
            "planted_ranks": found.ranks if found is not None else [],
            "precision_at_planted": found.precision if found is not None else None,
            "auroc": found.auroc if found is not None else None,
            "before": report.before.rate,
            "after": report.after.rate,
            "after_interval": [report.after.low, report.after.high],
            "prompts": report.before.n,
            "random_mean": fmean(report.controls),
            "random_min": min(report.controls),
            "p_value": report.p_value,
            "verdict": report.verdict,
        }


class AgainstPlanted(NamedTuple):
    """A ranking compared with the planted experts: ranks of the planted experts, precision at their number, AUROC."""

    ranks: list[int]
    precision: float
    auroc: float


class Shown(NamedTuple):
    """Prompts whose response shows the behaviour, that response, and the true answer; which causal rankings need."""

    prompts: list[str]
    responses: list[str]
    baseline_responses: list[str]


def score_methods(
    organism: Organism, *, seed: int, num_imaged: int = 48, num_tested: int = 60, num_controls: int = 20
) -> MethodScores:
    """Search the experts behind an organism's behaviour by both methods and measure their effect.

    Args:
        organism (`Organism`): The organism.
        seed (`int`): Seed of the prompts drawn and of the random controls.
        num_imaged (`int`, *optional*, defaults to 48): Training questions of either kind to find the experts with.
        num_tested (`int`, *optional*, defaults to 60): Held-out sensitive questions to measure on.
        num_controls (`int`, *optional*, defaults to 20): Random controls.

    Raises:
        [`DataError`]: if the organism does not show its behaviour on any question.
    """
    train, test = draw_prompts(organism, seed=seed, num_imaged=num_imaged, num_tested=num_tested)
    _, rankings = rank_experts(organism, train, seed=seed, batch_size=num_tested)
    reports = {
        name: evaluate_mote(
            organism.model,
            organism.tokenizer,
            ranking.to_config(suppress=num_suppressed(ranking)),
            test["sensitive"],
            organism.judge,
            num_controls=num_controls,
            seed=seed,
            batch_size=num_tested,
            max_new_tokens=MAX_NEW_TOKENS,
            progress=False,
        )
        for name, ranking in rankings.items()
    }
    return MethodScores(seed, organism.planted, rankings, reports)


def draw_prompts(
    organism: Organism, *, seed: int, num_imaged: int, num_tested: int
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return training questions to find experts with and held-out ones to measure on, each by kind.

    Args:
        organism (`Organism`): The organism.
        seed (`int`): Fixes the draw.
        num_imaged (`int`): Training questions of each kind.
        num_tested (`int`): Held-out questions of each kind.
    """
    draw = random.Random(seed)
    train, test = (
        {kind: draw.sample(prompts, min(number, len(prompts))) for kind, prompts in organism.prompts[split].items()}
        for split, number in (("train", num_imaged), ("heldout", num_tested))
    )
    return train, test


def rank_experts(
    organism: Organism, prompts: dict[str, list[str]], *, seed: int, batch_size: int, progress: bool = False
) -> tuple[FTRIResult, dict[str, ExpertRanking]]:
    """Return the imaging of sensitive and neutral questions, and the rankings `"ftri"` and `"attribution"`.

    Attribution compares the model's own response with the true answer, which the organism holds and a user would have
    to write.

    Args:
        organism (`Organism`): The organism.
        prompts (`dict[str, list[str]]`): Questions by kind.
        seed (`int`): Seed of intervals and permutation tests.
        batch_size (`int`): Prompts imaged together.
        progress (`bool`, *optional*, defaults to `False`): Show progress bars.

    Raises:
        [`DataError`]: if no response shows the behaviour.
    """
    imaged = image(organism, prompts, batch_size=batch_size, progress=progress)
    shown = shown_in(organism, imaged)
    attributed = attribute_experts(
        organism.model,
        organism.tokenizer,
        shown.prompts,
        response=shown.responses,
        baseline_response=shown.baseline_responses,
        gain=ATTRIBUTION_GAIN,
        batch_size=24,
        seed=seed,
        progress=progress,
    )
    return imaged, {"ftri": imaged.rank(organism.judge.target), "attribution": attributed}


def image(organism: Organism, prompts: dict[str, list[str]], *, batch_size: int, progress: bool = False) -> FTRIResult:
    """Return the imaging of sensitive and neutral questions.

    Args:
        organism (`Organism`): The organism.
        prompts (`dict[str, list[str]]`): Questions by kind.
        batch_size (`int`): Prompts imaged together.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar.
    """
    return ftri(
        organism.model,
        organism.tokenizer,
        [*prompts["sensitive"], *prompts["neutral"]],
        organism.judge,
        batch_size=batch_size,
        max_new_tokens=MAX_NEW_TOKENS,
        progress=progress,
    )


def shown_in(organism: Organism, imaged: FTRIResult) -> Shown:
    """Return the prompts whose response shows the behaviour, with that response and the true answer.

    Args:
        organism (`Organism`): The organism.
        imaged (`FTRIResult`): Its imaging.

    Raises:
        [`DataError`]: if no response shows the behaviour.
    """
    rows = [i for i, label in enumerate(imaged.classes) if label == organism.judge.target]
    if not rows:
        raise DataError("shown_in", "no response shows the behaviour", got=imaged.class_sizes)
    asked = [imaged.prompts[i] for i in rows]
    return Shown(asked, [imaged.responses[i] for i in rows], [organism.answers[prompt] for prompt in asked])


def against_planted(ranking: ExpertRanking, planted: Sequence[Pair]) -> AgainstPlanted:
    """Compare a ranking with the planted experts.

    Args:
        ranking (`ExpertRanking`): All experts by score.
        planted (`Sequence[tuple[int, int]]`): The planted (layer, expert) pairs, one or more.
    """
    pairs = [(layer, expert) for layer in ranking.layers for expert in range(ranking.score.shape[1])]
    return AgainstPlanted(
        ranks=[ranking.rank_of(*pair) for pair in planted],
        precision=len(set(ranking.top(len(planted))) & set(planted)) / len(planted),
        auroc=auroc(ranking.score.flatten().tolist(), [pair in planted for pair in pairs]),
    )


def num_suppressed(ranking: ExpertRanking) -> int:
    """Return how many of a ranking's experts are suppressed: at most 2 % of all, at least one."""
    return max(1, int(SHARE_SUPPRESSED * len(ranking)))


def auroc(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Return the probability that a random positive scores above a random negative, ties counting half.

    Args:
        scores (`Sequence[float]`): Scores.
        positive (`Sequence[bool]`): Which are positives; some, and not all.

    Raises:
        [`DataError`]: if there is no positive or no negative.

    Example:
        ```python
        from hf_mote.organisms.scoring import auroc

        assert auroc([3.0, 2.0, 1.0, 0.0], [True, False, True, False]) == 0.75
        ```
    """
    mask = np.asarray(positive, dtype=bool)
    num, rest = int(mask.sum()), int((~mask).sum())
    if num == 0 or rest == 0:
        raise DataError("auroc", "needs positives and negatives", got=f"{num} and {rest}")
    ranks = rankdata(np.asarray(scores, dtype=float))
    return float((ranks[mask].sum() - num * (num + 1) / 2) / (num * rest))
