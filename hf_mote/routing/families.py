"""The table of routing rules: one declarative row per rule, and the router classes that follow it.

A router turns a token's logits into the experts it visits and their weights. The rules differ in a few declared ways
(scoring, selection bias, group limit, normalisation, scale), so a family is a row here and not code. Supporting
another family means adding its router class to a row, or a row to the table, and a tiny config to
`tests/tiny_models.py`.

The rows follow the routers of transformers 5.23 (`modeling_<family>.py`, class `<Family>TopkRouter`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

__all__ = ["RULES", "RoutingRule", "known_routers", "rule_for"]


@dataclass(frozen=True)
class RoutingRule:
    """How one kind of router chooses experts. Attribute names refer to the router module.

    Attributes:
        name (`str`): The rule's name, as shown to users.
        routers (`dict[str, str]`): Router class in transformers -> model family (its `model_type`).
        scoring (`str`): What turns logits into scores, in float32: `"softmax"` over all experts or `"sigmoid"`.
        selection_bias (`str`, *optional*): Attribute whose values are added to the scores for the choice alone.
        group_score (`str`, *optional*): Group-limited routing: a group's score is the sum of its two best choice
            scores (`"top2_sum"`) or its best (`"max"`); the best groups stay in the choice.
        group_fill (`float`): Choice score of experts outside the groups that stay.
        group_if (`tuple[str, str]`, *optional*): Attribute and the value it must have for the group limit to apply.
        weights_from (`str`): `"scores"`, or `"choice"`: the scores as they stand after the group limit.
        renormalize (`bool` or `str`): Whether the chosen weights are divided by their sum; an attribute name if the
            router decides.
        epsilon (`float`): Added to that sum.
        scale (`str`, *optional*): Attribute that multiplies the weights at the end.
        sorted (`bool`): Whether the router asks `torch.topk` for sorted experts; it decides the order of the indices.
    """

    name: str
    routers: dict[str, str]
    scoring: Literal["softmax", "sigmoid"]
    selection_bias: str | None = None
    group_score: Literal["top2_sum", "max"] | None = None
    group_fill: float = 0.0
    group_if: tuple[str, str] | None = None
    weights_from: Literal["scores", "choice"] = "scores"
    renormalize: bool | str = False
    epsilon: float = 0.0
    scale: str | None = None
    sorted: bool = True

    @property
    def families(self) -> tuple[str, ...]:
        """Model families that follow the rule, sorted."""
        return tuple(sorted(set(self.routers.values())))


RULES: tuple[RoutingRule, ...] = (
    RoutingRule(
        name="softmax, top-k, renormalised",
        routers={"MixtralTopKRouter": "mixtral"},
        scoring="softmax",
        renormalize=True,
    ),
    RoutingRule(
        name="softmax, group-limited top-k",
        routers={"DeepseekV2TopkRouter": "deepseek_v2"},
        scoring="softmax",
        group_score="max",
        group_fill=0.0,
        group_if=("topk_method", "group_limited_greedy"),
        weights_from="choice",
        scale="routed_scaling_factor",
        sorted=False,
    ),
    RoutingRule(
        name="sigmoid, selection bias, group-limited top-k",
        routers={"DeepseekV3TopkRouter": "deepseek_v3"},
        scoring="sigmoid",
        selection_bias="e_score_correction_bias",
        group_score="top2_sum",
        group_fill=float("-inf"),
        renormalize="norm_topk_prob",
        epsilon=1e-20,
        scale="routed_scaling_factor",
        sorted=False,
    ),
)


def rule_for(module: nn.Module) -> RoutingRule | None:
    """Return the row that a module's class follows, or `None`.

    The class is looked up along the whole method resolution order, because PEFT and torch's parametrisations replace
    the runtime class by a generated subclass.

    Args:
        module (`nn.Module`): Any module.
    """
    for cls in type(module).__mro__:
        if cls.__module__.startswith("transformers.models."):
            for rule in RULES:
                if cls.__name__ in rule.routers:
                    return rule
    return None


def known_routers() -> dict[str, str]:
    """Return every router class of the table with its model family."""
    return {router: family for rule in RULES for router, family in rule.routers.items()}
