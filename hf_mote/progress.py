"""Progress of long work: a bar in a terminal, or calls of a listener that writes lines to a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TypeAlias

__all__ = ["Listener", "listen_to_progress", "progress_bar"]

# Called with a description, the steps done, the steps in all, and the seconds left at the present speed.
Listener: TypeAlias = Callable[[str, int, int, float], None]

FIRST = 30.0  # seconds until the first call of a listener
LEAST = 60.0  # seconds between two calls, at least
SHARE = 0.02  # of the whole work, which two calls are apart at least

_LISTENER: ContextVar[Listener | None] = ContextVar("progress listener", default=None)


def listen_to_progress(listener: Listener | None) -> None:
    """Call a function with progress from here on, in the place of bars.

    Args:
        listener (`Callable`, *optional*): The function; `None` for bars again.
    """
    _LISTENER.set(listener)


def progress_bar(
    iterable: Iterable[Any] | None = None, *, total: int | None = None, desc: str | None = None, disable: bool = False
) -> Any:
    """Return a progress bar of transformers, or an object that calls the listener in its place.

    Args:
        iterable (`Iterable`, *optional*): What is gone through.
        total (`int`, *optional*): How many steps there are, where nothing is gone through.
        desc (`str`, *optional*): What is done.
        disable (`bool`, *optional*, defaults to `False`): Show and tell nothing.
    """
    listener = _LISTENER.get()
    if listener is not None and not disable:
        return _Announced(listener, desc or "", iterable, total)
    from transformers.utils import logging

    return logging.tqdm(iterable, total=total, desc=desc, disable=disable, leave=False)


class _Announced:
    """A bar that calls a listener now and then, in the place of drawing."""

    def __init__(self, listener: Listener, what: str, iterable: Iterable[Any] | None, total: int | None) -> None:
        self.listener = listener
        self.what = what
        self.entries = [] if iterable is None else list(iterable)
        self.total = len(self.entries) if total is None else total
        self.done = 0
        self._last = (time.monotonic(), 0)  # of the last call: the time, and the steps done
        self._wait = FIRST

    def __enter__(self) -> _Announced:
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
