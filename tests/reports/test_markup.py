"""Text stays text, whatever it is, and nothing points outside the page."""

from __future__ import annotations

import pytest
from html_pages import parse_page
from hypothesis import given
from hypothesis import strategies as st

from hf_mote.reports.markup import Html, join, tag, visible

ATTACKS = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "&lt;b&gt; &amp; <!-- ]]> -->",
    "a & b < c > d \" e ' f",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_tag_text_and_attribute_come_back_as_they_were(text: str) -> None:
    (element,) = parse_page(tag("p", text, title=text)).children
    assert (element.name, element.text, element.attributes, element.children) == ("p", text, {"title": text}, [])


@given(st.text())
def test_tag_any_text_makes_no_element(text: str) -> None:
    made = tag("p", text, title=text)
    made.encode("utf-8")
    (element,) = parse_page(made).children
    assert element.children == []
    assert element.text == visible(text).replace("\r", "\n")
    assert set(element.attributes) == {"title"}


def test_tag_markup_inside_is_kept_and_none_left_out() -> None:
    assert tag("p", tag("b", "x"), None, "<", class_="a", hidden=True, open=False, lang=None) == (
        '<p class="a" hidden><b>x</b>&lt;</p>'
    )


def test_tag_void_element_is_not_closed() -> None:
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'


@pytest.mark.parametrize(
    "attributes",
    [
        {"href": "https://example.org"},
        {"href": "javascript:alert(1)"},
        {"href": "report.json"},
        {"src": "//example.org/x.png"},
        {"src": "data:text/html,<script>alert(1)</script>"},
        {"srcset": "x.png 2x"},
        {"onclick": "alert(1)"},
    ],
)
def test_tag_attribute_that_points_outside_is_refused(attributes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="outside the page"):
        tag("a", "x", **attributes)


def test_tag_place_in_the_page_and_own_picture_are_allowed() -> None:
    assert 'href="#verdict"' in tag("a", "x", href="#verdict")
    assert "base64,AAAA" in tag("img", src="data:image/png;base64,AAAA")


def test_join_escapes_text_and_keeps_markup() -> None:
    assert join(["<", Html("<b></b>"), None, ">"], between=" & ") == "&lt; &amp; <b></b> &amp; &gt;"


def test_visible_control_characters_become_pictures_and_half_characters_a_mark() -> None:
    assert visible("a\x00b\x1b[31m\x7f\ttab\nline\r\nnext\ud800") == "a␀b␛[31m␡\ttab\nline\nnext\ufffd"
