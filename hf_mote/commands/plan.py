"""`--dry-run`: what a command would do, with its time and memory estimated from one timed batch; nothing is written.

The time is the wall time of the whole command: starting and loading, as measured in the dry run; the batches, timed as
the command runs them; the pictures, of which one or two are drawn. The parts that it leaves out are named.
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
    """A timed unit of work.

    Attributes:
        what (`str`): Its name, such as "16 responses".
        seconds (`float`): How long it took.
    """

    what: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.what}, {duration(self.seconds)} each"

    @classmethod
    def of(cls, what: str, once: Callable[[], Any], *, warm_up: Callable[[], Any] | None = None) -> Timed:
        """Time a unit of work.

        Args:
            what (`str`): Its name.
            once (`Callable`): Does the work.
            warm_up (`Callable`, *optional*): Does a little of it before, so that one-time costs are not timed.
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
        timed ([`Timed`]): The timed unit.
        times (`float`): How often the command does it.
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
        facts (`Mapping[str, str]`): Facts to print, by name.
        work (`Sequence[Work]`): The parts that take time.
        pictures (`float`, *optional*, defaults to 0.0): Seconds that the pictures take.
        left_out (`Sequence[str]`, *optional*): Parts that take time and are not in the estimate.
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
        shown["not included"] = ", ".join(left_out)
    tell_plan(shown)
    tell("Nothing was written. The same command without --dry-run does it.")


def tell_plan(facts: Mapping[str, str]) -> None:
    """Print what would be done, a line for each fact.

    Args:
        facts (`Mapping[str, str]`): Facts by name; further lines of a text are printed below its first.
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
    """Print what a command that generates responses would do, after generating one batch of them.

    Args:
        subject (`Subject`): The model.
        asked (`PromptSet`): The prompts.
        chat (`Chat`): How they become tokens.
        decoding (`Decoding`): How responses are decoded.
        runs (`Mapping[str, int]`): How often all prompts are answered, by purpose.
        others (`Iterable[int]`, *optional*): Numbers of responses to other prompts, such as unrelated ones, for each
            run.
        result (`int`, *optional*, defaults to 0): Bytes that the result takes in memory, if known.
        judge (`str`): The name of the judge.
        left_out (`Sequence[str]`, *optional*): Further parts that take time and are not in the estimate.
        once (`Callable`, *optional*): Takes prompts and a maximum number of new tokens, and does what the command does
            with a batch; by default the prompts are answered.
        each (`int`, *optional*, defaults to 1): How often it answers them.
        more (`Sequence[Work]`, *optional*): Further parts that take time.
        pictures (`int`, *optional*, defaults to 0): How many pictures the command draws.
    """
    longest = int((decoding.generate_kwargs or {}).get("max_new_tokens", decoding.max_new_tokens))
    encoded = chat.encode(asked.prompts)
    # The longest prompts, so that the estimate is not too low.
    order = sorted(range(len(encoded)), key=lambda index: -len(encoded[index]))[: decoding.batch_size]
    batch, size = [asked.prompts[index] for index in order], decoding.batch_size
    answer = _answered(subject, chat, decoding) if once is None else once
    timed = Timed.of(
        f"{len(batch)} responses to the longest prompts",
        lambda: answer(batch, longest),
        warm_up=lambda: answer(batch, min(2, longest)),
    )
    timed = timed._replace(seconds=timed.seconds / each)
    number, times, further = len(asked.prompts), sum(runs.values()), list(others)
    total = number * times + sum(further)
    tokens = sum(map(len, encoded))
    batches = times * math.ceil(number / size) + sum(math.ceil(one / size) for one in further)
    facts = {
        "prompts": f"{number:,} from {asked.source}, {tokens:,} tokens, the longest {max(map(len, encoded)):,}",
        "runs": f"{times:,} over all prompts: {', '.join(f'{n:,} {what}' for what, n in runs.items())}",
        "responses": f"{total:,}, at most {total * longest:,} tokens",
        "judge": judge,
    }
    if sum(further):
        facts["runs"] += f"; and {sum(further):,} responses to other prompts"
    if result:
        facts["result"] = f"{amount(result)} of memory, and about as much on disk"
    seconds = _pictures(pictures, subject)
    plan(facts, [Work(timed, batches), *more], pictures=seconds, left_out=[*left_out, _STATISTICS])


class TimedJudge:
    """A judge that takes as long as another one and gives one label, so that any batch of responses can be timed.

    Args:
        judge (`Judge`): The other judge; a costly one is not called.
    """

    labels = ("any",)
    takes_chats = True

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._costly = bool(getattr(judge, "costly", False))

    @property
    def left_out(self) -> list[str]:
        """The parts of its time that are not in an estimate."""
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
    """Return the seconds that pictures of a model's experts take; the first one also loads matplotlib."""
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
    """Print what a command of plain passes would do, after running one batch.

    Args:
        subject (`Subject`): The model.
        asked (`PromptSet`): The prompts.
        once (`Callable`): Runs one batch.
        batches (`float`): How many batches the command runs.
        named (`str`): The name of a batch.
        what (`Mapping[str, str]`): Further facts to print, by name.
        result (`int`): Bytes that the result takes in memory.
        more (`Sequence[Work]`, *optional*): Further parts that take time.
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
    """Print what training would do, after timing some steps of it.

    Args:
        once (`Callable`): Runs some steps.
        timed (`int`): The number of these steps.
        steps (`int`): The number of all steps.
        what (`Mapping[str, str]`): Further facts to print, by name.
        more (`Sequence[Work]`, *optional*): Further parts that take time, such as the evaluation.
        again (`bool`, *optional*, defaults to `True`): Whether `once` can run twice; the second run is then timed.
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
        tokens (`int`): The maximum number of tokens to read.
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
    """Print what a command that reads a text would do, after reading one batch of it.

    Args:
        subject (`Subject`): The model.
        source (`str`): Where the texts come from.
        texts (`Sequence`): The texts.
        once (`Callable`): Reads a number of tokens in the same way as the command.
        tokens (`int`): The maximum number of tokens to read.
        context_length (`int`): The longest sequence.
        text_column (`str`): The column that has the text.
        what (`Mapping[str, str]`): Further facts to print, by name.
        more (`Sequence[Work]`, *optional*): Further parts that take time.
        pictures (`int`, *optional*, defaults to 0): How many pictures the command draws.
    """
    batch = 8 * context_length  # these commands run 8 sequences in a forward pass
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
