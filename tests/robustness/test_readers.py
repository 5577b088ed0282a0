"""The table of readers: what a reader makes is accepted as it is, and what is damaged is what it reads."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from random import Random

import pytest
from mutations import json_document
from readers import READERS, Reader

from hf_mote import MoTEConfig
from hf_mote.errors import HFMoTEError

WHOLE = [reader for reader in READERS if reader.needs_no_seed]
# Files that may hold anything.
FREE = {
    ("earlier_report", "run/report.json"): "it is being replaced",
}
FILES = [(reader, name) for reader in WHOLE for name in reader.mutations if (reader.name, name) not in FREE]


def test_damage_is_said_as_it_stands_in_the_file() -> None:
    done = {json_document(b'{"a": true}', Random(seed))[1] for seed in range(9000)}
    assert {"a = true", 'a = "x"', "a = null", "a = 1", 'a = "1"'} <= done
    # A value as a text is the text that JSON has for it.
    assert any(json_document(b'{"a": null}', Random(seed))[0] == b'{"a": "null"}' for seed in range(2000))


@pytest.mark.parametrize("reader", WHOLE, ids=lambda reader: reader.name)
def test_sample_is_accepted_before_it_is_damaged(reader: Reader, tmp_path: Path) -> None:
    reader.make(tmp_path)
    reader.read(tmp_path)


@pytest.mark.parametrize(("reader", "name"), FILES, ids=lambda one: one if isinstance(one, str) else one.name)
def test_file_that_is_damaged_is_one_that_is_read(reader: Reader, name: str, tmp_path: Path) -> None:
    reader.make(tmp_path)
    assert (tmp_path / name).is_file()
    # Neither of a format nor a text.
    (tmp_path / name).write_bytes(b"\x80\xff\x00")
    with pytest.raises(HFMoTEError):
        reader.read(tmp_path)


def test_every_field_in_a_config_is_damaged(tmp_path: Path) -> None:
    (reader,) = (one for one in READERS if one.name == "mote_config")
    reader.make(tmp_path)
    content = (tmp_path / "mote_config.json").read_bytes()
    held = json.loads(content)
    done = {json_document(content, Random(seed))[1] for seed in range(3000)}
    wanted = {one.name for one in fields(MoTEConfig)} & set(held)
    assert {"gain", "positions"} <= wanted
    assert {name for name in wanted if not any(name in what for what in done)} == set()
