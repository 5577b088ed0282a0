"""Reading, checking and handing back tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_saes import HIDDEN, TinySAE, activations

from hf_mote.errors import DataError
from hf_mote.sae.convert.tensors import Sizes, give, narrowed, read_npz, take

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
