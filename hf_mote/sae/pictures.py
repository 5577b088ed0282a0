"""The picture of an SAE's report: densities with the fitted law, recovered loss, and L0 along the loss.

Made without pyplot, so that drawing needs no display and leaves no state behind.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_mote.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["by_rank", "draw_report", "law_at"]

_DPI = 130
_INK, _LAW = "#1f5fa8", "#b4521b"


def by_rank(density: Sequence[float]) -> list[float]:
    """Return the densities of the latents that are active at all, the largest first.

    Args:
        density (`Sequence[float]`): Share of tokens on which each latent is active.
    """
    return sorted((value for value in density if value > 0), reverse=True)


def law_at(zipf: Mapping[str, float], rank: int) -> float:
    """Return the density that the fitted law has at a rank.

    Args:
        zipf (`Mapping[str, float]`): Exponent, offset, scale.
        rank (`int`): 1 or more.
    """
    law: float = zipf["scale"] * (rank + zipf["offset"]) ** -zipf["exponent"]
    return law


def draw_report(
    density: Sequence[float],
    zipf: Mapping[str, float] | None,
    ce: Mapping[str, float],
    l0_by_tenth: Sequence[float],
    *,
    title: str,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Return the picture.

    Args:
        density (`Sequence[float]`): Share of tokens on which each latent is active.
        zipf (`Mapping[str, float]`, *optional*): The fitted law: exponent, offset, scale.
        ce (`Mapping[str, float]`): Cross entropy, clean, with the SAE, and under ablations.
        l0_by_tenth (`Sequence[float]`): Mean L0 by tenth of the loss, from the easiest on.
        title (`str`): Heading.
        path (`str` or `os.PathLike`, *optional*): Where to write it, as PNG, SVG or PDF by its ending.
    """
    from hf_mote.plots import Picture

    figure = Picture(figsize=(11.0, 3.6), dpi=_DPI, layout="constrained")
    spectrum, losses, adaptive = figure.subplots(1, 3)
    alive = by_rank(density)
    ranks = range(1, len(alive) + 1)
    spectrum.loglog(ranks, alive, color=_INK, label="latents")
    if zipf is not None and alive:
        law = [law_at(zipf, rank) for rank in ranks]
        spectrum.loglog(ranks, law, color=_LAW, linestyle="--", label=f"Zipf, exponent {zipf['exponent']:.2f}")
    spectrum.set_xlabel("rank of the latent")
    spectrum.set_ylabel("share of tokens")
    spectrum.set_title(f"density ({len(density) - len(alive)} of {len(density)} never active)", fontsize=10)
    if alive:
        spectrum.legend(fontsize=8, frameon=False)
    losses.barh(list(ce), list(ce.values()), color=_INK)
    losses.invert_yaxis()
    losses.set_xlabel("nats for each token")
    losses.set_title("cross entropy", fontsize=10)
    adaptive.plot(range(1, len(l0_by_tenth) + 1), l0_by_tenth, color=_INK, marker="o")
    adaptive.set_ylim(bottom=0)
    adaptive.set_xlabel("tenth of the loss, easiest first")
    adaptive.set_ylabel("mean L0")
    adaptive.set_title("active latents by how hard the next token is", fontsize=10)
    for axes in (spectrum, losses, adaptive):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    if path is not None:
        with replacing(Path(path)) as temporary:
            figure.savefig(temporary)
    return figure
