"""Modules of a model that look like routers, and which of them the table lacks.

A model of transformers names its routers as the source of its `router_logits`
(`PreTrainedModel.can_record_outputs`). Other models are searched for modules that carry the two numbers every row
reads: how many experts there are, and how many are chosen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from hf_mote.errors import UnsupportedError
from hf_mote.routing.rules.families import RULES
from hf_mote.routing.rules.registry import refusals_here, rule_for
from hf_mote.routing.rules.rule import RoutingRule

__all__ = [
    "check_all_listed",
    "check_is_model",
    "check_none_refused",
    "declared_router_classes",
    "offer_by",
    "unlisted_routers",
    "what_it_has_instead",
]

WAYS_IN = (
    "hf_mote.register_routers(model) tries the known rules on it; to describe it yourself see 'Add a model family' in "
    "the documentation."
)
_EXPERTS = re.compile(r"experts?(\.\d+)?$", re.IGNORECASE)
_GATE = re.compile(r"(gate|router|wg)$")

_offers: list[Callable[[nn.Module], str | None]] = []


def offer_by(offer: Callable[[nn.Module], str | None]) -> None:
    """Set a function that returns a sentence on how to register an unlisted router of a model, or `None`.

    Args:
        offer (`Callable[[nn.Module], str | None]`): The function; it is called when such a model is refused.
    """
    _offers.append(offer)


def check_is_model(model: object, where: str) -> None:
    """Raise [`UnsupportedError`] unless something is a module; of what holds one, as a pipeline does, it says so.

    Args:
        model (`object`): What was given.
        where (`str`): The argument, for the error.
    """
    if isinstance(model, nn.Module):
        return
    holds = [name for name in ("model", "module") if isinstance(getattr(model, name, None), nn.Module)]
    raise UnsupportedError(
        where,
        f"not a model, but it holds one as .{holds[0]}" if holds else "not a model",
        got=type(model).__name__,
        expected="an nn.Module",
        fix=f"Give its .{holds[0]}." if holds else None,
    )


def check_all_listed(model: nn.Module, where: str, *, known: bool) -> None:
    """Raise [`UnsupportedError`] if a model has a router that no row of the table describes.

    Args:
        model (`nn.Module`): The model; it is not run.
        where (`str`): The caller, for the error.
        known (`bool`): Whether it has routers that the table knows. If not, and it names no routers itself,
            every module that looks like one counts.
    """
    unlisted = _unlisted_names(model)
    _refuse_by_name(unlisted, where)
    if not known:
        _refuse_bare_gates(model, where)
    if not unlisted and not known:
        unlisted = sorted({type(module).__name__ for module in unlisted_routers(model).values()})
    if unlisted:
        raise UnsupportedError(
            where,
            "the model has a router that no row of the table describes",
            got=unlisted[0],
            expected="a router of the table: see `hf-mote families`",
            fix=next((text for offer in _offers if (text := offer(model)) is not None), WAYS_IN),
        )


def check_none_refused(model: nn.Module, where: str) -> None:
    """Raise [`UnsupportedError`] if a model has a router that is known not to work.

    Args:
        model (`nn.Module`): The model; it is not run.
        where (`str`): The caller, for the error.
    """
    _refuse_by_name(_unlisted_names(model), where)
    _refuse_bare_gates(model, where)


def what_it_has_instead(model: nn.Module) -> str:
    """Return a sentence on a model without routers: dense, or with experts that are chosen in another way.

    Args:
        model (`nn.Module`): The model; it is not run.
    """
    for path, part in (*model.named_modules(), *model.named_parameters()):
        if _EXPERTS.search(path) or _EXPERTS.search(type(part).__name__):
            return (
                f"It has what looks like experts, {path or 'itself'} ({type(part).__name__}), and no module that "
                "looks like their router; see 'Add a model family' in the documentation."
            )
    return "A dense model has no experts to tune; for another family see 'Add a model family' in the documentation."


def unlisted_routers(model: nn.Module, rules: Sequence[RoutingRule] = RULES) -> dict[str, nn.Module]:
    """Return the innermost modules that look like routers and that the table lacks, by their path.

    Args:
        model (`nn.Module`): The model; it is not run.
        rules (`Sequence[RoutingRule]`, *optional*, defaults to the table): Rules with the names of the two numbers.
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
        model (`nn.Module`): The model; it is not run.
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
    return refusals_here().keys() & {cls.__name__ for cls in type(module).__mro__}


def _refuse_by_name(unlisted: list[str], where: str) -> None:
    refusals = refusals_here()
    for name in unlisted:
        refusal = refusals.get(name)
        if refusal is not None:
            raise UnsupportedError(
                where,
                refusal.full_reason,
                got=name,
                expected="a router of the table: see `hf-mote families`",
                fix=refusal.remedy,
            )


def _refuse_bare_gates(model: nn.Module, where: str) -> None:
    """Refuse a model in which a block of experts has a plain linear layer as its only router."""
    routers = set(unlisted_routers(model).values())
    for path, block in model.named_modules():
        parts = dict(block.named_children())
        gates = [name for name, part in parts.items() if _GATE.match(name) and type(part) is nn.Linear]
        if not gates or "experts" not in parts:
            continue
        others = [part for name, child in parts.items() if name != "experts" for part in child.modules()]
        if any(part in routers or rule_for(part) is not None for part in others):
            continue
        raise UnsupportedError(
            where,
            "its router is a bare linear layer, and the block around it chooses the experts",
            got=f"{path}.{gates[0]}, a Linear in a {type(block).__name__}",
            expected="a router that is a module of its own, and returns logits, weights and indices",
            fix="If transformers has a class of its own for this model, or a newer release has one, load that one.",
        )


def _has_both_numbers(module: nn.Module, rules: Sequence[RoutingRule]) -> bool:
    """Whether a module has weights, and a number of experts and a number of chosen ones as attributes of its own."""
    return next(module.parameters(), None) is not None and all(
        any(isinstance(getattr(module, name, None), int) for name in names if "." not in name)
        for names in ({rule.num_experts for rule in rules}, {rule.top_k for rule in rules})
    )
