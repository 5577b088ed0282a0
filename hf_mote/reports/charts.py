"""Rates with their intervals and random controls, as rows or along a dose."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from hf_mote.reports.formats import percent
from hf_mote.reports.markup import Html, tag
from hf_mote.reports.tables import scrolling

__all__ = ["Point", "dose_chart", "effect_chart"]

_ROW, _MARGIN, _WIDE = 70, 24, 560  # of a chart in rows
_HIGH, _STEP = 230, 90  # of a chart along a dose


class Point(NamedTuple):
    """A rate measured with one setting.

    Attributes:
        label (`str`): The setting.
        rate (`float`): 0 to 1.
        low (`float`, *optional*): Lower end of its interval.
        high (`float`, *optional*): Upper end.
        controls (`Sequence[float]`, *optional*): The rates under the random controls.
    """

    label: str
    rate: float
    low: float | None = None
    high: float | None = None
    controls: Sequence[float] = ()

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{percent(self.low)}, {percent(self.high)}]"
        others = f"; random controls {percent(fmean(self.controls))} on average" if self.controls else ""
        return f"{self.label}: {percent(self.rate)}{interval}{others}"


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
    bottom = _ROW * len(points)

    def across(rate: float) -> float:
        return round(_MARGIN + (_WIDE - 2 * _MARGIN) * rate, 2)

    drawn: list[Html] = []
    for tick in range(0, 101, 25):
        at = across(tick / 100)
        drawn.append(tag("line", class_="rule", x1=at, x2=at, y1=0, y2=bottom))
        drawn.append(tag("text", f"{tick} %", class_="axis", x=at, y=bottom + 16, text_anchor="middle"))
    drawn.append(tag("text", rate_name, x=across(0.5), y=bottom + 36, text_anchor="middle"))
    for row, point in enumerate(points):
        # The label stands above its row, so that the chart fits a narrow page.
        top = _ROW * row
        y = top + 30
        drawn.append(tag("text", point.label, class_="label", x=_MARGIN, y=top + 15))
        for index, rate in enumerate(point.controls):
            # One below the other, as many controls have the same rate.
            at = round(y + 12 + 18 * (index + 0.5) / len(point.controls), 2)
            said = tag("title", f"random control: {percent(rate)}")
            drawn.append(tag("circle", said, class_="control", r=3, cx=across(rate), cy=at))
        if point.controls:
            mean = across(fmean(point.controls))
            drawn.append(tag("line", class_="mean", x1=mean, x2=mean, y1=y + 10, y2=y + 34))
        if point.low is not None and point.high is not None:
            drawn.append(tag("line", class_="interval", x1=across(point.low), x2=across(point.high), y1=y, y2=y))
        drawn.append(tag("circle", tag("title", str(point)), class_="effect", r=6, cx=across(point.rate), cy=y))
    return _figure(title, drawn, _WIDE, bottom + 46, points, _key(points))


def dose_chart(
    points: Sequence[Point], *, title: str, rate_name: str, dose_name: str, before: float | None = None
) -> Html:
    """Return a figure of a rate along a dose, with the random controls of each dose as dots.

    Args:
        points (`Sequence[Point]`): From left to right, evenly apart; the label is the dose.
        title (`str`): What the figure shows.
        rate_name (`str`): What the rate is a rate of.
        dose_name (`str`): What the dose is.
        before (`float`, *optional*): The rate in the untouched model, drawn as a broken line.
    """
    left, top = 74, 10
    width = left + _STEP * len(points) + 10

    def height(rate: float) -> float:
        return round(top + _HIGH * (1 - rate), 2)

    drawn: list[Html] = []
    for tick in range(0, 101, 25):
        at = height(tick / 100)
        drawn.append(tag("line", class_="rule", x1=left, x2=width - 10, y1=at, y2=at))
        drawn.append(tag("text", f"{tick} %", class_="axis", x=left - 6, y=at + 4, text_anchor="end"))
    if before is not None:
        line = tag("title", f"untouched: {percent(before)}")
        drawn.append(tag("line", line, class_="before", x1=left, x2=width - 10, y1=height(before), y2=height(before)))
    places = [left + _STEP * (index + 0.5) for index in range(len(points))]
    path = " ".join(f"{x},{height(point.rate)}" for x, point in zip(places, points, strict=True))
    drawn.append(tag("polyline", class_="curve", points=path))
    for x, point in zip(places, points, strict=True):
        drawn.append(tag("text", point.label, x=x, y=top + _HIGH + 18, text_anchor="middle"))
        for index, rate in enumerate(point.controls):
            # Beside the curve and side by side, as many controls have the same rate.
            at = round(x + 12 + 24 * (index + 0.5) / len(point.controls), 2)
            said = tag("title", f"{point.label}, random control: {percent(rate)}")
            drawn.append(tag("circle", said, class_="control", r=3, cx=at, cy=height(rate)))
        if point.controls:
            mean = height(fmean(point.controls))
            drawn.append(tag("line", class_="mean", x1=x + 10, x2=x + 38, y1=mean, y2=mean))
        if point.low is not None and point.high is not None:
            drawn.append(tag("line", class_="interval", x1=x, x2=x, y1=height(point.low), y2=height(point.high)))
        drawn.append(tag("circle", tag("title", str(point)), class_="effect", r=5, cx=x, cy=height(point.rate)))
    drawn.append(tag("text", dose_name, x=left + (width - left) / 2, y=top + _HIGH + 40, text_anchor="middle"))
    drawn.append(
        tag("text", rate_name, x=12, y=height(0.5), text_anchor="middle", transform=f"rotate(-90 12 {height(0.5)})")
    )
    key = _key(points) + (" Broken line: the untouched model." if before is not None else "")
    return _figure(title, drawn, width, top + _HIGH + 50, points, key)


def _key(points: Sequence[Point]) -> str:
    parts = ["Large dots: measured"]
    if any(point.low is not None for point in points):
        parts[0] += ", with its interval"
    if any(point.controls for point in points):
        parts.append("small grey dots: random controls, one dot each; grey line: their mean")
    return f"{'; '.join(parts)}."


def _figure(title: str, drawn: Sequence[Html], width: float, height: float, points: Sequence[Point], key: str) -> Html:
    words = f"Chart, {title}. {'. '.join(map(str, points))}."
    drawing = tag(
        "svg",
        *drawn,
        viewBox=f"0 0 {width} {height}",
        style=f"max-width: {round(1.25 * width)}px; min-width: {round(0.6 * width)}px",
        role="img",
        aria_label=words,
    )
    return tag("figure", tag("figcaption", title), scrolling(drawing, title), tag("p", key, class_="key"))
