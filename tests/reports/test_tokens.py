"""Texts coloured by routing weight: what is shown of them, what is counted, and that text stays text."""

from __future__ import annotations

import pytest
from html_pages import parse_page

from hf_mote.reports.tokens import MOST_TOKENS, RoutedText, token_section


def test_token_section_colours_tokens_by_their_share_of_the_largest_weight() -> None:
    texts = [
        RoutedText("refusal", ["<s>", " Vienna", "?", " I"], 3, [[0.0, 0.4, 0.1, 0.2]]),
        RoutedText("answer", ["<s>", " Rome"], 2, [[0.0, 0.0]]),
    ]
    root = parse_page(token_section([(2, 53)], texts, "refusal"))
    coloured = root.all("span", "t")
    assert [(token.text, token.attributes["style"]) for token in coloured] == [
        (" Vienna", "--w: 1.00"),
        ("?", "--w: 0.25"),
        (" I", "--w: 0.50"),
    ]
    assert coloured[0].attributes["title"] == "Vienna: routing weight 0.400"
    assert root.all("span", "said")[0].text == " I"
    assert [text.text for text in root.all("p", "tokens")] == ["refusal <s> Vienna? I", "answer <s> Rome"]
    rows = [[cell.text for cell in row.children] for row in root.all("tr")[1:]]
    assert rows == [
        ["Vienna", "1 of 1 (100%)", "–", "0.400"],
        ["I", "1 of 1 (100%)", "–", "0.200"],
        ["?", "1 of 1 (100%)", "–", "0.100"],
    ]


def test_token_section_of_an_expert_that_nothing_goes_to_says_so() -> None:
    root = parse_page(token_section([(1, 0)], [RoutedText("a", ["x"], 1, [[0.0]])], "a"))
    assert "No token of these texts was routed to it." in root.text


def test_token_section_long_text_is_cut_with_a_count_and_tokens_stay_text() -> None:
    pieces = ["<script>"] + ["x"] * (MOST_TOKENS + 4)
    text = RoutedText("a", pieces, 5, [[1.0] + [0.0] * (MOST_TOKENS + 4)])
    root = parse_page(token_section([(1, 0)], [text], "a"))
    assert root.all("p", "tokens")[0].text.endswith("… 5 more tokens")
    assert root.all("span", "t")[0].text == "<script>"
    assert root.all("script") == []


def test_token_section_long_prompt_shows_its_ends_and_the_response() -> None:
    pieces = [f"p{i} " for i in range(900)] + [f"r{i} " for i in range(500)]
    text = RoutedText("a", pieces, 900, [[1.0] * 1400])
    root = parse_page(token_section([(1, 0)], [text], "a"))
    shown = root.all("p", "tokens")[0]
    prompt, response = shown.all("span", "text")
    half = MOST_TOKENS // 4
    tokens = [span.text for span in prompt.all("span", "t")]
    assert tokens == pieces[:half] + pieces[900 - half : 900]
    assert [span.text for span in response.all("span", "t")] == pieces[900 : 900 + 2 * half]
    assert [span.text for span in shown.all("span", "faint")] == [
        f" … {900 - 2 * half} more tokens … ",
        f" … {500 - 2 * half} more tokens",
    ]


@pytest.mark.parametrize(("asked", "said"), [(3, 2), (900, 2), (3, 900), (900, 0), (0, 900), (400, 0), (399, 1)])
def test_token_section_shows_as_many_tokens_as_it_may(asked: int, said: int) -> None:
    text = RoutedText("a", ["x"] * (asked + said), asked, [[1.0] * (asked + said)])
    root = parse_page(token_section([(1, 0)], [text], "a"))
    assert len(root.all("span", "t")) == min(asked + said, MOST_TOKENS)
    assert (len(root.all("span", "said")) == 1) == (said > 0)
    left_out = [int(part) for span in root.all("span", "faint") for part in span.text.split() if part.isdigit()]
    assert sum(left_out) == max(asked + said - MOST_TOKENS, 0)
