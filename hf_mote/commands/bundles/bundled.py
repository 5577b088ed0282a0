"""The decorator for commands that take bundles of options."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

__all__ = ["bundled"]


def bundled(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the fields of the dataclasses in its signature as options of its own.

    In `--help` they are listed at the dataclass's place in the signature, with the fields' names. Their defaults are
    the fields', or the values of the instance that the signature gives as default.

    Args:
        command (`Callable`): The function of a command.

    Raises:
        `ValueError`: if two options have one name.
    """
    bundles: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind, given = parameter.annotation, parameter.default
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter)
            continue
        bundles[parameter.name] = kind
        hints = get_type_hints(kind, include_extras=True)
        for one in dataclasses.fields(kind):
            default = one.default if given is inspect.Parameter.empty else getattr(given, one.name)
            default = inspect.Parameter.empty if default is dataclasses.MISSING else default
            parameters.append(
                inspect.Parameter(
                    one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[one.name]
                )
            )
    # Keyword-only, so that options with a default may come before others.
    flat = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, kind in bundles.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in dataclasses.fields(kind)})
        command(**given)

    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run
