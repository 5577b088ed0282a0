"""Judges a response to a multiple-choice question by the option it gives."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hf_mote.errors import ConfigError

__all__ = ["ChoiceJudge"]

NONE_CHOSEN = "none"

# "The answer is (B)", "Answer: B", "Option B", "final answer is **B**"; the last one counts.
_STATED = r"(?:answer|option|choice|antwort|réponse|respuesta|答案)\b\W{0,3}(?:is|ist|est|es|是|:|：)?\W{0,5}"


class ChoiceJudge:
    """Labels a response by the option it names: "A", "B", ..., or "none".

    In this order: what follows "answer is", "answer:", "option" or "choice", of which the last counts; an option that
    the response begins with, as in "B) because" or "(B)", or is no more than; an option in brackets that is the only
    one. A reasoning block up to `</think>` is left out.

    Args:
        options (`Sequence[str]`, *optional*, defaults to `"ABCD"`):
            The letters or digits of the options, each one character.

    Raises:
        [`ConfigError`]: if there are fewer than two options, or one is not a single letter or digit.

    Example:
        ```python
        from hf_mote.ftri.choice_judge import ChoiceJudge

        judge = ChoiceJudge("ABC")
        answers = ("The answer is (B).", "C", "B) It was in 1903.", "A or B? I do not know.")
        assert [judge(text) for text in answers] == ["B", "C", "B", "none"]
        ```
    """

    def __init__(self, options: Sequence[str] = "ABCD") -> None:
        self.options = tuple(str(option).upper() for option in options)
        wrong = [option for option in self.options if len(option) != 1 or not option.isalnum()]
        if wrong or len(set(self.options)) != len(self.options) or len(self.options) < 2:
            raise ConfigError(
                "ChoiceJudge: options", "not options", got=list(options), expected="two or more different characters"
            )
        large = f"[{''.join(map(re.escape, self.options))}]"
        # A small letter must stand alone: "a" and "i" are words in several languages.
        one = rf"({large}(?![\w'])|{large.lower()}(?=\s*$|[)\].,;:*]))"
        stated = _STATED.replace("(?:", "(?i:")
        self._stated = re.compile(stated + one)
        self._first = re.compile(rf"^[\W_]*{one}(?:[).:\]*]|\s*$)")
        self._bracketed = re.compile(rf"[(\[*]{one}[)\]*]")

    def __call__(self, response: str) -> str:
        """Return the option, or "none"."""
        text = response.rpartition("</think>")[2].strip()
        stated = self._stated.findall(text)
        if stated:
            return str(stated[-1]).upper()
        first = self._first.match(text)
        if first:
            return first[1].upper()
        bracketed = {found.upper() for found in self._bracketed.findall(text)}
        return bracketed.pop() if len(bracketed) == 1 else NONE_CHOSEN

    def __repr__(self) -> str:
        return f"ChoiceJudge({list(self.options)})"
