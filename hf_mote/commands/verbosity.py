"""How much a command says: `--quiet`, `--verbose` and `HF_MOTE_VERBOSITY`; progress bars in a terminal alone.

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
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Annotated, Any

import typer
from rich.console import Console

from hf_mote.errors import UnknownNameError
from hf_mote.processes import launched_as
from hf_mote.reports.markup import visible

__all__ = ["LEVELS", "VARIABLE", "add_options", "forget", "listening", "quiet", "say", "settle_progress", "verbosity"]

VARIABLE = "HF_MOTE_VERBOSITY"
LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}

_ASKED: ContextVar[str | None] = ContextVar("verbosity asked for", default=None)
_HIDDEN: ContextVar[bool] = ContextVar("progress bars were hidden", default=False)


# What a record says in Python, and what that is on the command line, where not every command takes it.
_ARGUMENTS = {
    "normalize=True": "--normalize where the command takes it",
    "groups=[...], one key": "--group-field where the command takes it, a field with one key",
}


class _AsTyped(logging.Formatter):
    """Records with options in the place of what Python calls them, and without the name of a method."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        place, colon, rest = text.partition(": ")
        if colon and place.isidentifier() | ("." in place and place.replace(".", "").isidentifier()):
            text = rest[:1].upper() + rest[1:]
        for argument, option in _ARGUMENTS.items():
            text = text.replace(argument, option)
        return text


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
        if _HIDDEN.get():
            _HIDDEN.set(False)
            from transformers.utils.logging import enable_progress_bar

            enable_progress_bar()


def settle_progress() -> None:
    """Hide progress bars where stderr is no terminal, as a log file is none, or where nothing is to be said.

    Called once transformers is imported; [`listening`] shows them again at its end.
    """
    from transformers.utils.logging import disable_progress_bar, is_progress_bar_enabled

    if (quiet() or not sys.stderr.isatty()) and is_progress_bar_enabled():
        disable_progress_bar()
        _HIDDEN.set(True)
