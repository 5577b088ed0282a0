"""What the README and the documentation claim is what the code holds."""

from __future__ import annotations

import re

from documents import ROOT
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from real_model_costs import costs_markdown, needs_markdown

from hf_mote.commands.families import support_markdown
from hf_mote.commands.sae.formats import formats_markdown
from hf_mote.version import TESTED_TRANSFORMERS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def block_of(page: str, name: str) -> str:
    """Return what stands between the marks of a name in a page of docs/."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    _, opened, rest = text.partition(f"<!-- {name}")
    block, closed, _ = rest.partition("-->")[2].partition(f"<!-- /{name} -->")
    assert opened, name
    assert closed, name
    return block.strip()


def test_support_table_is_the_one_of_the_code() -> None:
    assert block_of("families.md", "families") == support_markdown(), "run: hf-mote families --markdown"


def test_readme_promises_no_more_families_than_there_are() -> None:
    rows = [row.split("|")[2] for row in support_markdown().splitlines()[2:] if not row.startswith("| refused")]
    families = {name.strip() for row in rows for name in row.split(",")}
    promised = [int(number) for number in re.findall(r"over (\d+) families", README)]
    assert promised
    assert all(number < len(families) < number + 10 for number in promised)


def test_readme_promises_no_more_formats_than_there_are() -> None:
    table = [row for row in formats_markdown().splitlines() if row.startswith("|")]
    rows = [row.split("|")[4].strip() for row in table[2:]]
    readable = sum(not row.startswith("nothing") for row in rows)
    (promised,) = (int(number) for number in re.findall(r"over (\d+) formats", README))
    assert promised < readable < promised + 10


def test_costs_of_real_models_are_those_of_the_script() -> None:
    why = "run: python docs/_extensions/real_model_costs.py"
    assert block_of("real_models.md", "needs") == needs_markdown(), why
    assert block_of("real_models.md", "costs") == costs_markdown(), why


def test_the_transformers_that_the_tests_were_run_on_are_named() -> None:
    block = block_of("families.md", "transformers")
    assert re.findall(r"\d+\.\d+\.\d+", block) == list(TESTED_TRANSFORMERS)
    assert "pytest tests/canaries" in block


def test_oldest_transformers_that_is_admitted_was_run() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (admitted,) = re.findall(r'"transformers(>=.*)"', pyproject)
    versions = [Version(version) for version in TESTED_TRANSFORMERS]
    assert versions == sorted(versions)
    assert f">={versions[0]}," in admitted
    assert all(version in SpecifierSet(admitted) for version in versions)


def test_table_of_formats_is_the_one_of_the_code() -> None:
    assert block_of("guides/sae_formats.md", "formats") == formats_markdown(), "run: hf-mote sae formats --markdown"


def test_readme_has_no_placeholder_and_what_it_links_to_exists() -> None:
    assert "@@" not in README
    for part in README.split("](")[1:]:
        target = part.partition(")")[0]
        if not target.startswith(("http", "#")):
            assert (ROOT / target).exists(), target
