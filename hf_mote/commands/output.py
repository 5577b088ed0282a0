"""A folder that is written whole or not at all, and never over something that is not its own.

A command writes to a folder aside and moves it into place when all is there, so that an error or an interruption
leaves nothing half-written. A run that is killed cannot clear its folder aside away; the next one for the same output
does, if nobody holds the lock in it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hf_mote.errors import FileFormatError, HFMoTEError
from hf_mote.files import RESULT_LIMIT, read_json

__all__ = ["REPORT", "check_output", "writing_to"]

REPORT = "report.json"

_PREFIX = ".hf-mote-"
_LOCK = "lock"
_MEANT_FOR = "output"  # names the output; there from when the lock is held
_FILES = "files"


def check_output(folder: Path, *, force: bool) -> None:
    """Raise unless a folder may be written to.

    Args:
        folder (`Path`): It may exist if it is empty.
        force (`bool`): Whether it may hold something.

    Raises:
        [`FileFormatError`]: if it is a file, or holds something.
    """
    if folder.exists() and not folder.is_dir():
        raise FileFormatError(f"--output {folder}", "is a file", expected="a folder")
    if not force and folder.is_dir() and any(folder.iterdir()):
        fix = "Give another --output, or --force to replace what an earlier run wrote there."
        raise FileFormatError(f"--output {folder}", "holds something already", fix=fix)


@contextmanager
def writing_to(folder: Path, *, force: bool) -> Iterator[Path]:
    """Yield a folder to write to, which becomes `folder` if the block succeeds and vanishes if not.

    What the report of an earlier run lists as its files is taken out of the way first; nothing else is deleted.

    Args:
        folder (`Path`): Where everything is to be.
        force (`bool`): Whether it may hold something.

    Raises:
        [`FileFormatError`]: if it may not be written to.
    """
    check_output(folder, force=force)
    _clear_away(folder)
    parent = next(path for path in folder.absolute().parents if path.exists())
    try:
        aside = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    except OSError as error:
        raise FileFormatError(f"--output {folder}", "cannot be made", got=error.strerror) from error
    files = aside / _FILES
    try:
        with FileLock(aside / _LOCK):
            (aside / _MEANT_FOR).write_text(_seen_from(parent, folder), encoding="utf-8")
            files.mkdir()
            yield files
            for old in _earlier_files(folder):
                old.unlink(missing_ok=True)
            for path in sorted(path for path in files.rglob("*") if path.is_file()):
                place = folder / path.relative_to(files)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _clear_away(folder: Path) -> None:
    """Delete what killed runs left aside that were to write to a folder; what a running one holds stays."""
    for parent in folder.absolute().parents:
        for aside in parent.glob(f"{_PREFIX}*"):
            if aside.is_symlink() or (aside / _LOCK).is_symlink():
                continue
            try:
                if (aside / _MEANT_FOR).read_text(encoding="utf-8") != _seen_from(parent, folder):
                    continue
                with FileLock(aside / _LOCK, timeout=0):
                    pass
            except (OSError, UnicodeDecodeError, Timeout):
                continue
            shutil.rmtree(aside, ignore_errors=True)


def _seen_from(parent: Path, folder: Path) -> str:
    return folder.absolute().relative_to(parent.absolute()).as_posix()


def _earlier_files(folder: Path) -> list[Path]:
    """Return the files that the report in a folder lists, and that lie in the folder."""
    try:
        listed = read_json(folder / REPORT, limit=RESULT_LIMIT).get("files")
    except HFMoTEError:
        return []
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list | dict) else []
    root = folder.resolve()
    return [path for path in (root / name for name in names) if root in path.resolve().parents and path.is_file()]
