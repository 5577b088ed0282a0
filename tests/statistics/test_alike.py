"""Experts that the same prompts use, against numpy's correlation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hf_mote.errors import DataError
from hf_mote.statistics.alike import most_alike, most_alike_in_blocks


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


@pytest.mark.parametrize("held", [1, 40, 100])
def test_most_alike_is_the_same_whatever_is_held_at_once(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = np.random.default_rng(4).random((20, 11))
    whole = most_alike(shares, [3, 7, 3], 4)
    asked = []

    def columns(start: int, stop: int) -> Any:
        asked.append(stop - start)
        return shares[:, start:stop]

    monkeypatch.setattr("hf_mote.statistics.alike.VALUES_PER_BLOCK", held)
    found = most_alike_in_blocks(columns, shares.shape, [3, 7, 3], 4)
    assert [[other for other, _ in row] for row in found] == [[other for other, _ in row] for row in whole]
    assert np.allclose([r for row in found for _, r in row], [r for row in whole for _, r in row], rtol=1e-12)
    assert max(asked) == max(1, held // 20)
