"""The files of a run: what each holds, the figures as JSON, and the page that shows them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from hf_mote.commands.session import NOTHING
from hf_mote.errors import FileFormatError, HFMoTEError, UnsupportedError
from hf_mote.folders import check_folder, replacing_folder

if TYPE_CHECKING:
    from torch import nn

    from hf_mote.mote.config import MoTEConfig
    from hf_mote.ranking.expert_ranking import ExpertRanking
    from hf_mote.reports.markup import Html

__all__ = [
    "PAGE",
    "REPORT",
    "Work",
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


def finish(
    folder: Path,
    figures: Mapping[str, Any],
    provenance: Mapping[str, str],
    holds: Mapping[str, str],
    page: Callable[[dict[str, str]], Html] | None = None,
) -> None:
    """Write the page, if there is one, and the figures with a list of all files, by which `--force` knows them.

    Args:
        folder (`Path`): Where the other files are already.
        figures (`Mapping`): JSON-native; what is not finite becomes null.
        provenance (`Mapping[str, str]`): How the run came about.
        holds (`Mapping[str, str]`): What the files hold, by their path in the folder.
        page (`Callable`, *optional*): From the description of all files to the page.
    """
    from hf_mote.files import write_json

    described = {**holds, REPORT: "the figures of this run, and the list of files"}
    if page is not None:
        from hf_mote.reports.page import write_page

        write_page(folder / PAGE, page(described))
        described[PAGE] = "this run, to be read"
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = {name: described.get(name, "") for name in [*written, REPORT]}
    write_json(folder / REPORT, {**_finite(dict(figures)), "provenance": dict(provenance), "files": files}, limit=None)


def config_of(
    ranking: ExpertRanking,
    *,
    suppress: int | None = None,
    stimulate: int | None = None,
    multiply: int | None = None,
    by: float | None = None,
    mode: str = "drop",
    positions: list[int] | None = None,
    base_model: str | None = None,
    strength: float = 1.0,
) -> MoTEConfig | None:
    """Return the config of the first experts, if one was asked for.

    Args:
        ranking (`ExpertRanking`): The ranking.
        suppress (`int`, *optional*): How many to suppress.
        stimulate (`int`, *optional*): How many to stimulate.
        multiply (`int`, *optional*): How many to give a gain.
        by (`float`, *optional*): The gain.
        mode (`str`): As `MoTEConfig.suppress_mode`.
        positions (`list[int]`, *optional*): As `MoTEConfig.positions`.
        base_model (`str`, *optional*): The model as it was given; of a folder, the config gets its own name alone.
        strength (`float`, *optional*, defaults to 1.0): The dose.

    Raises:
        [`ConfigError`]: if several are given, or the mode is unknown.
    """
    if suppress is None and stimulate is None and multiply is None:
        return None
    from hf_mote.hub import public_name

    return ranking.to_config(
        suppress=suppress,
        stimulate=stimulate,
        multiply=multiply,
        by=by,
        suppress_mode=mode,
        positions=positions,
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
    """Raise unless a folder may be written to; asked before anything is computed.

    Args:
        folder (`Path`): It may exist if it is empty.
        force (`bool`): Whether it may hold something.

    Raises:
        [`FileFormatError`]: if it is a file, holds something, or could not be put in place whole.
    """
    check_folder(folder, f"--output {folder}")
    if not force and os.path.isdir(folder) and any(folder.iterdir()):
        fix = "Give another --output, or --force to replace what an earlier run wrote there."
        raise FileFormatError(f"--output {folder}", "holds something already", fix=fix)


@contextmanager
def writing_to(folder: Path, *, force: bool) -> Iterator[Path]:
    """Yield a folder to write to, which becomes `folder` at once if the block succeeds.

    What the report of an earlier run lists as its files goes with that; nothing else is deleted. Where the block
    fails, what it had written is kept beside.

    Args:
        folder (`Path`): Where everything is to be.
        force (`bool`): Whether it may hold something.

    Raises:
        [`FileFormatError`]: if it may not be written to, or the disk is full.
    """
    check_output(folder, force=force)
    with replacing_folder(folder, f"--output {folder}", _earlier_files, keep=True) as files:
        yield files


class Work:
    """Where a command keeps what it has done, so that the same command goes on from there after a kill.

    Beside the output, until that is written; or where `--run-folder` says, and then it stays. Nothing is kept of a
    command with neither.

    Args:
        output (`Path`, *optional*): The command's output.
        given (`Path`, *optional*): What `--run-folder` says.
    """

    def __init__(self, output: Path | None, given: Path | None = None) -> None:
        self._given = self._folder = given
        if given is None and output is not None:
            whole = output if output.name else output.absolute()
            self._folder = whole.with_name(f"{whole.name}.run")

    def check(self) -> None:
        """Raise [`FileFormatError`] if it is a file."""
        if self._folder is not None and self._folder.exists() and not self._folder.is_dir():
            where = f"{'--output' if self._given is None else '--run-folder'} {self._folder}"
            raise FileFormatError(where, "is a file", expected="a folder, new or of an earlier run")

    def word(self) -> str:
        """Return what is kept, in a sentence."""
        from hf_mote.runs.folder import holds_records

        if self._folder is None or not holds_records(self._folder):
            return NOTHING
        return f"What is done is kept in {self._folder}; the same command goes on from it."

    @contextmanager
    def of(self, model: nn.Module | None) -> Iterator[Callable[[str], Path | None]]:
        """Keep what is done within the block; yields what returns the folder of a part of it, `""` for the whole.

        Where nobody asked for a folder, and the model has something attached that cannot be compared with a later
        run's, nothing is kept.

        Args:
            model (`nn.Module`, *optional*): The model that works; of one behind a server nothing is kept.
        """
        from hf_mote.runs.attached import attached_to
        from hf_mote.runs.folder import holds_records, remove_run

        if model is None:
            self._folder = None
        elif self._given is None:
            try:
                attached_to("--run-folder", model)
            except UnsupportedError:
                self._folder = None
        folder = self._folder
        done = False
        try:
            yield lambda part: None if folder is None else folder / part
            done = True
        finally:
            if folder is not None and self._given is None and (done or not holds_records(folder)):
                remove_run(folder)


def _earlier_files(folder: Path) -> list[str]:
    """Return the files that the report in a folder lists, and that lie in the folder, by their path from there."""
    from hf_mote.files import RESULT_LIMIT, read_json

    try:
        listed = read_json(folder / REPORT, limit=RESULT_LIMIT).get("files")
    except HFMoTEError:
        return []
    found = []
    for name in listed if isinstance(listed, list | dict) else ():
        try:
            inner = PurePosixPath(name)
            if not inner.is_absolute() and ".." not in inner.parts and folder in (folder / inner).resolve().parents:
                found.append(inner.as_posix())
        # An edited report may list what no path can be.
        except (OSError, ValueError, TypeError, RuntimeError):
            continue
    return found
