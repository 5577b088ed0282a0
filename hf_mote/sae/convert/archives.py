"""Zip archives that numpy and torch write, checked before anything of them is read.

Of a torch file, torch and this package must see the same entries: it begins with its first record and ends with its
directory, all of it lies in one folder, and no name is there twice, also not in other letters, which torch takes for
the same. The pickle inside may name nothing but the makers of plain tensors, and storages that are as long as it says.
"""

from __future__ import annotations

import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hf_mote.errors import FileFormatError
from hf_mote.files import check_memory

__all__ = ["AT_ONCE", "check_storages", "check_sums", "check_torch_archive", "entries_of", "no_tensors"]

AT_ONCE = 2**24
"""Bytes of an entry that are read together."""

_MOST_ENTRIES = 10_000
_MOST_PICKLE = 2**24
# Opcodes of the pickle in a file of `torch.save`, and the functions that make plain tensors.
# fmt: off
_OPERATIONS = frozenset({
    "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPERSID", "BINPUT", "BINUNICODE",
    "BUILD", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "GLOBAL", "LONG1", "LONG_BINGET", "LONG_BINPUT", "MARK",
    "NEWFALSE", "NEWTRUE", "NONE", "PROTO", "REDUCE", "SETITEM", "SETITEMS", "STOP", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3",
})
# fmt: on
_MAKERS = re.compile(r"collections OrderedDict|torch\._utils (_rebuild_tensor_v2|_rebuild_parameter)|torch \w*Storage")
# Those among them whose values a storage may be named by.
_VALUES = ("BININT", "BININT1", "BININT2", "BINUNICODE", "GLOBAL", "LONG1")
# Bytes of a value, by what torch calls a storage of them.
_ITEM_SIZES = {
    **dict.fromkeys(("Bool", "Byte", "Char", "Untyped"), 1),
    **dict.fromkeys(("BFloat16", "Half", "Short"), 2),
    **dict.fromkeys(("Float", "Int"), 4),
    **dict.fromkeys(("ComplexFloat", "Double", "Long"), 8),
    "ComplexDouble": 16,
}
_RECORD, _END, _WIDE_END, _LOCATOR = (b"PK" + mark for mark in (b"\3\4", b"\5\6", b"\6\6", b"\6\7"))
_END_SIZE, _WIDE_END_SIZE, _LOCATOR_SIZE = 22, 56, 20
_DAMAGED = "The file is damaged, or was changed by another program; save or download it again."


