"""The two file formats, JSON and safetensors, written whole or not at all and read strictly.

Below `hub.py`, which re-exports the four functions: an edited, truncated, oversized or foreign file is refused with
its path and, where known, the field or line. Nothing is ever unpickled.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import re
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mote.errors import ConfigError, FileFormatError, HFMoTEError, first_line, is_finite
from hf_mote.version import __version__

# torch and safetensors are imported where they are used: the command line looks at paths before it loads them.
if TYPE_CHECKING:
    import torch

__all__ = [
    "READ_LIMIT",
    "RESULT_LIMIT",
    "SCHEMA_VERSION",
    "check_memory",
    "check_name",
    "is_running",
    "load_json",
    "local_path",
    "parse_json",
    "parse_json_object",
    "read_json",
    "read_safetensors",
    "read_tensors",
    "replacing",
    "write_json",
    "write_tensors",
]

SCHEMA_VERSION = 1

RESULT_LIMIT = 2**30
"""Most bytes of JSON that are read as the result of a run, which holds as many texts as there were prompts."""

READ_LIMIT = "HF_MOTE_READ_LIMIT"
"""Environment variable: most bytes of memory that the values of a file may take, in place of the default rule."""

_MOST_MEMORY = 64 * 2**30  # a dictionary of 2^20 latents of width 3584 in float32 has 28 GiB
_MOST_UNFOLDED = 4  # what compression and shared storages save in honest files is less
_ALWAYS_READ = 64 * 2**20
_MOST_NAME = 512
_METADATA_KEY = "hf_mote"
_METADATA_TENSOR = "__hf_mote__"
_HEADER_LIMIT = 16 * 2**20  # safetensors reads no header above 100 MB
_JSON_LIMIT = 16 * 2**20
_MAX_DEPTH = 32
_AT_ONCE = 2**20
_SURELY_FINITE = 2**63
_DRAFT = ".hf-mote"  # in the name of a file that is being written
_IS_DRAFT = re.compile(r"\.[0-9a-f]{12}\.[0-9a-f]+-\d+-[0-9a-f]{12}\.hf-mote.*")


def write_json(path: str | os.PathLike[str], data: Mapping[str, Any], *, limit: int | None = _JSON_LIMIT) -> None:
    """Write `data` as JSON with sorted keys, or leave the file as it was.

    Args:
        path (`str` or `os.PathLike`):
            The file; its folder exists.
        data (`Mapping[str, Any]`):
            JSON-native values: `None`, `bool`, `int`, finite `float`, `str`, lists and string-keyed mappings of these.
        limit (`int`, *optional*, defaults to 16 MiB):
            Most bytes that it may take; `None` for the result of a run, which must not be lost because of its size.

    Raises:
        [`FileFormatError`]: if a value is not one of these, with the value's place, or there are too many.
    """
    text = _to_json(str(path), data)
    if limit is not None and len(text) > limit:
        got = f"{len(text)} bytes"
        raise FileFormatError(str(path), "would be too large to read", got=got, expected=f"at most {limit} bytes")
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(text)


def read_json(path: str | os.PathLike[str], *, limit: int = _JSON_LIMIT, infinite: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        limit (`int`, *optional*, defaults to 16 MiB):
            Most bytes the file may have.
        infinite (`bool`, *optional*, defaults to `False`):
            Whether it may hold infinite numbers, as configs of language models do for a limit that is none.

    Raises:
        [`FileFormatError`]: if the file is missing, above `limit`, truncated, not UTF-8, not an object, nested deeper
            than 32, or holds a key twice, NaN or, unless it may, an infinite number.
    """
    content = bytearray()
    try:
        # Reading a pipe would block.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileFormatError(str(path), "cannot be read", got="not a regular file")
        with open(path, "rb") as file:
            # In parts, since `read` takes as much memory as it is allowed to read.
            while len(content) <= limit and (part := file.read(_AT_ONCE)):
                content += part
    # ValueError for a path that holds a NUL.
    except (OSError, ValueError) as error:
        if isinstance(error, HFMoTEError):
            raise
        raise FileFormatError(str(path), "cannot be read", got=first_line(error)) from error
    if len(content) > limit:
        raise FileFormatError(str(path), "is too large", got=f"over {limit} bytes", expected=f"at most {limit} bytes")
    return parse_json_object(str(path), content, infinite=infinite)


