"""Every test of this folder draws the same numbers at every run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Seed torch, and give back the state it had."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
