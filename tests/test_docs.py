"""Runs the documentation: the python blocks of README.md, of the pages below docs/, and of every docstring.

Each runs in a namespace and a working directory of its own, offline, with warnings as errors. A block right after an
HTML comment `<!-- not run: reason -->` is left out, and only a few may be.
"""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from documents import DOCUMENTS, ROOT

import hf_mote

PACKAGE = Path(hf_mote.__file__).parent
MOST_NOT_RUN = 8

_BLOCK = re.compile(r"^(?P<indent> *)```(?:python|py)[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: \S.*?-->\s*\Z", re.DOTALL)
_EXAMPLE = re.compile(r"^Examples?:\s*$", re.MULTILINE)


class Block(NamedTuple):
    """A piece of documented code: where it stands, its text, whether it is to be run."""

    place: str
    code: str
    runs: bool


def blocks_of(text: str, place: str) -> list[Block]:
    """Return the python blocks of a Markdown text, `place` completed by the line."""
    return [
        Block(
            f"{place}:{text.count(chr(10), 0, match.start()) + 1}",
            textwrap.dedent(match["code"]),
            _NOT_RUN.search(text, 0, match.start()) is None,
        )
        for match in _BLOCK.finditer(text)
    ]


def examples_of(source: str, place: str) -> list[Block]:
    """Return the python blocks in a module's docstrings; a docstring with an `Example:` must have one."""
    blocks = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node) or ""
            found = blocks_of(docstring, f"{place}::{getattr(node, 'name', 'module')}")
            if _EXAMPLE.search(docstring) and not found:
                found = [Block(f"{place}::{getattr(node, 'name', 'module')}", "", True)]
            blocks += found
    return blocks


EXAMPLES = [
    block
    for path in sorted(PACKAGE.rglob("*.py"))
    for block in examples_of(path.read_text(encoding="utf-8"), str(path.relative_to(PACKAGE.parent)))
]
IN_DOCUMENTS = [
    block
    for path in DOCUMENTS
    for block in blocks_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
]


@pytest.mark.parametrize("block", [b for b in [*IN_DOCUMENTS, *EXAMPLES] if b.runs], ids=lambda block: block.place)
def test_documented_code_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert block.code, "the Example holds no ```python block"
    assert ">>>" not in block.code, "write the code without prompts"
    exec(compile(block.code, block.place, "exec"), {"__name__": "__main__"})


def test_documents_have_code_and_leave_out_little() -> None:
    assert any(block.runs for block in IN_DOCUMENTS)
    assert sum(not block.runs for block in IN_DOCUMENTS) <= MOST_NOT_RUN
    assert all(block.runs for block in IN_DOCUMENTS if block.place.startswith("README.md"))


@pytest.mark.parametrize(
    "path", sorted({*DOCUMENTS, *ROOT.glob("*.md")}), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_headings_go_down_one_level_at_a_time(path: Path) -> None:
    # The site of documentation is built with warnings as errors, and refuses a level left out.
    prose = re.sub(r"^(`{3,}).*?^\1", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose, re.MULTILINE)]
    assert levels[:1] == [1] or "```{include}" in path.read_text(encoding="utf-8")
    assert all(lower <= upper + 1 for upper, lower in itertools.pairwise(levels)), levels


def test_blocks_of_finds_code_and_comment() -> None:
    text = "a\n```python\nx = 1\n```\n<!-- not run: needs a GPU -->\n```python\ny = 1\n```\n```bash\nls\n```\n"
    assert blocks_of(text, "t") == [Block("t:2", "x = 1\n", True), Block("t:6", "y = 1\n", False)]


def test_examples_of_finds_indented_block_and_example_without_one() -> None:
    source = 'def f():\n    """Do.\n\n    Example:\n        ```python\n        x = 1\n\n        y = 2\n        ```\n'
    source += '    """\n\nclass A:\n    """Be.\n\n    Example:\n        x = 1\n    """\n'
    assert [block.code for block in examples_of(source, "t")] == ["x = 1\n\ny = 2\n", ""]
