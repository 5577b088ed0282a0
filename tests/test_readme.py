"""What the README claims about families is what the code holds."""

from __future__ import annotations

from pathlib import Path

from hf_mote.commands.families import support_markdown
from hf_mote.commands.sae.formats import formats_markdown

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_readme_support_table_is_the_one_of_the_code() -> None:
    _, _, rest = README.partition("<!-- families:")
    table = rest.partition("-->")[2].partition("<!-- /families -->")[0]
    assert table.strip() == support_markdown(), "run: hf-mote families --markdown"


def test_readme_table_of_formats_is_the_one_of_the_code() -> None:
    _, _, rest = README.partition("<!-- formats:")
    table = rest.partition("-->")[2].partition("<!-- /formats -->")[0]
    assert table.strip() == formats_markdown(), "run: hf-mote sae formats --markdown"


def test_readme_has_no_placeholder_and_its_pictures_exist() -> None:
    assert "@@" not in README
    folder = Path(__file__).parents[1]
    for part in README.split("](")[1:]:
        target = part.partition(")")[0]
        if not target.startswith(("http", "#")):
            assert (folder / target).is_file(), target
