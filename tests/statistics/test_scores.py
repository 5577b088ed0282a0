import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hf_mote.errors import ConfigError, DataError, UnknownNameError
from hf_mote.statistics.contrast import contrast
from hf_mote.statistics.scores import SCORES
from hf_mote.statistics.stability import top_stability

TOKEN_SCORES = ["risk_difference", "log_odds", "npmi"]


def routed(prompts=24, layers=2, experts=6, top_k=2, seed=0, skew=0.0):
    """Counts of prompts of different lengths whose tokens choose top_k experts, the first half leaning to expert 0."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 20, prompts)
    counts = np.zeros((prompts, layers, experts))
    for prompt in range(prompts):
        lean = np.zeros(experts)
        lean[0] = skew * (prompt < prompts // 2)
        for layer in range(layers):
            chosen = np.argsort(-(rng.gumbel(size=(tokens[prompt], experts)) + lean), axis=1)[:, :top_k]
            counts[prompt, layer] = np.bincount(chosen.ravel(), minlength=experts)
    return counts, tokens.astype(float), np.arange(prompts) < prompts // 2


def tables(counts, tokens, target):
    """Per expert the 2 x 2 table of tokens: class by chosen or not."""
    for place in np.ndindex(counts.shape[1:]):
        a, b = counts[target][(slice(None), *place)].sum(), counts[~target][(slice(None), *place)].sum()
        yield place, np.array([[a, tokens[target].sum() - a], [b, tokens[~target].sum() - b]])


def test_risk_difference_is_the_difference_of_shares_of_tokens():
    counts, tokens, target = routed()
    found = contrast(counts, target, score="risk_difference", tokens=tokens, resamples=0).score
    for place, table in tables(counts, tokens, target):
        share = table[:, 0] / table.sum(axis=1)
        assert found[place] == pytest.approx(share[0] - share[1], abs=1e-12)


def test_log_odds_is_that_of_scipy_with_half_a_token_more():
    counts, tokens, target = routed()
    found = contrast(counts, target, score="log_odds", tokens=tokens, resamples=0).score
    for place, table in tables(counts, tokens, target):
        # scipy takes whole numbers: twice the table has the same odds.
        odds = stats.contingency.odds_ratio((2 * table + 1).astype(int), kind="sample").statistic
        assert found[place] == pytest.approx(np.log(odds), abs=1e-12)


def test_npmi_is_its_definition():
    counts, tokens, target = routed()
    found = contrast(counts, target, score="npmi", tokens=tokens, resamples=0).score
    for place, table in tables(counts, tokens, target):
        joint = table / table.sum(axis=1, keepdims=True) / 2  # p(class) = 1/2
        pmi = np.log(joint[0, 0] / (joint[0].sum() * joint[:, 0].sum()))
        assert found[place] == pytest.approx(pmi / -np.log(joint[0, 0]), abs=1e-12)


@pytest.mark.parametrize("score", sorted(SCORES))
def test_score_of_an_expert_that_nobody_chose_is_0_with_a_p_value_of_1(score):
    counts, tokens, target = routed(skew=2.0)
    counts[:, 1, 3] = 0
    found = contrast(counts, target, score=score, tokens=tokens, resamples=99)
    assert found.score[1, 3] == 0
    assert found.p[1, 3] == 1


def test_npmi_of_an_expert_that_only_the_others_chose_is_least():
    counts, tokens, target = routed()
    counts[target, 0, 0] = 0
    found = contrast(counts, target, score="npmi", tokens=tokens, resamples=0).score
    assert found[0, 0] == -1 == found.min()


@pytest.mark.parametrize("score", TOKEN_SCORES)
def test_score_per_token_does_not_see_length_and_the_mean_does(score):
    # The same tokens, some prompts joined into one: lengths change, shares do not.
    counts, tokens, target = routed(skew=1.0)
    joined = np.concatenate([counts[:2].sum(0, keepdims=True), counts[2:]])
    lengths = np.concatenate([tokens[:2].sum(keepdims=True), tokens[2:]])
    before = contrast(counts, target, score=score, tokens=tokens, resamples=0).score
    after = contrast(joined, target[1:], score=score, tokens=lengths, resamples=0).score
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-12)
    assert not np.allclose(
        contrast(joined, target[1:], resamples=0).score, contrast(counts, target, resamples=0).score
    )


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_scores_of_swapped_classes_have_the_other_sign(seed):
    counts, tokens, target = routed(seed=seed)
    for score in ("mean_difference", "risk_difference", "log_odds"):
        one = contrast(counts, target, score=score, tokens=tokens, resamples=0).score
        other = contrast(counts, ~target, score=score, tokens=tokens, resamples=0).score
        np.testing.assert_allclose(one, -other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("score", sorted(SCORES))
def test_every_score_finds_the_expert_that_leans(score):
    counts, tokens, target = routed(prompts=40, skew=2.0)
    found = contrast(counts, target, score=score, tokens=tokens, resamples=199)
    assert (found.score.argmax(axis=1) == 0).all()
    assert (found.q[:, 0] < 0.05).all()
    assert (found.low <= found.score).all()
    assert (found.score <= found.high).all()


@pytest.mark.parametrize("score", sorted(SCORES))
def test_shuffled_labels_give_no_significant_expert_but_in_1_run_of_20(score):
    # The family-wise error under the null is at most the false-discovery rate of 5 %: of 200 runs 10 are expected, and
    # 20 would be 3 standard errors more.
    rng, wrong = np.random.default_rng(0), 0
    for seed in range(200):
        counts, tokens, target = routed(prompts=20, seed=seed)
        found = contrast(
            counts, rng.permutation(target), score=score, tokens=tokens, resamples=9, permutations=999, seed=seed
        )
        wrong += bool((found.q <= 0.05).any())
    assert wrong < 20


@pytest.mark.parametrize("score", TOKEN_SCORES)
def test_interval_of_a_score_per_token_covers_the_true_value(score):
    # Prompts of unequal length; the truth is the score of the distribution that all prompts are drawn from.
    rng = np.random.default_rng(0)
    rates = np.array([0.4, 0.25])
    truth = {
        "risk_difference": rates[0] - rates[1],
        "log_odds": np.log(rates[0] / (1 - rates[0])) - np.log(rates[1] / (1 - rates[1])),
        "npmi": np.log(rates[0] / rates.mean()) / -np.log(rates[0] / 2),
    }[score]
    covered = []
    for seed in range(6):
        target = np.arange(60) < 30
        tokens = np.tile(rng.integers(20, 60, 30), 2).astype(
            float
        )  # as many tokens in each class, as npmi's truth has
        counts = rng.binomial(tokens[:, None, None].astype(int), np.where(target, *rates)[:, None, None], (60, 1, 300))
        found = contrast(counts, target, score=score, tokens=tokens, resamples=299, seed=seed)
        covered.append(float(((found.low <= truth) & (truth <= found.high)).mean()))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_contrast_score_per_token_without_tokens_is_refused():
    counts, tokens, target = routed()
    with pytest.raises(DataError, match="needs the tokens"):
        contrast(counts, target, score="npmi")
    with pytest.raises(DataError, match="tokens"):
        contrast(counts, target, score="npmi", tokens=tokens[:3])
    assert contrast(counts, target, score="npmi", tokens=tokens, resamples=0).score.shape == counts.shape[1:]


def test_contrast_unknown_score_lists_the_known_ones():
    counts, _, target = routed()
    with pytest.raises(UnknownNameError, match="log_odds"):
        contrast(counts, target, score="log_odd")


def test_stability_of_a_clear_expert_is_whole_and_of_noise_is_near_chance():
    counts, tokens, target = routed(prompts=60, experts=40, skew=3.0)
    clear = top_stability(counts, target, 2, score="risk_difference", tokens=tokens)
    assert clear.overlap == 1
    assert clear.frequency[:, 0].tolist() == [1, 1]
    counts, tokens, target = routed(prompts=60, experts=40)
    noise = top_stability(counts, target, 2, score="risk_difference", tokens=tokens)
    assert noise.chance == 2 / 80
    assert noise.overlap < 0.6 < clear.low
    assert noise.frequency.sum() == pytest.approx(2)


def test_stability_out_of_range_is_refused():
    counts, _, target = routed()
    with pytest.raises(ConfigError, match="n"):
        top_stability(counts, target, 0)
    with pytest.raises(DataError, match="too few prompts"):
        top_stability(counts[:13], target[:13], 2)
