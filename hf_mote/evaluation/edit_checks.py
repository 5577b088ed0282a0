"""The definition of each edit of a router, and checks of an edit against it.

The checks use the router's own decision, without the code of edits; `router_copies.py` compares with a copy of the
router.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_mote.evaluation.router_copies import CopiedEdit, same_routing
from hf_mote.routing.rules.selection import Routing
from hf_mote.routing.sites.site import RouterSite

__all__ = ["BIAS", "COPIED", "EDITS", "TriedEdit", "differs_from_copy"]


class TriedEdit(NamedTuple):
    """One router, its decision, and its decision under an edit of one expert."""

    site: RouterSite
    logits: Tensor
    native: Routing
    edited: Routing
    expert: int
    copied: Routing | None = None

    @property
    def tolerance(self) -> float:
        """Relative tolerance for rounding to the weights' dtype."""
        return 4 * torch.finfo(self.native.weights.dtype).eps

    def close(self, mine: Tensor, wanted: Tensor) -> bool:
        """Whether weights are equal but for rounding."""
        largest = float(wanted.float().abs().max().clamp(min=1e-30))
        return bool(((mine.float() - wanted.float()).abs() <= self.tolerance * largest).all())


def _holds_zero(tried: TriedEdit) -> str | None:
    hit = tried.native.indices == tried.expert
    wanted = tried.native.weights.masked_fill(hit, 0)
    same = torch.equal(tried.edited.indices, tried.native.indices) and torch.equal(tried.edited.weights, wanted)
    return None if same else "weights are not the router's own with the expert's at 0"


def _holds_gain(tried: TriedEdit) -> str | None:
    hit = tried.native.indices == tried.expert
    wanted = torch.where(hit, tried.native.weights.float() * GAIN, tried.native.weights.float())
    same = torch.equal(tried.edited.indices, tried.native.indices) and tried.close(tried.edited.weights, wanted)
    return None if same else f"weights are not the router's own with the expert's times {GAIN}"


def _holds_drop(tried: TriedEdit) -> str | None:
    weights = tried.native.weights.double()
    left = weights.masked_fill(tried.native.indices == tried.expert, 0)
    kept = left.sum(dim=-1, keepdim=True)
    wanted = torch.where(kept == 0, torch.zeros_like(left), left * weights.sum(dim=-1, keepdim=True) / kept)
    same = torch.equal(tried.edited.indices, tried.native.indices) and tried.close(tried.edited.weights, wanted)
    return None if same else "weights do not sum to what all of the chosen summed to"


def _holds_reroute(tried: TriedEdit) -> str | None:
    if bool(((tried.edited.indices == tried.expert) & (tried.edited.weights != 0)).any()):
        return "the expert is still chosen"
    if not bool(tried.edited.weights.isfinite().all()):
        return "weights are not finite"
    spared = ~(tried.native.indices == tried.expert).any(dim=-1)
    ours, theirs = (routing.indices[spared].sort(dim=-1).values for routing in (tried.edited, tried.native))
    if tried.site.selection.num_groups == 1 and not torch.equal(ours, theirs):
        return "tokens that did not choose the expert have other experts now"
    return None


def _holds_stimulate(tried: TriedEdit) -> str | None:
    chosen = (tried.edited.indices == tried.expert).any(dim=-1)
    return None if bool(chosen.all()) else f"chosen by {int(chosen.sum())} of {len(chosen)} tokens alone"


def _holds_stimulate_max(tried: TriedEdit) -> str | None:
    mine = tried.edited.weights.masked_fill(tried.edited.indices != tried.expert, 0).amax(dim=-1)
    return _holds_stimulate(tried) or (
        None if tried.close(mine, tried.edited.weights.amax(dim=-1)) else "its weight is not the largest"
    )


