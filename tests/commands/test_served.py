"""`--server` on the command line: what is refused by name before any server is asked, and one that is not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_mote.cli import app
from hf_mote.commands.served_chat import ServedChat
from hf_mote.errors import ConfigError, UnknownNameError, UnsupportedError
from hf_mote.mote.config import MoTEConfig

NOBODY = ["--server", "http://127.0.0.1:9"]
PROMPTS = "organism:refusal/heldout/sensitive"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "organism:refusal", PROMPTS, "--profile", "ban"], "--profile: names a profile of a server"),
        (["evaluate", "organism:refusal", "CONFIG"], "PROMPTS: is missing"),
        (["evaluate", "organism:refusal", "C", PROMPTS, "--profile", "ban", *NOBODY], "replaces CONFIG"),
        (["evaluate", "organism:refusal", PROMPTS, "--profile", "ban", "--dry-run", *NOBODY], "--dry-run: is for a"),
        (["evaluate", "organism:refusal", PROMPTS, "--profile", "ban", "--sae", "S", *NOBODY], "--sae: is for a"),
        (["evaluate", "organism:refusal", PROMPTS, "--profile", "ban", *NOBODY], "no answer"),
        (["ftri", "organism:refusal", PROMPTS, *NOBODY], "no answer"),
        (["chat"], "MODEL: is missing"),
        (["chat", "organism:refusal", "--profile", "ban"], "--profile: names a profile of a server"),
        (["chat", "organism:refusal", *NOBODY], "MODEL: is for a model that is loaded here"),
        (["chat", "--device", "cpu", *NOBODY], "--device: is for a model that is loaded here"),
        (["chat", "--steer", "S", *NOBODY], "--steer: is for a model that is loaded here"),
        (["chat", "--mote", "a", "--profile", "ban", *NOBODY], "a request to a server follows one profile"),
        (["chat", *NOBODY], "no answer"),
        (["chat", "--server", "127.0.0.1:9"], "must be the address of a server"),
    ],
)
def test_commands_refuse_what_a_server_cannot_do(tmp_path: Path, words: list[str], said: str) -> None:
    more = [] if words[0] == "chat" else ["--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, *more])
    assert done.exit_code == 1
    assert said in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


class Engine:
    """What a chat asks of a server, of one that repeats the profile and the dose it answers under."""

    def __init__(self) -> None:
        self.profiles = {"ban": MoTEConfig(suppress=[[1, 2]])}
        self.full = False

    def load(self, name: str, config: MoTEConfig) -> None:
        if self.full:
            raise UnsupportedError("profile", "as many profiles as it may")
        self.profiles[name] = config

    def unload(self, name: str) -> None:
        if name not in self.profiles:
            raise UnknownNameError.of("profile", name, self.profiles)
        del self.profiles[name]

    def chat(self, turns: list[dict[str, str]], *, profile: str | None, on_text: Callable[[str], None]) -> str:
        under = "nothing" if profile is None else f"{self.profiles[profile].strength:g}"
        text = f"{len(turns)} turns under {under}"
        on_text(text[:3])
        on_text(text[3:])
        return text


def test_chat_lends_the_server_one_profile_at_a_time_and_takes_it_back(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine()
    with ServedChat(engine, MoTEConfig(suppress=[[1, 3]]), None, "Be brief.", {}) as chat:  # type: ignore[arg-type]
        chat.take("hello")
        chat.take("/strength 0.5")
        chat.take("again")
        assert len(engine.profiles) == 2
        engine.full = True
        with pytest.raises(UnsupportedError, match="as many"):
            chat.take("/strength 0.25")
        chat.take("and again")  # the dose of before
        chat.take("/compare")
        chat.take("/profile ban")
        assert set(engine.profiles) == {"ban"}
        chat.take("/off")
        chat.take("last")
        with pytest.raises(ConfigError, match="must be a number"):
            chat.take("/strength much")
        assert not chat.take("/quit")
    assert set(engine.profiles) == {"ban"}
    said = capsys.readouterr().out.splitlines()
    for line in ("The profile is at 0.5 times its own strength.", "The profile ban is on.", "The profile is off."):
        assert said.count(line) == 1
    turns = [line for line in said if "turns under" in line]
    assert turns == [
        "2 turns under 1",
        "4 turns under 0.5",
        "6 turns under 0.5",
        "6 turns under nothing",
        "6 turns under 0.5",
        "8 turns under nothing",
    ]
