"""`prompt_grid`: the prompts of a template with the values of each, by which they can be grouped."""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence
from typing import NamedTuple

from hf_mote.errors import ConfigError, DataError, UnknownNameError

__all__ = ["PromptGrid", "prompt_grid"]


class PromptGrid(NamedTuple):
    """Prompts of a template.

    Attributes:
        prompts (`list[str]`): The prompts, the last value varying fastest.
        fields (`dict[str, list[str]]`): For each name of the template, the value in each prompt.
    """

    prompts: list[str]
    fields: dict[str, list[str]]

    def groups(self, *names: str) -> list[str | tuple[str, ...]]:
        """Return one key for each prompt: its value of a name, or its values of several.

        Args:
            *names (`str`): Names whose values define a group, such as `"place"`: the subject, not the wording.

        Raises:
            [`ConfigError`]: if no name is given.
            [`UnknownNameError`]: if the template has no such name.
        """
        if not names:
            raise ConfigError("PromptGrid.groups", "needs a name", expected=f"one of {', '.join(self.fields)}")
        for name in names:
            if name not in self.fields:
                raise UnknownNameError.of("PromptGrid.groups", name, self.fields)
        if len(names) == 1:
            return list(self.fields[names[0]])
        return list(zip(*(self.fields[name] for name in names), strict=True))


def prompt_grid(template: str, **values: Sequence[str]) -> PromptGrid:
    """Return the prompts of a template with all combinations of values, and their groups.

    Args:
        template (`str`): A text with names in braces, each given once below; `{{` is a brace.
        **values (`Sequence[str]`): The values of each name, in any number, without repeats.

    Returns:
        [`PromptGrid`]

    Raises:
        [`ConfigError`]: if the template is not a text or malformed, or its names are not the given ones.
        [`DataError`]: if a name has no values, one that is not a text, or one twice.

    Example:

    ```python
    from hf_mote import prompt_grid

    grid = prompt_grid("What happened {time} {place}?", time=["in 1911", "in 1912"], place=["in Vienna", "in Rome"])
    assert grid.prompts[0] == "What happened in 1911 in Vienna?"
    assert grid.groups("place") == ["in Vienna", "in Rome", "in Vienna", "in Rome"]
    ```

    Source: the template is that of Dahlke et al., "Mixture of Tunable Experts" (arXiv 2502.11096).
    """
    names = _names(template)
    if names != set(values) or not names:
        raise ConfigError(
            "prompt_grid",
            "the names in the template must be those that have values",
            got=", ".join(sorted(values)) or "no values",
            expected=", ".join(sorted(names)) or "a template with a name in braces",
        )
    for name, given in values.items():
        if isinstance(given, str) or not isinstance(given, Sequence) or not given:
            raise DataError(
                f"prompt_grid.{name}", "must be a list of texts", got=repr(given)[:60], expected="one or more"
            )
        for place, value in enumerate(given):
            if not isinstance(value, str):
                raise DataError(f"prompt_grid.{name}[{place}]", "must be a text", got=repr(value)[:60])
        if len(set(given)) < len(given):
            twice = next(value for value in given if list(given).count(value) > 1)
            raise DataError(f"prompt_grid.{name}", "has a value twice", got=repr(twice)[:60])
    filled = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    return PromptGrid(
        [template.format(**one) for one in filled], {name: [one[name] for one in filled] for name in values}
    )


def _names(template: object) -> set[str]:
    if not isinstance(template, str):
        raise ConfigError("prompt_grid.template", "must be a text", got=repr(template)[:60])
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError("prompt_grid.template", "is malformed", got=f"{template!r}: {error}") from error
    names = set()
    for _, name, form, conversion in parts:
        if name is None:
            continue
        if not name.isidentifier() or form or conversion:
            got, expected = f"{{{name}}}", "a plain name in braces, as {place}"
            raise ConfigError("prompt_grid.template", "must hold plain names only", got=got, expected=expected)
        names.add(name)
    return names
