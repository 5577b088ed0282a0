"""Pictures of what was found: the expert heat map, and an effect beside its random controls.

Made of `matplotlib.figure.Figure` objects without pyplot, so that drawing needs no display and leaves no state behind.
The heat map is the paper's picture (Dahlke et al., "Mixture of Tunable Experts", arXiv 2502.11096): layers by experts.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

from hf_mote.errors import DataError
from hf_mote.files import replacing

__all__ = ["EffectRow", "plot_effect", "plot_expert_map"]

DPI = 130
_MARK_COLORS = ("#000000", "#00a651", "#d81b60", "#7b3fa0")  # apart from each other and from both colour maps
_MARK_SHAPES = ("o", "s", "D", "^")


class EffectRow(NamedTuple):
    """One row of an effect plot.

    Attributes:
        label (`str`): What was done to the model.
        rate (`float`): Rate measured then, 0 to 1.
        low (`float`): Lower end of its interval, 0 to 1.
        high (`float`): Upper end of its interval, 0 to 1.
        controls (`Sequence[float]`, *optional*): Rates under the matched random controls, 0 to 1 each.
    """

    label: str
    rate: float
    low: float
    high: float
    controls: Sequence[float] | None = None


def plot_expert_map(
    matrix: torch.Tensor | npt.ArrayLike,
    layers: Sequence[int],
    *,
    title: str,
    label: str = "tokens",
    marked: Mapping[str, Iterable[tuple[int, int]]] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Return a heat map of layers by experts.

    Values of both signs get diverging colours centred on 0, others a sequential scale from 0.

    Args:
        matrix (`torch.Tensor` or `np.ndarray` of shape `(layers, experts)`, any real dtype):
            What to show.
        layers (`Sequence[int]`):
            Absolute decoder layer of each row.
        title (`str`):
            Heading.
        label (`str`, *optional*, defaults to `"tokens"`):
            What the colours mean, with the unit.
        marked (`Mapping[str, Iterable[tuple[int, int]]]`, *optional*):
            Name to (layer, expert) pairs to circle, at most four names.
        path (`str` or `os.PathLike`, *optional*):
            Where to write it, as PNG, SVG or PDF by its ending.

    Returns:
        `matplotlib.figure.Figure`: the picture.

    Raises:
        [`DataError`]: if shapes disagree, a value is not finite, or a marked expert is not there.

    Example:
        ```python
        import numpy as np
        from hf_mote.plots import plot_expert_map

        difference = np.random.default_rng(0).normal(size=(4, 64))
        figure = plot_expert_map(difference, [1, 2, 3, 4], title="refusal - rest", marked={"planted": [(2, 17)]})
        ```
    """
    values = _checked_matrix(matrix, layers)
    marks = {name: list(pairs) for name, pairs in (marked or {}).items()}
    if len(marks) > len(_MARK_SHAPES):
        raise DataError("plot_expert_map: marked", "too many names", got=len(marks), expected=len(_MARK_SHAPES))
    rows, experts = values.shape
    width, height = float(np.clip(3.0 + experts / 18, 8.0, 12.0)), float(np.clip(2.2 + rows * 0.2, 3.6, 9.0))
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    largest = float(np.abs(values).max()) or 1.0
    diverging = bool((values < 0).any())
    norm = TwoSlopeNorm(0.0, -largest, largest) if diverging else Normalize(0.0, largest)
    image = axes.imshow(
        values, cmap="RdBu_r" if diverging else "Blues", norm=norm, aspect="auto", interpolation="nearest"
    )
    axes.set_title(title, fontsize=13)
    axes.set_xlabel("expert", fontsize=11)
    axes.set_ylabel("decoder layer", fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(16, integer=True, steps=[1, 2, 4, 5, 8, 10]))
    step = max(1, -(-rows // 24))
    axes.yaxis.set_major_locator(FixedLocator(list(range(0, rows, step))))
    axes.set_yticks(range(0, rows, step), [str(layer) for layer in layers[::step]])
    axes.tick_params(labelsize=10)
    _color_bar(figure, axes, image, label)
    _mark(figure, axes, layers, experts, marks)
    if path is not None:
        with replacing(Path(path)) as temporary:
            figure.savefig(temporary)
    return figure


def plot_effect(
    rows: Sequence[EffectRow],
    *,
    rate_name: str,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Return a plot of rates, one row each, with intervals and the random controls as grey dots.

    Args:
        rows (`Sequence[EffectRow]`):
            From top to bottom: before, then each method.
        rate_name (`str`):
            What the rate is a rate of, for the axis: "refusals on sensitive prompts".
        title (`str`, *optional*):
            Heading.
        path (`str` or `os.PathLike`, *optional*):
            Where to write it, as PNG, SVG or PDF by its ending.

    Returns:
        `matplotlib.figure.Figure`: the picture.

    Raises:
        [`DataError`]: if there is no row, or a rate is not from 0 to 1.

    Example:
        ```python
        from hf_mote.plots import EffectRow, plot_effect

        before = EffectRow("before", 0.99, 0.95, 1.0)
        after = EffectRow("top 4 suppressed", 0.1, 0.05, 0.2, controls=[0.97, 0.98, 0.99])
        figure = plot_effect([before, after], rate_name="refusals")
        ```
    """
    if not rows:
        raise DataError("plot_effect: rows", "nothing to draw", got="no rows", expected="one or more")
    for row in rows:
        rates = [row.rate, row.low, row.high, *(row.controls or ())]
        if not all(0.0 <= rate <= 1.0 for rate in rates):
            raise DataError(f"plot_effect: row {row.label!r}", "a rate is not from 0 to 1", got=rates)
    figure = Figure(figsize=(9.0, max(2.8, 1.7 + 0.62 * len(rows))), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    handles = [_draw_rates(axes, rows), *_draw_controls(axes, rows)]
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(len(rows) - 0.4, -0.5)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=11)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(rate_name, fontsize=11)
    axes.tick_params(axis="x", labelsize=10)
    axes.grid(axis="x", color="#dddddd", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if title is not None:
        axes.set_title(title, fontsize=13)
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=10, frameon=False)
    if path is not None:
        with replacing(Path(path)) as temporary:
            figure.savefig(temporary)
    return figure


def _draw_rates(axes: Axes, rows: Sequence[EffectRow]) -> Any:
    rates = np.array([row.rate for row in rows])
    # Rounding can put a rate outside its own interval by an epsilon, which an error bar refuses.
    below = np.clip(rates - [row.low for row in rows], 0.0, None)
    above = np.clip([row.high for row in rows] - rates, 0.0, None)
    points = axes.errorbar(
        rates,
        np.arange(len(rows)),
        xerr=[below, above],
        fmt="o",
        color="#1f4e9c",
        markersize=8,
        capsize=4,
        linewidth=1.8,
        label="measured, with its interval",
        zorder=4,
    )
    for place, row in enumerate(rows):
        note = f"{row.rate:.1%}"
        if row.controls:
            note += f"\ncontrols {np.mean(row.controls):.1%}"
        axes.annotate(
            note, (1.03, place), xycoords=("axes fraction", "data"), va="center", fontsize=10, annotation_clip=False
        )
    return points


def _draw_controls(axes: Axes, rows: Sequence[EffectRow]) -> list[Any]:
    jitter = np.random.default_rng(0)  # the same picture every time
    rates: list[float] = []
    places: list[float] = []
    means: list[tuple[float, float]] = []
    for place, row in enumerate(rows):
        if row.controls:
            rates.extend(row.controls)
            places.extend(place + 0.26 + jitter.uniform(-0.07, 0.07, len(row.controls)))
            means.append((float(np.mean(row.controls)), place + 0.26))
    if not means:
        return []
    style: dict[str, Any] = {"s": 18, "color": "#777777", "alpha": 0.6, "linewidths": 0, "zorder": 3}
    dots = axes.scatter(rates, places, label="random controls, one dot each", **style)
    x, y = zip(*means, strict=True)
    ticks = axes.plot(x, y, "|", color="#c0392b", markersize=15, mew=2, label="their mean", zorder=3)
    return [dots, *ticks]


def _checked_matrix(matrix: torch.Tensor | npt.ArrayLike, layers: Sequence[int]) -> npt.NDArray[np.float64]:
    array = matrix.detach().cpu().double().numpy() if isinstance(matrix, torch.Tensor) else matrix
    values = np.asarray(array, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or len(values) != len(layers):
        expected = f"({len(layers)} layers, experts)"
        raise DataError("plot_expert_map: matrix", "wrong shape", got=values.shape, expected=expected)
    if not np.isfinite(values).all():
        raise DataError("plot_expert_map: matrix", "holds NaN or infinity", expected="finite values")
    return values


def _color_bar(figure: Figure, axes: Axes, image: ScalarMappable, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, fraction=0.035, pad=0.015, aspect=30)
    bar.set_label(textwrap.fill(label, int(9 * (figure.get_figheight() - 1.0))), fontsize=11)
    bar.ax.tick_params(labelsize=10)
    bar.ax.yaxis.set_major_locator(MaxNLocator(5))


def _mark(
    figure: Figure, axes: Axes, layers: Sequence[int], experts: int, marks: Mapping[str, list[tuple[int, int]]]
) -> None:
    rows = {layer: row for row, layer in enumerate(layers)}
    for index, (name, pairs) in enumerate(marks.items()):
        for layer, expert in pairs:
            if layer not in rows or not 0 <= expert < experts:
                expected = f"layers {min(rows)}..{max(rows)}, experts 0..{experts - 1}"
                where = f"plot_expert_map: marked[{name!r}]"
                raise DataError(where, "an expert that is not in the map", got=(layer, expert), expected=expected)
        axes.scatter(
            [expert for _, expert in pairs],
            [rows[layer] for layer, _ in pairs],
            s=80 + 130 * index,  # marks of one expert lie around one another
            zorder=9 - index,
            clip_on=False,
            marker=_MARK_SHAPES[index],
            facecolors="none",
            edgecolors=_MARK_COLORS[index],
            linewidths=1.7,
            path_effects=[withStroke(linewidth=4.0, foreground="white")],  # seen on every colour
            label=f"{name} ({len(pairs)})",
        )
    if marks:
        figure.legend(loc="outside lower center", ncols=len(marks), fontsize=11, frameon=False)
