"""Records of a run folder: read as they were written, by the same run under the same name alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from hf_mote.errors import FileFormatError, ModelMismatchError
from hf_mote.files import read_tensors, write_tensors
from hf_mote.runs.folder import RunFolder, holds_records, remove_run

SETTINGS = {"seed": 0, "generation": {"do_sample": False}}
VALUES = {"x": torch.tensor([0.1, float("inf"), float("nan")], dtype=torch.float64), "on": torch.tensor([True, False])}


def test_record_is_read_as_it_was_written_by_a_later_run(tmp_path: Path) -> None:
    assert RunFolder(tmp_path, SETTINGS).read("a") is None
    RunFolder(tmp_path, SETTINGS).write("a", VALUES, {"responses": ["ä", ""], "rate": 0.1})
    found = RunFolder(tmp_path, SETTINGS).read("a", {"x": (3,), "on": (None,)})
    assert found is not None
    assert found.tensors["x"].equal(VALUES["x"]) or torch.equal(found.tensors["x"].isnan(), VALUES["x"].isnan())
    assert found.tensors["x"][:2].equal(VALUES["x"][:2])
    assert found.tensors["on"].equal(VALUES["on"])
    assert found.notes == {"responses": ["ä", ""], "rate": 0.1}


@pytest.mark.parametrize("tensors", [{}, {"x": torch.tensor(1.5)}, {"x": torch.zeros(0, 3, dtype=torch.bfloat16)}])
def test_record_may_hold_nothing_one_number_or_an_empty_grid(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    RunFolder(tmp_path, SETTINGS).write("a", tensors, {"told": True})
    found = RunFolder(tmp_path, SETTINGS).read("a")
    assert found is not None
    assert found.notes == {"told": True}
    assert {key: value.shape for key, value in found.tensors.items()} == {k: v.shape for k, v in tensors.items()}


def test_kept_computes_once(tmp_path: Path) -> None:
    computed = []

    def make() -> dict[str, torch.Tensor]:
        computed.append(1)
        return {"x": torch.ones(2)}

    for _ in range(2):
        assert RunFolder(tmp_path, SETTINGS).kept("a", make, {"x": (2,)})["x"].equal(torch.ones(2))
    assert len(computed) == 1


def test_record_of_another_name_another_run_or_other_values_is_refused(tmp_path: Path) -> None:
    one, other = RunFolder(tmp_path / "one", SETTINGS), RunFolder(tmp_path / "other", {**SETTINGS, "seed": 1})
    one.write("a", VALUES)
    for name, folder in (("b", one), ("a", other)):
        shutil.copy(one.file_of("a"), folder.file_of(name))
        with pytest.raises(FileFormatError, match="Delete it"):
            folder.read(name)
    tensors, metadata = read_tensors(one.file_of("a"), kind="run_record")
    write_tensors(one.file_of("a"), {**tensors, "on": ~tensors["on"]}, metadata)
    with pytest.raises(FileFormatError, match="digest is another"):
        one.read("a")
    one.file_of("a").write_bytes(one.file_of("a").read_bytes()[:-3])
    with pytest.raises(FileFormatError, match="is damaged.*Delete it"):
        one.read("a")


@pytest.mark.parametrize("shape", [(2,), (3, 1), (None, None)])
def test_record_of_another_shape_is_refused(shape: tuple[int | None, ...], tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, SETTINGS)
    folder.write("a", VALUES)
    with pytest.raises(FileFormatError, match="x of shape"):
        folder.read("a", {"x": shape})
    with pytest.raises(FileFormatError, match="y of shape None"):
        folder.read("a", {"y": (3,)})


def test_other_settings_are_named_and_nothing_is_changed(tmp_path: Path) -> None:
    RunFolder(tmp_path, SETTINGS).write("a", VALUES)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ModelMismatchError, match=r"got seed: 0, expected seed: 1.*delete it"):
        RunFolder(tmp_path, {**SETTINGS, "seed": 1})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_removing_leaves_what_others_put_there(tmp_path: Path) -> None:
    run = tmp_path / "out.run"
    for part in ("one", "two"):
        folder = RunFolder(run / part, SETTINGS)
        assert holds_records(run) == (part == "two")
        folder.write("a", VALUES)
        (run / part / ".left-by-a-kill.safetensors").write_bytes(b"half")
    remove_run(run)
    assert not run.exists()
    RunFolder(run / "one", SETTINGS).write("a", VALUES)
    (run / "notes.txt").write_text("mine")
    (run / "mine.safetensors").write_text("mine")
    remove_run(run)
    assert sorted(path.name for path in run.iterdir()) == ["mine.safetensors", "notes.txt"]
