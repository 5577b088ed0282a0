"""Checks of the input of contrasts and of stability: one map per prompt, and which are of the class."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from hf_mote.errors import DataError

__all__ = ["checked_maps", "checked_tokens"]

Array: TypeAlias = npt.NDArray[np.float64]


def checked_maps(
    values: npt.ArrayLike, is_target: npt.ArrayLike, where: str = "contrast"
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return maps, as float64, and which of them are of the target class.

    Args:
        values (`np.ndarray` of shape `(prompts, layers, experts)`, any real dtype): One map per prompt.
        is_target (`np.ndarray` of shape `(prompts,)`, bool): Which prompts belong to the target class.
        where (`str`, *optional*, defaults to `"contrast"`): The place, for the error.

    Raises:
        [`DataError`]: if shapes disagree, a value is not finite or a class is empty.
    """
    maps = np.asarray(values, dtype=np.float64)
    target = np.asarray(is_target)
    if maps.ndim != 3 or maps.size == 0:
        raise DataError(f"{where}.values", "wrong shape", got=maps.shape, expected="(prompts, layers, experts)")
    if target.dtype != np.bool_ or target.shape != maps.shape[:1]:
        raise DataError(
            f"{where}.is_target",
            "does not mark the prompts",
            got=f"{target.dtype} of shape {target.shape}",
            expected=f"bool of shape {maps.shape[:1]}",
        )
    if not np.isfinite(maps).all():
        prompt = int(np.argwhere(~np.isfinite(maps))[0, 0])
        raise DataError(f"{where}.values", "not finite", got=f"NaN or infinity in prompt {prompt}")
    for name, members in (("target class", target), ("rest", ~target)):
        if not members.any():
            raise DataError(
                f"{where}.is_target",
                f"the {name} is empty",
                got=f"{int(target.sum())} of {len(target)} prompts in the target class",
                expected="at least one in and one out",
                fix="Look at the responses: the judge may see only one class in them.",
            )
    return maps, target


def checked_tokens(tokens: npt.ArrayLike | None, prompts: int, score: str, where: str = "contrast") -> Array:
    """Return the tokens of each prompt, as float64; ones if none are given and the score needs none.

    Args:
        tokens (`np.ndarray` of shape `(prompts,)`, *optional*): Tokens counted in each prompt.
        prompts (`int`): Number of prompts.
        score (`str`): What is computed from them.
        where (`str`, *optional*, defaults to `"contrast"`): The place, for the error.

    Raises:
        [`DataError`]: if there is not one number for each prompt, 0 or more.
    """
    if tokens is None and score == "mean_difference":
        return np.ones(prompts)
    found = np.asarray(np.nan if tokens is None else tokens, dtype=np.float64)
    if found.shape != (prompts,) or not np.isfinite(found).all() or (found < 0).any():
        raise DataError(
            f"{where}.tokens",
            f"the score {score!r} needs the tokens of each prompt",
            got="none" if tokens is None else f"shape {found.shape}",
            expected=f"{prompts} numbers, none negative",
        )
    return found
