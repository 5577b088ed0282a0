"""Judges: each turns a response into a label.

Judges sort responses into the classes that `ftri` contrasts and count the rates that `evaluate_mote` reports. Any
callable `response -> label` or `(prompt, response) -> label` is one. Rules on text are fast and repeatable but see
only wording: read a sample of what they label before you trust a rate.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import Any, TypeAlias

from hf_mote.errors import ConfigError, DataError
from hf_mote.generation.chat import Prompt
from hf_mote.generation.prompts import prompt_text

__all__ = ["Judge", "check_judge", "classify", "labels_of"]

Judge: TypeAlias = Callable[[str], object] | Callable[[str, str], object]


def classify(judge: Judge, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[str]:
    """Return the judge's label of each response, as text.

    Args:
        judge (`Callable`):
            Called as `judge(response)`, or as `judge(prompt, response)` if it requires two arguments. Of a chat it
            gets the last message; with an attribute `takes_chats` that is true, all of them.
        prompts (`Sequence[str]` or chats):
            The prompts.
        responses (`Sequence[str]`):
            One response to each.

    Raises:
        [`DataError`]: if the numbers differ, or the judge raises, or returns something that is not a label (such as
            `None`, NaN, bytes or a list), with the prompt's index.
        [`ConfigError`]: if the judge cannot be called with one or two arguments.

    Example:
        ```python
        from hf_mote.judges.judge import classify

        assert classify(lambda response: len(response) > 3, ["a", "b"], ["yes", "certainly"]) == ["False", "True"]
        assert classify(lambda prompt, response: prompt in response, ["a"], ["banana"]) == ["True"]
        ```
    """
    if len(prompts) != len(responses):
        got = f"{len(prompts)} prompts and {len(responses)} responses"
        raise DataError("classify", "every prompt needs one response", got=got)
    takes_prompt = _takes_prompt(judge)
    labels = []
    whole = bool(getattr(judge, "takes_chats", False))
    asked = [prompt if whole else prompt_text(prompt) for prompt in prompts]
    for index, (prompt, response) in enumerate(zip(asked, responses, strict=True)):
        try:
            given: tuple[Any, ...] = (prompt, response) if takes_prompt else (response,)
            label = judge(*given)
        except Exception as error:
            what = f"the judge failed: {type(error).__name__}: {error}"
            raise DataError(f"classify: prompt {index}", what, got=f"response {response[:80]!r}") from error
        if label is None:
            raise DataError(
                f"classify: prompt {index}",
                "the judge returned None",
                got=f"response {response[:80]!r}",
                expected="a label",
                fix="Give the judge a return value for every response.",
            )
        labels.append(_label_text(f"classify: prompt {index}", label))
    return labels


def check_judge(judge: Judge) -> None:
    """Raise [`ConfigError`] unless a judge can be called with a response, or with a prompt and a response.

    Args:
        judge (`Callable`): What was given.
    """
    if isinstance(judge, type):
        raise ConfigError(
            "judge",
            "a class, not a judge",
            got=judge.__name__,
            expected="an instance",
            fix=f"Give {judge.__name__}().",
        )
    _takes_prompt(judge)


def labels_of(judge: Judge) -> list[str] | None:
    """Return the labels that a judge can give, or `None` if it has no attribute `labels`.

    Args:
        judge (`Callable`): A judge.
    """
    labels = getattr(judge, "labels", None)
    if isinstance(labels, str) or not isinstance(labels, Collection) or not labels:
        return None
    return [str(label) for label in labels]


def _label_text(where: str, label: object) -> str:
    """Return a label as text: of a text, a whole or finite number, a truth value or a member of an enumeration."""
    import numpy as np

    value = label.item() if isinstance(label, np.generic) else label
    if isinstance(value, Enum | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return str(label)
    if not isinstance(value, str):
        expected = "a text, a finite number or a truth value"
        raise DataError(
            where, "the judge returned no label", got=f"{type(label).__name__} {label!r}"[:80], expected=expected
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(where, "the judge's label is not Unicode", got=ascii(value[:40])) from error
    return value


def _takes_prompt(judge: Judge) -> bool:
    if not callable(judge):
        raise ConfigError("judge", "cannot be called", got=type(judge).__name__, expected="a callable")
    try:
        signature = inspect.signature(judge)
    except ValueError:  # some builtins have no signature
        return False
    for arguments in (("",), ("", "")):
        try:
            signature.bind(*arguments)
        except TypeError:
            continue
        return len(arguments) == 2
    expected = "judge(response) or judge(prompt, response)"
    raise ConfigError("judge", "takes other arguments", got=str(signature), expected=expected)
