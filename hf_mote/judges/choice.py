"""Judges a response to a multiple-choice question by the option it gives."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from hf_mote.errors import ConfigError

__all__ = ["ChoiceJudge"]

NONE_CHOSEN = "none"

# "The answer is (B)", "Answer: B", "La respuesta correcta es B", "答案是B", "\\boxed{\\text{B}}"; the last one counts.
_ANSWER = (
    r"(?i:(?:(?:answer|antwort|réponse|respuesta|boxed)\b(?: (?:correcta|correcte|finale?))?|答案)"
    r"\W{0,3}(?:(?:is|ist|lautet|est|es)\b|是|为|选)?\W{0,5}(?:text\w*\W{1,3})?)"
)
_OPTION = r"(?i:(?:option|choice)\b\W{0,3}(?:is\b)?\W{0,5})"


class ChoiceJudge:
    """Labels a response by the option it names: "A", "B", ..., or "none".

    In this order: what follows "answer is", "answer:" or "boxed" (LaTeX), of which the last counts; an option that
    the response begins with, as in "B) because" or "(B)", or that is all of its first line; what follows "option" or
    "choice", of which the last counts; an option in brackets that is the only one. A reasoning block up to `</think>`
    is left out.

    Args:
        options (`Sequence[str]`, *optional*, defaults to `"ABCD"`):
            The letters or digits of the options, each one character.

    Attributes:
        labels (`tuple[str, ...]`): The options, in capitals, and "none".

    Raises:
        [`ConfigError`]: if there are fewer than two options, or one is not a single letter or digit.

    Example:
        ```python
        from hf_mote.judges.choice import ChoiceJudge

        judge = ChoiceJudge("ABC")
        answers = ("The answer is (B).", "C", "B) It was in 1903.", "A or B? I do not know.")
        assert [judge(text) for text in answers] == ["B", "C", "B", "none"]
        ```
    """

    def __init__(self, options: Sequence[str] = "ABCD") -> None:
        if not isinstance(options, Sequence):
            raise ConfigError("ChoiceJudge.options", "not options", got=repr(options), expected='for instance "ABCD"')
        self.options = tuple(str(option).upper() for option in options)
        wrong = [option for option in self.options if len(option) != 1 or not option.isalnum()]
        if wrong or len(set(self.options)) != len(self.options) or len(self.options) < 2:
            raise ConfigError(
                "ChoiceJudge.options", "not options", got=list(options), expected="two or more different characters"
            )
        self.labels = (*self.options, NONE_CHOSEN)
        large = f"[{''.join(map(re.escape, self.options))}]"
        # A small letter must stand alone: "a" and "i" are words in several languages.
        one = rf"({large}(?!'?\w)|{large.lower()}(?=\s*$|[)\].,;:*}}]))"
        self._stated = [re.compile(_ANSWER + one), re.compile(_OPTION + one)]
        self._first = re.compile(rf"^[\W_]*{one}(?:[).:\]*]|\s*$|\s*\n)")
        self._bracketed = re.compile(rf"[(\[*]{one}[)\]*]")

    def __call__(self, response: str) -> str:
        """Return the option, or "none"."""
        text = unicodedata.normalize("NFKC", response.rpartition("</think>")[2]).strip()
        answers, options = (pattern.findall(text) for pattern in self._stated)
        first = self._first.match(text)
        if answers or first or options:
            return str(answers[-1] if answers else first[1] if first else options[-1]).upper()
        bracketed = {found.upper() for found in self._bracketed.findall(text)}
        return bracketed.pop() if len(bracketed) == 1 else NONE_CHOSEN

    def __repr__(self) -> str:
        return f"ChoiceJudge({list(self.options)})"
