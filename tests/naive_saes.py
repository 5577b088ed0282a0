"""The training losses of every architecture once more: dense, in the obvious way, with sorts, for autograd in float64.

Written from the papers and `hf_mote`'s documentation, not from its code, to be compared with it. Only selections that
are exact (who is active) are taken as constants, as every one of the papers does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["naive_encode", "naive_loss", "rounded_shares"]


def naive_loss(
    sae: Any, activations: Tensor, targets: Tensor | None = None, neglected: Tensor | None = None
) -> dict[str, Tensor]:
    """Return `loss`, `reconstruction`, `latents` and, where there are, `sparsity_loss` and `aux_loss`.

    Args:
        sae (`SAEModel`): Its parameters are used, and nothing of its methods.
        activations (`torch.Tensor` of shape `(tokens, hidden_size)`): No padding.
        targets (`torch.Tensor` of shape `(tokens, output_size)`, *optional*): Of a transcoder.
        neglected (`torch.Tensor` of shape `(num_latents,)`, bool, *optional*): Latents of the auxiliary loss.
    """
    c, kind = sae.config, sae.config.model_type
    x, y = activations, activations if targets is None else targets
    centred = x - sae.b_dec if c.subtract_decoder_bias else x
    u = centred @ sae.W_enc.T
    pre = u + sae.b_enc
    norms = sae.W_dec.pow(2).sum(1).sqrt()
    skip = x @ sae.W_skip.T if c.skip_connection else torch.zeros_like(y)
    measure = {"fvu": naive_fvu, "mse": naive_mse}[c.reconstruction_loss]
    out: dict[str, Tensor] = {}

    if kind == "relu_sae":
        latents = pre.relu()
        out["sparsity_loss"] = (latents * norms).sum(1).mean()
    elif kind == "gated_sae":
        latents = (pre > 0) * (u * sae.r_mag.exp() + sae.b_mag).relu()
        gate = pre.relu()
        out["sparsity_loss"] = (gate * norms).sum(1).mean()
        out["aux_loss"] = measure(y, gate @ sae.W_dec.detach() + sae.b_dec.detach() + skip.detach())
    elif kind == "jumprelu_sae":
        positive = pre.relu()
        latents = positive * (positive > sae.threshold)
        l0 = (positive > sae.threshold).sum(1).double().mean()
        # Eqs. 11 and 12 as terms that are worth 0 and have the estimators' derivatives.
        window = ((positive - sae.threshold).abs() < c.bandwidth / 2) / c.bandwidth
        moves = sae.threshold - sae.threshold.detach()
        latents = latents - sae.threshold.detach() * window * moves
        l0 = l0 - (window * moves).sum(1).mean()
        out["sparsity_loss"] = l0 if c.l0_target is None else (l0 / c.l0_target - 1) ** 2
    else:
        scale = norms.detach() if c.scale_latents_by_decoder_norm else torch.ones_like(norms)
        affinity = (pre * scale).relu().detach()
        chosen = _chosen(sae, affinity)
        latents = pre * chosen * scale
    decoded = latents
    if getattr(c, "scale_latents_by_decoder_norm", False):
        decoded = latents / norms.detach()
    reconstruction = decoded @ sae.W_dec + sae.b_dec + skip
    if kind == "matryoshka_sae":
        ends = torch.tensor(c.group_sizes).cumsum(0).tolist()
        loss = sum(measure(y, decoded[:, :end] @ sae.W_dec[:end] + sae.b_dec + skip) for end in ends) / len(ends)
    else:
        loss = measure(y, reconstruction)
    if neglected is not None and bool(neglected.any()):
        error = (y - reconstruction).detach()
        candidates = pre.detach().masked_fill(~neglected, -1.0).relu()
        kept = _first(candidates, c.aux_k or c.hidden_size // 2, dim=1)
        out["aux_loss"] = naive_fvu(error, (pre * kept) @ sae.W_dec)
    for name, coefficient in (("sparsity_loss", _sparsity_coefficient(c)), ("aux_loss", _aux_coefficient(c))):
        if name in out:
            loss = loss + coefficient * out[name]
    return {"loss": loss, "reconstruction": reconstruction, "latents": latents, **out}


def naive_encode(sae: Any, activations: Tensor) -> Tensor:
    """Return the latents of `(tokens, hidden_size)` outside training: each token and latent by itself."""
    c, kind = sae.config, sae.config.model_type
    u = (activations - sae.b_dec if c.subtract_decoder_bias else activations) @ sae.W_enc.T
    pre = u + sae.b_enc
    if getattr(c, "scale_latents_by_decoder_norm", False):
        pre = pre * sae.W_dec.pow(2).sum(1).sqrt()
    if kind == "relu_sae":
        return pre.relu()
    if kind == "gated_sae":
        return torch.where(pre > 0, (u * sae.r_mag.exp() + sae.b_mag).relu(), 0.0)
    if kind == "topk_sae":
        return torch.where(_first(pre, c.k, dim=1), pre, 0.0)
    return torch.where(pre > sae.threshold, pre, 0.0)


def naive_fvu(y: Tensor, rebuilt: Tensor) -> Tensor:
    """Return squared error over squared distance from the mean."""
    return ((y - rebuilt) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()


def naive_mse(y: Tensor, rebuilt: Tensor) -> Tensor:
    """Return the mean of squared errors."""
    return ((y - rebuilt) ** 2).mean()


def rounded_shares(weights: list[float], total: int, floor: int, cap: int) -> tuple[list[float], list[int]]:
    """Return shares in the proportion of weights, cut to floor and cap, and the integers they are rounded to.

    Whichever side takes or lacks more is fixed at its bound, and the rest shared out anew, until nothing is cut.
    """
    fixed: dict[int, float] = {}
    while True:
        free = [i for i in range(len(weights)) if i not in fixed]
        scale = (total - sum(fixed.values())) / sum(weights[i] for i in free) if free else 0.0
        over = [i for i in free if weights[i] * scale > cap]
        under = [i for i in free if weights[i] * scale < floor]
        excess = sum(weights[i] * scale - cap for i in over)
        lack = sum(floor - weights[i] * scale for i in under)
        if not over and not under:
            break
        fixed |= dict.fromkeys(over, cap) if excess >= lack else dict.fromkeys(under, floor)
    shares = [fixed.get(i, weights[i] * scale) for i in range(len(weights))]
    budgets = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (budgets[i] >= cap, budgets[i] - shares[i], i))
    for i in by_remainder[: total - sum(budgets)]:
        budgets[i] += 1
    return shares, budgets


def _chosen(sae: Any, affinity: Tensor) -> Tensor:
    c, kind = sae.config, sae.config.model_type
    if kind == "topk_sae":
        return _first(affinity, c.k, dim=1)
    if kind == "feature_choice_sae":
        tokens, latents = affinity.shape
        shares = [
            (rank + 1 + c.zipf_offset) ** -c.zipf_exponent if c.budget == "zipf" else 1.0 for rank in range(latents)
        ]
        by_rank = rounded_shares(shares, c.k * tokens, c.min_budget, tokens)[1]
        columns = [_first(affinity[:, [i]], by_rank[int(sae.latent_rank[i])], dim=0) for i in range(latents)]
        return torch.cat(columns, dim=1)
    return _first(affinity.reshape(-1, 1), c.k * len(affinity), dim=0).reshape(affinity.shape)


def _first(values: Tensor, count: int, dim: int) -> Tensor:
    """Mask of the `count` largest positive entries along a dimension."""
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept.scatter_(dim, values.topk(min(count, values.shape[dim]), dim=dim).indices, True)
    return kept & (values > 0)


def _sparsity_coefficient(config: Any) -> float:
    return getattr(config, "l1_coefficient", None) or getattr(config, "l0_coefficient", 0.0)


def _aux_coefficient(config: Any) -> float:
    return getattr(config, "aux_coefficient", 0.0)
