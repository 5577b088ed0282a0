"""Whether a router does what its rule says: its own selection from its own logits, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from hf_mote.errors import RouterContractError
from hf_mote.routing.rules.edits import RoutingEdit
from hf_mote.routing.sites.output import RouterOutput
from hf_mote.routing.sites.scratch_copy import scratch_copy
from hf_mote.routing.sites.site import BLOCK, RouterSite
from hf_mote.routing.sites.special_outputs import adapter_for

__all__ = ["check_identity", "probe_args", "self_test", "width_of"]

PROBE_TOKENS = 64


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
    # A router of the table changes nothing as it runs; of one that was registered, who knows.
    listed = any(cls.__name__ in site.rule.routers for cls in type(site.module).__mro__)
    with torch.no_grad(), align_module_device(site.module) if listed else scratch_copy(site.module) as aside:
        router = site.module if aside is None else aside
        weight = next(router.parameters())
        if weight.is_meta or hasattr(weight, "full_tensor"):
            return None
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(PROBE_TOKENS, width_of(router), generator=generator)
        args = probe_args(site, hidden.to(weight))
        output = router.forward(*args)
        adapter = adapter_for(site, output)
        check_identity(adapter, output, args)
    return adapter


def width_of(router: nn.Module) -> int:
    """Return the hidden size that a router reads.

    Args:
        router (`nn.Module`): The router.
    """
    named = (getattr(router, name, None) for name in ("hidden_size", "hidden_dim"))
    return int(next((width for width in named if width), next(router.parameters()).shape[-1]))


def probe_args(site: RouterSite, hidden: Tensor) -> tuple[Any, ...]:
    """Return what a router's forward takes for hidden states.

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

    Args:
        adapter (`RouterOutput`): What reads the router's output.
        output (`Any`): What the router returned.
        args (`tuple`): What it was called with.
    """
    site = adapter.site
    logits, native = adapter.read(output)
    mine = adapter.route(output, args, RoutingEdit())
    weights = mine.weights.to(native.weights.dtype)
    if not torch.equal(mine.indices, native.indices) or not torch.equal(weights, native.weights):
        differing = int((mine.indices != native.indices).any(dim=-1).sum())
        raise RouterContractError(
            site.path,
            f"the router does not do what the row '{site.rule.name}' says",
            got=f"{differing} of {len(logits)} tokens with other experts, "
            f"weights off by at most {float((weights - native.weights).abs().max()):.2g}",
            expected="its own routing, bit for bit",
            fix=f"Report the class {type(site.module).__name__} with your transformers version.",
        )
