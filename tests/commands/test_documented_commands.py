"""The commands of the documentation: those of the guide run, on fewer prompts; all others are parsed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from command_runs import run
from documents import DOCUMENTS, ROOT
from typer.main import get_command

from hf_mote.cli import app

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs" / "guides" / "command_line.md").read_text(encoding="utf-8")
_BASH = re.compile(r"^```bash *\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands_of(text: str) -> list[list[str]]:
    """Return the words of every `hf-mote` line in the bash blocks of a page."""
    joined = "\n".join(_BASH.findall(text)).replace("\\\n", " ")
    lines = (part.strip() for line in joined.splitlines() for part in line.split("&&"))
    return [shlex.split(line, comments=True) for line in lines if line.startswith("hf-mote ")]


OTHERS = {
    f"{path.relative_to(ROOT)}: {' '.join(words)}": words
    for path in DOCUMENTS
    for words in commands_of(path.read_text(encoding="utf-8"))
}


def test_commands_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = commands_of(GUIDE)[:4]
    assert [words[1] for words in commands] == ["ftri", "attribute", "sweep", "evaluate"]
    for _, *words in commands:
        words[words.index("--limit") + 1] = "4"
        if "--experts" in words:
            words[words.index("--experts") + 1] = "1,4"
        fewer = ["--controls", "2", "--max-new-tokens", "12"] if words[0] in ("sweep", "evaluate") else []
        result = run(*words, *fewer)
        assert result.exit_code == 0, result.output
        assert (tmp_path / words[words.index("--output") + 1] / "report.html").is_file()


def test_sae_commands_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train, steer = [words for words in commands_of(README) if words[1] == "sae"]
    assert (train[2], steer[2]) == ("train", "steer")
    train[train.index("--tokens") + 1] = "4000"
    made = run(*train[1:], "--evaluation-tokens", "500")
    assert made.exit_code == 0, made.output
    assert (tmp_path / steer[4] / "model.safetensors").is_file()
    result = run(*steer[1:])
    assert result.exit_code == 0, result.output
    assert "1 of 1 answers changed." in result.output


@pytest.mark.parametrize("words", OTHERS.values(), ids=list(OTHERS))
def test_documented_command_is_one_that_the_command_line_takes(words: list[str]) -> None:
    group: Any = get_command(app)
    _, name, *arguments = words
    command = group.commands.get(name)
    if name == "sae":
        name, *arguments = arguments
        command = group.commands["sae"].commands.get(name)
    assert command is not None, name
    if "--help" not in arguments:
        command.make_context(name, arguments)  # raises for an option that there is not, or an argument that is missing


def test_readme_opens_with_the_two_blocks_that_the_check_runs() -> None:
    blocks = _BASH.findall(README)
    assert "hf-mote demo" in blocks[0]
    assert "pytest" in blocks[1]