def parse_json_object(
    where: str, content: bytes | bytearray, *, is_file: bool = True, infinite: bool = False
) -> dict[str, Any]:
    """Return the JSON object in bytes, by the rules of [`read_json`].

    Args:
        where (`str`):
            What an error names: a file, or a server's reply.
        content (`bytes` or `bytearray`):
            The JSON.
        is_file (`bool`, *optional*, defaults to `True`):
            Whether the bytes are a file's, which can be mended as an error says.
        infinite (`bool`, *optional*, defaults to `False`):
            Whether it may hold infinite numbers.

    Raises:
        [`FileFormatError`]: if it is not JSON in UTF-8, no object, nested deeper than 32, or holds a key twice, NaN,
            an infinite number, unless it may, or text that is not Unicode.
    """
    try:
        data = load_json(where, content.decode("utf-8"), fix="Keep one of them." if is_file else None)
    except FileFormatError:
        raise
    except json.JSONDecodeError as error:
        raise FileFormatError(
            f"{where}: line {error.lineno}, column {error.colno}",
            "must be valid JSON",
            got=error.msg,
            fix="The file is truncated or was edited; save or download it again." if is_file else None,
        ) from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(where, "must be valid JSON", got=first_line(error)) from error
    if not isinstance(data, dict):
        raise FileFormatError(where, "must hold a JSON object", got=type(data).__name__)
    _check_values(where, data, infinite=infinite)
    return data


def load_json(where: str, text: str, *, again: bool = False, fix: str | None = "Keep one of them.") -> Any:
    """Return the value of a JSON text that another library has written, whatever numbers and texts are in it.

    Args:
        where (`str`):
            The place, for the error.
        text (`str`):
            The text.
        again (`bool`, *optional*, defaults to `False`):
            Whether a key may be there again with the same value.
        fix (`str`, *optional*):
            How to mend it.

    Raises:
        [`FileFormatError`]: if it holds a key twice.
        `ValueError`: if it is not JSON.
        `RecursionError`: if it is nested too deeply.
    """

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(pairs)
        if len(data) == len(pairs):
            return data
        known: dict[str, Any] = {}
        for key, value in pairs:
            if key in known and not (again and value == known[key]):
                what = f"holds a key twice{', with two values' if again else ''}"
                raise FileFormatError(where, what, got=repr(key)[:80], fix=fix)
            known[key] = value
        return data

    return json.loads(text, object_pairs_hook=object_of)


def parse_json(where: str, text: str) -> Any:
    """Return the value of a JSON text, such as one line of a file.

    Args:
        where (`str`):
            The place, for the error.
        text (`str`):
            The text.

    Raises:
        [`FileFormatError`]: if it is not JSON, nested deeper than 32, or holds a key twice, NaN, an infinite number,
            or text that is not Unicode.
    """
    try:
        data = load_json(where, text)
    except FileFormatError:
        raise
    except json.JSONDecodeError as error:
        # The place of one line of a file has its number already.
        line = f"line {error.lineno}, " if "\n" in text else ""
        got = f"{error.msg} at {line}column {error.colno}"
        raise FileFormatError(where, "must be valid JSON", got=got) from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(where, "must be valid JSON", got=first_line(error)) from error
    _check_values(where, data)
    return data


