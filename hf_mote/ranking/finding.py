"""What a ranking shows, in one sentence: that there is something, nothing, or that nothing could have been found.

A p value has a least value, which the numbers of prompts and of permutations set, and q is p adjusted for the number
of experts. Where even the clearest expert could not have reached q = 0.05, "nothing here" would say what nobody
tested.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from hf_mote.statistics.rates import SIGNIFICANT

if TYPE_CHECKING:
    from hf_mote.ranking.expert_ranking import ExpertRanking

__all__ = ["Finding", "finding_of"]


class Finding(NamedTuple):
    """What a ranking shows.

    Attributes:
        text (`str`): In one or two sentences.
        significant (`int`, *optional*): Experts above 0 with q at most 0.05; `None` where no q values are.
    """

    text: str
    significant: int | None


def finding_of(ranking: ExpertRanking, relation: str) -> Finding:
    """Return what a ranking shows.

    Args:
        ranking (`ExpertRanking`): The ranking.
        relation (`str`): What a score above 0 means, after "experts": "are used more by class 'refusal'".
    """
    if ranking.q is None or ranking.p is None:
        text = f"{len(ranking):,} experts were ranked without p values, which does not tell chance from effect."
        return Finding(text, None)
    tested = int((~ranking.q.isnan()).sum())
    found = int(((ranking.q <= SIGNIFICANT) & (ranking.score > 0)).sum())
    if found:
        return Finding(f"{found:,} of {tested:,} experts {relation} (q ≤ {SIGNIFICANT}).", found)
    if ranking.least_p is None or ranking.least_q is None:
        unknown = "whether any could have, the ranking does not say"
        return Finding(f"Of {tested:,} experts none {relation} with q ≤ {SIGNIFICANT}; {unknown}.", 0)
    if ranking.least_q <= SIGNIFICANT:
        return Finding(f"Nothing here: of {tested:,} experts none {relation} with q ≤ {SIGNIFICANT}.", 0)
    permutations = ranking.provenance.get("permutations")
    # Few prompts bound p where every relabelling was gone through, or more were drawn than there are.
    by_prompts = not isinstance(permutations, int) or round(2 / ranking.least_p) <= permutations
    bound = _compared(ranking) if by_prompts else f"{permutations:,} permutation{'' if permutations == 1 else 's'}"
    remedy = "Ask more prompts." if by_prompts else "Ask for more permutations."
    least = f"p cannot be below {ranking.least_p:.3g}"
    if ranking.least_p > SIGNIFICANT:
        text = f"Nothing could be found with {bound}: {least}, whatever the {tested:,} experts do. {remedy}"
        return Finding(text, 0)
    fewest = math.ceil(ranking.least_p * tested / SIGNIFICANT)
    text = (
        f"Nothing was found, and fewer than {fewest:,} of {tested:,} experts could not be found with {bound}: "
        f"{least}, q of one expert alone not below {ranking.least_q:.3g}. {remedy}"
    )
    return Finding(text, 0)


def _compared(ranking: ExpertRanking) -> str:
    known = ranking.provenance
    if "compared" in known:
        return str(known["compared"])
    return f"{known['prompts']} prompts" if "prompts" in known else "so few prompts"
