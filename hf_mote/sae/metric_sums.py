"""The sums of `evaluate_sae`, forward by forward, and the report from them.

Every sum is in float64 and over all tokens; it is divided once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_mote.hub import public_name
from hf_mote.sae.hookpoints import Hookpoint
from hf_mote.sae.kept import Form
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.report import FEW, SAEReport
from hf_mote.sae.variants.bases.budgets import fit_zipf

__all__ = ["FIRST", "NUMBERS", "SECOND", "Sums", "form_of", "report_of", "scored_in"]

# Replacements of the activations, besides the SAE itself.
ABLATIONS = ("zero", "mean", "resample")
NUMBERS = ("error", "cosine", "l2_in", "l2_out", "l2_ratio", "out", "dot", "l1", "squares", "legacy")
# Of the first pass over the text, and of the second, which knows the mean.
FIRST = (*NUMBERS, *("ce clean", "ce sae", "ce zero", "ce resample"), *("kl sae", "kl zero", "kl resample"))
SECOND = ("ce mean", "kl mean")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_BLOCK = 1024


class Sums:
    """All sums, forward by forward, in float64.

    Args:
        sae ([`SAEModel`]): The SAE that is measured.
    """

    def __init__(self, sae: SAEModel) -> None:
        self.tokens = self.scored = 0
        self.sum = torch.zeros(sae.config.decoder_size, dtype=torch.float64)
        self.first = torch.zeros(len(FIRST), dtype=torch.float64)
        self.second = torch.zeros(len(SECOND), dtype=torch.float64)
        self.fired = torch.zeros(sae.config.num_latents, dtype=torch.long)
        self.kept: list[Tensor] = []
        self.l0: list[Tensor] = []
        self.loss_after: list[Tensor] = []

    def add(self, part: Mapping[str, Tensor], mask: Tensor) -> None:
        """Add the results of the first pass for one forward.

        Args:
            part (`Mapping[str, torch.Tensor]`): As [`form_of`] has it.
            mask (`torch.Tensor` of shape `(batch, length)`): 0 at padding.
        """
        self.tokens += len(part["l0"])
        self.scored += int(scored_in(part["kept"], mask).sum())
        self.sum += part["sum"]
        self.first += part["figures"]
        self.fired += part["fired"]
        self.kept.append(part["kept"])
        self.l0.append(part["l0"])
        self.loss_after.append(part["loss_after"])

    def figures(self) -> dict[str, float]:
        """Return the sums by name."""
        first = zip(FIRST, self.first.tolist(), strict=True)
        return {**dict(first), **dict(zip(SECOND, self.second.tolist(), strict=True))}


def form_of(sae: SAEModel, ids: Tensor) -> Form:
    """Return the results of the first pass for one forward.

    Args:
        sae ([`SAEModel`]): The SAE.
        ids (`torch.Tensor` of shape `(batch, length)`): The tokens.
    """
    return {
        "kept": (torch.bool, ids.shape),  # the tokens that are measured
        "l0": (torch.int64, (None,)),  # of each of them
        "loss_after": (torch.float32, (None,)),  # of the prediction after each, NaN where there is none
        "fired": (torch.int32, (sae.config.num_latents,)),
        "sum": (torch.float64, (sae.config.decoder_size,)),
        "figures": (torch.float64, (len(FIRST),)),
    }


def scored_in(kept: Tensor, mask: Tensor) -> Tensor:
    """Return which predictions are scored, bool `(batch, length - 1)`.

    Args:
        kept (`torch.Tensor` of shape `(batch, length)`, bool): The tokens that are measured.
        mask (`torch.Tensor` of shape `(batch, length)`): 0 at padding.
    """
    return kept[:, :-1] & mask[:, 1:].bool()


def report_of(state: Sums, sae: SAEModel, reads: Hookpoint, writes: Hookpoint, model: nn.Module) -> SAEReport:
    """Return the report from the sums.

    Args:
        state ([`Sums`]): The sums of both passes.
        sae ([`SAEModel`]): The SAE.
        reads (`Hookpoint`): Where it reads.
        writes (`Hookpoint`): Where it writes.
        model (`nn.Module`): The model, for its name.
    """
    n, numbers = state.tokens, state.figures()
    variance = numbers["squares"] - float(state.sum.pow(2).sum() / n)
    ce = {name: numbers[f"ce {name}"] / state.scored for name in ("clean", "sae", *ABLATIONS)}
    kl = {name: numbers[f"kl {name}"] / state.scored for name in ("sae", *ABLATIONS)}
    l0 = torch.cat(state.l0).double()
    density = state.fired.double() / n
    quantiles = torch.quantile(l0[:: max(len(l0) // 1_000_000, 1)], torch.tensor(QUANTILES, dtype=torch.float64))
    return SAEReport(
        model=public_name(getattr(getattr(model, "config", None), "name_or_path", None)),
        hookpoint=reads.name,
        output_hookpoint=None if reads.name == writes.name else writes.name,
        architecture=sae.config.model_type,
        num_latents=sae.config.num_latents,
        tokens=n,
        predictions=state.scored,
        ce=ce,
        kl=kl,
        ce_recovered={name: _share(ce[name] - ce["sae"], ce[name] - ce["clean"]) for name in ABLATIONS},
        kl_recovered={name: _share(kl[name] - kl["sae"], kl[name]) for name in ABLATIONS},
        fvu=_share(numbers["error"], variance),
        nmse=_share(numbers["error"], numbers["squares"]),
        explained_variance_legacy=numbers["legacy"] / n,
        mse=numbers["error"] / n,
        cosine=numbers["cosine"] / n,
        l2_in=numbers["l2_in"] / n,
        l2_out=numbers["l2_out"] / n,
        l2_ratio=numbers["l2_ratio"] / n,
        relative_reconstruction_bias=_share(numbers["out"], numbers["dot"]),
        l0=float(l0.mean()),
        l0_quantiles={f"{quantile:g}": float(value) for quantile, value in zip(QUANTILES, quantiles, strict=True)},
        l1=numbers["l1"] / n,
        adaptive=_adaptive(l0, torch.cat(state.loss_after).double()),
        **_latents(state, density, n),
        **_geometry(sae),
        density=density.tolist(),
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _latents(state: Sums, density: Tensor, tokens: int) -> dict[str, Any]:
    fired = state.fired
    total = float(density.sum())
    found: dict[str, Any] = {
        "dead_fraction": float((fired == 0).double().mean()),
        "dying_fraction": float(((fired > 0) & (fired < FEW)).double().mean()),
        "freq_over_1_percent": float((density > 0.01).double().mean()),
        "freq_over_10_percent": float((density > 0.1).double().mean()),
        "normalized_freq_over_1_percent": float(density[density > 0.01].sum()) / total if total else 0.0,
        "normalized_freq_over_10_percent": float(density[density > 0.1].sum()) / total if total else 0.0,
        "zipf": None,
        "underused_fraction": None,
    }
    if int((fired >= FEW).sum()) >= 3:
        fit = fit_zipf(density, least=(FEW - 0.5) / tokens)
        ranks = torch.arange(1, len(density) + 1, dtype=torch.float64)
        law = fit.scale * (ranks + fit.offset) ** -fit.exponent
        found["zipf"] = {"exponent": fit.exponent, "offset": fit.offset, "scale": fit.scale, "r2": fit.r2}
        found["underused_fraction"] = float((density.sort(descending=True).values < 0.5 * law).double().mean())
    return found


def _geometry(sae: SAEModel) -> dict[str, Any]:
    """Cosines between encoder and decoder rows, and between each row and the nearest other one."""
    found: dict[str, Any] = {"encoder_decoder_cosine": None}
    encoder, decoder = (functional.normalize(matrix.float(), dim=1) for matrix in (sae.W_enc, sae.W_dec))
    if encoder.shape == decoder.shape and not sae.config.is_transcoder:
        found["encoder_decoder_cosine"] = float((encoder * decoder).sum(1).double().mean())
    for name, rows in (("average_max_encoder_cosine_sim", encoder), ("average_max_decoder_cosine_sim", decoder)):
        nearest = []
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK] @ rows.T
            block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -math.inf
            nearest.append(block.max(1).values)
        found[name] = float(torch.cat(nearest).double().mean()) if len(rows) > 1 else None
    return found


def _adaptive(l0: Tensor, loss: Tensor) -> dict[str, Any]:
    """How L0 depends on the loss of the next token: correlations, and mean L0 by tenth of the loss."""
    known = loss.isfinite()
    l0, loss = l0[known], loss[known]

    def correlation(a: Tensor, b: Tensor) -> float | None:
        a, b = a - a.mean(), b - b.mean()
        scale = float(a.norm() * b.norm())
        return float((a * b).sum()) / scale if scale > 0 else None

    def ranks(values: Tensor) -> Tensor:
        _, group, count = values.unique(return_inverse=True, return_counts=True)
        last = count.cumsum(0).double()
        middle: Tensor = last - (count.double() - 1) / 2
        return middle[group]

    tenths = [part for part in l0[loss.argsort(stable=True)].tensor_split(10) if len(part)]
    return {
        "pearson": correlation(l0, loss),
        "spearman": correlation(ranks(l0), ranks(loss)),
        "l0_by_tenth_of_loss": [float(part.mean()) for part in tenths],
    }
