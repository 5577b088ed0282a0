"""`hf-mote chat --server URL`: talk to a model that a server has, under a profile of its own or one lent to it."""

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
    "/strength 0.5: its dose; /compare TEXT: a prompt answered without and with it, without TEXT the last one; "
    "/clear: a new conversation; /quit, or the end of the input."
)


class ServedChat(TerminalChat):
    """A conversation with a server. What it lends to the server, it takes back: use it in a `with` block.

    Args:
        engine (`ServerEngine`): The server.
        config (`MoTEConfig`, *optional*): A profile that the server does not have.
        profile (`str`, *optional*): The name of one that it has.
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
        self._lent: str | None = None

    def __enter__(self) -> ServedChat:
        if self.config is not None:
            self._lend(self.config)
        elif self.profile is not None:
            self.choose(self.profile)
        return self

    def __exit__(self, *_: object) -> None:
        self._take_back()

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
        """What a line that begins with "/" can say with a text behind it, called with that."""
        return {"/profile": self._chosen, "/strength": self.set_strength, "/compare": self.compare}

    @property
    def words(self) -> dict[str, Callable[[], None]]:
        """What a line that begins with "/" can say with nothing behind it."""
        return {
            "/off": lambda: self.turn(False),
            "/on": lambda: self.turn(True),
            "/profiles": lambda: tell(", ".join(sorted(self.engine.profiles)) or "The server has none."),
            "/clear": self.clear,
            "/help": lambda: tell(SERVED_HELP),
        }

    def switch(self, on: bool) -> None:
        """Let the profile take effect, or not.

        Args:
            on (`bool`): Whether.
        """
        self._on = on

    def choose(self, name: str) -> None:
        """Take a profile of the server.

        Args:
            name (`str`): Its name.
        """
        known = self.engine.profiles
        if name not in known:
            raise UnknownNameError.of("/profile", name, known)
        self._take_back()
        self.config, self.profile, self._on = known[name], name, True

    def take_dose(self, dose: float) -> None:
        """Lend the server the profile at a share of its own strength.

        Args:
            dose (`float`): The share.
        """
        if self.config is not None:
            self._lend(dataclasses.replace(self.config, strength=self.config.strength * dose))

    def answer(self, turns: list[dict[str, str]]) -> str:
        """Return the answer to the last turn, shown as it comes.

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

    def _lend(self, config: MoTEConfig) -> None:
        """Have the server know a config under a name of its own; if it refuses, the earlier profile stays."""
        name = f"chat-{uuid.uuid4().hex}"
        before, self._lent = self._lent, name
        try:
            self.engine.load(name, config)
        except BaseException:
            self._take_back()
            self._lent = before
            raise
        self.profile = name
        if before is not None:
            self._forget(before)

    def _take_back(self) -> None:
        lent, self._lent = self._lent, None
        if lent is not None:
            self._forget(lent)

    def _forget(self, name: str) -> None:
        try:
            self.engine.unload(name)
        except HFMoTEError as error:
            if name == self.profile:  # it was there, so that it may stay behind
                text = f"The server was not told to forget the profile {name}: {error}"
                Console(stderr=True).print(visible(text), style="yellow", markup=False, highlight=False)
