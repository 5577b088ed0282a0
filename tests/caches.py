"""Caches by what they are: transformers has renamed the argument and the field that carry them."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import Cache

__all__ = ["cache_of", "taking"]


def cache_of(output: Any) -> Cache:
    """The cache in a model's output."""
    return next(value for value in output.values() if isinstance(value, Cache))


def taking(model: nn.Module, cache: object) -> dict[str, Any]:
    """The argument of a model's forward that takes a cache."""
    known = inspect.signature(model.forward).parameters
    return {next(name for name in ("cache", "past_key_values") if name in known): cache}
