"""Heat maps of layers by experts, drawn in the page: colour for a first look, the number under the pointer.

The cells are one small picture with transparency, so that it suits a light and a dark page; over it lies a grid that
knows the numbers. What matters is also in a table beside it, for those who see no colour or use no pointer.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.image import imsave
from torch import Tensor

from hf_mote.errors import DataError
from hf_mote.reports.formats import number, signed
from hf_mote.reports.markup import Html, tag
from hf_mote.reports.tables import scrolling

__all__ = ["heat_map"]

MORE = (214, 98, 32)  # --more of style.css: above 0
LESS = (52, 128, 214)  # --less: below 0
MOST_NUMBERED = 2048  # cells that carry their number; of larger maps the outermost do, so that the page stays small
_LEFT, _BOTTOM, _WIDTH = 46, 34, 960
_TEXT_HEIGHT, _TEXT_WIDTH = 17, 34  # of a number on an axis


def heat_map(
    grid: Tensor,
    layers: Sequence[int],
    *,
    title: str,
    unit: str,
    largest: float | None = None,
    marked: Collection[tuple[int, int]] = (),
    mark_name: str = "",
) -> Html:
    """Return a figure of layers by experts.

    Args:
        grid (`torch.Tensor` of shape `(layers, experts)`, any real dtype): What to show.
        layers (`Sequence[int]`): Absolute decoder layer of each row.
        title (`str`): What the figure shows.
        unit (`str`): What a number is, such as "tokens per prompt".
        largest (`float`, *optional*): Magnitude that gets the full colour; by default the largest there is.
        marked (`Collection[tuple[int, int]]`, *optional*): (layer, expert) to outline.
        mark_name (`str`, *optional*): What the outlined ones are.

    Raises:
        [`DataError`]: if the shape is another, or a number is not finite.

    Example:
        ```python
        import torch
        from hf_mote.reports.heat_map import heat_map

        figure = heat_map(torch.tensor([[1.0, -2.0]]), [3], title="difference", unit="tokens", marked=[(3, 1)])
        assert "layer 3, expert 1: −2 tokens" in figure
        ```
    """
    values = grid.detach().cpu().double().numpy()
    if values.ndim != 2 or values.size == 0 or len(values) != len(layers) or not np.isfinite(values).all():
        got = f"{values.shape} for {len(layers)} layers"
        raise DataError("heat_map.grid", "is no finite grid of layers by experts", got=got)
    full = float(np.abs(values).max()) if largest is None else largest
    rows, experts = values.shape
    both = bool((values < 0).any())
    say = signed if both else number
    cell = min(26.0, _WIDTH / experts)
    height = min(26.0, max(9.0, 300.0 / rows))
    width, depth = cell * experts, height * rows
    drawing = tag(
        "svg",
        tag(
            "image",
            href=f"data:image/png;base64,{_pixels(values, full or 1.0)}",
            x=_LEFT,
            y=2,
            width=round(width, 2),
            height=round(depth, 2),
            preserveAspectRatio="none",
        ),
        tag("rect", class_="frame", x=_LEFT, y=2, width=round(width, 2), height=round(depth, 2)),
        *_axes(layers, experts, cell, height),
        *(
            tag(
                "rect",
                tag("title", f"layer {layers[row]}, expert {expert}: {say(float(values[row, expert]))} {unit}"),
                class_="cell",
                **_place(row, expert, cell, height),
            )
            for row, expert in _numbered(values)
        ),
        *(
            tag("rect", class_="mark", **_place(row, expert, cell, height))
            for row, layer in enumerate(layers)
            for expert in range(experts)
            if (layer, expert) in marked
        ),
        viewBox=f"0 0 {round(_LEFT + width + 4, 2)} {round(depth + _BOTTOM + 4, 2)}",
        style=f"max-width: {round(1.2 * (_LEFT + width))}px; min-width: {round(0.55 * (_LEFT + width))}px",
        role="img",
        aria_label=_in_words(values, layers, title, unit),
    )
    lowest = say(-full) if both else number(0.0)
    key = tag(
        "p",
        tag("span", lowest),
        tag("span", class_="ramp both" if both else "ramp one"),
        tag("span", f"{say(full)} {unit}"),
        tag("span", f"□ {mark_name}") if marked and mark_name else None,
        class_="key",
    )
    return tag("figure", tag("figcaption", title), scrolling(drawing, title), key, class_="map")


def _pixels(values: npt.NDArray[np.float64], full: float) -> str:
    pixels = np.empty((*values.shape, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(values[..., None] < 0, LESS, MORE)
    pixels[..., 3] = np.rint(255 * np.clip(np.abs(values) / full, 0.0, 1.0))
    file = io.BytesIO()
    imsave(file, pixels, format="png", metadata={"Software": "hf_mote"})
    return base64.b64encode(file.getvalue()).decode("ascii")


def _axes(layers: Sequence[int], experts: int, cell: float, height: float) -> list[Html]:
    # As far apart as the larger letters of a narrow page need.
    every = math.ceil(_TEXT_HEIGHT / height)
    texts = [
        tag(
            "text",
            str(layer),
            class_="axis",
            x=_LEFT - 6,
            y=round(2 + height * (row + 0.5) + 4, 2),
            text_anchor="end",
        )
        for row, layer in enumerate(layers)
        if row % every == 0
    ]
    step = next(s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, experts) if s * cell >= _TEXT_WIDTH or s >= experts)
    below = 2 + height * len(layers)
    for expert in range(0, experts, step):
        at = round(_LEFT + cell * (expert + 0.5), 2)
        texts.append(tag("text", str(expert), class_="axis", x=at, y=round(below + 14, 2), text_anchor="middle"))
    centre = round(_LEFT + cell * experts / 2, 2)
    texts.append(tag("text", "expert", x=centre, y=round(below + 30, 2), text_anchor="middle"))
    middle = round(2 + height * len(layers) / 2, 2)
    texts.append(tag("text", "layer", x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle})"))
    return texts


def _place(row: int, expert: int, cell: float, height: float) -> dict[str, float]:
    return {
        "x": round(_LEFT + cell * expert, 2),
        "y": round(2 + height * row, 2),
        "width": round(cell, 2),
        "height": round(height, 2),
    }


def _numbered(values: npt.NDArray[np.float64]) -> list[tuple[int, int]]:
    order = np.argsort(-np.abs(values), axis=None, kind="stable")[:MOST_NUMBERED]
    rows, experts = np.unravel_index(np.sort(order), values.shape)
    return list(zip(rows.tolist(), experts.tolist(), strict=True))


def _in_words(values: npt.NDArray[np.float64], layers: Sequence[int], title: str, unit: str) -> str:
    order = np.argsort(-values, axis=None, kind="stable")[:3]
    places = [np.unravel_index(index, values.shape) for index in order]
    best = "; ".join(
        f"layer {layers[row]}, expert {expert}: {number(float(values[row, expert]))}" for row, expert in places
    )
    size = f"{values.shape[0]} layers by {values.shape[1]} experts"
    return f"Heat map, {title}: {size}. Highest, in {unit}: {best}."
