"""From a live model to its router sites, checked against the table of routing rules.

Candidates are the modules whose class the table knows. They are cross-checked against the classes that the model
itself declares as the source of its `router_logits` (`PreTrainedModel.can_record_outputs`), so a router that the table
lacks is an error and never silently left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder

from hf_mote.errors import RouterContractError, UnsupportedError
from hf_mote.routing.families import RoutingRule, known_routers, rule_for
from hf_mote.routing.selection import Routing, Selection, select

__all__ = ["RouterSite", "Slots", "decoder_of", "find_routers", "locate_slots", "self_test"]

PROBE_TOKENS = 64


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

    def selection_bias(self) -> Tensor | None:
        """Return the router's own selection bias, `(experts,)`, or `None` where its rule has none."""
        if self.rule.selection_bias is None:
            return None
        value: Tensor = getattr(self.module, self.rule.selection_bias)
        if value.is_meta:
            with align_module_device(self.module):
                value = getattr(self.module, self.rule.selection_bias).clone()
        return value


@dataclass(frozen=True)
class Slots:
    """Positions of logits, weights and indices in a router's output tuple.

    transformers moved them between releases, so they are found by dtype and shape.
    """

    logits: int
    weights: int
    indices: int

    def read(self, output: tuple[Any, ...]) -> tuple[Tensor, Routing]:
        """Return the logits and the routing in a router's output."""
        return output[self.logits], Routing(output[self.weights], output[self.indices])

    def write(self, output: tuple[Any, ...], routing: Routing) -> tuple[Any, ...]:
        """Return the output with its routing replaced; logits and whatever else it holds stay."""
        items = list(output)
        items[self.weights] = routing.weights.to(output[self.weights].dtype)
        items[self.indices] = routing.indices
        return tuple(items)