def write_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and one JSON document to a safetensors file, or leave the file as it was.

    Args:
        path (`str` or `os.PathLike`):
            The file; its folder exists.
        tensors (`Mapping[str, torch.Tensor]`):
            Any shapes, dtypes and devices. Not modified.
        metadata (`Mapping[str, Any]`):
            JSON-native values, "kind" (`str`, what the file holds) among them. "schema_version", "hf_mote_version"
            and "transformers_version" are added. Where it is too long for the file's header, it becomes a tensor.

    Raises:
        [`FileFormatError`]: if "kind" is missing or a value is not JSON-native.
    """
    if not isinstance(metadata.get("kind"), str):
        raise FileFormatError(f"{path}: metadata.kind", "must say what the file holds", got=metadata.get("kind"))
    document = _to_json(str(path), {"schema_version": SCHEMA_VERSION, **_versions(), **metadata})
    import safetensors.torch
    import torch

    # safetensors refuses tensors that share memory or are not contiguous; the others are written without a copy.
    held: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        whole = own.untyped_storage().nbytes() == own.nbytes
        shared = not whole or any(own.untyped_storage().data_ptr() == other.data_ptr() for other in held.values())
        held[name] = own.clone() if shared else own
    header = {}
    if len(document) > _HEADER_LIMIT:
        held[_METADATA_TENSOR] = torch.frombuffer(bytearray(document), dtype=torch.uint8)
    else:
        header[_METADATA_KEY] = document.decode()
    with replacing(Path(path)) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # by the umask; safetensors' own are for their owner alone
        try:
            safetensors.torch.save_file(held, temporary, metadata=header)
        except safetensors.SafetensorError as error:  # a full disk, too
            raise OSError(first_line(error)) from error
        temporary.chmod(stat.S_IMODE(mode))


def read_tensors(path: str | os.PathLike[str], *, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the metadata of a file that [`write_tensors`] wrote.

    Args:
        path (`str` or `os.PathLike`):
            The file.
        kind (`str`):
            What the file must say it holds.

    Raises:
        [`FileFormatError`]: if the file is missing, truncated, not safetensors, without this package's metadata, of
            another kind, or written by a newer schema.
    """
    import torch

    tensors, header = _read_tensors(path)
    bytes_of = tensors.pop(_METADATA_TENSOR, None)
    if bytes_of is not None and (bytes_of.dtype != torch.uint8 or bytes_of.ndim != 1 or len(bytes_of) > RESULT_LIMIT):
        got, expected = f"{bytes_of.dtype} {tuple(bytes_of.shape)}", f"at most {RESULT_LIMIT} bytes"
        raise FileFormatError(f"{path}: {_METADATA_TENSOR}", "holds no metadata", got=got, expected=expected)
    document = bytes_of.numpy().tobytes() if bytes_of is not None else None if header is None else header.encode()
    if document is None:
        raise FileFormatError(
            str(path), f"has no {_METADATA_KEY!r} metadata", expected=f"a file that hf_mote wrote, of kind {kind!r}"
        )
    metadata = parse_json_object(f"{path}: metadata", document)
    if metadata.get("kind") != kind:
        raise FileFormatError(f"{path}: kind", "is another", got=repr(metadata.get("kind")), expected=repr(kind))
    schema = metadata.get("schema_version")
    if not isinstance(schema, int) or isinstance(schema, bool) or not 1 <= schema <= SCHEMA_VERSION:
        raise FileFormatError(
            f"{path}: schema_version",
            f"cannot be read by hf_mote {__version__}",
            got=f"{schema!r}, written by hf_mote {metadata.get('hf_mote_version')}",
            expected=f"1..{SCHEMA_VERSION}",
            fix="Upgrade hf_mote, or write the file again.",
        )
    return tensors, metadata


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Return the tensors, on the CPU, of any safetensors file.

    Raises:
        [`FileFormatError`]: if it is missing, damaged or too large for memory, or a name cannot be.
    """
    return _read_tensors(path)[0]


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a user gave, with `~` for a home folder; of a user that does not exist, as it is."""
    return Path(os.path.expanduser(path))


def check_memory(path: str | os.PathLike[str], unfolded: int, stored: int) -> None:
    """Refuse a file whose values would take far more memory than it has bytes; asked before they are read.

    Up to 64 MiB always pass, beyond that four times the file, and 64 GiB at most. The environment variable
    `HF_MOTE_READ_LIMIT`, in bytes, replaces all three limits.

    Args:
        path (`str` or `os.PathLike`): The file an error names.
        unfolded (`int`): Bytes that its values take in memory, by its headers.
        stored (`int`): Bytes that it has.

    Raises:
        [`FileFormatError`]: if that is too much.
        [`ConfigError`]: if the environment variable is not a number.
    """
    said = os.environ.get(READ_LIMIT)
    if said is not None and not (said.isascii() and said.isdecimal() and len(said) < 20):
        raise ConfigError(READ_LIMIT, "must be a number of bytes", got=repr(said[:40]), expected="such as 68719476736")
    limit = int(said) if said else min(max(_MOST_UNFOLDED * stored, _ALWAYS_READ), _MOST_MEMORY)
    if unfolded > limit:
        raise FileFormatError(
            str(path),
            "would take too much memory",
            got=f"{unfolded} bytes of values in {stored} bytes of file",
            expected=f"at most {limit} bytes",
            fix=f"If you trust it, set the environment variable {READ_LIMIT} to more bytes.",
        )


