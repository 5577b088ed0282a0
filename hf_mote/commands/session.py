"""What every command does around its work: errors as messages, warnings as notes, and how the run came about."""

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

from hf_mote.commands.verbosity import listening, quiet, say
from hf_mote.errors import ConfigError, HFMoTEError, ModelMismatchError, UnsupportedError
from hf_mote.processes import launched_as
from hf_mote.reports.markup import visible
from hf_mote.version import __version__

if TYPE_CHECKING:
    from hf_mote.commands.model import Subject

__all__ = ["NOTHING", "TerminalChat", "command_line", "provenance_of", "reporting", "say", "since_start", "tell"]

# Places that an error names as Python knows them, and what they are on the command line.
_OPTIONS = {
    "ChoiceJudge": "--judge choice",
    "LanguageJudge": "--judge language",
    "LMJudge": "--judge lm",
    "MoTEConfig.stimulate": "--stimulate",
    "MoTEConfig.strength": "--strengths",
    "MoTEConfig.suppress": "--suppress",
    "RefusalJudge": "--judge refusal",
    "RegexJudge": "--judge regex",
    "ServerJudge.base_url": "--judge-url",
    "ServerJudge": "--judge lm",
    "attribute_experts.gain": "--gain",
    "chat_template_kwargs": "--template-arg",
    "ftri.repeats": "--repeats",
    "ftri.run_folder": "--run-folder",
    "evaluate_mote.run_folder": "--run-folder",
    "evaluate_settings.run_folder": "--run-folder",
    "ablate_experts.run_folder": "--run-folder",
    "attribute_experts.run_folder": "--run-folder",
    "optimize_experts.run_folder": "--run-folder",
    "evaluate_sae.run_folder": "--run-folder",
    "top_activations.run_folder": "--run-folder",
    "link_latents.run_folder": "--run-folder",
    "link_latents.latents": "--latent",
    "adapt_to_sae.run_folder": "--run-folder",
    "sae train.run_folder": "--run-folder",
    "OptimizedRanking.complete.run_folder": "--run-folder",
    "ftri.thinking_tokens": "--thinking-tokens",
}
_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
NOTHING = "Nothing was written."
INTERRUPTED = 130  # what a shell says of a command that Ctrl-C ended
_BEGAN: ContextVar[float | None] = ContextVar("began", default=None)


@contextmanager
def reporting(*, shares: bool = False, kept: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn an error of this package into a message and exit code 1, and show warnings without their source line.

    So does a disk that is full. Ctrl-C ends with a word on what was kept, and exit code 130. Under a launcher of
    several processes the first one alone speaks, but for errors.

    Args:
        shares (`bool`, *optional*, defaults to `False`):
            Whether the command shares its work out among several processes; one that does not is refused under them.
        kept (`Callable[[], str]`, *optional*):
            Returns what to say of what was kept, where the command ends before it is done; by default that nothing
            was written.
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
                fix = "Run it in one process; of the commands, ftri alone shares its work out."
                raise UnsupportedError("hf-mote", f"was launched as {processes} processes", expected="one", fix=fix)
            with listening():
                yield
        except HFMoTEError as error:
            who = f"process {number}: " if number > 0 else ""
            log.print(visible(f"{who}{_as_typed(error)}"), style="red", markup=False, highlight=False)
            told = NOTHING if kept is None else kept()
            # Of another run's folder the error has said what to do.
            if told != NOTHING and not isinstance(error, ModelMismatchError):
                log.print(visible(told), style="yellow", markup=False, highlight=False)
            raise typer.Exit(1) from error
        except OSError as error:
            if error.errno not in _FULL:
                raise
            where = error.filename or "the disk of --output, or of the temporary folder"
            told = NOTHING if kept is None else kept()
            text = f"{where}: no space is left. {told} Make room, and run the same command again."
            log.print(visible(text), style="red", markup=False, highlight=False)
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            told = NOTHING if kept is None else kept()
            log.print(visible(f"Stopped. {told}"), style="yellow", markup=False, highlight=False)
            raise typer.Exit(INTERRUPTED) from error
        finally:
            for warning in caught if number == 0 and not quiet() else ():
                log.print(visible(str(warning.message)), style="yellow", markup=False, highlight=False)


def since_start() -> float:
    """Return how many seconds the command has been running; 0 outside of one."""
    began = _BEGAN.get()
    return 0.0 if began is None else time.perf_counter() - began


def _as_typed(error: HFMoTEError) -> str:
    """Return an error's message with the option in the place of what Python calls it."""
    for place, option in _OPTIONS.items():
        rest = error.where.removeprefix(place)
        if error.where.startswith(place) and (not rest or rest[0] in ".["):
            return f"{option}{str(error)[len(error.where) :]}"
    return str(error)


def disable_progress_bar() -> None:
    """Have transformers show no progress bars, as of loading weights."""
    from transformers.utils.logging import disable_progress_bar as disable

    disable()


def tell(text: str) -> None:
    """Print a result; never as markup, since it may hold somebody's text."""
    if launched_as()[0] > 0:
        return
    Console().print(visible(text), markup=False, highlight=False)


def command_line(context: typer.Context) -> str:
    """Return the command as it can be typed again, with what was given and without what was left to its default.

    Args:
        context (`typer.Context`): The running command's.
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
    while group is not None and group.parent is not None:  # of "sae train" the first word
        names.insert(0, group.info_name or "")
        group = group.parent
    return shlex.join(["hf-mote", *names, *arguments, *options])


def provenance_of(context: typer.Context, subject: Subject, seed: int, **more: str) -> dict[str, str]:
    """Return how a run came about, by name.

    Args:
        context (`typer.Context`): The running command's.
        subject (`Subject`): Its model.
        seed (`int`): Its seed.
        **more (`str`): What else matters to it.
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
    """A chat in the terminal; what answers is a subclass's.

    Attributes:
        turns (`list[dict[str, str]]`): What was said, as messages with role and content.
    """

    turns: list[dict[str, str]]

    @property
    def commands(self) -> dict[str, Callable[[str], None]]:
        """What a line that begins with "/" can say, called with the rest of the line."""
        raise NotImplementedError

    def answer(self, turns: list[dict[str, str]]) -> str:
        """Print and return the answer to a conversation.

        Args:
            turns (`list[dict[str, str]]`): Its messages.
        """
        raise NotImplementedError

    def take(self, line: str) -> None:
        """Do what a line says: a command, or a turn of the conversation.

        Args:
            line (`str`): The line.

        Raises:
            [`ConfigError`]: if there is no such command.
        """
        name, _, value = line.strip().partition(" ")
        commands = self.commands
        if name.startswith("/"):
            if name not in commands:
                raise ConfigError(name, "is no command", expected=", ".join([*commands, "/quit"]))
            commands[name](value)
        elif line.strip():
            asked = [*self.turns, {"role": "user", "content": line}]
            # Where no answer comes, the conversation stays as it was.
            self.turns = [*asked, {"role": "assistant", "content": self.answer(asked)}]
