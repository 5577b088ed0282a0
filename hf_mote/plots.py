"""Plots: the expert heat map, and an effect beside its random controls, as rows or along a dose.

They are `matplotlib.figure.Figure` objects made without pyplot, so that drawing needs no display and leaves no state.
Colours, marks and axes are those of the pages, from `drawing.py`. The heat map is the paper's picture (Dahlke et al.,
"Mixture of Tunable Experts", arXiv 2502.11096): layers by experts.
"""

from __future__ import annotations

import io
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
from matplotlib.colors import LinearSegmentedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, MaxNLocator, PercentFormatter

from hf_mote.drawing import CONTROL, LESS, MARKS, MORE, ShareAxis, share_axis
from hf_mote.errors import DataError
from hf_mote.files import replacing

__all__ = ["EffectRow", "Picture", "plot_dose", "plot_effect", "plot_expert_map"]

DPI = 130
_SHAPES = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^"}
_INK = "#1b1f24"
_MEASURED, _BEFORE, _CONTROLS = ("#{:02x}{:02x}{:02x}".format(*colour) for colour in (MORE, LESS, CONTROL))
_ONE_SIGN = LinearSegmentedColormap.from_list("hf_mote.more", ["#ffffff", _MEASURED])
_BOTH_SIGNS = LinearSegmentedColormap.from_list("hf_mote.both", [_BEFORE, "#ffffff", _MEASURED])


class Picture(Figure):
    """A figure that a notebook shows as the value of a cell, without pyplot."""

    def _repr_png_(self) -> bytes:
        shown = io.BytesIO()
        self.savefig(shown, format="png")
        return shown.getvalue()


