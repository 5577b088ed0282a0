"""Checkpoints of a transformers Trainer in a run folder: written rarely, whole or not at all, and checked when read.

The Trainer writes a folder file by file. Here a record says which folder is the last whole one and what its files
hold, so that a run never resumes from one that is incomplete or damaged. Ctrl-C waits for the end of the step, since
half of one must not be kept.
"""

from __future__ import annotations

import hashlib
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.utils import logging

from hf_mote.errors import FileFormatError, first_line
from hf_mote.runs.folder import CHECKPOINT, RunFolder

__all__ = ["Checkpoints"]

EVERY = 300.0  # seconds, at least
SHARE = 20  # at most one part in so many of the time is spent on writing
_RECORD = "checkpoint"
_logger = logging.get_logger(__name__)


class Checkpoints(TrainerCallback):
    """Keeps the last checkpoint of a Trainer whose `output_dir` is a run folder and whose `save_strategy` is "no".

    One is written every five minutes, less often where that would take more than a twentieth of the time, and at the
    end of the step in which Ctrl-C is pressed. The one before is deleted afterwards.

    Args:
        run ([`RunFolder`]): The run's.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._saved = time.monotonic()
        self._asked: float | None = None
        self._took = 0.0
        self._unsaved = 0  # steps since the last checkpoint
        self._interrupted = False

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
        """Keep what is trained within the block, also where it is interrupted or the disk is full.

        Ctrl-C raises `KeyboardInterrupt` once the step is done and kept or, after the last step, at the end of the
        block. It does so at once the second time, and where no step was made since the last checkpoint; no checkpoint
        is half written then. Elsewhere than in the main thread, or where Ctrl-C does something else, it is left as it
        is.

        Raises:
            [`FileFormatError`]: if a checkpoint cannot be written, as on a full disk.
        """
        try:
            with self._finishing_steps():
                yield
        except (OSError, RuntimeError, SafetensorError) as error:
            if self._asked is None:
                raise
            fix = "What was kept before is unchanged. Make room, and run the same again."
            where = str(self._run.path)
            raise FileFormatError(where, "cannot hold a checkpoint", got=first_line(error), fix=fix) from error

    def train(self, trainer: Trainer) -> None:
        """Train from the last checkpoint on, within [`training`].

        Args:
            trainer (`Trainer`): Without checkpoints of its own.
        """
        trainer.add_callback(self)
        trainer.train(resume_from_checkpoint=self.last())
        if self._interrupted and trainer.state.global_step < trainer.state.max_steps:
            raise KeyboardInterrupt

    @contextmanager
    def _finishing_steps(self) -> Iterator[None]:
        in_main = threading.current_thread() is threading.main_thread()
        if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, *_: Any) -> None:
        if not self._unsaved:
            raise KeyboardInterrupt
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._interrupted = True
        _logger.warning("Stopping when this step is done and kept. Ctrl-C again stops at once, and that is lost.")

    # Called by the Trainer.

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._saved = time.monotonic()
        self._unsaved = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint if it is due, or if the training is to stop."""
        self._unsaved += 1
        due = time.monotonic() - self._saved >= max(EVERY, SHARE * self._took)
        if state.global_step < state.max_steps and (due or self._interrupted):
            self._asked = time.monotonic()
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record that a checkpoint is whole, and delete the one before; stop if that was asked for."""
        folder = self._run.path / f"checkpoint-{state.global_step}"
        self._run.write(_RECORD, {}, {"folder": folder.name, "files": _digests(folder)})
        self._remove_but(folder)
        self._saved = time.monotonic()
        self._took = self._saved - (self._saved if self._asked is None else self._asked)
        self._asked, self._unsaved = None, 0
        if self._interrupted:
            control.should_training_stop = True

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
