"""Losses against their definitions, with padding, without variance, in half precision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from hf_mote.sae.losses import (
    RECONSTRUCTION_LOSSES,
    fvu,
    fvu_scale,
    mse,
    squared_error,
    total_variance,
    weighted_l1,
)

NUMBERS = st.floats(-8, 8, width=32)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Target, reconstruction and which tokens are valid."""
    shape = draw(st.tuples(st.integers(0, 6), st.integers(1, 5)))
    target, rebuilt = (torch.from_numpy(draw(arrays("float64", shape, elements=NUMBERS))) for _ in range(2))
    return target, rebuilt, torch.tensor(draw(st.lists(st.booleans(), min_size=shape[0], max_size=shape[0]))).bool()


@given(pairs())
@settings(deadline=None)
def test_losses_equal_their_definitions_on_what_is_valid(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    target, rebuilt, valid = pair
    y, z = target[valid], rebuilt[valid]
    error = ((y - z) ** 2).sum()
    variance = ((y - y.mean(0)) ** 2).sum() if len(y) else torch.tensor(0.0).double()
    length = (y**2).sum()
    scale = variance if variance > 1e-12 * length else length
    torch.testing.assert_close(squared_error(target, rebuilt, valid), error)
    torch.testing.assert_close(total_variance(target, valid), variance, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(mse(target, rebuilt, valid), error / max(y.numel(), 1))
    torch.testing.assert_close(
        fvu(target, rebuilt, valid), error / scale if scale > 0 else error, rtol=1e-6, atol=1e-9
    )
    for loss in (squared_error, fvu, mse):
        torch.testing.assert_close(loss(target, rebuilt, valid), loss(y, z), rtol=1e-6, atol=1e-9)


@given(pairs())
@settings(deadline=None)
def test_losses_of_a_known_error_are_the_same(pair: tuple[Tensor, Tensor, Tensor]) -> None:
    target, rebuilt, valid = pair
    error = squared_error(target, rebuilt, valid)
    expected = fvu(target, rebuilt, valid), mse(target, rebuilt, valid)
    found = (
        fvu(target, rebuilt * torch.nan, valid, scale=fvu_scale(target, valid), error=error),
        mse(target, rebuilt * torch.nan, valid, error=error),
    )
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_fvu_is_zero_if_perfect_and_one_for_the_mean() -> None:
    y = torch.randn(50, 7) + 3
    assert fvu(y, y) == 0
    torch.testing.assert_close(fvu(y, y.mean(0).expand_as(y)), torch.tensor(1.0))


def test_fvu_does_not_change_with_scale_or_shift_together() -> None:
    y, z = torch.randn(50, 7).double(), torch.randn(50, 7).double()
    torch.testing.assert_close(fvu(3 * y + 5, 3 * z + 5), fvu(y, z))
    assert mse(3 * y, 3 * z) == pytest.approx(9 * float(mse(y, z)))


def test_fvu_of_one_token_is_measured_against_its_length() -> None:
    y = torch.tensor([[3.0, 4.0]])
    assert fvu(y, torch.zeros(1, 2)) == 1
    assert fvu(y.expand(4, 2), torch.zeros(4, 2)) == 1
    assert fvu(torch.zeros(3, 2), torch.zeros(3, 2)) == 0
    assert fvu(torch.zeros(3, 2), torch.ones(3, 2)) == 6


@pytest.mark.parametrize("loss", RECONSTRUCTION_LOSSES.values(), ids=RECONSTRUCTION_LOSSES)
def test_losses_of_nothing_are_zero_with_finite_gradients(loss: object) -> None:
    for tokens, valid in ((0, None), (3, torch.zeros(3, dtype=torch.bool))):
        z = torch.zeros(tokens, 4, requires_grad=True)
        value = loss(torch.zeros(tokens, 4), z, valid)  # type: ignore[operator]
        assert value == 0
        value.backward()
        assert z.grad is not None
        assert bool(z.grad.isfinite().all())


@pytest.mark.parametrize("loss", RECONSTRUCTION_LOSSES.values(), ids=RECONSTRUCTION_LOSSES)
def test_losses_of_half_precision_are_computed_in_float32(loss: object) -> None:
    y, z = (torch.randn(4096, 3) + 2).bfloat16(), torch.randn(4096, 3).bfloat16()
    value = loss(y, z)  # type: ignore[operator]
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(y.double(), z.double()), rtol=1e-4, atol=0)  # type: ignore[operator]


def test_weighted_l1_is_the_mean_over_tokens_of_weighted_sums() -> None:
    latents = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    assert weighted_l1(latents, torch.tensor([1.0, 2.0, 0.5]), 2) == pytest.approx((1 + 1 + 6) / 2)
    assert weighted_l1(latents, torch.tensor([1.0, 2.0, 0.5]), torch.tensor(4)) == pytest.approx(2.0)


def test_weighted_l1_is_summed_in_float32_under_autocast_and_in_half_precision() -> None:
    latents, norms = torch.rand(3000, 5), torch.rand(5)
    exact = weighted_l1(latents.double(), norms.double(), 3000)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = weighted_l1(latents, norms, 3000)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed.double(), exact, rtol=1e-5, atol=0)
    latents, norms = latents.bfloat16(), norms.bfloat16()
    half = weighted_l1(latents, norms, 3000)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), weighted_l1(latents.double(), norms.double(), 3000), rtol=1e-5, atol=0)


def test_weighted_l1_does_not_change_when_a_dictionary_is_rescaled() -> None:
    latents, norms, factors = torch.rand(20, 5), torch.rand(5), torch.rand(5) + 0.5
    torch.testing.assert_close(weighted_l1(latents * factors, norms / factors, 20), weighted_l1(latents, norms, 20))
