import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_mote.errors import ConfigError, DataError, UnknownNameError
from hf_mote.statistics import contrast as module
from hf_mote.statistics import permutation
from hf_mote.statistics.contrast import contrast, length_confound
from hf_mote.statistics.rates import wilson


def poisson(prompts, layers=2, experts=4, seed=0):
    return np.random.default_rng(seed).poisson(3.0, (prompts, layers, experts)).astype(float)


def first(n, prompts):
    return np.arange(prompts) < n


def difference(x, y, axis):
    return x.mean(axis=axis) - y.mean(axis=axis)


def assert_equal(one, other):
    for left, right in zip(one[:5], other[:5], strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=1e-12)  # another order of summation


@pytest.mark.parametrize("resamples", [0, 19])
def test_contrast_score_is_the_difference_of_means(resamples):
    values, target = poisson(12), first(5, 12)
    found = contrast(values, target, resamples=resamples)
    np.testing.assert_allclose(found.score, values[:5].mean(0) - values[5:].mean(0), rtol=0, atol=1e-12)


def test_contrast_without_resamples_has_scores_alone():
    assert contrast(poisson(6), first(3, 6), resamples=0)[1:] == (None,) * 7


@pytest.mark.parametrize(("n", "prompts"), [(3, 8), (8, 14)])
def test_contrast_p_is_that_of_scipy_expert_by_expert(n, prompts):
    values = poisson(prompts)
    found = contrast(values, first(n, prompts), permutations=20_000, seed=3)
    assert found.permutations == math.comb(prompts, n)
    assert found.least_p == 2 / found.permutations
    for layer, expert in np.ndindex(2, 4):
        column = values[:, layer, expert]
        one = stats.permutation_test((column[:n], column[n:]), difference, n_resamples=np.inf, vectorized=True)
        assert found.p[layer, expert] == pytest.approx(one.pvalue, abs=1e-12)


def test_contrast_p_of_random_relabellings_is_about_that_of_all(monkeypatch):
    # 1,001 relabellings exist; of 50,000 drawn the standard error of p is at most 2 * 0.0022.
    values, target = poisson(14, experts=30), first(4, 14)
    exact = contrast(values, target).p
    monkeypatch.setattr(permutation, "MOST_EXACT", 1)
    monkeypatch.setattr(permutation, "STAGES", ())
    drawn = contrast(values, target, permutations=50_000)
    np.testing.assert_allclose(drawn.p, exact, rtol=0, atol=0.02)
    assert drawn.least_p == 2 / 1001


def test_contrast_p_that_is_small_is_the_same_with_and_without_stages(monkeypatch):
    values, target = poisson(40, experts=300), first(20, 40)
    values[:20, 0, :20] += 2
    staged = contrast(values, target, permutations=20_000).p
    monkeypatch.setattr(permutation, "STAGES", ())
    whole = contrast(values, target, permutations=20_000).p
    small = staged < 0.01
    assert 10 < small.sum() < 60
    np.testing.assert_array_equal(staged[small], whole[small])
    np.testing.assert_allclose(
        staged, whole, rtol=0, atol=0.12
    )  # 999 relabellings: 3 standard errors at p = 0.5 + 0.5


def test_contrast_memory_does_not_grow_with_relabellings(monkeypatch):
    values, target = poisson(20, experts=50), first(10, 20)
    most = []
    take = permutation._RandomLabels.take
    monkeypatch.setattr(permutation, "ELEMENTS_PER_BLOCK", 5000)
    monkeypatch.setattr(permutation._RandomLabels, "take", lambda deal, n: most.append(n) or take(deal, n))
    contrast(values, target, resamples=9, permutations=2000)
    assert most[0] == 5000 // (100 + 20)
    assert max(most) <= 5000 // 20  # fewer columns go on, in larger blocks


def test_contrast_one_expert_alone_can_be_significant_among_many():
    values, target = poisson(48, layers=4, experts=64), first(24, 48)
    values[target, 2, 7] += 8
    found = contrast(values, target)
    assert found.q[2, 7] <= 0.05
    assert found.least_p * values[0].size <= 0.05


def test_contrast_p_of_few_prompts_is_exact():
    values = np.array([5.0, 6.0, 9.0, 1.0, 2.0, 3.0]).reshape(6, 1, 1)
    assert contrast(values, first(3, 6)).p.item() == pytest.approx(2 / 20)  # the most extreme of 20, on either side


