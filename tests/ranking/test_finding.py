import dataclasses

import numpy as np
import pytest
import torch

from hf_mote.errors import DataError
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.ranking.finding import finding_of, least_q_of
from hf_mote.statistics.contrast import contrast


def ranked(n, m, *, clear=4, rest="pooled", mean=3.0, **options):
    """A ranking of 4 x 64 experts, of which `clear` are used by the target class alone."""
    values = np.random.default_rng(0).poisson(mean, (n + m, 4, 64)).astype(float)
    values.reshape(n + m, 256)[:n, :clear] += 1000
    found = contrast(values, np.arange(n + m) < n, rest=rest, resamples=9, **options)
    compared = f"{n} pairs of prompts" if rest == "paired" else f"{n} against {m} prompts"
    return ExpertRanking.from_contrast(found, range(4), method="ftri", target="x", provenance={"compared": compared})


@pytest.mark.parametrize(("n", "m"), [(24, 24), (48, 48), (8, 40)])
def test_verdict_of_a_clear_expert_alone_is_that_it_stands_out(n, m):
    found = ranked(n, m, clear=1)
    assert found.least_q <= 0.05
    assert found.verdict == "1 of 256 experts stand out for 'x' (q ≤ 0.05)."


@pytest.mark.parametrize(("n", "m", "least"), [(3, 3, 2 / 20), (2, 3, 2 / 10), (1, 30, 2 / 31)])
def test_verdict_where_no_p_can_be_small_is_that_nothing_could_be_found(n, m, least):
    found = ranked(n, m)
    assert found.least_p == pytest.approx(least)
    assert float(found.p.min()) >= found.least_p - 1e-12
    assert found.verdict.startswith(f"Nothing could be found with {n} against {m} prompts: p cannot be below")
    assert "Ask more prompts" in found.verdict
    assert "Nothing here" not in found.verdict


@pytest.mark.parametrize(
    ("sizes", "rest", "existing"), [((4, 4), "pooled", 70), ((5, 5), "pooled", 252), ((8, 8), "paired", 256)]
)
def test_verdict_where_only_many_experts_together_could_be_found_says_how_many(sizes, rest, existing):
    found = ranked(*sizes, rest=rest)
    fewest = int(np.ceil(2 / existing * 256 / 0.05))
    assert found.least_q == pytest.approx(min(1.0, 2 / existing * 256))
    assert f"{sizes[0]}" in found.verdict
    assert f"could not show less than {fewest} experts at once" in found.verdict
    assert "256 experts were tested" in found.verdict
    for clear, start in ((fewest - 1, "Nothing was found"), (fewest, f"{fewest} of 256 experts stand out")):
        found = ranked(*sizes, rest=rest, clear=clear, mean=0.0)  # the others are never used, with p = 1
        assert found.verdict.startswith(start)


@pytest.mark.parametrize(
    ("method", "known", "advice"),
    [
        ("ftri", {"paired": False}, "Compare pairs of prompts on one topic, or give the groups of prompts"),
        ("ftri", {"paired": False, "groups": 9}, "Compare pairs of prompts on one topic."),
        ("ftri", {"paired": True}, "Give the groups of prompts that belong together."),
        ("ftri", {"paired": True, "groups": 9}, "Write prompts of both classes that are alike in all but what is"),
        ("attribution", {}, "Take two responses that differ in little but what is sought."),
        ("ablation", {"groups": 9}, "Take two responses that differ in little but what is sought."),
    ],
)
def test_verdict_where_most_experts_differ_advises_what_was_not_done(method, known, advice):
    found = dataclasses.replace(ranked(24, 24, clear=128), method=method, provenance=known)
    said, _, advised = found.verdict.partition("hardly any is a cause. ")
    assert said.startswith("128 of 256 experts stand out")
    assert advised.startswith(advice)


def test_verdict_where_permutations_are_too_few_names_them():
    found = ranked(24, 24, permutations=999)
    assert "but 999 permutations could not show less than" in found.verdict
    assert "Ask for more permutations" in found.verdict


def test_verdict_where_something_could_have_been_found_is_nothing_here():
    found = ranked(24, 24, clear=0)
    assert found.verdict == "Nothing here: of 256 experts none stand out for 'x' with q ≤ 0.05."


def test_verdict_without_p_values_claims_nothing():
    score = torch.zeros(1, 3, dtype=torch.float64)
    found = ExpertRanking(score=score, layers=(0,), method="ftri", target="x")
    assert "cannot separate chance from effect" in found.verdict
    assert found.least_q is None


def test_ranking_keeps_its_least_p_when_saved(tmp_path):
    found = ranked(3, 3)
    found.save_pretrained(tmp_path)
    loaded = ExpertRanking.from_pretrained(tmp_path)
    assert (loaded.least_p, loaded.verdict) == (found.least_p, found.verdict)


@pytest.mark.parametrize("least", [0.0, -1.0, 1.5])
def test_ranking_least_p_that_is_no_probability_is_refused(least):
    with pytest.raises(DataError, match="least_p"):
        ExpertRanking(
            score=torch.zeros(1, 3, dtype=torch.float64), layers=(0,), method="ftri", target="x", least_p=least
        )


def test_verdict_of_an_older_ranking_leaves_open_what_could_have_been_found():
    found = dataclasses.replace(ranked(24, 24, clear=0), least_p=None)
    assert "whether any could have, the ranking does not say" in found.verdict
    assert "Nothing here" not in found.verdict


def test_least_q_where_no_expert_was_tested_is_1() -> None:
    assert least_q_of(0.01, torch.full((2, 3), torch.nan)) == 1.0
    assert least_q_of(0.01, torch.tensor([[0.5, torch.nan]])) == pytest.approx(0.01)


def test_a_contrast_in_which_a_third_of_all_experts_differ_is_called_one_of_topics() -> None:
    score = torch.linspace(-1, 1, 30).reshape(3, 10).double()
    q = torch.where(score.abs() > 0.6, 0.01, 0.9).double()
    many = finding_of("stand out", score=score, p=q, q=q, least_p=0.001)
    assert many.significant == 6
    assert "12 of all experts differ" in many.text
    few = torch.where(score.abs() > 0.9, 0.01, 0.9).double()
    assert "differ" not in finding_of("stand out", score=score, p=few, q=few, least_p=0.001).text
