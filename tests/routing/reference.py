"""Routing computed a second time, token by token in numpy, from the definitions and not from the package.

The chosen set is built with sets and sorting instead of masks and fills, in float64. `route` returns, for each token,
the weight that each expert gets (0 where it is not chosen), whether it is chosen, and the margin: by how much the
choice was decided. A margin near zero means a tie, about which a reference can say nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["Edit", "Family", "Routed", "dense", "edit_of", "family_of", "observe_experts", "route"]

SUFFICIENT_MARGIN = 1e-5


@dataclass(frozen=True)
class Family:
    """What decides a family's routing."""

    scoring: str
    num_experts: int
    top_k: int
    num_groups: int = 1
    groups_kept: int = 1
    group_score: str | None = None
    renormalize: bool = False
    scale: float = 1.0


@dataclass(frozen=True)
class Edit:
    """The targets of one layer."""

    suppress: frozenset[int] = frozenset()
    stimulate: frozenset[int] = frozenset()
    bias: dict[int, float] = field(default_factory=dict)
    suppress_mode: str = "drop"
    stimulate_weight: str | float = "own"
    bias_on: str = "logits"
    strength: float = 1.0


class Routed(NamedTuple):
    """Weights and choice, both `(tokens, experts)`, and the margin `(tokens,)`."""

    weights: np.ndarray
    chosen: np.ndarray
    margin: np.ndarray


def family_of(config: Any) -> Family:
    """Read the family from a transformers config."""
    kind = config.model_type
    if kind == "mixtral":
        return Family("softmax", config.num_local_experts, config.num_experts_per_tok, renormalize=True)
    common = {"num_experts": config.n_routed_experts, "top_k": config.num_experts_per_tok}
    groups = {"num_groups": config.n_group, "groups_kept": config.topk_group}
    if kind == "deepseek_v2":
        limited = groups | {"group_score": "max"} if config.topk_method == "group_limited_greedy" else {}
        return Family("softmax", **common, **limited, scale=config.routed_scaling_factor)
    assert kind == "deepseek_v3"
    return Family(
        "sigmoid",
        **common,
        **groups,
        group_score="sum2",
        renormalize=config.norm_topk_prob,
        scale=config.routed_scaling_factor,
    )


def edit_of(layer: int, **fields: Any) -> Edit:
    """The share that one layer has in the fields of a `MoTEConfig`."""
    for name in ("suppress", "stimulate"):
        fields[name] = frozenset(expert for at, expert in fields.get(name, ()) if at == layer)
    fields["bias"] = {expert: value for at, expert, value in fields.get("bias", ()) if at == layer}
    return Edit(**fields)


def route(
    logits: np.ndarray, family: Family, correction: np.ndarray | None = None, edit: Edit | None = None
) -> Routed:
    """Route every token."""
    rows = [_route_token(row.astype(np.float64), family, correction, edit or Edit()) for row in logits]
    return Routed(*(np.stack(column) for column in zip(*rows, strict=True)))


def _route_token(
    logits: np.ndarray, family: Family, correction: np.ndarray | None, edit: Edit
) -> tuple[Any, Any, Any]:
    biases = np.zeros(family.num_experts)
    for expert, value in edit.bias.items():
        biases[expert] = value * edit.strength
    if edit.bias_on == "logits":
        logits = logits + biases
    if family.scoring == "softmax":
        powers = np.exp(logits - logits.max())
        s = powers / powers.sum()
    else:
        s = 1 / (1 + np.exp(-logits))
    c = s + (0 if correction is None else correction.astype(np.float64))
    if edit.bias_on == "selection":
        c = c + biases
    suppressed = set(edit.suppress) if edit.strength > 0 else set()
    banned = suppressed if edit.suppress_mode == "reroute" else set()
    allowed = [e for e in range(family.num_experts) if e not in banned]

    margins = []
    if family.group_score is not None and family.num_groups > 1:
        size = family.num_experts // family.num_groups
        scores = []
        for group in range(family.num_groups):
            members = sorted((c[e] for e in allowed if e // size == group), reverse=True)
            if family.group_score == "max":
                scores.append(members[0] if members else -np.inf)
            else:
                scores.append(sum(members[:2]) if members else -np.inf)
        order = sorted(range(family.num_groups), key=lambda group: -scores[group])
        kept = set(order[: family.groups_kept])
        if family.groups_kept < family.num_groups:
            margins.append(scores[order[family.groups_kept - 1]] - scores[order[family.groups_kept]])
        allowed = [e for e in allowed if e // size in kept]

    ranked = sorted(allowed, key=lambda e: -c[e])
    chosen = ranked[: family.top_k]
    if len(ranked) > family.top_k:
        margins.append(c[ranked[family.top_k - 1]] - c[ranked[family.top_k]])
    stimulated = set(edit.stimulate) if edit.strength > 0 else set()
    for expert in sorted(stimulated - set(chosen)):
        if len(chosen) == family.top_k:
            replaceable = [e for e in chosen if e not in suppressed and e not in stimulated]
            replaceable = replaceable or [e for e in chosen if e not in stimulated]
            loser = min(replaceable, key=lambda e: c[e])
            others = [c[e] - c[loser] for e in replaceable if e != loser]
            margins.append(min(others, default=np.inf))
            chosen.remove(loser)
        chosen.append(expert)

    w = {e: s[e] for e in chosen}
    if family.renormalize:
        total = sum(w.values())
        w = {e: value / total for e, value in w.items()}
    w = {e: value * family.scale for e, value in w.items()}
    hit = {e for e in chosen if e in suppressed}
    if hit and edit.suppress_mode == "drop":
        total, left = sum(w.values()), sum(w[e] for e in hit) * (1 - edit.strength)
        survivors = sum(value for e, value in w.items() if e not in hit)
        factor = (total - left) / survivors if survivors else 0.0
        w = {e: v * (1 - edit.strength) if e in hit else v * factor for e, v in w.items()}
    elif hit and edit.suppress_mode == "zero":
        w = {e: v * (1 - edit.strength) if e in hit else v for e, v in w.items()}
    largest = max(w.values())
    for expert in stimulated:
        if edit.stimulate_weight == "max":
            w[expert] = largest
        elif edit.stimulate_weight != "own":
            w[expert] = edit.stimulate_weight
        w[expert] *= edit.strength
    weights, mask = np.zeros(family.num_experts), np.zeros(family.num_experts, dtype=bool)
    for expert, value in w.items():
        weights[expert], mask[expert] = value, True
    return weights, mask, min(margins, default=np.inf)


def dense(weights: torch.Tensor, indices: torch.Tensor, num_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and choice of a router's answer, `(tokens, experts)`; an expert chosen twice is an error."""
    onehot = torch.nn.functional.one_hot(indices, num_experts)
    assert int(onehot.sum(dim=1).max()) == 1, "an expert was chosen twice for one token"
    spread = torch.zeros(len(indices), num_experts, dtype=weights.dtype).scatter(1, indices, weights.detach())
    return spread.double().numpy(), onehot.sum(dim=1).bool().numpy()


@contextmanager
def observe_experts(model: torch.nn.Module) -> Any:
    """Keep what each layer's experts are given, `{layer: [(weights, indices), ...]}`, through plain torch hooks."""
    seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    handles = []
    for path, module in model.named_modules():
        if path.endswith(".experts"):
            layer = int(path.split("layers.")[1].split(".")[0])

            def look(module: Any, args: Any, layer: int = layer) -> None:
                _, indices, weights = args
                seen.setdefault(layer, []).append((weights.detach().clone(), indices.clone()))

            handles.append(module.register_forward_pre_hook(look))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
