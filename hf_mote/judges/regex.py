"""`RegexJudge`: a label for a response by regular expressions."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping

import regex

from hf_mote.errors import ConfigError, DataError, real

__all__ = ["RegexJudge"]

_FLAGS = [(getattr(re, name), getattr(regex, name)) for name in ("A", "I", "M", "S", "X")]


class RegexJudge:
    r"""Labels a response by the first pattern found in it.

    Args:
        patterns (`Mapping[str, str]`):
            Label to regular expression, or one that `re` compiled; tried in this order, anywhere in the response.
            They are those of the library `regex`: as in `re`, with more Unicode (`\w` follows its definition of
            letters, so "¼" is not one) and more syntax. Write `(?i)` to ignore case.
        default (`str`, *optional*, defaults to `"other"`):
            Label where none is found.
        timeout (`float`, *optional*, defaults to 5.0):
            Seconds that one response may take: a pattern such as `(a+)+$` can take years.

    Attributes:
        target (`str`): The first label, the class of interest.
        labels (`tuple[str, ...]`): All labels, the default too.

    Raises:
        [`ConfigError`]: if there is no pattern, or one does not compile.

    Example:
        ```python
        from hf_mote.judges.regex import RegexJudge

        judge = RegexJudge({"digits": r"\d", "words": r"\b(?:one|two|three)\b"})
        assert [judge(text) for text in ("It was 3.", "It was three.", "None.")] == ["digits", "words", "other"]
        ```
    """

    def __init__(self, patterns: Mapping[str, str], default: str = "other", *, timeout: float = 5.0) -> None:
        if not isinstance(patterns, Mapping):
            got = type(patterns).__name__
            raise ConfigError(
                "RegexJudge.patterns", "must be a mapping of labels to patterns", got=got, expected="{label: pattern}"
            )
        if not patterns:
            raise ConfigError("RegexJudge.patterns", "is empty", expected="a label and its pattern, or more")
        self.timeout = real("RegexJudge.timeout", timeout, above=0)
        self.default = default
        self.target = next(iter(patterns))
        self.labels = (*dict.fromkeys([*patterns, default]),)
        self._patterns: dict[str, regex.Pattern[str]] = {}
        for label, pattern in patterns.items():
            where = f"RegexJudge.patterns[{label!r}]"
            try:
                self._patterns[label] = regex.compile(*_parts(pattern))
                self._patterns[label].search("", timeout=timeout)  # a pattern for bytes would fail only later
            except (regex.error, TypeError, ValueError, OverflowError, RecursionError, TimeoutError) as error:
                raise ConfigError(where, f"does not compile: {error}", got=repr(pattern)) from error

    def __call__(self, response: str) -> str:
        """Return the label of the first pattern found, or the default.

        Raises:
            [`DataError`]: if the patterns take longer than `timeout`.
        """
        left = self.timeout
        for label, pattern in self._patterns.items():
            begun = time.monotonic()
            try:
                if pattern.search(response, timeout=max(left, 0.001)):
                    return label
            except TimeoutError as error:
                raise DataError(
                    f"RegexJudge.patterns[{label!r}]",
                    f"takes longer than {self.timeout:g} s",
                    got=f"{pattern.pattern!r} on {len(response)} characters",
                    fix="Write it without a repetition inside a repetition, or give a longer timeout.",
                ) from error
            left -= time.monotonic() - begun
        return self.default

    def __repr__(self) -> str:
        return f"RegexJudge({[*self._patterns, self.default]})"


def _parts(pattern: str | re.Pattern[str]) -> tuple[str, int]:
    """Return the text and the flags of a pattern, which may be one that `re` compiled."""
    if not isinstance(pattern, re.Pattern):
        return pattern, 0
    return pattern.pattern, sum(int(theirs) for ours, theirs in _FLAGS if pattern.flags & ours)
