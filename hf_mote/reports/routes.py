"""The page of `hf-mote routes`: what other routes of one token would have changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hf_mote.ranking.causal.counterfactual import CounterfactualRoutes, Route
from hf_mote.reports.formats import decimals_for, isolated, number, signed
from hf_mote.reports.markup import Child, Html, chip, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.tables import folded, table

__all__ = ["Rerouted", "RoutedPrompt", "first_rows", "routes_page", "routes_verdict"]

MOST_LISTED = 200  # prompts
HEADINGS = ("layer", "expert out", "expert in", "weight", "change", "preference", "turns it")


class RoutedPrompt(NamedTuple):
    """The routes of one prompt.

    Attributes:
        prompt (`str`): Its text.
        target (`str`): The target response.
        baseline (`str`): The baseline response.
        pieces (`list[str]`): The text of each of its tokens, chat template included.
        routes (`CounterfactualRoutes`): Other routes of one of them.
    """

    prompt: str
    target: str
    baseline: str
    pieces: list[str]
    routes: CounterfactualRoutes

    @property
    def token(self) -> str:
        """The token, in words."""
        text = self.pieces[self.routes.position]
        return f"token {self.routes.position} ({isolated(repr(text))})"


class Rerouted(NamedTuple):
    """The routes of all prompts of a command.

    Attributes:
        model (`str`): The model's name.
        prompts (`list[RoutedPrompt]`): The prompts.
        top (`int`): How many routes are listed.
    """

    model: str
    prompts: list[RoutedPrompt]
    top: int


def first_rows(found: Rerouted) -> tuple[list[str], list[list[str]]]:
    """Return the routes that change a preference most as a table: the headings, and a row for each.

    Args:
        found (`Rerouted`): All routes.
    """
    first, several = _first(found), len(found.prompts) > 1
    of_change = decimals_for(route.effect for _, route in first)
    of_preference = decimals_for(found.prompts[place].routes.score for place, _ in first)
    rows = []
    for place, route in first:
        routes = found.prompts[place].routes
        cells = [
            str(route.layer),
            " ".join(map(str, route.experts_out)),
            " ".join(map(str, route.experts_in)),
            number(route.weight, 3),
            signed(route.effect, of_change),
            signed(routes.score + route.effect, of_preference),
            "yes" if route in routes.turning else "no",
        ]
        rows.append([str(place + 1), *cells] if several else cells)
    return ["prompt", *HEADINGS] if several else list(HEADINGS), rows


def routes_verdict(found: Rerouted) -> tuple[str, bool]:
    """Return what the routes show, and whether one of them turns a preference.

    Args:
        found (`Rerouted`): All routes.
    """
    turned = [one for one in found.prompts if one.routes.turning]
    ((place, best),) = _first(found._replace(top=1))
    largest = f"the largest change is {signed(best.effect)} nats, {_named(best)}"
    if len(found.prompts) > 1:
        largest += f" of prompt {place + 1}"
        counted = f"{len(turned)} of {len(found.prompts)}" if turned else f"none of {len(found.prompts)}"
        text = f"On {counted} prompts another route of the token turns the preference between the two responses"
        return (f"{text}; {largest}." if best.effect else f"{text}, or changes it at all."), bool(turned)
    (one,) = found.prompts
    routes = one.routes
    text, there, turning = f"The model {_preferred(routes.score)}.", len(routes.routes), len(routes.turning)
    changes = "turn" if best.effect else "change"
    if there == 1:
        does = f"{changes}s" if turning else f"does not {changes}"
        finding = f"The only other route of {one.token} {does} that"
    else:
        does = changes if turning > 1 else f"{changes}s"
        finding = f"{turning or 'None'} of {there} other routes of {one.token} {does} that"
    return f"{text} {finding}{f'; {largest}' if best.effect else ' at all'}.", bool(turning)


def routes_page(found: Rerouted, *, provenance: Mapping[str, str], files: Mapping[str, str]) -> Html:
    """Return the page.

    Args:
        found (`Rerouted`): All routes.
        provenance (`Mapping[str, str]`): How they came about, by name.
        files (`Mapping[str, str]`): What lies beside the page, by path.
    """
    verdict, anything = routes_verdict(found)
    how = (
        "In one layer, a chosen expert of the token gives way to the next best one by the router's own rule; all else "
        "is as it was. The change is that of log p(target) − log p(baseline)."
    )
    items = [tag("li", *_prompt(one)) for one in found.prompts[:MOST_LISTED]]
    sections = [
        Section("routes", "Routes that change the answer most", join([tag("p", how, class_="faint"), _table(found)])),
        Section("prompts", "Prompts and responses", folded("{n} more prompts", items, shown=5, kind="pairs", more="")),
        provenance_section(provenance, files),
    ]
    number_of = f"{len(found.prompts)} prompts" if len(found.prompts) > 1 else "1 prompt"
    subject = f"{found.model}: {number_of}"
    return make_page("Other routes of a token", subject=subject, verdict=verdict, found=anything, sections=sections)


def _first(found: Rerouted) -> list[tuple[int, Route]]:
    """Return the routes that change a preference most, each with the place of its prompt."""
    pairs = [(place, route) for place, one in enumerate(found.prompts) for route in one.routes.routes]
    return sorted(pairs, key=lambda pair: -abs(pair[1].effect))[: found.top]


def _table(found: Rerouted) -> Html:
    headings, rows = first_rows(found)
    there = sum(len(one.routes.routes) for one in found.prompts)
    caption = f"The first {len(rows)} of {there} routes; change and preference in nats"
    return table(caption, headings, rows, numeric=range(len(headings) - 1), sortable=True)


def _prompt(one: RoutedPrompt) -> list[Html]:
    at = one.routes.position
    marked: list[Child] = [
        tag("span", piece or "▯", class_="t", style="--w: 1", title=f"token {at}") if place == at else piece
        for place, piece in enumerate(one.pieces)
    ]
    turning = len(one.routes.turning)
    return [
        tag("p", one.prompt, class_="asked text", dir="auto"),
        tag("p", tag("span", *marked, class_="text", dir="auto"), class_="tokens"),
        tag(
            "dl",
            tag("div", tag("dt", chip("target", "target")), tag("dd", one.target, class_="text", dir="auto")),
            tag("div", tag("dt", chip("baseline")), tag("dd", one.baseline, class_="text", dir="auto")),
            class_="sides",
        ),
        tag(
            "p",
            f"preference {signed(one.routes.score)} nats; {turning} of {len(one.routes.routes)} routes of {one.token} "
            f"turn it",
            class_="faint",
        ),
    ]


def _preferred(score: float) -> str:
    if score == 0:
        return "finds both responses equally likely"
    first, second = ("target", "baseline") if score > 0 else ("baseline", "target")
    return f"finds the {first} likelier than the {second}, by {number(abs(score))} nats"


def _named(route: Route) -> str:
    out, into = (" and ".join(map(str, experts)) for experts in (route.experts_out, route.experts_in))
    return f"in layer {route.layer} with {into} in the place of {out}"