def check_name(path: str | os.PathLike[str], name: object) -> str:
    """Return the name of a tensor; one that cannot be printed, as in a forged file, is refused.

    Raises:
        [`FileFormatError`]: if it is not a text, empty, above 512 characters or not printable.
    """
    if isinstance(name, str) and name.isprintable() and 0 < len(name) <= _MOST_NAME:
        return name
    got = ascii(name[:40]) if isinstance(name, str) else type(name).__name__
    expected = f"1 to {_MOST_NAME} printable characters"
    raise FileFormatError(str(path), "holds a tensor whose name cannot be", got=got, expected=expected)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it replaces `path` if the block succeeds, and is deleted if not.

    Temporary files that killed processes of this machine left are deleted, too.

    Raises:
        [`FileFormatError`]: if it cannot be written, or the disk is full; `path` is then as it was.
    """
    if _IS_DRAFT.fullmatch(path.name):  # within another call: what is written there is already temporary
        yield path
        return
    # The name holds the target and the process, so that others can see when the file is no longer needed.
    begin = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}."
    machine = f"{uuid.getnode():x}"
    temporary = path.with_name(f"{begin}{machine}-{os.getpid()}-{uuid.uuid4().hex[:12]}{_DRAFT}{path.suffix}")
    try:
        for left in path.parent.glob(f"{glob.escape(begin)}{machine}-*{_DRAFT}{glob.escape(path.suffix)}"):
            owner = left.name[len(begin) + len(machine) + 1 :].partition("-")[0]
            if owner.isdecimal() and not is_running(int(owner)):
                left.unlink(missing_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        got, fix = first_line(error), "What was there before is as it was."
        raise FileFormatError(str(path), "cannot be written", got=got, fix=fix) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Return whether a process of this machine is still there, by its id."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, torch.Tensor], str | None]:
    """Return the tensors of a safetensors file, and this package's metadata in its header."""
    from safetensors import safe_open

    try:
        size = os.path.getsize(path)
        check_memory(path, size, size)
        with safe_open(path, framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get(_METADATA_KEY)
            names = [check_name(path, name) for name in file.keys()]  # noqa: SIM118 (not a mapping)
            return {name: file.get_tensor(name) for name in names}, header
    except HFMoTEError:
        raise
    # OSError, ValueError, SafetensorError, and other errors for dtypes that torch lacks.
    except Exception as error:
        raise FileFormatError(
            str(path),
            "cannot be read as safetensors",
            got=first_line(error),
            fix="The file is missing, truncated or of another format; save or download it again.",
        ) from error


def _versions() -> dict[str, str]:
    return {"hf_mote_version": __version__, "transformers_version": version("transformers")}


def _to_json(where: str, data: Mapping[str, Any]) -> bytes:
    _check_values(where, data)
    text = json.dumps(data, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode()


def _check_text(where: str, text: str) -> None:
    """Refuse half of a surrogate pair, which a JSON escape can hold and a file cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FileFormatError(where, "holds text that is not Unicode", got=ascii(text[error.start])) from error


def _check_values(where: str, data: Any, *, infinite: bool = False) -> None:
    pending: list[tuple[str, Any, int]] = [("", data, 0)]
    while pending:
        place, value, depth = pending.pop()
        field = f"{where}: {place.lstrip('.')}" if place else where
        if depth > _MAX_DEPTH:
            raise FileFormatError(field, "is nested too deeply", got=f"over {_MAX_DEPTH} levels")
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str):
                    raise FileFormatError(field, "keys must be texts", got=repr(key), expected="str")
                _check_text(field, key)
            pending += [(f"{place}.{key}", item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            # Tokens are many, and a place is made only where it may be named.
            plain = depth < _MAX_DEPTH
            pending += [
                (f"{place}[{i}]", item, depth + 1)
                for i, item in enumerate(value)
                if not (plain and type(item) is int and -_SURELY_FINITE < item < _SURELY_FINITE)
            ]
        elif isinstance(value, str):
            _check_text(field, value)
        elif isinstance(value, float) and infinite and math.isinf(value):
            continue
        elif isinstance(value, int | float) and not isinstance(value, bool) and not is_finite(value):
            got = value if isinstance(value, float) else "a whole number beyond all floats"
            raise FileFormatError(field, "must be a finite number", got=got)
        elif not isinstance(value, str | int | float | None):
            raise FileFormatError(
                field, "must be a JSON value", got=type(value).__name__, expected="bool, int, float, str, list or dict"
            )