def _holds_stimulate_number(tried: TriedEdit) -> str | None:
    mine = tried.edited.weights.masked_fill(tried.edited.indices != tried.expert, 0).amax(dim=-1)
    wanted = torch.full_like(mine, NUMBER)
    return _holds_stimulate(tried) or (None if tried.close(mine, wanted) else f"its weight is not {NUMBER}")


def _holds_bias_on_logits(tried: TriedEdit) -> str | None:
    if tried.site.rule.adapter is not None or tried.site.rule.scoring == "probabilities":
        return None if bool(tried.edited.weights.isfinite().all()) else "weights are not finite"
    shifted = tried.logits.float().clone()
    shifted[:, tried.expert] += BIAS
    # The router's own rule on other logits, without the code of edits.
    wanted = tried.site.select(shifted.to(tried.logits.dtype) if tried.logits.dtype != torch.float32 else shifted)
    ours, theirs = (routing.indices.sort(dim=-1) for routing in (tried.edited, wanted))
    agree = (ours.values == theirs.values).all(dim=-1)
    mine = tried.edited.weights.gather(-1, ours.indices)[agree]
    if not tried.close(mine, wanted.weights.gather(-1, theirs.indices)[agree]):
        return "weights are not those of the shifted logits"
    # In half precision a shifted logit rounds, and may change its order among close ones.
    few = 0.0 if tried.logits.dtype == torch.float32 else 0.1
    return None if float((~agree).float().mean()) <= few else "experts are not those of the shifted logits"


def _holds_bias_on_selection(tried: TriedEdit) -> str | None:
    return _holds_stimulate(tried) if tried.site.selection.num_groups == 1 else None


NUMBER, BIAS, GAIN = 0.25, 1.5, 1.5
EDITS: dict[str, tuple[Callable[[int, int], dict[str, Any]], Callable[[TriedEdit], str | None]]] = {
    "drop": (lambda layer, e: {"suppress": [[layer, e]]}, _holds_drop),
    "zero": (lambda layer, e: {"suppress": [[layer, e]], "suppress_mode": "zero"}, _holds_zero),
    "reroute": (lambda layer, e: {"suppress": [[layer, e]], "suppress_mode": "reroute"}, _holds_reroute),
    "stimulate, own weight": (lambda layer, e: {"stimulate": [[layer, e]]}, _holds_stimulate),
    "stimulate, largest weight": (
        lambda layer, e: {"stimulate": [[layer, e]], "stimulate_weight": "max"},
        _holds_stimulate_max,
    ),
    "stimulate, a number": (
        lambda layer, e: {"stimulate": [[layer, e]], "stimulate_weight": NUMBER},
        _holds_stimulate_number,
    ),
    "bias on logits": (lambda layer, e: {"bias": [[layer, e, BIAS]]}, _holds_bias_on_logits),
    "bias on selection": (
        lambda layer, e: {"bias": [[layer, e, 1e4]], "bias_on": "selection"},
        _holds_bias_on_selection,
    ),
    "gain": (lambda layer, e: {"gain": [[layer, e, GAIN]]}, _holds_gain),
}


COPIED: dict[str, CopiedEdit] = {
    "reroute": "banned",
    "stimulate, own weight": "forced",
    "stimulate, largest weight": "forced",
    "stimulate, a number": "forced",
    "bias on logits": "bias on logits",
    "bias on selection": "bias on selection",
}


def differs_from_copy(tried: TriedEdit, name: str) -> str | None:
    """Return where an edit differs from a copy of the router's decision; `None` if it does not, or without a copy.

    Args:
        tried ([`TriedEdit`]): What was tried.
        name (`str`): A name in [`EDITS`].
    """
    if tried.copied is None:
        return None
    # In half precision a changed logit rounds in another place than the copy's.
    tolerance = max(1e-5, 8 * torch.finfo(tried.logits.dtype).eps)
    if name.startswith("stimulate"):
        return same_routing(tried.edited, tried.copied, tolerance=tolerance, weights=False)
    return same_routing(tried.edited, tried.copied, tolerance=tolerance)
