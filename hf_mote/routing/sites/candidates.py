"""Which modules of a model look like routers, and which of them no row of the table describes.

A model of transformers names its routers itself, as the source of its `router_logits`
(`PreTrainedModel.can_record_outputs`). Other models are searched for modules that carry the two numbers every row
reads: how many experts there are, and how many are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from hf_mote.errors import UnsupportedError
from hf_mote.routing.rules.families import REFUSED, RULES, Refusal
from hf_mote.routing.rules.registry import rule_for
from hf_mote.routing.rules.rule import RoutingRule

__all__ = ["check_all_listed", "check_none_refused", "declared_router_classes", "unlisted_routers"]

BARE_LINEAR = Refusal(
    "jamba",
    "its router is a bare linear layer, and the block around it chooses the experts",
    "Upgrade to transformers 5.23 or newer, where the router is a module of its own.",
)
WAYS_IN = (
    "hf_mote.register_routers(model) tries the known rules on it; to describe it yourself see 'Adding a family' in "
    "the README."
)


def check_all_listed(model: nn.Module, where: str, *, known: bool) -> None:
    """Raise [`UnsupportedError`] if a model has a router that no row of the table describes.

    Args:
        model (`nn.Module`): The model; nothing of it is run.
        where (`str`): Who asks, for the error.
        known (`bool`): Whether it has routers that the table knows. If not, and it names no routers itself, whatever
            looks like one counts.
    """
    unlisted = _unlisted_names(model)
    _refuse_by_name(unlisted, where)
    if not unlisted and not known:
        unlisted = sorted({type(module).__name__ for module in unlisted_routers(model).values()})
    if unlisted:
        raise UnsupportedError(
            where,
            "the model has a router that no row of the table describes",
            got=unlisted[0],
            expected="a router of the table: see `hf-mote families`",
            fix=WAYS_IN,
        )


def check_none_refused(model: nn.Module, where: str) -> None:
    """Raise [`UnsupportedError`] if a model has a router that is known not to work.

    Args:
        model (`nn.Module`): The model; nothing of it is run.
        where (`str`): Who asks, for the error.
    """
    _refuse_by_name(_unlisted_names(model), where)


def unlisted_routers(model: nn.Module, rules: Sequence[RoutingRule] = RULES) -> dict[str, nn.Module]:
    """Return the innermost modules that look like routers and that no row describes, by their path.

    Args:
        model (`nn.Module`): The model; nothing of it is run.
        rules (`Sequence[RoutingRule]`, *optional*, defaults to the table): Who says what the two numbers are called.
    """
    declared = declared_router_classes(model)
    found = {
        path: module
        for path, module in model.named_modules()
        if rule_for(module) is None
        and not _refused(module)
        and (isinstance(module, declared) or _has_both_numbers(module, rules))
    }
    routers = set(found.values())
    return {
        path: module
        for path, module in found.items()
        if not any(part is not module and (part in routers or rule_for(part)) for part in module.modules())
    }


def declared_router_classes(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """Return the classes that a model's own parts name as the source of `router_logits`.

    Args:
        model (`nn.Module`): The model; nothing of it is run.
    """
    found: set[type[nn.Module]] = set()
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            recorders = module.can_record_outputs.get("router_logits", ())
            for recorder in recorders if isinstance(recorders, list | tuple) else (recorders,):
                target = recorder.target_class if isinstance(recorder, OutputRecorder) else recorder
                if isinstance(target, type):
                    found.add(target)
    return tuple(found)


def _unlisted_names(model: nn.Module) -> list[str]:
    """Classes that are known not to work, or that the model names as its routers and the table lacks; sorted."""
    declared = declared_router_classes(model)
    found: set[str] = set()
    for module in model.modules():
        refused = _refused(module)
        if refused:
            found |= refused
        elif isinstance(module, declared) and not any(rule_for(part) for part in module.modules()):
            found.add(type(module).__name__)
    return sorted(found)


def _refused(module: nn.Module) -> set[str]:
    return REFUSED.keys() & {cls.__name__ for cls in type(module).__mro__}


def _refuse_by_name(unlisted: list[str], where: str) -> None:
    for name in unlisted:
        refusal = REFUSED.get(name, BARE_LINEAR if name == "Linear" else None)
        if refusal is not None:
            raise UnsupportedError(
                where,
                refusal.reason,
                got=name,
                expected="a router of the table: see `hf-mote families`",
                fix=refusal.remedy,
            )


def _has_both_numbers(module: nn.Module, rules: Sequence[RoutingRule]) -> bool:
    """Whether a module has weights, and a number of experts and a number of chosen ones as attributes of its own."""
    return next(module.parameters(), None) is not None and all(
        any(isinstance(getattr(module, name, None), int) for name in names if "." not in name)
        for names in ({rule.num_experts for rule in rules}, {rule.top_k for rule in rules})
    )
