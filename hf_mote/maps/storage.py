"""Where maps of very many prompts are held: in memory up to a size, beyond that in a memory-mapped file.

100,000 prompts of a model with 58 x 256 experts have 6 GB of counts and 6 GB of weights.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hf_mote.errors import FileFormatError, first_line

__all__ = ["empty_maps", "row_blocks"]

HELD = 256 * 2**20  # bytes up to which maps are held in memory
_AT_ONCE = 2**20
BLOCK = 64 * 2**20  # bytes, in float64, of the rows that are looked at together


def empty_maps(shape: Sequence[int], folder: str | os.PathLike[str] | None = None) -> Tensor:
    """Return a float32 tensor to write maps to, on the CPU, filled with zeros.

    Up to 256 MiB are held in memory. More are mapped to a temporary file that is deleted with the tensor; the
    system decides how much of it is held in memory.

    Args:
        shape (`Sequence[int]`): Its shape.
        folder (`str` or `os.PathLike`, *optional*):
            Where the file goes; by default the folder for temporary files, which `TMPDIR` names.

    Raises:
        [`FileFormatError`]: if there is no room for the file.
    """
    size = 4 * math.prod(shape)
    if size <= HELD:
        return torch.zeros(*shape)
    place = os.fspath(folder or tempfile.gettempdir())
    try:
        with _nameless(place) as (handle, path):
            # A file with holes would end the process, by a signal, where the disk fills up.
            _fill(handle, size)
            return torch.from_file(path, shared=True, size=size // 4, dtype=torch.float32).view(*shape)
    except OSError as error:
        raise FileFormatError(
            place,
            "has no room for the maps of so many prompts",
            got=first_line(error),
            expected=f"{size / 2**30:.1f} GiB",
            fix="Free some, or let the environment variable TMPDIR name a folder on a larger disk.",
        ) from error


def row_blocks(maps: Tensor) -> Iterator[slice]:
    """Yield slices of consecutive maps that together take at most 64 MiB in float64, one map at least.

    Args:
        maps (`torch.Tensor` of shape `(prompts, ...)`): The maps.
    """
    rows = max(1, BLOCK // max(1, 8 * math.prod(maps.shape[1:])))
    for start in range(0, len(maps), rows):
        yield slice(start, min(start + rows, len(maps)))


@contextmanager
def _nameless(folder: str) -> Iterator[tuple[int, str]]:
    """Yield an open file in a folder and a path to it; the file is deleted when it is closed, also by a kill."""
    try:
        handle = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    # Some systems and file systems only have files with names.
    except (AttributeError, OSError):
        handle, path = tempfile.mkstemp(prefix=".hf-mote-maps-", dir=folder)
    else:
        path = f"/proc/self/fd/{handle}"
    try:
        yield handle, path
    finally:
        os.close(handle)
        if not path.startswith("/proc/"):
            os.unlink(path)  # the mapping keeps what is in it


def _fill(handle: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
        return
    nothing = bytes(_AT_ONCE)
    for start in range(0, size, _AT_ONCE):
        os.write(handle, nothing[: size - start])
