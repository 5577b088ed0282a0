"""What the package imports is what it declares: core, or an extra whose absence is an error that names it.

`ARCHITECTURE.md` says for each library why it is where it is.
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from hf_mote.errors import UnsupportedError
from hf_mote.judges.language import LanguageJudge

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {Requirement(text).name for text in PROJECT["dependencies"]}
EXTRAS = {name: {Requirement(text).name for text in texts} for name, texts in PROJECT["optional-dependencies"].items()}
# What a module is called in the package index, where that is another name.
NAMES = {"yaml": "pyyaml", "lingua": "lingua-language-detector"}
# Modules that a declared library brings, and which.
BROUGHT = {
    "fastapi": "vllm",
    "numpy": "transformers",
    "pandas": "datasets",
    "pyarrow": "datasets",
    "tokenizers": "transformers",
    "triton": "torch",
    "typing_extensions": "torch",
}


def imported() -> dict[str, set[str]]:
    """The libraries that the package imports, anywhere, and the files that do."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "hf_mote").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module]
            for name in (name.partition(".")[0] for name in names):
                if name != "hf_mote" and name not in sys.stdlib_module_names:
                    library = BROUGHT.get(name, NAMES.get(name, name))
                    found.setdefault(library, set()).add(path.relative_to(ROOT / "hf_mote").as_posix())
    return found


def test_every_import_is_declared_and_extras_stay_in_their_part() -> None:
    parts = {"judges": {"judges/language.py"}, "vllm": {"serving"}}
    extra_of = {library: name for name in parts for library in EXTRAS[name]}
    for library, files in imported().items():
        if library in CORE:
            continue
        assert library in extra_of, f"{library} is imported by {sorted(files)} and declared nowhere"
        allowed = parts[extra_of[library]]
        assert all(file in allowed or file.partition("/")[0] in allowed for file in files), (library, files)


def test_every_core_library_is_imported_or_said_to_be_needed_by_another() -> None:
    needed_by_another = {"peft"}  # transformers loads models with adapters by it
    assert needed_by_another | set(imported()) >= CORE


def test_architecture_says_of_each_library_why_it_is_where_it_is() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = text.partition("## Dependencies")[2].partition("\n## ")[0]
    table = [re.split(r"\s*\|\s*", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
    rows = {names: where for names, where, _ in table}
    said = {name: row for names, row in rows.items() for name in re.findall(r"`([\w-]+)`", names)}
    libraries = dict.fromkeys(CORE, "core")
    for extra in ("judges", "vllm"):
        libraries |= dict.fromkeys(EXTRAS[extra], f"extra `{extra}`")
    assert said == libraries


def test_missing_extra_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "lingua":
            raise ImportError(name)
        return usual(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedError, match=r"hf-mote\[judges\]"):
        LanguageJudge(["en", "de"])
