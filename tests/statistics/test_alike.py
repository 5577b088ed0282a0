"""Experts that the same prompts use, against numpy's correlation."""

from __future__ import annotations

import numpy as np
import pytest

from hf_mote.errors import DataError
from hf_mote.statistics.alike import most_alike


def test_most_alike_is_pearson_correlation_highest_first() -> None:
    shares = np.random.default_rng(0).random((9, 12))
    expected = np.corrcoef(shares, rowvar=False)
    for column, found in zip((3, 7), most_alike(shares, [3, 7], 4), strict=True):
        order = [other for other in np.argsort(-expected[column]) if other != column][:4]
        assert [other for other, _ in found] == [other for other in order if expected[column, other] > 0]
        for other, r in found:
            assert r == pytest.approx(expected[column, other])


def test_most_alike_of_a_column_that_stays_the_same_is_empty() -> None:
    shares = np.array([[0.1, 0.2, 0.3], [0.1, 0.4, 0.5], [0.1, 0.1, 0.2]])
    assert most_alike(shares, [0], 2) == [[]]
    assert [other for other, _ in most_alike(shares, [1], 2)[0]] == [2]


def test_most_alike_of_two_prompts_is_refused() -> None:
    with pytest.raises(DataError, match="most_alike"):
        most_alike(np.ones((2, 4)), [0], 1)
