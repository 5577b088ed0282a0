"""p and q values of a ranking, held against each other and against the test that gave them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from hf_mote.errors import DataError
from hf_mote.statistics.contrast import adjusted
from hf_mote.statistics.permutation import MOST_EXACT

__all__ = ["check_p_values"]

_ADJUSTED = ("ftri", "attribution", "ablation", "patching")  # methods of this package that give p values
_ROUNDING = 1e-9


def check_p_values(p: Tensor, q: Tensor, method: str, least_p: float | None, permutations: object) -> None:
    """Refuse p values below what their test can give, and q values that are not those of p.

    Args:
        p (`torch.Tensor` of shape `(layers, experts)`, float64): From 0 to 1; NaN for an expert that was not tested.
        q (`torch.Tensor`): Like `p`, and NaN where it is.
        method (`str`): How the ranking was made. q of the methods of this package is that of Benjamini and Hochberg;
            of others it may be p adjusted in another way, which is p or more.
        least_p (`float`, *optional*): Least p value that so many prompts and permutations could give.
        permutations (`object`): Relabellings that p values rest on, as the ranking says, if it does.

    Raises:
        [`DataError`]: with the row and the expert.
    """
    if bool((q < p - _ROUNDING).any()):
        what = "is below p, though it is p adjusted for the number of experts"
        raise DataError("ExpertRanking.q", what, expected="p or more")
    least = _least(least_p, permutations)
    if least is not None and bool((low := p < least * (1 - _ROUNDING)).any()):
        row, expert = low.nonzero()[0].tolist()
        got, expected = f"{float(p[row, expert]):.6g} in row {row}, expert {expert}", f"{least:.6g} or more"
        fix = "Give the least_p of the test, or leave it out."
        raise DataError(
            "ExpertRanking.p", "is below the least that its test can give", got=got, expected=expected, fix=fix
        )
    if method in _ADJUSTED:
        wanted = adjusted(p.numpy())
        if (other := ~np.isclose(q.numpy(), wanted, rtol=1e-6, atol=0, equal_nan=True)).any():
            row, expert = np.argwhere(other)[0].tolist()
            raise DataError(
                "ExpertRanking.q",
                "must be p adjusted as Benjamini and Hochberg do",
                got=f"{float(q[row, expert]):.6g} in row {row}, expert {expert}",
                expected=f"{wanted[row, expert]:.6g}",
                fix=f"Compute it from p, or give the method another name than {method!r}.",
            )


def _least(least_p: float | None, permutations: object) -> float | None:
    if least_p is None or least_p >= 2 / MOST_EXACT:
        return least_p
    if isinstance(permutations, int) and not isinstance(permutations, bool) and permutations > 0:
        # More may have been drawn than there are: chance can then give less than all of them would.
        return min(least_p, 2 / (permutations + 1))
    return least_p
