"""The output folder is written whole or not at all, and nothing that is somebody else's goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_mote.commands.run_files import REPORT, safe_name, writing_to
from hf_mote.errors import FileFormatError

HANGING = """
import sys, time
from pathlib import Path
from hf_mote.commands.run_files import writing_to

with writing_to(Path(sys.argv[1]), force=False) as folder:
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(300)
"""


def asides(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith(".hf-mote-"))


def write_half(target: Path) -> None:
    with writing_to(target, force=False) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError


def test_writing_to_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_half(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_writing_to_success_moves_everything_and_nothing_else(tmp_path: Path) -> None:
    with writing_to(tmp_path / "a" / "b", force=False) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("x")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [
        "a/b/sub/file"
    ]
    assert os.stat(tmp_path / "a" / "b").st_mode & 0o055 == os.stat(tmp_path / "a").st_mode & 0o055


def test_writing_to_folder_that_holds_something_takes_force(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(FileFormatError, match="--force"), writing_to(tmp_path, force=False):
        pass
    with writing_to(tmp_path, force=True) as folder:
        (folder / "new").write_text("y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "new"]


def test_writing_to_force_removes_what_the_earlier_run_listed_and_nothing_outside(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    for path in (tmp_path / "outside", target / "old", target / "mine"):
        path.write_text("x")
    listed = {"old": "", "../outside": "", str(tmp_path / "outside"): "", "gone": ""}
    (target / REPORT).write_text(json.dumps({"files": listed}))
    with writing_to(target, force=True) as folder:
        (folder / "new").write_text("y")
    assert sorted(path.name for path in target.iterdir()) == ["mine", "new", REPORT]
    assert (tmp_path / "outside").exists()


def test_writing_to_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for force in (False, True):
        with pytest.raises(FileFormatError, match="is a file"), writing_to(tmp_path / "file", force=force):
            pass


def test_safe_name_is_a_file_name_of_its_own() -> None:
    names = [safe_name(index, name) for index, name in enumerate(["../../etc", "a/b", "", "ж" * 99, "x" * 99])]
    assert names == ["0_etc", "1_a_b", "2_class", "3_class", f"4_{'x' * 40}"]


def test_writing_to_clears_away_what_a_killed_run_left_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "run"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", HANGING, str(target)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"writing\n"
            (left,) = asides(tmp_path)
            # While it goes on, another run for the same output leaves its files alone.
            with writing_to(target, force=False):
                assert len(asides(tmp_path)) == 2
            assert (left / "files" / "half").read_text() == "x"
        finally:
            process.send_signal(signal.SIGKILL)
    assert asides(tmp_path) == [left]
    # Not ours, by the look of it: no mark of an output, a file, a link.
    (tmp_path / ".hf-mote-notes").mkdir()
    (tmp_path / ".hf-mote-notes" / "lock").write_text("mine")
    (tmp_path / ".hf-mote-file").write_text("mine")
    (tmp_path / ".hf-mote-link").symlink_to(left)
    foreign = [tmp_path / f".hf-mote-{name}" for name in ("file", "link", "notes")]
    with writing_to(tmp_path / "another", force=False):
        assert left.exists()
        with writing_to(target, force=False) as folder:
            assert not left.exists()
            (folder / "whole").write_text("y")
        assert len(asides(tmp_path)) == 1 + len(foreign)
    assert asides(tmp_path) == foreign
    assert (tmp_path / ".hf-mote-notes" / "lock").read_text() == "mine"
    assert [path.name for path in target.iterdir()] == ["whole"]
