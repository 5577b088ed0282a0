"""`RouterSite`: one router of a model, with the numbers that its rule reads from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate.utils import align_module_device
from torch import Tensor, nn

from hf_mote.errors import RouterContractError
from hf_mote.printing import Printable, Summary, frame_of
from hf_mote.routing.rules.edits import RoutingEdit
from hf_mote.routing.rules.rule import RoutingRule, attribute_of
from hf_mote.routing.rules.selection import BoundRule, Routing, select

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["RouterSite", "RouterSites", "layer_of", "site_of"]

BLOCK = "block."


@dataclass(frozen=True)
class RouterSite:
    """One router of a model.

    Attributes:
        path (`str`): The module's dotted path in the model.
        layer (`int`): The absolute decoder layer, dense layers counted.
        module (`nn.Module`): The router.
        num_experts (`int`): Routed experts of the layer.
        top_k (`int`): Experts chosen per token.
        rule (`RoutingRule`): The row of the table that the router follows.
        selection (`BoundRule`): The rule with this router's numbers.
    """

    path: str
    layer: int
    module: nn.Module
    num_experts: int
    top_k: int
    rule: RoutingRule
    selection: BoundRule
    block: nn.Module | None = None

    def selection_bias(self) -> Tensor | None:
        """Return the router's own selection bias, `(experts,)`, or `None` if its rule has none."""
        return self._tensor(self.rule.selection_bias)

    def expert_scale(self) -> Tensor | None:
        """Return the router's factor for each expert, `(experts,)`, or `None` if its rule has none."""
        return self._tensor(self.rule.expert_scale)

    def select(self, logits: Tensor, edit: RoutingEdit | None = None) -> Routing:
        """Return the routing that follows from logits, `(tokens, experts)`, by this router's rule and numbers."""
        return select(logits, self.selection, self.selection_bias(), edit, self.expert_scale())

    def numbers(self) -> dict[str, tuple[object, str, object]]:
        """Return the numbers that the rule reads from the model: for each its owner, its name there and its value."""
        rule = self.rule
        flag = rule.renormalize if isinstance(rule.renormalize, str) else None
        groups = ("num_group", "topk_group") if rule.group_score is not None else ()
        found: dict[str, tuple[object, str, object]] = {}
        for path in (rule.num_experts, rule.top_k, flag, rule.least_sum, rule.scale, *groups):
            if path is None:
                continue
            in_block = path.startswith(BLOCK) and self.block is not None
            before, _, name = path.removeprefix(BLOCK).rpartition(".")
            start = self.block if in_block and self.block is not None else self.module
            owner = attribute_of(start, before) if before else start
            found[path] = (owner, name, getattr(owner, name))
        return found

    def _tensor(self, path: str | None) -> Tensor | None:
        if path is None:
            return None
        in_block = path.startswith(BLOCK)
        owner = self.block if in_block and self.block is not None else self.module
        name = path.removeprefix(BLOCK)
        if in_block and getattr(owner, name, None) is None:
            return None
        value: Tensor = attribute_of(owner, name)
        if value.is_meta:
            with align_module_device(owner):
                value = attribute_of(owner, name).clone()
        return value.reshape(-1)


class RouterSites(Printable, list[RouterSite]):
    """A model's routers, in the order of their layers: a list that prints as a table."""

    def to_dict(self) -> dict[str, Any]:
        """Return layer, path, experts, top-k and rule of each router, JSON-native."""
        columns = self._columns()
        return {"routers": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}

    def to_pandas(self) -> DataFrame:
        """Return a `pandas.DataFrame` with a row for each router."""
        return frame_of(self._columns())

    def _columns(self) -> dict[str, list[Any]]:
        return {
            "layer": [site.layer for site in self],
            "path": [site.path for site in self],
            "experts": [site.num_experts for site in self],
            "top_k": [site.top_k for site in self],
            "rule": [_in_words(site) for site in self],
        }

    def _summary(self) -> Summary:
        experts = sum(site.num_experts for site in self)
        title = f"{len(self)} routers, {experts:,} experts"
        return Summary(title, columns=self._columns(), rows=len(self))


def _in_words(site: RouterSite) -> str:
    chosen = site.selection
    words: list[str] = [site.rule.scoring]
    if chosen.num_groups > 1:
        words.append(f"{chosen.groups_kept} of {chosen.num_groups} groups")
    if chosen.renormalize:
        words.append("renormalised")
    if chosen.scale != 1.0:
        words.append(f"times {chosen.scale:g}")
    return ", ".join(words)


def site_of(path: str, module: nn.Module, rule: RoutingRule, block: nn.Module | None) -> RouterSite:
    """Return the site of a router, with the numbers that its rule reads from it.

    Args:
        path (`str`): The module's dotted path in the model.
        module (`nn.Module`): The router.
        rule (`RoutingRule`): The rule that it follows.
        block (`nn.Module`, *optional*): The module that holds it.
    """
    owner = block if block is not None and rule.top_k.startswith(BLOCK) else module
    num_experts = int(attribute_of(module, rule.num_experts))
    top_k = int(attribute_of(owner, rule.top_k.removeprefix(BLOCK)))
    # Some configs switch the group limit off with None.
    grouped = rule.group_score is not None and attribute_of(module, "num_group") is not None
    renormalize = attribute_of(module, rule.renormalize) if isinstance(rule.renormalize, str) else rule.renormalize
    selection = BoundRule(
        rule=rule,
        num_experts=num_experts,
        top_k=top_k,
        num_groups=int(attribute_of(module, "num_group")) if grouped else 1,
        groups_kept=int(attribute_of(module, "topk_group")) if grouped else 1,
        renormalize=bool(renormalize),
        least_sum=float(attribute_of(module, rule.least_sum)) if rule.least_sum is not None else 0.0,
        scale=float(attribute_of(module, rule.scale)) if rule.scale is not None else 1.0,
        score_fn=attribute_of(module, "score_fn") if rule.scoring == "score_fn" else None,
    )
    return RouterSite(path, layer_of(path), module, num_experts, top_k, rule, selection, block)


def layer_of(path: str) -> int:
    """Return the absolute decoder layer of a router.

    Args:
        path (`str`): The router's dotted path; its first number is the layer.

    Raises:
        [`RouterContractError`]: if there is no number in it.
    """
    numbers = [int(part) for part in path.split(".") if part.isdigit()]
    if not numbers:
        raise RouterContractError(
            path, "the router's path must name a decoder layer", expected="a path like layers.3.mlp.gate"
        )
    return numbers[0]
