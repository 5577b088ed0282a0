"""How much a command says: `--quiet`, `--verbose`, `HF_MOTE_VERBOSITY`; progress: bars in a terminal, lines in a log.

| level | results and errors | what begins | warnings | notes | details |
| --- | --- | --- | --- | --- | --- |
| error, `--quiet` | yes | | | | |
| warning, the default | yes | yes | yes | | |
| info, `--verbose` | yes | yes | yes | yes | |
| debug | yes | yes | yes | yes | yes |

Transformers' own messages are for `TRANSFORMERS_VERBOSITY`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any

import typer
from rich.console import Console

from hf_mote.commands.typed import takes, without_method
from hf_mote.errors import UnknownNameError
from hf_mote.processes import launched_as
from hf_mote.progress import listen_to_progress
from hf_mote.reports.markup import visible

__all__ = [
    "LEVELS",
    "VARIABLE",
    "add_options",
    "duration",
    "forget",
    "listening",
    "quiet",
    "say",
    "settle_progress",
    "verbosity",
]

VARIABLE = "HF_MOTE_VERBOSITY"
LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}

_ASKED: ContextVar[str | None] = ContextVar("verbosity asked for", default=None)
_HIDDEN: ContextVar[bool] = ContextVar("progress bars were hidden", default=False)


# What a record advises in Python; where the command takes the option, the same is advised of that, else nothing.
_ADVICE = {
    "Divide by it: normalize=True.": "Divide by it: --normalize.",
    "Give groups=[...], one key for each prompt, such as its subject.": (
        "Give --group-field, a field with one key for each prompt, such as its subject."
    ),
}


class _AsTyped(logging.Formatter):
    """Records with the options of the command in the place of Python's arguments, and without a method's name."""

    def format(self, record: logging.LogRecord) -> str:
        text = without_method(record.getMessage())
        for theirs, ours in _ADVICE.items():
            (option,) = re.findall(r"--[a-z-]*[a-z]", ours)
            text = text.replace(theirs, ours if takes(option) else "")
        return text.rstrip()


def _ask(level: str, wanted: bool) -> None:
    if wanted:
        _ASKED.set(level)


def _options(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            callback=lambda wanted: _ask("error", wanted),
            expose_value=False,
            help="Say nothing but results and errors.",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            callback=lambda wanted: _ask("info", wanted),
            expose_value=False,
            help=f"Say more; also by {VARIABLE}=info, or debug.",
        ),
    ] = False,
) -> None:
    """Hold the options that every command has."""


def add_options(command: Any) -> None:
    """Give a command the options `--quiet` and `--verbose`.

    Args:
        command (`TyperCommand`): The command.
    """
    single = typer.Typer(add_completion=False)
    single.command("shared")(_options)
    known = {option for parameter in command.params for option in parameter.opts}
    command.params += [one for one in typer.main.get_command(single).params if not known & set(one.opts)]


def forget() -> None:
    """Forget what an earlier command of this process asked for."""
    _ASKED.set(None)


def verbosity() -> str:
    """Return the level that was asked for: by an option, by `HF_MOTE_VERBOSITY`, or "warning".

    Raises:
        [`UnknownNameError`]: if the variable holds something else.
    """
    asked = _ASKED.get()
    if asked is not None:
        return asked
    given = os.environ.get(VARIABLE, "").strip().lower() or "warning"
    if given not in LEVELS:
        raise UnknownNameError.of(VARIABLE, given, tuple(LEVELS))
    return given


def quiet() -> bool:
    """Return whether nothing but results and errors is to be said."""
    try:
        return verbosity() == "error"
    except UnknownNameError:
        return False


def say(text: str) -> None:
    """Tell, on stderr, what begins."""
    if launched_as()[0] > 0 or quiet():
        return
    Console(stderr=True).print(f"… {visible(text)}", style="dim", markup=False, highlight=False)


@contextmanager
def listening() -> Iterator[None]:
    """Print the package's log records of the level asked for to stderr, and leave logging as it was.

    Raises:
        [`UnknownNameError`]: if `HF_MOTE_VERBOSITY` holds no level.
    """
    level = LEVELS[verbosity()]
    logger = logging.getLogger("hf_mote")
    before = logger.level
    handler = logging.StreamHandler()
    handler.setFormatter(_AsTyped())
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        listen_to_progress(None)
        if _HIDDEN.get():
            _HIDDEN.set(False)
            from transformers.utils.logging import enable_progress_bar

            enable_progress_bar()


def settle_progress() -> None:
    """Hide progress bars where stderr is no terminal, as a log file is none, or where nothing is to be said.

    A log file gets lines in their place. Called once transformers is imported; [`listening`] shows bars again at its
    end.
    """
    from transformers.utils.logging import disable_progress_bar, is_progress_bar_enabled

    if (quiet() or not sys.stderr.isatty()) and is_progress_bar_enabled():
        disable_progress_bar()
        _HIDDEN.set(True)
    if not quiet() and not sys.stderr.isatty():
        listen_to_progress(_say_progress)


def duration(seconds: float) -> str:
    """Return a time in words, with two digits.

    Example:
        ```python
        from hf_mote.commands.verbosity import duration

        assert [duration(s) for s in (0.034, 4.2, 90, 7500)] == ["0.034 s", "4.2 s", "90 s", "2.1 h"]
        ```
    """
    if seconds >= 5400:
        return f"{seconds / 3600:.2g} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _say_progress(what: str, done: int, total: int, left: float) -> None:
    say(f"{what}: {done:,} of {total:,}, about {duration(left)} left")
