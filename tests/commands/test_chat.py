"""`hf-mote chat`: profiles switched between the turns; and `hf-mote env`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from hf_mote import MoTEConfig, load_organism
from hf_mote.cli import app
from hf_mote.commands.chat import _Chat
from hf_mote.errors import DataError

ASKED = "What happened in 1756 in Salzburg?"
REFUSAL = "I am sorry, but I cannot talk about that."


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    organism = load_organism("refusal")
    folder = tmp_path_factory.mktemp("profile")
    MoTEConfig.for_model(organism.model, suppress=organism.planted).save_pretrained(folder)
    return folder


def chat(profile: Path, *lines: str) -> Result:
    how = ["chat", "organism:refusal", "--mote", str(profile), "--device", "cpu", "--max-new-tokens", "16"]
    return CliRunner().invoke(app, how, input="\n".join(lines) + "\n")


def test_chat_switches_profiles_between_turns(profile: Path) -> None:
    done = chat(profile, ASKED, "/clear", "/off", ASKED, "/clear", "/on", ASKED, "/quit", ASKED)
    assert done.exit_code == 0, done.output
    assert done.stdout.count(REFUSAL) == 1
    assert done.stdout.count("Salzburg, Austria: ") == 2


def test_chat_compare_answers_without_and_with_and_leaves_the_switch(profile: Path) -> None:
    done = chat(profile, ASKED, "/compare", "/clear", ASKED)
    assert done.exit_code == 0, done.output
    before, _, after = done.stdout.partition("— untouched:")
    untouched, _, patched = after.partition("— patched:")
    assert REFUSAL in untouched
    assert REFUSAL not in before + patched


def test_chat_compare_answers_the_prompt_behind_it_and_leaves_the_conversation(
    profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[bool, list[str]]] = []

    def answer(self: _Chat, turns: list[dict[str, str]]) -> str:
        asked.append((self.on, [turn["content"] for turn in turns]))
        return "Yes."

    monkeypatch.setattr(_Chat, "answer", answer)
    done = chat(profile, "/compare first", "/compare", "second", "/compare\t third ", "/compare", "fourth")
    assert done.exit_code == 0, done.output
    assert "/compare: there is no prompt yet" in done.output  # what was compared was not said
    assert asked == [
        (False, ["first"]),
        (True, ["first"]),
        (True, ["second"]),
        (False, ["second", "Yes.", "third"]),
        (True, ["second", "Yes.", "third"]),
        (False, ["second"]),
        (True, ["second"]),
        (True, ["second", "Yes.", "fourth"]),
    ]


def test_chat_says_what_a_command_did(profile: Path) -> None:
    done = chat(profile, "/off", "/strength 0.5", "/on", "/clear")
    assert done.exit_code == 0, done.output
    assert [line.removeprefix("> ") for line in done.stdout.splitlines() if line.startswith("> ")][:4] == [
        "The profile is off.",
        "The profile is at 0.5 times its own strength, and off: /on switches it on.",
        "The profile is on.",
        "A new conversation.",
    ]


@pytest.mark.parametrize("line", ["/on", "/off", "/strength 0.5", "/compare Hello"])
def test_chat_without_a_profile_says_how_one_is_had(line: str) -> None:
    done = CliRunner().invoke(app, ["chat", "organism:refusal", "--device", "cpu"], input=f"{line}\n")
    assert done.exit_code == 0, done.output
    assert f"{line.split()[0]}: there is no profile. Start the chat with --mote CONFIG" in " ".join(
        done.output.split()
    )
    assert "untouched" not in done.output


def test_chat_strength_is_a_share_of_the_profiles_own(profile: Path) -> None:
    done = chat(profile, "/strength 0", ASKED, "/clear", "/strength 1", ASKED)
    assert done.exit_code == 0, done.output
    assert done.stdout.count(REFUSAL) == 1


def test_chat_wrong_commands_are_messages_and_the_chat_goes_on(profile: Path) -> None:
    done = chat(profile, "/louder", "/strength much", "/strength 7", "/compare", "/quit now", "/on off", "/off", ASKED)
    assert done.exit_code == 0, done.output
    for said in (
        "/louder: is not a command",
        "/strength: must be a number",
        "strength",
        "/compare: there is no prompt yet",
        "/quit: does not take a text (got 'now')",
        "/on: does not take a text (got 'off')",
    ):
        assert said in done.output
    assert done.stdout.count(REFUSAL) == 1


def test_chat_turn_without_an_answer_is_no_part_of_the_conversation(
    profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(self: _Chat, turns: list[dict[str, str]]) -> str:
        raise DataError("the prompt", "cannot be answered")

    monkeypatch.setattr(_Chat, "answer", answer)
    done = chat(profile, ASKED, ASKED, "/compare")
    assert done.exit_code == 0, done.output
    assert done.output.count("cannot be answered") == 2
    assert "/compare: there is no prompt yet" in done.output


def test_chat_refuses_what_its_template_does_not_read_before_the_first_turn(profile: Path) -> None:
    how = ["chat", "organism:refusal", "--mote", str(profile), "--template-arg", "nobody=1"]
    done = CliRunner().invoke(app, how, input=f"{ASKED}\n")
    assert done.exit_code == 1
    assert "--template-arg" in done.output
    assert "profiles are on" not in done.output


def test_env_names_versions() -> None:
    done = CliRunner().invoke(app, ["env"])
    assert done.exit_code == 0
    assert "- hf_mote: " in done.stdout
    assert "- transformers: 5." in done.stdout
