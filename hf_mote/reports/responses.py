"""Responses to read: before and after side by side, turn by turn in conversations, or sorted by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hf_mote.evaluation.conversations import Conversation
from hf_mote.evaluation.report import EvaluationReport
from hf_mote.reports.markup import Html, chip, join, tag
from hf_mote.reports.tables import folded

__all__ = ["Answer", "answers_by_class", "answers_of", "conversations_side_by_side", "side_by_side"]

MOST_SHOWN = 200  # responses in a page; the data beside it has them all
SHOWN_AT_ONCE = 10
LONGEST = 3000  # characters of one text
MOST_CHARACTERS = 400_000  # of a list, so that a page stays small


class Answer(NamedTuple):
    """A response and its label.

    Attributes:
        text (`str`): The response.
        label (`str`, *optional*): The judge's label.
        incoherent (`bool`, *optional*, defaults to `False`): Whether it counts as incoherent text.
    """

    text: str
    label: str | None = None
    incoherent: bool = False


def answers_of(report: EvaluationReport) -> tuple[list[Answer], list[Answer]]:
    """Return the responses of a report, before and after, as [`side_by_side`] takes them.

    Args:
        report (`EvaluationReport`): The report.
    """
    seen, none = report.coherence, [False] * len(report.prompts)
    before, after = (none, none) if seen is None else (seen.before, seen.after)
    return (
        [Answer(*one) for one in zip(report.responses_before, report.labels_before, before, strict=True)],
        [Answer(*one) for one in zip(report.responses_after, report.labels_after, after, strict=True)],
    )


def side_by_side(
    prompts: Sequence[str], before: Sequence[Answer], after: Sequence[Answer], *, target: str | None = None
) -> Html:
    """Return each prompt with its response before and after, those with another label first, then other changed ones.

    Args:
        prompts (`Sequence[str]`): The prompts.
        before (`Sequence[Answer]`): The untouched model's responses.
        after (`Sequence[Answer]`): Those with the config.
        target (`str`, *optional*): The label of interest.
    """
    kinds = [(b.label == a.label, b.text == a.text) for b, a in zip(before, after, strict=True)]
    order = sorted(range(len(prompts)), key=lambda index: kinds[index])
    changed, relabelled = sum(not same for _, same in kinds), sum(not same for same, _ in kinds)
    counts = f"{changed} of {len(prompts)} responses change"
    if target is not None:
        counts += f", {relabelled} of them to another label"
    shown = _fitting(order, lambda index: [prompts[index], before[index].text, after[index].text])
    items = [
        tag(
            "li",
            tag("p", _short(prompts[index]), class_="asked text", dir="auto"),
            tag("dl", *_sides(before[index], after[index], target), class_="sides"),
        )
        for index in shown
    ]
    listed = folded("{n} more responses", items, shown=SHOWN_AT_ONCE, kind="pairs", more="No prompts were asked.")
    return join([tag("p", f"{counts}.{_cut(len(prompts), len(shown))}"), listed])


def conversations_side_by_side(conversations: Sequence[Conversation]) -> Html:
    """Return each conversation turn by turn, with the answers before and after, those that change first.

    Args:
        conversations (`Sequence[Conversation]`): Conversations that were answered.
    """
    order = sorted(range(len(conversations)), key=lambda index: all(conversations[index].unchanged))
    changed = sum(not same for one in conversations for same in one.unchanged)
    turns = sum(len(one.turns) for one in conversations)
    touched = sum(not all(one.unchanged) for one in conversations)
    counts = f"{changed} of {turns} answers change, in {touched} of {len(conversations)} conversations."
    why = " Each model goes on from its own answers, so a later answer can change because an earlier one did."
    kept = _fitting(order, lambda index: [*conversations[index].answers_before, *conversations[index].answers_after])
    items = [_conversation(conversations[index]) for index in kept]
    shown = max(2, SHOWN_AT_ONCE // 2)
    listed = folded("{n} more conversations", items, shown=shown, kind="pairs", more="None.")
    return join([tag("p", f"{counts}{why}{_cut(len(conversations), len(kept))}"), listed])


def answers_by_class(prompts: Sequence[str], responses: Sequence[str], classes: Sequence[str], *, target: str) -> Html:
    """Return prompts and responses, the target class first.

    Args:
        prompts (`Sequence[str]`): The prompts.
        responses (`Sequence[str]`): One response to each.
        classes (`Sequence[str]`): The class of each.
        target (`str`): The class that comes first.
    """
    parts: list[Html] = []
    most = MOST_CHARACTERS // max(1, len(set(classes)))
    for name in sorted(set(classes), key=lambda label: (label != target, label)):
        mine = [index for index, label in enumerate(classes) if label == name]
        kept = _fitting(mine, lambda index: [prompts[index], responses[index]], most)
        items = [
            tag(
                "li",
                tag("p", _short(prompts[index]), class_="asked text", dir="auto"),
                tag("p", _short(responses[index]) or "(no response)", class_="text", dir="auto"),
            )
            for index in kept
        ]
        heading = tag(
            "h3",
            chip(name, target),
            f" {len(mine)} prompt{'s' * (len(mine) != 1)}",
        )
        cut = _cut(len(mine), len(kept))
        shown = max(2, SHOWN_AT_ONCE // 2)
        listed = folded("{n} more", items, shown=shown, kind="pairs", more="None.")
        parts.append(join([heading, tag("p", cut) if cut else None, listed]))
    return join(parts)


def _sides(before: Answer, after: Answer, target: str | None) -> list[Html]:
    sides = []
    for name, answer in (("untouched", before), ("with the config", after)):
        label = None if answer.label is None else chip(answer.label, target)
        broken = join([" ", chip("incoherent")]) if answer.incoherent else None
        text = tag("dd", _short(answer.text) or "(no response)", class_="text", dir="auto")
        sides.append(tag("div", tag("dt", f"{name} ", label, broken), text))
    return sides


def _conversation(one: Conversation) -> Html:
    turns = []
    for number, (turn, before, after) in enumerate(
        zip(one.turns, one.answers_before, one.answers_after, strict=True), start=1
    ):
        name = f"Turn {number}" + (": the answer stays word for word" if before == after else "")
        asked = tag("p", _short(turn), class_="asked text", dir="auto")
        sides = tag("dl", *_sides(Answer(before), Answer(after), None), class_="sides")
        turns.append(tag("li", tag("p", name, class_="turn"), asked, sides))
    named = [] if one.id is None else [f"Question {one.id} "]
    chips = [] if one.category is None else [chip(one.category)]
    head = tag("p", *named, *chips, dir="auto") if named or chips else None
    return tag("li", head, tag("ol", *turns, class_="turns"))


def _short(text: str) -> str:
    """Return a text, or its beginning and how much is left out."""
    left = len(text) - LONGEST
    return text if left <= 0 else f"{text[:LONGEST]} … {left:,} more characters"


def _fitting(order: Sequence[int], texts: Callable[[int], list[str]], most: int = MOST_CHARACTERS) -> list[int]:
    """Return the first of some places whose texts fit; at least one."""
    kept: list[int] = []
    for index in order[:MOST_SHOWN]:
        most -= sum(min(len(text), LONGEST) for text in texts(index))
        if most < 0 and kept:
            break
        kept.append(index)
    return kept


def _cut(number: int, shown: int) -> str:
    return f" The first {shown} are here; the data beside this page have all." if number > shown else ""
