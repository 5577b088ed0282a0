"""`--dry-run`: what a command would do and what it would take, from one timed batch; nothing is written.

The time is the whole command's on the clock: starting and loading, which a dry run has behind it when it tells; the
batches, timed as the command runs them; the pictures, of which one is drawn. What is not in it is said.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_mote.commands.sae.texts import texts_fact
from hf_mote.commands.session import say, since_start, tell
from hf_mote.commands.verbosity import duration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_mote.commands.model import Subject
    from hf_mote.commands.prompts import PromptSet
    from hf_mote.generation.asking import Chat, Decoding
    from hf_mote.generation.chat import Prompt
    from hf_mote.judges.judge import Judge

__all__ = [
    "Timed",
    "TimedJudge",
    "Work",
    "amount",
    "plan",
    "plan_passes",
    "plan_reading",
    "plan_responses",
    "plan_training",
    "tell_plan",
    "tokens_of",
]

_UNITS = ("B", "kB", "MB", "GB")
_STATISTICS = "statistics and the page"
_JUDGE = "the judge, which is asked for each response"


class Timed(NamedTuple):
    """What was timed.

    Attributes:
        what (`str`): In words, as "16 responses".
        seconds (`float`): How long it took.
    """

    what: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.what}, {duration(self.seconds)} each"

    @classmethod
    def of(cls, what: str, once: Callable[[], Any], *, warm_up: Callable[[], Any] | None = None) -> Timed:
        """Time something.

        Args:
            what (`str`): What it is.
            once (`Callable`): Does it.
            warm_up (`Callable`, *optional*): Does a little of it, so that what is done once alone is not timed.
        """
        say(f"timing {what}")
        if warm_up is not None:
            warm_up()
        began = time.perf_counter()
        once()
        return cls(what, time.perf_counter() - began)


class Work(NamedTuple):
    """A part of the work.

    Attributes:
        timed ([`Timed`]): What was timed of it.
        times (`float`): How often the command does that.
    """

    timed: Timed
    times: float

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.timed.seconds * self.times


def plan(
    facts: Mapping[str, str], work: Sequence[Work], *, pictures: float = 0.0, left_out: Sequence[str] = (_STATISTICS,)
) -> None:
    """Print what a command would do.

    Args:
        facts (`Mapping[str, str]`): What to say of it, by name.
        work (`Sequence[Work]`): What takes time.
        pictures (`float`, *optional*, defaults to 0.0): Seconds that the pictures take.
        left_out (`Sequence[str]`, *optional*): What else takes time, and is not in the estimate.
    """
    before = since_start()
    total = before + pictures + sum(part.seconds for part in work)
    parts = [
        f"{duration(before)} to start and load",
        *(f"{duration(one.seconds)} for {_number(one.times)} x {one.timed}" for one in work),
    ]
    if pictures:
        parts.append(f"{duration(pictures)} for pictures")
    shown = {**facts, "time": f"about {duration(total)}: {'; '.join(parts)}"}
    if left_out:
        shown["not in it"] = ", ".join(left_out)
    tell_plan(shown)
    tell("Nothing was written. The same command without --dry-run does it.")


def tell_plan(facts: Mapping[str, str]) -> None:
    """Print what would be done, a line for each fact.

    Args:
        facts (`Mapping[str, str]`): By name; of a text of several lines the others stand below the first.
    """
    wide = max(map(len, facts))
    below = f"\n{'':{wide + 4}}"
    lines = (f"  {name:<{wide}}  {text.replace(chr(10), below)}" for name, text in facts.items())
    tell("\n".join(["This would be done:", *lines]))


def _number(times: float) -> str:
    return f"{times:,.0f}" if times >= 10 or times == int(times) else f"{times:.1f}"


def plan_responses(
    subject: Subject,
    asked: PromptSet,
    chat: Chat,
    decoding: Decoding,
    *,
    runs: Mapping[str, int],
    others: Iterable[int] = (),
    result: int = 0,
    judge: str,
    left_out: Sequence[str] = (),
    once: Callable[[list[Any], int], Any] | None = None,
    each: int = 1,
    more: Sequence[Work] = (),
    pictures: int = 0,
) -> None:
    """Print what a command that generates responses would do, having generated one batch of them.

    Args:
        subject (`Subject`): The model.
        asked (`PromptSet`): The prompts.
        chat (`Chat`): How they become tokens.
        decoding (`Decoding`): How responses are decoded.
        runs (`Mapping[str, int]`): How often all prompts are asked, by what for.
        others (`Iterable[int]`, *optional*): Responses to other prompts, as to unrelated ones: how many each time.
        result (`int`, *optional*, defaults to 0): Bytes that the result takes in memory, if it is known.
        judge (`str`): What labels the responses.
        left_out (`Sequence[str]`, *optional*): What takes time beside that, and is not in the estimate.
        once (`Callable`, *optional*): Does with some prompts, and responses of so many tokens at most, what the
            command does with a batch; by default they are answered.
        each (`int`, *optional*, defaults to 1): How often it answers them.
        more (`Sequence[Work]`, *optional*): What else takes time.
        pictures (`int`, *optional*, defaults to 0): How many pictures the command draws.
    """
    longest = int((decoding.generate_kwargs or {}).get("max_new_tokens", decoding.max_new_tokens))
    encoded = chat.encode(asked.prompts)
    # The longest prompts, so that the estimate is no lower than the run.
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))[: decoding.batch_size]
    batch, size = [asked.prompts[index] for index in order], decoding.batch_size
    answer = _answered(subject, chat, decoding) if once is None else once
    timed = Timed.of(
        f"{len(batch)} responses to the longest prompts",
        lambda: answer(batch, longest),
        warm_up=lambda: answer(batch, min(2, longest)),
    )
    timed = timed._replace(seconds=timed.seconds / each)
    number, times, beside = len(asked.prompts), sum(runs.values()), list(others)
    total = number * times + sum(beside)
    tokens = sum(map(len, encoded))
    batches = times * math.ceil(number / size) + sum(math.ceil(one / size) for one in beside)
    facts = {
        "prompts": f"{number:,} from {asked.source}, {tokens:,} tokens, the longest {max(map(len, encoded)):,}",
        "runs": f"{times:,} over all prompts: {', '.join(f'{n:,} {what}' for what, n in runs.items())}",
        "responses": f"{total:,}, at most {total * longest:,} tokens",
        "judge": judge,
    }
    if sum(beside):
        facts["runs"] += f"; and {sum(beside):,} responses to other prompts"
    if result:
        facts["result"] = f"{amount(result)} of memory, and about as much on disk"
    pictured = _pictures(pictures, subject)
    plan(facts, [Work(timed, batches), *more], pictures=pictured, left_out=[*left_out, _STATISTICS])


class TimedJudge:
    """A judge that takes the time of another one and gives one label, so that any batch of responses can be timed.

    Args:
        judge (`Judge`): The other one; one that is costly is not asked.
    """

    labels = ("any",)
    takes_chats = True

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._costly = bool(getattr(judge, "costly", False))

    @property
    def left_out(self) -> list[str]:
        """What an estimate does not hold of it."""
        return [_JUDGE] if self._costly else []

    def __call__(self, prompt: Prompt, response: str) -> str:
        """Label a response."""
        from hf_mote.judges.judge import classify

        if not self._costly:
            classify(self._judge, [prompt], [response])
        return self.labels[0]


def _answered(subject: Subject, chat: Chat, decoding: Decoding) -> Callable[[list[Any], int], Any]:
    import dataclasses

    from hf_mote.generation.responses import generate_responses

    def answer(prompts: list[Any], longest: int) -> None:
        given = {**(decoding.generate_kwargs or {}), "max_new_tokens": longest}
        list(generate_responses(subject.model, chat, prompts, dataclasses.replace(decoding, generate_kwargs=given)))

    return answer


def _pictures(number: int, subject: Subject | None = None) -> float:
    """Return how long so many pictures take, of which the first loads what draws them; of a model's experts."""
    if not number:
        return 0.0
    say("timing a picture")
    began = time.perf_counter()
    import numpy as np

    from hf_mote.plots import plot_expert_map

    layers, width = [0, 1], 8
    if subject is not None:
        from hf_mote.routing.sites.discover import find_routers

        sites = find_routers(subject.model)
        layers, width = [site.layer for site in sites], max(site.num_experts for site in sites)
    matrix = np.zeros((len(layers), width))
    matrix[0, 0] = 1.0
    taken = [began]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(min(2, number)):
            plot_expert_map(matrix, layers, title="", label="", path=Path(folder) / "one.png")
            taken.append(time.perf_counter())
    return taken[-1] - began + max(number - 2, 0) * (taken[-1] - taken[-2])