def find_routers(model: nn.Module) -> list[RouterSite]:
    """Return a model's router sites, in the order of their layers.

    Args:
        model (`nn.Module`):
            A mixture-of-experts model of transformers, bare or wrapped (PEFT, accelerate).

    Raises:
        [`UnsupportedError`]: if the model has no router that the table knows, or one that it does not know.

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
    sites = [
        _site(path, module, rule) for path, module in model.named_modules() if (rule := rule_for(module)) is not None
    ]
    declared = _declared_router_classes(model)
    strangers = sorted(
        {
            type(module).__name__
            for module in model.modules()
            if isinstance(module, declared) and rule_for(module) is None
        }
        if declared
        else set()
    )
    if strangers:
        raise UnsupportedError(
            f"find_routers({type(model).__name__})",
            "the model has routers that no row of the table describes",
            got=", ".join(strangers),
            expected=f"one of {', '.join(sorted(known_routers()))}",
            fix="Add a row to hf_mote/routing/families.py; see 'Adding a family' in the README.",
        )
    if not sites:
        raise UnsupportedError(
            f"find_routers({type(model).__name__})",
            "no routed experts found",
            expected=f"a model with one of the routers {', '.join(sorted(known_routers()))}",
            fix="A dense model has no experts to tune; for an unsupported family see 'Adding a family' in the README.",
        )
    return sorted(sites, key=lambda site: site.layer)


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


def locate_slots(output: object, *, num_experts: int, top_k: int, where: str) -> Slots:
    """Return where a router's output keeps logits, weights and indices.

    Args:
        output (`object`): What the router returned.
        num_experts (`int`): Routed experts.
        top_k (`int`): Experts chosen per token.
        where (`str`): The router's path, for the error.

    Raises:
        [`RouterContractError`]: if the output is not a tuple of the three.
    """
    items = output if isinstance(output, tuple) else ()
    tensors = {position: item for position, item in enumerate(items) if isinstance(item, Tensor)}
    indices = [p for p, t in tensors.items() if not t.is_floating_point() and t.shape[-1] == top_k]
    floats = [p for p, t in tensors.items() if t.is_floating_point()]
    logits = [p for p in floats if tensors[p].shape[-1] == num_experts]
    weights = [p for p in floats if tensors[p].shape[-1] == top_k]
    if num_experts == top_k:
        # Logits and weights have the same shape; every router of the table puts its logits first.
        logits, weights = logits[:1], weights[1:]
    if not (len(indices) == len(logits) == len(weights) == 1):
        shapes = [(tuple(t.shape), str(t.dtype)) for t in tensors.values()]
        raise RouterContractError(
            where,
            "the router does not return logits, weights and indices",
            got=shapes or type(output).__name__,
            expected=f"float (tokens, {num_experts}), float (tokens, {top_k}) and integer (tokens, {top_k})",
            fix="If this is remote code, load the model's native transformers class instead.",
        )
    return Slots(logits[0], weights[0], indices[0])


def self_test(site: RouterSite) -> Slots | None:
    """Check that a router reproduces its own selection from its own logits, and return its output's slots.

    The router's forward alone runs on seeded random input; no hook fires and no global random state is touched.
    Returns `None` for a router on the meta device, which cannot run.

    Args:
        site (`RouterSite`): The router.

    Raises:
        [`RouterContractError`]: if weights or indices differ in a single bit.
    """
    with torch.no_grad(), align_module_device(site.module):
        weight = next(site.module.parameters())
        if weight.is_meta:
            return None
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(PROBE_TOKENS, weight.shape[-1], generator=generator)
        output = site.module.forward(hidden.to(weight))
    slots = locate_slots(output, num_experts=site.num_experts, top_k=site.top_k, where=site.path)
    logits, native = slots.read(output)
    check_identity(site, logits, native)
    return slots


def check_identity(site: RouterSite, logits: Tensor, native: Routing) -> None:
    """Raise [`RouterContractError`] unless `select` gives the router's own routing, bit for bit.

    Args:
        site (`RouterSite`): The router.
        logits (`torch.Tensor` of shape `(tokens, experts)`): What it computed.
        native (`Routing`): What it decided.
    """
    mine = select(logits, site.selection, site.selection_bias())
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


def _site(path: str, module: nn.Module, rule: RoutingRule) -> RouterSite:
    num_experts, top_k = int(module.num_experts), int(module.top_k)  # type: ignore[arg-type]
    grouped = rule.group_score is not None
    if grouped and rule.group_if is not None:
        attribute, wanted = rule.group_if
        grouped = getattr(module, attribute) == wanted
    renormalize = getattr(module, rule.renormalize) if isinstance(rule.renormalize, str) else rule.renormalize
    selection = Selection(
        rule=rule,
        num_experts=num_experts,
        top_k=top_k,
        num_groups=int(module.num_group) if grouped else 1,  # type: ignore[arg-type]
        groups_kept=int(module.topk_group) if grouped else 1,  # type: ignore[arg-type]
        renormalize=bool(renormalize),
        scale=float(getattr(module, rule.scale)) if rule.scale is not None else 1.0,
    )
    return RouterSite(path, _layer_of(path), module, num_experts, top_k, rule, selection)


def _layer_of(path: str) -> int:
    numbers = [int(part) for part in path.split(".") if part.isdigit()]
    if not numbers:
        raise RouterContractError(
            path, "no decoder layer in the router's path", expected="a path like layers.3.mlp.gate"
        )
    return numbers[0]


def _declared_router_classes(model: nn.Module) -> tuple[type[nn.Module], ...]:
    """Classes that the model's own parts name as the source of `router_logits`."""
    found: set[type[nn.Module]] = set()
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            recorders = module.can_record_outputs.get("router_logits", ())
            for recorder in recorders if isinstance(recorders, list | tuple) else (recorders,):
                target = recorder.target_class if isinstance(recorder, OutputRecorder) else recorder
                if isinstance(target, type):
                    found.add(target)
    return tuple(found)
