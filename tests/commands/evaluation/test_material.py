"""What a config is measured on, read from its sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_mote.commands.bundles.evidence import Reading
from hf_mote.commands.evaluation.material import Material, read_material
from hf_mote.commands.model import Organisms
from hf_mote.errors import UnknownNameError


def read(reading: Reading, prompts: Path, **sources: Any) -> Material:
    rest = dict.fromkeys(("unrelated", "opposite", "texts", "conversations"))
    return read_material(reading, Organisms(), prompts=str(prompts), seed=0, **{**rest, **sources})


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f"{json.dumps({'prompt': f'q{n}', 'topic': f't{n // 2}'})}\n" for n in range(4)))
    return path


def test_material_of_prompts_alone_has_nothing_beside(rows: Path) -> None:
    found = read(Reading(), rows)
    assert found.asked.prompts == ["q0", "q1", "q2", "q3"]
    assert found.arguments() == {"groups": None, "unrelated": [], "texts": [], "conversations": []}
    assert (found.opposite, found.opposite_groups) == (None, None)


def test_material_reads_every_source_by_the_same_rules(rows: Path, tmp_path: Path, conversations_file: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text("".join(f"{json.dumps({'prompt': text})}\n" for text in ("one two", "three", "four")))
    found = read(
        Reading(limit=2, group_field="topic"),
        rows,
        unrelated=str(plain),
        opposite=str(rows),
        texts=str(plain),
        conversations=str(conversations_file),
    )
    assert [len(found.asked.prompts), len(found.unrelated), len(found.texts)] == [2, 2, 2]
    # Prompts and opposite ones are drawn alike, and grouped; unrelated ones need no such field.
    assert found.groups == found.opposite_groups == [f"t{int(str(text)[1:]) // 2}" for text in found.asked.prompts]
    assert found.opposite is not None
    assert found.opposite.prompts == found.asked.prompts
    assert [len(talk.turns) for talk in found.conversations] == [2, 1]
    assert found.arguments()["conversations"] is found.conversations


def test_material_opposite_prompts_need_the_group_field(rows: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("one\ntwo\n")
    with pytest.raises(UnknownNameError, match="topic"):
        read(Reading(group_field="topic"), rows, opposite=str(plain))
