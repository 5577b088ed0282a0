"""`RegexJudge`: a label for a response by regular expressions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hf_mote.errors import ConfigError

__all__ = ["RegexJudge"]


class RegexJudge:
    r"""Labels a response by the first pattern found in it.

    Args:
        patterns (`Mapping[str, str]`):
            Label to regular expression, tried in this order, anywhere in the response; write `(?i)` to ignore case.
        default (`str`, *optional*, defaults to `"other"`):
            Label where none is found.

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

    def __init__(self, patterns: Mapping[str, str], default: str = "other") -> None:
        if not isinstance(patterns, Mapping):
            got = type(patterns).__name__
            raise ConfigError("RegexJudge.patterns", "no patterns by label", got=got, expected="{label: pattern}")
        if not patterns:
            raise ConfigError("RegexJudge.patterns", "is empty", expected="a label and its pattern, or more")
        self.default = default
        self.target = next(iter(patterns))
        self.labels = (*dict.fromkeys([*patterns, default]),)
        self._patterns: dict[str, re.Pattern[str]] = {}
        for label, pattern in patterns.items():
            where = f"RegexJudge.patterns[{label!r}]"
            try:
                self._patterns[label] = re.compile(pattern)
                self._patterns[label].search("")  # one for bytes would fail only here
            except (re.error, TypeError) as error:
                raise ConfigError(where, f"does not compile: {error}", got=repr(pattern)) from error

    def __call__(self, response: str) -> str:
        """Return the label of the first pattern found, or the default."""
        return next((label for label, pattern in self._patterns.items() if pattern.search(response)), self.default)

    def __repr__(self) -> str:
        return f"RegexJudge({[*self._patterns, self.default]})"
