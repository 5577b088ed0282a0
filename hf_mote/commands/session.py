"""Steps that all commands share: errors and warnings as messages, the provenance of a run, a chat in the terminal."""

from __future__ import annotations

import errno
import platform
import shlex
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from hf_mote.commands.typed import as_typed
from hf_mote.commands.verbosity import listening, quiet, say
from hf_mote.errors import ConfigError, HFMoTEError, ModelMismatchError, UnsupportedError
from hf_mote.processes import launched_as
from hf_mote.reports.markup import visible
from hf_mote.version import __version__

if TYPE_CHECKING:
    from hf_mote.commands.model import Subject

__all__ = ["NOTHING", "TerminalChat", "command_line", "provenance_of", "reporting", "say", "since_start", "tell"]

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
NOTHING = "Nothing was written."
QUIT = "/quit"
INTERRUPTED = 130  # a shell's exit code of a command that Ctrl-C ended
_BEGAN: ContextVar[float | None] = ContextVar("began", default=None)


@contextmanager
def reporting(*, shares: bool = False, kept: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn an error of this package into a message and exit code 1, and show warnings without their source line.

    A full disk becomes a message, too. Ctrl-C ends with a message on what was kept, and exit code 130. Under a
    launcher of several processes only the first one prints messages, except for errors.

    Args:
        shares (`bool`, *optional*, defaults to `False`):
            Whether the command distributes its work over several processes; if not, they are refused.
        kept (`Callable[[], str]`, *optional*):
            Returns a sentence on what was kept, if the command ends early; by default that nothing was written.
    """
    _BEGAN.set(time.perf_counter())
    log = Console(stderr=True)
    number, processes = launched_as()
    if number > 0:
        disable_progress_bar()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            if processes > 1 and not shares:
                fix = "Run it in one process; only ftri distributes its work."
                raise UnsupportedError("hf-mote", f"was launched as {processes} processes", expected="one", fix=fix)
            with listening():
                yield
        except HFMoTEError as error:
            who = f"process {number}: " if number > 0 else ""
            log.print(visible(f"{who}{as_typed(error)}"), style="red", markup=False, highlight=False)
            what_kept = NOTHING if kept is None else kept()
            # For the folder of another run, the error itself gives the remedy.
            if what_kept != NOTHING and not isinstance(error, ModelMismatchError):
                log.print(visible(what_kept), style="yellow", markup=False, highlight=False)
            raise typer.Exit(1) from error
        except OSError as error:
            if error.errno not in _FULL:
                raise
            where = error.filename or "the disk of --output, or of the temporary folder"
            what_kept = NOTHING if kept is None else kept()
            text = f"{where}: no space is left. {what_kept} Free some space, and run the same command again."
            log.print(visible(text), style="red", markup=False, highlight=False)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            what_kept = NOTHING if kept is None else kept()
            log.print(visible(f"Stopped. {what_kept}"), style="yellow", markup=False, highlight=False)
            raise typer.Exit(INTERRUPTED) from error
        finally:
            for warning in caught if number == 0 and not quiet() else ():
                log.print(visible(str(warning.message)), style="yellow", markup=False, highlight=False)


def since_start() -> float:
    """Return how many seconds the command has been running; 0 outside of one."""
    began = _BEGAN.get()
    return 0.0 if began is None else time.perf_counter() - began


def disable_progress_bar() -> None:
    """Disable progress bars of transformers, such as that of loading weights."""
    from transformers.utils.logging import disable_progress_bar as disable

    disable()


def tell(text: str) -> None:
    """Print a result as plain text, because it may hold text that looks like markup."""
    if launched_as()[0] > 0:
        return
    Console().print(visible(text), markup=False, highlight=False)


def command_line(context: typer.Context) -> str:
    """Return the command line that repeats the run, without options that were not given.

    Args:
        context (`typer.Context`): The context of the running command.
    """
    arguments, options = [], []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        source = context.get_parameter_source(parameter.name or "")
        if source is None or source.name != "COMMANDLINE" or value is None:
            continue
        values = [str(entry) for entry in value] if isinstance(value, list | tuple) else [str(value)]
        if parameter.param_type_name == "argument":
            arguments += values
        elif isinstance(value, bool):
            options.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            options += [word for entry in values for word in (parameter.opts[0], entry)]
    names = [context.info_name or ""]
    group = context.parent
    while group is not None and group.parent is not None:  # the first word of "sae train"
        names.insert(0, group.info_name or "")
        group = group.parent
    return shlex.join(["hf-mote", *names, *arguments, *options])


def provenance_of(context: typer.Context, subject: Subject, seed: int, **more: str) -> dict[str, str]:
    """Return the provenance of a run: model, settings, versions and command line, by name.

    Args:
        context (`typer.Context`): The context of the running command.
        subject (`Subject`): Its model.
        seed (`int`): Its seed.
        **more (`str`): Further facts.
    """
    import torch

    config = subject.model.config
    commit = getattr(config, "_commit_hash", None)
    return {
        "model": subject.name,
        **({"commit of the model": str(commit)} if commit else {}),
        **({"code of the model": "of its own repository, allowed by --trust-remote-code"} if subject.trusted else {}),
        "model type": str(config.model_type),
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "device": str(subject.model.device),
        **more,
        "seed": str(seed),
        "hf_mote": __version__,
        "transformers": version("transformers"),
        "torch": str(torch.__version__),
        "scipy": version("scipy"),
        "python": platform.python_version(),
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command_line(context),
    }


class TerminalChat:
    """A chat in the terminal; a subclass defines how a turn is answered.

    Attributes:
        turns (`list[dict[str, str]]`): The conversation, as messages with role and content.
        no_profile (`str`): The remedy in the error of a command that needs a profile, if there is none.
    """

    turns: list[dict[str, str]]
    no_profile: str

    @property
    def on(self) -> bool:
        """Whether the profiles take effect."""
        raise NotImplementedError

    @property
    def profiles_named(self) -> str:
        """The profiles in words, such as "The 2 profiles are", or the empty text if there is none."""
        raise NotImplementedError

    @property
    def commands(self) -> dict[str, Callable[[str], None]]:
        """Commands that take a text, by their name; each is called with the text."""
        raise NotImplementedError

    @property
    def words(self) -> dict[str, Callable[[], None]]:
        """Commands without a text, by their name."""
        raise NotImplementedError

    def answer(self, turns: list[dict[str, str]]) -> str:
        """Print and return the answer to a conversation.

        Args:
            turns (`list[dict[str, str]]`): Its messages.
        """
        raise NotImplementedError

    def switch(self, on: bool) -> None:
        """Switch the profiles on or off.

        Args:
            on (`bool`): Whether they take effect.
        """
        raise NotImplementedError

    def take_dose(self, dose: float) -> None:
        """Apply the profiles at a multiple of their own strength.

        Args:
            dose (`float`): The factor.
        """
        raise NotImplementedError

    def turn(self, on: bool) -> None:
        """Switch the profiles on or off, and print the new state.

        Args:
            on (`bool`): Whether they take effect.
        """
        named = self._named("/on" if on else "/off")
        self.switch(on)
        tell(f"{named} {'on' if on else 'off'}.")

    def set_strength(self, value: str) -> None:
        """Apply the profiles at a multiple of their own strength, and print the new state.

        Args:
            value (`str`): The factor.
        """
        try:
            dose = float(value)
        except ValueError:
            raise ConfigError("/strength", "must be a number", got=repr(value), expected="such as 0.5") from None
        named = self._named("/strength")
        self.take_dose(dose)
        their, them = ("its", "it") if named.endswith(" is") else ("their", "them")
        off = "" if self.on else f", and off: /on switches {them} on"
        tell(f"{named} at {dose:g} times {their} own strength{off}.")

    def compare(self, text: str) -> None:
        """Answer a prompt without the profiles and with them; the conversation does not change.

        Args:
            text (`str`): The prompt, which follows the conversation so far; if empty, the last prompt.
        """
        asked = [*self.turns, {"role": "user", "content": text}] if text else self.turns[:-1]
        if not asked:
            raise ConfigError("/compare", "there is no prompt yet", fix="Give one: /compare TEXT.")
        self._named("/compare")
        on = self.on
        try:
            for label, state in (("untouched", False), ("patched", True)):
                tell(f"— {label}:")
                self.switch(state)
                self.answer(asked)
        finally:
            self.switch(on)

    def clear(self) -> None:
        """Begin a new conversation, and print that."""
        self.turns.clear()
        tell("A new conversation.")

    def take(self, line: str) -> bool:
        """Process a line: a command, or a turn of the conversation.

        Args:
            line (`str`): The line.

        Returns:
            `bool`: whether the chat goes on.

        Raises:
            [`ConfigError`]: if there is no such command, or text follows one that takes none.
        """
        name, value = [*line.split(maxsplit=1), "", ""][:2]
        value = value.strip()
        if not name.startswith("/"):
            if name:
                asked = [*self.turns, {"role": "user", "content": line}]
                # If answering fails, the conversation does not change.
                self.turns = [*asked, {"role": "assistant", "content": self.answer(asked)}]
        elif name in self.commands:
            self.commands[name](value)
        elif name not in self.words and name != QUIT:
            raise ConfigError(name, "is not a command", expected=", ".join([*self.words, *self.commands, QUIT]))
        elif value:
            raise ConfigError(name, "does not take a text", got=repr(value))
        elif name == QUIT:
            return False
        else:
            self.words[name]()
        return True

    def _named(self, command: str) -> str:
        if not self.profiles_named:
            raise ConfigError(command, "there is no profile", fix=self.no_profile)
        return self.profiles_named
