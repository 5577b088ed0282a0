"""`DecoderHook`, the hook on the decoder: what the rows of each forward are, and whether the routers ran in it.

Its state between passes belongs to the cache that the passes share, and its state of the current pass to the thread
that runs it. Several generations may therefore alternate, or run in threads of their own.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._C import _current_graph_task_id
from torch.compiler import is_compiling
from transformers import PreTrainedModel

from hf_mote.errors import UnsupportedError
from hf_mote.hooks import SharedHook
from hf_mote.passes.arguments import (
    PassArguments,
    caches_in,
    contradiction,
    covers_whole_cache,
    read_arguments,
    why_packed,
)
from hf_mote.passes.cached_text import CachedText, ThinkingTokens, count_tokens, label_thinking, moved_from, rows_of
from hf_mote.passes.forward import DecoderParticipant, Forward, Phase, real_tokens

__all__ = ["DecoderHook", "decoder_of", "recomputing"]

_COMPILED = "several tokens on a cache can be a prompt or a chunk of one, and a compiled graph cannot distinguish them"

_GUESSES = "the tokens can be a new turn, a chunk of a long prompt or guesses of assisted decoding"

_LOST = "the cache was changed between two passes in a way that does not show which row each sequence is in now"

_EMPTY = (
    "hf_mote: a compiled graph was given one token on an empty cache of fixed size, and took it for a generated one: "
    "do not compile the model under scope 'prompt' or 'generation'; generate takes disable_compile=True"
)


class DecoderHook(SharedHook):
    """The hook on the decoder, shared by all interventions of a model.

    A forward with an empty cache reads prompt; a single token on a filled cache is a generated one. Where the caller
    asks for no cache and gives position ids, as `generate` does, a forward whose tokens extend those of the one before
    by exactly one column is the next step of a generation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._here = _Here()
        self.watches_generate = False
        """Whether the model whose `generate` is called is hooked, too."""
        self.compiled_without_cache = False
        """Whether a graph was compiled since the last change, in which a decode step looks like a prompt."""
        self.compiled_passes = False
        """Whether a compiled graph has run since `generate` began."""
        self.compiled_prompt = 0
        """Tokens that a compiled graph read as a prompt since then."""
        self.compiled_guesses = False
        """Whether the next pass ends in guesses, as far as a compiled graph can determine it."""
        self._runs = itertools.count(1)
        self._texts: WeakKeyDictionary[Any, CachedText] = WeakKeyDictionary()
        # A compiled graph cannot determine its thread: the last pass of all threads, and the number of running passes.
        self._now: Forward | None = None
        self._inside = False
        self._under_way = 0
        self._lock = threading.Lock()
        self._needs_passes = self._needs_rows = self._needs_places = False
        self._marks: frozenset[ThinkingTokens] = frozenset()
        self._watchers: tuple[DecoderParticipant, ...] = ()

    def participants_changed(self) -> None:
        """Collect what the watchers need to know of each pass."""
        self.compiled_without_cache = False  # attaching makes torch compile everything again
        watchers = tuple(
            participant for participant in self.participants if isinstance(participant, DecoderParticipant)
        )
        self._watchers = watchers
        self._marks = frozenset(marks for watcher in watchers for marks in watcher.thinking_tokens)
        self._needs_passes = any(watcher.needs_passes for watcher in watchers)
        self._needs_places = any(watcher.needs_places for watcher in watchers)
        follows = bool(self._marks) or self._needs_places
        self._needs_rows = follows or any(watcher.needs_rows for watcher in watchers)

    def forward_of(self, rows: int) -> Forward | None:
        """Return the pass that a router's rows belong to, or `None` outside of a pass.

        Gradient checkpointing runs layers again outside the pass; those rows are a training step's, all prompt.

        Args:
            rows (`int`): Rows that the router sees.
        """
        if is_compiling():
            now, inside = self._now, self._inside
            if self._under_way > 1:
                raise UnsupportedError(
                    "forward pass",
                    "several threads run passes, and compiled layers cannot determine which pass is theirs",
                    got=f"{self._under_way} passes",
                    expected="one pass at a time",
                    fix="Do not compile the layers, or run one thread at a time. Or use scope 'all'.",
                )
        else:
            # A backward pass may run in a thread of its own.
            here = self._here
            now, inside = here.now or self._now, here.inside
        if now is None:
            return None
        if inside:
            return now if now.batch * now.length == rows else None
        if recomputing() and rows % now.batch == 0:
            length = rows // now.batch
            return Forward(now.batch, length, now.device, generation_from=length, recomputed=True)
        return None

    def under_way(self) -> Forward | None:
        """Return the pass that this thread is in, for any number of rows; `None` outside of one."""
        return self._here.now if not is_compiling() and self._here.inside else None

    def passes_unread(self) -> bool:
        """Return whether this thread is in a pass whose routing is not observed."""
        return self._here.inside and not self._here.reads_routers

    def expect(self, guessed: bool, ids: Tensor | None) -> None:
        """Called by the model that `generate` calls, before the next pass in this thread.

        Args:
            guessed (`bool`): Whether it ends in guesses of assisted decoding.
            ids (`torch.Tensor`, *optional*): The token ids that the model was given, `(batch, length)`, which a
                decoder of a model for images gets as embeddings.
        """
        self._here.guessed, self._here.ids = guessed, ids

    @contextmanager
    def generating(self) -> Iterator[dict[Phase, int]]:
        """Context in which the passes of this thread belong to one `generate`; counts the columns that they read."""
        here = self._here
        before = here.columns, here.generating
        here.columns, here.generating, here.previous = {"prompt": 0, "generation": 0}, True, None
        try:
            yield here.columns
        finally:
            here.columns, here.generating = before
            here.previous = None

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the arguments of a decoder's forward."""
        if not is_compiling():
            self._begin()
        if not self._needs_passes:
            return
        read = read_arguments(args, kwargs)
        if read is None:
            raise UnsupportedError(
                type(module).__name__,
                "the forward has neither input_ids nor inputs_embeds",
                got=sorted(kwargs),
                fix="Give input_ids, or give inputs_embeds by name.",
            )
        if is_compiling():
            self._trace(read)
            return
        here = self._here
        batch, length = read.tokens.shape[:2]
        given, here.ids = here.ids, None
        ids = given if read.ids is None and given is not None and given.shape == (batch, length) else read.ids
        cache = read.cache
        past = int(cache.get_seq_length()) if cache is not None else 0
        text = self._texts.get(cache) if past else None
        moved = None
        first_new_column, generation_from = 0, length
        # A decode step on a known cache is checked by shapes alone: values would make it wait for the device.
        by_values = text is None or read.tokens.device.type == "cpu"
        unread = read.unclear or contradiction(read, past, values=by_values)
        unclear = unread or self._unclear(length, past, text)
        if past:
            here.run_id = text.run_id if text is not None else next(self._runs)
            generation_from = 0
            if text is not None and self._needs_rows:
                try:
                    moved = _moved(text, cache, batch, read.tokens.device)
                except LookupError:
                    unread = unread or _LOST
        else:
            extends, moved = self._extends_previous(read)
            # Where `generate` itself is observed, passes outside of it do not count as a generation.
            by_generate = here.generating or (read.by_generate and not self.watches_generate)
            if extends and not by_generate and read.positions is not None:
                unclear = unclear or "the tokens of the pass before and one more can be a prompt or a generation"
            elif here.generating and not extends and here.columns["prompt"]:
                unclear = unclear or (
                    "inside generate a pass began a text of its own, as guidance or a stopping criterion may, or its "
                    "cache was not found"
                )
            if extends and by_generate:
                first_new_column, generation_from = length - 1, here.prompt_length
            else:
                here.run_id = next(self._runs)
                here.prompt_length = length
        here.cache = cache
        # Embeddings are kept only where they can be needed: an image model makes them before its decoder.
        needed = here.generating or read.by_generate
        kept = read.ids if read.ids is not None or not needed else read.tokens.detach()
        here.previous = kept if cache is None else None
        labels: dict[ThinkingTokens, tuple[Tensor, Tensor]] = {}
        if self._marks:
            begun = {} if text is None or unread is not None else text.thinking_at(past, moved)
            labels = self._label(ids, begun, begins=past == 0 and unread is None)
        real = real_tokens(read.mask, batch, length, past, by_place=covers_whole_cache(read))
        counts = None
        if self._needs_places and unread is None:
            earlier = text.count_at(past, moved) if text is not None else None
            earlier = earlier if past else torch.zeros(batch, dtype=torch.long, device=read.tokens.device)
            if earlier is not None and len(earlier) == batch:
                counts = count_tokens(earlier, real, length)
        here.text = CachedText(
            here.run_id,
            past,
            length,
            thinking={marks: torch.cat([begin[:, None], part], dim=1) for marks, (begin, part) in labels.items()},
            batch=batch,
            counts=counts,
        )
        here.now = Forward(
            batch,
            length,
            read.tokens.device,
            run_id=here.run_id,
            generation_from=generation_from,
            first_new_column=first_new_column,
            real=real,
            ids=ids,
            unclear=unclear,
            unread=unread,
            packed=why_packed(read, real, past),
            thinking={marks: part for marks, (_, part) in labels.items()},
            moved=moved,
            places=None if counts is None else counts[:, :-1],
        )
        here.columns["prompt"] += max(generation_from - first_new_column, 0)
        here.columns["generation"] += length - max(generation_from, first_new_column)
        here.guessed, here.inside = False, True
        self._now, self._inside = here.now, True
        for watcher in self._watchers:
            if watcher.active:
                watcher.on_forward(here.now)
        here.reads_routers = any(watcher.needs_routers(here.now) for watcher in self._watchers)

    def _unclear(self, length: int, past: int, text: CachedText | None) -> str | None:
        """Return why tokens may be either prompt or generation, or `None` if this is known."""
        if self._here.guessed or (past and length > 1):
            return _GUESSES
        if past and self._here.generating and not any(self._here.columns.values()):
            return f"generate began on a cache that held {past} tokens, so that its first token may end a prompt"
        if past and text is None:
            return f"the forward passes that filled the cache with {past} tokens were not seen"
        if text is not None and past != text.before + text.length:
            change = "taken back" if past < text.before + text.length else "added unseen"
            return f"tokens of the cache were {change}: it holds {past}, and held {text.before + text.length}"
        return None

    def _trace(self, read: PassArguments) -> None:
        """Describe a pass in a graph that will run many times: without counters, or lengths that are on a device."""
        ids, tokens, cache = read.ids, read.tokens, read.cache
        batch, length = tokens.shape[:2]
        past = cache.get_seq_length() if cache is not None else 0
        # The length of a cache of fixed size is on a device and is not read here; only an empty cache is recognised.
        known = not isinstance(past, Tensor)
        unread = read.unclear or (contradiction(read, past, values=False) if known else None)
        begins = known and past == 0
        if cache is None:
            self.compiled_without_cache = True
        self.compiled_passes = True
        if begins:
            self.compiled_prompt = length
        unclear = unread or (_GUESSES if self.compiled_guesses else None)
        if not begins and length > 1:
            unclear = unclear or _COMPILED
        elif not known and any(watcher.active and watcher.needs_phases for watcher in self._watchers):
            torch._assert_async(cast("torch.Tensor", past > 0), _EMPTY)
        labels = self._label(ids, {}, begins=begins and unread is None)
        self._now = Forward(
            batch,
            length,
            tokens.device,
            generation_from=length if begins else 0,
            ids=ids,
            unclear=unclear,
            unread=unread,
            packed=why_packed(read, None, 0, values=False),
            compiled=True,
            thinking={marks: part for marks, (_, part) in labels.items()},
        )
        self._inside = True
        for watcher in self._watchers:
            if not watcher.active:
                continue
            watcher.on_trace(self._now)
            # Refused here: an error at a router would end the graph there, and compile the router without its hook.
            if watcher.needs_phases:
                _ = self._now.phases
            if watcher.needs_places:
                self._now.tokens_at(())
            for marks in watcher.thinking_tokens:
                self._now.tokens_in("thinking", marks)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Check that the routers of newly attached interventions ran, and store what the cache now holds."""
        self._inside = False
        if is_compiling():
            return
        try:
            now = self._remember(output) if self._needs_passes else None
            for watcher in self._watchers:
                watcher.check_alive()
                if watcher.active and now is not None:
                    watcher.on_end(now)
        finally:
            self._end()

    def failed(self) -> None:
        """Leave the pass: later calls of routers do not belong to it."""
        here = self._here
        self._inside = here.guessed = False
        self._end()
        here.cache, here.ids = None, None

    def _remember(self, output: Any) -> Forward | None:
        """Store what the cache now holds, and return the pass that ends."""
        here = self._here
        here.inside = False
        cache = here.cache if here.cache is not None else next(caches_in(output), None)
        here.cache = None
        if cache is not None and here.text is not None:
            here.previous = None
            several = self._needs_rows and here.text.batch > 1
            self._texts[cache] = here.text._replace(rows=rows_of(cache)) if several else here.text
        return here.now

    def _begin(self) -> None:
        """Register that this thread's pass has begun; which routers ran is reset unless another thread needs it."""
        here = self._here
        with self._lock:
            if not here.under_way:
                here.under_way = True
                self._under_way += 1
            if self._under_way == 1:
                for watcher in self._watchers:
                    watcher.begin()

    def _end(self) -> None:
        """Register that this thread's pass has ended."""
        here = self._here
        here.inside = False
        if here.under_way:
            here.under_way = False
            with self._lock:
                self._under_way -= 1

    def _extends_previous(self, read: PassArguments) -> tuple[bool, Tensor | None]:
        """Whether the pass repeats the one before and adds a token, and the rows that its sequences come from."""
        now, before = read.tokens, self._here.previous
        if before is None or read.cache is not None or now[:, :-1].shape != before.shape or now.dtype != before.dtype:
            return False, None
        moved = moved_from(before, now[:, :-1])
        return (True, moved) if moved is None or bool((moved >= 0).all()) else (False, None)

    def _label(
        self, ids: Tensor | None, begun: dict[ThinkingTokens, Tensor], *, begins: bool
    ) -> dict[ThinkingTokens, tuple[Tensor, Tensor]]:
        """For each requested pair of marks: the part before the pass, and the part that each token belongs to."""
        found: dict[ThinkingTokens, tuple[Tensor, Tensor]] = {}
        if ids is None:
            return found
        for marks in self._marks:
            begin = begun.get(marks)
            if begin is None or len(begin) != len(ids):
                if not begins:
                    continue  # it is unknown what this cache was filled with
                begin = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
            found[marks] = (begin, label_thinking(ids, marks, begin))
        return found


