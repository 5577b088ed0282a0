"""The commands of the README run as they stand there, on fewer prompts."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_runs import run

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
_, _, SECTION = README.partition("## From the command line\n")
BLOCK = SECTION.partition("```bash\n")[2].partition("```")[0]
COMMANDS = [shlex.split(line) for line in BLOCK.replace("\\\n", " ").splitlines()]


def test_readme_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [words[:2] for words in COMMANDS] == [
        ["hf-mote", name] for name in ("ftri", "attribute", "sweep", "evaluate")
    ]
    for _, *words in COMMANDS:
        words[words.index("--limit") + 1] = "4"
        if "--experts" in words:
            words[words.index("--experts") + 1] = "1,4"
        fewer = ["--controls", "2", "--max-new-tokens", "12"] if words[0] in ("sweep", "evaluate") else []
        result = run(*words, *fewer)
        assert result.exit_code == 0, result.output
        assert (tmp_path / words[words.index("--output") + 1] / "report.html").is_file()


def test_readme_opens_with_the_two_blocks_that_the_check_runs() -> None:
    blocks = re.findall(r"^```bash *\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert "hf-mote demo" in blocks[0]
    assert "pytest" in blocks[1]
    assert BLOCK in blocks[2:]
