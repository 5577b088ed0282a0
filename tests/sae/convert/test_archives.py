"""Archives that torch and this package may read differently, and storages that are not as long as they say."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hf_mote.errors import FileFormatError
from hf_mote.sae.convert.tensors import read_torch, shapes_in

VALUES = torch.arange(6.0)
HALVES = torch.ones(3, dtype=torch.bfloat16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save({"a": VALUES, "again": VALUES[2:], "b": HALVES, "none": torch.zeros(0, 4)}, tmp_path / "ae.pt")
    return tmp_path / "ae.pt"


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(held: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return file.getvalue()


def assert_is_read(path: Path) -> None:
    found = read_torch(path)
    assert torch.equal(found["a"], VALUES)
    assert torch.equal(found["again"], VALUES[2:])
    assert torch.equal(found["b"], HALVES)
    assert shapes_in(path) == {"a": (6,), "again": (4,), "b": (3,), "none": (0, 4)}


def test_read_torch_takes_what_torch_writes_and_what_zipfile_makes_of_it(path: Path) -> None:
    assert_is_read(path)
    path.write_bytes(packed(entries(path)))
    assert_is_read(path)


def test_read_torch_takes_an_archive_with_the_ends_of_a_large_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = entries(path)
    with monkeypatch.context() as patch:
        # As if it had more than 4 GiB: numbers are 64 bits wide and in a record of their own.
        patch.setattr(zipfile, "ZIP64_LIMIT", 10)
        content = packed(held)
    assert content[-42:-38] == b"PK\6\7"
    path.write_bytes(content)
    assert torch.equal(torch.load(path, weights_only=True)["a"], VALUES)
    assert_is_read(path)
    for place in (-98 + 48, -42 + 8):
        # Where the directory begins, and where the record that says so is.
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(FileFormatError, match=r"ae\.pt: (must end with the directory|cannot be read as plain)"):
            read_torch(path)


def _before(content: bytes, added: bytes) -> bytes:
    return added + content


def _behind(content: bytes, added: bytes) -> bytes:
    return content + added


def _before_the_directory(content: bytes, added: bytes) -> bytes:
    start = struct.unpack("<L", content[-6:-2])[0]
    return content[:start] + added + content[start:]


def _before_the_end(content: bytes, added: bytes) -> bytes:
    return content[:-22] + added + content[-22:]


@pytest.mark.parametrize(
    ("put", "reason"),
    [
        (_before, "must (begin with the first record|end with the directory) of its archive"),
        (_behind, "must end with the directory of its archive"),
        (_before_the_directory, "must end with the directory of its archive"),
        (_before_the_end, "must end with the directory of its archive"),
    ],
)
@pytest.mark.parametrize("added", [b"\0", b"PK\3\4", b"not of the archive", "another"])
@pytest.mark.parametrize("read", [read_torch, shapes_in])
def test_read_torch_bytes_beside_the_archive_are_refused(
    path: Path, put: Callable[[bytes, bytes], bytes], reason: str, added: bytes | str, read: Callable[[Path], object]
) -> None:
    content = path.read_bytes()
    other = packed({name: bytes(len(held)) if "/data/" in name else held for name, held in entries(path).items()})
    path.write_bytes(put(content, other if isinstance(added, str) else added))
    with pytest.raises(FileFormatError, match=rf"ae\.pt: ({reason}|cannot be read as plain tensors)"):
        read(path)
    path.write_bytes(content)
    assert_is_read(path)


def test_read_torch_archive_with_a_comment_is_refused(path: Path) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"of somebody"
    with pytest.raises(FileFormatError, match=r"ae\.pt: must end with the directory of its archive"):
        read_torch(path)


@pytest.mark.parametrize("name", ["ae/DATA.PKL", "AE/data.pkl", "ae/Data/0"])
def test_read_torch_names_that_differ_in_case_alone_are_refused(path: Path, name: str) -> None:
    path.write_bytes(packed({name: b"\x80\x02}.", **entries(path)}))
    with pytest.raises(FileFormatError, match=r"ae\.pt: .*(is there twice|must hold one folder)"):
        read_torch(path)


def test_read_torch_two_folders_are_refused(path: Path) -> None:
    held = entries(path)
    path.write_bytes(packed({**held, "other/data/0": held["ae/data/0"]}))
    with pytest.raises(FileFormatError, match=r"ae\.pt: must hold one folder .got 'ae', 'other'"):
        read_torch(path)


@pytest.mark.parametrize("size", [0, 1, 8, 23, 28, 48])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_read_torch_record_that_is_not_as_long_as_its_storage_is_refused(
    path: Path, size: int, compression: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = entries(path)
    path.write_bytes(packed(held, compression))
    assert torch.equal(read_torch(path)["a"], VALUES)
    path.write_bytes(packed({**held, "ae/data/0": (held["ae/data/0"] * 2)[:size]}, compression))
    # Before torch reads anything: mapped into memory, it would give what lies behind the record.
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch was asked"))
    expected = rf"ae\.pt: data/0: must be as long as its storage .got {size} bytes, expected 6 values of 4 bytes"
    for read in (read_torch, shapes_in):
        with pytest.raises(FileFormatError, match=expected):
            read(path)


def test_read_torch_storage_without_a_record_is_refused(path: Path) -> None:
    held = entries(path)
    del held["ae/data/1"]
    path.write_bytes(packed(held))
    with pytest.raises(
        FileFormatError, match=r"data/1: must be as long as its storage .got 0 bytes, .* 3 values of 2"
    ):
        read_torch(path)


@pytest.mark.parametrize(
    ("pickle", "reason"),
    [
        (b"\x80\x02}.\0\0", "2 bytes behind the pickle"),
        (b"\x80\x02Q.", "a pickle that takes what it did not put there"),
        (b"\x80\x02t.", "a pickle that takes what it did not put there"),
        (b"\x80\x02h\x05.", "a pickle that takes what it did not put there"),
        (b"\x80\x02X\x01\0\0\0xQ.", "a storage named 'x'"),
        (b"\x80\x02(X\x07\0\0\0storagectorch\nOtherStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ.", "a storage named"),
    ],
)
def test_read_torch_pickle_that_names_no_storage_is_refused(path: Path, pickle: bytes, reason: str) -> None:
    path.write_bytes(packed({**entries(path), "ae/data.pkl": pickle}))
    with pytest.raises(FileFormatError, match=rf"cannot be read as plain tensors .got {reason}"):
        read_torch(path)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    ],
)
def test_read_torch_takes_every_dtype_that_has_a_storage(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.ones(5, dtype=dtype)
    torch.save({"W": torch.nn.Parameter(values) if dtype.is_floating_point else values}, tmp_path / "ae.pt")
    assert torch.equal(read_torch(tmp_path / "ae.pt")["W"], values)
