"""Which tokens route to an expert: texts coloured by routing weight, and the tokens that visit it most."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from hf_mote.reports.formats import isolated, number, percent
from hf_mote.reports.markup import Child, Html, chip, join, tag
from hf_mote.reports.rankings import expert_link
from hf_mote.reports.tables import table

__all__ = ["RoutedText", "shown_parts", "token_section"]

MOST_EXPERTS = 20  # that get a part of their own
MOST_TOKENS = 400  # shown of one text
MOST_COLOURED = 6000  # tokens of a page, but for the first expert's
MOST_LISTED = 10  # tokens in the table of an expert
_WEIGHT_DECIMALS = 3  # of a routing weight, a share of one token's


class RoutedText(NamedTuple):
    """A text with the routing weight that some experts got on each of its tokens.

    Attributes:
        label (`str`): Its class.
        pieces (`list[str]`): Its tokens as text; joined they are the text.
        prompt_tokens (`int`): How many of them are the prompt's; the others are the response's.
        weights (`list[list[float]]`): For each expert the weight on each token, 0 where it was not chosen.
    """

    label: str
    pieces: list[str]
    prompt_tokens: int
    weights: list[list[float]]


def token_section(experts: Sequence[tuple[int, int]], texts: Sequence[RoutedText], target: str) -> Html:
    """Return one part for each expert: its most frequent tokens, and the texts coloured by its routing weight.

    Args:
        experts (`Sequence[tuple[int, int]]`): (layer, expert), in the order of `RoutedText.weights`.
        texts (`Sequence[RoutedText]`): The texts.
        target (`str`): The class of interest, whose texts are marked.
    """
    parts: list[Html] = []
    coloured = 0
    for place, (layer, expert) in enumerate(experts[:MOST_EXPERTS]):
        link = expert_link(layer, expert, f"Layer {layer}, expert {expert}")
        heading = join([f"{place + 1}. ", link])
        largest = max((max(text.weights[place], default=0.0) for text in texts), default=0.0)
        if largest == 0:
            parts.append(tag("h3", heading))
            parts.append(tag("p", "No token of these texts was routed to it.", class_="faint"))
            continue
        coloured += sum(weight != 0 for text in texts for weight in text.weights[place])
        if parts and coloured > MOST_COLOURED:
            parts.append(tag("p", f"From place {place + 1} on where an expert is pressed.", class_="note"))
            break
        lines = [tag("li", _coloured(text, place, largest, target)) for text in texts]
        key = tag(
            "p",
            f"Full colour: routing weight {number(largest, _WEIGHT_DECIMALS)}. Underlined: routed to it.",
            class_="key",
        )
        body = join([_most_visiting(place, texts, target), key, tag("ul", *lines, class_="texts")])
        parts.append(tag("details", tag("summary", tag("h3", heading)), body, open=place == 0))
    return join(parts)


def _coloured(text: RoutedText, place: int, largest: float, target: str) -> Html:
    prompt, response = shown_parts(text)
    return tag(
        "p",
        chip(text.label, target),
        " ",
        tag("span", *_parts(text, place, largest, prompt), class_="text", dir="auto"),
        tag("span", *_parts(text, place, largest, response), class_="text said", dir="auto", title="response")
        if response
        else None,
        class_="tokens",
    )


def shown_parts(text: RoutedText) -> tuple[list[range], list[range]]:
    """Return which tokens of the prompt and of the response are shown: both, for any length.

    Of a prompt that is too long its beginning and its end, of a response its beginning.

    Args:
        text (`RoutedText`): The text.
    """
    asked, said = text.prompt_tokens, len(text.pieces) - text.prompt_tokens
    of_response = min(said, max(MOST_TOKENS // 2, MOST_TOKENS - asked))
    of_prompt = MOST_TOKENS - of_response
    prompt = [range(asked)]
    if asked > of_prompt:
        first = of_prompt // 2
        prompt = [range(first), range(asked - (of_prompt - first), asked)]
    response = [range(asked, asked + of_response)] if said else []
    if said > of_response:
        response.append(range(len(text.pieces), len(text.pieces)))  # so that it says how many are left out
    return prompt, response


def _parts(text: RoutedText, place: int, largest: float, ranges: Sequence[range]) -> list[Html]:
    """Return runs of tokens, with what lies between them counted."""
    parts: list[Html] = []
    for index, positions in enumerate(ranges):
        if index:
            left_out = positions.start - ranges[index - 1].stop
            parts.append(tag("span", f" … {left_out} more tokens{' … ' if positions else ''}", class_="faint"))
        parts.append(_spans(text, place, largest, positions))
    return parts


def _spans(text: RoutedText, place: int, largest: float, positions: range) -> Html:
    spans: list[Child] = []
    for position in positions:
        piece, weight = text.pieces[position], text.weights[place][position]
        if weight == 0:
            spans.append(piece)
            continue
        title = f"{isolated(_named(piece))}: routing weight {number(weight, _WEIGHT_DECIMALS)}"
        # A token that is part of a character only has no text of its own.
        spans.append(tag("span", piece or "▯", class_="t", style=f"--w: {weight / largest:.2f}", title=title))
    return join(spans)


def _most_visiting(place: int, texts: Sequence[RoutedText], target: str) -> Html:
    seen: dict[str, list[float]] = defaultdict(
        lambda: [0.0, 0.0, 0.0, 0.0, 0.0]
    )  # total weight; chosen, seen by class
    for text in texts:
        side = 1 if text.label == target else 3
        for piece, weight in zip(text.pieces, text.weights[place], strict=True):
            entry = seen[piece.strip() or piece]
            entry[0] += weight
            entry[side] += weight != 0
            entry[side + 1] += 1
    most = sorted(seen, key=lambda piece: (-seen[piece][0], piece))[:MOST_LISTED]
    rows: list[list[Child]] = []
    for piece in most:
        total, chosen, of, others, of_others = seen[piece]
        if not total:
            break
        mean = total / (chosen + others)
        shares = [_share(chosen, of), _share(others, of_others)]
        rows.append([tag("code", _named(piece)), *shares, number(mean, _WEIGHT_DECIMALS)])
    headings: list[Child] = ["token", join(["routed to it in ", chip(target, target)]), "in the others", "mean weight"]
    return table("Tokens with the most routing weight", headings, rows, numeric=(1, 2, 3), sortable=True)


def _share(chosen: float, seen: float) -> str:
    return f"{chosen:.0f} of {seen:.0f} ({percent(chosen / seen, int(seen))})" if seen else "–"


def _named(piece: str) -> str:
    return piece.strip() or repr(piece)
