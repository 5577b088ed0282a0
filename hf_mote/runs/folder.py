"""The run folder: what a run has computed, record by record, so that a killed run continues where it stopped.

A folder holds `run.json`, which states what is computed and how, and a file for each record, written whole or not at
all. Another run with the same settings reads what is there and does the rest; with other settings it is refused. Each
record carries a digest of its values, its name and its run, by which damaged, renamed and foreign records are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_mote.errors import FileFormatError, ModelMismatchError, first_line
from hf_mote.files import read_json, read_tensors, write_json, write_tensors

# torch is imported where it is used: the command line asks what is kept before it loads it.
if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CHECKPOINT", "MANIFEST", "Record", "RunFolder", "digest_of", "holds_records", "remove_run"]

MANIFEST = "run.json"
CHECKPOINT = re.compile(r"checkpoint-\d+")
"""Prefix of the folders that a Trainer writes beside the records."""
_KIND = "run_record"
_FORMAT = 3  # of what is compared and kept; folders of another version are refused
_ENDING = ".safetensors"
_FIX = "Delete it; it will be made again."


class Record(NamedTuple):
    """The results of one step.

    Attributes:
        tensors (`dict[str, torch.Tensor]`): Values by name, on the CPU.
        notes (`dict[str, Any]`): Further values, JSON-native.
    """

    tensors: dict[str, Tensor]
    notes: dict[str, Any]


class RunFolder:
    """A folder of records of one run.

    Args:
        path (`str` or `os.PathLike`): The folder, made if it does not exist.
        settings (`Mapping[str, Any]`): JSON-native: what is computed, and how.

    Raises:
        [`ModelMismatchError`]: if the folder is that of a run with other settings, which are named, or was written by
            another version.
        [`FileFormatError`]: if it cannot be a run folder.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        manifest = self.path / MANIFEST
        settings = json.loads(json.dumps({"format": _FORMAT, **settings}))
        self._run = digest_of(settings)
        if not os.path.exists(manifest):
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except (OSError, ValueError) as error:
                raise FileFormatError(str(self.path), "cannot be made a folder", got=first_line(error)) from error
            # Hidden files are what a killed run was writing.
            if any(not file.name.startswith(".") for file in self.path.iterdir()):
                if not os.path.exists(manifest):  # by now another process of this run may have written it
                    got, expected = "other files, and no run.json", "an empty folder"
                    raise FileFormatError(str(self.path), "is not a run folder", got=got, expected=expected)
            else:
                write_json(manifest, settings)
                return
        found = read_json(manifest)
        if found.get("format") != _FORMAT:
            raise ModelMismatchError(
                str(manifest),
                "was written by another version of hf_mote, which does not record everything that a run depends on",
                got=f"format {found.get('format', 1)}",
                expected=f"format {_FORMAT}",
                fix="Give another folder, or delete this one, and run anew.",
            )
        other = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
        if other:
            raise ModelMismatchError(
                str(self.path),
                "holds a run with other settings",
                got=", ".join(_differing(key, found.get(key), settings.get(key)) for key in other),
                expected=", ".join(_differing(key, settings.get(key), found.get(key)) for key in other),
                fix="Give another folder, or the settings it was begun with; or delete it to begin anew.",
            )

    def read(self, name: str, shapes: Mapping[str, Sequence[int | None]] | None = None) -> Record | None:
        """Return a record, or `None` if there is none yet.

        Args:
            name (`str`): Which.
            shapes (`Mapping[str, Sequence[int]]`, *optional*): The tensors that it must hold, and their shapes; `None`
                in the place of any number.

        Raises:
            [`FileFormatError`]: if its file is damaged, or is not what this run wrote under this name.
        """
        path = self.file_of(name)
        if not path.exists():
            return None
        try:
            tensors, held = read_tensors(path, kind=_KIND)
        except FileFormatError as error:
            raise FileFormatError(str(path), "is damaged", got=str(error).rstrip("."), fix=_FIX) from error
        notes = held.get("notes")
        if not isinstance(notes, dict) or held.get("sha256") != self._digest(name, tensors, notes):
            raise self.damaged(name, "its digest is another")
        for key, shape in ({} if shapes is None else shapes).items():
            found = tuple(tensors[key].shape) if key in tensors else None
            fits = found is not None and len(found) == len(shape)
            if found is None or not fits or any(b not in (a, None) for a, b in zip(found, shape, strict=True)):
                raise self.damaged(name, f"{key} of shape {found}", expected=f"{tuple(shape)}")
        return Record(tensors, notes)

    def write(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any] | None = None) -> None:
        """Keep a record; it replaces an earlier one of that name.

        Args:
            name (`str`): Which: a file's name without its ending.
            tensors (`Mapping[str, torch.Tensor]`): Values, of any shapes, dtypes and devices.
            notes (`Mapping[str, Any]`, *optional*): Further values, JSON-native.
        """
        kept_notes = {} if notes is None else dict(notes)
        held = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
        metadata = {"kind": _KIND, "notes": kept_notes, "sha256": self._digest(name, held, kept_notes)}
        write_tensors(self.file_of(name), held, metadata)

    def kept(
        self, name: str, make: Callable[[], Mapping[str, Tensor]], shapes: Mapping[str, Sequence[int | None]]
    ) -> dict[str, Tensor]:
        """Return the tensors of a record, which is made and kept if it is not there yet.

        Args:
            name (`str`): Which.
            make (`Callable[[], Mapping[str, torch.Tensor]]`): Computes them.
            shapes (`Mapping[str, Sequence[int]]`): As in [`read`].
        """
        record = self.read(name, shapes)
        if record is not None:
            return record.tensors
        made = dict(make())
        self.write(name, made)
        return made

    def damaged(self, name: str, got: object, *, expected: object = None) -> FileFormatError:
        """Return the error for a record that this run cannot have written."""
        return FileFormatError(
            str(self.file_of(name)), "holds no record of this run", got=got, expected=expected, fix=_FIX
        )

    def file_of(self, name: str) -> Path:
        """Return the path of a record."""
        return self.path / f"{name}{_ENDING}"

    def _digest(self, name: str, tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> str:
        import torch

        digest = hashlib.sha256(json.dumps([self._run, name, notes], sort_keys=True).encode())
        for key in sorted(tensors):
            tensor = tensors[key]
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def digest_of(value: object) -> str:
    """Return a SHA-256 of something JSON-native."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def holds_records(folder: Path) -> bool:
    """Return whether a folder, or one below it, holds records."""
    return any((path.parent / MANIFEST).exists() for path in folder.rglob(f"*{_ENDING}"))


def remove_run(folder: Path) -> None:
    """Delete the run folders at and below a path, and the temporary files of killed runs; other files stay.

    Args:
        folder (`Path`): A run folder, or one that holds run folders.
    """
    for place, _, names in os.walk(folder, topdown=False):
        path = Path(place)
        if MANIFEST in names:
            for other in path.iterdir():
                if CHECKPOINT.fullmatch(other.name) and other.is_dir() and not other.is_symlink():
                    shutil.rmtree(other)
            # The manifest last: what a kill leaves is a run folder still.
            ours = [name for name in names if name.endswith(_ENDING) or name.startswith(".")]
            for name in [*ours, MANIFEST]:
                (path / name).unlink(missing_ok=True)
        if not any(path.iterdir()):
            path.rmdir()


def _differing(key: str, value: object, other: object) -> str:
    """Return a setting as an error shows it: of several values those that differ."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {name: entry for name, entry in value.items() if other.get(name) != entry}
    return f"{key}: {str(value)[:80]}"
