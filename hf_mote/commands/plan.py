"""`--dry-run`: what a command would do and what it would take, from one timed batch; nothing is written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hf_mote.commands.session import say, tell

if TYPE_CHECKING:
    from hf_mote.commands.model import Subject
    from hf_mote.commands.prompts import PromptSet
    from hf_mote.generation.asking import Chat, Decoding

__all__ = ["amount", "duration", "plan_passes", "plan_responses", "plan_training"]

_UNITS = ("B", "kB", "MB", "GB")


def plan_responses(
    subject: Subject,
    asked: PromptSet,
    chat: Chat,
    decoding: Decoding,
    *,
    runs: Mapping[str, int],
    others: int = 0,
    result: int = 0,
    judge: str,
) -> None:
    """Print what a command that generates responses would do, having generated one batch of them.

    Args:
        subject (`Subject`): The model.
        asked (`PromptSet`): The prompts.
        chat (`Chat`): How they become tokens.
        decoding (`Decoding`): How responses are decoded.
        runs (`Mapping[str, int]`): How often all prompts are asked, by what for.
        others (`int`, *optional*, defaults to 0): Responses to other prompts, as to unrelated ones.
        result (`int`, *optional*, defaults to 0): Bytes that the result takes in memory, if it is known.
        judge (`str`): What labels the responses.
    """
    from hf_mote.generation.responses import generate_responses

    longest = int((decoding.generate_kwargs or {}).get("max_new_tokens", decoding.max_new_tokens))
    encoded = chat.encode(asked.prompts)
    # The longest prompts, so that the estimate is no lower than the run.
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))[: decoding.batch_size]
    say(f"timing one batch of {len(order)}")
    began = time.perf_counter()
    list(generate_responses(subject.model, chat, [asked.prompts[index] for index in order], decoding))
    seconds = time.perf_counter() - began
    number, times = len(asked.prompts), sum(runs.values())
    total = number * times + others
    tokens = sum(map(len, encoded))
    facts = {
        "prompts": f"{number:,} from {asked.source}, {tokens:,} tokens, the longest {max(map(len, encoded)):,}",
        "runs": f"{times:,} over all prompts: {', '.join(f'{n:,} {what}' for what, n in runs.items())}",
        "responses": f"{total:,}, at most {total * longest:,} tokens",
        "judge": judge,
    }
    if others:
        facts["runs"] += f"; and {others:,} responses to other prompts"
    if result:
        facts["result"] = f"{amount(result)} of memory, and about as much on disk"
    _print(facts, seconds, total / len(order), f"{len(order)} responses took {duration(seconds)}")


def plan_passes(
    asked: PromptSet, once: Callable[[], Any], batches: float, *, what: Mapping[str, str], result: int
) -> None:
    """Print what a command of plain passes would do, having run one batch.

    Args:
        asked (`PromptSet`): The prompts.
        once (`Callable`): Runs one batch.
        batches (`float`): How many of these the command runs.
        what (`Mapping[str, str]`): What else to say of it, by name.
        result (`int`): Bytes that the result takes in memory.
    """
    say("timing one batch")
    began = time.perf_counter()
    once()
    seconds = time.perf_counter() - began
    facts = {"prompts": f"{len(asked.prompts):,} from {asked.source}", **what}
    facts["result"] = f"{amount(result)} of memory, and about as much on disk"
    _print(facts, seconds, batches, f"one batch took {duration(seconds)}")


def plan_training(once: Callable[[], Any], timed: int, *, steps: int, what: Mapping[str, str]) -> None:
    """Print what training would do, having timed some steps of it.

    Args:
        once (`Callable`): Goes through some steps.
        timed (`int`): How many these are.
        steps (`int`): How many there are to be.
        what (`Mapping[str, str]`): What else to say of it, by name.
    """
    say(f"timing {timed} steps")
    began = time.perf_counter()
    once()
    seconds = time.perf_counter() - began
    _print({**what, "steps": f"{steps:,}"}, seconds, steps / timed, f"{timed} steps took {duration(seconds)}")


def _print(facts: Mapping[str, str], seconds: float, batches: float, measured: str) -> None:
    shown = {**facts, "time": f"about {duration(seconds * batches)}: {measured}"}
    wide = max(map(len, shown))
    tell("\n".join(["This would be done:", *(f"  {name:<{wide}}  {text}" for name, text in shown.items())]))
    tell("Nothing was written. The same command without --dry-run does it.")


def duration(seconds: float) -> str:
    """Return a time in words, with two digits.

    Example:
        ```python
        from hf_mote.commands.plan import duration

        assert [duration(s) for s in (0.034, 4.2, 90, 7500)] == ["0.034 s", "4.2 s", "90 s", "2.1 h"]
        ```
    """
    if seconds >= 5400:
        return f"{seconds / 3600:.2g} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def amount(size: int) -> str:
    """Return a number of bytes in words.

    Example:
        ```python
        from hf_mote.commands.plan import amount

        assert [amount(n) for n in (12, 49_152, 3_500_000)] == ["12 B", "49 kB", "3.5 MB"]
        ```
    """
    if size < 1000:
        return f"{size} B"
    power = min(3, int(math.log10(size) // 3))
    value = size / 1000**power
    return f"{value:.0f} {_UNITS[power]}" if value >= 10 else f"{value:.2g} {_UNITS[power]}"
