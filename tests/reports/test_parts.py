"""Tables, heat maps, charts, coloured tokens, responses: the numbers that they show are the ones given."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from html_pages import Element, parse_page
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from hf_mote.drawing import LESS, MORE, log_axis, share_axis, value_axis
from hf_mote.errors import DataError
from hf_mote.evaluation.conversations import Conversation
from hf_mote.reports.charts import Point, dose_chart, effect_chart
from hf_mote.reports.curves import Curve, bar_chart, curve_chart
from hf_mote.reports.formats import decimals_by, decimals_for, number, percent, probability, quoted, share, signed
from hf_mote.reports.heat_map import heat_map
from hf_mote.reports.markup import Html, tag
from hf_mote.reports.responses import (
    MOST_SHOWN,
    SHOWN_AT_ONCE,
    Answer,
    answers_by_class,
    conversations_side_by_side,
    side_by_side,
)
from hf_mote.reports.tables import folded, table

GRID = torch.tensor([[0.0, 1.0, -2.0], [4.0, 0.5, 0.0]], dtype=torch.float64)


def pixels(figure: Element) -> np.ndarray:
    (image,) = figure.all("image")
    data = base64.b64decode(image.attributes["href"].partition(",")[2])
    return np.rint(255 * imread(io.BytesIO(data), format="png")).astype(int)


def circles(figure: Element, class_: str) -> list[Element]:
    return figure.all("circle", class_)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.5, "−0.5"), (12.34567, "12.35"), (12345.6, "12,346"), (1e-7, "1e−07"), (math.nan, "–")],
)
def test_number_has_four_digits_and_a_minus_sign(value: float, text: str) -> None:
    assert number(value) == text


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_decimals_for_shows_the_largest_with_four_digits(values: list[float]) -> None:
    decimals = decimals_for(values)
    largest = max(map(abs, values))
    assert 0 <= decimals <= 9
    if 1e-5 < largest < 1000:
        digits = number(largest, decimals).replace(".", "").lstrip("0")
        assert len(digits) in (4, 5)  # 9.9999 rounds up


def test_signed_percent_and_probability_say_what_is_unknown() -> None:
    assert [signed(None), percent(None), probability(None)] == ["–"] * 3
    assert [signed(2.0), signed(-2.0), signed(0.0)] == ["+2", "−2", "0"]
    assert [probability(0.0004), probability(0.0476), probability(1.0)] == ["< 0.001", "0.048", "1.000"]
    assert percent(0.125) == "12.5%"
    assert [percent(share, 8) for share in (0.0, 0.125, 1.0)] == ["0%", "12%", "100%"]
    assert [percent(1 / 150, 150), percent(0.004, 150), percent(149.9 / 150, 150)] == ["1%", "< 1%", "> 99%"]
    assert percent(1 / 300, 300) == "0.3%"
    assert [probability(0.123, 0.02), probability(0.123, 0.001)] == ["0.12", "0.123"]


@pytest.mark.parametrize(
    ("lows", "highs", "decimals"),
    [([1.0], [3.0], 1), ([10.0], [90.0], 0), ([0.0], [0.02], 3), ([None, math.nan], [None, math.nan], None)],
)
def test_decimals_by_are_two_digits_of_the_half_width(lows: list[Any], highs: list[Any], decimals: int | None) -> None:
    assert decimals_by(lows, highs) == decimals


@given(st.lists(st.floats(0, 1), min_size=1))
def test_share_axis_holds_what_it_is_made_for_and_wastes_little(shares: list[float]) -> None:
    axis = share_axis(shares)
    assert 0 <= axis.low < axis.high <= 1
    assert axis.low - 1e-9 <= min(shares)
    assert max(shares) <= axis.high + 1e-9
    assert (axis.ticks[0], axis.ticks[-1]) == (axis.low, axis.high)
    assert 2 <= len(axis.ticks) <= 7
    assert axis.high - axis.low <= max(0.2, 2.1 * (max(shares) - min(shares)))


def test_table_has_headings_and_escapes_cells() -> None:
    (made,) = parse_page(table("All <x>", ["name", "n"], [["<b>", "1"], [tag("code", "y"), "2"]], numeric=(1,))).all(
        "table"
    )
    assert made.all("caption")[0].text == "All <x>"
    assert [[cell.text for cell in row.children] for row in made.all("tr")] == [
        ["name", "n"],
        ["<b>", "1"],
        ["y", "2"],
    ]
    assert [cell.name for cell in made.all("tr")[1].children] == ["th", "td"]
    assert [cell.attributes.get("class") for cell in made.all("tr")[1].children] == [None, "n"]


def test_table_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        table("x", ["a", "b"], [["1"]])


def test_folded_shows_some_and_counts_the_rest() -> None:
    items = [tag("li", str(index)) for index in range(5)]
    root = parse_page(folded("{n} more", items, shown=2, kind="pairs", more="none"))
    assert [len(listed.children) for listed in root.all("ul")] == [2, 3]
    assert root.all("summary")[0].text == "3 more"
    assert "details" not in folded("{n} more", items, shown=5, kind="pairs", more="none")
    assert parse_page(folded("{n} more", [], shown=5, kind="pairs", more="none")).text == "none"


def test_heat_map_says_its_highest_numbers_and_which_series_it_is_of() -> None:
    figure = heat_map(GRID, [3, 7], title="difference", unit="tokens", marked={"first": [(7, 0)]}, series="score:0")
    drawing = parse_page(figure).all("svg")[0]
    assert "Highest, in tokens: layer 7, expert 0: 4; layer 3, expert 1: 1;" in drawing.attributes["aria-label"]
    assert drawing.attributes["data-series"] == "score:0"
    ends = [span.text for span in parse_page(figure).all("p", "key")[0].all("span") if span.text]
    assert ends == ["−4", "+4 tokens", "○ first"]


def test_heat_map_pixels_have_the_sign_as_hue_and_the_size_as_opacity() -> None:
    shown = pixels(parse_page(heat_map(GRID, [3, 7], title="t", unit="u")))
    assert shown.shape == (2, 3, 4)
    assert shown[..., 3].tolist() == [[0, 64, 128], [255, 32, 0]]
    assert tuple(shown[0, 2, :3]) == LESS
    assert tuple(shown[1, 0, :3]) == MORE


def test_heat_map_on_a_common_scale_is_paler() -> None:
    assert pixels(parse_page(heat_map(GRID, [3, 7], title="t", unit="u", largest=8.0)))[1, 0, 3] == 128


def test_heat_map_marks_lie_on_their_cells_each_name_with_a_shape_of_its_own() -> None:
    marked = {"first": [(7, 0), (3, 2)], "planted": [(7, 1)]}
    root = parse_page(heat_map(GRID, [3, 7], title="t", unit="u", marked=marked))
    tall = float(root.all("svg", "cells")[0].attributes["style"].removeprefix("height: ").removesuffix("px")) / 2
    marks = root.all("svg", "mark")
    places = [(float(mark.attributes["x"].rstrip("%")), float(mark.attributes["y"]) / tall) for mark in marks]
    assert places == [(pytest.approx(250 / 3, abs=1e-3), 0.5), (pytest.approx(50 / 3, abs=1e-3), 1.5), (50, 1.5)]
    assert [mark.children[0].name for mark in marks] == ["circle", "circle", "rect"]
    assert [span.text for span in root.all("span", "faint")] == ["○ first", "□ planted"]


@pytest.mark.parametrize("size", [(1, 2), (4, 64), (58, 256), (94, 128)])
def test_heat_map_of_any_size_has_readable_axes(size: tuple[int, int]) -> None:
    layers, experts = size
    text = heat_map(torch.rand(size), range(3, 3 + layers), title="t", unit="u")
    drawing = parse_page(text).all("svg")[0]
    height = float(drawing.attributes["style"].removeprefix("height: ").removesuffix("px"))
    assert height <= 1000
    ticks = [mark for mark in drawing.all("text", "axis") if mark.attributes.get("text-anchor") == "middle"]
    places = [float(mark.attributes["x"].rstrip("%")) for mark in ticks]
    assert places[0] == pytest.approx(50 / experts, abs=1e-3)
    assert min(np.diff(places), default=99) * 300 / 100 >= 30  # pixels, in a narrow page
    rows = [float(mark.attributes["y"]) for mark in drawing.all("text", "axis") if mark not in ticks]
    assert min(np.diff(rows), default=99) >= 15
    assert max(rows) <= height
    assert len(text) < 150_000


@pytest.mark.parametrize("grid", [torch.ones(3), torch.ones(3, 2), torch.tensor([[math.nan], [0.0]])])
def test_heat_map_of_something_else_is_refused(grid: torch.Tensor) -> None:
    with pytest.raises(DataError, match="heat_map"):
        heat_map(grid, [0, 1], title="t", unit="u")


def test_effect_chart_dots_stand_where_the_rates_are() -> None:
    points = [Point("untouched", 0.8, 0.6, 1.0, n=20), Point("with", 0.2, 0.0, 0.4, [0.4, 1.0], 20)]
    root = parse_page(effect_chart(points, title="Effect", rate_name="refusals"))
    ticks = {mark.text: mark.attributes["x"] for mark in root.all("text", "axis")}
    assert [dot.attributes["cx"] for dot in circles(root, "effect")] == [ticks["80%"], ticks["20%"]]
    assert [dot.attributes["cx"] for dot in circles(root, "control")] == [ticks["40%"], ticks["100%"]]
    ends = [(line.attributes["x1"], line.attributes["x2"]) for line in root.all("line", "interval")]
    assert ends == [(ticks["60%"], ticks["100%"]), (ticks["0%"], ticks["40%"])]
    assert root.all("line", "mean")[0].attributes["x1"] == "70%"
    assert "with: 20% [0%, 40%]; random controls 70% on average" in root.all("svg")[0].attributes["aria-label"]


def test_charts_of_small_rates_have_an_axis_that_fits() -> None:
    points = [Point("a", 0.02, 0.0, 0.07), Point("b", 0.1, 0.05, 0.19)]
    for chart in (
        effect_chart(points, title="Effect", rate_name="rate"),
        dose_chart(points, title="Dose", rate_name="rate", dose_name="experts"),
    ):
        ticks = [mark.text for mark in parse_page(chart).all("text", "axis")]
        assert ticks == ["0%", "5%", "10%", "15%", "20%"]


def test_dose_chart_rises_to_the_rate_and_draws_every_control() -> None:
    points = [Point("1", 1.0, 0.8, 1.0, [1.0, 0.4]), Point("2", 0.4), Point("5", 0.0)]
    root = parse_page(dose_chart(points, title="Dose", rate_name="rate", dose_name="experts", before=1.0))
    heights = {mark.text: float(mark.attributes["y"]) - 4 for mark in root.all("text", "axis")}
    assert [float(dot.attributes["cy"]) for dot in circles(root, "effect")] == [
        heights["100%"],
        heights["40%"],
        heights["0%"],
    ]
    assert [float(dot.attributes["cy"]) for dot in circles(root, "control")] == [heights["100%"], heights["40%"]]
    assert float(root.all("line", "before")[0].attributes["y1"]) == heights["100%"]
    assert len(root.all("line", "interval")) == 1
    ends = [(float(line.attributes["y1"]), float(line.attributes["y2"])) for line in root.all("line", "curve")]
    assert ends == [(heights["100%"], heights["40%"]), (heights["40%"], heights["0%"])]


def test_dose_charts_beside_one_another_share_an_axis() -> None:
    low, high = [Point("1", 0.1)], [Point("1", 0.9)]
    alone = parse_page(dose_chart(low, title="t", rate_name="r", dose_name="d")).all("text", "axis")
    shared = parse_page(dose_chart(low, title="t", rate_name="r", dose_name="d", beside=high)).all("text", "axis")
    assert alone[-1].text == "15%"
    assert shared[-1].text == "100%"


def test_curve_goes_through_its_points_on_axes_of_either_kind() -> None:
    measured = Curve("latents", [(1, 0.1), (10, 0.01), (100, 0.001)])
    law = Curve("law", [(1, 0.1), (100, 0.1)], fitted=True)
    across, up = log_axis([1, 100]), log_axis([0.1, 0.001])
    root = parse_page(
        curve_chart([measured, law], across, up, title="Density", names=("rank", "share"), words="of it")
    )
    solid, broken = root.all("polyline")
    assert (solid.attributes["class"], broken.attributes["class"]) == ("curve", "before")
    assert solid.attributes["points"] == "0.0,0.0 500.0,120.0 1000.0,240.0"
    assert broken.attributes["points"] == "0.0,0.0 1000.0,0.0"
    heights = {mark.text: float(mark.attributes["y"]) - 4 for mark in root.all("text", "axis")[:3]}
    assert heights == {"0.001": 240.0, "0.01": 120.0, "0.1": 0.0}
    assert "Line: latents. Broken line: law." in root.text
    flat = [Curve("mean", [(1, 3.0), (2, 6.0)])]
    root = parse_page(
        curve_chart(flat, value_axis([2.0]), value_axis([3.0, 6.0]), title="L0", names=("x", "y"), words="of it")
    )
    assert root.all("polyline")[0].attributes["points"] == "500.0,120.0 1000.0,0.0"


def test_bars_are_as_long_as_their_values() -> None:
    root = parse_page(bar_chart([("clean", 4.0), ("with <it>", 1.0), ("none", 0.0)], title="Loss", unit="nats"))
    assert [bar.attributes["width"] for bar in root.all("rect")] == ["100%", "25%", "0%"]
    assert [mark.text for mark in root.all("text", "label")] == ["clean: 4", "with <it>: 1", "none: 0"]
    ticks = {mark.text: mark.attributes["x"] for mark in root.all("text", "axis")}
    assert ticks == {"0": "0%", "1": "25%", "2": "50%", "3": "75%", "4": "100%"}


@given(st.lists(st.floats(1e-9, 1e9), min_size=1))
def test_axes_hold_all_values_and_few_round_ticks(values: list[float]) -> None:
    for axis in (value_axis(values), log_axis(values)):
        assert all(-1e-9 <= axis.along(value) <= 1 + 1e-9 for value in values)
        assert all(-1e-9 <= axis.along(tick) <= 1 + 1e-9 for tick in axis.ticks)
    assert 2 <= len(value_axis(values).ticks) <= 6


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0%"), (0.5, "50.0%"), (0.01, "1.0%"), (0.00996, "1%"), (0.0004, "0.04%"), (1.0, "100.0%")],
)
def test_small_share_keeps_two_digits(value: float, text: str) -> None:
    assert share(value) == text


def test_table_cuts_a_long_heading_and_keeps_it_whole_as_a_title() -> None:
    long = "tokens per prompt, " + "a" * 300
    plain, cut = parse_page(table("t", ["class", long], [["x", "1"]])).all("th")[:2]
    assert (plain.text, "title" in plain.attributes) == ("class", False)
    assert cut.attributes["title"] == long
    assert cut.text == long[: len(cut.text) - 1] + "…"
    assert len(cut.text) <= 80


@pytest.mark.parametrize("label", ["\u202eevil", "עברית", "a\u2069\u202eb", "\u2067x", "\u202bx"])
def test_quoted_label_cannot_turn_what_stands_around_it(label: str) -> None:
    text = quoted(label)
    assert text[:2] == "“\u2068"
    assert text[-2:] == "\u2069”"
    # One isolate is opened and one closed, so that whatever is overridden within ends with it.
    assert sum(text.count(mark) for mark in "\u2066\u2067\u2068") == text.count("\u2069") == 1
    assert [quoted(name) for name in ("refusal", "naïve", "漢字", "a-b 1")] == [
        "“refusal”",
        "“naïve”",
        "“漢字”",
        "“a-b 1”",
    ]


def test_side_by_side_begins_with_what_changes_its_label() -> None:
    prompts = ["same", "reworded", "relabelled <b>"]
    before = [Answer("a", "yes"), Answer("b", "yes"), Answer("c", "yes")]
    after = [Answer("a", "yes"), Answer("B", "yes"), Answer("", "no")]
    root = parse_page(side_by_side(prompts, before, after, target="yes"))
    assert [asked.text for asked in root.all("p", "asked")] == ["relabelled <b>", "reworded", "same"]
    assert "2 of 3 responses change, 1 of them to another label." in root.text
    assert [side.text for side in root.all("dd")][:2] == ["c", "(no response)"]
    assert [chip.attributes["class"] for chip in root.all("span", "chip")][:2] == ["chip target", "chip"]


def test_side_by_side_of_many_folds_and_says_what_is_left_out() -> None:
    answers = [Answer("x")] * (MOST_SHOWN + 3)
    root = parse_page(side_by_side(["p"] * len(answers), answers, answers))
    assert [len(listed.children) for listed in root.all("ul")] == [SHOWN_AT_ONCE, MOST_SHOWN - SHOWN_AT_ONCE]
    assert f"The first {MOST_SHOWN} are here" in root.text


def test_conversations_side_by_side_shows_each_turn_and_begins_with_what_changes() -> None:
    found = [
        Conversation(["one"], ["a"], ["a"], id="7"),
        Conversation(["<b>two</b>", "three"], ["b", "c"], ["b", ""], category="<i>maths</i>"),
        Conversation(["four"], ["d"], ["D"]),
    ]
    root = parse_page(conversations_side_by_side(found))
    assert root.all("p")[0].text.startswith("2 of 4 answers change, in 2 of 3 conversations.")
    assert [asked.text for asked in root.all("p", "asked")] == ["<b>two</b>", "three", "four", "one"]
    assert [side.text for side in root.all("dd")] == ["b", "b", "c", "(no response)", "d", "D", "a", "a"]
    assert [name.text for name in root.all("dt")][:2] == ["untouched ", "with the config "]
    assert [name.text for name in root.all("p", "turn")] == [
        "Turn 1: the answer stays word for word",
        "Turn 2",
        "Turn 1",
        "Turn 1: the answer stays word for word",
    ]
    assert [chip.text for chip in root.all("span", "chip")] == ["<i>maths</i>"]
    assert "Question 7" in root.text
    assert len(root.all("ol")) == 3


def test_conversations_side_by_side_of_many_folds_and_says_what_is_left_out() -> None:
    root = parse_page(conversations_side_by_side([Conversation(["x"], ["a"], ["a"])] * (MOST_SHOWN + 1)))
    assert len(root.all("ol")) == MOST_SHOWN
    assert f"The first {MOST_SHOWN} are here" in root.all("p")[0].text
    assert len(root.all("details")[0].all("ol")) == MOST_SHOWN - SHOWN_AT_ONCE // 2


def test_answers_by_class_begins_with_the_target() -> None:
    root = parse_page(answers_by_class(["a", "b", "c"], ["1", "2", "3"], ["x", "z", "x"], target="z"))
    assert [heading.text for heading in root.all("h3")] == ["z 1 prompt", "x 2 prompts"]
    assert [asked.text for asked in root.all("p", "asked")] == ["b", "a", "c"]


def test_html_is_not_made_by_mistake() -> None:
    assert not isinstance(tag("p", "x") + "", Html)  # plain text again, and escaped when used
