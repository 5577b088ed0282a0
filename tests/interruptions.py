"""Work stopped at a pass of the model and begun again, held against work that nobody stopped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from transformers import PreTrainedModel

__all__ = ["check_resumes", "passes_of"]


class Passes:
    """How many passes a model has made."""

    made = 0


@contextmanager
def passes_of(model: PreTrainedModel | type, *, stop_at: int | None = None) -> Iterator[Passes]:
    """Count the passes of a model, or of all of a class; the one of that number raises KeyboardInterrupt instead."""
    kind: Any = model if isinstance(model, type) else type(model)
    native, passes = kind.forward, Passes()

    @functools.wraps(native)
    def forward(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        if self is model or kind is model:
            passes.made += 1
            if passes.made == stop_at:
                raise KeyboardInterrupt
        return native(self, *args, **kwargs)

    # Of the class, since a forward of the object's own could not be told from an intervention.
    kind.forward = forward
    try:
        # A command looks at a model that it has loaded by one pass, which is not of its run.
        with patch("hf_mote.commands.model.check_logits"):
            yield passes
    finally:
        kind.forward = native


def check_resumes(
    run: Callable[[Path | None], Any],
    model: PreTrainedModel,
    folder: Path,
    *,
    same: Callable[[Any, Any], bool] = lambda one, other: bool(one == other),
    points: int = 4,
) -> Any:
    """Stop a run at several passes, each in a folder of its own, and several times in one; return what it gives.

    Every run that goes on must give exactly what one without a folder gives, and make no pass that was kept.
    """
    with passes_of(model) as passes:
        whole = run(None)
    plain = passes.made
    with passes_of(model) as passes:
        assert same(run(folder / "whole"), whole)
    total = passes.made
    assert total <= plain  # fewer where the same is asked for twice
    with passes_of(model) as passes:
        assert same(run(folder / "whole"), whole)
    assert passes.made == 0
    for number in range(points):
        stop = max(1, total * (2 * number + 1) // (2 * points))
        place = folder / f"stopped-{number}"
        with passes_of(model, stop_at=stop), pytest.raises(KeyboardInterrupt):
            run(place)
        with passes_of(model) as passes:
            assert same(run(place), whole)
        assert passes.made <= total
        # The last one had some of the work done.
        assert number < points - 1 or passes.made < total
    place, attempts = folder / "often", 0
    while True:
        attempts += 1
        assert attempts < 40
        try:
            with passes_of(model, stop_at=max(2, total // 3)):
                found = run(place)
            break
        except KeyboardInterrupt:
            continue
    assert attempts > 1
    assert same(found, whole)
    return whole
