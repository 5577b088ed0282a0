"""What the README claims about families is what the code holds."""

from __future__ import annotations

import re
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from hf_mote.commands.families import support_markdown
from hf_mote.commands.sae.formats import formats_markdown
from hf_mote.version import TESTED_TRANSFORMERS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_readme_support_table_is_the_one_of_the_code() -> None:
    _, _, rest = README.partition("<!-- families:")
    table = rest.partition("-->")[2].partition("<!-- /families -->")[0]
    assert table.strip() == support_markdown(), "run: hf-mote families --markdown"


def test_readme_names_the_transformers_that_the_tests_were_run_on() -> None:
    block = README.partition("<!-- transformers:")[2].partition("<!-- /transformers -->")[0]
    assert re.findall(r"\d+\.\d+\.\d+", block) == list(TESTED_TRANSFORMERS)
    assert "pytest tests/canaries" in block


def test_oldest_transformers_that_is_admitted_was_run() -> None:
    pyproject = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    (admitted,) = re.findall(r'"transformers(>=.*)"', pyproject)
    versions = [Version(version) for version in TESTED_TRANSFORMERS]
    assert versions == sorted(versions)
    assert f">={versions[0]}," in admitted
    assert all(version in SpecifierSet(admitted) for version in versions)


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