def decoder_of(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """Return the innermost `PreTrainedModel` that has all the modules: its forward sees every token.

    Args:
        model (`nn.Module`): The model.
        paths (`Sequence[str]`): Paths of modules in it.
    """
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and all(p.startswith(f"{path}." if path else "") for p in paths)
    ]
    return max(found, key=lambda item: len(item[0]))[1] if found else model


def recomputing() -> bool:
    """Whether gradient checkpointing is running a layer again, during a backward pass."""
    return _current_graph_task_id() != -1


class _Here(threading.local):
    """The pass that this thread is in, and the text that it extends without a cache."""

    def __init__(self) -> None:
        self.now: Forward | None = None
        self.inside = False
        self.under_way = False
        self.guessed = False
        self.ids: Tensor | None = None
        self.reads_routers = True
        self.text: CachedText | None = None
        self.cache: Any | None = None
        self.run_id = 0
        self.prompt_length = 0
        self.previous: Tensor | None = None
        self.columns: dict[Phase, int] = {"prompt": 0, "generation": 0}
        self.generating = False


def _moved(text: CachedText, cache: Any, batch: int, device: torch.device) -> Tensor | None:
    """The row that each row's sequence was in when the cache was last seen, as `moved_from` gives it.

    Raises:
        `LookupError`: if the cache does not show it.
    """
    if text.batch == 1:  # there was only one row
        return None if batch == 1 else torch.zeros(batch, dtype=torch.long, device=device)
    if text.rows is None:  # rows were not followed until now
        return None
    now = rows_of(cache)
    if now is None:
        raise LookupError
    moved = text.rows.moved_to(now)
    return None if moved is None else moved.to(device)
