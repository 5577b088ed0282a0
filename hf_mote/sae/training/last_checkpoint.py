"""The checkpoint of a Trainer from which training goes on: the last one whose state, written last, is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import logging

from hf_mote.errors import FileFormatError, first_line
from hf_mote.files import load_json

__all__ = ["last_complete", "state_in"]

_STATE = "trainer_state.json"
_logger = logging.get_logger(__name__)


def last_complete(folder: Path) -> str:
    """Return the path of the last checkpoint in a folder in which the trainer's state, written last, is whole.

    Args:
        folder (`Path`): The `output_dir` of a Trainer.

    Raises:
        [`FileFormatError`]: if there is none.
    """
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True):
        try:
            state = state_in(path)
            step = state.get("global_step") if isinstance(state, dict) else None
            if type(step) is not int or step != int(path.name.removeprefix("checkpoint-")):
                raise ValueError("is of another step")
        except (OSError, ValueError):  # an error of the file's form is a ValueError
            _logger.warning("%s is not complete, and passed over.", path)
            continue
        return str(path)
    raise FileFormatError(
        str(folder), "holds no complete checkpoint", fix="Start anew, without resume_from_checkpoint."
    )


def state_in(checkpoint: Path) -> Any:
    """Return the trainer's state in a checkpoint, which the Trainer itself reads again.

    Raises:
        [`FileFormatError`]: if it holds a key twice, or is no JSON.
        `OSError`: if it is missing.
    """
    path = checkpoint / _STATE
    try:
        return load_json(str(path), path.read_text(encoding="utf-8"))
    except FileFormatError:
        raise
    except (ValueError, RecursionError) as error:
        fix = "Go on from another checkpoint, or start anew, without resume_from_checkpoint."
        raise FileFormatError(str(path), "is not JSON", got=first_line(error), fix=fix) from error
