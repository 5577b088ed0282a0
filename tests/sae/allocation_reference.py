"""Who gets the active latents: token, feature and mutual choice, as pure functions of affinities.

The definitions, written plainly; `hf_mote.sae.kernels` computes the same choices quickly and is tested against these.
An affinity is the non-negative pre-activation of a latent on a token. At most as many entries are chosen as the budget
says: entries that are not positive never are. Of equal affinities the one with the lower flat index (token, then
latent) comes first.

Source: the three allocations are Ayonrinde, arXiv 2411.02124 (token choice: Gao et al., arXiv 2406.04093; mutual
choice selects as BatchTopK does, Bussmann et al., arXiv 2412.06410). What the public text leaves open (integer
budgets, ties, padding) is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hf_mote.errors import ConfigError
from hf_mote.sae.kernels.pattern import Pattern

__all__ = ["feature_choice", "mask_of", "mutual_choice", "token_choice"]


def token_choice(affinity: Tensor, k: int, *, valid: Tensor | None = None) -> Tensor:
    """Return the mask of the `k` largest latents of each token: TopK.

    Args:
        affinity (`torch.Tensor` of shape `(tokens, num_latents)`): Any float dtype.
        k (`int`): Most latents per token, 0 <= k <= num_latents.
        valid (`torch.Tensor` of shape `(tokens,)`, bool, *optional*): `False` at padding, which gets no latent.

    Returns:
        `torch.Tensor` of shape `(tokens, num_latents)`, bool.

    Raises:
        [`ConfigError`]: if `k` is negative or more than there are latents.
    """
    if not 0 <= k <= affinity.shape[1]:
        raise ConfigError("token_choice: k", "out of range", got=k, expected=f"0..{affinity.shape[1]}")
    return _largest(_candidates(affinity, valid), torch.full_like(affinity[:, 0], k, dtype=torch.long))


def mutual_choice(affinity: Tensor, budget: int, *, valid: Tensor | None = None) -> Tensor:
    """Return the mask of the `budget` largest entries of the whole matrix.

    Args:
        affinity (`torch.Tensor` of shape `(tokens, num_latents)`): Any float dtype.
        budget (`int`): Most entries, 0 <= budget <= tokens * num_latents.
        valid (`torch.Tensor` of shape `(tokens,)`, bool, *optional*): `False` at padding, which gets no latent.

    Returns:
        `torch.Tensor` of shape `(tokens, num_latents)`, bool.

    Raises:
        [`ConfigError`]: if `budget` is negative or more than there are entries.
    """
    if not 0 <= budget <= affinity.numel():
        raise ConfigError("mutual_choice: budget", "out of range", got=budget, expected=f"0..{affinity.numel()}")
    flat = _candidates(affinity, valid).reshape(1, -1)
    return _largest(flat, torch.tensor([budget], device=affinity.device)).reshape(affinity.shape)


def feature_choice(affinity: Tensor, budgets: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Return the mask of each latent's `budgets[latent]` largest tokens.

    Args:
        affinity (`torch.Tensor` of shape `(tokens, num_latents)`): Any float dtype.
        budgets (`torch.Tensor` of shape `(num_latents,)`, int64): Most tokens per latent, each 0..tokens.
        valid (`torch.Tensor` of shape `(tokens,)`, bool, *optional*): `False` at padding, which gets no latent.

    Returns:
        `torch.Tensor` of shape `(tokens, num_latents)`, bool.

    Raises:
        [`ConfigError`]: if there is not one budget for each latent, or one is negative or more than there are tokens.
    """
    if budgets.shape != affinity.shape[1:]:
        raise ConfigError(
            "feature_choice: budgets", "wrong shape", got=tuple(budgets.shape), expected=tuple(affinity.shape[1:])
        )
    wrong = ((budgets < 0) | (budgets > affinity.shape[0])).nonzero()
    if len(wrong):
        latent = int(wrong[0])
        raise ConfigError(
            f"feature_choice: budgets[{latent}]",
            "out of range",
            got=int(budgets[latent]),
            expected=f"0..{affinity.shape[0]}",
        )
    return _largest(_candidates(affinity, valid).T, budgets).T


def _candidates(affinity: Tensor, valid: Tensor | None) -> Tensor:
    return affinity if valid is None else affinity.masked_fill(~valid[:, None], 0)


def _largest(rows: Tensor, counts: Tensor) -> Tensor:
    """Mask of the `counts[row]` largest positive entries of each row, the first of equal ones."""
    order = rows.sort(dim=1, descending=True, stable=True).indices
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(rows.shape[1], device=rows.device).expand_as(order))
    return (rank < counts[:, None]) & (rows > 0)


def mask_of(pattern: Pattern) -> Tensor:
    """Return a pattern's pairs as a dense bool mask `(tokens, num_latents)`."""
    mask = torch.zeros(pattern.num_rows, pattern.num_columns, dtype=torch.bool, device=pattern.rows.device)
    mask[pattern.rows, pattern.columns] = True
    return mask
