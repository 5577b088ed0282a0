"""The files of a run: a description of each, the figures as JSON, and the page that shows them."""

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
    """Write the page, if there is one, and the figures with a list of all files, which a later `--force` may replace.

    Args:
        folder (`Path`): The folder, which already holds the other files.
        figures (`Mapping`): JSON-native; numbers that are not finite become null.
        provenance (`Mapping[str, str]`): The model, settings and versions of the run, by name.
        holds (`Mapping[str, str]`): What the files hold, by their path in the folder.
        page (`Callable`, *optional*): Makes the page from the description of all files.
    """
    from hf_mote.files import write_json

    described = {**holds, REPORT: "the figures of this run, and the list of files"}
    if page is not None:
        from hf_mote.reports.page import write_page

        write_page(folder / PAGE, page(described))
        described[PAGE] = "the report of this run"
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
    """Return the config of the first experts, if a number of them is given.

    Args:
        ranking (`ExpertRanking`): The ranking.
        suppress (`int`, *optional*): How many to suppress.
        stimulate (`int`, *optional*): How many to stimulate.
        multiply (`int`, *optional*): How many to give a gain.
        by (`float`, *optional*): The gain.
        mode (`str`): As `MoTEConfig.suppress_mode`.
        positions (`list[int]`, *optional*): As `MoTEConfig.positions`.
        base_model (`str`, *optional*): The model as it was given; the config holds only the name of a folder.
        strength (`float`, *optional*, defaults to 1.0): As `MoTEConfig.strength`.

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
    """Return the first `n` experts as mappings, JSON-native except for NaN."""
    return [row._asdict() for row in ranking.rows(min(n, len(ranking)))]


def safe_name(index: int, name: str) -> str:
    """Return a file name for a class of any name, a different one for each index."""
    return f"{index}_{re.sub(r'[^A-Za-z0-9-]+', '_', name)[:40].strip('_') or 'class'}"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value


def check_output(folder: Path, *, force: bool) -> None:
    """Raise unless a folder may be written to; called before anything is computed.

    Args:
        folder (`Path`): It may exist if it is empty.
        force (`bool`): Whether it may hold files.

    Raises:
        [`FileFormatError`]: if it is a file, is not empty, or could not be replaced as a whole.
    """
    check_folder(folder, f"--output {folder}")
    if not force and os.path.isdir(folder) and any(folder.iterdir()):
        fix = "Give another --output, or --force to replace what an earlier run wrote there."
        raise FileFormatError(f"--output {folder}", "holds something already", fix=fix)


@contextmanager
def writing_to(folder: Path, *, force: bool) -> Iterator[Path]:
    """Yield a folder to write to, which replaces `folder` at once if the block succeeds.

    The files that the report of an earlier run lists are then deleted, and no others. If the block fails, the files
    that it wrote are kept beside `folder`.

    Args:
        folder (`Path`): The folder of the results.
        force (`bool`): Whether it may hold files.

    Raises:
        [`FileFormatError`]: if it may not be written to, or the disk is full.
    """
    check_output(folder, force=force)
    with replacing_folder(folder, f"--output {folder}", _earlier_files, keep=True) as files:
        yield files


class Work:
    """The place where a command keeps its work, so that the same command continues from there after a kill.

    It is a folder beside the output, which is deleted when the output is written, or the folder of `--run-folder`,
    which stays. A command with neither keeps nothing.

    Args:
        output (`Path`, *optional*): The command's output.
        given (`Path`, *optional*): The folder of `--run-folder`.
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
        """Return a sentence on what is kept."""
        from hf_mote.runs.folder import holds_records

        if self._folder is None or not holds_records(self._folder):
            return NOTHING
        return f"What is done is kept in {self._folder}; the same command goes on from it."

    @contextmanager
    def of(self, model: nn.Module | None) -> Iterator[Callable[[str], Path | None]]:
        """Keep the work of the block; yields a function that returns the folder of a part of it, `""` for the whole.

        Without `--run-folder`, nothing is kept if something is attached to the model that cannot be compared with what
        is attached in a later run.

        Args:
            model (`nn.Module`, *optional*): The model; without one, nothing is kept.
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
    """Return the files in a folder that its report lists, by their path in the folder."""
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
        # An edited report may list invalid paths.
        except (OSError, ValueError, TypeError, RuntimeError):
            continue
    return found
