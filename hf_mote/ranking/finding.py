"""A sentence on what a ranking shows: a finding, nothing, or that nothing could have been found.

The numbers of prompts and of permutations set a least p value, and q is p adjusted for the number of experts. If even
the clearest expert could not have reached q = 0.05, "nothing here" would not be justified.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from hf_mote.statistics.rates import SIGNIFICANT

__all__ = ["Finding", "finding_of", "least_q_of"]

LEAST_TESTED = 16
MOST_MOVED = 1 / 3  # of all experts: a contrast in which more differ is one of topics


class Finding(NamedTuple):
    """The finding of a ranking.

    Attributes:
        text (`str`): In one or two sentences.
        significant (`int`, *optional*): Experts above 0 with q at most 0.05; `None` where no q values are.
    """

    text: str
    significant: int | None


def finding_of(
    relation: str,
    *,
    score: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    least_p: float | None,
    permutations: object = None,
    compared: str = "so few prompts",
    remedy: str = "",
) -> Finding:
    """Return what a ranking shows.

    Args:
        relation (`str`): What a score above 0 means, after "experts": "are used more by class 'refusal'".
        score (`torch.Tensor` of shape `(layers, experts)`): The score of each expert.
        p (`torch.Tensor`, *optional*): Like `score`: p values; NaN for an expert that was not tested.
        q (`torch.Tensor`, *optional*): Like `score`: p values adjusted for the number of experts.
        least_p (`float`, *optional*): Least p value that so many prompts and permutations could give.
        permutations (`object`, *optional*): Number of relabellings that p values rest on, if they were drawn.
        compared (`str`, *optional*): Description of the comparison: "8 against 9 prompts".
        remedy (`str`, *optional*): What to do where so many experts differ that hardly any can be a cause.
    """
    if q is None or p is None:
        text = f"{score.numel():,} experts were ranked without p values, which cannot separate chance from effect."
        return Finding(text, None)
    tested = int((~q.isnan()).sum())
    found = int(((q <= SIGNIFICANT) & (score > 0)).sum())
    if found:
        text = f"{found:,} of {tested:,} experts {relation} (q ≤ {SIGNIFICANT})."
        moved = int((q <= SIGNIFICANT).sum())
        if moved > MOST_MOVED * tested and tested >= LEAST_TESTED:
            text += (
                f" With those that do so less, {moved:,} of all experts differ: so many do by topic, wording or "
                f"length, and hardly any is a cause. {remedy}"
            ).rstrip()
        return Finding(text, found)
    if least_p is None:
        unknown = "whether any could have, the ranking does not say"
        return Finding(f"Of {tested:,} experts none {relation} with q ≤ {SIGNIFICANT}; {unknown}.", 0)
    least_q = least_q_of(least_p, p)
    if least_q <= SIGNIFICANT:
        return Finding(f"Nothing here: of {tested:,} experts none {relation} with q ≤ {SIGNIFICANT}.", 0)
    # Few prompts bound p where every relabelling was gone through, or more were drawn than there are.
    by_prompts = not isinstance(permutations, int) or round(2 / least_p) <= permutations
    bound = compared if by_prompts else f"{permutations:,} permutation{'' if permutations == 1 else 's'}"
    remedy = "Ask more prompts." if by_prompts else "Ask for more permutations."
    least = f"p cannot be below {least_p:.3g}"
    if least_p > SIGNIFICANT:
        text = f"Nothing could be found with {bound}: {least}, whatever the {tested:,} experts do. {remedy}"
        return Finding(text, 0)
    fewest = math.ceil(least_p * tested / SIGNIFICANT)
    text = (
        f"Nothing was found, but {bound} could not show less than {fewest:,} experts at once: one that stands out "
        f"alone gets q = {least_q:.2g} at best, as {least} and {tested:,} experts were tested. {remedy}"
    )
    return Finding(text, 0)


def least_q_of(least_p: float, p: Tensor) -> float:
    """Return the least q value that one expert alone could have; 1 where none was tested.

    Args:
        least_p (`float`): Least p value that an expert could have.
        p (`torch.Tensor`): p values; NaN for an expert that was not tested.
    """
    tested = int((~p.isnan()).sum())
    return min(1.0, least_p * tested) if tested else 1.0
