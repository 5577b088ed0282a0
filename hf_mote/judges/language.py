"""Judges a response, or a part of it, by the language it is written in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from hf_mote.errors import ConfigError, UnknownNameError, UnsupportedError

__all__ = ["LanguageJudge"]

UNKNOWN = "unknown"
PARTS = ("all", "thinking", "answer")


class LanguageJudge:
    """Labels a response by its language, as an ISO 639-1 code, or "unknown".

    The detector is lingua, which is meant for short texts; `pip install lingua-language-detector` or the extra
    `judges` brings it. Give it the few languages that can occur: fewer to choose from means fewer mistakes.

    Args:
        languages (`Sequence[str]`):
            Two ISO 639-1 codes or more, such as "en" and "de", in small letters or large; the first is the class of
            interest.
        part (`str`, *optional*, defaults to `"all"`):
            What to look at: `"all"`, the `"thinking"` or the `"answer"` after it.
        thinking_marks (`tuple[str, str]`, *optional*, defaults to `("<think>", "</think>")`):
            What opens and closes the thinking in the text. An opening mark that is missing, as where the chat template
            gives it, stands at the beginning; a response without either mark is all answer.
        least_confidence (`float`, *optional*, defaults to 0.5):
            Below this confidence, 0 to 1, the label is "unknown"; so it is for text without a letter.

    Attributes:
        target (`str`): The first of the languages.
        labels (`tuple[str, ...]`): The languages and "unknown".
        needs_special_tokens (`bool`):
            Whether `ftri` and `evaluate_mote` are to leave special tokens in the responses, which marks of thinking
            are in many tokenizers: true for a part.

    Raises:
        [`UnsupportedError`]: if lingua is not installed.
        [`UnknownNameError`]: if lingua does not know a language, or there is no such part.
        [`ConfigError`]: if there are fewer than two languages, or another setting is out of range.
    """

    def __init__(
        self,
        languages: Sequence[str],
        *,
        part: Literal["all", "thinking", "answer"] = "all",
        thinking_marks: tuple[str, str] = ("<think>", "</think>"),
        least_confidence: float = 0.5,
    ) -> None:
        if part not in PARTS:
            raise UnknownNameError.of("LanguageJudge.part", part, PARTS)
        codes = [] if isinstance(languages, str) or not isinstance(languages, Sequence) else languages
        self.languages = tuple(dict.fromkeys(str(code).lower() for code in codes))
        if len(self.languages) < 2:
            raise ConfigError(
                "LanguageJudge.languages", "nothing to choose from", got=repr(languages), expected="2 or more"
            )
        if not isinstance(least_confidence, int | float) or not 0 <= least_confidence <= 1:
            got = repr(least_confidence)
            raise ConfigError("LanguageJudge.least_confidence", "out of range", got=got, expected="0..1")
        if len(thinking_marks) != 2 or not all(isinstance(mark, str) and mark for mark in thinking_marks):
            got, expected = repr(thinking_marks), 'two texts, such as ("<think>", "</think>")'
            raise ConfigError("LanguageJudge.thinking_marks", "must be two marks", got=got, expected=expected)
        self.target = self.languages[0]
        self.labels = (*self.languages, UNKNOWN)
        self.part = part
        self.needs_special_tokens = part != "all"
        self.thinking_marks = thinking_marks
        self.least_confidence = least_confidence
        self._detector = _detector(self.languages)

    def __call__(self, response: str) -> str:
        """Return the code of the language, or "unknown"."""
        text = self._part_of(response)
        if not re.search(r"[^\W\d_]", text):
            return UNKNOWN
        # Half of a surrogate pair, which JSON can hold and the detector cannot take.
        text = text.encode("utf-8", "replace").decode()
        best = self._detector.compute_language_confidence_values(text)[0]
        known = best.value >= self.least_confidence
        return str(best.language.iso_code_639_1.name.lower()) if known else UNKNOWN

    def _part_of(self, response: str) -> str:
        if self.part == "all":
            return response
        opens, closes = self.thinking_marks
        before, closed, after = response.partition(closes)
        _, opened, thinking = before.partition(opens)
        if not closed and not opened:
            thinking, after = "", response
        elif not opened:
            thinking = before
        return thinking if self.part == "thinking" else after

    def __repr__(self) -> str:
        return f"LanguageJudge({list(self.languages)}, part={self.part!r})"


def _detector(languages: Sequence[str]) -> Any:
    try:
        from lingua import IsoCode639_1, LanguageDetectorBuilder
    except ImportError as error:
        raise UnsupportedError(
            "LanguageJudge",
            "needs lingua, which is not installed",
            fix="pip install 'lingua-language-detector>=2.1', as hf-mote[judges] does.",
        ) from error
    codes = {name: getattr(IsoCode639_1, name) for name in dir(IsoCode639_1) if name.isupper()}
    for language in languages:
        if language.upper() not in codes:
            raise UnknownNameError.of("LanguageJudge.languages", language, [name.lower() for name in codes])
    return LanguageDetectorBuilder.from_iso_codes_639_1(*(codes[name.upper()] for name in languages)).build()
