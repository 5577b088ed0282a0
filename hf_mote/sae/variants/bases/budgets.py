"""Integer budgets: how many tokens each latent may match in a batch, uniform or by Zipf's law.

Feature Choice gives latent i at most m_i tokens of a batch. Budgets add up to what the batch may spend, K times its
tokens, to the last unit: shares become integers by largest remainder, ties to the lower index.

Source: after Ayonrinde, arXiv 2411.02124, where the Zipf distribution sets the constraints; parameterisation, caps,
floors and the fit are ours.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from hf_mote.errors import ConfigError, DataError

__all__ = ["ZipfFit", "fit_zipf", "largest_remainder", "uniform_budgets", "zipf_budgets"]


class ZipfFit(NamedTuple):
    """A Zipf-Mandelbrot law, density = scale * (rank + offset) ** -exponent, ranks from 1.

    Attributes:
        exponent (`float`): Alpha; 0 is uniform.
        offset (`float`): Beta, 0 or more.
        scale (`float`): The constant in front.
        r2 (`float`): Share of the variance of the log densities that the law explains.
        num_fitted (`int`): Number of latents it was fitted to.
    """

    exponent: float
    offset: float
    scale: float
    r2: float
    num_fitted: int


def largest_remainder(shares: Tensor, total: int, *, cap: int | None = None) -> Tensor:
    """Return integers near `shares` that add up to `total`: rounded down, then one more for the largest remainders.

    Args:
        shares (`torch.Tensor` of shape `(num_latents,)`, float64): Not negative; they add up to about `total`.
        total (`int`): What the integers add up to.
        cap (`int`, *optional*): No integer is above it.

    Returns:
        `torch.Tensor` of shape `(num_latents,)`, int64.

    Raises:
        [`ConfigError`]: if `total` is further from the sum of `shares` than rounding explains.
    """
    floor = shares.floor()
    budgets = floor.long()
    missing = total - int(budgets.sum())
    remainder = shares - floor
    open_to_more = torch.ones_like(budgets, dtype=torch.bool) if cap is None else budgets < cap
    if not 0 <= missing <= int(open_to_more.sum()):
        raise ConfigError("budgets", "do not add up", got=f"shares of {float(shares.sum())}", expected=total)
    first = remainder.masked_fill(~open_to_more, -1).sort(descending=True, stable=True).indices[:missing]
    budgets[first] += 1
    return budgets


def uniform_budgets(num_latents: int, total: int, *, cap: int, floor: int = 1) -> Tensor:
    """Return equal budgets for all latents, the remainder to the first; see [`zipf_budgets`] for the arguments."""
    return zipf_budgets(num_latents, total, cap=cap, floor=floor, exponent=0.0, offset=0.0)


def zipf_budgets(num_latents: int, total: int, *, cap: int, floor: int = 1, exponent: float, offset: float) -> Tensor:
    """Return budgets by rank that follow a Zipf-Mandelbrot law between a floor and a cap.

    The share of rank r is c * (r + offset) ** -exponent, cut to `floor`..`cap`, with c such that the shares add up to
    `total`.

    Args:
        num_latents (`int`): Number of budgets.
        total (`int`): What they add up to.
        cap (`int`): Largest budget, the number of tokens.
        floor (`int`, *optional*, defaults to 1): Smallest budget.
        exponent (`float`): Alpha, 0 or more.
        offset (`float`): Beta, 0 or more.

    Returns:
        `torch.Tensor` of shape `(num_latents,)`, int64, from rank 1 on, never rising.

    Raises:
        [`ConfigError`]: if the budget cannot be met between floor and cap, with the numbers; or if `exponent` or
            `offset` is negative or not finite.
    """
    for name, value in (("exponent", exponent), ("offset", offset)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"budgets: {name}", "out of range", got=value, expected="a finite number, 0 or more")
    if not num_latents * floor <= total <= num_latents * cap:
        raise ConfigError(
            "budgets",
            "cannot be met",
            got=f"{total} matches for {num_latents} latents in {cap} tokens",
            expected=f"{num_latents * floor}..{num_latents * cap} (between {floor} and {cap} for each latent)",
            fix="Take a larger batch (dataloader_drop_last=True leaves the last, smaller one out), a larger k, fewer "
            "latents, or min_budget=0."
            if total < num_latents * floor
            else "Take a smaller k, or more latents.",
        )
    if not total:
        return torch.zeros(num_latents, dtype=torch.long)
    # Logarithms, as a steep law's weights leave the range of floats.
    log_weights = -exponent * (torch.arange(1, num_latents + 1, dtype=torch.float64) + offset).log()

    def shares(log_scale: float) -> Tensor:
        return (log_weights + log_scale).exp().clamp(floor, cap)

    # The sum of the shares grows with the scale: bisection on its logarithm, down to rounding. At the lower end the
    # largest share is no more than the floor, or than its part of a total of 1; at the upper end all are at the cap.
    low = math.log(floor or 1 / num_latents) - float(log_weights[0]) - 1.0
    high = math.log(cap) - float(log_weights[-1]) + 1.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if float(shares(middle).sum()) < total else (low, middle)
    return largest_remainder(shares(high), total, cap=cap)


def fit_zipf(densities: Tensor, *, least: float = 0.0) -> ZipfFit:
    """Fit a Zipf-Mandelbrot law to observed densities, by least squares of their logarithms.

    Args:
        densities (`torch.Tensor` of shape `(num_latents,)`):
            Share of tokens on which each latent is active, in any order.
        least (`float`, *optional*, defaults to 0.0):
            Only densities above it are fitted. Densities leave the law at the lower end, and those seen a few times
            are noise: 10 divided by the number of tokens seen is a good value.

    Returns:
        [`ZipfFit`]

    Raises:
        [`DataError`]: if a density is negative or not finite, or fewer than 3 are above `least`.
    """
    wrong = (~(densities.isfinite() & (densities >= 0))).nonzero()
    if len(wrong):
        latent = int(wrong[0])
        raise DataError(f"fit_zipf: densities[{latent}]", "must be a density", got=float(densities[latent]))
    values = densities.detach().double().cpu().sort(descending=True).values.numpy()
    log_density = np.log(values[values > max(least, 0.0)])
    if len(log_density) < 3:
        raise DataError("fit_zipf: densities", "too few to fit", got=len(log_density), expected=f"3 above {least}")
    ranks = np.arange(1, len(log_density) + 1, dtype=np.float64)

    def line(offset: float) -> tuple[float, float, float]:
        x = np.log(ranks + offset)
        slope = float(((x - x.mean()) * (log_density - log_density.mean())).sum() / ((x - x.mean()) ** 2).sum())
        intercept = float(log_density.mean() - slope * x.mean())
        return slope, intercept, float(((log_density - intercept - slope * x) ** 2).sum())

    # The offset is searched on a logarithmic scale: offsets of 1 and 2 differ, those of 1001 and 1002 hardly do.
    found = minimize_scalar(
        lambda u: line(float(np.expm1(u)))[2],
        bounds=(0.0, float(np.log1p(len(ranks)))),
        method="bounded",
        options={"xatol": 1e-8},
    )
    offset = min((0.0, float(np.expm1(found.x))), key=lambda beta: line(beta)[2])
    slope, intercept, error = line(offset)
    spread = float(((log_density - log_density.mean()) ** 2).sum())
    # Equal densities differ by rounding alone, which no law has to explain.
    rounding = 1e-24 * float((log_density**2).sum())
    r2 = 1.0 if spread <= rounding else 1.0 - error / spread
    return ZipfFit(max(-slope, 0.0), offset, float(np.exp(intercept)), r2, len(log_density))
