"""The routing of every family computed a second time, token by token in numpy and float64.

Written from the maths in the modelling files of transformers and from the definitions of the edits, with sets and
sorting where the package has masks and fills. `FAMILIES` says in a line what each family does; numbers come from the
model's config, never from its routers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "FAMILIES",
    "SUFFICIENT_MARGIN",
    "Edit",
    "Family",
    "Numbers",
    "Routed",
    "RoutedTokens",
    "Token",
    "edit_at",
    "numbers_of",
    "route",
    "route_all",
]

# A choice decided by less is a tie, about which a reference can say nothing.
SUFFICIENT_MARGIN = 1e-5


@dataclass(frozen=True)
class Family:
    """What one family's routers do with their logits.

    `bias` is where the selection bias is (a dotted path from the router, `block.` for the module around it); `groups`
    how a group is scored; `weights` where weights come from; `renorm` whether they are divided by their sum (a
    config's name if it says so); `scale` the config's name of the final factor; `layers` the layers with routers.
    """

    scoring: str = "softmax"
    bias: str | None = None
    groups: str | None = None
    others_at_zero: bool = False
    weights: str = "scores"
    renorm: bool | str = True
    epsilon: float = 0.0
    least_sum: str | None = None
    scale: str | None = None
    expert_scale: str | None = None
    special: str | None = None
    layers: tuple[int, ...] = (1, 2)


ALL = (0, 1, 2)
NORM = "norm_topk_prob"
SCALE = "routed_scaling_factor"
CORRECTION = "e_score_correction_bias"
_OPTIONAL = Family(renorm=NORM)
_CHOSEN = Family(scoring="logits", weights="softmax", renorm=False, layers=ALL)
_V2 = Family(groups="max", others_at_zero=True, renorm=False, scale=SCALE)
_V3 = Family("sigmoid", CORRECTION, groups="sum2", renorm=NORM, epsilon=1e-20, scale=SCALE)
_SIGMOID = Family("sigmoid", CORRECTION)
_ERNIE = Family(bias=f"moe_statics.{CORRECTION}", least_sum="moe_norm_min")

FAMILIES: dict[str, Family] = {
    "afmoe": Family("sigmoid", "block.expert_bias", epsilon=1e-20, scale="route_scale"),
    "aria": _CHOSEN,
    "axk1": _V3,
    "axk2": replace(_V3, others_at_zero=True),
    "bailing_hybrid": _V3,
    "beam": replace(_V3, scale=None),
    "cohere2_moe": replace(_CHOSEN, layers=(1, 2)),
    "dbrx": Family(special="p_norm", renorm=False, layers=(0, 1)),
    "deepseek_ocr2": _V2,
    "deepseek_v2": _V2,
    "deepseek_v3": _V3,
    "deepseek_v32": _V3,
    "deepseek_v4": Family("config", CORRECTION, epsilon=1e-20, scale=SCALE, special="hash", layers=ALL),
    "dots1": _V3,
    "dots3_note": _V3,
    "ernie4_5_moe": _ERNIE,
    "ernie4_5_vl_moe": _ERNIE,
    "exaone_moe": _V3,
    "flex_olmo": replace(_OPTIONAL, layers=ALL),
    "flint": Family("sigmoid", renorm=NORM),
    "gemma4": Family("probabilities", expert_scale="per_expert_scale", layers=ALL),
    "glm4_moe": _V3,
    "glm4_moe_lite": _V3,
    "glm4v_moe": _V3,
    "glm5_next": _V3,
    "glm_moe_dsa": _V3,
    "gpt_oss": _CHOSEN,
    "granitemoe": _CHOSEN,
    "granitemoe_swa": _CHOSEN,
    "granitemoehybrid": _CHOSEN,
    "granitemoeshared": _CHOSEN,
    "hunyuan_v1_moe": Family(layers=ALL),
    "hy_v3": Family("sigmoid", f"block.{CORRECTION}", epsilon=1e-20, scale="router_scaling_factor"),
    "hy_v4": _V3,
    "hy_v4_vl": _V3,
    "inkling": Family("sigmoid", CORRECTION, weights="joint", renorm=False, scale="route_scale"),
    "inkling2": Family("config", CORRECTION, epsilon=1e-20, scale="route_scale", layers=ALL),
    "inkling2_loop": Family("config", CORRECTION, epsilon=1e-20, scale="route_scale", layers=ALL),
    "jamba": Family(renorm=False, layers=(1, 3)),
    "jetmoe": _CHOSEN,
    "kimi_linear": _V3,
    "kolibri1": Family("logits", CORRECTION, weights="sigmoid", renorm=NORM, layers=ALL),
    "laguna": _SIGMOID,
    "lara_mini": replace(_OPTIONAL, layers=ALL),
    "lfm2_moe": Family("sigmoid", "block.expert_bias", renorm=NORM, epsilon=1e-6, scale=SCALE),
    "llama4": Family("logits", weights="sigmoid", renorm=False),
    "longcat_flash": Family(bias=CORRECTION, renorm=False, scale=SCALE, layers=(0, 1)),
    "mellum": _OPTIONAL,
    "mimo_v2_flash": _V3,
    "minimax": Family(layers=ALL),
    "minimax_m2": Family("sigmoid", f"block.{CORRECTION}", layers=ALL),
    "minimax_m3_vl": _SIGMOID,
    "mistral4": Family(groups="sum2", others_at_zero=True, renorm=NORM, epsilon=1e-20, scale=SCALE),
    "mistral_large4": Family(groups="sum2", others_at_zero=True, epsilon=1e-20, scale=SCALE),
    "mixtral": Family(layers=ALL),
    "muse_spark": replace(_SIGMOID, epsilon=1e-15, scale=SCALE),
    "nemotron_h": replace(_V3, layers=(1, 3)),
    "olmoe": replace(_OPTIONAL, layers=ALL),
    "openai_privacy_filter": replace(_CHOSEN, special="by_k"),
    "phimoe": Family("logits", renorm=False, special="sparsemixer", layers=ALL),
    "qwen2_moe": _OPTIONAL,
    "qwen3_5_moe": Family(layers=ALL),
    "qwen3_moe": _OPTIONAL,
    "qwen3_next": _OPTIONAL,
    "qwen3_omni_moe": _OPTIONAL,
    "qwen3_vl_moe": Family(),
    "qwen4_exp": replace(_OPTIONAL, layers=ALL),
    "sarvam_mla": _V3,
    "sarvam_moe": _V3,
    "solar_open": replace(_V3, layers=ALL),
    "step3p7": _SIGMOID,
    "unlimited_ocr": _V2,
    "zaya": Family(bias="balancing_biases", renorm=False, special="skip", layers=ALL),
}


class Numbers(NamedTuple):
    """What a config says about its routers."""

    num_experts: int
    top_k: int
    groups: int = 1
    groups_kept: int = 1
    renorm: bool = False
    least_sum: float = 0.0
    scale: float = 1.0
    activation: Callable[[np.ndarray], np.ndarray] | None = None
    p: float | None = None
    jitter: float = 0.0


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
    gain: dict[int, float] = field(default_factory=dict)

    def gains(self) -> dict[int, float]:
        """What weights are multiplied by, at the strength."""
        return {expert: 1 + self.strength * (value - 1) for expert, value in self.gain.items()}


class Token(NamedTuple):
    """What a router knows of one token besides its logits."""

    bias: np.ndarray | None = None
    expert_scale: np.ndarray | None = None
    shared_logits: np.ndarray | None = None
    listed: list[int] | None = None


class Routed(NamedTuple):
    """Weight of each expert, whether it is chosen, by how much the choice was decided, shared experts' weights."""

    weights: np.ndarray
    chosen: np.ndarray
    margin: float
    shared: np.ndarray


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


_ACTIVATIONS = {"sigmoid": _sigmoid, "sqrtsoftplus": lambda x: np.sqrt(np.logaddexp(0, x)), "logits": lambda x: x}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts", "num_experts_per_token")


def numbers_of(family: Family, config: Any) -> Numbers:
    """Read a family's numbers from the config of its text model."""
    if family.special == "p_norm":
        ffn = config.ffn_config
        return Numbers(ffn.moe_num_experts, ffn.moe_top_k, p=ffn.moe_normalize_expert_weights)
    experts = next(getattr(config, name) for name in _EXPERTS if hasattr(config, name))
    # LongCat-Flash and Zaya route among classes that are no experts as well.
    experts += getattr(config, "zero_expert_num", 0) + (family.special == "skip")
    grouped = family.groups is not None and getattr(config, "topk_method", "") != "greedy"
    scoring = config.scoring_func if family.scoring == "config" else family.scoring
    return Numbers(
        experts,
        next(getattr(config, name) for name in _TOP_K if hasattr(config, name)),
        groups=config.n_group if grouped else 1,
        groups_kept=config.topk_group if grouped else 1,
        renorm=getattr(config, family.renorm) if isinstance(family.renorm, str) else family.renorm,
        least_sum=getattr(config, family.least_sum) if family.least_sum else 0.0,
        scale=getattr(config, family.scale) if family.scale else 1.0,
        activation=_ACTIVATIONS.get(scoring),
        jitter=getattr(config, "router_jitter_noise", 0.0),
    )


def route(logits: np.ndarray, family: Family, n: Numbers, edit: Edit, token: Token) -> Routed:
    """Route one token."""
    logits = logits.astype(np.float64)
    biases = np.zeros(n.num_experts)
    for expert, value in edit.bias.items():
        biases[expert] = value * edit.strength
    if edit.bias_on == "logits":
        logits = logits * np.exp(biases) if family.scoring == "probabilities" else logits + biases
    if family.scoring == "softmax":
        powers = np.exp(logits - logits.max())
        s = powers / powers.sum()
    else:
        s = logits if n.activation is None else n.activation(logits)
    natural = s if token.bias is None else s + token.bias
    c = natural + biases if edit.bias_on == "selection" else natural
    suppressed = set(edit.suppress) if edit.strength > 0 else set()
    banned = suppressed if edit.suppress_mode == "reroute" else set()
    margins: list[float] = []
    mixed: dict[int, float] = {}
    if family.special == "sparsemixer":
        mixed = _sparsemixer(logits, banned, n, margins)
        chosen = list(mixed)
    else:
        chosen = _choose(c, s, banned, family, n, token, margins)
        if family.others_at_zero:
            # The models put experts outside the best groups at 0, not at minus infinity.
            margins.append(min(natural[e] for e in chosen))
    # Experts that a table lists come before those that fill its places.
    rank = c if token.listed is None else c + 100 * np.isin(np.arange(n.num_experts), token.listed)
    weakened = suppressed | {expert for expert, factor in edit.gains().items() if factor < 1}
    _stimulate(chosen, rank, edit, weakened, n.top_k, margins)
    if mixed:
        w, shared = mixed, np.zeros(0)
    else:
        w, shared = _weights(chosen, logits, s, family, n, token)
    if family.special == "skip":
        w = {e: 0.0 if e == n.num_experts - 1 else value for e, value in w.items()}
    w = _after(w, edit, suppressed)
    weights, mask = np.zeros(n.num_experts), np.zeros(n.num_experts, dtype=bool)
    for expert, value in w.items():
        weights[expert], mask[expert] = value, True
    return Routed(weights, mask, min(margins, default=np.inf), shared)


class RoutedTokens(NamedTuple):
    """Weights and choice of several tokens, `(tokens, experts)`, and by how much each was decided, `(tokens,)`."""

    weights: np.ndarray
    chosen: np.ndarray
    margin: np.ndarray


def route_all(
    logits: np.ndarray, family: Family, n: Numbers, bias: np.ndarray | None = None, edit: Edit | None = None
) -> RoutedTokens:
    """Route several tokens, `(tokens, experts)`, that differ in their logits alone."""
    found = [route(row, family, n, edit or Edit(), Token(bias)) for row in logits]
    return RoutedTokens(
        np.stack([one.weights for one in found]),
        np.stack([one.chosen for one in found]),
        np.array([one.margin for one in found]),
    )


def edit_at(layer: int, fields: dict[str, Any]) -> Edit:
    """The share that one layer has in the fields of a config."""
    mine = dict(fields)
    for name in ("suppress", "stimulate"):
        mine[name] = frozenset(expert for at, expert in fields.get(name, ()) if at == layer)
    for name in ("bias", "gain"):
        mine[name] = {expert: value for at, expert, value in fields.get(name, ()) if at == layer}
    return Edit(**mine)


def _choose(
    c: np.ndarray,
    s: np.ndarray,
    banned: set[int],
    family: Family,
    n: Numbers,
    token: Token,
    margins: list[float],
) -> list[int]:
    allowed = [e for e in range(n.num_experts) if e not in banned]
    listed = [] if token.listed is None else [e for e in token.listed if e not in banned]
    if n.groups_kept < n.groups:
        size = n.num_experts // n.groups
        scores = []
        for group in range(n.groups):
            members = sorted((c[e] for e in allowed if e // size == group), reverse=True)
            best = members[:1] if family.groups == "max" else members[:2]
            scores.append(sum(best) if best else -np.inf)
        order = sorted(range(n.groups), key=lambda group: -scores[group])
        margins.append(scores[order[n.groups_kept - 1]] - scores[order[n.groups_kept]])
        allowed = [e for e in allowed if e // size in order[: n.groups_kept]]
    ranked = listed + sorted((e for e in allowed if e not in listed), key=lambda e: -c[e])
    if len(listed) < n.top_k < len(ranked):
        last, next_best = c[ranked[n.top_k - 1]], c[ranked[n.top_k]]
        # What softmax makes of logits is as exact as it is small; a bias leaves no more than float32 has around 1.
        unit = max(abs(last), abs(next_best)) if c is s and family.scoring == "softmax" else 1.0
        margins.append((last - next_best) / unit)
    return ranked[: n.top_k]


def _stimulate(
    chosen: list[int], c: np.ndarray, edit: Edit, suppressed: set[int], top_k: int, margins: list[float]
) -> None:
    """Put stimulated experts in the place of the weakest that are neither suppressed nor stimulated."""
    if edit.strength <= 0:
        return
    for expert in sorted(edit.stimulate - set(chosen)):
        if len(chosen) == top_k:
            replaceable = [e for e in chosen if e not in suppressed | edit.stimulate]
            replaceable = replaceable or [e for e in chosen if e not in edit.stimulate]
            loser = min(replaceable, key=lambda e: c[e])
            margins.append(min((c[e] - c[loser] for e in replaceable if e != loser), default=np.inf))
            chosen.remove(loser)
        chosen.append(expert)


def _weights(
    chosen: list[int], logits: np.ndarray, s: np.ndarray, family: Family, n: Numbers, token: Token
) -> tuple[dict[int, float], np.ndarray]:
    """Weights of the chosen by the family's own rule, and those of the shared experts if the router sets them."""
    w, shared = s[chosen], np.zeros(0)
    if family.weights == "softmax":
        w = np.exp(w - w.max())
        w = w / w.sum()
    elif family.weights == "sigmoid":
        w = _sigmoid(w)
    elif family.weights == "joint":
        assert token.shared_logits is not None
        both = _sigmoid(np.concatenate([logits[chosen], token.shared_logits.astype(np.float64)]))
        both = both / both.sum()
        w, shared = both[: len(chosen)], both[len(chosen) :]
    if n.p is not None:
        w = w / (np.abs(w) ** n.p).sum() ** (1 / n.p)
    if n.renorm:
        w = w / max(w.sum() + family.epsilon, n.least_sum)
    w, shared = w * n.scale, shared * n.scale
    if token.expert_scale is not None:
        # One factor for all experts (Inkling), or one for each.
        scale = np.broadcast_to(token.expert_scale, n.num_experts)
        w, shared = w * scale[chosen], shared * scale[0]
    if family.special == "by_k":
        w = w / n.top_k
    return dict(zip(chosen, w.tolist(), strict=True)), shared


def _after(w: dict[int, float], edit: Edit, suppressed: set[int]) -> dict[int, float]:
    """What follows the selection: drop or zero, gains, then the weights of stimulated experts."""
    hit = {e for e in w if e in suppressed}
    if hit and edit.suppress_mode == "drop":
        total, left = sum(w.values()), sum(w[e] for e in hit) * (1 - edit.strength)
        survivors = sum(value for e, value in w.items() if e not in hit)
        factor = (total - left) / survivors if survivors else 0.0
        w = {e: v * (1 - edit.strength) if e in hit else v * factor for e, v in w.items()}
    elif hit and edit.suppress_mode == "zero":
        w = {e: v * (1 - edit.strength) if e in hit else v for e, v in w.items()}
    w = {e: v * edit.gains().get(e, 1.0) for e, v in w.items()}
    largest = max(w.values())
    for expert in edit.stimulate if edit.strength > 0 else ():
        if edit.stimulate_weight == "max":
            w[expert] = largest
        elif edit.stimulate_weight != "own":
            w[expert] = float(edit.stimulate_weight)
        w[expert] *= edit.strength
    return w


def _sparsemixer(logits: np.ndarray, banned: set[int], n: Numbers, margins: list[float]) -> dict[int, float]:
    """Two experts, one after the other; each weight is a softmax over what is close to the best of its round."""
    found: dict[int, float] = {}
    rounds = [e for e in range(n.num_experts) if e not in banned]
    for _ in range(2):
        ranked = sorted((e for e in rounds if e not in found), key=lambda e: -logits[e])
        best = ranked[0]
        distances = {e: (logits[best] - logits[e]) / max(abs(logits[e]), logits[best]) for e in ranked}
        near = [e for e in ranked if distances[e] <= 2 * n.jitter]
        margins += [abs(distance - 2 * n.jitter) for distance in distances.values()]
        margins.append(logits[best] - logits[ranked[1]] if len(ranked) > 1 else np.inf)
        found[best] = 1 / np.exp(logits[near] - logits[best]).sum()
    return found
