"""The table of experts, which sorts and filters, and the view of one expert.

The first experts, and those with negative scores, are in the page also without scripts. `page.js` adds the numbers of
all experts, which [`explorer_data`] puts into the page as data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from hf_mote.links.latent_expert_map import LatentExpertMap
from hf_mote.maps.activation_map import ActivationMap
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.reports.formats import decimals_of_means
from hf_mote.reports.links import latents_data
from hf_mote.reports.markup import Child, Html, data_block, join, tag
from hf_mote.reports.rankings import decimals_of, expert_table, lowest
from hf_mote.reports.tokens import RoutedText, shown_parts

__all__ = ["Explored", "expert_panel", "expert_part", "explorer_data", "traced_experts"]

Pair: TypeAlias = tuple[int, int]

FIRST, AGAINST = 20, 10  # experts in the tables that need no script
MOST_TRACED, MOST_TRACED_AGAINST = 96, 32  # experts whose tokens are followed
MOST_WEIGHTS = 30_000  # routing weights of single tokens in a page
LONGEST_PROMPT = 200  # characters of a prompt that is named beside an expert


class Explored(NamedTuple):
    """The data of a model's experts.

    Attributes:
        rankings (`Mapping[str, ExpertRanking]`): By score or method; the first is the one that counts.
        target (`str`): The class, or response, that a score above 0 speaks for.
        relation (`tuple[str, str]`): What a score above 0 and one below means, before the target's name.
        marked (`Mapping[str, Sequence[tuple[int, int]]]`): (layer, expert) that stand out, by what they are.
        maps (`Mapping[str, tuple[int, ActivationMap]]`): Number of prompts and mean map of each class.
        texts (`Sequence[RoutedText]`): Texts with the routing weights of `traced`.
        traced (`Sequence[tuple[int, int]]`): The experts of `RoutedText.weights`.
        removed (`Mapping[str, Mapping[tuple[int, int], str]]`):
            Effects of removing an expert, as text, by the method of measurement.
        alike (`Mapping[tuple[int, int], Sequence[tuple[tuple[int, int], float]]]`):
            Experts used by the same prompts, with their correlation.
        prompts (`Sequence[tuple[str, str]]`): Prompts with their class.
        visits (`Mapping[tuple[int, int], Sequence[tuple[int, float, float]]]`):
            Prompts that go to an expert most: the place in `prompts`, tokens that did, tokens counted.
        config (`Mapping`, *optional*): A config made of the first experts, as `MoTEConfig.to_dict` gives it.
        latents (`Sequence[LatentExpertMap]`): Which latents predict or drive experts.
    """

    rankings: Mapping[str, ExpertRanking]
    target: str
    relation: tuple[str, str]
    marked: Mapping[str, Sequence[Pair]]
    maps: Mapping[str, tuple[int, ActivationMap]] = {}
    texts: Sequence[RoutedText] = ()
    traced: Sequence[Pair] = ()
    removed: Mapping[str, Mapping[Pair, str]] = {}
    alike: Mapping[Pair, Sequence[tuple[Pair, float]]] = {}
    prompts: Sequence[tuple[str, str]] = ()
    visits: Mapping[Pair, Sequence[tuple[int, float, float]]] = {}
    config: Mapping[str, Any] | None = None
    latents: Sequence[LatentExpertMap] = ()

    @property
    def ranking(self) -> ExpertRanking:
        """The main ranking."""
        return next(iter(self.rankings.values()))


def traced_experts(ranking: ExpertRanking) -> list[Pair]:
    """Return the experts whose tokens a page can show: the first ones, then those with negative scores.

    Args:
        ranking (`ExpertRanking`): The ranking.
    """
    if len(ranking) <= MOST_TRACED + MOST_TRACED_AGAINST:
        return ranking.top(len(ranking))
    first = ranking.top(MOST_TRACED)
    last = [(row.layer, row.expert) for row in lowest(ranking, MOST_TRACED_AGAINST)]
    return first + [pair for pair in last if pair not in first]


def expert_part(found: Explored) -> Html:
    """Return the table of experts, those for the target and those against it.

    Args:
        found (`Explored`): What is known of them.
    """
    ranking = found.ranking
    rows = ranking.rows(min(FIRST, len(ranking)))
    caption = f"The first {len(rows)} of {len(ranking):,} experts"
    shared: dict[str, Any] = {"maps": found.maps, "target": found.target}
    parts: list[Child] = [
        tag("div", id="experts-controls", class_="controls"),
        expert_table(ranking, rows, caption, identity="experts-table", **shared),
        tag("p", id="experts-more", class_="controls"),
    ]
    against = lowest(ranking, AGAINST)
    if against:
        caption = f"The {len(against)} that speak most against it"
        parts.append(tag("div", expert_table(ranking, against, caption, **shared), class_="without-script"))
    return join(parts)


def expert_panel() -> Html:
    """Return the place where the page's script shows one expert."""
    text = "Where scripts may run, an expert that is pressed is shown here, with its counts, tokens and neighbours."
    return tag("aside", tag("p", text, class_="faint"), id="expert", aria_label="Expert", tabindex=-1)


