"""Integer budgets against exact fractions, Zipf's law against water-filling one latent at a time, the fit on laws."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from naive_saes import rounded_shares

from hf_mote.errors import ConfigError, DataError
from hf_mote.sae.variants.bases.budgets import fit_zipf, largest_remainder, uniform_budgets, zipf_budgets

LAWS = st.tuples(st.floats(0, 3), st.floats(0, 20))


@given(st.lists(st.integers(0, 64), max_size=7), st.integers(0, 200))
def test_largest_remainder_equals_exact_fractions(cuts: list[int], total: int) -> None:
    # Shares in 64ths, which are exact in binary.
    shares = [Fraction(total * (b - a), 64) for a, b in pairwise([0, *sorted(cuts), 64])]
    expected = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: (expected[i] - shares[i], i))
    for i in order[: total - sum(expected)]:
        expected[i] += 1
    assert largest_remainder(torch.tensor([float(s) for s in shares]).double(), total).tolist() == expected


def test_largest_remainder_ties_go_to_the_lower_index() -> None:
    assert largest_remainder(torch.tensor([1.5, 1.5, 1.5, 1.5]).double(), 6).tolist() == [2, 2, 1, 1]
    assert largest_remainder(torch.tensor([0.25, 2.75, 1.0]).double(), 4).tolist() == [0, 3, 1]


def test_largest_remainder_keeps_to_the_cap() -> None:
    assert largest_remainder(torch.tensor([2.0, 1.4, 1.6]).double(), 5, cap=2).tolist() == [2, 1, 2]
    assert largest_remainder(torch.tensor([2.0, 2.0, 1.0]).double(), 6, cap=2).tolist() == [2, 2, 2]


@pytest.mark.parametrize("total", [2, 8])
def test_largest_remainder_total_that_rounding_cannot_reach_is_refused(total: int) -> None:
    with pytest.raises(ConfigError, match=rf"do not add up \(got shares of 5\.0, expected {total}\)"):
        largest_remainder(torch.tensor([2.0, 1.4, 1.6]).double(), total)


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Latents, total, cap and floor that can be met."""
    num_latents, cap = draw(st.integers(1, 30)), draw(st.integers(1, 40))
    floor = draw(st.integers(0, cap))
    return num_latents, draw(st.integers(num_latents * floor, num_latents * cap)), cap, floor


@given(problems(), LAWS)
@settings(deadline=None)
def test_zipf_budgets_add_up_fall_and_keep_to_floor_and_cap(
    problem: tuple[int, int, int, int], law: tuple[float, float]
) -> None:
    num_latents, total, cap, floor = problem
    budgets = zipf_budgets(num_latents, total, cap=cap, floor=floor, exponent=law[0], offset=law[1])
    assert budgets.dtype == torch.int64
    assert budgets.shape == (num_latents,)
    assert int(budgets.sum()) == total
    assert floor <= int(budgets.min())
    assert int(budgets.max()) <= cap
    assert bool((budgets.diff() <= 0).all())


@given(problems(), LAWS)
@settings(deadline=None)
def test_zipf_budgets_equal_water_filling_one_by_one(
    problem: tuple[int, int, int, int], law: tuple[float, float]
) -> None:
    num_latents, total, cap, floor = problem
    weights = [(rank + law[1]) ** -law[0] for rank in range(1, num_latents + 1)]
    shares, expected = rounded_shares(weights, total, floor, cap)
    # Where remainders are closer than rounding, either may come first.
    remainders = sorted(share % 1 for share in shares)
    assume(all(b - a > 1e-7 or b == a for a, b in pairwise(remainders)))
    assume(all(1e-7 < share % 1 < 1 - 1e-7 or share == int(share) for share in shares))
    budgets = zipf_budgets(num_latents, total, cap=cap, floor=floor, exponent=law[0], offset=law[1])
    assert budgets.tolist() == expected


@given(problems())
@settings(deadline=None)
def test_uniform_budgets_are_equal_up_to_one_the_first_ones_larger(problem: tuple[int, int, int, int]) -> None:
    num_latents, total, cap, floor = problem
    whole, rest = divmod(total, num_latents)
    expected = [whole + 1] * rest + [whole] * (num_latents - rest)
    assert uniform_budgets(num_latents, total, cap=cap, floor=floor).tolist() == expected


