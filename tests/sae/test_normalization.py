"""`config.input_normalization`: what is encoded, the way back, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_saes import HIDDEN, SETTINGS, THRESHOLDED, TinySAE, activations

from hf_mote import SAEModel
from hf_mote.errors import ConfigError, DataError, UnsupportedError
from hf_mote.sae.normalization import normalized, restored

KINDS = ["center", "rms_norm", "standardize", "layer_norm"]
EPS = {"center": 1e-5, "rms_norm": 1e-6, "standardize": 1e-5, "layer_norm": 1e-5}


def model(kind: str, name: str = "topk", shape: str = "autoencoder", **fields: Any) -> SAEModel:
    return TinySAE(name, shape).model(input_normalization=kind, input_normalization_eps=EPS[kind], **fields)


@pytest.fixture
def inputs() -> torch.Tensor:
    return activations(50, HIDDEN, seed=9) * 3 + 2


@pytest.mark.parametrize("kind", KINDS)
def test_normalized_is_what_its_formula_says(kind: Any, inputs: torch.Tensor) -> None:
    x, eps = inputs.double(), EPS[kind]
    mean = x.mean(-1, keepdim=True)
    spread = ((x - mean).pow(2).sum(-1, keepdim=True) / (HIDDEN - 1)).sqrt()
    formulas = {
        "center": (x - mean, x),
        "rms_norm": (x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt(), x),
        "standardize": ((x - mean) / (spread + eps), x),
        "layer_norm": ((x - mean) / (spread + eps), (x - mean) / (spread + eps) * spread + mean),
    }
    encoded = normalized(inputs, kind, eps)
    torch.testing.assert_close(encoded.double(), formulas[kind][0], rtol=1e-5, atol=1e-5)
    back = restored(encoded, inputs, kind, eps)
    torch.testing.assert_close(back.double(), formulas[kind][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_normalized_twice_is_once(kind: Any, inputs: torch.Tensor) -> None:
    once = normalized(inputs, kind, EPS[kind])
    torch.testing.assert_close(normalized(once, kind, EPS[kind]), once, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize("kind", KINDS)
def test_normalized_token_of_zeros_stays_finite(kind: Any, eps: float) -> None:
    zeros = torch.zeros(2, HIDDEN)
    assert torch.equal(normalized(zeros, kind, eps), zeros)
    assert bool(restored(torch.ones(2, HIDDEN), zeros, kind, eps).isfinite().all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_autoencoder_takes_and_returns_the_model_s_own_activations(name: str, kind: Any, inputs: torch.Tensor) -> None:
    sae, plain = model(kind, name), TinySAE(name, "autoencoder").model()
    if name in THRESHOLDED:
        sae.calibrate_threshold(inputs)
        plain.calibrate_threshold(normalized(inputs, kind, EPS[kind]))
        assert torch.equal(sae.threshold, plain.threshold)
    encoded = normalized(inputs, kind, EPS[kind])
    with torch.no_grad():
        output, expected = sae(inputs, output_latents=True), plain(encoded, output_latents=True)
    assert torch.equal(output.latents, expected.latents)
    torch.testing.assert_close(output.reconstruction, restored(expected.reconstruction, inputs, kind, EPS[kind]))
    assert torch.equal(sae.encode(inputs), output.latents)
    assert torch.equal(sae.decode(output.latents, inputs), output.reconstruction)
    # Measured in the units of the model, against its own activations.
    torch.testing.assert_close(output.mse, (inputs - output.reconstruction).pow(2).mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["transcoder", "skip_transcoder"])
def test_transcoder_gives_nothing_back(shape: str, kind: Any, inputs: torch.Tensor) -> None:
    sae, plain = model(kind, "relu", shape), TinySAE("relu", shape).model()
    encoded = normalized(inputs, kind, EPS[kind])
    with torch.no_grad():
        output, expected = sae(inputs), plain(encoded)
    torch.testing.assert_close(output.reconstruction, expected.reconstruction)


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_is_on_its_own_bit_for_bit(kind: Any, inputs: torch.Tensor) -> None:
    sae = model(kind)
    latents = sae.encode(inputs)
    for token in (0, 7, 49):
        assert torch.equal(sae.encode(inputs[token : token + 1]), latents[token : token + 1])


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(kind: Any, inputs: torch.Tensor, tmp_path: Path) -> None:
    sae = model(kind)
    sae.save_pretrained(tmp_path)
    again = SAEModel.from_pretrained(tmp_path)
    assert (again.config.input_normalization, again.config.input_normalization_eps) == (kind, EPS[kind])
    assert torch.equal(again.encode(inputs), sae.encode(inputs))


def test_padding_takes_part_in_nothing(inputs: torch.Tensor) -> None:
    sae = model("layer_norm")
    mask = torch.ones(50)
    mask[3] = 0
    spoilt = inputs.clone()
    spoilt[3] = torch.nan
    assert not bool(sae.encode(spoilt, mask)[3].any())
    assert torch.equal(sae.encode(spoilt, mask)[4], sae.encode(inputs)[4])


def test_decode_without_the_activations_is_refused(inputs: torch.Tensor) -> None:
    sae = model("center")
    with pytest.raises(DataError, match="needed to undo config.input_normalization"):
        sae.decode(sae.encode(inputs))


@pytest.mark.parametrize("name", SETTINGS)
def test_training_is_refused_before_anything_changes(name: str, inputs: torch.Tensor) -> None:
    sae = model("center", name).train()
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    for call in (sae, sae.encode):
        with pytest.raises(UnsupportedError, match="not trained with input_normalization.*eval"):
            call(inputs)
    assert all(torch.equal(value, before[key]) or value.isnan().all() for key, value in sae.state_dict().items())


def test_fold_scale_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="normalises its input"):
        model("rms_norm").fold_scale(2.0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"input_normalization": "batch_norm"}, "input_normalization: wrong type or value"),
        ({"input_normalization_eps": -1.0}, "input_normalization_eps: out of range"),
        ({"input_normalization": "layer_norm", "hidden_size": 1}, "needs a width of 2"),
        ({"output_hookpoints": ["a", "b", "c"], "output_size": 20}, "output_hookpoints: are to be some.*3 of them"),
        ({"output_hookpoints": [], "output_size": 20}, "output_hookpoints: are to be some"),
        ({"output_hookpoints": ["a"], "output_hookpoint": "a"}, "without output_hookpoint"),
    ],
)
def test_config_that_cannot_be_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        TinySAE("relu", "autoencoder").config(**fields)