def entries_of(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the entries of an archive, refusing encrypted or unusually compressed ones."""
    entries = archive.infolist()
    if len(entries) > _MOST_ENTRIES:
        raise FileFormatError(str(path), "holds too many entries", got=len(entries), expected=f"up to {_MOST_ENTRIES}")
    for entry in entries:
        what = f"{path}: {ascii(entry.filename[:80])}"
        if entry.flag_bits & 1:
            raise FileFormatError(what, "is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            expected = f"{zipfile.ZIP_STORED} (stored) or {zipfile.ZIP_DEFLATED} (deflated)"
            raise FileFormatError(what, "unknown compression", got=entry.compress_type, expected=expected)
    return entries


def check_sums(path: Path) -> None:
    """Refuse an archive in which an entry is not what its checksum says, which torch does not look at."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                # The last part compares. No more is unfolded than the entry says, which was checked.
                while file.read(AT_ONCE):
                    pass


def check_torch_archive(path: Path) -> None:
    """Refuse a file of `torch.save` that is damaged, would call others than the makers of tensors, or is too large.

    Raises:
        [`FileFormatError`]: with what is wrong.
        `zipfile.BadZipFile`, `ValueError` and others: if it is no archive, or holds no pickle.
    """
    with zipfile.ZipFile(path) as archive:
        _check_ends(path, archive)
        entries = entries_of(path, archive)
        check_memory(path, sum(entry.file_size for entry in entries), path.stat().st_size)
        sizes = _sizes_by_name(path, entries)
        pickles = [entry for entry in entries if entry.filename.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1 or pickles[0].file_size > _MOST_PICKLE:
            raise no_tensors(path, f"{len(pickles)} data.pkl, where one of up to {_MOST_PICKLE} bytes should be")
        content = archive.read(pickles[0])
    end = 0
    for operation, argument, place in pickletools.genops(content):
        end = (place or 0) + 1
        if operation.name not in _OPERATIONS:
            raise no_tensors(path, f"pickle operation {operation.name}")
        if operation.name == "GLOBAL" and not _MAKERS.fullmatch(str(argument)):
            raise no_tensors(path, f"a call of {ascii(argument)}")
    if end != len(content):
        raise no_tensors(path, f"{len(content) - end} bytes behind the pickle")
    for storage in [_storage(path, named) for named in _named(path, content)]:
        _check_storage(path, pickles[0], storage, sizes)


def check_storages(path: Path) -> None:
    """Refuse a file of `torch.save` with storages that are not as long as it says, an entry twice, or bytes behind it.

    torch maps such a file into memory, and takes the bytes of other entries for the values that are missing. Storages
    that torch names in another way than those of numbers are left alone, and so is what the pickle calls.

    Args:
        path (`Path`): An archive that torch has loaded.

    Raises:
        [`FileFormatError`]: with the entry.
    """
    with zipfile.ZipFile(path) as archive:
        _check_ends(path, archive)
        sizes = _sizes_by_name(path, archive.infolist())
        for entry in archive.infolist():
            if entry.filename.split("/")[1:] == ["data.pkl"]:
                for named in _named(path, archive.read(entry)):
                    try:
                        storage = _storage(path, named)
                    except FileFormatError:
                        continue
                    _check_storage(path, entry, storage, sizes)


def _check_storage(path: Path, pickle: zipfile.ZipInfo, storage: _Storage, sizes: Mapping[str, int]) -> None:
    folder = pickle.filename.partition("/")[0]
    size = sizes.get(f"{folder}/data/{storage.key}".lower(), 0)
    if size // storage.item_size != storage.number:
        raise FileFormatError(
            f"{path}: data/{storage.key}",
            "must be as long as its storage",
            got=f"{size} bytes",
            expected=f"{storage.number} values of {storage.item_size} bytes",
            fix=_DAMAGED,
        )


def no_tensors(path: Path, got: str) -> FileFormatError:
    """Return the error for a torch file that holds something else than tensors."""
    return FileFormatError(
        str(path),
        "cannot be read as plain tensors",
        got=got,
        fix="It is damaged, or holds objects whose code would run when they are loaded: do not load it elsewhere "
        "unless you trust its source.",
    )


def _check_ends(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse bytes before the first record, behind the directory, or behind the archive.

    Readers of zip files find a directory from its end or by where the end says it is, and may find two.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        if (found := file.read(4)) != _RECORD:
            what = "must begin with the first record of its archive"
            raise FileFormatError(str(path), what, got=repr(found), expected=repr(_RECORD), fix=_DAMAGED)
        place = length - _END_SIZE
        file.seek(place)
        end = file.read(_END_SIZE)
        mark, size, start = end[:4], *struct.unpack("<LL", end[12:20])
        file.seek(max(place - _LOCATOR_SIZE, 0))
        locator = file.read(_LOCATOR_SIZE)
        if mark == _END and locator[:4] == _LOCATOR:
            # Of more than 4 GiB: the numbers are in a wider record before.
            place -= _LOCATOR_SIZE + _WIDE_END_SIZE
            file.seek(max(place, 0))
            wide = file.read(_WIDE_END_SIZE)
            mark = _END if wide[:4] == _WIDE_END and struct.unpack("<Q", locator[8:16]) == (place,) else wide[:4]
            size, start = struct.unpack("<QQ", wide[40:56])
    if mark != _END or start + size != place or archive.start_dir != start:
        what, got = "must end with the directory of its archive", f"a directory at {start}, of {size} bytes"
        raise FileFormatError(str(path), what, got=got, expected=f"one up to byte {place}", fix=_DAMAGED)


def _sizes_by_name(path: Path, entries: list[zipfile.ZipInfo]) -> dict[str, int]:
    """Return the sizes of entries by their names in small letters, which torch does not tell from capital ones."""
    sizes: dict[str, int] = {}
    for entry in entries:
        name = entry.filename.lower()
        if name in sizes:
            raise FileFormatError(f"{path}: {ascii(entry.filename[:80])}", "is there twice", fix=_DAMAGED)
        sizes[name] = entry.file_size
    if len(folders := {name.partition("/")[0] for name in sizes}) > 1:
        got = ", ".join(ascii(folder[:80]) for folder in sorted(folders)[:5])
        raise FileFormatError(str(path), "must hold one folder", got=got, fix=_DAMAGED)
    return sizes


class _Storage(NamedTuple):
    """What a pickle says of a storage: its name in the archive, how many values it has, and of how many bytes."""

    key: str
    number: int
    item_size: int


def _named(path: Path, content: bytes) -> list[Any]:
    """Return how a pickle of allowed operations names storages, by following its stack without making anything."""
    named: list[Any] = []
    stack: list[Any] = []
    memory: dict[Any, Any] = {}
    mark = object()

    def popped_to_mark() -> tuple[Any, ...]:
        place = len(stack) - 1 - stack[::-1].index(mark)
        taken = tuple(stack[place + 1 :])
        del stack[place:]
        return taken

    try:
        for operation, argument, _ in pickletools.genops(content):
            name = operation.name
            if name == "MARK":
                stack.append(mark)
            elif name in _VALUES:
                stack.append(argument)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memory[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memory[argument])
            elif name == "TUPLE":
                stack.append(popped_to_mark())
            elif name == "BINPERSID":
                named.append(stack.pop())
                stack.append(None)
            else:
                for part in reversed(operation.stack_before):
                    if part is pickletools.stackslice:
                        popped_to_mark()
                    elif part is not pickletools.markobject:
                        stack.pop()
                stack += [None] * len(operation.stack_after)
    except (LookupError, ValueError) as error:
        raise no_tensors(path, "a pickle that takes what it did not put there") from error
    return named


def _storage(path: Path, named: Any) -> _Storage:
    """Return the storage that torch means by a name in a pickle."""
    if isinstance(named, tuple) and len(named) == 5 and named[0] == "storage":
        _, maker, key, _, number = named
        item_size = _ITEM_SIZES.get(str(maker).removeprefix("torch ").removesuffix("Storage"))
        if item_size is not None and isinstance(key, str) and isinstance(number, int) and number >= 0:
            return _Storage(key, number, item_size)
    raise no_tensors(path, f"a storage named {ascii(named)[:80]}")