def plan_passes(
    subject: Subject,
    asked: PromptSet,
    once: Callable[[], Any],
    batches: float,
    *,
    named: str,
    what: Mapping[str, str],
    result: int,
    more: Sequence[Work] = (),
    pictures: int = 0,
) -> None:
    """Print what a command of plain passes would do, having run one batch.

    Args:
        subject (`Subject`): The model.
        asked (`PromptSet`): The prompts.
        once (`Callable`): Runs one batch.
        batches (`float`): How many of these the command runs.
        named (`str`): What one is, in words.
        what (`Mapping[str, str]`): What else to say of it, by name.
        result (`int`): Bytes that the result takes in memory.
        more (`Sequence[Work]`, *optional*): What else takes time.
        pictures (`int`, *optional*, defaults to 0): How many pictures the command draws.
    """
    timed = Timed.of(named, once, warm_up=once)
    facts = {"prompts": f"{len(asked.prompts):,} from {asked.source}", **what}
    facts["result"] = f"{amount(result)} of memory, and about as much on disk"
    plan(facts, [Work(timed, batches), *more], pictures=_pictures(pictures, subject))


def plan_training(
    once: Callable[[], Any],
    timed: int,
    *,
    steps: int,
    what: Mapping[str, str],
    more: Sequence[Work] = (),
    again: bool = True,
) -> None:
    """Print what training would do, having timed some steps of it.

    Args:
        once (`Callable`): Goes through some steps.
        timed (`int`): How many these are.
        steps (`int`): How many there are to be.
        what (`Mapping[str, str]`): What else to say of it, by name.
        more (`Sequence[Work]`, *optional*): What else takes time, as measuring what was trained.
        again (`bool`, *optional*, defaults to `True`): Whether it can be done twice; it is then timed the second time.
    """
    named = "1 step" if timed == 1 else f"{timed} steps"
    some = Timed.of(named, once, warm_up=once if again else None)
    plan({**what, "steps": f"{steps:,}"}, [Work(some, steps / timed), *more], left_out=())


