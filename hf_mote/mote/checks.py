"""Checks that a config fits a model and what is attached to it, and that every token keeps enough experts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from hf_mote.errors import ModelMismatchError, UnsupportedError
from hf_mote.hooks import stack_on
from hf_mote.mote.fields import TARGETS
from hf_mote.routing.router_hook import RouterHook, RoutingEditor
from hf_mote.routing.sites.fingerprint import check_fingerprint
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.routing.sites.site import RouterSite
from hf_mote.routing.sites.special_outputs import refusals_of

__all__ = ["SiteEditor", "check_against_model", "check_router", "check_together"]

INTERVENTIONS = ("drop", "reroute", "zero", "stimulate", "bias_on_logits", "bias_on_selection", "gain")


class Intended(Protocol):
    """A protocol: the fields of `MoTEConfig` that have to fit a model."""

    @property
    def fingerprint(self) -> dict[str, Any] | None: ...
    @property
    def unverified(self) -> str | None: ...
    @property
    def suppress(self) -> Sequence[Sequence[int]]: ...
    @property
    def stimulate(self) -> Sequence[Sequence[int]]: ...
    @property
    def bias(self) -> Sequence[Sequence[Any]]: ...
    @property
    def gain(self) -> Sequence[Sequence[Any]]: ...
    @property
    def suppress_mode(self) -> str: ...
    @property
    def stimulate_weight(self) -> str | float: ...
    @property
    def bias_on(self) -> str: ...


class SitePart(Protocol):
    """A protocol: which experts of one router something attached acts on."""

    @property
    def row(self) -> int | None: ...
    @property
    def suppressed(self) -> Collection[int]: ...
    @property
    def stimulated(self) -> Collection[int]: ...
    @property
    def scaled(self) -> Collection[int]: ...
    @property
    def rerouted(self) -> bool: ...


class SiteEditor(RoutingEditor):
    """A participant on a router that names the experts it acts on."""

    parts: Sequence[SitePart]


def check_against_model(config: Intended, routed: RoutedModel) -> None:
    """Raise [`ModelMismatchError`] unless a config fits a model.

    Args:
        config (`MoTEConfig`): What is intended.
        routed (`RoutedModel`): The model it meets; not touched.
    """
    if config.unverified is not None:
        raise ModelMismatchError(
            "MoTEConfig.unverified",
            "it is unknown whether the config is for this model",
            got=config.unverified.rstrip("."),
            fix="To try it anyway pass allow_other_weights=True (--allow-other-weights); what is measured then "
            "says so.",
        )
    if config.fingerprint is not None:
        check_fingerprint(config.fingerprint, routed.fingerprint, routed.sites, where="MoTEConfig.fingerprint")
    by_layer = {site.layer: site for site in routed.sites}
    targets: dict[str, dict[int, set[int]]] = {name: defaultdict(set) for name in TARGETS}
    for name, layers in targets.items():
        for layer, expert, *_ in getattr(config, name):
            _check_exists(name, layer, expert, by_layer)
            layers[layer].add(expert)
    for site in routed.sites:
        touched = any(targets[name][site.layer] for name in targets)
        if touched:
            _check_router_can(config, site, targets)
        check_router(
            site,
            suppressed=targets["suppress"][site.layer],
            stimulated=targets["stimulate"][site.layer],
            scaled=targets["gain"][site.layer],
            rerouted=config.suppress_mode == "reroute",
        )


def check_router(
    site: RouterSite,
    *,
    suppressed: Collection[int],
    stimulated: Collection[int],
    scaled: Collection[int] = (),
    rerouted: bool,
) -> None:
    """Raise [`ModelMismatchError`] unless a router can still give every token its experts.

    Args:
        site (`RouterSite`): The router.
        suppressed (`Collection[int]`): Its suppressed experts.
        stimulated (`Collection[int]`): Its stimulated experts.
        scaled (`Collection[int]`, *optional*): Its experts that have a gain.
        rerouted (`bool`): Whether others take the slots of the suppressed ones, within the group limit.
    """
    where = f"layer {site.layer} ({site.path})"
    both = sorted(set(suppressed) & set(stimulated))
    if both:
        raise ModelMismatchError(where, "an expert is both suppressed and stimulated", got=both[0])
    for what, others in (("suppressed", suppressed), ("stimulated", stimulated)):
        both = sorted(set(scaled) & set(others))
        if both:
            raise ModelMismatchError(where, f"an expert has a gain and is {what}", got=both[0])
    survivors = site.num_experts - len(suppressed)
    if survivors < site.top_k:
        raise ModelMismatchError(
            where,
            "too few experts are left",
            got=f"{survivors} of {site.num_experts} after suppressing {len(suppressed)}",
            expected=f"at least {site.top_k}, as many as each token is routed to",
            fix="Suppress fewer experts of this layer.",
        )
    if len(stimulated) > site.top_k:
        raise ModelMismatchError(
            where,
            "more experts are stimulated than a token has slots",
            got=len(stimulated),
            expected=f"at most {site.top_k}",
            fix="Stimulate fewer experts of this layer.",
        )
    selection = site.selection
    if rerouted and suppressed and selection.num_groups > 1:
        size = site.num_experts // selection.num_groups
        left = [size - sum(expert // size == group for expert in suppressed) for group in range(selection.num_groups)]
        fewest = sum(sorted(left)[: selection.groups_kept])
        if fewest < site.top_k:
            raise ModelMismatchError(
                where,
                "the groups that a token is limited to could hold fewer experts than its top-k",
                got=f"{fewest} experts in the {selection.groups_kept} groups with the fewest survivors",
                expected=f"at least {site.top_k}",
                fix="Suppress fewer experts of the same group, or use suppress_mode 'drop' or 'zero'.",
            )


def check_together(site: RouterSite, parts: Sequence[SitePart]) -> None:
    """Raise [`ModelMismatchError`] unless what is to be attached fits together with what is attached to a router.

    Args:
        site (`RouterSite`): The router.
        parts (`Sequence[SitePart]`): What is to be attached to it.
    """
    stack = stack_on(site.module, RouterHook)
    attached = () if stack is None else stack.participants
    others = [part for editor in attached if isinstance(editor, SiteEditor) for part in editor.parts]
    for part in parts:
        rivals = [other for other in others if part.row is None or other.row is None or part.row == other.row]
        if rivals:
            meeting = [part, *rivals]
            check_router(
                site,
                suppressed=set().union(*(p.suppressed for p in meeting)),
                stimulated=set().union(*(p.stimulated for p in meeting)),
                scaled=set().union(*(p.scaled for p in meeting)),
                rerouted=any(p.rerouted for p in meeting),
            )


def _check_router_can(config: Intended, site: RouterSite, targets: dict[str, dict[int, set[int]]]) -> None:
    """Refuse edits that this kind of router cannot do."""
    wanted: dict[str, bool] = {
        config.suppress_mode: bool(targets["suppress"][site.layer]),
        "stimulate": bool(targets["stimulate"][site.layer]),
        "stimulate_weight": bool(targets["stimulate"][site.layer]) and config.stimulate_weight != "own",
        f"bias_on_{config.bias_on}": bool(targets["bias"][site.layer]),
        "gain": bool(targets["gain"][site.layer]),
    }
    refusals = refusals_of(site)
    for what, reason in refusals.items():
        if wanted.get(what):
            raise UnsupportedError(
                f"layer {site.layer} ({site.path})",
                f"{type(site.module).__name__} cannot {what.replace('_', ' ')}: {reason}",
                got=what,
                fix=f"What it can: {', '.join(can for can in INTERVENTIONS if can not in refusals)}.",
            )


def _check_exists(name: str, layer: int, expert: int, by_layer: dict[int, RouterSite]) -> None:
    site = by_layer.get(layer)
    if site is None:
        raise ModelMismatchError(
            f"MoTEConfig.{name}",
            f"layer {layer} has no routed experts",
            got=layer,
            expected=f"one of the layers {_ranges(sorted(by_layer))}",
            fix="Layers are absolute decoder layers; dense layers count, but have no experts.",
        )
    if expert >= site.num_experts:
        raise ModelMismatchError(
            f"MoTEConfig.{name}",
            f"expert {expert} at layer {layer} does not exist",
            got=expert,
            expected=f"0..{site.num_experts - 1}",
            fix="Experts are indices within their layer; shared experts are never targets.",
        )


def _ranges(layers: list[int]) -> str:
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{part[0]}..{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