def test_uniform_budgets_spend_the_remainder_that_a_quotient_drops() -> None:
    # F = 384, K = 8, B = 512: 4096 // 384 = 10 for each would leave 256 matches unspent.
    budgets = uniform_budgets(384, 8 * 512, cap=512)
    assert int(budgets.sum()) == 4096
    assert budgets.tolist() == [11] * 256 + [10] * 128


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 3), LAWS)
@settings(deadline=None)
def test_zipf_budgets_do_not_fall_by_more_than_rounding_as_tokens_are_added(
    num_latents: int, tokens: int, floor: int, law: tuple[float, float]
) -> None:
    assume(floor <= tokens)
    for k in range(max(floor * num_latents // tokens + 1, 1), num_latents + 1):
        few, more = (
            zipf_budgets(num_latents, k * t, cap=t, floor=floor, exponent=law[0], offset=law[1])
            for t in (tokens, tokens + 1)
        )
        assert int((few - more).max()) <= 1


@pytest.mark.parametrize(("exponent", "offset"), [(60.0, 0.0), (500.0, 3.0), (1e6, 1e9), (1e-9, 0.0)])
def test_zipf_budgets_of_extreme_laws_still_add_up(exponent: float, offset: float) -> None:
    for num_latents, total, cap, floor in ((24576, 32 * 4096, 4096, 1), (1000, 32 * 64, 64, 0)):
        budgets = zipf_budgets(num_latents, total, cap=cap, floor=floor, exponent=exponent, offset=offset)
        assert int(budgets.sum()) == total
        assert floor <= int(budgets.min()) <= int(budgets.max()) <= cap


@pytest.mark.parametrize(
    ("total", "floor", "fix"), [(39, 1, "larger batch.*min_budget=0"), (401, 1, "smaller k"), (79, 2, "larger batch")]
)
def test_zipf_budgets_that_cannot_be_met_are_refused_with_the_numbers(total: int, floor: int, fix: str) -> None:
    expected = (
        rf"{total} matches for 40 latents in 10 tokens, expected {40 * floor}\.\.400 \(between {floor} and 10.*{fix}"
    )
    with pytest.raises(ConfigError, match=expected):
        zipf_budgets(40, total, cap=10, floor=floor, exponent=1.0, offset=0.0)


@pytest.mark.parametrize("name", ["exponent", "offset"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_zipf_budgets_law_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"budgets: {name}: out of range"):
        zipf_budgets(4, 8, cap=4, **{"exponent": 1.0, "offset": 0.0, name: value})


@given(st.floats(0.2, 2.5), st.floats(0, 30), st.floats(1e-4, 1.0))
@settings(deadline=None, max_examples=25)
def test_fit_zipf_recovers_the_law(exponent: float, offset: float, scale: float) -> None:
    densities = scale * (np.arange(1, 301) + offset) ** -exponent
    fit = fit_zipf(torch.from_numpy(np.random.default_rng(0).permutation(densities)))
    assert fit.exponent == pytest.approx(exponent, rel=1e-3)
    assert fit.offset == pytest.approx(offset, rel=1e-2, abs=1e-2)
    assert fit.scale == pytest.approx(scale, rel=2e-2)
    assert fit.r2 == pytest.approx(1.0, abs=1e-6)
    assert fit.num_fitted == 300


def test_fit_zipf_leaves_out_the_lower_end_where_it_departs_from_the_law() -> None:
    ranks = torch.arange(1, 201, dtype=torch.float64)
    densities = 0.3 * ranks**-0.9
    densities[150:] = 1e-6
    densities[190:] = 0
    fit = fit_zipf(densities, least=1e-3)
    assert fit.num_fitted == 150
    assert fit.exponent == pytest.approx(0.9, rel=1e-6)
    assert fit.offset == pytest.approx(0.0, abs=1e-4)
    assert fit_zipf(densities).r2 < fit.r2


def test_fit_zipf_of_equal_densities_is_uniform() -> None:
    fit = fit_zipf(torch.full((20,), 0.125))
    assert fit.exponent == pytest.approx(0.0, abs=1e-12)
    assert fit.scale == pytest.approx(0.125)
    assert fit.r2 == 1.0


@pytest.mark.parametrize("wrong", [-0.125, math.nan, math.inf])
def test_fit_zipf_of_no_densities_is_refused(wrong: float) -> None:
    with pytest.raises(DataError, match=rf"densities\[3\]: must be a density \(got {wrong}\)"):
        fit_zipf(torch.tensor([0.5, 0.4, 0.3, wrong]))
    with pytest.raises(DataError, match=r"too few to fit \(got 2, expected 3 above 0\.2"):
        fit_zipf(torch.tensor([0.5, 0.4, 0.1, 0.0]), least=0.2)
    with pytest.raises(DataError, match="too few to fit"):
        fit_zipf(torch.zeros(0))


def test_fit_of_budgets_gives_back_the_law_they_were_made_by() -> None:
    budgets = zipf_budgets(2000, 32 * 100_000, cap=100_000, exponent=0.7, offset=5.0)
    fit = fit_zipf(budgets / 100_000)
    assert fit.exponent == pytest.approx(0.7, rel=1e-2)
    assert fit.offset == pytest.approx(5.0, rel=5e-2)
