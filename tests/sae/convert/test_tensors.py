"""Reading, checking and handing back tensors."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from tiny_saes import HIDDEN, TinySAE, activations

from hf_mote.errors import ConfigError, DataError, FileFormatError
from hf_mote.sae.convert.tensors import Sizes, give, narrowed, read_npz, read_safetensors, read_torch, take

_FLOATS = st.floats(-100, 100, width=32)
_LAYOUT = {
    "W_enc": ("enc", True),
    "b_enc": ("b", False),
    "W_dec": ("dec", False),
    "b_dec": ("c", False),
    "threshold": ("t", False),
}


@given(values=st.lists(_FLOATS, min_size=1, max_size=20), dtype=st.sampled_from([torch.bfloat16, torch.float16]))
def test_narrowed_threshold_is_exceeded_by_the_same_numbers(values: list[float], dtype: torch.dtype) -> None:
    thresholds = torch.tensor(values)
    narrow = narrowed(thresholds, dtype)
    assert narrow.dtype == dtype
    # All neighbours on the grid of the dtype.
    near = thresholds.to(dtype)
    below, above = (torch.nextafter(near, torch.full_like(near, to)) for to in (-torch.inf, torch.inf))
    for latent in (below, near, above, narrow):
        assert torch.equal(latent > narrow, latent.float() > thresholds)


@given(values=st.lists(_FLOATS, min_size=1, max_size=20))
def test_narrowed_to_its_own_or_a_wider_dtype_is_exact(values: list[float]) -> None:
    thresholds = torch.tensor(values)
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(narrowed(thresholds, dtype).double(), thresholds.double())


def test_give_folds_lengths_of_dictionary_rows_on_request() -> None:
    sae = TinySAE("topk_scaled", "autoencoder").model()
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    layout = {"W_enc": ("W_enc", False), "b_enc": ("b_enc", False), "W_dec": ("W_dec", True)}
    given = give(sae, layout, fold=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sae.state_dict().items())
    lengths = sae.W_dec.norm(dim=1)
    assert torch.allclose(given["W_dec"].T.norm(dim=1), torch.ones_like(lengths))
    assert torch.allclose(given["W_enc"], sae.W_enc * lengths[:, None])
    assert torch.allclose(given["b_enc"], sae.b_enc * lengths)
    assert torch.equal(give(sae, layout)["W_dec"].T, sae.W_dec)


def test_give_row_of_zeros_folds_to_a_latent_that_is_never_active() -> None:
    sae = TinySAE("topk_scaled", "autoencoder").model()
    sae.W_dec.data[3] = 0
    given = give(sae, {name: (name, False) for name in ("W_enc", "b_enc", "W_dec")}, fold=True)
    assert not given["W_enc"][3].any()
    assert given["b_enc"][3] == 0
    assert all(tensor.isfinite().all() for tensor in given.values())


@pytest.mark.parametrize("name", ["W_enc", "b_dec"])
def test_give_tensor_that_is_not_finite_is_refused(name: str) -> None:
    sae = TinySAE("relu", "autoencoder").model()
    sae.get_parameter(name).data.view(-1)[1] = torch.nan
    with pytest.raises(DataError, match=rf"ReLUSAEModel\.{name}: holds NaN"):
        give(sae, {name: (name, False)})


def test_take_returns_contiguous_tensors_in_our_orientation_and_thresholds_in_float32() -> None:
    found = {
        "enc": activations(HIDDEN, 5, dtype=torch.bfloat16),
        "b": activations(5, dtype=torch.bfloat16),
        "dec": activations(5, 7, dtype=torch.bfloat16),
        "c": activations(7, dtype=torch.bfloat16),
        "t": activations(5, dtype=torch.bfloat16),
    }
    taken = take(Path("file"), found, _LAYOUT, Sizes(5, HIDDEN, 7))
    assert taken["W_enc"].shape == (5, HIDDEN)
    assert taken["W_enc"].is_contiguous()
    assert torch.equal(taken["W_enc"].T, found["enc"])
    assert taken["threshold"].dtype == torch.float32
    assert {taken[name].dtype for name in taken if name != "threshold"} == {torch.bfloat16}


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"nothing"])
def test_read_npz_damaged_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "params.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"params\.npz: cannot be read as plain numpy arrays"):
        read_npz(path)


def npz_of(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def array_of(values: np.ndarray, shape: object = ..., dtype: str | None = None) -> bytes:
    """Return an array as numpy writes it, with another shape or dtype in its header if asked for."""
    file = io.BytesIO()
    header = {"descr": dtype or values.dtype.str, "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**header, "shape": values.shape if shape is ... else shape})
    return file.getvalue() + values.tobytes()


def test_read_npz_gives_what_numpy_gives_and_tensors_of_their_own(tmp_path: Path) -> None:
    arrays = {
        "rows": np.arange(12, dtype=np.float32).reshape(3, 4),
        "columns": np.asfortranarray(np.arange(12, dtype=np.float16).reshape(3, 4)),
        "number": np.float64(2.5),
        "none": np.zeros((0, 3), dtype=np.int64),
    }
    for write in (np.savez, np.savez_compressed):
        write(tmp_path / "a.npz", **arrays)
        found = read_npz(tmp_path / "a.npz")
        assert list(found) == list(arrays)
        for name, tensor in found.items():
            assert tensor.is_contiguous()
            assert torch.equal(tensor, torch.tensor(arrays[name]))
            tensor.zero_()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (array_of(np.zeros(3)), None),
        (array_of(np.zeros(3), (4,)), r"W\.npy: is not of its size .got 24 bytes of values, expected float64 \(4,\)"),
        (array_of(np.zeros(3), (10**12, 10**12)), "is not of its size"),
        (array_of(np.zeros(3), (-3,)), "is not of its size"),
        (array_of(np.zeros(3), ("3",)), "cannot be read as plain numpy arrays"),
        (array_of(np.zeros(3), dtype=">f8"), "wrong dtype"),
        (array_of(np.zeros(3, dtype="S8")), "wrong dtype"),
        (array_of(np.zeros(3))[:40], "cannot be read as plain numpy arrays"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535, "cannot be read as plain numpy arrays"),
        (b"\x93NUMPY\x09\x00" + bytes(100), r"cannot be read.*\(9, 0\)"),
    ],
)
def test_read_npz_header_that_lies_is_refused(tmp_path: Path, content: bytes, reason: str | None) -> None:
    path = npz_of(tmp_path / "params.npz", {"W.npy": content})
    if reason is None:
        assert read_npz(path)["W"].shape == (3,)
        return
    with pytest.raises(FileFormatError, match=rf"params\.npz: .*{reason}"):
        read_npz(path)


def test_read_npz_that_unfolds_to_far_more_than_it_has_is_refused_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = npz_of(tmp_path / "params.npz", {"W.npy": array_of(np.zeros(2**24))})
    assert path.stat().st_size < 2**20
    with pytest.raises(FileFormatError, match=r"too much memory .*134217\d+ bytes.*HF_MOTE_READ_LIMIT"):
        read_npz(path)
    monkeypatch.setenv("HF_MOTE_READ_LIMIT", str(2**28))
    assert read_npz(path)["W"].shape == (2**24,)
    monkeypatch.setenv("HF_MOTE_READ_LIMIT", "much")
    with pytest.raises(ConfigError, match=r"HF_MOTE_READ_LIMIT: must be a number of bytes .got 'much'"):
        read_npz(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_read_npz_odd_archives_are_refused(tmp_path: Path) -> None:
    whole = array_of(np.zeros(3))
    path = npz_of(tmp_path / "a.npz", {"W.npy": whole}, zipfile.ZIP_LZMA)
    with pytest.raises(FileFormatError, match=r"a\.npz: 'W\.npy': unknown compression .got 14"):
        read_npz(path)
    path = npz_of(tmp_path / "b.npz", {"W.npy": whole})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"b\.npz: 'W\.npy': is encrypted"):
        read_npz(path)
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("W.npy", whole)
        archive.writestr("W", whole)
    with pytest.raises(FileFormatError, match=r"c\.npz: W: is there twice"):
        read_npz(tmp_path / "c.npz")
    with pytest.raises(FileFormatError, match="name cannot be"):
        read_npz(npz_of(tmp_path / "d.npz", {"\u202eW.npy": whole}))


def test_read_torch_gives_what_torch_saves(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(12.0).reshape(3, 4).T,
        "b": torch.tensor(3),
        "c": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
    }
    torch.save(tensors, tmp_path / "ae.pt")
    found = read_torch(tmp_path / "ae.pt")
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert not found["c"].requires_grad


def test_read_torch_tensor_larger_than_what_is_stored_is_refused(tmp_path: Path) -> None:
    torch.save({"W": torch.zeros(1).expand(2**15, 2**15)}, tmp_path / "ae.pt")
    assert (tmp_path / "ae.pt").stat().st_size < 2048
    with pytest.raises(FileFormatError, match=r"ae\.pt: would take too much memory .got 4294967296 bytes"):
        read_torch(tmp_path / "ae.pt")
    shared = torch.zeros(2**20)
    torch.save({str(index): shared for index in range(20)}, tmp_path / "ae.pt")
    with pytest.raises(FileFormatError, match="would take too much memory"):
        read_torch(tmp_path / "ae.pt")


@pytest.mark.parametrize("at_once", [2**24, 100])
def test_read_torch_values_that_are_not_those_of_the_checksum_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("hf_mote.sae.convert.archives.AT_ONCE", at_once)
    path = tmp_path / "ae.pt"
    values = torch.arange(1000.0)
    torch.save({"W": values, "b": torch.ones(3)}, path)
    assert torch.equal(read_torch(path)["W"], values)
    content = bytearray(path.read_bytes())
    content[content.index(values.numpy().tobytes()) + 402] ^= 1
    path.write_bytes(content)
    # Torch itself reads on.
    assert not torch.equal(torch.load(path, weights_only=True)["W"], values)
    with pytest.raises(FileFormatError, match=r"ae\.pt: cannot be read as plain tensors .got Bad CRC-32 .*data/0"):
        read_torch(path)


def test_read_torch_calls_nothing_but_the_makers_of_tensors(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "ae.pt", "w") as archive:
        archive.writestr("ae/data.pkl", b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.")
    with pytest.raises(FileFormatError, match=r"cannot be read as plain tensors .got a call of 'builtins bytearray'"):
        read_torch(tmp_path / "ae.pt")
    with zipfile.ZipFile(tmp_path / "ae.pt", "w") as archive:
        archive.writestr("ae/data.pkl", b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.")
    with pytest.raises(FileFormatError, match="got pickle operation FRAME|got pickle operation SHORT_BINUNICODE"):
        read_torch(tmp_path / "ae.pt")


def test_read_torch_names_that_cannot_be_printed_are_refused(tmp_path: Path) -> None:
    torch.save({"W\n": torch.zeros(1)}, tmp_path / "ae.pt")
    with pytest.raises(FileFormatError, match=r"whose name cannot be .got 'W.n'"):
        read_torch(tmp_path / "ae.pt")


def test_read_safetensors_names_that_cannot_be_printed_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(save({"W\0": torch.zeros(1)}))
    with pytest.raises(FileFormatError, match="whose name cannot be"):
        read_safetensors(tmp_path / "a.safetensors")
    with pytest.raises(FileFormatError, match="cannot be read as safetensors"):
        read_safetensors(tmp_path / ("x" * 5000))


def test_an_entry_twice_in_a_file_of_torch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ae.pt"
    torch.save({"W": torch.ones(3)}, path)
    with zipfile.ZipFile(path) as archive:
        name = next(one for one in archive.namelist() if one.endswith("data/0"))
        content = archive.read(name)
    with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr(name, bytes(len(content)))
    with pytest.raises(FileFormatError, match="data/0': is there twice"):
        read_torch(path)
