"""The output folder is written whole or not at all, and nothing that is somebody else's goes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hf_mote.commands.run_files import REPORT, check_output, safe_name, writing_to
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


def write_half(target: Path, error: type[BaseException] = RuntimeError) -> None:
    with writing_to(target, force=False) as folder:
        (folder / "half").write_text("x")
        raise error


def test_writing_to_error_keeps_what_was_computed_aside_and_interrupts_leave_nothing(tmp_path: Path) -> None:
    for number in (1, 2):
        with pytest.raises(RuntimeError):
            write_half(tmp_path / "a" / "b")
        assert (tmp_path / "a" / f"b.unfinished-{number}" / "half").read_text() == "x"
    assert not (tmp_path / "a" / "b").exists()
    with pytest.raises(RuntimeError), writing_to(tmp_path / "c", force=False):
        raise RuntimeError
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "c", KeyboardInterrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_writing_to_full_disk_is_our_error_and_loses_nothing(tmp_path: Path) -> None:
    target = tmp_path / "run"
    with writing_to(target, force=False) as folder:
        (folder / "old").write_text("x")
    write = pytest.raises(FileFormatError, match=r"cannot be written .got No space.*What was there.*unfinished-1")
    with write, writing_to(target, force=True) as folder:
        (folder / "new").write_text("y")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (target / "old").read_text() == "x"
    assert (tmp_path / "run.unfinished-1" / "new").read_text() == "y"


@pytest.mark.skipif(os.geteuid() == 0, reason="may write everywhere")
def test_check_output_read_only_folder_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o500)
    with pytest.raises(FileFormatError, match="cannot be made .got no permission to write to"):
        check_output(tmp_path / "a" / "b", force=False)


def test_check_output_place_that_cannot_be_replaced_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (".", "..", "/", "/proc"):
        with pytest.raises(FileFormatError, match="the folder that you are in, or a mount point|holds more than"):
            check_output(Path(place), force=True)
    for place in ("a\0b", "x" * 5000):
        with pytest.raises(FileFormatError, match=r"--output .*cannot be made"):
            check_output(Path(place), force=True)
    (tmp_path / "many").mkdir()
    for index in range(10_001):
        (tmp_path / "many" / str(index)).touch()
    with pytest.raises(FileFormatError, match="holds more than 10000 files"):
        check_output(tmp_path / "many", force=True)


ODD_REPORTS = [
    *("{", "[]", '{"files": 3}', '{"files": [3, null, [], {}]}'),
    '{"files": ["a\\u0000b", "' + "x" * 5000 + '", "", "."]}',
    '{"files": ["/etc/passwd", "../mine", "a/../../mine", "loop/x", "old", "old/"]}', '{"files": {"old": 1}}',
]  # fmt: skip


@pytest.mark.parametrize("report", ODD_REPORTS, ids=range(len(ODD_REPORTS)))
def test_writing_to_odd_report_of_an_earlier_run_loses_nothing(tmp_path: Path, report: str) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (tmp_path / "mine").write_text("x")
    (target / "mine").write_text("x")
    (target / "sub").mkdir()
    (target / "sub" / "mine").write_text("x")
    (target / "empty").mkdir()
    (target / "old").write_text("x")
    (target / "loop").symlink_to(target / "loop")
    (target / REPORT).write_text(report)
    with writing_to(target, force=True) as folder:
        (folder / "new").write_text("y")
        (folder / REPORT).write_text("{}")
    assert (tmp_path / "mine").read_text() == "x"
    assert (target / "mine").read_text() == (target / "sub" / "mine").read_text() == "x"
    assert (target / "empty").is_dir()
    assert (target / "loop").is_symlink()
    assert (target / "new").read_text() == "y"
    assert (target / REPORT).read_text() == "{}"
    assert (target / "old").exists() == ("old" not in report)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("mine", "run")] == []


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
