"""From a live model to its router sites, checked against the table of routing rules.

Routers are the modules whose class the table knows, or `register_routers` has accepted. They are cross-checked against
the classes that the model itself declares as the source of its `router_logits` (`candidates.py`), so a router that the
table lacks is an error and never silently left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_mote.errors import RouterContractError, UnsupportedError
from hf_mote.routing.adapters import ADAPTERS, adapter_for
from hf_mote.routing.aside import set_aside
from hf_mote.routing.candidates import check_no_strangers, what_it_has_instead
from hf_mote.routing.edits import RoutingEdit
from hf_mote.routing.families import rule_for
from hf_mote.routing.placement import check_placement, holder_of
from hf_mote.routing.rule import RoutingRule, attribute_of
from hf_mote.routing.selection import Routing, Selection, select
from hf_mote.routing.tuple_adapter import TupleAdapter

__all__ = [
    "RouterSite",
    "check_identity",
    "decoder_of",
    "find_routers",
    "layer_of",
    "probe_args",
    "self_test",
    "site_of",
    "width_of",
]

PROBE_TOKENS = 64
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
        selection (`Selection`): The rule with this router's numbers.
    """

    path: str
    layer: int
    module: nn.Module
    num_experts: int
    top_k: int
    rule: RoutingRule
    selection: Selection
    block: nn.Module | None = None

    def selection_bias(self) -> Tensor | None:
        """Return the router's own selection bias, `(experts,)`, or `None` where its rule has none."""
        return self._tensor(self.rule.selection_bias)

    @property
    def refuses(self) -> Mapping[str, str]:
        """What interventions this kind of router has no way of, by name, and why."""
        return {} if self.rule.adapter is None else ADAPTERS[self.rule.adapter].refused_by(self)

    def expert_scale(self) -> Tensor | None:
        """Return the router's factor for each expert, `(experts,)`, or `None` where its rule has none."""
        return self._tensor(self.rule.expert_scale)

    def select(self, logits: Tensor, edit: RoutingEdit | None = None) -> Routing:
        """Return the routing that follows from logits, `(tokens, experts)`, by this router's rule and numbers."""
        return select(logits, self.selection, self.selection_bias(), edit, self.expert_scale())

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


def find_routers(model: nn.Module) -> list[RouterSite]:
    """Return a model's router sites, in the order of their layers.

    Args:
        model (`nn.Module`):
            A mixture-of-experts model of transformers, bare or wrapped (PEFT, accelerate).

    Raises:
        [`UnsupportedError`]: if the model has no router that the table knows, or one that it does not know;
            [`register_routers`] can take in the latter.

    Example:

    ```python
    from transformers import MixtralConfig, MixtralForCausalLM
    from hf_mote import find_routers

    config = MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )
    sites = find_routers(MixtralForCausalLM(config))
    assert [(site.layer, site.num_experts, site.top_k) for site in sites] == [(0, 4, 2), (1, 4, 2)]
    ```
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedError("find_routers.model", "not a model", got=type(model).__name__, expected="an nn.Module")
    modules = dict(model.named_modules())
    sites = [
        site_of(path, module, rule, modules.get(holder_of(path)))
        for path, module in modules.items()
        if (rule := rule_for(module)) is not None and (rule.within is None or rule.within in path.split("."))
    ]
    check_placement(model, {site.path: site.module for site in sites}, f"find_routers({type(model).__name__})")
    check_no_strangers(model, f"find_routers({type(model).__name__})", known=bool(sites))
    if not sites:
        raise UnsupportedError(
            f"find_routers({type(model).__name__})",
            "no routed experts found",
            expected="a mixture-of-experts model of a family in the table: see `hf-mote families`",
            fix=what_it_has_instead(model),
        )
    sites.sort(key=lambda site: site.layer)
    for one, other in pairwise(sites):
        if one.layer == other.layer:
            raise UnsupportedError(
                f"find_routers({type(model).__name__})",
                f"layer {one.layer} has several routers, so that [layer, expert] does not name an expert",
                got=f"{one.path} and {other.path}",
                expected="one router in each decoder layer",
                fix="Give the part of the model that generates text, such as model.thinker or model.language_model.",
            )
    return sites


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
    selection = Selection(
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


def decoder_of(model: nn.Module, sites: list[RouterSite]) -> nn.Module:
    """Return the innermost `PreTrainedModel` that contains every router: its forward sees every routed token.

    Args:
        model (`nn.Module`): The model the sites were found in.
        sites (`list[RouterSite]`): Its router sites.
    """
    paths = [site.path for site in sites]
    candidates = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and all(p.startswith(f"{path}." if path else "") for p in paths)
    ]
    if not candidates:
        return model
    return max(candidates, key=lambda item: len(item[0]))[1]


def self_test(site: RouterSite) -> TupleAdapter | None:
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
    with torch.no_grad(), align_module_device(site.module) if listed else set_aside(site.module) as aside:
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


def check_identity(adapter: TupleAdapter, output: Any, args: tuple[Any, ...]) -> None:
    """Raise [`RouterContractError`] unless the rule gives the router's own routing, bit for bit.

    Args:
        adapter (`TupleAdapter`): What reads the router's output.
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
            path, "no decoder layer in the router's path", expected="a path like layers.3.mlp.gate"
        )
    return numbers[0]
