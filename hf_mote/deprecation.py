"""Earlier names of arguments: they work for one release, with a `DeprecationWarning`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hf_mote.errors import ConfigError

__all__ = ["renamed_arguments"]

P = ParamSpec("P")
R = TypeVar("R")


def renamed_arguments(**names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator by which a function takes the earlier names of its arguments too.

    Args:
        **names (`str`): The present name of each argument, by its earlier one.

    Raises:
        [`ConfigError`]: by the function, if an argument is given by both of its names.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def taking_earlier_names(*args: P.args, **kwargs: P.kwargs) -> R:
            for earlier in names.keys() & kwargs.keys():
                present, where = names[earlier], f"{function.__name__}.{earlier}"
                if present in kwargs:
                    raise ConfigError(where, f"is the earlier name of {present}, which is given too")
                warnings.warn(f"{where} is deprecated: use {present}.", DeprecationWarning, stacklevel=2)
                kwargs[present] = kwargs.pop(earlier)
            return function(*args, **kwargs)

        return taking_earlier_names

    return decorate
