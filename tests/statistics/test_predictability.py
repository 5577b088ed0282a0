"""Predictability: found where it is, and its interval holds one half under the null as often as it says."""

import numpy as np
import pytest

from hf_mote.errors import DataError
from hf_mote.statistics.predictability import predictability


def test_what_is_in_the_routing_is_told():
    rng = np.random.default_rng(0)
    of_class = np.arange(60) % 2 == 0
    counts = rng.poisson(5, (60, 4, 16)) + 0.0
    counts[:, 2, 3] += 6 * of_class
    found = predictability(counts, of_class)
    assert found.shown
    assert found.auroc > 0.8
    assert "tells the classes" in str(found)


@pytest.mark.parametrize("grouped", [False, True])
def test_interval_is_above_one_half_rarely_under_the_null(grouped):
    """100 draws; where class goes with the subject by chance alone. 0.025 expected, 0.08 in 1 of 500 runs."""
    rng = np.random.default_rng(1)
    shown = 0
    for _ in range(100):
        subject = np.repeat(np.arange(16), 5)
        subjects = rng.normal(0, 1, (16, 32))
        of_class = (np.arange(16) % 2 == 0)[rng.permutation(16)][subject]
        counts = np.exp(subjects[subject] + rng.normal(0, 0.3, (80, 32)))
        if not grouped:
            counts = np.exp(rng.normal(0, 1, (80, 32)))
        found = predictability(counts, of_class, groups=subject.tolist())
        shown += found.shown
        assert found.within is None
    assert shown / 100 <= 0.09


def test_topics_without_classes_inside_and_with():
    rng = np.random.default_rng(2)
    topic = np.repeat(np.arange(10), 8)
    of_class = np.arange(80) % 2 == 0
    counts = rng.poisson(5, (80, 16)) + 3.0 * (topic % 3)[:, None]
    counts[:, 1] += 8 * of_class
    found = predictability(counts, of_class, groups=topic.tolist())
    assert found.within is not None
    assert found.within > 0.8
    assert "within topics" in str(found)


def test_of_many_prompts_as_many_of_each_class_are_drawn_as_fit(monkeypatch):
    rng = np.random.default_rng(3)
    of_class = np.arange(900) < 50
    counts = rng.poisson(5, (900, 4)) + 9 * of_class[:, None] * (np.arange(4) == 3)
    whole = predictability(counts, of_class, seed=1)
    monkeypatch.setattr("hf_mote.statistics.predictability._MOST", 100)
    found = predictability(counts, of_class, seed=1)
    assert found.pairs == 50 * 100 / 5  # of each of five folds
    assert found == predictability(counts, of_class, seed=1)
    assert found.auroc == pytest.approx(whole.auroc, abs=0.03)


@pytest.mark.parametrize(("classes", "groups"), [([True] * 3 + [False] * 9, None), ([True, False] * 6, [0] * 12)])
def test_too_few_prompts_are_refused(classes, groups):
    with pytest.raises(DataError, match="too few"):
        predictability(np.ones((12, 3)), classes, groups=groups)
