"""Rankings by groups of prompts: what counts as one, what is refused, and what is noticed without them."""

import logging

import numpy as np
import pytest
import torch

from hf_mote import ActivationMap, FTRIResult
from hf_mote.errors import DataError


def result(prompts=None, seed=0, size=12):
    routing = np.random.default_rng(seed).integers(0, 8, (size, 9, 3, 1))
    maps = [ActivationMap.from_routed_experts(table, num_experts=8, layers=range(3)) for table in routing]
    return FTRIResult.from_maps(maps, ["a", "b"] * (size // 2), prompts=prompts)


GROUPS = [f"subject {place // 2 % 3}" for place in range(12)]  # each holds prompts of both classes


def test_rank_by_group_is_the_ranking_of_the_means_of_groups():
    seen = result()
    found = seen.rank("a", groups=GROUPS, resamples=99)
    counts = seen.counts.double()
    units = [
        torch.stack([counts[i] for i in range(12) if GROUPS[i] == group and seen.classes[i] == label]).mean(dim=0)
        for label in ("a", "b")
        for group in dict.fromkeys(GROUPS)
    ]
    score = torch.stack(units[:3]).mean(dim=0) - torch.stack(units[3:]).mean(dim=0)
    assert torch.allclose(found.score, score)
    assert found.least_p == pytest.approx(2 / 20)  # 3 against 3 groups: 20 relabellings
    assert found.provenance["compared"] == "3 against 3 groups of 12 prompts"
    assert found.provenance["groups"] == 3


def test_every_prompt_its_own_group_changes_nothing():
    seen = result()
    assert torch.equal(seen.rank("a", groups=list(range(12))).p, seen.rank("a").p)


def test_pairs_of_one_group_count_as_one_pair():
    seen = result()
    pairs = [place // 2 for place in range(12)]
    found = seen.rank("a", paired=pairs, groups=GROUPS, resamples=99)
    assert found.least_p == pytest.approx(2 / 2**3)
    assert torch.allclose(found.score, seen.rank("a", paired=pairs, resamples=0).score)  # groups of one size
    with pytest.raises(DataError, match="must be of one group"):
        seen.rank("a", paired=pairs, groups=list(range(12)))


def test_a_class_of_one_group_is_refused_with_the_remedy():
    seen = result()
    with pytest.raises(DataError, match="one group.*more subjects"):
        seen.rank("a", groups=[label if label == "a" else place for place, label in enumerate(seen.classes)])


def test_stability_draws_groups():
    seen = result()
    one = seen.stability("a", 4, groups=GROUPS, resamples=20)
    assert one.frequency.sum() == pytest.approx(4)
    assert not np.array_equal(one.frequency, seen.stability("a", 4, resamples=20).frequency)


def test_prompts_that_look_alike_are_warned_of_unless_groups_are_given(caplog):
    alike = result([f"What happened in {1900 + place} in Vienna?" for place in range(12)])
    with caplog.at_level(logging.WARNING):
        found = alike.rank("a", resamples=9)
    assert "12 of 12 prompts share most of their words" in caplog.text
    assert "groups=" in caplog.text
    assert found.provenance["near_duplicates"] == 12
    caplog.clear()
    alike.rank("a", resamples=9, groups=GROUPS)
    alike.rank("a", resamples=0)
    assert "share most" not in caplog.text
