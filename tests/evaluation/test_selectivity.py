"""Selectivity against controls, and tests that something stays as good, with the margin stated."""

import random

import pytest

from hf_mote import MoTEConfig, evaluate_mote, load_organism
from hf_mote.errors import ConfigError, DataError
from hf_mote.evaluation.selectivity import (
    NonInferiority,
    Selectivity,
    changed_class,
    judged_quality,
    not_inferior,
    stays_the_same,
)
from hf_mote.statistics.rates import Rate


def test_config_that_changes_everything_is_not_selective():
    blunt = Selectivity(1.0, Rate.of(38, 40), [0.0] * 40, [0.0] * 40)
    assert blunt.p_value == 1 / 41
    assert blunt.outcome == "beats"  # by 5 points: more than its controls, and says so with its numbers
    worse = Selectivity(0.9, Rate.of(39, 40), [0.0] * 40, [0.0] * 40)
    assert worse.outcome == "does not beat"
    assert str(worse).startswith("not selective: 90.0% on target, 97.5%")
    sharp = Selectivity(0.9, Rate.of(0, 40), [0.0] * 40, [0.05] * 40)
    assert str(sharp).startswith("selective: 90.0% on target, 0.0%")


def test_controls_are_held_against_both_changes():
    # A control with a larger on-target change, but an off-target one as large, does not reach.
    found = Selectivity(0.5, Rate.of(0, 40), [1.0] * 19, [1.0] * 19)
    assert found.p_value == 1 / 20
    assert Selectivity(0.5, Rate.of(0, 40), [0.5] * 19, [0.0] * 19).p_value == 1.0
    assert Selectivity(0.5, Rate.of(0, 40), [], []).outcome == "untested"


def test_changed_class_counts_incoherent_text_of_the_same_class():
    assert changed_class(["a", "a", "b"], ["a", "b", "b"], [False, False, True]) == [False, True, True]


def test_not_inferior_calls_a_loss_of_the_margin_shown_in_at_most_one_of_twenty():
    """500 draws of 40 answers whose quality falls by the margin; 0.05 would come above 0.075 in 1 of 200."""
    draw = random.Random(0)
    shown = 0
    for _ in range(500):
        before = [draw.gauss(7, 1) for _ in range(40)]
        after = [score - 0.5 + draw.gauss(0, 1) for score in before]
        shown += not_inferior("quality", before, after, 0.5).shown
    assert 0.02 <= shown / 500 <= 0.075


def test_not_inferior_of_few_answers_without_spread_shows_nothing():
    assert not not_inferior("quality", [1.0] * 3, [1.0] * 3, 0.1).shown
    assert not_inferior("quality", [1.0] * 100, [1.0] * 100, 0.1).shown
    assert not not_inferior("quality", [1.0] * 100, [0.8] * 100, 0.1).shown


def test_share_that_stays_is_tested_by_its_interval():
    assert stays_the_same("answers", Rate.of(100, 100), 0.1).shown
    assert not stays_the_same("answers", Rate.of(10, 10), 0.1).shown
    assert not stays_the_same("answers", Rate.of(90, 100), 0.1).shown
    assert str(stays_the_same("answers that stay", Rate.of(0, 48), 0.1)) == (
        "answers that stay: 0% of 48, at least 0% of all such; it is not shown that fewer than 10% change"
    )
    assert not_inferior("quality", [8.0, 7.0] * 20, [8.0, 6.9] * 20, margin=0.5).finding == (
        "7.5 before, 7.45 with the config, a change of -0.0635 or better (n = 40); "
        "so it is not worse by the margin of 0.5"
    )


def test_quality_is_scored_or_compared():
    prompts, old, new = ["p"] * 3, ["aa", "bb", "cc"], ["a", "bbb", "cc"]
    assert judged_quality(lambda prompt, answer: len(answer), prompts, old, new) == ([2.0] * 3, [1.0, 3.0, 2.0])
    pairwise = judged_quality(lambda prompt, a, b: len(b) - len(a), prompts, old, new)
    assert pairwise == ([0.0] * 3, [-1.0, 1.0, 0.0])
    with pytest.raises(ConfigError, match="quality"):
        judged_quality(lambda answer: 1.0, prompts, old, new)  # type: ignore[arg-type, misc]
    with pytest.raises(DataError, match="no score"):
        judged_quality(lambda prompt, answer: "good", prompts, old, new)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("wrong", [{"margin": 0.0}, {"low": float("nan")}, {"n": 0}, {"before": float("inf")}])
def test_numbers_that_are_none_are_refused(wrong):
    good = {"what": "x", "before": 1.0, "after": 1.0, "low": -0.1, "margin": 0.1, "n": 3}
    assert not NonInferiority(**good).shown
    with pytest.raises(DataError):
        NonInferiority(**{**good, **wrong})
    with pytest.raises(DataError):
        Selectivity(0.5, Rate.of(0, 4), [0.5], [])
    with pytest.raises(ConfigError, match="margin"):
        not_inferior("x", [1.0, 2.0], [1.0, 2.0], 0.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"margin": 0.1}, r"evaluate_mote.margin: needs unrelated prompts"),
        ({"quality": lambda a, b: 1.0}, r"evaluate_mote.quality: needs unrelated prompts"),
        ({"quality_margin": 0.5, "unrelated": ["Hello"]}, r"evaluate_mote.quality_margin: needs quality"),
        ({"margin": -1.0, "unrelated": ["Hello"]}, r"evaluate_mote.margin"),
    ],
)
def test_margin_that_nothing_is_held_against_is_refused_before_anything_runs(given, message):
    organism = load_organism("refusal")
    config = MoTEConfig(suppress=[list(organism.planted[0])])
    asked = []

    def judge(response):
        asked.append(response)
        return "refusal"

    with pytest.raises(ConfigError, match=message):
        evaluate_mote(organism.model, organism.tokenizer, config, ["Hello"], judge, target="refusal", **given)
    assert asked == []
