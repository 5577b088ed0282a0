"""The files of a run: what each holds, the figures as JSON, and the page that shows them."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mote.errors import FileFormatError, HFMoTEError

if TYPE_CHECKING:
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.ranking.expert_ranking import ExpertRanking
    from hf_mote.reports.markup import Html

__all__ = [
    "PAGE",
    "REPORT",
    "check_output",
    "config_of",
    "finish",
    "rows_of",
    "safe_name",
    "save_config",
    "writing_to",
]

PAGE = "report.html"
REPORT = "report.json"
_PREFIX = ".hf-mote-"
_LOCK = "lock"
_MEANT_FOR = "output"  # names the output; there from when the lock is held
_FILES = "files"


def finish(
    folder: Path,
    figures: Mapping[str, Any],
    provenance: Mapping[str, str],
    holds: Mapping[str, str],
    page: Callable[[dict[str, str]], Html],
) -> None:
    """Write the page and the figures, with a list of all files.

    Args:
        folder (`Path`): Where the other files are already.
        figures (`Mapping`): JSON-native; what is not finite becomes null.
        provenance (`Mapping[str, str]`): How the run came about.
        holds (`Mapping[str, str]`): What the files hold, by their path in the folder.
        page (`Callable`): From the description of all files to the page.
    """
    from hf_mote.files import write_json
    from hf_mote.reports.page import write_page

    described = {**holds, REPORT: "the figures of this page, and the list of files"}
    write_page(folder / PAGE, page(described))
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: described.get(name, "") for name in [*written, REPORT]}
    files[PAGE] = "this run, to be read"
    write_json(folder / REPORT, {**_finite(dict(figures)), "provenance": dict(provenance), "files": files}, limit=None)


def config_of(
    ranking: ExpertRanking,
    *,
    suppress: int | None = None,
    stimulate: int | None = None,
    mode: str = "drop",
    base_model: str | None = None,
    strength: float = 1.0,
) -> MoTEConfig | None:
    """Return the config of the first experts, if one was asked for.

    Args:
        ranking (`ExpertRanking`): The ranking.
        suppress (`int`, *optional*): How many to suppress.
        stimulate (`int`, *optional*): How many to stimulate.
        mode (`str`): As `MoTEConfig.suppress_mode`.
        base_model (`str`, *optional*): The model as it was given; of a folder, the config gets its own name alone.
        strength (`float`, *optional*, defaults to 1.0): The dose.

    Raises:
        [`ConfigError`]: if both are given, or the mode is unknown.
    """
    if suppress is None and stimulate is None:
        return None
    from hf_mote.hub import public_name

    return ranking.to_config(
        suppress=suppress,
        stimulate=stimulate,
        suppress_mode=mode,
        base_model=public_name(base_model),
        strength=strength,
    )


def save_config(config: MoTEConfig | None, folder: Path) -> dict[str, str]:
    """Write a config, if there is one, and return what its file holds."""
    if config is None:
        return {}
    config.save_pretrained(folder)
    return {config.file_name: "the config, for apply_mote and hf-mote evaluate"}


def rows_of(ranking: ExpertRanking, n: int) -> list[dict[str, Any]]:
    """Return the first `n` experts as mappings, JSON-native but for NaN."""
    return [row._asdict() for row in ranking.rows(min(n, len(ranking)))]


def safe_name(index: int, name: str) -> str:
    """Return a name that is a file's whatever the class is called, and another for each index."""
    return f"{index}_{re.sub(r'[^A-Za-z0-9-]+', '_', name)[:40].strip('_') or 'class'}"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def check_output(folder: Path, *, force: bool) -> None:
    """Raise unless a folder may be, and can be, written to; nothing stays there for having tried.

    Args:
        folder (`Path`): It may exist if it is empty.
        force (`bool`): Whether it may hold something.

    Raises:
        [`FileFormatError`]: if it is a file, holds something, or cannot be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise FileFormatError(f"--output {folder}", "is a file", expected="a folder")
    above = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        os.rmdir(tempfile.mkdtemp(prefix=_PREFIX, dir=above))
    except OSError as error:
        got = f"{above}: {error.strerror}"
        raise FileFormatError(f"--output {folder}", "cannot be written to", got=got, fix="Give another.") from error
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
    from filelock import FileLock

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
    from filelock import FileLock, Timeout

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
    from hf_mote.files import RESULT_LIMIT, read_json

    try:
        listed = read_json(folder / REPORT, limit=RESULT_LIMIT).get("files")
    except HFMoTEError:
        return []
    names = [name for name in listed if isinstance(name, str)] if isinstance(listed, list | dict) else []
    root = folder.resolve()
    return [path for path in (root / name for name in names) if root in path.resolve().parents and path.is_file()]
