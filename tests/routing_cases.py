"""What tests of routing share: greedy decoding, hooks counted, and fixtures for a module that imports them.

A module that imports `no_gradients` or `nothing_registered` has all its tests run so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from hf_mote.routing.rules import registry

__all__ = ["GREEDY", "no_gradients", "nothing_registered", "num_hooks"]

GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """Run the tests of the module without gradients."""
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test of the module without registered routers, and forget those that it registers."""
    monkeypatch.setattr(registry, "_REGISTERED", {})


def num_hooks(model: nn.Module) -> int:
    """Return how many hooks hang on a model, of whatever kind."""
    return sum(len(getattr(module, name)) for module in model.modules() for name in _HOOKS)
