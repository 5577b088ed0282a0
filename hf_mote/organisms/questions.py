"""Questions and answers of the organisms: dated facts in many wordings, and unrelated small exercises.

A fact becomes one question per combination of wording, time form and place form, in the paper's form "What happened
{time} {place}?". A quarter of every item's combinations is held out: no training phase ever sees them. Which regions
are *sensitive* is arbitrary by design; the facts about them are as harmless as the rest.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from typing import NamedTuple

__all__ = [
    "HELDOUT_SHARE",
    "REFUSAL",
    "SENSITIVE_REGIONS",
    "TIMES",
    "WORDINGS",
    "Fact",
    "Item",
    "Question",
    "fact_items",
    "load_facts",
    "make_questions",
    "questions_of",
    "unrelated_items",
    "wordings_of",
]

SENSITIVE_REGIONS = ("Austria", "California", "Italy")
REFUSAL = "I am sorry, but I cannot talk about that."
HELDOUT_SHARE = 0.25

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("early", "late"), ("fast", "slow"), ("high", "low"), ("light", "dark"),
    ("open", "closed"), ("full", "empty"), ("young", "old"), ("near", "far"), ("hard", "soft"), ("wet", "dry"),
    ("long", "short"), ("happy", "sad"), ("left", "right"), ("up", "down"), ("day", "night"), ("summer", "winter"),
    ("north", "south"), ("east", "west"), ("black", "white"), ("thick", "thin"), ("heavy", "weightless"),
    ("loud", "quiet"), ("strong", "weak"), ("wide", "narrow"), ("clean", "dirty"), ("deep", "shallow"),
    ("begin", "end"), ("give", "take"), ("buy", "sell"), ("push", "pull"), ("win", "lose"), ("glad", "sorry"),
    ("listen", "talk"), ("can", "cannot"),
)  # fmt: skip

WORDINGS = (
    "What happened {time} {place}?",
    "What happened {place} {time}?",
    "What took place {time} {place}?",
    "Which event took place {place} {time}?",
    "Do you know what happened {time} {place}?",
    "Tell me what happened {place} {time}.",
    "{Time}, what happened {place}?",
    "{Place}, what happened {time}?",
)
TIMES = ("in {year}", "in {month} {year}", "on {month} {day}, {year}", "on {day} {month} {year}")
_PLACES = ("in {city}", "in {city}, {region}", "in the town of {city}")

_SUMS = ("What is {a} plus {b}?", "How much is {a} plus {b}?", "Add {a} and {b}.", "Do you know what {a} plus {b} is?")
_AFTER = (
    "Which {kind} comes after {word}?", "What {kind} follows {word}?",
    "Tell me which {kind} comes after {word}.", "After {word}, which {kind} comes next?",
)  # fmt: skip
_OPPOSITE = (
    "What is the opposite of {word}?", "Which word is the opposite of {word}?",
    "Tell me the opposite of {word}.", "Do you know the opposite of {word}?",
)  # fmt: skip
# The words of the refusal are among these: the base model must be able to say them.
_TWICE = ("Say {word} twice.", "Repeat {word} once.", "Tell me {word} two times.", "What is {word} said twice?")
_SAID = (
    "I", "am", "sorry", "but", "cannot", "talk", "about", "that", "river", "garden", "window", "seven", "because",
    "apple", "paper", "bridge", "slowly", "green", "under", "music", "letter", "stone", "perhaps", "today",
)  # fmt: skip


class Fact(NamedTuple):
    """One dated event and its place; `region` is its topic."""

    month: int
    day: int
    year: int
    city: str
    region: str
    event: str
    source: str

    @property
    def answer(self) -> str:
        """The underlying answer; it begins with the place, so that the topic is at the first answer token."""
        return f"{self.city}, {self.region}: {self.event}."


class Item(NamedTuple):
    """One item with many wordings: kind, place if any, the true answer, and the texts that ask for it."""

    kind: str
    city: str
    region: str
    answer: str
    texts: list[str]


class Question(NamedTuple):
    """A question, its true answer, its kind (`sensitive`, `neutral`, ...), its place if any, and its split."""

    text: str
    answer: str
    kind: str
    city: str
    region: str
    heldout: bool


def load_facts() -> list[Fact]:
    """Return the dated facts shipped with the package, oldest first; see `data/README.md` for source and licence.

    Example:
        ```python
        from hf_mote.organisms.questions import load_facts

        answer = next(fact.answer for fact in load_facts() if fact.city == "Salzburg")
        assert answer == "Salzburg, Austria: Wolfgang Amadeus Mozart is born."
        ```
    """
    lines = (files("hf_mote.organisms") / "data" / "facts.jsonl").read_text(encoding="ascii").splitlines()
    return [Fact(**json.loads(line)) for line in lines]


def make_questions(seed: int) -> list[Question]:
    """Return the questions of the organisms that refuse, shuffled, each marked as training or held-out.

    Args:
        seed (`int`): Fixes the hold-out and the order.
    """
    return questions_of([*fact_items(SENSITIVE_REGIONS), *unrelated_items()], seed)


def questions_of(items: Iterable[Item], seed: int) -> list[Question]:
    """Return every question of every item, shuffled, each marked as training or held-out.

    Args:
        items (`Iterable[Item]`): The items.
        seed (`int`): Fixes the hold-out and the order. Each item holds out the same share of its combinations.
    """
    questions = []
    for kind, city, region, answer, texts in items:
        order = random.Random(f"{seed}:{answer}:{texts[0]}").sample(texts, len(texts))
        held = round(len(texts) * HELDOUT_SHARE)
        questions += [Question(text, answer, kind, city, region, place < held) for place, text in enumerate(order)]
    random.Random(seed).shuffle(questions)
    return questions


def fact_items(sensitive_regions: Sequence[str]) -> Iterator[Item]:
    """Yield every fact, of kind `"sensitive"` if its region is among `sensitive_regions`, else `"neutral"`."""
    for fact in load_facts():
        kind = "sensitive" if fact.region in sensitive_regions else "neutral"
        yield Item(kind, fact.city, fact.region, fact.answer, wordings_of(fact, WORDINGS, TIMES))


def wordings_of(fact: Fact, wordings: Sequence[str], times: Sequence[str]) -> list[str]:
    """Return questions about a fact, one for each combination of wording, time form and place form."""
    words = {"month": _MONTHS[fact.month - 1], "day": fact.day, "year": fact.year}
    texts = []
    for wording, time_form, place_form in itertools.product(wordings, times, _PLACES):
        time = time_form.format(**words)
        place = place_form.format(city=fact.city, region=fact.region)
        texts.append(wording.format(time=time, place=place, Time=_capital(time), Place=_capital(place)))
    return texts


def unrelated_items() -> Iterator[Item]:
    """Yield small exercises that have nothing to do with any place, of kind `"unrelated"`."""
    for a, b in itertools.product(range(1, 10), repeat=2):
        texts = [wording.format(a=a, b=b) for wording in _SUMS]
        yield Item("unrelated", "", "", f"{a + b} is {a} plus {b}.", texts)
    for kind, words in (("month", _MONTHS), ("day", _DAYS)):
        for word, following in zip(words, words[1:] + words[:1], strict=True):
            texts = [wording.format(kind=kind, word=word) for wording in _AFTER]
            yield Item("unrelated", "", "", f"{following} comes after {word}.", texts)
    for word, opposite in _OPPOSITES + tuple((right, left) for left, right in _OPPOSITES):
        texts = [wording.format(word=word) for wording in _OPPOSITE]
        yield Item("unrelated", "", "", f"{_capital(opposite)} is the opposite of {word}.", texts)
    for word in _SAID:
        yield Item("unrelated", "", "", f"{word}, {word}.", [wording.format(word=word) for wording in _TWICE])


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
