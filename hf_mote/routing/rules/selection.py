"""Pure functions from router logits to routing weights and expert indices.

`select` repeats what a router does after its linear map, as its row in `families.py` declares, and optionally under a
[`RoutingEdit`]. Without an edit it reproduces the router's own weights and indices bit for bit; that is checked on the
live router before anything is patched. All arithmetic is float32, as in the routers themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mote.routing.rules.edits import RoutingEdit, values_at
from hf_mote.routing.rules.rule import RoutingRule

__all__ = [
    "BoundRule",
    "Routing",
    "choose_experts",
    "family_weights",
    "rank_forced",
    "reweigh",
    "score",
    "select",
]

NEVER = float("-inf")
ALWAYS = float("inf")


class Routing(NamedTuple):
    """What a router decides.

    Attributes:
        weights (`torch.Tensor` of shape `(tokens, top_k)`, float): Weights of the chosen experts.
        indices (`torch.Tensor` of shape `(tokens, top_k)`, int64): The chosen experts.
        shared (`torch.Tensor` of shape `(tokens, shared_experts)`, *optional*): Weights of the shared experts, where
            the router decides them too.
    """

    weights: Tensor
    indices: Tensor
    shared: Tensor | None = None


@dataclass(frozen=True)
class BoundRule:
    """A routing rule with the numbers of one live router.

    Attributes:
        rule (`RoutingRule`): The row of the table.
        num_experts (`int`): Routed experts.
        top_k (`int`): Experts chosen per token.
        num_groups (`int`): Groups of the group limit; 1 where there is none.
        groups_kept (`int`): Groups that stay in the choice.
        renormalize (`bool`): Whether the chosen weights are divided by their sum.
        least_sum (`float`): What that sum is raised to where it is below.
        scale (`float`): Multiplies the weights at the end.
        score_fn (`Callable`, *optional*): The router's own activation, where its rule asks for it.
    """

    rule: RoutingRule
    num_experts: int
    top_k: int
    num_groups: int = 1
    groups_kept: int = 1
    renormalize: bool = False
    least_sum: float = 0.0
    scale: float = 1.0
    score_fn: Callable[[Tensor], Tensor] | None = None


def select(
    logits: Tensor,
    selection: BoundRule,
    selection_bias: Tensor | None = None,
    edit: RoutingEdit | None = None,
    expert_scale: Tensor | None = None,
) -> Routing:
    """Return the routing that follows from router logits.

    Args:
        logits (`torch.Tensor` of shape `(tokens, experts)`, any float dtype):
            Router logits before any scoring. Not modified.
        selection (`BoundRule`):
            The rule and the router's numbers.
        selection_bias (`torch.Tensor` of shape `(experts,)`, *optional*):
            The router's own selection bias, where its rule has one.
        edit (`RoutingEdit`, *optional*):
            What to change. `None` gives the router's own decision.
        expert_scale (`torch.Tensor` of shape `(experts,)`, *optional*):
            The router's factor for each expert, where its rule has one.

    Returns:
        `Routing`: weights, float32 or in the dtype the rule keeps, and int64 indices, both `(tokens, top_k)`.

    Example:

    ```python
    import torch
    from hf_mote.routing.rules.families import RULES
    from hf_mote.routing.rules.edits import RoutingEdit
    from hf_mote.routing.rules.selection import BoundRule, select

    mixtral = BoundRule(RULES[0], num_experts=4, top_k=2, renormalize=True)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    assert select(logits, mixtral).indices.tolist() == [[0, 1]]
    ban = RoutingEdit(banned=torch.tensor([True, False, False, False]))
    assert select(logits, mixtral, edit=ban).indices.tolist() == [[1, 2]]
    ```
    """
    edit = edit if edit is not None else RoutingEdit()
    scores, indices = choose_experts(logits, selection, selection_bias, edit)
    weights = family_weights(scores, indices, selection, edit)
    if expert_scale is not None:
        weights = weights * expert_scale[indices]
    return Routing(reweigh(weights, indices, edit), indices)


def choose_experts(
    logits: Tensor, selection: BoundRule, selection_bias: Tensor | None, edit: RoutingEdit
) -> tuple[Tensor, Tensor]:
    """Return the scores that weights come from, `(tokens, experts)`, and the chosen experts, `(tokens, top_k)`.

    Args:
        logits (`torch.Tensor` of shape `(tokens, experts)`): Router logits.
        selection (`BoundRule`): The rule and the router's numbers.
        selection_bias (`torch.Tensor`, *optional*): The router's own selection bias.
        edit (`RoutingEdit`): What to change.
    """
    rule = selection.rule
    scores = score(logits, selection, edit)
    choice = scores if selection_bias is None else scores + selection_bias
    if edit.selection_bias is not None:
        choice = choice + edit.selection_bias
    choice = _ban(choice, edit)
    if selection.num_groups > 1:
        outside = _outside_best_groups(choice, selection, banned=edit.banned is not None)
        choice = _ban(torch.where(outside, _group_fill(selection, edit), choice), edit)
        if rule.weights_from == "choice":
            inside_only = scores.masked_fill(outside, rule.group_fill)
            scores = inside_only if edit.forced is None else torch.where(edit.forced, scores, inside_only)
    choice = rank_forced(choice, selection, edit)
    return scores, torch.topk(choice, selection.top_k, dim=-1, sorted=rule.sorted).indices


def score(logits: Tensor, selection: BoundRule, edit: RoutingEdit) -> Tensor:
    """Return the scores of the logits by the rule, `(tokens, experts)`.

    Args:
        logits (`torch.Tensor` of shape `(tokens, experts)`): Router logits.
        selection (`BoundRule`): The rule and the router's numbers.
        edit (`RoutingEdit`): What to change.
    """
    rule = selection.rule
    scores = logits if rule.native_dtype else logits.float()
    if edit.logit_bias is not None:
        # Where the router hands out probabilities, adding to a logit is multiplying by an exponential.
        scores = scores * edit.logit_bias.exp() if rule.scoring == "probabilities" else scores + edit.logit_bias
    if rule.scoring == "softmax":
        scores = scores.softmax(dim=-1)
    elif rule.scoring == "sigmoid":
        scores = scores.sigmoid()
    elif selection.score_fn is not None:
        # An activation in several steps rounds after each, so that it is given what the router's own is given.
        scores = selection.score_fn(scores.to(logits.dtype) if rule.native_dtype else scores)
    else:
        return scores
    # A bias is added in float32; the scores are in the dtype of the router's own nevertheless.
    return scores.to(logits.dtype) if rule.native_dtype else scores


def family_weights(scores: Tensor, indices: Tensor, selection: BoundRule, edit: RoutingEdit) -> Tensor:
    """Return the weights of the chosen experts by the family's rule, `(tokens, top_k)`; banned ones get 0.

    Args:
        scores (`torch.Tensor` of shape `(tokens, experts)`): What the weights come from.
        indices (`torch.Tensor` of shape `(tokens, top_k)`): The chosen experts.
        selection (`BoundRule`): The rule and the router's numbers.
        edit (`RoutingEdit`): What to change.
    """
    rule = selection.rule
    weights = scores.gather(-1, indices)
    # Fewer survivors than slots: top-k fills the rest with banned experts, which must not come back with a weight.
    banned = None if edit.banned is None else values_at(edit.banned, indices)
    if rule.weights_from == "softmax":
        if banned is not None:
            weights = weights.masked_fill(banned, NEVER)
        weights = weights.softmax(dim=-1, dtype=torch.float if rule.weights_float32 else None)
    elif rule.weights_from == "sigmoid":
        weights = (weights.float() if rule.weights_float32 else weights).sigmoid()
    if banned is not None:
        weights = weights.masked_fill(banned, 0.0)
    if selection.renormalize:
        total = weights.sum(dim=-1, keepdim=True)
        if rule.epsilon:
            total = total + rule.epsilon
        if selection.least_sum:
            total = total.clamp(min=selection.least_sum)
        if banned is not None:
            total = total.masked_fill(total == 0, 1.0)
        weights = weights / total
    if rule.scale is not None:
        weights = weights * selection.scale
    return weights / selection.top_k if rule.divide_by_top_k else weights


def _ban(choice: Tensor, edit: RoutingEdit) -> Tensor:
    return choice if edit.banned is None else choice.masked_fill(edit.banned, NEVER)


def _group_fill(selection: BoundRule, edit: RoutingEdit) -> Tensor | float:
    """Choice score of experts outside the best groups, which is below every score inside, also under a bias."""
    fill = selection.rule.group_fill
    if edit.selection_bias is None:
        return fill
    return fill + edit.selection_bias.amin(dim=-1, keepdim=True).clamp(max=0.0)


def _outside_best_groups(choice: Tensor, selection: BoundRule, *, banned: bool) -> Tensor:
    """True for the experts whose group is not among the best, `(tokens, experts)`."""
    grouped = choice.view(choice.shape[0], selection.num_groups, -1)
    if selection.rule.group_score == "top2_sum":
        best = grouped.topk(2, dim=-1).values
        # With one expert left, a group is ranked by that one: minus infinity would tie it with the empty groups.
        group_scores = best[..., 0] + best[..., 1].masked_fill(best[..., 1] == NEVER, 0.0) if banned else best.sum(-1)
    else:
        group_scores = grouped.amax(dim=-1)
    kept = torch.topk(group_scores, selection.groups_kept, dim=-1, sorted=False).indices
    outside = torch.ones_like(group_scores, dtype=torch.bool).scatter_(-1, kept, False)
    return outside.repeat_interleave(grouped.shape[-1], dim=-1)


def rank_forced(choice: Tensor, selection: BoundRule, edit: RoutingEdit) -> Tensor:
    """Return choice scores with forced experts above all others, and suppressed ones that are chosen right below.

    Args:
        choice (`torch.Tensor` of shape `(tokens, experts)`): Choice scores.
        selection (`BoundRule`): The rule and the router's numbers.
        edit (`RoutingEdit`): What to change.
    """
    if edit.forced is None:
        return choice
    suppressed = [value < 1 for value in (edit.drop_share, edit.gain) if value is not None]
    if not suppressed:
        return choice.masked_fill(edit.forced, ALWAYS)
    chosen = torch.topk(choice, selection.top_k, dim=-1, sorted=False).indices
    occupied = torch.zeros_like(choice, dtype=torch.bool).scatter_(-1, chosen, True)
    kept = occupied & torch.stack(torch.broadcast_tensors(*suppressed)).any(dim=0)
    # Ranks, so that the order within each of the three tiers does not change.
    ranks = choice.argsort(dim=-1).argsort(dim=-1)
    return (ranks + choice.shape[-1] * (kept.long() + 2 * edit.forced.long())).float()


def reweigh(weights: Tensor, indices: Tensor, edit: RoutingEdit) -> Tensor:
    """Return the weights after drop, gain, and the weights of forced experts.

    Args:
        weights (`torch.Tensor` of shape `(tokens, top_k)`): Weights by the family's rule.
        indices (`torch.Tensor` of shape `(tokens, top_k)`): The chosen experts.
        edit (`RoutingEdit`): What to change.
    """
    if edit.drop_share is not None and edit.keeps_all_or_nothing:
        weights = _drop(weights, values_at(edit.drop_share, indices))
    elif edit.drop_share is not None:
        keep = values_at(edit.drop_share, indices)
        suppressed = keep < 1
        left = weights * keep
        survivors = weights.masked_fill(suppressed, 0.0).sum(dim=-1, keepdim=True)
        owed = weights.sum(dim=-1, keepdim=True) - left.masked_fill(~suppressed, 0.0).sum(dim=-1, keepdim=True)
        shared_out = weights / survivors.masked_fill(survivors == 0, 1.0) * owed
        hit = suppressed.any(dim=-1, keepdim=True)
        weights = torch.where(suppressed, left, torch.where(hit, shared_out, weights))
    if edit.gain is not None:
        weights = weights * values_at(edit.gain, indices)
    if edit.forced is not None:
        forced = values_at(edit.forced, indices)
        if edit.forced_to_max is not None:
            to_max = forced & values_at(edit.forced_to_max, indices)
            weights = torch.where(to_max, weights.amax(dim=-1, keepdim=True), weights)
        if edit.forced_weight is not None:
            given = values_at(edit.forced_weight, indices).to(weights.dtype)
            weights = torch.where(forced & ~given.isnan(), given, weights)
        if edit.forced_gain is not None:
            weights = torch.where(forced, weights * values_at(edit.forced_gain, indices), weights)
    return weights


def _drop(weights: Tensor, keep: Tensor) -> Tensor:
    """Weights with those for which `keep` is 0 distributed among those for which it is 1."""
    left = weights * keep
    survivors, total = left.sum(dim=-1, keepdim=True), weights.sum(dim=-1, keepdim=True)
    # Divided first: the survivors' sum can be so small that its inverse is infinite. Rows that lose nothing are left
    # alone, to the last bit.
    shared_out = left / survivors.masked_fill(survivors == 0, 1.0) * total
    return torch.where(survivors == total, left, shared_out)
