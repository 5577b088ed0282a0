"""How far long work is: a bar in a terminal, or now and then a call of a listener, which writes lines to a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeAlias

__all__ = ["Listener", "listen_to_progress", "progress_bar"]

# Told what is done, how much of how much, and how many seconds are left if it goes on as it did.
Listener: TypeAlias = Callable[[str, int, int, float], None]

FIRST = 30.0  # seconds until a listener is first told
LEAST = 60.0  # seconds between two calls, at least
SHARE = 0.02  # of the whole work, which two calls are apart at least

_LISTENER: ContextVar[Listener | None] = ContextVar("told of progress", default=None)


def listen_to_progress(listener: Listener | None) -> None:
    """Have a function told of progress from here on, in the place of bars.

    Args:
        listener (`Callable`, *optional*): The function; `None` for bars again.
    """
    _LISTENER.set(listener)


def progress_bar(
    iterable: Iterable[Any] | None = None, *, total: int | None = None, desc: str | None = None, disable: bool = False
) -> Any:
    """Return a progress bar of transformers, or what tells the listener in its place.

    Args:
        iterable (`Iterable`, *optional*): What is gone through.
        total (`int`, *optional*): How many steps there are, where nothing is gone through.
        desc (`str`, *optional*): What is done.
        disable (`bool`, *optional*, defaults to `False`): Show and tell nothing.
    """
    listener = _LISTENER.get()
    if listener is not None and not disable:
        return _Told(listener, desc or "", iterable, total)
    from transformers.utils import logging

    return logging.tqdm(iterable, total=total, desc=desc, disable=disable, leave=False)


class _Told:
    """What stands in for a bar: it tells a listener now and then."""

    def __init__(self, listener: Listener, what: str, iterable: Iterable[Any] | None, total: int | None) -> None:
        self.listener = listener
        self.what = what
        self.entries = [] if iterable is None else list(iterable)
        self.total = len(self.entries) if total is None else total
        self.done = 0
        self._last = (time.monotonic(), 0)  # when it was told last, and what was done then
        self._wait = FIRST

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        for entry in self.entries:
            yield entry
            self.update()

    def update(self, n: int = 1) -> None:
        self.done += n
        now, (then, before) = time.monotonic(), self._last
        if now - then < self._wait or self.done >= self.total:
            return
        # By what was done since the last call: what an earlier run had kept is there at once.
        each = (now - then) / (self.done - before) if self.done > before else 0.0
        self.listener(self.what, self.done, self.total, each * (self.total - self.done))
        self._last = (now, self.done)
        self._wait = max(LEAST, SHARE * each * self.total)
