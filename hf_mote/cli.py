"""The `hf-mote` command, with the table of its commands.

A command's module is imported only to run the command or to print its help. Such a module imports torch, transformers
and what depends on them inside its functions, so that `--help` and wrong arguments are answered fast;
`tests/test_lazy.py` checks it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from hf_mote.commands.typed import running
from hf_mote.commands.verbosity import add_options, forget
from hf_mote.version import __version__

__all__ = ["COMMANDS", "SAE_COMMANDS", "app", "function_at"]

# Name of a command -> module:function. A new command is its file in commands/ and one line here.
COMMANDS = {
    "demo": "hf_mote.commands.demo:demo",
    "init": "hf_mote.commands.init:init_command",
    "find": "hf_mote.commands.find:find_command",
    "ftri": "hf_mote.commands.imaging:ftri_command",
    "attribute": "hf_mote.commands.attribution:attribute_command",
    "routes": "hf_mote.commands.routes:routes_command",
    "sweep": "hf_mote.commands.sweep:sweep_command",
    "evaluate": "hf_mote.commands.evaluation.command:evaluate_command",
    "grid": "hf_mote.commands.grid:grid_command",
    "chat": "hf_mote.commands.chat:chat_command",
    "check": "hf_mote.commands.check:check_command",
    "bake": "hf_mote.commands.bake:bake_command",
    "serve": "hf_mote.commands.serve:serve_command",
    "configs": "hf_mote.commands.configs:configs_command",
    "validate": "hf_mote.commands.validate:validate_command",
    "push": "hf_mote.commands.push:push_command",
    "families": "hf_mote.commands.families:families",
    "organisms": "hf_mote.commands.organisms:organisms",
    "env": "hf_mote.commands.env:env_command",
}
SAE_COMMANDS = {
    "train": "hf_mote.commands.sae.train:train_command",
    "evaluate": "hf_mote.commands.sae.evaluate:evaluate_command",
    "adapt": "hf_mote.commands.sae.adapt:adapt_command",
    "steer": "hf_mote.commands.sae.steer:steer_command",
    "top-tokens": "hf_mote.commands.sae.top_tokens:top_tokens_command",
    "experts": "hf_mote.commands.sae.experts:experts_command",
    "convert": "hf_mote.commands.sae.convert:convert",
    "formats": "hf_mote.commands.sae.formats:formats",
}
FORWARDING = {"serve"}  # commands that pass unknown options on, in `context.args`


def function_at(place: str) -> Callable[..., Any]:
    """Return the function at `module:function`.

    Args:
        place (`str`): A value of [`COMMANDS`] or [`SAE_COMMANDS`].
    """
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


class _Command(TyperCommand):
    """A command whose errors name its options."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        with running(ctx):
            return super().invoke(ctx)


class _Commands(MutableMapping[str, Any]):
    """The commands of a group by name, each built from its function on first use."""

    def __init__(self, places: Mapping[str, str], built: Mapping[str, Any]) -> None:
        self._places, self._built = dict(places), dict(built)

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            forwards = {"allow_extra_args": True, "ignore_unknown_options": True} if name in FORWARDING else None
            single.command(name, cls=_Command, context_settings=forwards)(function_at(self._places[name]))
            self._built[name] = get_command(single)
            if name not in FORWARDING:
                add_options(self._built[name])
        return self._built[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        raise TypeError("commands cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._places, *self._built]))

    def __len__(self) -> int:
        return len(dict.fromkeys([*self._places, *self._built]))


class _Group(TyperGroup):
    """A group whose commands are listed in a table."""

    places: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _Commands(self.places, self.commands)


class _Main(_Group):
    places = COMMANDS


class _SAE(_Group):
    places = SAE_COMMANDS


app = typer.Typer(
    name="hf-mote",
    cls=_Main,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Commands take --help, --quiet and --verbose. hf-mote --install-completion adds shell completion.",
)
sae_app = typer.Typer(cls=_SAE, no_args_is_help=True)
app.add_typer(sae_app, name="sae")


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the experts behind a behaviour in a mixture-of-experts model, and tune them at inference."""
    forget()


@sae_app.callback()
def sae() -> None:
    """Sparse autoencoders."""
