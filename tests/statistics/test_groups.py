"""Groups of prompts: error rates under the null where prompts of a subject route alike, and exact arithmetic."""

import numpy as np
import pytest

from hf_mote.errors import DataError
from hf_mote.statistics.contrast import contrast
from hf_mote.statistics.groups import checked_groups, group_means, paired_groups
from hf_mote.statistics.rates import Rate

SUBJECTS, WORDINGS, EXPERTS = 12, 8, 64


def simulated(seed):
    """Counts without any difference between classes: each subject has its own rate, and is of one class."""
    rng = np.random.default_rng(seed)
    rates = rng.beta(0.1 * 20, 0.9 * 20, (SUBJECTS, 1, EXPERTS)).repeat(WORDINGS, axis=1)
    counts = rng.binomial(30, rates).reshape(SUBJECTS * WORDINGS, 1, EXPERTS).astype(float)
    groups = [subject for subject in range(SUBJECTS) for _ in range(WORDINGS)]
    target = np.array([subject < SUBJECTS // 2 for subject in groups])
    return counts, target, groups


def test_p_value_by_group_is_small_as_often_as_it_says_and_by_prompt_far_too_often():
    # 25 x 64 experts on seeds 0 to 24: standard error 0.5 points by group.
    by_prompt, by_group, found = [], [], 0
    for seed in range(25):
        counts, target, groups = simulated(seed)
        prompt = contrast(counts, target, resamples=9, permutations=499, seed=seed)
        one = contrast(
            group_means(counts, groups), group_means(target.astype(float), groups) == 1, resamples=9, seed=seed
        )
        by_prompt.append((prompt.p <= 0.05).mean())
        by_group.append((one.p <= 0.05).mean())
        found += bool((one.q <= 0.05).any())
    assert np.mean(by_prompt) > 0.25
    assert 0.035 <= np.mean(by_group) <= 0.065
    assert found <= 3


def test_interval_by_group_holds_the_truth_and_by_prompt_far_too_seldom():
    # The truth is 0. 12 x 64 experts on seeds 0 to 11: standard error 0.8 points by group.
    held = {True: [], False: []}
    for seed in range(12):
        counts, target, groups = simulated(seed)
        for grouped in (True, False):
            values = group_means(counts, groups) if grouped else counts
            of_class = group_means(target.astype(float), groups) == 1 if grouped else target
            found = contrast(values, of_class, resamples=199, permutations=1, seed=seed)
            held[grouped].append(((found.low <= 0) & (found.high >= 0)).mean())
    assert 0.92 <= np.mean(held[True]) <= 0.98
    assert np.mean(held[False]) < 0.8


def test_group_means_are_means_in_the_order_in_which_groups_come():
    values = np.arange(12.0).reshape(4, 1, 3)
    groups = checked_groups("here", ["b", "a", "b", "a"], 4)
    assert groups == [0, 1, 0, 1]
    assert group_means(values, groups).tolist() == [[[3.0, 4.0, 5.0]], [[6.0, 7.0, 8.0]]]


def test_paired_groups_keep_sides_together():
    values = np.arange(8.0).reshape(8, 1, 1)
    units, sides = paired_groups(values, [0, 0, 1, 1])
    assert units.ravel().tolist() == [0.5, 2.5, 4.5, 6.5]
    assert sides == [True, True, False, False]


@pytest.mark.parametrize("groups", ["abcd", ["a", "b"], ["a", None, "b", "b"], [[1], [2], [3], [4]], 4])
def test_groups_that_are_not_a_key_for_each_prompt_are_refused(groups):
    with pytest.raises(DataError, match=r"here"):
        checked_groups("here", groups, 4)


def grouped_outcomes(seed, number=24, size=8):
    """Outcomes with a rate of 0.3 on average, each group with its own: beta(1.2, 2.8)."""
    rng = np.random.default_rng(seed)
    rates = rng.beta(1.2, 2.8, number)
    outcomes = rng.random((number, size)) < rates[:, None]
    return outcomes.ravel().tolist(), [group for group in range(number) for _ in range(size)]


def test_interval_of_a_rate_by_group_holds_the_truth_and_by_prompt_far_too_seldom():
    # Seeds 0 to 999: standard error 0.7 points.
    held = {True: 0, False: 0}
    for seed in range(1000):
        outcomes, groups = grouped_outcomes(seed)
        for grouped in (True, False):
            found = Rate.of_groups(outcomes, groups if grouped else None)
            held[grouped] += found.low <= 0.3 <= found.high
    assert 930 <= held[True] <= 980
    assert held[False] < 850


def test_rate_by_group_is_that_of_prompts_where_each_is_its_own_group():
    assert Rate.of_groups([True, False, False, True], [3, 1, 0, 2]) == Rate.of(2, 4)


def test_rate_of_equal_outcomes_counts_each_group_once():
    found = Rate.of_groups([False] * 40, [place // 8 for place in range(40)])
    assert found.low == found.rate == 0
    assert found.high > Rate.of(0, 5).high  # Student's t for 5 groups, not the normal
    with pytest.raises(DataError, match="one group"):
        Rate.of_groups([True, False], [0, 0])
