"""The reference holds every public name, and its pages say what the docstrings say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from api_pages import GROUPS, Group, docstring_as_markdown, public_targets, write_api_pages
from command_page import command_page
from notebook_pages import copy_notebooks

import hf_mote
from hf_mote.cli import COMMANDS, SAE_COMMANDS

DOCSTRING = """Do it.

    More words, on [`apply_mote`] and [`nobody`].

    Args:
        model (`nn.Module`):
            A model; see [`MoTEConfig.for_model`].

            - a list
        num (`int`, *optional*): A number.

    Raises:
        [`ConfigError`]: if
            not.

    Source: a paper,
    with a year.

    Example:

    ```python
    Args: int = 3
    ```
    """


def test_every_public_name_is_described_once(tmp_path: Path) -> None:
    write_api_pages(tmp_path)
    text = "\n".join(path.read_text(encoding="utf-8") for path in tmp_path.glob("*.md"))
    for name in {*hf_mote.__all__} - {"__version__"}:
        assert text.count(f"\n## {name}\n") == 1, name
    assert "{py:method} MoTEConfig.for_model(" in text
    assert "0x" not in text  # an object's address, which differs from run to run


def test_pages_that_are_as_they_should_be_are_left_alone(tmp_path: Path) -> None:
    write_api_pages(tmp_path)
    (tmp_path / "judges.md").write_text("old")
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_api_pages(tmp_path)
    changed = {path.name for path in tmp_path.iterdir() if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"judges.md"}


OF_A_PART = [("judges", "RefusalJudge"), ("patching", "apply_mote"), ("sae_use", "steer")]


@pytest.mark.parametrize(("page", "name"), OF_A_PART)
def test_a_public_name_that_no_group_lists_is_on_the_page_of_its_part(
    page: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    title, names = GROUPS[page]
    monkeypatch.setitem(GROUPS, page, Group(title, tuple(other for other in names if other != name)))
    write_api_pages(tmp_path)
    headings = re.findall(r"^## (.*)$", (tmp_path / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[-1] == name


def test_a_public_name_on_two_pages_ends_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GROUPS, "judges", Group("Judges", (*GROUPS["judges"].names, "ftri")))
    with pytest.raises(ValueError, match="ftri: on two pages"):
        write_api_pages(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_public_name_or_method_without_docstring_ends_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_mote.apply_mote, "__doc__", None)
    monkeypatch.setattr(hf_mote.ActivationMap.per_token, "__doc__", "")
    with pytest.raises(ValueError, match=r"(?s)ActivationMap\.per_token: no docstring.*apply_mote: no docstring"):
        write_api_pages(tmp_path)


def test_docstring_becomes_lists_and_links() -> None:
    text = docstring_as_markdown(DOCSTRING, public_targets())
    assert "{py:obj}`apply_mote <hf_mote.apply_mote>` and `nobody`" in text
    assert "- **`model`** (`nn.Module`):\n  A model; see {py:obj}`MoTEConfig.for_model" in text
    assert "- **`num`** (`int`, *optional*): A number." in text
    assert "- {py:obj}`ConfigError <hf_mote.errors.ConfigError>`: if\n  not." in text
    assert "**Source:** a paper,\nwith a year." in text
    assert "**Example**\n\n```python\nArgs: int = 3\n```" in text


def test_methods_may_be_named_alone_within_their_class() -> None:
    assert "<hf_mote.MoTEConfig.for_model>" in docstring_as_markdown(
        "See [`for_model`].", public_targets(), "MoTEConfig"
    )
    assert docstring_as_markdown("See [`for_model`].", public_targets(), "ActivationMap") == "See `for_model`.\n"


def test_page_of_commands_has_every_command_and_its_options() -> None:
    text = command_page()
    for name in [*COMMANDS, *(f"sae {name}" for name in SAE_COMMANDS)]:
        assert f"\n## hf-mote {name}\n" in text
    assert "| `--max-new-tokens` | `64` | Longest response, in tokens. |" in text
    assert "| `MODEL` | required | " in text


def test_notebooks_are_copied_and_old_ones_go(tmp_path: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01_a.ipynb").write_text("{}")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "00_gone.ipynb").write_text("{}")
    (tmp_path / "pages" / "index.md").write_text("# Tutorials")
    copy_notebooks(tmp_path / "notebooks", tmp_path / "pages")
    assert sorted(path.name for path in (tmp_path / "pages").iterdir()) == ["01_a.ipynb", "index.md"]