def tokens_of(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[Any], tokens: int, *, context_length: int, text_column: str
) -> int:
    """Return how many tokens of some texts a command reads.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        texts (`Sequence`): The texts.
        tokens (`int`): The most that it is to read.
        context_length (`int`): The longest sequence.
        text_column (`str`): The column that has the text.
    """
    from hf_mote.sae.training.sequences import Sequences

    read = 0
    for sequence in Sequences(tokenizer, texts, text_column=text_column, context_length=context_length, packed=True):
        read += len(sequence)
        if read >= tokens:
            break
    return min(read, tokens)


def plan_reading(
    subject: Subject,
    source: str,
    texts: Sequence[Any],
    once: Callable[[int], Any],
    *,
    tokens: int,
    context_length: int,
    text_column: str,
    what: Mapping[str, str],
    more: Sequence[Work] = (),
    pictures: int = 0,
) -> None:
    """Print what a command that reads a text would do, having read one batch of it.

    Args:
        subject (`Subject`): The model.
        source (`str`): Where the texts come from.
        texts (`Sequence`): The texts.
        once (`Callable`): Reads so many tokens as the command does.
        tokens (`int`): How many the command is to read at most.
        context_length (`int`): The longest sequence.
        text_column (`str`): The column that has the text.
        what (`Mapping[str, str]`): What else to say of it, by name.
        more (`Sequence[Work]`, *optional*): What else takes time.
        pictures (`int`, *optional*, defaults to 0): How many pictures the command draws.
    """
    batch = 8 * context_length  # the usual forward of those that read: 8 sequences
    read = tokens_of(subject.tokenizer, texts, tokens, context_length=context_length, text_column=text_column)
    some = min(batch, read)
    timed = Timed.of(f"{some:,} tokens", lambda: once(some), warm_up=lambda: once(1))
    facts = {"texts": texts_fact(source, len(texts)), "tokens": f"{read:,} of at most {tokens:,}", **what}
    plan(facts, [Work(timed, read / max(some, 1)), *more], pictures=_pictures(pictures))


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
