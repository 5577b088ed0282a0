"""The parts of a page on a ranking: its verdict, its best experts in a table, and those with negative scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_mote.maps.activation_map import ActivationMap
from hf_mote.ranking.expert_ranking import ExpertRanking, RankedExpert
from hf_mote.ranking.finding import Finding
from hf_mote.reports.formats import (
    decimals_by,
    decimals_for,
    decimals_of_means,
    number,
    percent,
    probability,
    signed,
)
from hf_mote.reports.markup import Child, Html, chip, join, tag
from hf_mote.reports.tables import table

__all__ = ["decimals_of", "expert_link", "expert_links", "expert_table", "lowest", "ranking_verdict"]

_DIGITS = 3  # of a score without an interval


def ranking_verdict(ranking: ExpertRanking, *, relation: str) -> Finding:
    """Return the finding of a ranking, and its first expert.

    Args:
        ranking (`ExpertRanking`): The ranking.
        relation (`str`): What a score above 0 means, after "experts": "are used more by class 'refusal'".
    """
    found = ranking.finding(relation)
    first = _in_words(ranking.rows(1)[0], ranking.unit, decimals_of(ranking))
    return found._replace(text=f"{found.text} First comes {first}.")


def expert_link(layer: int, expert: int, text: str | None = None) -> Html:
    """Return an expert as layer.expert, which the page's script shows on a click.

    The page must hold [`~hf_mote.reports.explorer.expert_panel`].

    Args:
        layer (`int`): Absolute decoder layer.
        expert (`int`): Index within the layer.
        text (`str`, *optional*): What it is called instead.
    """
    name = f"{layer}.{expert}"
    return tag("a", name if text is None else text, href="#expert", class_="expert", data_expert=name)


def expert_links(pairs: Sequence[tuple[int, int]]) -> Html:
    """Return several experts as [`expert_link`] does, with spaces between."""
    return join([expert_link(*pair) for pair in pairs], "  ")


def decimals_of(ranking: ExpertRanking) -> int:
    """Return how many decimals the first scores of a ranking carry: two digits of their intervals, three without."""
    if ranking.low is not None and ranking.high is not None:
        best = ranking.rows(min(5, len(ranking)))
        known = decimals_by([row.low for row in best], [row.high for row in best])
        if known is not None:
            return known
    return max(0, decimals_for(ranking.score.flatten().tolist()) - (4 - _DIGITS))


def lowest(ranking: ExpertRanking, n: int) -> list[RankedExpert]:
    """Return the `n` experts of the lowest score below 0, lowest first, or as many as there are.

    Args:
        ranking (`ExpertRanking`): The ranking.
        n (`int`): How many at most.
    """
    below = min(n, int((ranking.score < 0).sum()))
    return list(reversed(ranking.rows(len(ranking))[len(ranking) - below :])) if below else []


def expert_table(
    ranking: ExpertRanking,
    rows: Sequence[RankedExpert],
    caption: str,
    maps: Mapping[str, tuple[int, ActivationMap]] | None = None,
    *,
    target: str | None = None,
    identity: str | None = None,
) -> Html:
    """Return experts with place, score, interval, p and q, and their tokens per prompt in each class.

    Args:
        ranking (`ExpertRanking`): The ranking.
        rows (`Sequence[RankedExpert]`): Its rows to show.
        caption (`str`): What they are.
        maps (`Mapping[str, tuple[int, ActivationMap]]`, *optional*): Number of prompts and mean map of each class.
        target (`str`, *optional*): The class of interest.
        identity (`str`, *optional*): Id of the table.
    """
    classes = maps or {}
    interval = (
        "interval" if ranking.confidence is None else f"{percent(ranking.confidence).removesuffix('.0%')} % interval"
    )
    unit = f"score, {ranking.unit}" if ranking.unit else "score"
    headings: list[Child] = ["expert", "place", unit, interval, "p", "q"]
    headings += [join(["tokens per prompt ", chip(name, target)]) for name in classes]
    decimals, least = decimals_of(ranking), ranking.least_p
    tokens = []
    for n, seen in classes.values():
        digits = decimals_of_means(n, seen.counts.flatten().tolist())
        tokens.append([number(seen.at(row.layer, row.expert), digits) for row in rows])
    body: list[list[Child]] = []
    for index, row in enumerate(rows):
        cells: list[Child] = [expert_link(row.layer, row.expert), str(ranking.rank_of(row.layer, row.expert))]
        cells += [signed(row.score, decimals), _interval(row, decimals)]
        cells += [probability(row.p, least), probability(row.q, least)]
        body.append(cells + [column[index] for column in tokens])
    return table(caption, headings, body, numeric=range(1, len(headings)), identity=identity)


def _in_words(row: RankedExpert, unit: str, decimals: int) -> str:
    interval = _interval(row, decimals)
    known = f" [{interval}]" if row.low is not None and row.low == row.low else ""
    score = " ".join(filter(None, (signed(row.score, decimals), unit)))
    return f"layer {row.layer}, expert {row.expert}: {score}{known}"


def _interval(row: RankedExpert, decimals: int | None = None) -> str:
    if row.low is None or row.low != row.low:
        return "–"
    return f"{signed(row.low, decimals)} to {signed(row.high, decimals)}"
