"""Saving an SAE so that its folder holds the old one or the new one, never parts of both."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hf_mote.errors import FileFormatError, first_line
from hf_mote.folders import check_folder, replacing_folder

__all__ = ["save_whole"]

_CONFIG = "config.json"


def save_whole(save: Callable[..., Any], folder: Path, *args: Any, **kwargs: Any) -> Any:
    """Call the writer of transformers so that all its files are put in place at once.

    Where a folder cannot be exchanged (it is the one that the process is in, a mount point, or holds very many files),
    the config is deleted first and written last, so that a killed run leaves a folder that is refused.

    Args:
        save (`Callable`): `save_pretrained` of transformers.
        folder (`Path`): Where to.
        *args (`Any`): Its further arguments.
        **kwargs (`Any`): Its further keyword arguments.

    Raises:
        [`FileFormatError`]: if the folder cannot be written to, or the disk is full.
    """
    where = str(folder)
    if folder.exists() and not folder.is_dir():
        raise FileFormatError(where, "is a file", expected="a folder")
    if kwargs.get("push_to_hub"):
        kwargs.setdefault("repo_id", folder.name)
    try:
        check_folder(folder, where)
    except FileFormatError:
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise
        return _save_in_place(save, folder, *args, **kwargs)
    variant = kwargs.get("variant")
    with replacing_folder(folder, where, lambda target: _weights_in(target, variant)) as files, _disk_errors(where):
        return save(files, *args, **kwargs)


def _save_in_place(save: Callable[..., Any], folder: Path, *args: Any, **kwargs: Any) -> Any:
    try:
        with tempfile.TemporaryDirectory(prefix=".hf-mote-", dir=folder) as draft:
            with _disk_errors(str(folder)):
                saved = save(draft, *args, **kwargs)
            (folder / _CONFIG).unlink(missing_ok=True)
            written = sorted(path.name for path in Path(draft).iterdir())
            for name in {*_weights_in(folder, kwargs.get("variant"))} - {*written}:
                (folder / name).unlink(missing_ok=True)
            for name in sorted(written, key=lambda name: name == _CONFIG):
                os.replace(Path(draft, name), folder / name)
            return saved
    except OSError as error:
        raise FileFormatError(str(folder), "cannot be written", got=first_line(error)) from error


@contextmanager
def _disk_errors(where: str) -> Iterator[None]:
    """Turn what safetensors says of a full disk into [`FileFormatError`]."""
    try:
        yield
    except SafetensorError as error:
        raise FileFormatError(where, "cannot be written", got=first_line(error)) from error


def _weights_in(folder: Path, variant: str | None) -> list[str]:
    """Return the files of weights of a variant, which may be more shards than the new ones."""
    stem = "model" if variant is None else rf"model\.{re.escape(variant)}"
    weights = re.compile(rf"{stem}(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
    return [path.name for path in folder.iterdir() if weights.fullmatch(path.name)] if folder.is_dir() else []
