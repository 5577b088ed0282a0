"""Reads and writes the usual router output: logits, weights and indices in a tuple, in any order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from hf_mote.errors import RouterContractError
from hf_mote.routing.rules.edits import RoutingEdit
from hf_mote.routing.rules.selection import Routing
from hf_mote.routing.sites.packed import num_outputs
from hf_mote.routing.sites.site import RouterSite

__all__ = ["RouterOutput", "contract_error"]


class RouterOutput:
    """Logits, weights and indices in a tuple, with or without other items.

    transformers moved the three between releases, so they are found by dtype and shape.

    Args:
        site (`RouterSite`): The router.
        output (`object`): An output of it.
    """

    refuses: ClassVar[Mapping[str, str]] = {}
    """What the router cannot do, by name of the intervention, and why."""

    @classmethod
    def refused_by(cls, site: RouterSite) -> Mapping[str, str]:
        """Return what one router cannot do, by name of the intervention, and why.

        Args:
            site (`RouterSite`): The router.
        """
        return cls.refuses

    def __init__(self, site: RouterSite, output: object) -> None:
        self.site = site
        self.slots = _locate_slots(site, output)

    def read(self, output: Any) -> tuple[Tensor, Routing]:
        """Return the logits, `(tokens, experts)`, and the routing in a router's output."""
        logits, weights, indices = self.slots
        return output[logits], Routing(output[weights], output[indices])

    def route(self, output: Any, args: tuple[Any, ...], edit: RoutingEdit) -> Routing:
        """Return the routing that follows from the router's logits under an edit.

        Args:
            output (`Any`): What the router returned.
            args (`tuple`): What it was called with.
            edit (`RoutingEdit`): What to change.
        """
        return self.site.select(self.read(output)[0], edit)

    def write(self, output: Any, routing: Routing, touched: Tensor | None) -> Any:
        """Return the output with its routing replaced; logits and other items stay.

        Args:
            output (`Any`): What the router returned.
            routing (`Routing`): The new routing, native in untouched rows.
            touched (`torch.Tensor` of shape `(tokens,)`, *optional*): Rows that differ; `None` for all.
        """
        items = list(output)
        _, weights, indices = self.slots
        items[weights] = routing.weights.to(output[weights].dtype)
        items[indices] = routing.indices.to(output[indices].dtype)  # int32 of a fused kernel stays int32
        return tuple(items)


def _locate_slots(site: RouterSite, output: object) -> tuple[int, int, int]:
    """Positions of logits, weights and indices."""
    items = output if isinstance(output, tuple) else ()
    tensors = {position: item for position, item in enumerate(items) if isinstance(item, Tensor)}
    indices = [p for p, t in tensors.items() if not t.is_floating_point() and t.shape[-1] == site.top_k]
    floats = [p for p, t in tensors.items() if t.is_floating_point() and t.ndim == 2]
    logits = [p for p in floats if tensors[p].shape[-1] == site.num_experts]
    weights = [p for p in floats if tensors[p].shape[-1] == site.top_k]
    if site.num_experts == site.top_k:
        # Logits and weights have the same shape; every router of the table puts its logits first.
        logits, weights = logits[:1], weights[1:]
    if not indices or not logits or not weights:
        raise contract_error(site, output, "logits, weights and indices")
    return logits[0], weights[0], indices[0]


def contract_error(site: RouterSite, output: object, expected: str) -> RouterContractError:
    """Return the error for a router whose output does not match its row.

    Args:
        site (`RouterSite`): The router.
        output (`object`): What it returned.
        expected (`str`): What it should have returned.
    """
    items = output if isinstance(output, tuple) else (output,)
    got = [(tuple(i.shape), str(i.dtype)) if isinstance(i, Tensor) else type(i).__name__ for i in items]
    declared = (site.num_experts, site.top_k)
    rows = [item for item in items if isinstance(item, Tensor) and item.ndim == 2 and item.is_floating_point()]
    columns = {item.shape[-1] for item in rows} - {site.top_k}
    if len(columns) == 1 and site.num_experts not in columns and columns <= num_outputs(site.module):
        # As after pruning: the weight has lost rows, and the number beside it has not.
        name = site.rule.num_experts
        return RouterContractError(
            site.path,
            f"the router's {name} is not the number of its experts",
            got=f"{site.num_experts}, and logits of {columns.pop()} columns",
            expected="the number of columns of its logits",
            fix=f"Set {site.path}.{name} to it, in every layer that was pruned.",
        )
    native = type(site.module).__module__.startswith("transformers.models.")
    return RouterContractError(
        site.path,
        f"the router does not return {expected}",
        got=got,
        expected=f"{declared[0]} experts, {declared[1]} chosen",
        fix=(
            f"Report the class {type(site.module).__name__} with your transformers version."
            if native
            else "If transformers has a class of its own for this model, load that one, without trust_remote_code."
        ),
    )