def test_contrast_interval_is_that_of_scipy_at_the_expanded_level():
    values, n = poisson(30) - 5, 10  # some negative, which no scale of counts fits
    found = contrast(values, first(n, 30), resamples=199, seed=5, confidence=0.9)
    level = 1 - 2 * stats.norm.sf(stats.t.ppf(0.95, n - 1) * math.sqrt(n / (n - 1)))
    assert level > 0.9
    for layer, expert in np.ndindex(2, 4):
        column = values[:, layer, expert]
        one = stats.bootstrap(
            (column[:n], column[n:]), difference, n_resamples=199, confidence_level=level, method="percentile", rng=5
        ).confidence_interval
        np.testing.assert_allclose(
            [found.low[layer, expert], found.high[layer, expert]], [one.low, one.high], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("sizes", [(8, 8), (20, 20), (10, 60)])
def test_contrast_interval_covers_the_true_difference(sizes):
    # 4 x 1500 simulated experts, four seeds: standard error of the coverage about 0.3 points, and 1 between seeds.
    covered = []
    for seed in range(4):
        values = np.random.default_rng(seed).normal(size=(sum(sizes), 1, 1500))
        found = contrast(values, first(sizes[0], sum(sizes)), resamples=499, seed=seed)
        covered.append(np.mean((found.low <= 0) & (found.high >= 0)))
    assert 0.93 <= np.mean(covered) <= 0.975


def test_contrast_p_is_uniform_where_there_is_no_difference():
    # 2000 independent experts: a Kolmogorov-Smirnov test at 0.1 %, on one fixed seed.
    values = np.random.default_rng(11).normal(size=(60, 1, 2000))
    found = contrast(values, first(30, 60))
    assert stats.kstest(found.p.ravel(), "uniform").pvalue > 0.001
    assert found.q.min() > 0.05


def test_contrast_q_is_benjamini_hochberg_over_all_experts():
    values = poisson(20)
    values[:10, 0, 1] += 6
    found = contrast(values, first(10, 20))
    np.testing.assert_array_equal(found.q.ravel(), stats.false_discovery_control(found.p.ravel()))
    assert found.q[0, 1] == found.q.min() < 0.05


def test_contrast_is_the_same_for_one_seed_and_in_chunks(monkeypatch):
    values, target = poisson(20), first(7, 20)
    whole = contrast(values, target, resamples=99, seed=1)
    assert_equal(whole, contrast(values, target, resamples=99, seed=1))
    monkeypatch.setattr(module, "EXPERTS_PER_CHUNK", 3)
    assert_equal(whole, contrast(values, target, resamples=99, seed=1))
    assert not np.array_equal(whole.low, contrast(values, target, resamples=99, seed=2).low)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(2, 5))
def test_contrast_of_swapped_classes_is_mirrored(seed, n, m):
    values, target = poisson(n + m, seed=seed), first(n, n + m)
    one, other = contrast(values, target, resamples=9), contrast(values, ~target, resamples=9)
    np.testing.assert_allclose(one.score, -other.score, rtol=0, atol=1e-12)
    assert ((one.low <= one.high) & (one.p > 0) & (one.p <= 1) & (one.q >= one.p)).all()


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 3])
def test_contrast_of_experts_without_spread_is_nothing_rather_than_noise(constant):
    found = contrast(np.full((11, 1, 2), constant), first(4, 11))
    assert found.score.tolist() == found.low.tolist() == found.high.tolist() == [[0.0, 0.0]]
    assert found.p.tolist() == [[1.0, 1.0]]


def test_contrast_of_classes_without_spread_has_an_interval_of_no_width():
    values = np.zeros((12, 1, 1))
    values[:6] = 2.0
    found = contrast(values, first(6, 12))
    assert (found.low.item(), found.high.item()) == (2.0, 2.0)
    assert found.p.item() == pytest.approx(2 / math.comb(12, 6))


@pytest.mark.parametrize("swap", [False, True])
def test_contrast_of_a_class_of_one_has_no_interval_but_an_exact_p(swap):
    values = np.arange(20.0)[::-1].reshape(20, 1, 1)  # the single one is the largest of 20
    target = first(1, 20)
    found = contrast(values, ~target if swap else target)
    assert math.isnan(found.low.item())
    assert math.isnan(found.high.item())
    assert found.p.item() == pytest.approx(2 / 20)
    assert found.score.item() == pytest.approx(-10.0 if swap else 10.0)


