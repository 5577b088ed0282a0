"""The units that a ranking compares: one unit of evidence for each prompt, and pairs of them.

Used between `FTRIResult` and `contrast`. A prompt that is run or given several times is one unit; a prompt without
counted tokens has no rate; and pairs are defined by a key, not by the order of the prompts in a class.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hf_mote.errors import ConfigError, DataError, UnknownNameError, one_of
from hf_mote.ranking.imaging.prompt_maps import PromptMaps
from hf_mote.statistics.scores import SCORES

__all__ = [
    "Evidence",
    "check_score",
    "check_tokens",
    "checked_class",
    "checked_keys",
    "make_pairs",
    "make_units",
    "merge_groups",
]


class Evidence(NamedTuple):
    """The units that a ranking compares.

    Attributes:
        values ([`PromptMaps`]): One map each, `(units, layers, experts)`.
        tokens (`torch.Tensor` of shape `(units,)`, float64): Tokens counted in each.
        is_target (`list[bool]`): Which belong to the target class.
        keys (`list[object]`): Which pair each belongs to; `None` where no pairs are known.
        left_out (`int`): How many are not among them.
        groups (`list[int]`, *optional*): The number of each one's group; `None` where no groups are known.
    """

    values: PromptMaps
    tokens: Tensor
    is_target: list[bool]
    keys: list[object]
    left_out: int
    groups: list[int] | None = None

    def at(self, places: Sequence[int]) -> Evidence:
        """Return some of the units, in a given order."""
        index = torch.tensor(places, dtype=torch.int64)
        return Evidence(
            self.values.then(lambda maps: maps[index]),
            self.tokens[index],
            [self.is_target[place] for place in places],
            [self.keys[place] for place in places],
            self.left_out + len(self.is_target) - len(places),
            None if self.groups is None else [self.groups[place] for place in places],
        )

    @property
    def sizes(self) -> tuple[int, int]:
        """Units of the target class, and others."""
        return sum(self.is_target), len(self.is_target) - sum(self.is_target)


def check_score(where: str, score: str, value: str, normalize: bool) -> None:
    """Raise unless there is such a score, and it goes with what is counted.

    Args:
        where (`str`): What the error names.
        score (`str`): One of `SCORES`.
        value (`str`): `"count"` or `"weight"`.
        normalize (`bool`): Whether maps are divided by their tokens.
    """
    one_of(f"{where}.score", score, SCORES)
    one_of(f"{where}.value", value, ("count", "weight"))
    if score != "mean_difference" and (normalize or value != "count"):
        raise ConfigError(
            where,
            f"score {score!r} already defines what it counts, per token",
            got=f"value={value!r}, normalize={normalize}",
            fix="Leave value and normalize out.",
        )


def check_tokens(where: str, tokens: Tensor, scope: str) -> None:
    """Raise [`DataError`] if a scope counts no token of any prompt: all experts would be equal, at 0.

    Args:
        where (`str`): What the error names.
        tokens (`torch.Tensor` of shape `(prompts,)`): Tokens counted in each prompt.
        scope (`str`): Which tokens were counted.
    """
    if not bool((tokens > 0).any()):
        raise DataError(
            where,
            f"scope {scope!r} counted no token of any of {len(tokens)} prompts, so there is nothing to rank",
            got="0 tokens",
            fix='Look at .responses: a scope such as "thinking" needs responses that think. Or take another scope.',
        )


def checked_class(where: str, classes: Sequence[str], target: object) -> str:
    """Return the name of a class that some responses have, and some have not.

    Args:
        where (`str`): What the error names.
        classes (`Sequence[str]`): The class of each response.
        target (`object`): The class.

    Raises:
        [`UnknownNameError`]: if no response is of that class.
        [`DataError`]: if every response is.
    """
    name, sizes = str(target), {label: classes.count(label) for label in sorted(set(classes))}
    if name not in sizes:
        raise UnknownNameError.of(
            where,
            name,
            sizes,
            fix="No response was of that class: look at .responses, or change the prompts or the judge.",
        )
    if len(sizes) == 1:
        raise DataError(
            where,
            f"all {len(classes)} responses are of this class, so there is nothing to compare with",
            got=sizes,
            expected="at least two classes",
            fix="Add prompts that the model answers in another way.",
        )
    return name


def checked_keys(where: str, keys: object, prompts: int) -> list[object]:
    """Return one key for each prompt; `None` for each where none are given.

    Raises:
        [`DataError`]: if `keys` is not a sequence of one hashable value for each prompt.
    """
    if keys is None:
        return [None] * prompts
    if isinstance(keys, str | bytes) or not isinstance(keys, Sequence) or len(keys) != prompts:
        got = f"{len(keys)} of {type(keys).__name__}" if isinstance(keys, Sequence) else repr(keys)
        raise DataError(where, "not one key for each prompt", got=got, expected=f"a list of {prompts} keys")
    for key in keys:
        if not isinstance(key, Hashable):
            raise DataError(where, "must be a key", got=repr(key), expected="texts or numbers")
    return list(keys)


def make_units(
    where: str,
    units: Evidence,
    prompt_index: Tensor | None,
    *,
    per_token: bool,
    normalize: bool,
) -> Evidence:
    """Return one unit for each prompt: runs of it that fall on the same side become their mean.

    Args:
        where (`str`): What errors name.
        units (`Evidence`): One for each run.
        prompt_index (`torch.Tensor` of shape `(runs,)`, *optional*): Equal for the runs of one prompt.
        per_token (`bool`): Whether runs without tokens are left out, as they have no values per token.
        normalize (`bool`): Whether maps are divided by their tokens.

    Raises:
        [`DataError`]: if runs of one prompt have several keys, or nothing is left of a class.
    """
    index = list(range(len(units.is_target))) if prompt_index is None else prompt_index.tolist()
    if per_token or normalize:
        counted = [place for place, count in enumerate(units.tokens.tolist()) if count > 0]
        units, index = units.at(counted), [index[place] for place in counted]
        if 0 in units.sizes:
            side = "the class" if units.sizes[0] == 0 else "the others"
            raise DataError(
                where,
                f"no token was counted in any prompt of {side}, so its shares of tokens are undefined",
                got=f"{units.left_out} prompts without tokens",
                fix="Take another scope, or score='mean_difference' without normalize.",
            )
    if normalize:
        tokens = units.tokens[:, None]
        units = units._replace(values=units.values.then(lambda maps: maps / tokens))
    return units if prompt_index is None else _merged(where, units, index)


def make_pairs(where: str, units: Evidence) -> Evidence:
    """Return the units that form pairs by their keys: the target's in their order, then the others in the same order.

    Args:
        where (`str`): What errors name.
        units (`Evidence`): All of them. A key with other than one unit of each side makes no pair, and `None` none.

    Raises:
        [`DataError`]: if fewer than 2 pairs come out.
    """
    sides: dict[object, tuple[list[int], list[int]]] = {}
    for place, (key, of_class) in enumerate(zip(units.keys, units.is_target, strict=True)):
        if key is None:
            continue
        sides.setdefault(key, ([], []))[0 if of_class else 1].append(place)
    pairs = [(mine[0], other[0]) for mine, other in sides.values() if len(mine) == len(other) == 1]
    if len(pairs) < 2:
        raise DataError(
            f"{where}.paired",
            "too few keys have exactly one prompt of the target class and one other",
            got=f"{len(pairs)} of {len(sides)}",
            expected="2 or more",
            fix="Look at .classes: the judge may put both prompts of a pair into one class.",
        )
    return units.at([mine for mine, _ in pairs] + [other for _, other in pairs])


def merge_groups(where: str, units: Evidence, *, paired: bool) -> Evidence:
    """Return one unit for each group and class, or one pair for each group; the units themselves without groups.

    Args:
        where (`str`): What errors name.
        units (`Evidence`): In pairs as [`make_pairs`] or the caller's own order has them, if `paired`.
        paired (`bool`): Whether units come in pairs.

    Raises:
        [`DataError`]: if the two of a pair must be of one group, or a class is left with a single group, of which no
            spread between groups is known.
    """
    if units.groups is None:
        return units
    if paired:
        sides = [[place for place, side in enumerate(units.is_target) if side is which] for which in (True, False)]
        if [units.groups[place] for place in sides[0]] != [units.groups[place] for place in sides[1]]:
            what, fix = "the two of a pair must be of one group", "Give both the key of their common group."
            raise DataError(f"{where}.groups", what, fix=fix)
        units = units.at([*sides[0], *sides[1]])
    keyless = units._replace(keys=[None] * len(units.is_target), groups=None)
    merged = _merged(where, keyless, units.groups or [])
    if min(merged.sizes) < 2:
        raise DataError(
            f"{where}.groups",
            "a class is left with one group, so the spread between groups is unknown",
            got=f"{merged.sizes[0]} groups of the class, {merged.sizes[1]} of the others",
            expected="2 or more of each",
            fix="Ask about more subjects.",
        )
    return merged


def _merged(where: str, units: Evidence, index: Sequence[int]) -> Evidence:
    runs = list(zip(index, units.is_target, strict=True))
    places = {run: place for place, run in enumerate(dict.fromkeys(runs))}
    keys: dict[int, object] = {}
    for prompt, key in zip(index, units.keys, strict=True):
        if keys.setdefault(prompt, key) != key:
            what, got = "runs of one prompt have several keys", f"{keys[prompt]!r} and {key!r}"
            raise DataError(f"{where}.paired", what, got=got, expected="one key for each prompt")
    groups = _groups_of(where, units, runs, list(places))
    rows = torch.tensor([places[run] for run in runs])
    times = torch.bincount(rows).double()

    def mean(maps: Tensor) -> Tensor:
        total = torch.zeros(len(places), *maps.shape[1:], dtype=torch.float64).index_add_(0, rows, maps)
        return total / times.reshape(-1, *[1] * (maps.ndim - 1))

    return Evidence(
        units.values.then(mean),
        mean(units.tokens),
        [of_class for _, of_class in places],
        [keys[prompt] for prompt, _ in places],
        units.left_out,
        groups,
    )


def _groups_of(
    where: str, units: Evidence, runs: Sequence[tuple[int, bool]], merged: Sequence[tuple[int, bool]]
) -> list[int] | None:
    """Return the group of each merged unit."""
    if units.groups is None:
        return None
    found: dict[int, int] = {}
    for (prompt, _), group in zip(runs, units.groups, strict=True):
        if found.setdefault(prompt, group) != group:
            what = "runs of one prompt are of several groups"
            raise DataError(f"{where}.groups", what, expected="one group for each prompt")
    return [found[prompt] for prompt, _ in merged]
