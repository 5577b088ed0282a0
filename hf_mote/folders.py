"""Folders written whole or not at all: made under another name, and put in place by one exchange of two names.

A killed run cannot delete its draft. The next run for the same folder deletes it, unless a process holds its lock.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import stat
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hf_mote.errors import FileFormatError, first_line
from hf_mote.files import is_running

__all__ = ["check_folder", "replacing_folder", "staging"]

_LOCK = "lock"
_FILES, _OLD = "files", "old"
_MOST_OTHERS = 10_000


def check_folder(folder: Path, where: str) -> None:
    """Raise unless a folder can be put in place whole; asked before anything is computed.

    Args:
        folder (`Path`): It may exist, with files of others that are to stay.
        where (`str`): What the error names.

    Raises:
        [`FileFormatError`]: if it is a file, the folder that the process is in, or a mount point; if it holds more
            than 10,000 files; or if the folder above cannot be written to.
    """
    try:
        target = Path(os.path.realpath(folder))
        with suppress(FileNotFoundError):
            os.lstat(target)  # which says of a name that is too long that it is
        if os.path.exists(target):
            if not os.path.isdir(target):
                raise FileFormatError(where, "is a file", expected="a folder")
            if target in (Path.cwd(), *Path.cwd().parents) or os.path.ismount(target):
                what = "is the folder that you are in, or a mount point, and could not be replaced whole"
                raise FileFormatError(where, what, fix="Give a folder in it.")
            if sum(1 for _ in _others(target, set())) > _MOST_OTHERS:
                raise FileFormatError(where, f"holds more than {_MOST_OTHERS} files", fix="Give a folder of its own.")
        parent = _nearest(target)
        if not os.access(parent, os.W_OK | os.X_OK):
            raise FileFormatError(where, "cannot be made", got=f"no permission to write to {parent}")
        # Of runs that were killed, also where this one is going to refuse what it finds.
        if any(next(above.glob(f"{_prefix(above, target)}*"), None) is not None for above in target.parents):
            clear_away(target)
    # ValueError for a path that holds a NUL.
    except (OSError, ValueError) as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(where, "cannot be made", got=first_line(error)) from error


@contextmanager
def replacing_folder(
    folder: Path, where: str, stale: Callable[[Path], Iterable[str]], *, keep: bool = False
) -> Iterator[Path]:
    """Yield an empty folder to write to, which becomes `folder` at once if the block succeeds.

    Other files in `folder` stay. Until the end of the block `folder` does not change; then all of it changes at once.

    Args:
        folder (`Path`): Where everything is to be.
        where (`str`): What errors name.
        stale (`Callable[[Path], Iterable[str]]`): From the folder to the files in it that are to be deleted.
        keep (`bool`, *optional*, defaults to `False`): Whether to keep what a failed block has
            written, beside `folder` under a name of its own, which an error of the disk states.

    Raises:
        [`FileFormatError`]: if it may not be written to, or the disk is full.
    """
    from filelock import FileLock  # slow to import, and the command line looks at folders first

    check_folder(folder, where)
    target = Path(os.path.realpath(folder))
    going = set(stale(target)) if target.is_dir() else set()
    clear_away(target)
    parent = _nearest(target)
    try:
        draft = Path(tempfile.mkdtemp(prefix=f"{_prefix(parent, target)}{os.getpid()}-", dir=parent))
    except OSError as error:
        raise FileFormatError(where, "cannot be made", got=first_line(error)) from error
    files = draft / _FILES
    try:
        with FileLock(draft / _LOCK):
            files.mkdir()
            try:
                yield files
                _put(files, target, draft / _OLD, going)
            except Exception as error:
                kept = _keep(files, target) if keep else None
                if not _is_of_the_disk(error):
                    raise
                got = first_line(error)
                fix = f"What was there to be written is in {kept}." if kept else "Nothing was written or deleted."
                raise FileFormatError(where, "cannot be written", got=got, fix=fix) from error
    finally:
        _remove(draft)


@contextmanager
def staging(where: str) -> Iterator[Path]:
    """Yield an empty temporary folder for what is about to be uploaded or served; it is deleted in the end.

    Folders that killed runs of this machine left are deleted, too: they may hold what is not to be shared.

    Args:
        where (`str`): What errors name.

    Raises:
        [`FileFormatError`]: if no temporary folder can be made.
    """
    begin = f"hf-mote-staging-{uuid.getnode():x}-"
    place = Path(tempfile.gettempdir())
    try:
        for left in place.glob(f"{begin}*"):
            owner = left.name[len(begin) :].partition("-")[0]
            if owner.isdecimal() and not is_running(int(owner)) and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=f"{begin}{os.getpid()}-", dir=place))
    except OSError as error:
        raise FileFormatError(where, "has no temporary folder", got=first_line(error)) from error
    try:
        files = made / _FILES  # one below, so that drafts beside it go, too
        files.mkdir()
        yield files
    finally:
        shutil.rmtree(made, ignore_errors=True)


def clear_away(target: Path) -> None:
    """Delete the drafts for a folder that killed runs left; those of running ones stay."""
    from filelock import FileLock, Timeout

    for parent in target.parents:
        for draft in parent.glob(f"{_prefix(parent, target)}*"):
            if draft.is_symlink() or not draft.is_dir() or (draft / _LOCK).is_symlink():
                continue
            try:
                if not (draft / _LOCK).exists() and is_running(int(draft.name.split("-")[4])):
                    continue  # it may be about to take the lock
                with FileLock(draft / _LOCK, timeout=0):
                    # Killed between two renames, where the system has no exchange.
                    if (draft / _OLD).is_dir() and not target.exists():
                        os.rename(draft / _OLD, target)
            except (OSError, ValueError, IndexError, Timeout):
                continue
            _remove(draft)


def _put(files: Path, target: Path, old: Path, going: set[str]) -> None:
    """Replace a folder by another one, keeping its other files."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(files, target)
        return
    for name, path in _others(target, going):
        place = files / name
        if os.path.lexists(place):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            os.symlink(os.readlink(path), place)
        elif path.is_dir():
            place.mkdir()
        else:
            _link(path, place)
    os.chmod(files, stat.S_IMODE(target.stat().st_mode))
    if _exchange(files, target):
        return
    os.rename(target, old)
    try:
        os.rename(files, target)
    except OSError:
        os.rename(old, target)
        raise


