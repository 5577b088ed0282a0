"""Curves over two axes of values, and bars from 0, drawn as the charts of rates are.

Horizontal positions are shares of the width and vertical ones are pixels, so that letters keep their size on a narrow
page; colours are those of the page, so that they are seen on a dark one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from hf_mote.drawing import ValueAxis, value_axis
from hf_mote.reports.formats import number
from hf_mote.reports.markup import Html, join, tag
from hf_mote.reports.tables import scrolling

__all__ = ["Curve", "bar_chart", "curve_chart"]

_HIGH, _ROW = 240, 48  # pixels: a chart of curves, and a row of bars


class Curve(NamedTuple):
    """A line through points.

    Attributes:
        name (`str`): What it shows.
        points (`Sequence[tuple[float, float]]`): Across and up, from left to right.
        fitted (`bool`): Whether it is a law rather than a measurement; it is drawn broken.
    """

    name: str
    points: Sequence[tuple[float, float]]
    fitted: bool = False


def curve_chart(
    curves: Sequence[Curve],
    across: ValueAxis,
    up: ValueAxis,
    *,
    title: str,
    names: tuple[str, str],
    words: str,
    ticks: tuple[Callable[[float], str], Callable[[float], str]] = (number, number),
) -> Html:
    """Return a figure of curves.

    Args:
        curves (`Sequence[Curve]`): What to draw.
        across (`ValueAxis`): The horizontal axis, which all points are on.
        up (`ValueAxis`): The vertical axis.
        title (`str`): What the figure shows.
        names (`tuple[str, str]`): What the axes are, the horizontal one first.
        words (`str`): What the figure shows, for those who do not see it.
        ticks (`tuple[Callable, Callable]`, *optional*): How the numbers of the axes are written.
    """
    drawn: list[Html] = []
    for tick in up.ticks:
        at = round(_HIGH * (1 - up.along(tick)), 2)
        drawn.append(tag("line", class_="rule", x1=0, x2="100%", y1=at, y2=at))
        drawn.append(tag("text", ticks[1](tick), class_="axis", x=-8, y=at + 4, text_anchor="end"))
    for tick in across.ticks:
        x = f"{round(100 * across.along(tick), 3):g}%"
        drawn.append(tag("text", ticks[0](tick), class_="axis", x=x, y=_HIGH + 20, text_anchor="middle"))
    lines = []
    for curve in curves:
        places = " ".join(f"{1000 * across.along(x):.1f},{_HIGH * (1 - up.along(y)):.1f}" for x, y in curve.points)
        kind = "before" if curve.fitted else "curve"
        lines.append(tag("polyline", tag("title", curve.name), class_=kind, points=places))
    # Its places across are stretched with the page, the width of its lines is not.
    stretched: dict[str, Any] = {
        "viewBox": f"0 0 1000 {_HIGH}",
        "preserveAspectRatio": "none",
        "width": "100%",
        "height": _HIGH,
    }
    drawn.append(tag("svg", *lines, class_="at", role="presentation", **stretched))
    drawing = tag(
        "svg", *drawn, class_="chart curves", style=f"height: {_HIGH}px", role="img", aria_label=f"Chart, {words}"
    )
    above, below = tag("p", names[1], class_="up"), tag("p", names[0], class_="across")
    plot = tag("div", above, drawing, below, class_="plot")
    key = " ".join(f"{'Broken line' if one.fitted else 'Line'}: {one.name}." for one in curves)
    return tag("figure", tag("figcaption", title), scrolling(plot, title), tag("p", key, class_="key"))


def bar_chart(bars: Sequence[tuple[str, float]], *, title: str, unit: str) -> Html:
    """Return a figure with a bar for each value.

    Args:
        bars (`Sequence[tuple[str, float]]`): Names and values, 0 or more, from top to bottom.
        title (`str`): What the figure shows.
        unit (`str`): Of the values.

    Example:
        ```python
        from hf_mote.reports.curves import bar_chart

        assert bar_chart([("clean", 2.0), ("sae", 2.5)], title="Loss", unit="nats").count("<rect") == 2
        ```
    """
    axis, bottom = value_axis(value for _, value in bars), _ROW * len(bars)
    drawn: list[Html] = []
    for tick in axis.ticks:
        x = f"{round(100 * axis.along(tick), 3):g}%"
        drawn.append(tag("line", class_="rule", x1=x, x2=x, y1=0, y2=bottom))
        drawn.append(tag("text", number(tick), class_="axis", x=x, y=bottom + 18, text_anchor="middle"))
    for row, (name, value) in enumerate(bars):
        wide = f"{round(100 * axis.along(value), 3):g}%"
        drawn.append(tag("text", f"{name}: {number(value)}", class_="label", x=0, y=_ROW * row + 15))
        drawn.append(tag("rect", class_="effect", x=0, y=_ROW * row + 22, width=wide, height=14))
    words = f"Chart, {title}. {'; '.join(f'{name}: {number(value)}' for name, value in bars)}."
    drawing = tag("svg", *drawn, class_="chart rows", style=f"height: {bottom}px", role="img", aria_label=words)
    plot = tag("div", join([drawing, tag("p", unit, class_="across")]), class_="plot")
    return tag("figure", tag("figcaption", title), scrolling(plot, title))
