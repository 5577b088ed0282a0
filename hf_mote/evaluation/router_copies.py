"""Expected results of edits, from a copy of the router whose own code decides on changed logits.

The package's selection code is not used: the copy computes its logits, these are changed at the output of the linear
map, and the router's forward then gives the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hf_mote.routing.rules.selection import Routing
from hf_mote.routing.sites.output import RouterOutput
from hf_mote.routing.sites.scratch_copy import scratch_copy
from hf_mote.routing.sites.site import BLOCK, RouterSite

__all__ = ["CopiedEdit", "on_a_copy", "same_routing"]

CopiedEdit = Literal["banned", "forced", "bias on logits", "bias on selection"]

FAR = 100.0  # of logits: e to its negative is nothing beside any other
FURTHER = 1e4  # of selection scores
PRODUCTS = (
    torch.nn.functional.linear,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.mm,
    Tensor.mm,
    torch.addmm,
)


class _Changed(TorchFunctionMode):
    """Changes the first product that has a column for each expert."""

    def __init__(self, num_experts: int, change: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.change = change
        self.seen: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if self.seen is None and func in PRODUCTS and found.shape[-1] == self.num_experts:
            self.seen = found.reshape(-1, self.num_experts).clone()
            found = found if self.change is None else self.change(found)
        return found


def on_a_copy(
    site: RouterSite,
    adapter: RouterOutput,
    args: tuple[Any, ...],
    expert: int,
    edit: CopiedEdit,
    *,
    bias: float,
) -> Routing | None:
    """Return the decision of a router's own code with an expert banned, forced or biased; `None` if unknown.

    Args:
        site (`RouterSite`): The router.
        adapter (`RouterOutput`): Reads its output.
        args (`tuple`): Its arguments.
        expert (`int`): The expert.
        edit (`str`): The edit.
        bias (`float`): Added to its logit.
    """
    given = site.selection_bias()
    if edit == "bias on selection" and given is None:
        return None
    if edit == "forced" and site.selection.num_groups > 1:
        return None  # a forced expert would change its group's rank

    # A router with a selection bias is changed by the bias only. A changed logit would change the other scores where
    # they come from a softmax, and the biases that are added to these would choose other experts.
    def change(logits: Tensor) -> Tensor:
        logits = logits.clone()
        if edit == "banned" and given is None:
            logits[..., expert] = logits.min() - FAR
        elif edit == "forced" and given is None:
            logits[..., expert] = logits.amax(dim=-1) + 1
        elif edit == "bias on logits":
            logits[..., expert] += bias
        return logits

    with scratch_copy(site.module) as router:
        plain = _Changed(site.num_experts, None)
        with plain:
            logits, _ = adapter.read(router.forward(*args))
        if plain.seen is None or not torch.equal(plain.seen.float(), logits.float()):
            return None  # its logits are computed from that product in several steps
        held = None if given is None else _own_bias(site, router, args)
        if given is not None and held is None:
            return None
        if held is not None:
            held.data[..., expert] += {"banned": -FURTHER, "forced": FURTHER, "bias on selection": FURTHER}.get(
                edit, 0.0
            )
        with _Changed(site.num_experts, change):
            decided = adapter.read(router.forward(*args))[1]
    chosen = decided.indices == expert
    return None if edit == "banned" and bool(chosen.any()) else decided


def _own_bias(site: RouterSite, router: torch.nn.Module, args: tuple[Any, ...]) -> Tensor | None:
    """The selection bias that a copied router reads."""
    name = site.rule.selection_bias
    if name is None or name.startswith(BLOCK):
        return None
    found: Any = router
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, Tensor) else None


def same_routing(ours: Routing, theirs: Routing, *, tolerance: float, weights: bool = True) -> str | None:
    """Return where two routings differ, in experts or in the shares of their weights; `None` if they do not.

    Args:
        ours (`Routing`): One.
        theirs (`Routing`): The other.
        tolerance (`float`): Of a weight, as a share of the token's weights together.
        weights (`bool`, *optional*, defaults to `True`): Whether weights count, too.
    """
    one, other = (routing.indices.sort(dim=-1) for routing in (ours, theirs))
    agree = (one.values == other.values).all(dim=-1)
    if not bool(agree.all()):
        return f"{int((~agree).sum())} of {len(agree)} tokens have other experts than in a copy of the router"
    if not weights:
        return None
    mine, its = (
        routing.weights.double().gather(-1, order.indices) for routing, order in ((ours, one), (theirs, other))
    )
    shares = [part / part.abs().sum(dim=-1, keepdim=True).clamp(min=1e-30) for part in (mine, its)]
    same = bool((shares[0] - shares[1]).abs().max() <= tolerance)
    return None if same else "weights are not shared out as in a copy of the router"