def _others(target: Path, going: set[str]) -> Iterator[tuple[str, Path]]:
    """Yield files, links and empty folders below a folder, by their relative names, without some."""
    for place, folders, names in os.walk(target):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = [name for name in folders if name not in links]
        found = [*links, *names] if links or names or folders or Path(place) == target else [""]
        for name in found:
            path = Path(place, name)
            inner = path.relative_to(target).as_posix()
            if inner not in going:
                yield inner, path


def _link(path: Path, place: Path) -> None:
    try:
        os.link(path, place)
    except OSError:  # a file system without hard links
        shutil.copy2(path, place)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two folders at once; return `False`, with nothing done, where the system cannot."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(os.fsencode(one), os.fsencode(other), 2) == 0)
        return bool(libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0)
    except (AttributeError, OSError, TypeError):
        return False


def _is_of_the_disk(error: Exception) -> bool:
    if isinstance(error, OSError):
        return True
    from safetensors import SafetensorError  # which is what safetensors raises on a full disk

    return isinstance(error, SafetensorError)


def _keep(files: Path, target: Path) -> Path | None:
    """Move what was computed beside its target folder and return its path; `None` if there is nothing."""
    try:
        if not any(path.is_file() for path in files.rglob("*")):
            return None
        number = 1
        while os.path.lexists(kept := target.with_name(f"{target.name}.unfinished-{number}")):
            number += 1
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.rename(files, kept)
        return kept
    except OSError:
        return None


def _remove(draft: Path) -> None:
    """Delete a draft, its lock last."""
    for name in (_FILES, _OLD):
        shutil.rmtree(draft / name, ignore_errors=True)
    shutil.rmtree(draft, ignore_errors=True)


def _nearest(target: Path) -> Path:
    """Return the folder above that exists."""
    return next(path for path in target.parents if os.path.isdir(path))


def _prefix(parent: Path, target: Path) -> str:
    """Return the prefix of the names of drafts for a folder on this machine."""
    seen = hashlib.sha256(os.fsencode(target.relative_to(parent))).hexdigest()[:16]
    return f".hf-mote-{seen}-{uuid.getnode():x}-"
