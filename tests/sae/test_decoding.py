"""Decoding is the linear map it says, rows stay apart at any width, and what is closed stays so."""

from __future__ import annotations

import pytest
import torch
from tiny_saes import HIDDEN, TinySAE, activations

NAMES = ["relu", "gated", "topk", "batch_topk", "jumprelu", "matryoshka", "feature_choice", "mutual_choice"]


@pytest.mark.parametrize("kind", ["autoencoder", "skip_transcoder"])
@pytest.mark.parametrize("name", NAMES)
def test_decode_is_linear_and_differentiable_in_every_latent(name: str, kind: str) -> None:
    model = TinySAE(name, kind).model(torch.float64)
    x = activations(5, HIDDEN, dtype=torch.float64)
    given = x if model.config.skip_connection else None
    latents = torch.randn(5, model.config.num_latents, dtype=torch.float64)
    expected = latents @ model.W_dec + model.b_dec + (x @ model.W_skip.T if model.config.skip_connection else 0)
    with torch.no_grad():
        assert torch.allclose(model.decode(latents, given), expected, rtol=0, atol=1e-12)
    leaf = torch.zeros_like(latents, requires_grad=True)
    model.decode(leaf, given).sum().backward()
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, model.W_dec.sum(1).expand_as(leaf), rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [33, 51])
@pytest.mark.parametrize("name", ["gated", "topk"])
def test_encode_of_a_token_alone_equals_the_token_in_a_batch_at_odd_widths(name: str, width: int) -> None:
    model = TinySAE(name, "autoencoder").model(torch.float64, hidden_size=width, num_latents=200)
    x = activations(100, width, dtype=torch.float64)
    together = model.encode(x)
    assert all(torch.equal(model.encode(x[i]), together[i]) for i in range(100))


def test_fold_scale_leaves_closed_thresholds_closed() -> None:
    options = {"k": 1, "min_budget": 0, "zipf_exponent": 3.0, "budget": "zipf"}
    model = TinySAE("feature_choice", "autoencoder").model(calibrated=False, **options).train()
    model(activations(40, HIDDEN))
    model.eval()
    largest = torch.finfo(torch.float32).max
    closed = model.threshold >= largest
    assert closed.any()
    assert not closed.all()
    for scale in (0.5, 8.0):
        model.fold_scale(scale)
        assert model.is_calibrated
        assert torch.equal(model.threshold >= largest, closed)
