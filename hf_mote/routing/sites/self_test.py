"""Self-test of a router: its rule must give its own selection from its own logits, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor

from hf_mote.errors import RouterContractError
from hf_mote.routing.rules.edits import RoutingEdit
from hf_mote.routing.rules.selection import Routing
from hf_mote.routing.sites.output import RouterOutput
from hf_mote.routing.sites.packed import feed_of, packed_parts
from hf_mote.routing.sites.replaced import replaced_forward, say_once
from hf_mote.routing.sites.scratch_copy import scratch_copy
from hf_mote.routing.sites.site import BLOCK, RouterSite
from hf_mote.routing.sites.special_outputs import adapter_for

__all__ = ["check_identity", "probe_args", "self_test"]

PROBE_TOKENS = 64
# Tolerance for a replaced router, usually a fused kernel, which adds up in another order.
TOLERANCE = 1e-5


def self_test(site: RouterSite) -> RouterOutput | None:
    """Check that a router reproduces its own selection from its own logits, and return its output's adapter.

    The router's forward alone runs on seeded random input, that of a registered router on a copy; no hook fires, and
    neither the router nor torch's random state is changed.
    Returns `None` for a router that cannot run by itself: on the meta device, or with its weights in shards.

    Args:
        site (`RouterSite`): The router.

    Raises:
        [`RouterContractError`]: if weights or indices differ in a single bit.
    """
    # A router of the table changes nothing when it runs. A registered one may, and packed weights may choose a layout
    # or a dtype in their first run.
    listed = any(cls.__name__ in site.rule.routers for cls in type(site.module).__mro__)
    in_place = listed and not packed_parts(site.module)
    with torch.no_grad(), align_module_device(site.module) if in_place else scratch_copy(site.module) as scratch:
        router = site.module if scratch is None else scratch
        held = [*router.parameters(), *router.buffers()]
        if any(tensor.is_meta or hasattr(tensor, "full_tensor") for tensor in held):
            return None
        feed = feed_of(router, site.block)
        hidden = torch.randn(PROBE_TOKENS, feed.width, generator=torch.Generator().manual_seed(0))
        args = probe_args(site, hidden.to(feed.device, feed.dtype))
        output = router.forward(*args)
        adapter = adapter_for(site, output)
        check_identity(adapter, output, args)
    return adapter


def probe_args(site: RouterSite, hidden: Tensor) -> tuple[Any, ...]:
    """Return the arguments of a router's forward for hidden states.

    Args:
        site (`RouterSite`): The router.
        hidden (`torch.Tensor` of shape `(tokens, hidden_size)`): Hidden states, in the router's dtype.
    """
    args: tuple[Any, ...] = (hidden[None] if site.rule.probe == "batched" else hidden,)
    if site.rule.probe == "with_ids":
        args = (*args, torch.zeros(len(hidden), dtype=torch.long, device=hidden.device))
    if site.rule.selection_bias is not None and site.rule.selection_bias.startswith(BLOCK):
        args = (*args, site.selection_bias())
    return args


def check_identity(adapter: RouterOutput, output: Any, args: tuple[Any, ...]) -> None:
    """Raise [`RouterContractError`] unless the rule gives the router's own routing, bit for bit.

    A router with a replaced forward, such as a fused kernel, adds up in another order: it is accepted with the same
    experts and weights within a relative 1e-5, and logged.

    Args:
        adapter (`RouterOutput`): What reads the router's output.
        output (`Any`): What the router returned.
        args (`tuple`): What it was called with.
    """
    site = adapter.site
    logits, native = adapter.read(output)
    mine = adapter.route(output, args, RoutingEdit())
    weights = mine.weights.to(native.weights.dtype)
    if torch.equal(mine.indices, native.indices) and torch.equal(weights, native.weights):
        return
    by = replaced_forward(site.module)
    differing, apart = _difference(native, mine._replace(weights=weights))
    if by is not None and not differing and apart <= TOLERANCE:
        say_once(
            f"{by} has replaced the forward of {type(site.module).__name__}; it chooses the same experts, with "
            f"weights within {TOLERANCE:g}"
        )
        return
    if by is not None:
        raise RouterContractError(
            site.path,
            f"{by} has replaced the router's forward, and does not follow the row '{site.rule.name}' says",
            got=f"{differing} of {len(logits)} tokens with other experts, weights off by at most {apart:.2g}",
            expected=f"the routing of {type(site.module).__name__}, to {TOLERANCE:g}",
            fix="Load the model without what replaces its forward.",
        )
    differing = int((mine.indices != native.indices).any(dim=-1).sum())
    raise RouterContractError(
        site.path,
        f"the router does not follow the row '{site.rule.name}' says",
        got=f"{differing} of {len(logits)} tokens with other experts, "
        f"weights off by at most {float((weights - native.weights).abs().max()):.2g}",
        expected="its own routing, bit for bit",
        fix=f"Report the class {type(site.module).__name__} with your transformers version.",
    )


def _difference(native: Routing, mine: Routing) -> tuple[int, float]:
    """The number of tokens with other experts, in any order, and the largest relative difference of other weights."""
    ours, theirs = (routing.indices.long().sort(dim=-1) for routing in (mine, native))
    other = (ours.values != theirs.values).any(dim=-1)
    apart = mine.weights.gather(-1, ours.indices).float() - native.weights.gather(-1, theirs.indices).float()
    largest = native.weights.float().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    same = apart[~other]
    return int(other.sum()), float(same.abs().max() / largest) if same.numel() else 0.0
