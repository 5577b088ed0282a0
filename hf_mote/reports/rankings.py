"""A ranking for people: its verdict in words and its best experts in a table."""

from __future__ import annotations

from collections.abc import Mapping

from hf_mote.maps.activation_map import ActivationMap
from hf_mote.ranking.expert_ranking import ExpertRanking, RankedExpert
from hf_mote.ranking.finding import Finding
from hf_mote.reports.formats import decimals_for, number, percent, probability, signed
from hf_mote.reports.markup import Child, Html
from hf_mote.reports.tables import table

__all__ = ["expert_table", "ranking_verdict"]


def ranking_verdict(ranking: ExpertRanking, *, relation: str) -> Finding:
    """Return what a ranking shows, and which expert comes first.

    Args:
        ranking (`ExpertRanking`): The ranking.
        relation (`str`): What a score above 0 means, after "experts": "are used more by class 'refusal'".
    """
    found = ranking.finding(relation)
    return found._replace(text=f"{found.text} First comes {_in_words(ranking.rows(1)[0], ranking.unit)}.")


def expert_table(ranking: ExpertRanking, n: int, maps: Mapping[str, ActivationMap] | None = None) -> Html:
    """Return the best experts with score, interval, p and q, and their tokens per prompt in each class.

    Args:
        ranking (`ExpertRanking`): The ranking.
        n (`int`): How many.
        maps (`Mapping[str, ActivationMap]`, *optional*): The mean map of each class, by name.
    """
    classes = maps or {}
    interval = (
        "interval" if ranking.confidence is None else f"{percent(ranking.confidence).removesuffix('.0%')} % interval"
    )
    headings = ["place", "layer", "expert", "score", interval, "p", "q"]
    headings += [f"tokens per prompt, {name}" for name in classes]
    best = ranking.rows(min(n, len(ranking)))
    decimals = decimals_for([row.score for row in best])
    visits = [[seen.at(row.layer, row.expert) for row in best] for seen in classes.values()]
    tokens = [[number(value, decimals_for(column)) for value in column] for column in visits]
    rows: list[list[Child]] = []
    for index, row in enumerate(best):
        cells: list[Child] = [str(index + 1), str(row.layer), str(row.expert), signed(row.score, decimals)]
        cells += [_interval(row, decimals), probability(row.p), probability(row.q)]
        rows.append(cells + [column[index] for column in tokens])
    caption = f"The first {len(rows)} of {len(ranking):,} experts; scores in {ranking.unit}"
    return table(caption, headings, rows, numeric=range(len(headings)))


def _in_words(row: RankedExpert, unit: str) -> str:
    interval = _interval(row)
    known = f" [{interval}]" if row.low is not None and row.low == row.low else ""
    return f"layer {row.layer}, expert {row.expert}: {signed(row.score)} {unit}{known}"


def _interval(row: RankedExpert, decimals: int | None = None) -> str:
    if row.low is None or row.low != row.low:
        return "–"
    return f"{signed(row.low, decimals)} to {signed(row.high, decimals)}"
