"""Which rule a router class follows: a row of the table, or one that was registered."""

from __future__ import annotations

import functools

import transformers
from packaging.version import Version
from torch import nn

from hf_mote.errors import ConfigError
from hf_mote.routing.rules.families import REFUSED, RULES, Refusal
from hf_mote.routing.rules.rule import RoutingRule

__all__ = ["forget_rule", "refusals_here", "register_rule", "rule_for"]

_REGISTERED: dict[type[nn.Module], tuple[RoutingRule, ...]] = {}


def rule_for(module: nn.Module) -> RoutingRule | None:
    """Return the row that a module's class follows, or `None`.

    The class is looked up along the whole method resolution order, because PEFT and torch's parametrisations replace
    the runtime class by a generated subclass.

    Args:
        module (`nn.Module`): Any module.
    """
    for cls in type(module).__mro__:
        # A registration does not hold for a subclass with another forward.
        registered = _REGISTERED.get(cls, ()) if type(module).forward is getattr(cls, "forward", None) else ()
        for rule in (*registered, *_rules_of_table(cls)):
            if rule.when is None or getattr(module, rule.when[0], None) == rule.when[1]:
                return rule
    return None


def refusals_here() -> dict[str, Refusal]:
    """Return the refusals that hold for the installed transformers, by class."""
    return _refusals_of(transformers.__version__)


def register_rule(router: type[nn.Module], rule: RoutingRule) -> None:
    """Make a router class follow a rule, for the rest of the process.

    Args:
        router (`type[nn.Module]`): The class; subclasses with the same forward are included.
        rule (`RoutingRule`): The rule.

    Raises:
        [`ConfigError`]: if the class follows a rule already, and not one for another value of a config flag.
    """
    for other in _rules_of(router):
        if rule.when is None or other.when is None or other.when == rule.when:
            raise ConfigError(
                f"register_rule({router.__name__})",
                "the class follows a rule already",
                got=rule.name,
                expected=other.name,
            )
    _REGISTERED[router] = (*_REGISTERED.get(router, ()), rule)


def forget_rule(router: type[nn.Module], rule: RoutingRule) -> None:
    """Undo [`register_rule`]."""
    left = tuple(other for other in _REGISTERED.get(router, ()) if other is not rule)
    if left:
        _REGISTERED[router] = left
    else:
        _REGISTERED.pop(router, None)


def _rules_of(cls: type) -> tuple[RoutingRule, ...]:
    return (*_REGISTERED.get(cls, ()), *_rules_of_table(cls))


def _rules_of_table(cls: type) -> tuple[RoutingRule, ...]:
    if not cls.__module__.startswith("transformers.models."):
        return ()
    return tuple(rule for rule in RULES if cls.__name__ in rule.routers)


@functools.cache
def _refusals_of(version: str) -> dict[str, Refusal]:
    here = Version(version)
    return {name: one for name, one in REFUSED.items() if one.before is None or here < Version(one.before)}
