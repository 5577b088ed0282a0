"""Token, mutual and feature choice against a search over entries one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sae.allocation_reference import feature_choice, mutual_choice, token_choice
from torch import Tensor

from hf_mote.errors import ConfigError

# Few different values, so that there are ties; 0 and negative ones, that are never chosen.
VALUES = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 2.0])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor | None]:
    """Affinities `(tokens, latents)` and a mask of valid tokens, or none."""
    shape = draw(st.tuples(st.integers(0, 6), st.integers(1, 6)))
    affinity = torch.from_numpy(draw(arrays("float32", shape, elements=VALUES)))
    valid = draw(st.none() | st.lists(st.booleans(), min_size=shape[0], max_size=shape[0]))
    return affinity, None if valid is None else torch.tensor(valid, dtype=torch.bool)


def best(entries: list[tuple[int, int]], affinity: Tensor, valid: Tensor | None, budget: int) -> set[tuple[int, int]]:
    """The `budget` first entries by falling affinity, then by index, of those that may be chosen at all."""
    allowed = [(t, i) for t, i in entries if affinity[t, i] > 0 and (valid is None or bool(valid[t]))]
    return set(sorted(allowed, key=lambda entry: (-float(affinity[entry]), entry))[:budget])


def chosen(mask: Tensor) -> set[tuple[int, int]]:
    return {(int(t), int(i)) for t, i in mask.nonzero()}


@given(cases(), st.data())
@settings(deadline=None)
def test_token_choice_equals_search(case: tuple[Tensor, Tensor | None], data: st.DataObject) -> None:
    affinity, valid = case
    tokens, latents = affinity.shape
    k = data.draw(st.integers(0, latents))
    expected = [best([(t, i) for i in range(latents)], affinity, valid, k) for t in range(tokens)]
    mask = token_choice(affinity, k, valid=valid)
    assert mask.dtype == torch.bool
    assert mask.shape == affinity.shape
    assert chosen(mask) == set().union(*expected)


@given(cases(), st.data())
@settings(deadline=None)
def test_mutual_choice_equals_search(case: tuple[Tensor, Tensor | None], data: st.DataObject) -> None:
    affinity, valid = case
    budget = data.draw(st.integers(0, affinity.numel()))
    entries = [(t, i) for t in range(affinity.shape[0]) for i in range(affinity.shape[1])]
    assert chosen(mutual_choice(affinity, budget, valid=valid)) == best(entries, affinity, valid, budget)


@given(cases(), st.data())
@settings(deadline=None)
def test_feature_choice_equals_search(case: tuple[Tensor, Tensor | None], data: st.DataObject) -> None:
    affinity, valid = case
    tokens, latents = affinity.shape
    budgets = data.draw(st.lists(st.integers(0, tokens), min_size=latents, max_size=latents))
    expected = [best([(t, i) for t in range(tokens)], affinity, valid, budgets[i]) for i in range(latents)]
    mask = feature_choice(affinity, torch.tensor(budgets), valid=valid)
    assert mask.shape == affinity.shape
    assert chosen(mask) == set().union(*expected)


@given(cases())
@settings(deadline=None)
def test_choices_meet_where_the_budget_leaves_no_choice(case: tuple[Tensor, Tensor | None]) -> None:
    affinity, valid = case
    tokens, latents = affinity.shape
    everything = token_choice(affinity, latents, valid=valid)
    assert torch.equal(everything, mutual_choice(affinity, tokens * latents, valid=valid))
    assert torch.equal(everything, feature_choice(affinity, torch.full((latents,), tokens), valid=valid))
    assert not bool(token_choice(affinity, 0).any() | mutual_choice(affinity, 0).any())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_choices_take_any_float_dtype(dtype: torch.dtype) -> None:
    affinity = torch.tensor([[1.0, 3.0, 2.0], [0.5, 0.0, 4.0]], dtype=dtype)
    assert token_choice(affinity, 1).tolist() == [[False, True, False], [False, False, True]]
    assert mutual_choice(affinity, 3).tolist() == [[False, True, True], [False, False, True]]
    assert feature_choice(affinity, torch.tensor([1, 2, 1])).tolist() == [[True, True, False], [False, False, True]]


def test_choices_leave_their_arguments() -> None:
    affinity, valid = torch.tensor([[1.0, 3.0], [0.5, 4.0]]), torch.tensor([True, False])
    given_affinity, budgets = affinity.clone(), torch.tensor([1, 2])
    token_choice(affinity, 1, valid=valid)
    mutual_choice(affinity, 2, valid=valid)
    feature_choice(affinity, budgets, valid=valid)
    assert torch.equal(affinity, given_affinity)
    assert budgets.tolist() == [1, 2]
    assert valid.tolist() == [True, False]


@pytest.mark.parametrize(("k", "reason"), [(-1, r"got -1, expected 0\.\.3"), (4, r"got 4, expected 0\.\.3")])
def test_token_choice_k_out_of_range_is_refused(k: int, reason: str) -> None:
    with pytest.raises(ConfigError, match=rf"token_choice: k: out of range \({reason}\)"):
        token_choice(torch.ones(2, 3), k)


@pytest.mark.parametrize("budget", [-1, 7])
def test_mutual_choice_budget_out_of_range_is_refused(budget: int) -> None:
    with pytest.raises(ConfigError, match=rf"mutual_choice: budget: out of range \(got {budget}, expected 0\.\.6\)"):
        mutual_choice(torch.ones(2, 3), budget)


@pytest.mark.parametrize("wrong", [-1, 3])
def test_feature_choice_budget_out_of_range_is_refused_with_its_latent(wrong: int) -> None:
    with pytest.raises(ConfigError, match=rf"budgets\[1\]: out of range \(got {wrong}, expected 0\.\.2\)"):
        feature_choice(torch.ones(2, 3), torch.tensor([2, wrong, 0]))


def test_feature_choice_needs_a_budget_for_each_latent() -> None:
    for wrong in (torch.tensor([1, 1]), torch.tensor([[1], [1], [1]]), torch.tensor(1)):
        with pytest.raises(ConfigError, match=r"feature_choice: budgets: wrong shape .*expected \(3,\)"):
            feature_choice(torch.ones(2, 3), wrong)