def explorer_data(found: Explored) -> Html:
    """Return the numbers of all experts for the page's script, rounded to their precision.

    Args:
        found (`Explored`): What is known of them.
    """
    ranking = found.ranking
    experts = ranking.score.shape[1]
    rows = {layer: row for row, layer in enumerate(ranking.layers)}
    return data_block(
        "data",
        {
            "layers": list(ranking.layers),
            "experts": experts,
            "order": [rows[layer] * experts + expert for layer, expert in ranking.top(len(ranking))],
            "target": found.target,
            "relation": list(found.relation),
            "rankings": [_scores(name, each) for name, each in found.rankings.items()],
            "classes": [_counts(name, n, seen) for name, (n, seen) in found.maps.items()],
            "marked": [{"name": name, "experts": _names(pairs)} for name, pairs in found.marked.items()],
            "removed": [
                {"name": name, "effects": {_name(pair): text for pair, text in effects.items()}}
                for name, effects in found.removed.items()
            ],
            "alike": {
                _name(pair): [[_name(other), round(r, 2)] for other, r in others]
                for pair, others in found.alike.items()
            },
            **_prompts(found),
            "texts": _texts(found),
            "config": found.config,
            **_latents(found),
        },
    )


def _name(pair: Pair) -> str:
    return f"{pair[0]}.{pair[1]}"


def _names(pairs: Sequence[Pair]) -> list[str]:
    return [_name(pair) for pair in pairs]


def _scores(name: str, ranking: ExpertRanking) -> dict[str, Any]:
    decimals = decimals_of(ranking)
    return {
        "name": name,
        "unit": ranking.unit,
        "decimals": decimals,
        "confidence": ranking.confidence,
        "coarse": ranking.least_p is not None and ranking.least_p >= 0.01,
        "score": _rounded(ranking.score, decimals),
        "low": _rounded(ranking.low, decimals),
        "high": _rounded(ranking.high, decimals),
        "p": _rounded(ranking.p, 4),
        "q": _rounded(ranking.q, 4),
    }


def _counts(name: str, n: int, seen: ActivationMap) -> dict[str, Any]:
    decimals = decimals_of_means(n, seen.counts.flatten().tolist())
    return {"name": name, "prompts": n, "decimals": decimals, "counts": _rounded(seen.counts, decimals)}


def _rounded(grid: Tensor | None, decimals: int) -> list[float | None] | None:
    """Return numbers as short as possible; `None` for unknown ones."""
    if grid is None:
        return None
    short: Callable[[float], float] = lambda value: int(value) if value == int(value) else value  # noqa: E731
    values = [round(value, decimals) if math.isfinite(value) else None for value in grid.flatten().tolist()]
    return [None if value is None else short(value) for value in values]


def _latents(found: Explored) -> dict[str, Any]:
    """Return the latents of the experts whose tokens are followed, then of the others; nothing without maps."""
    if not found.latents:
        return {}
    order = [*traced_experts(found.ranking), *found.ranking.top(len(found.ranking))]
    return {"latents": latents_data(found.latents, list(dict.fromkeys(order)))}


def _prompts(found: Explored) -> dict[str, Any]:
    """Return the prompts that are shown with an expert, and their places."""
    named = sorted({index for visits in found.visits.values() for index, _, _ in visits})
    places = {index: place for place, index in enumerate(named)}
    kept = [found.prompts[index] for index in named]
    return {
        "prompts": [[text[:LONGEST_PROMPT] + "…" * (len(text) > LONGEST_PROMPT), label] for text, label in kept],
        "visits": {
            _name(pair): [[places[index], round(tokens, 1), round(of, 1)] for index, tokens, of in visits]
            for pair, visits in found.visits.items()
        },
    }


def _texts(found: Explored) -> list[dict[str, Any]]:
    """Return the texts, token by token, with the routing weights of as many experts as fit."""
    texts: list[dict[str, Any]] = []
    places: list[list[int]] = []  # of the tokens that are shown, for each text
    for text in found.texts:
        pieces: list[Child | int] = []
        shown: list[int] = []
        asked = 0
        for part, ranges in enumerate(shown_parts(text)):
            for index, positions in enumerate(ranges):
                if index:
                    pieces.append(positions.start - ranges[index - 1].stop)  # tokens left out
                    shown.append(-1)
                pieces += [text.pieces[position] for position in positions]
                shown += positions
            if part == 0:
                asked = len(pieces)
        texts.append({"label": text.label, "asked": asked, "pieces": pieces, "weights": {}})
        places.append(shown)
    left = MOST_WEIGHTS
    for place, pair in enumerate(found.traced if found.texts else ()):
        for entry, shown, text in zip(texts, places, found.texts, strict=True):
            weights = text.weights[place]
            visits = [
                number
                for at, position in enumerate(shown)
                if position >= 0 and weights[position] != 0
                for number in (at, float(f"{weights[position]:.2g}"))
            ]
            entry["weights"][_name(pair)] = visits
            left -= len(visits) // 2
        if left < 0:
            break
    return texts
