"""Contrasts of thousands of prompts: equal to resampling where both can be computed, and right under the null."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from hf_mote.errors import DataError
from hf_mote.statistics.contrast import Contrast, contrast
from hf_mote.statistics.large import contrast_in_blocks, moments_test
from hf_mote.statistics.permutation import permutation_test, relabellings
from hf_mote.statistics.resampling import Statistic
from hf_mote.statistics.scores import SCORES

Array = npt.NDArray[np.float64]


def routed(seed: int, prompts: int, rates: list[float]) -> tuple[Array, Array]:
    """Return over-dispersed counts of experts, and the tokens of each prompt."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(20, 40, prompts)
    share = rng.beta(*(np.array(rates) * 19, (1 - np.array(rates)) * 19), size=(prompts, len(rates)))
    return rng.binomial(tokens[:, None], share).astype(np.float64), tokens.astype(np.float64)


def in_blocks(values: Array, tokens: Array, target: npt.NDArray[np.bool_], **options: object) -> Contrast:
    settings = {"score": "mean_difference", "paired": False, "confidence": 0.95, "resamples": 1, "permutations": None}
    return contrast_in_blocks(
        lambda start, stop: values[:, start:stop],
        (1, values.shape[1]),
        target,
        tokens=tokens,
        seed=0,
        **{**settings, **options},  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("score", ["mean_difference", "log_odds"])
def test_moments_test_agrees_with_relabelling(score: str, paired: bool) -> None:
    values, tokens = routed(0, 1200, [0.1] * 24)
    values[:500, :12] += np.random.default_rng(1).binomial(1, 0.35, (500, 12))
    chosen, others = (np.arange(600), np.arange(600, 1200)) if paired else (np.arange(500), np.arange(500, 1200))
    per_token = score != "mean_difference"
    found, enough = moments_test(values, tokens, chosen, others, per_token=per_token, paired=paired)
    assert enough.all()
    expected = permutation_test(
        Statistic(values, tokens, SCORES[score]),
        chosen,
        others,
        plan=relabellings(len(chosen), len(others), paired=paired, wanted=4_999, columns=24),
        paired=paired,
        seed=0,
        to_the_end=True,
    )
    # Two-sided: twice a tail that 999 relabellings at least know to within 4 standard errors.
    assert np.all(np.abs(found - expected) <= 4 * np.sqrt(2 * expected / 999))
    assert found.min() < 0.05 < found.max()


def test_moments_test_sees_the_skewness_of_a_small_class() -> None:
    """Of 300 among 6,000: an upper tail that the normal distribution puts at a third of what it is."""
    rng = np.random.default_rng(0)
    values = (rng.random((6000, 1)) < 0.1) * rng.exponential(1.0, (6000, 1))
    chosen = np.argsort(-values[:, 0] * (rng.random(6000) < 0.036))[:300]
    others = np.setdiff1d(np.arange(6000), chosen)
    found, _ = moments_test(values, np.ones(6000), chosen, others, per_token=False, paired=False)
    sums = np.array([values[rng.permutation(6000)[:300]].sum() for _ in range(40_000)])
    upper = (sums >= values[chosen].sum()).mean()
    assert found[0] == pytest.approx(2 * upper, rel=0.35) or upper * 40_000 < 20


def test_moments_test_column_that_too_few_prompts_use_is_left_to_relabelling() -> None:
    values = np.zeros((4000, 3))
    values[:40:4, 0] = 1.0  # 10 prompts
    values[::3, 1] = 1.0
    found, enough = moments_test(
        values, np.ones(4000), np.arange(300), np.arange(300, 4000), per_token=False, paired=False
    )
    assert enough.tolist() == [False, True, True]
    assert found[2] == 1.0


@pytest.mark.parametrize("score", list(SCORES))
@pytest.mark.parametrize("paired", [False, True])
def test_contrast_in_blocks_has_the_scores_and_nearly_the_intervals_of_contrast(
    score: str, paired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_mote.statistics.large.VALUES_PER_BLOCK", 3 * 800)
    values, tokens = routed(2, 800, [0.02, 0.1, 0.3, 0.1, 0.2, 0.05, 0.1])
    target = np.arange(800) < 400
    found = in_blocks(values, tokens, target, score=score, paired=paired)
    expected = contrast(
        values[:, None], target, score=score, tokens=tokens, rest="paired" if paired else "pooled", resamples=1999
    )
    assert np.array_equal(found.score, expected.score)
    width = expected.high - expected.low
    assert np.all(np.abs(found.low - expected.low) < 0.2 * width)
    assert np.all(np.abs(found.high - expected.high) < 0.2 * width)
    assert found.permutations in (None, 9_999)
    assert found.least_p <= found.p.min()


def test_contrast_in_blocks_error_rate_under_the_null() -> None:
    values, tokens = routed(3, 2400, [0.002] * 100 + [0.01] * 300 + [0.1] * 400)
    target = np.random.default_rng(4).random(2400) < 0.3
    p = in_blocks(values, tokens, target, score="risk_difference").p
    assert 0.03 < (p <= 0.05).mean() < 0.07
    assert (p <= 0.001).mean() < 0.006


def test_contrast_in_blocks_takes_the_relabellings_it_is_given() -> None:
    values, tokens = routed(5, 600, [0.1] * 6)
    target = np.arange(600) < 250
    found = in_blocks(values, tokens, target, permutations=1_999)
    expected = contrast(values[:, None], target, permutations=1_999)
    assert np.array_equal(found.p, expected.p)
    assert found.permutations == 1_999


def test_contrast_in_blocks_value_that_is_not_finite_is_refused() -> None:
    values, tokens = routed(6, 600, [0.1] * 6)
    values[7, 3] = np.nan
    with pytest.raises(DataError, match="NaN or infinity in prompt 7"):
        in_blocks(values, tokens, np.arange(600) < 250)
