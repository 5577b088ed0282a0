"""p and q values of rankings, as the methods of this package give them, and as they cannot be."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import stats

from hf_mote.errors import DataError
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.ranking.p_values import check_p_values
from hf_mote.statistics.contrast import adjusted, contrast


def grid(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


@pytest.mark.parametrize(
    ("sizes", "rest", "permutations"),
    [
        *product([(3, 3), (1, 4), (12, 9)], ["pooled"], [None, 1, 50, 30_000]),
        *product([(1, 1), (4, 4), (16, 16)], ["paired"], [None, 1, 50, 100_000]),
    ],
)
def test_p_and_q_of_every_test_are_taken(sizes: tuple[int, int], rest: str, permutations: int | None) -> None:
    rng = np.random.default_rng(sum(sizes))
    is_target = np.arange(sum(sizes)) < sizes[0]
    values = rng.poisson(3.0, (sum(sizes), 3, 8)) + 20 * is_target[:, None, None] * (rng.random((1, 3, 8)) < 0.3)
    values[:, 2, 5] = 0  # an expert that nothing uses
    found = contrast(values, is_target, rest=rest, resamples=19, permutations=permutations)
    ranking = ExpertRanking.from_contrast(found, (0, 1, 2), method="ftri", target="x")
    assert ranking.p is not None
    assert float(ranking.p.min()) >= min(float(ranking.least_p or 0), 2 / (found.permutations or 1))


def test_p_may_be_less_than_all_relabellings_give_where_more_were_drawn() -> None:
    # Of 70,000 that exist, 199,999 were drawn, and none but the observed one went so far.
    low = grid(1e-5, 0.5)
    check_p_values(low, grid(2e-5, 0.5), "ftri", 2 / 70_000, 199_999)
    for permutations in (None, 69_999, 199_998.0, True, 0, "many"):
        with pytest.raises(DataError, match="p: is below the least that its test can give"):
            check_p_values(low, grid(2e-5, 0.5), "ftri", 2 / 70_000, permutations)
    with pytest.raises(DataError, match="expected 0.5 or more"):  # all of so few would have been gone through
        check_p_values(grid(0.4), grid(0.4), "ftri", 0.5, 99)
    check_p_values(low, grid(2e-5, 0.5), "ftri", None, 9)


@pytest.mark.parametrize("method", ["ftri", "attribution", "ablation", "patching"])
def test_q_of_a_method_of_this_package_is_that_of_benjamini_and_hochberg(method: str) -> None:
    p = grid(0.01, 0.02, float("nan"), 0.9)
    check_p_values(p, grid(0.03, 0.03, float("nan"), 0.9), method, None, None)
    with pytest.raises(DataError, match="q: must be p adjusted .*got 0.06 in row 0, expert 1, expected 0.03"):
        check_p_values(p, grid(0.03, 0.06, float("nan"), 0.9), method, None, None)
    check_p_values(p, grid(0.03, 0.06, float("nan"), 1.0), "of another package", None, None)


def test_what_was_not_tested_does_not_count_among_the_adjusted() -> None:
    p = np.random.default_rng(0).random((4, 5))
    assert np.array_equal(adjusted(p), stats.false_discovery_control(p, axis=None).reshape(4, 5))
    some = p.copy()
    some[1], some[3, 2] = np.nan, np.nan
    there = ~np.isnan(some)
    assert np.array_equal(adjusted(some)[there], stats.false_discovery_control(some[there]))
    assert np.isnan(adjusted(some)[~there]).all()
    assert np.isnan(adjusted(np.full(3, np.nan))).all()
