"""Windows of activations on disk, one Arrow file each, so that a text goes through the model once.

A window is kept as the model gave it, before it is shuffled, scaled or cut into batches: runs that differ in these
share a cache. What is read is compared with the stream: its settings and the model's weights
when the cache is opened, the window's tokens when it is read, and once the activations of a window's first forward.
The files are those of `datasets.Dataset.from_file`.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hf_mote.errors import ConfigError, FileFormatError, HFMoTEError, first_line
from hf_mote.files import check_memory, read_json, replacing, write_json

if TYPE_CHECKING:
    import pyarrow

__all__ = ["WindowCache", "digest_of", "fingerprint_of"]

_DOCUMENT = "cache.json"
_KIND = "activation_cache"
_KEY = b"hf_mote"
_DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Values of each tensor that identify a model.
_SAMPLES = 1024
_FIXES = "Empty the folder, or name another one."


class WindowCache:
    """Windows in a folder.

    Args:
        folder (`Path`): Made if it is not there.
        settings (`Mapping[str, Any]`): JSON-native: all that decides what a window holds, but for its tokens.

    Raises:
        [`ConfigError`]: if the folder holds windows of other settings.
        [`FileFormatError`]: if it is not a cache, or cannot be written.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder
        document = folder / _DOCUMENT
        if not document.exists():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                strange = next(folder.glob("*.arrow"), None)
            except OSError as error:
                raise FileFormatError(str(folder), "cannot be a cache", got=first_line(error)) from error
            if strange is not None:
                raise FileFormatError(str(folder), "holds windows, and no word on what made them", fix=_FIXES)
            write_json(document, {"kind": _KIND, "settings": dict(settings)})
            return
        found = read_json(document)
        if found.get("kind") != _KIND or not isinstance(found.get("settings"), dict):
            raise FileFormatError(str(document), "is of no cache of activations", got=repr(found.get("kind")))
        theirs, ours = found["settings"], json.loads(json.dumps(dict(settings)))
        changed = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
        if changed:
            raise ConfigError(
                f"cache {folder}",
                f"was made with another {', '.join(changed)}",
                got=", ".join(repr(ours.get(key)) for key in changed),
                expected=", ".join(repr(theirs.get(key)) for key in changed),
                fix=_FIXES,
            )

    def read(self, name: str, digest: str) -> tuple[dict[str, Tensor], dict[str, int]] | None:
        """Return the rows of a window, `(tokens, width)` by hookpoint, and how many were left out by reason.

        Args:
            name (`str`): The window's.
            digest (`str`): Of its tokens, as by [`digest_of`].

        Returns:
            The two, or `None` if the window is not there.

        Raises:
            [`ConfigError`]: if it is of other tokens.
            [`FileFormatError`]: if the file is damaged.
        """
        import pyarrow as pa

        path = self._path(name)
        if not path.exists():
            return None
        try:
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as reader:
                said = json.loads((reader.schema.metadata or {})[_KEY])
                if said["tokens"] != digest:
                    raise ConfigError(str(path), "is of another text, or of another tokenizer", fix=_FIXES)
                size = path.stat().st_size
                check_memory(path, size, size)
                table = reader.read_all()
                dtype = _DTYPES[said["dtype"]]
                if len(set(table.column_names)) < len(table.column_names):
                    raise ValueError("a column twice")
                rows = {key: _tensor(table.column(key), dtype) for key in table.column_names}
                sums = said.get("sums")  # which earlier versions did not write
                if sums is not None and sums != {key: _sum_of(part) for key, part in rows.items()}:
                    raise ValueError("other values than were written")
                return rows, {str(key): _number(value) for key, value in said["left_out"].items()}
        except HFMoTEError:
            raise
        # ArrowInvalid, OSError, KeyError, ValueError and others for damaged files.
        except Exception as error:
            fix = "Delete the file; it is made again."
            raise FileFormatError(
                str(path), "must be a window of activations", got=first_line(error), fix=fix
            ) from error

    def write(self, name: str, digest: str, rows: Mapping[str, Tensor], left_out: Mapping[str, int]) -> None:
        """Keep a window, whole or not at all.

        Args:
            name (`str`): The window's.
            digest (`str`): Of its tokens.
            rows (`Mapping[str, torch.Tensor]`): `(tokens, width)` by hookpoint, on the CPU and of one dtype.
            left_out (`Mapping[str, int]`): Tokens by the reason that they were left out for.

        Raises:
            [`FileFormatError`]: if it cannot be written; the windows before it stay.
        """
        import pyarrow as pa

        (dtype,) = {part.dtype for part in rows.values()}
        sums = {key: _sum_of(part) for key, part in rows.items()}
        said = {"tokens": digest, "left_out": dict(left_out), "dtype": str(dtype).removeprefix("torch."), "sums": sums}
        table = pa.table({key: _column(part) for key, part in rows.items()})
        table = table.replace_schema_metadata({_KEY: json.dumps(said).encode()})
        with (
            replacing(self._path(name)) as temporary,
            pa.OSFile(str(temporary), "wb") as file,
            pa.ipc.new_stream(file, table.schema) as writer,
        ):
            writer.write_table(table)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.arrow"


def digest_of(sequences: Iterable[list[int]]) -> str:
    """Return a digest of sequences of token ids: their numbers, and where each ends."""
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(len(sequence).to_bytes(8, "little"))
        digest.update(torch.tensor(sequence, dtype=torch.int64).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def fingerprint_of(model: nn.Module) -> str:
    """Return a digest of a model's tensors: names, shapes, dtypes and up to 1,024 values of each, evenly spaced."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        if flat.is_meta or not flat.numel():
            continue
        places = torch.arange(0, flat.numel(), max(flat.numel() // _SAMPLES, 1), device=flat.device)
        digest.update(flat[places].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _column(rows: Tensor) -> pyarrow.FixedSizeListArray:
    import pyarrow as pa

    flat = rows.contiguous().reshape(-1)
    # Arrow has no bfloat16: its bits are kept.
    values = flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat
    return pa.FixedSizeListArray.from_arrays(pa.array(values.numpy()), rows.shape[1])


def _sum_of(rows: Tensor) -> int:
    """Return a checksum of a tensor's bytes, which detects a damaged disk."""
    return zlib.crc32(rows.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} tokens were left out")
    return value


def _tensor(column: pyarrow.ChunkedArray, dtype: torch.dtype) -> Tensor:
    """Return a column as rows; raises ValueError for one that was not written here."""
    import pyarrow as pa

    of = pa.uint16() if dtype == torch.bfloat16 else pa.from_numpy_dtype(str(dtype).removeprefix("torch."))
    if not pa.types.is_fixed_size_list(column.type) or column.type.value_type != of:
        raise ValueError(f"a column of {column.type}, of {dtype}")
    parts = []
    for chunk in column.chunks:
        values = chunk.flatten()  # without what is null
        if chunk.null_count or values.null_count or len(values) != len(chunk) * column.type.list_size:
            raise ValueError("a row that is null")
        parts.append(torch.from_numpy(values.to_numpy(zero_copy_only=False).copy()))
    if len(parts) == 1:
        flat = parts[0]  # as all that are written here: a window is large, and need not be copied again
    else:
        flat = torch.cat(parts) if parts else torch.empty(0, dtype=torch.uint16 if dtype == torch.bfloat16 else dtype)
    rows = (flat.view(dtype) if dtype == torch.bfloat16 else flat).reshape(-1, column.type.list_size)
    if not bool(rows.isfinite().all()):
        raise ValueError("NaN or infinite numbers")
    return rows
