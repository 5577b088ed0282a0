"""`RoutingRule`: the properties in which routers differ. The table of them is in `families.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

__all__ = ["RoutingRule", "attribute_of"]


@dataclass(frozen=True, kw_only=True)
class RoutingRule:
    """How one kind of router chooses experts.

    Attribute names refer to the router module and may be dotted paths; `block.<name>` refers to the module that holds
    the router.

    Attributes:
        name (`str`): The rule's name, as shown to users.
        id (`str`, *optional*): Its short name, as `"softmax_topk_renorm"`, which [`register_routers`] takes; by
            default the name in lower case, with underscores.
        routers (`dict[str, str]`, *optional*): Router class in transformers -> model family (its `model_type`).
        lent_to (`tuple[str, ...]`): Model families without a router class of their own, built of these.
        scoring (`str`): What turns logits into scores: `"softmax"` over all experts, `"sigmoid"`, `"logits"` (none),
            `"probabilities"` (the router's first output is a softmax already) or `"score_fn"` (the router's own
            activation).
        native_dtype (`bool`): Whether scores stay in the logits' dtype; float32 otherwise.
        selection_bias (`str`, *optional*): Attribute whose values are added to the scores for the choice alone.
        group_score (`str`, *optional*): Group-limited routing: a group's score is the sum of its two best choice
            scores (`"top2_sum"`) or its best (`"max"`); the best groups stay in the choice.
        group_fill (`float`): Choice score of experts outside the groups that stay.
        weights_from (`str`): `"scores"`; `"choice"`: the scores as they stand after the group limit; `"softmax"` or
            `"sigmoid"` of the chosen scores.
        weights_float32 (`bool`): Whether that softmax or sigmoid is taken in float32, for any dtype of the scores.
        renormalize (`bool` or `str`): Whether the chosen weights are divided by their sum; an attribute name if the
            router decides.
        epsilon (`float`): Added to that sum.
        least_sum (`str`, *optional*): Attribute that the sum is raised to where it is below.
        scale (`str`, *optional*): Attribute that multiplies the weights at the end.
        expert_scale (`str`, *optional*): Attribute with one factor for each expert, applied at the end.
        divide_by_top_k (`bool`): Whether the weights are divided by the number of chosen experts at the end.
        sorted (`bool`): Whether the router asks `torch.topk` for sorted experts; it decides the order of the indices.
        num_experts (`str`): Attribute with the number of columns of the logits.
        top_k (`str`): Attribute with the number of chosen experts.
        when (`tuple[str, str]`, *optional*): Attribute and the value it must have for the row to apply.
        within (`str`, *optional*): Name that must be in the module's path; routers elsewhere in the layer are left
            alone.
        probe (`str`): What the router's forward takes: `"flat"` hidden states `(tokens, hidden_size)`, `"batched"`
            ones `(batch, seq, hidden_size)` only, or flat ones and token ids (`"with_ids"`).
        adapter (`str`, *optional*): Name in `SPECIAL_OUTPUTS`, for routers that do not return the usual triple or that
            do more than a rule states.
    """

    name: str
    id: str = ""
    routers: dict[str, str] = field(default_factory=dict)
    scoring: Literal["softmax", "sigmoid", "logits", "probabilities", "score_fn"]
    native_dtype: bool = False
    selection_bias: str | None = None
    group_score: Literal["top2_sum", "max"] | None = None
    group_fill: float = 0.0
    weights_from: Literal["scores", "choice", "softmax", "sigmoid"] = "scores"
    weights_float32: bool = False
    renormalize: bool | str = False
    epsilon: float = 0.0
    least_sum: str | None = None
    scale: str | None = None
    expert_scale: str | None = None
    divide_by_top_k: bool = False
    sorted: bool = True
    num_experts: str = "num_experts"
    top_k: str = "top_k"
    when: tuple[str, str] | None = None
    within: str | None = None
    probe: Literal["flat", "batched", "with_ids"] = "flat"
    adapter: str | None = None
    lent_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", re.sub(r"\W+", "_", self.name.lower()).strip("_"))

    @property
    def families(self) -> tuple[str, ...]:
        """Model families that follow the rule, sorted."""
        return tuple(sorted({*self.routers.values(), *self.lent_to}))


def attribute_of(module: nn.Module, path: str) -> Any:
    """Return the attribute at a dotted path.

    Args:
        module (`nn.Module`): Where the path starts.
        path (`str`): Names joined by dots.
    """
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value