class EffectRow(NamedTuple):
    """One row of an effect plot.

    Attributes:
        label (`str`): What was done to the model.
        rate (`float`): Rate measured then, 0 to 1.
        low (`float`): Lower end of its interval, 0 to 1.
        high (`float`): Upper end of its interval, 0 to 1.
        controls (`Sequence[float]`, *optional*): Rates under the matched random controls, 0 to 1 each.
        n (`int`, *optional*): Prompts that the rate is of; below 200 it is written in whole per cents.
    """

    label: str
    rate: float
    low: float
    high: float
    controls: Sequence[float] | None = None
    n: int | None = None


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
    if len(marks) > len(MARKS):
        raise DataError("plot_expert_map: marked", "too many names", got=len(marks), expected=len(MARKS))
    rows, experts = values.shape
    width, height = float(np.clip(3.0 + experts / 18, 8.0, 12.0)), float(np.clip(2.2 + rows * 0.2, 3.6, 9.0))
    figure = Picture(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    largest = float(np.abs(values).max()) or 1.0
    diverging = bool((values < 0).any())
    norm = TwoSlopeNorm(0.0, -largest, largest) if diverging else Normalize(0.0, largest)
    image = axes.imshow(
        values, cmap=_BOTH_SIGNS if diverging else _ONE_SIGN, norm=norm, aspect="auto", interpolation="nearest"
    )
    axes.set_title(_plain(title), fontsize=13)
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
    _check_rows("plot_effect", rows)
    figure = Picture(figsize=(9.0, max(2.8, 1.7 + 0.62 * len(rows))), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axis = _fitting(rows)
    handles = [_draw_rates(axes, rows), *_draw_controls(axes, rows)]
    edge = 0.02 * (axis.high - axis.low)
    axes.set_xlim(axis.low - edge, axis.high + edge)
    axes.set_xticks(axis.ticks)
    axes.set_ylim(len(rows) - 0.4, -0.5)
    axes.set_yticks(range(len(rows)), [row.label for row in rows], fontsize=11)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(_plain(rate_name), fontsize=11)
    axes.tick_params(axis="x", labelsize=10)
    axes.grid(axis="x", color="#dddddd", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if title is not None:
        axes.set_title(_plain(title), fontsize=13)
    _finish(figure, handles, path)
    return figure


def plot_dose(
    panels: Mapping[str, Sequence[EffectRow]],
    *,
    rate_name: str,
    dose_name: str,
    before: float | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Return plots of a rate along a dose, with intervals and the random controls of each dose as grey dots.

    Args:
        panels (`Mapping[str, Sequence[EffectRow]]`):
            Rows by heading, one plot for each, with one axis for all; the rows stand from left to right, evenly apart,
            and their labels are the doses.
        rate_name (`str`):
            What the rate is a rate of.
        dose_name (`str`):
            What the dose is: "strength".
        before (`float`, *optional*):
            The rate in the untouched model, 0 to 1, drawn as a broken line.
        path (`str` or `os.PathLike`, *optional*):
            Where to write it, as PNG, SVG or PDF by its ending.

    Returns:
        `matplotlib.figure.Figure`: the picture.

    Raises:
        [`DataError`]: if there is no row, or a rate is not from 0 to 1.

    Example:
        ```python
        from hf_mote.plots import EffectRow, plot_dose

        rows = [EffectRow("1", 0.9, 0.8, 0.97, [0.95, 0.96]), EffectRow("4", 0.1, 0.05, 0.2, [0.94, 0.97])]
        figure = plot_dose({"strength 1": rows}, rate_name="refusals", dose_name="experts suppressed", before=0.97)
        ```
    """
    everything = [row for rows in panels.values() for row in rows]
    others = [] if before is None else [before]
    _check_rows("plot_dose", everything, others)
    wide = min(2, len(panels))
    deep = -(-len(panels) // wide)
    most = max(map(len, panels.values()))
    width = float(np.clip(1.0 + (0.6 + 0.9 * most) * wide, 6.0, 14.0))
    figure = Picture(figsize=(width, 0.6 + 3.6 * deep), dpi=DPI, layout="constrained")
    grid = figure.subplots(deep, wide, squeeze=False, sharey=True)
    axis = _fitting(everything, *others)
    edge = 0.02 * (axis.high - axis.low)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    handles: list[Any] = []
    for axes, (heading, rows) in zip(grid.flat, panels.items(), strict=False):
        axes.plot(range(len(rows)), [row.rate for row in rows], "-", color=_MEASURED, linewidth=1.8, zorder=4)
        drawn = [_draw_rates(axes, rows, upright=True), *_draw_controls(axes, rows, upright=True)]
        if before is not None:
            style: dict[str, Any] = {"color": _BEFORE, "linestyle": "--", "linewidth": 1.4, "zorder": 2}
            drawn.append(axes.axhline(before, label="untouched", **style))
        handles = max(handles, drawn, key=len)
        axes.set_ylim(axis.low - edge, axis.high + edge)
        axes.set_yticks(axis.ticks)
        axes.set_xlim(-0.5, len(rows) - 0.5)
        axes.set_xticks(range(len(rows)), [row.label for row in rows], fontsize=11)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(dose_name, fontsize=11)
        axes.tick_params(axis="y", labelsize=10)
        axes.grid(axis="y", color="#dddddd", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(heading, fontsize=12)
    for axes in grid[:, 0]:
        axes.set_ylabel(textwrap.fill(_plain(rate_name), 36), fontsize=11)
    _finish(figure, handles, path)
    return figure


def _check_rows(where: str, rows: Sequence[EffectRow], others: Sequence[float] = ()) -> None:
    if not rows:
        raise DataError(f"{where}: rows", "nothing to draw", got="no rows", expected="one or more")
    for row in rows:
        rates = [row.rate, row.low, row.high, *(row.controls or ()), *others]
        if not all(0.0 <= rate <= 1.0 for rate in rates):
            raise DataError(f"{where}: row {row.label!r}", "a rate is not from 0 to 1", got=rates)


def _fitting(rows: Sequence[EffectRow], *others: float) -> ShareAxis:
    return share_axis(
        [end for row in rows for end in (row.rate, row.low, row.high, *(row.controls or ()))] + [*others]
    )


def _finish(figure: Figure, handles: list[Any], path: str | os.PathLike[str] | None) -> None:
    columns = 4 if figure.get_figwidth() >= 8 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=10, frameon=False)
    if path is not None:
        with replacing(Path(path)) as temporary:
            figure.savefig(temporary)


def _draw_rates(axes: Axes, rows: Sequence[EffectRow], *, upright: bool = False) -> Any:
    rates = np.array([row.rate for row in rows])
    # Rounding can put a rate outside its own interval by an epsilon, which an error bar refuses.
    below = np.clip(rates - [row.low for row in rows], 0.0, None)
    above = np.clip([row.high for row in rows] - rates, 0.0, None)
    places = np.arange(len(rows))
    spread: dict[str, Any] = {"yerr" if upright else "xerr": [below, above]}
    style: dict[str, Any] = {
        "color": _MEASURED,
        "markersize": 8,
        "capsize": 0,
        "linewidth": 1.8,
        "zorder": 5,
        **spread,
    }
    x, y = (places, rates) if upright else (rates, places)
    points = axes.errorbar(x, y, fmt="o", label="measured, with its interval", **style)
    for place, row in enumerate(() if upright else rows):
        decimals = 0 if row.n is not None and row.n < 200 else 1
        note = f"{row.rate:.{decimals}%}"
        if row.controls:
            note += f"\ncontrols {np.mean(row.controls):.{decimals}%}"
        axes.annotate(
            note, (1.03, place), xycoords=("axes fraction", "data"), va="center", fontsize=10, annotation_clip=False
        )
    return points


def _draw_controls(axes: Axes, rows: Sequence[EffectRow], *, upright: bool = False) -> list[Any]:
    rates: list[float] = []
    places: list[float] = []
    means: list[tuple[float, float]] = []
    for place, row in enumerate(rows):
        if row.controls:
            rates.extend(row.controls)
            # In their order beside one another, as many controls have the same rate.
            places.extend(place + 0.16 + 0.2 * (np.arange(len(row.controls)) + 0.5) / len(row.controls))
            means.append((float(np.mean(row.controls)), place + 0.26))
    if not means:
        return []
    style: dict[str, Any] = {"s": 18, "color": _CONTROLS, "alpha": 0.55, "linewidths": 0, "zorder": 3}
    x, y = zip(*means, strict=True)
    dots = axes.scatter(*((places, rates) if upright else (rates, places)), label="random controls", **style)
    lines = axes.plot(
        *((y, x) if upright else (x, y)),
        "_" if upright else "|",
        color=_CONTROLS,
        markersize=17,
        mew=2.5,
        label="their mean",
        zorder=3,
    )
    return [dots, *lines]


def _checked_matrix(matrix: torch.Tensor | npt.ArrayLike, layers: Sequence[int]) -> npt.NDArray[np.float64]:
    array = matrix.detach().cpu().double().numpy() if isinstance(matrix, torch.Tensor) else matrix
    values = np.asarray(array, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or len(values) != len(layers):
        expected = f"({len(layers)} layers, experts)"
        raise DataError("plot_expert_map: matrix", "wrong shape", got=values.shape, expected=expected)
    if not np.isfinite(values).all():
        raise DataError("plot_expert_map: matrix", "holds NaN or infinity", expected="finite values")
    return values


def _plain(text: str) -> str:
    """Return a text without unprintable characters, of which matplotlib would warn."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


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
            marker=_SHAPES[MARKS[index]],
            facecolors="none",
            edgecolors=_INK,
            linewidths=1.7,
            path_effects=[withStroke(linewidth=4.0, foreground="white")],  # seen on every colour
            label=f"{name} ({len(pairs)})",
        )
    if marks:
        figure.legend(loc="outside lower center", ncols=len(marks), fontsize=11, frameon=False)