def test_contrast_of_two_prompts_knows_nothing():
    found = contrast(np.array([1.0, 2.0]).reshape(2, 1, 1), np.array([False, True]))
    assert (found.score.item(), found.p.item()) == (1.0, 1.0)


def test_contrast_paired_sees_what_differs_within_pairs():
    rng = np.random.default_rng(0)
    topic = rng.normal(0, 20, (15, 1, 1))  # differs between pairs, alike within
    values = np.concatenate([topic + 1, topic]) + rng.normal(0, 0.5, (30, 1, 1))
    target = first(15, 30)
    pooled, paired = contrast(values, target), contrast(values, target, rest="paired")
    assert paired.score == pooled.score
    assert (paired.p.item() < 0.01) & (pooled.p.item() > 0.5)
    assert 0 < paired.low.item() < 1 < paired.high.item() < 2
    differences = values[:15].ravel() - values[15:].ravel()
    one = stats.permutation_test((differences,), lambda x, axis: x.mean(axis), permutation_type="samples", rng=0)
    assert paired.p.item() == pytest.approx(one.pvalue, abs=0.005)  # other random sign flips


def test_contrast_paired_needs_as_many_of_each():
    with pytest.raises(DataError, match="3 target and 5 other"):
        contrast(poisson(8), first(3, 8), rest="paired")


@pytest.mark.parametrize("n", [0, 5])
def test_contrast_of_an_empty_class_says_which(n):
    with pytest.raises(DataError, match="the rest is empty" if n else "the target class is empty"):
        contrast(poisson(5), first(n, 5))


@pytest.mark.parametrize(
    ("values", "target", "word"),
    [
        (np.ones((4, 3)), first(2, 4), r"expected \(prompts, layers, experts\)"),
        (np.ones((0, 3, 2)), first(0, 0), "wrong shape"),
        (np.ones((4, 1, 1)), first(2, 5), r"expected bool of shape \(4,\)"),
        (np.ones((4, 1, 1)), np.arange(4), "int64"),
        (np.array([0, 1, np.nan, 3]).reshape(4, 1, 1), first(2, 4), "prompt 2"),
    ],
)
def test_contrast_of_malformed_arrays_is_refused(values, target, word):
    with pytest.raises(DataError, match=word):
        contrast(values, target)


def test_contrast_settings_out_of_range_are_refused():
    with pytest.raises(ConfigError, match="confidence"):
        contrast(poisson(4), first(2, 4), confidence=95)
    with pytest.raises(ConfigError, match="resamples"):
        contrast(poisson(4), first(2, 4), resamples=-1)
    with pytest.raises(UnknownNameError, match="pooled"):
        contrast(poisson(4), first(2, 4), rest="pool")


def test_contrast_does_not_change_its_input():
    values = poisson(6)
    before = values.copy()
    contrast(values, first(3, 6), resamples=9)
    np.testing.assert_array_equal(values, before)


def test_length_confound_is_the_difference_of_lengths():
    rng, top_k = np.random.default_rng(0), 2
    lengths = np.array([12, 16, 8, 8])
    counts = np.stack([rng.multinomial(length * top_k, [1 / 8] * 8, size=3) for length in lengths])
    found = length_confound(counts, first(2, 4))
    np.testing.assert_allclose(found.row_sums, top_k * (14 - 8))
    assert found.relative == pytest.approx(14 / 8 - 1)
    assert length_confound(counts, ~first(2, 4)).relative == pytest.approx(8 / 14 - 1)


def test_length_confound_of_equal_lengths_is_none():
    assert length_confound(np.ones((4, 2, 8)), first(2, 4)).relative == 0.0


@given(st.integers(1, 200), st.floats(0, 1), st.floats(0.5, 0.99))
def test_wilson_is_the_formula(n, share, confidence):
    k = round(share * n)
    z = stats.norm.ppf((1 + confidence) / 2)
    center = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    low, high = wilson(k, n, confidence)
    assert low == pytest.approx(center - half, abs=1e-9)
    assert high == pytest.approx(center + half, abs=1e-9)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_of_no_rate_is_refused(successes, n):
    with pytest.raises(DataError, match="must be a rate"):
        wilson(successes, n)


def test_wilson_confidence_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="confidence"):
        wilson(1, 2, 95)
