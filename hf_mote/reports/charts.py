"""Rates with their intervals and random controls, as rows or along a dose.

Horizontal positions are shares of the width and vertical ones are pixels, so that a chart fills the available width
and its letters keep their size. The axis fits the data. `plots.py` draws the same pictures as files.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from hf_mote.drawing import ShareAxis, share_axis
from hf_mote.reports.formats import percent
from hf_mote.reports.markup import Html, join, tag
from hf_mote.reports.tables import scrolling

__all__ = ["Point", "dose_chart", "effect_chart"]

_ROW = 66  # pixels, of a chart in rows
_HIGH, _STEP = 240, 84  # pixels, of a chart along a dose: its height, and the least width of a dose


class Point(NamedTuple):
    """A rate measured with one setting.

    Attributes:
        label (`str`): The setting.
        rate (`float`): 0 to 1.
        low (`float`, *optional*): Lower end of its interval.
        high (`float`, *optional*): Upper end.
        controls (`Sequence[float]`, *optional*): The rates under the random controls.
        n (`int`, *optional*): Prompts that the rate is of, for the digits that it is written with.
    """

    label: str
    rate: float
    low: float | None = None
    high: float | None = None
    controls: Sequence[float] = ()
    n: int | None = None

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{percent(self.low, self.n)}, {percent(self.high, self.n)}]"
        mean = percent(fmean(self.controls), self.n) if self.controls else ""
        others = f"; random controls {mean} on average" if mean else ""
        return f"{self.label}: {percent(self.rate, self.n)}{interval}{others}"


def effect_chart(points: Sequence[Point], *, title: str, rate_name: str) -> Html:
    """Return a figure with one row for each setting: the rate, its interval, and a dot for each random control.

    Args:
        points (`Sequence[Point]`): From top to bottom.
        title (`str`): What the figure shows.
        rate_name (`str`): What the rate is a rate of.

    Example:
        ```python
        from hf_mote.reports.charts import Point, effect_chart

        rows = [Point("untouched", 0.9, 0.8, 0.95), Point("suppressed", 0.1, 0.0, 0.2, [0.88, 0.9])]
        assert effect_chart(rows, title="Effect", rate_name="refusals").count("<circle") == 4
        ```
    """
    axis, bottom = _axis(points), _ROW * len(points)

    def across(rate: float) -> str:
        return f"{round(100 * axis.along(rate), 3):g}%"

    drawn: list[Html] = []
    for tick in axis.ticks:
        drawn.append(tag("line", class_="rule", x1=across(tick), x2=across(tick), y1=0, y2=bottom))
        text = f"{100 * tick:g}%"
        drawn.append(tag("text", text, class_="axis", x=across(tick), y=bottom + 18, text_anchor="middle"))
    for row, point in enumerate(points):
        # The label stands above its row, so that the chart fits a narrow page.
        top = _ROW * row
        y = top + 30
        drawn.append(tag("text", point.label, class_="label", x=0, y=top + 15))
        for index, rate in enumerate(point.controls):
            # One below the other, as many controls have the same rate.
            at = round(y + 12 + 18 * (index + 0.5) / len(point.controls), 2)
            said = tag("title", f"random control: {percent(rate, point.n)}")
            drawn.append(tag("circle", said, class_="control", r=3, cx=across(rate), cy=at))
        if point.controls:
            mean = across(fmean(point.controls))
            drawn.append(tag("line", class_="mean", x1=mean, x2=mean, y1=y + 10, y2=y + 34))
        if point.low is not None and point.high is not None:
            drawn.append(tag("line", class_="interval", x1=across(point.low), x2=across(point.high), y1=y, y2=y))
        drawn.append(tag("circle", tag("title", str(point)), class_="effect", r=6, cx=across(point.rate), cy=y))
    below = tag("p", rate_name, class_="across")
    return _figure(title, drawn, points, _key(points), height=bottom, below=below, kind="rows")


def dose_chart(
    points: Sequence[Point],
    *,
    title: str,
    rate_name: str,
    dose_name: str,
    before: float | None = None,
    beside: Sequence[Point] = (),
) -> Html:
    """Return a figure of a rate along a dose, with the random controls of each dose as dots.

    Args:
        points (`Sequence[Point]`): From left to right, evenly apart; the label is the dose.
        title (`str`): What the figure shows.
        rate_name (`str`): What the rate is a rate of.
        dose_name (`str`): What the dose is.
        before (`float`, *optional*): The rate in the untouched model, drawn as a broken line.
        beside (`Sequence[Point]`, *optional*): Points of charts beside this one, which get the same axis.
    """
    axis = _axis([*points, *beside], *([] if before is None else [before]))

    def height(rate: float) -> float:
        return round(_HIGH * (1 - axis.along(rate)), 2)

    drawn: list[Html] = []
    for tick in axis.ticks:
        at = height(tick)
        drawn.append(tag("line", class_="rule", x1=0, x2="100%", y1=at, y2=at))
        drawn.append(tag("text", f"{100 * tick:g}%", class_="axis", x=-8, y=at + 4, text_anchor="end"))
    if before is not None:
        line = tag("title", f"untouched: {percent(before, points[0].n)}")
        drawn.append(tag("line", line, class_="before", x1=0, x2="100%", y1=height(before), y2=height(before)))
    places = [f"{round(100 * (index + 0.5) / len(points), 3):g}%" for index in range(len(points))]
    ends = list(zip(places, points, strict=True))
    for (x, point), (next_x, following) in zip(ends, ends[1:], strict=False):
        y, next_y = height(point.rate), height(following.rate)
        drawn.append(tag("line", class_="curve", x1=x, x2=next_x, y1=y, y2=next_y))
    for x, point in ends:
        inner: list[Html] = [tag("text", point.label, x=0, y=_HIGH + 20, text_anchor="middle")]
        for index, rate in enumerate(point.controls):
            # Beside the curve and side by side, as many controls have the same rate.
            at = round(12 + 22 * (index + 0.5) / len(point.controls), 2)
            said = tag("title", f"{point.label}, random control: {percent(rate, point.n)}")
            inner.append(tag("circle", said, class_="control", r=3, cx=at, cy=height(rate)))
        if point.controls:
            mean = height(fmean(point.controls))
            inner.append(tag("line", class_="mean", x1=10, x2=36, y1=mean, y2=mean))
        if point.low is not None and point.high is not None:
            inner.append(tag("line", class_="interval", x1=0, x2=0, y1=height(point.low), y2=height(point.high)))
        inner.append(tag("circle", tag("title", str(point)), class_="effect", r=5, cx=0, cy=height(point.rate)))
        drawn.append(tag("svg", *inner, x=x, y=0, class_="at", role="presentation"))
    key = _key(points) + (" Broken line: the untouched model." if before is not None else "")
    above, below = tag("p", rate_name, class_="up"), tag("p", dose_name, class_="across")
    least = _STEP * len(points)
    return _figure(title, drawn, points, key, height=_HIGH, above=above, below=below, kind="dose", least=least)


def _axis(points: Sequence[Point], *others: float) -> ShareAxis:
    ends = [end for point in points for end in (point.rate, point.low, point.high, *point.controls) if end is not None]
    return share_axis([*ends, *others])


def _key(points: Sequence[Point]) -> str:
    parts = ["Large dots: measured"]
    if any(point.low is not None for point in points):
        parts[0] += ", with its interval"
    if any(point.controls for point in points):
        parts.append("small grey dots: random controls, one dot each; grey line: their mean")
    return f"{'; '.join(parts)}."


def _figure(
    title: str,
    drawn: Sequence[Html],
    points: Sequence[Point],
    key: str,
    *,
    height: int,
    kind: str,
    above: Html | None = None,
    below: Html | None = None,
    least: int = 0,
) -> Html:
    words = f"Chart, {title}. {'. '.join(map(str, points))}."
    drawing = tag("svg", *drawn, class_=f"chart {kind}", style=f"height: {height}px", role="img", aria_label=words)
    width = f"min-width: {least + 60}px" if least else None
    plot = tag("div", join([above, drawing, below]), class_="plot", style=width)
    return tag("figure", tag("figcaption", title), scrolling(plot, title), tag("p", key, class_="key"))
