"""`ThresholdSearch` against a full sort, for random streams cut at random; `follow` against plain averages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from hf_mote.sae.variants.bases.thresholds import ThresholdSearch, follow

VALUES = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, 2.0]) | st.floats(0, 4, width=32)


@st.composite
def streams(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    """Affinities `(tokens, latents)` and the sizes of the chunks they come in."""
    tokens, latents = draw(st.integers(0, 24)), draw(st.integers(1, 5))
    affinity = torch.from_numpy(draw(arrays("float32", (tokens, latents), elements=VALUES)))
    cuts = sorted(draw(st.lists(st.integers(0, tokens), max_size=6)))
    return affinity, [b - a for a, b in zip([0, *cuts], [*cuts, tokens], strict=True)]


def by_sorting(column: Tensor, budget: int) -> float:
    """The largest entry that is left out, 0 if there is none."""
    ordered = column.sort(descending=True).values
    return float(ordered[budget]) if budget < len(ordered) else 0.0


@given(streams(), st.data())
@settings(deadline=None)
@pytest.mark.parametrize("per_latent", [False, True])
def test_threshold_search_equals_a_full_sort(
    per_latent: bool, stream: tuple[Tensor, list[int]], data: st.DataObject
) -> None:
    affinity, chunks = stream
    tokens, latents = affinity.shape
    groups = latents if per_latent else 1
    # Budgets that grow with the tokens, as those of the architectures do; some of them 0.
    rates = data.draw(st.lists(st.integers(0, 8), min_size=groups, max_size=groups))
    longest = tokens + data.draw(st.integers(0, 10))
    search = ThresholdSearch(lambda n: torch.tensor([rate * n // 8 for rate in rates]), max(longest, 1))
    for chunk in affinity.split(chunks):
        search.add(chunk)
    columns = affinity.T if per_latent else affinity.reshape(1, -1)
    expected = [by_sorting(column, rate * tokens // 8) for column, rate in zip(columns, rates, strict=True)]
    assert search.finish().tolist() == expected


def test_threshold_search_lets_through_exactly_the_budget_where_there_are_no_ties() -> None:
    affinity = torch.rand(500, 7)
    search = ThresholdSearch(lambda n: torch.tensor([2 * n]), 500)
    for chunk in affinity.split(33):
        search.add(chunk)
    assert int((affinity > search.finish()).sum()) == 1000


def test_threshold_search_keeps_no_more_than_it_may_need() -> None:
    search = ThresholdSearch(lambda n: torch.tensor([n // 10]), 1000)
    most = 0
    for _ in range(100):
        search.add(torch.rand(10, 64))
        most = max(most, len(search._values))
    assert search._tokens == 1000
    assert most <= 2 * (100 + 2) + 10 * 64


def test_threshold_search_is_exact_where_rounding_takes_one_from_a_budget_as_tokens_are_added() -> None:
    affinity = torch.arange(40.0).reshape(10, 4)
    search = ThresholdSearch(lambda n: torch.tensor([6 if n <= 10 else 5]), 20)
    for chunk in affinity.split(1):
        search.add(chunk)
        search._prune()
    assert search.finish().tolist() == [33.0]


def test_threshold_search_is_exact_in_float64() -> None:
    affinity = 1 + torch.arange(20, dtype=torch.float64)[:, None] * 1e-12
    search = ThresholdSearch(lambda n: torch.tensor([n // 2]), 20)
    for chunk in affinity.split(3):
        search.add(chunk)
    assert int((affinity > search.finish()).sum()) == 10


def test_threshold_search_leaves_what_it_is_given() -> None:
    affinity = torch.rand(9, 3, requires_grad=True)
    before = affinity.detach().clone()
    search = ThresholdSearch(lambda n: torch.tensor([n]), 9)
    search.add(affinity)
    assert not search.finish().requires_grad
    assert torch.equal(affinity, before)


@given(st.lists(st.floats(0, 4, width=32), min_size=1, max_size=30), st.sampled_from([0.0, 0.5, 0.9, 0.99]))
@settings(deadline=None)
def test_follow_is_the_mean_at_first_and_exponential_then(observed: list[float], decay: float) -> None:
    average, seen = torch.tensor(torch.nan), torch.tensor(0)
    expected = 0.0
    for step, value in enumerate(observed, start=1):
        follow(average, seen, torch.tensor(value), decay)
        rate = max(1 / step, 1 - decay)
        expected += rate * (value - expected)
        assert seen == step
        assert float(average) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_follow_where_nothing_could_be_active_keeps_the_average_or_closes() -> None:
    largest = torch.finfo(torch.float32).max
    average, seen = torch.full((4,), torch.nan), torch.tensor(0)
    inf = torch.inf
    follow(average, seen, torch.tensor([1.0, inf, inf, 0.0]), 0.5)
    assert average.tolist() == [1.0, largest, largest, 0.0]
    follow(average, seen, torch.tensor([inf, inf, 3.0, inf]), 0.5)
    assert average.tolist() == [1.0, largest, 3.0, 0.0]
    follow(average, seen, torch.tensor([3.0, 2.0, 5.0, 4.0]), 0.5)
    assert average.tolist() == [2.0, 2.0, 4.0, 2.0]


def test_follow_keeps_the_dtype_of_the_average() -> None:
    average, seen = torch.tensor(torch.nan, dtype=torch.float64), torch.tensor(0)
    follow(average, seen, torch.tensor(0.1, dtype=torch.float32), 0.9)
    assert average.dtype == torch.float64
    assert seen.dtype == torch.int64
