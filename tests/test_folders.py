"""Folders put in place whole, where the system can exchange two names and where it cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hf_mote import folders
from hf_mote.errors import FileFormatError
from hf_mote.folders import check_folder, replacing_folder


def written(target: Path, content: str, *stale: str) -> None:
    with replacing_folder(target, "here", lambda _: stale) as folder:
        (folder / "file").write_text(content)


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    return bool(request.param)


def test_replacing_folder_keeps_what_others_put_there(tmp_path: Path, exchange: bool) -> None:
    target = tmp_path / "a" / "b"
    written(target, "1")
    for path in ("mine", "sub/deep/mine", "old"):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text("x")
    (target / "empty").mkdir()
    (target / "link").symlink_to("mine")
    (target / "folder link").symlink_to("sub")
    target.chmod(0o700)
    written(target, "2", "old")
    found = sorted(path.relative_to(target).as_posix() for path in target.rglob("*"))
    assert found == ["empty", "file", "folder link", "link", "mine", "sub", "sub/deep", "sub/deep/mine"]
    assert (target / "file").read_text() == "2"
    assert os.readlink(target / "link") == "mine"
    assert target.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_replacing_folder_error_leaves_what_was_there_and_nothing_else(tmp_path: Path, exchange: bool) -> None:
    target = tmp_path / "a"
    written(target, "1")

    def fail(keep: bool) -> None:
        with replacing_folder(target, "here", lambda _: ["file"], keep=keep) as folder:
            (folder / "file").write_text("2")
            raise ValueError("no")

    for keep in (False, True):
        with pytest.raises(ValueError, match="no"):
            fail(keep)
        assert (target / "file").read_text() == "1"
        assert len(list(tmp_path.iterdir())) == 1 + keep


def test_replacing_folder_finishes_what_was_killed_between_two_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    written(target, "1")
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    monkeypatch.setattr(folders, "_remove", lambda aside: None)  # a killed run removes nothing
    rename = os.rename

    def killed(one: Path, other: Path) -> None:
        if Path(one).name == "files":
            raise SystemExit
        rename(one, other)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(SystemExit):
        written(target, "2")
    assert not target.exists()
    monkeypatch.undo()
    folders.clear_away(target)
    assert (target / "file").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_replacing_folder_of_a_link_replaces_what_it_leads_to(tmp_path: Path, exchange: bool) -> None:
    written(tmp_path / "real", "1")
    (tmp_path / "link").symlink_to("real")
    written(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "2"


def test_check_folder_refuses_what_could_not_be_put_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    for path, what in (("file", "is a file"), ("file/x", "cannot be made"), (".", "the folder that you are in")):
        with pytest.raises(FileFormatError, match=f"here: .*{what}"):
            check_folder(Path(path), "here")
    check_folder(tmp_path / "new" / "folder", "here")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
