"""`hf-mote chat --server URL`: chat with a model on a server, under one of its profiles or a further one."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from hf_mote.commands.session import TerminalChat, tell
from hf_mote.errors import HFMoTEError, UnknownNameError
from hf_mote.reports.markup import visible

if TYPE_CHECKING:
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.serving.client import ServerEngine

__all__ = ["SERVED_HELP", "ServedChat"]

SERVED_HELP = (
    "/off, /on: without and with the profile; /profiles: those of the server; /profile NAME: another one; "
    "/strength 0.5: a factor on its strength; /compare TEXT: answer a prompt without and with it, by default the last "
    "one; /clear: a new conversation; /quit, or the end of the input."
)


class ServedChat(TerminalChat):
    """A chat with a model on a server. It loads profiles there and unloads them: use it in a `with` block.

    Args:
        engine (`ServerEngine`): The server.
        config (`MoTEConfig`, *optional*): A profile that the server does not have.
        profile (`str`, *optional*): The name of a profile that the server has.
        system_prompt (`str`, *optional*): First message of the conversation.
        settings (`dict`): Further arguments of [`ServerEngine.chat`].
    """

    no_profile = "Choose one of the server's: /profile NAME."

    def __init__(
        self,
        engine: ServerEngine,
        config: MoTEConfig | None,
        profile: str | None,
        system_prompt: str | None,
        settings: dict[str, Any],
    ) -> None:
        self.engine = engine
        self.config = config
        self.profile = profile
        self.system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        self.settings = settings
        self.turns = []
        self._on = True
        self._loaded: str | None = None

    def __enter__(self) -> ServedChat:
        if self.config is not None:
            self._load(self.config)
        elif self.profile is not None:
            self.choose(self.profile)
        return self

    def __exit__(self, *_: object) -> None:
        self._unload()

    @property
    def on(self) -> bool:
        """Whether the profile takes effect."""
        return self._on

    @property
    def profiles_named(self) -> str:
        """The profile in words."""
        return "" if self.profile is None else "The profile is"

    @property
    def commands(self) -> dict[str, Callable[[str], None]]:
        """Commands that take a text, by their name; each is called with the text."""
        return {"/profile": self._chosen, "/strength": self.set_strength, "/compare": self.compare}

    @property
    def words(self) -> dict[str, Callable[[], None]]:
        """Commands without a text, by their name."""
        return {
            "/off": lambda: self.turn(False),
            "/on": lambda: self.turn(True),
            "/profiles": lambda: tell(", ".join(sorted(self.engine.profiles)) or "The server has none."),
            "/clear": self.clear,
            "/help": lambda: tell(SERVED_HELP),
        }

    def switch(self, on: bool) -> None:
        """Switch the profile on or off.

        Args:
            on (`bool`): Whether it takes effect.
        """
        self._on = on

    def choose(self, name: str) -> None:
        """Choose a profile of the server.

        Args:
            name (`str`): Its name.
        """
        known = self.engine.profiles
        if name not in known:
            raise UnknownNameError.of("/profile", name, known)
        self._unload()
        self.config, self.profile, self._on = known[name], name, True

    def take_dose(self, dose: float) -> None:
        """Load the profile into the server at a multiple of its own strength.

        Args:
            dose (`float`): The factor.
        """
        if self.config is not None:
            self._load(dataclasses.replace(self.config, strength=self.config.strength * dose))

    def answer(self, turns: list[dict[str, str]]) -> str:
        """Print the answer to the last turn as it comes, and return it.

        Args:
            turns (`list[dict[str, str]]`): The conversation.
        """
        profile = self.profile if self.on else None
        try:
            return self.engine.chat(
                [*self.system, *turns],
                profile=profile,
                on_text=lambda text: typer.echo(visible(text), nl=False),
                **self.settings,
            )
        finally:
            typer.echo()

    def _chosen(self, name: str) -> None:
        self.choose(name)
        tell(f"The profile {name} is on.")

    def _load(self, config: MoTEConfig) -> None:
        """Load a config into the server under a new name; if the server refuses it, the earlier profile stays."""
        name = f"chat-{uuid.uuid4().hex}"
        before, self._loaded = self._loaded, name
        try:
            self.engine.load(name, config)
        except BaseException:
            self._unload()
            self._loaded = before
            raise
        self.profile = name
        if before is not None:
            self._unload_profile(before)

    def _unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._unload_profile(loaded)

    def _unload_profile(self, name: str) -> None:
        try:
            self.engine.unload(name)
        except HFMoTEError as error:
            if name == self.profile:  # it was loaded, and may still be
                text = f"The profile {name} was not unloaded from the server: {error}"
                Console(stderr=True).print(visible(text), style="yellow", markup=False, highlight=False)
