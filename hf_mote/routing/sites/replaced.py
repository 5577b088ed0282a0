"""Replaced parts of a model: forwards, routers, blocks.

A forward is the class's own if it was defined in the module that defines the class; wrappers of accelerate are
ignored. The modules that should be there are those of the model's own class, which is built again without weights.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mote.routing.rules.registry import rule_for

__all__ = ["Missing", "missing_routers", "replaced_forward", "say_once"]

logger = logging.getLogger(__name__)


class Missing(NamedTuple):
    """A router that a model's own class has and the model has not.

    Attributes:
        path (`str`): The router's dotted path.
        router (`str`): The class of the router that should be there.
        place (`str`): The outermost path up to it that holds another module.
        expected (`str`): The expected class at that path.
        found (`str`): What is there; `"nothing"` if there is no such module.
    """

    path: str
    router: str
    place: str
    expected: str
    found: str


def replaced_forward(module: nn.Module) -> str | None:
    """Return the dotted name of a module's replaced forward, or `None` if it is its class's own.

    Args:
        module (`nn.Module`): The module. It is not run.
    """
    held = vars(module)
    given = held.get("forward")
    if given is not None and "_hf_hook" in held:
        given = held.get("_old_forward")  # accelerate keeps what it has wrapped
    if given is not None:
        own = _function(given)
        bases = [_function(vars(cls)["forward"]) for cls in type(module).__mro__ if "forward" in vars(cls)]
        if own in bases and getattr(given, "__self__", module) is module:
            given = None
        else:
            return _name(own)
    for cls in type(module).__mro__:
        if "forward" in vars(cls):
            own = _function(vars(cls)["forward"])
            return None if _defined_in(own) == cls.__module__ else _name(own)
    return None


def missing_routers(model: nn.Module) -> list[Missing]:
    """Return the routers of the table that a model's own class has and the model has not, in the class's order.

    Args:
        model (`nn.Module`): The model. Its class is built on the meta device; the model is not run.
    """
    found: list[Missing] = []
    for prefix, part in _outermost(model):
        try:
            own = _skeleton(part)
        except Exception:  # foreign classes may raise any error
            continue
        live, written = dict(part.named_modules()), dict(own.named_modules())
        for path, router in written.items():
            if rule_for(router) is None or (path in live and rule_for(live[path]) is not None):
                continue
            names = path.split(".")
            places = [".".join(names[: end + 1]) for end in range(len(names))]
            place = next((at for at in places if at not in live or _is_other(live[at], written[at])), path)
            held = type(live[place]).__name__ if place in live else "nothing"
            found.append(
                Missing(
                    f"{prefix}{path}", type(router).__name__, f"{prefix}{place}", type(written[place]).__name__, held
                )
            )
    return found


@functools.cache
def say_once(message: str) -> None:
    """Log a warning, once in a process.

    Args:
        message (`str`): The warning.
    """
    logger.warning(message)


def _is_other(live: nn.Module, written: nn.Module) -> bool:
    return type(live) is not type(written) and not isinstance(live, type(written))


def _outermost(model: nn.Module) -> Iterator[tuple[str, PreTrainedModel]]:
    """The models of transformers that are not inside another one, each with its path and a dot."""
    seen: list[str] = []
    for path, part in model.named_modules():
        if isinstance(part, PreTrainedModel) and not any(not at or path.startswith(f"{at}.") for at in seen):
            seen.append(path)
            yield (f"{path}." if path else ""), part


def _skeleton(part: PreTrainedModel) -> nn.Module:
    """The model as its class builds it, without weights and without a trace in torch's random state."""
    config = copy.deepcopy(part.config)
    with torch.random.fork_rng([]), torch.device("meta"):
        skeleton: nn.Module = type(part)(config)
    return skeleton


def _function(given: Any) -> Callable[..., Any]:
    """The function behind a method, a partial or a staticmethod."""
    while True:
        if hasattr(given, "__func__"):
            given = given.__func__
        elif hasattr(given, "func") and not inspect.isfunction(given):
            given = given.func
        else:
            return given  # type: ignore[no-any-return]


def _defined_in(function: Any) -> str:
    """The module in which a function, or the function that it wraps, is defined."""
    return str(getattr(function, "__module__", None) or "")


def _name(function: Any) -> str:
    where = _defined_in(function)
    name = getattr(function, "__qualname__", type(function).__name__)
    return f"{where}.{name}".lstrip(".")
