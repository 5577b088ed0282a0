"""Which messages are shown: `--quiet`, `--verbose`, `HF_MOTE_VERBOSITY`. Progress: bars in a terminal, lines in a log.

| level | results and errors | steps | warnings | notes | details |
| --- | --- | --- | --- | --- | --- |
| error, `--quiet` | yes | | | | |
| warning, the default | yes | yes | yes | | |
| info, `--verbose` | yes | yes | yes | yes | |
| debug | yes | yes | yes | yes | yes |

`TRANSFORMERS_VERBOSITY` controls the messages of transformers.
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

_REQUESTED: ContextVar[str | None] = ContextVar("requested verbosity", default=None)
_HIDDEN: ContextVar[bool] = ContextVar("progress bars were hidden", default=False)


# Advice of log records in Python, and the same with an option, for commands that take it; for others it is left out.
_ADVICE = {
    "Divide by it: normalize=True.": "Divide by it: --normalize.",
    "Give groups=[...], one key for each prompt, such as its subject.": (
        "Give --group-field, a field with one key for each prompt, such as its subject."
    ),
}


class _AsTyped(logging.Formatter):
    """Formats records with the options of the command instead of Python's arguments, and without a method's name."""

    def format(self, record: logging.LogRecord) -> str:
        text = without_method(record.getMessage())
        for in_python, on_command_line in _ADVICE.items():
            (option,) = re.findall(r"--[a-z-]*[a-z]", on_command_line)
            text = text.replace(in_python, on_command_line if takes(option) else "")
        return text.rstrip()


def _request(level: str, value: bool) -> None:
    if value:
        _REQUESTED.set(level)


def _options(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            callback=lambda value: _request("error", value),
            expose_value=False,
            help="Print only results and errors.",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            callback=lambda value: _request("info", value),
            expose_value=False,
            help=f"Print more; also by {VARIABLE}=info, or debug.",
        ),
    ] = False,
) -> None:
    """Declare the options that every command has."""


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
    """Reset the level that an earlier command of this process requested."""
    _REQUESTED.set(None)


def verbosity() -> str:
    """Return the requested level: by an option, by `HF_MOTE_VERBOSITY`, or "warning".

    Raises:
        [`UnknownNameError`]: if the variable holds something else.
    """
    requested = _REQUESTED.get()
    if requested is not None:
        return requested
    given = os.environ.get(VARIABLE, "").strip().lower() or "warning"
    if given not in LEVELS:
        raise UnknownNameError.of(VARIABLE, given, tuple(LEVELS))
    return given


def quiet() -> bool:
    """Return whether only results and errors are printed."""
    try:
        return verbosity() == "error"
    except UnknownNameError:
        return False


def say(text: str) -> None:
    """Print on stderr which step begins."""
    if launched_as()[0] > 0 or quiet():
        return
    Console(stderr=True).print(f"… {visible(text)}", style="dim", markup=False, highlight=False)


@contextmanager
def listening() -> Iterator[None]:
    """Print the package's log records of the requested level to stderr, and restore logging afterwards.

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
    """Hide progress bars if stderr is not a terminal, such as a log file, or if only results are printed.

    A log file gets lines instead. Called after transformers is imported; [`listening`] restores bars at its end.
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
