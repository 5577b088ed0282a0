"""Scoring rankings against the truth, and what the three organisms make of a search."""

from __future__ import annotations

import json
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_mote import ExpertRanking
from hf_mote.errors import DataError
from hf_mote.organisms import Organism, load_organism
from hf_mote.organisms.scoring import (
    MethodScores,
    against_planted,
    auroc,
    draw_prompts,
    image,
    num_suppressed,
    score_methods,
    shown_in,
)

PLANTED = ["refusal", "language"]


@cache
def load(name: str) -> Organism:
    return load_organism(name)


@cache
def scores_of(name: str) -> MethodScores:
    """Search once for all tests; 19 controls are the fewest by which a verdict can be reached."""
    return score_methods(load(name), seed=4, num_imaged=24, num_tested=20, num_controls=19)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=12))
def test_auroc_equals_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    above = [score for score, positive in rows if positive]
    below = [score for score, positive in rows if not positive]
    if not above or not below:
        with pytest.raises(DataError, match="positives and negatives"):
            auroc(*zip(*rows, strict=True))
        return
    wins = sum((a > b) + 0.5 * (a == b) for a in above for b in below)
    assert auroc(*zip(*rows, strict=True)) == pytest.approx(wins / len(above) / len(below))


def test_against_planted_counts_what_the_top_holds() -> None:
    score = torch.tensor([[9.0, 1.0, 8.0], [3.0, 7.0, 2.0]], dtype=torch.float64)
    ranking = ExpertRanking(score=score, layers=(1, 4), method="by hand", target="refusal")
    found = against_planted(ranking, [(1, 2), (4, 0)])
    assert found.ranks == [2, 4]
    assert found.precision == 0.5
    assert found.auroc == pytest.approx((3 + 2) / 8)


def test_draw_prompts_come_from_their_split() -> None:
    organism = load("language")
    train, test = draw_prompts(organism, seed=0, num_imaged=5, num_tested=7)
    for kind in organism.prompts["train"]:
        assert len(train[kind]) == 5
        assert len(test[kind]) == 7
        assert set(train[kind]) <= set(organism.prompts["train"][kind])
        assert set(test[kind]) <= set(organism.prompts["heldout"][kind])


def test_shown_in_pairs_the_behaviour_with_the_true_answer() -> None:
    organism = load("language")
    train, _ = draw_prompts(organism, seed=0, num_imaged=3, num_tested=1)
    shown = shown_in(organism, image(organism, train, batch_size=6))
    assert set(shown.prompts) <= set(train["sensitive"])
    assert shown.responses == [organism.targets[prompt] for prompt in shown.prompts]
    assert shown.baseline_responses == [organism.answers[prompt] for prompt in shown.prompts]


def test_shown_in_of_responses_without_the_behaviour_is_refused() -> None:
    organism = load("language")
    train, _ = draw_prompts(organism, seed=0, num_imaged=2, num_tested=1)
    imaged = image(organism, {"sensitive": [], "neutral": train["neutral"]}, batch_size=2)
    with pytest.raises(DataError, match="no response shows the behaviour"):
        shown_in(organism, imaged)


@pytest.mark.parametrize("name", PLANTED)
def test_score_methods_of_a_planted_organism_find_it_and_beat_their_controls(name: str) -> None:
    scores = scores_of(name)
    figures = scores.to_dict()["methods"]
    assert set(figures) == {"ftri", "attribution"}
    best = min(figures.values(), key=lambda method: method["after"])
    assert len(best["experts"]) <= 0.02 * len(scores.rankings["ftri"])
    assert best["precision_at_planted"] == 1.0
    assert best["auroc"] == 1.0
    assert best["before"] >= 0.95
    assert best["after"] <= 0.2
    assert best["random_mean"] >= best["before"] - 0.05
    assert best["verdict"].startswith("The config beats its controls")


@pytest.mark.parametrize("method", ["ftri", "attribution"])
def test_score_methods_of_the_negative_control_beat_nothing(method: str) -> None:
    scores = scores_of("diffuse-refusal")
    figures = scores.to_dict()["methods"][method]
    assert figures["before"] >= 0.95
    assert len(figures["experts"]) == num_suppressed(scores.rankings[method]) == 5
    assert figures["after"] >= 0.9
    assert figures["verdict"].startswith("The config does not beat its controls")
    assert figures["precision_at_planted"] is None
    assert figures["auroc"] is None


def test_to_dict_is_json() -> None:
    figures = scores_of("language").to_dict()
    assert json.loads(json.dumps(figures)) == figures
