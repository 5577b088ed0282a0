"""Progress told to a listener, as in a log file, in the place of bars."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hf_mote import progress
from hf_mote.progress import listen_to_progress, progress_bar


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


@pytest.fixture
def told() -> Iterator[list[tuple[str, int, int, float]]]:
    calls: list[tuple[str, int, int, float]] = []
    listen_to_progress(lambda *seen: calls.append(seen))
    yield calls
    listen_to_progress(None)


def test_listener_is_told_after_half_a_minute_and_then_each_minute(
    clock: Clock, told: list[tuple[str, int, int, float]]
) -> None:
    with progress_bar(total=20, desc="evaluating") as bar:
        for step in range(1, 21):
            clock.now = 10.0 * step
            bar.update()
    assert told == [
        ("evaluating", 3, 20, 170.0),
        ("evaluating", 9, 20, 110.0),
        ("evaluating", 15, 20, 50.0),
    ]


def test_long_work_is_told_of_at_most_fifty_times(clock: Clock, told: list[tuple[str, int, int, float]]) -> None:
    bar = progress_bar(total=10_000, desc="imaging")
    for step in range(1, 10_001):
        clock.now = 10.0 * step
        bar.update()
    assert len(told) == 50
    assert told[1] == ("imaging", 203, 10_000, pytest.approx(97_970.0))


def test_what_was_kept_by_an_earlier_run_makes_no_later_estimate_too_small(
    clock: Clock, told: list[tuple[str, int, int, float]]
) -> None:
    bar = progress_bar(total=100, desc="evaluating")
    bar.update(50)
    for step in range(1, 10):
        clock.now = 10.0 * step
        bar.update()
    assert told[-1] == ("evaluating", 59, 100, pytest.approx(410.0))


def test_short_and_disabled_work_is_not_told_of(clock: Clock, told: list[tuple[str, int, int, float]]) -> None:
    for entry in progress_bar([1, 2, 3], desc="off target"):
        clock.now += entry
    with progress_bar(total=9, desc="imaging", disable=True) as bar:
        clock.now += 100.0
        bar.update()
    assert told == []
