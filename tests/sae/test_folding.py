"""Rescaling what an SAE is for: decoder norms into latents, one or two scales, and never silently another function."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny_saes import ALL_SAES, HIDDEN, OUTPUT, TinySAE, activations

from hf_mote.errors import DataError, UnsupportedError

# Whose latents are compared with each other, or with one threshold, before their rows' lengths come in.
COMPARED = ("topk", "batch_topk", "matryoshka", "mutual_choice")


@pytest.mark.parametrize("sae", ALL_SAES, ids=str)
def test_fold_decoder_norm_keeps_reconstructions_and_gives_latents_the_lengths(sae: TinySAE) -> None:
    model = sae.model(torch.float64)
    lengths = torch.rand(len(model.W_dec), dtype=torch.float64) + 0.5
    with torch.no_grad():
        model.W_dec.div_(model.W_dec.norm(dim=1, keepdim=True)).mul_(lengths[:, None])
    x = activations(50, HIDDEN, dtype=torch.float64)
    before = model(x, output_latents=True)
    if sae.name in COMPARED:
        with pytest.raises(UnsupportedError, match="others would be active"):
            model.fold_decoder_norm()
        return
    assert model.fold_decoder_norm() is model
    after = model(x, output_latents=True)
    torch.testing.assert_close(after.reconstruction, before.reconstruction)
    scaled = getattr(model.config, "scale_latents_by_decoder_norm", False)
    torch.testing.assert_close(after.latents, before.latents * (1 if scaled else lengths))
    torch.testing.assert_close(model.W_dec.norm(dim=1), torch.ones(len(lengths), dtype=torch.float64))


@pytest.mark.parametrize("name", COMPARED)
def test_fold_decoder_norm_of_rows_of_one_length_works_for_all(name: str) -> None:
    model = TinySAE(name, "autoencoder").model(torch.float64)
    with torch.no_grad():
        model.W_dec.div_(model.W_dec.norm(dim=1, keepdim=True)).mul_(3)
    x = activations(50, HIDDEN, dtype=torch.float64)
    before = model(x, output_latents=True)
    after = model.fold_decoder_norm()(x, output_latents=True)
    torch.testing.assert_close(after.reconstruction, before.reconstruction)
    torch.testing.assert_close(after.latents, 3 * before.latents)


@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder"])
@pytest.mark.parametrize("name", ["relu", "gated", "topk", "jumprelu", "batch_topk", "feature_choice"])
def test_fold_scale_with_two_factors_gives_the_transcoder_of_unscaled_activations(name: str, kind: str) -> None:
    model = TinySAE(name, kind).model(torch.float64)
    x = activations(60, HIDDEN, dtype=torch.float64)
    expected = model(4 * x, output_latents=True)
    assert model.fold_scale(4, 0.5) is model
    found = model(x, output_latents=True)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction / 0.5)
    torch.testing.assert_close(found.latents, expected.latents / 0.5)
    torch.testing.assert_close(model.W_dec, TinySAE(name, kind).model(torch.float64).W_dec)


def test_fold_scale_refuses_two_factors_where_there_is_one_scale() -> None:
    with pytest.raises(DataError, match="an autoencoder reconstructs its input, in one scale"):
        TinySAE("relu", "autoencoder").model().fold_scale(2, 3)
    model = TinySAE("relu", "skip_transcoder").model(subtract_decoder_bias=True)
    with pytest.raises(UnsupportedError, match="which have different scales"):
        model.fold_scale(2, 3)
    before = model(activations(5, HIDDEN)).reconstruction
    torch.testing.assert_close(model.fold_scale(2, 2)(activations(5, HIDDEN) / 2).reconstruction, before / 2)
    assert TinySAE("relu", "transcoder").config().decoder_size == OUTPUT


def test_normalize_decoder_of_rows_far_from_unit_length_is_no_silent_change(caplog: pytest.LogCaptureFixture) -> None:
    model = TinySAE("relu", "autoencoder").model()
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    logging.getLogger("hf_mote.sae.weights").addHandler(caplog.handler)
    try:
        with torch.no_grad():
            model.W_dec.mul_(1.01)
        model.normalize_decoder()
        assert not caplog.records
        with torch.no_grad():
            model.W_dec.mul_(3)
        model.normalize_decoder()
    finally:
        logger.removeHandler(caplog.handler)
        logging.getLogger("hf_mote.sae.weights").removeHandler(caplog.handler)
    assert "fold_decoder_norm() does not" in caplog.text


def positive(size: int, seed: int) -> torch.Tensor:
    return activations(size, seed=seed, dtype=torch.float64).exp()


@pytest.mark.parametrize("sae", ALL_SAES, ids=str)
def test_fold_scale_by_dimension_is_the_same_function_of_activations_as_they_are(sae: TinySAE) -> None:
    model = sae.model(torch.float64)
    into = positive(HIDDEN, 3)
    out = into if sae.kind == "autoencoder" else positive(model.config.decoder_size, 4)
    x = activations(60, HIDDEN, dtype=torch.float64)
    expected = model(x * into, output_latents=True)
    if getattr(model.config, "scale_latents_by_decoder_norm", False):
        with pytest.raises(UnsupportedError, match="chosen by the lengths of their rows"):
            model.fold_scale(into, out)
        return
    assert model.fold_scale(into, out) is model
    found = model(x, output_latents=True)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction / out)
    torch.testing.assert_close(found.latents, expected.latents)
    # Unit rows would be another function, so that training on does not make them.
    assert not model.config.normalize_decoder


def test_fold_scale_by_dimension_takes_a_number_beside_a_tensor() -> None:
    model = TinySAE("relu", "skip_transcoder").model(torch.float64)
    x, out = activations(60, HIDDEN, dtype=torch.float64), positive(HIDDEN, 4)
    expected = model(x * 2).reconstruction / out
    torch.testing.assert_close(model.fold_scale(2.0, out)(x).reconstruction, expected)


@pytest.mark.parametrize("scale", [torch.ones(HIDDEN + 1), torch.zeros(HIDDEN), torch.full((HIDDEN,), torch.nan)])
def test_fold_scale_by_no_positive_numbers_is_refused(scale: torch.Tensor) -> None:
    with pytest.raises(DataError, match="must be a positive number for each dimension"):
        TinySAE("relu", "autoencoder").model().fold_scale(scale)


def test_fold_scale_by_numbers_that_differ_a_little_is_refused_too() -> None:
    with pytest.raises(DataError, match="in one scale"):
        TinySAE("relu", "autoencoder").model().fold_scale(1.0, 1.0 + 1e-12)
