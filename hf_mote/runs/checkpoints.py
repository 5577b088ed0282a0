"""Checkpoints of a transformers Trainer in a run folder: written rarely, whole or not at all, and checked when read.

The Trainer writes a folder file by file. Here a record says which folder is the last whole one and what its files
hold, so that a run never resumes from one that is incomplete or damaged.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerCallback

from hf_mote.errors import FileFormatError, first_line
from hf_mote.runs.folder import CHECKPOINT, RunFolder

__all__ = ["Checkpoints"]

EVERY = 300.0  # seconds, at least
SHARE = 20  # at most one part in so many of the time is spent on writing
_RECORD = "checkpoint"


class Checkpoints(TrainerCallback):
    """Keeps the last checkpoint of a Trainer whose `output_dir` is a run folder and whose `save_strategy` is "no".

    One is written every five minutes, less often where that would take more than a twentieth of the time. The one
    before is deleted afterwards.

    Args:
        run ([`RunFolder`]): The run's.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._saved = time.monotonic()
        self._asked: float | None = None
        self._took = 0.0

    def last(self) -> str | None:
        """Return the last whole checkpoint, or `None`; incomplete ones of killed runs are deleted.

        Raises:
            [`FileFormatError`]: if it is damaged.
        """
        record = self._run.read(_RECORD)
        folder = None
        if record is not None:
            name, files = record.notes.get("folder"), record.notes.get("files")
            if not isinstance(name, str) or not CHECKPOINT.fullmatch(name) or not isinstance(files, dict):
                raise self._run.damaged(_RECORD, record.notes)
            folder = self._run.path / name
            found = _digests(folder)
            wrong = sorted(key for key in {*files, *found} if files.get(key) != found.get(key))
            if wrong:
                raise FileFormatError(
                    str(folder / wrong[0]),
                    "is missing" if wrong[0] not in found else "is not what the run wrote there",
                    fix=f"Delete {self._run.file_of(_RECORD)}, and training begins anew.",
                )
        self._remove_but(folder)
        return None if folder is None else str(folder)

    def remove(self) -> None:
        """Delete the checkpoint, once something else holds what was trained."""
        self._run.file_of(_RECORD).unlink(missing_ok=True)
        self._remove_but(None)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Raise [`FileFormatError`] if a checkpoint cannot be written within the block, as on a full disk."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if self._asked is None:
                raise
            fix = "What was kept before is unchanged. Make room, and run the same again."
            where = str(self._run.path)
            raise FileFormatError(where, "cannot hold a checkpoint", got=first_line(error), fix=fix) from error

    # Called by the Trainer.

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint if it is due."""
        if state.global_step < state.max_steps and time.monotonic() - self._saved >= max(EVERY, SHARE * self._took):
            self._asked = time.monotonic()
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record that a checkpoint is whole, and delete the one before."""
        folder = self._run.path / f"checkpoint-{state.global_step}"
        self._run.write(_RECORD, {}, {"folder": folder.name, "files": _digests(folder)})
        self._remove_but(folder)
        self._saved = time.monotonic()
        self._took = self._saved - (self._saved if self._asked is None else self._asked)
        self._asked = None

    def _remove_but(self, folder: Path | None) -> None:
        for path in self._run.path.iterdir():
            if CHECKPOINT.fullmatch(path.name) and path.is_dir() and not path.is_symlink() and path != folder:
                shutil.rmtree(path)


def _digests(folder: Path) -> dict[str, str]:
    """Return a SHA-256 of each file in a folder, by its path from there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
