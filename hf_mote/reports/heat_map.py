"""Heat maps of layers by experts, drawn in the page: colours for an overview, the number under the pointer.

The cells are one small picture with transparency, so that it suits a light and a dark page. The page's script reads
the number of a cell from the page's data, `explorer.py`. The main values are also in a table, for readers without
colours or scripts. `plots.py` draws the same picture as a file.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.image import imsave
from torch import Tensor

from hf_mote.drawing import LESS, MARKS, MORE
from hf_mote.errors import DataError
from hf_mote.reports.formats import number, signed
from hf_mote.reports.markup import Child, Html, tag
from hf_mote.reports.tables import scrolling

__all__ = ["heat_map"]

_LEAST, _MOST = 4, 64  # pixels that a cell is wide
_MOST_NUMBERS = 9  # on the axis of experts, so that they lie apart on a narrow page
_TEXT_HEIGHT = 15
_SHAPES = {"circle": "○", "square": "□", "diamond": "◇", "triangle": "△"}


def heat_map(
    grid: Tensor,
    layers: Sequence[int],
    *,
    title: str,
    unit: str,
    heading: Child = None,
    largest: float | None = None,
    digits: int = 4,
    marked: Mapping[str, Collection[tuple[int, int]]] | None = None,
    series: str | None = None,
) -> Html:
    """Return a figure of layers by experts.

    Args:
        grid (`torch.Tensor` of shape `(layers, experts)`, any real dtype): What to show.
        layers (`Sequence[int]`): Absolute decoder layer of each row.
        title (`str`): What the figure shows, in words.
        unit (`str`): What a number is, such as "tokens per prompt".
        heading (`str` or `Html`, *optional*): What stands above it; the title by default.
        largest (`float`, *optional*): Magnitude that gets the full colour; by default the largest there is.
        digits (`int`, *optional*, defaults to 4): Significant digits that numbers carry.
        marked (`Mapping[str, Collection[tuple[int, int]]]`, *optional*): Name to (layer, expert), for at most four.
        series (`str`, *optional*): Name of its numbers in the page's data, for the script.

    Raises:
        [`DataError`]: if the shape is another, or a number is not finite.

    Example:
        ```python
        import torch
        from hf_mote.reports.heat_map import heat_map

        grid = torch.tensor([[1.0, -2.0]])
        figure = heat_map(grid, [3], title="difference", unit="tokens", marked={"first": [(3, 1)]})
        assert "layer 3, expert 0: 1" in figure
        ```
    """
    values = grid.detach().cpu().double().numpy()
    if values.ndim != 2 or values.size == 0 or len(values) != len(layers) or not np.isfinite(values).all():
        got = f"{values.shape} for {len(layers)} layers"
        raise DataError("heat_map.grid", "must be a finite grid of layers by experts", got=got)
    full = float(np.abs(values).max()) if largest is None else largest
    rows, experts = values.shape
    both = bool((values < 0).any())
    say = signed if both else number
    height = min(26.0, max(9.0, 300.0 / rows))
    names = list(marked or {})[: len(MARKS)]
    drawing = tag(
        "svg",
        tag(
            "image",
            href=f"data:image/png;base64,{_pixels(values, full or 1.0)}",
            width="100%",
            height="100%",
            preserveAspectRatio="none",
        ),
        tag("rect", class_="frame", width="100%", height="100%"),
        *_axes(layers, experts, height),
        *(
            _mark(shape, index, layers.index(layer), expert, experts, height)
            for index, (shape, name) in enumerate(zip(MARKS, names, strict=False))
            for layer, expert in sorted((marked or {})[name])
        ),
        class_="chart cells",
        style=f"height: {round(height * rows, 2)}px",
        role="img",
        aria_label=_in_words(values, layers, title, unit, digits),
        data_series=series,
    )
    room = 56  # for the numbers of layers, and for a mark at the edge
    plot = tag(
        "div",
        tag("p", "↑ decoder layer", class_="up"),
        drawing,
        tag("p", "expert →", class_="across"),
        class_="plot",
        style=f"min-width: {room + _LEAST * experts}px; max-width: {room + _MOST * experts}px",
    )
    ends = float(f"{full:.{digits}g}")
    marks = [
        tag("span", f"{_SHAPES[shape]} {name}", class_="faint") for shape, name in zip(MARKS, names, strict=False)
    ]
    key = tag(
        "p",
        tag("span", say(-ends) if both else "0"),
        tag("span", class_="ramp both" if both else "ramp one"),
        tag("span", f"{say(ends)} {unit}"),
        *marks,
        class_="key",
    )
    caption = tag("figcaption", title if heading is None else heading)
    return tag("figure", caption, scrolling(plot, title), key, class_="map")


def _pixels(values: npt.NDArray[np.float64], full: float) -> str:
    pixels = np.empty((*values.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(values[..., None] < 0, LESS, MORE)
    pixels[..., 3] = np.rint(255 * np.clip(np.abs(values) / full, 0.0, 1.0))
    file = io.BytesIO()
    imsave(file, pixels, format="png", metadata={"Software": "hf_mote"})
    return base64.b64encode(file.getvalue()).decode("ascii")


def _axes(layers: Sequence[int], experts: int, height: float) -> list[Html]:
    every = math.ceil(_TEXT_HEIGHT / height)
    texts = [
        tag("text", str(layer), class_="axis", x=-8, y=round(height * (row + 0.5) + 4, 2), text_anchor="end")
        for row, layer in enumerate(layers)
        if row % every == 0
    ]
    step = next(s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, experts) if experts / s <= _MOST_NUMBERS)
    below = round(height * len(layers) + 16, 2)
    for expert in range(0, experts, step):
        texts.append(
            tag("text", str(expert), class_="axis", x=_across(expert, experts), y=below, text_anchor="middle")
        )
    return texts


def _across(expert: int, experts: int) -> str:
    return f"{round(100 * (expert + 0.5) / experts, 3):g}%"


def _mark(shape: str, index: int, row: int, expert: int, experts: int, height: float) -> Html:
    """Return the outline around a cell; the second name's is around the first's."""
    r = round(min(height, 18.0) / 2 - 0.5 + 3 * index, 2)
    match shape:
        case "circle":
            drawn = tag("circle", r=r)
        case "square":
            drawn = tag("rect", x=-r, y=-r, width=2 * r, height=2 * r)
        case "diamond":
            drawn = tag("path", d=f"M0 {-1.3 * r}L{1.3 * r} 0L0 {1.3 * r}L{-1.3 * r} 0Z")
        case _:
            drawn = tag("path", d=f"M0 {-1.3 * r}L{1.3 * r} {r}L{-1.3 * r} {r}Z")
    y = round(height * (row + 0.5), 2)
    return tag("svg", drawn, class_=f"at mark m{index}", x=_across(expert, experts), y=y, role="presentation")


def _in_words(values: npt.NDArray[np.float64], layers: Sequence[int], title: str, unit: str, digits: int) -> str:
    order = np.argsort(-values, axis=None, kind="stable")[:3]
    places = [np.unravel_index(index, values.shape) for index in order]
    best = "; ".join(
        f"layer {layers[row]}, expert {expert}: {number(float(f'{values[row, expert]:.{digits}g}'))}"
        for row, expert in places
    )
    size = f"{values.shape[0]} layers by {values.shape[1]} experts"
    return f"Heat map, {title}: {size}. Highest, in {unit}: {best}."
