"""Transcoders of circuit-tracer, one layer or across layers: in against the real library, and out for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from release_files import weights
from safetensors.torch import load_file, save_file
from tiny_saes import HIDDEN, LATENTS, TinySAE, activations

from hf_mote import SAEModel, export_sae, load_sae
from hf_mote.errors import FileFormatError, UnsupportedError

CONFIG = {
    "model_name": "Qwen/Qwen3-4B",
    "model_kind": "transcoder_set",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "hook_mlp_out",
    "scan": "a-scan",
}
PLACES = {
    "base_model": "Qwen/Qwen3-4B",
    "hookpoint": "model.layers.4.mlp.input",
    "output_hookpoint": "model.layers.4.mlp",
    "output_size": HIDDEN,
}


def written(folder: Path, skip: bool = False, threshold: str | None = None, **config: Any) -> Path:
    tensors = weights()
    if skip:
        tensors["W_skip"] = activations(HIDDEN, HIDDEN, seed=8)
    if threshold:
        tensors[threshold] = activations(LATENTS, seed=9).abs()
    save_file(tensors, folder / "layer_4.safetensors")
    document = {key: value for key, value in {**CONFIG, **config}.items() if value is not ...}
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    return folder


def transcoder(name: str, kind: str = "transcoder", **fields: Any) -> SAEModel:
    return TinySAE(name, kind).model(**{**PLACES, **fields})


@pytest.mark.oracle
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("threshold", [None, "activation_function.threshold"])
def test_load_sae_is_what_circuit_tracer_reads(oracle: Any, tmp_path: Path, skip: bool, threshold: str | None) -> None:
    inputs = activations(50, HIDDEN, seed=11)
    folder = written(tmp_path, skip, threshold)
    theirs = oracle.use("circuit_tracer", folder, inputs, file="layer_4.safetensors")
    sae = load_sae(folder)
    theirs.assert_is_what(sae, inputs)
    export_sae(sae, tmp_path / "again", "circuit_tracer")
    before, after = (load_file(path / "layer_4.safetensors") for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert yaml.safe_load((tmp_path / "again" / "config.yaml").read_text()) == CONFIG


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder"])
@pytest.mark.parametrize("name", ["relu", "jumprelu", "batch_topk", "matryoshka", "mutual_choice", "feature_choice"])
def test_export_sae_is_used_alike_by_circuit_tracer(oracle: Any, tmp_path: Path, name: str, kind: str) -> None:
    sae = transcoder(name, kind)
    lost = export_sae(sae, tmp_path, "circuit_tracer")
    assert any("is read as jumprelu_sae" in one for one in lost) == (name not in ("relu", "jumprelu"))
    inputs = activations(50, HIDDEN, seed=11)
    oracle.use("circuit_tracer", tmp_path, inputs, file="layer_4.safetensors").assert_is_what(sae, inputs)
    again = load_sae(tmp_path).config
    assert (again.base_model, again.hookpoint, again.output_hookpoint) == (
        sae.config.base_model,
        sae.config.hookpoint,
        sae.config.output_hookpoint,
    )


@pytest.mark.parametrize(
    ("model", "hook", "hookpoint", "eps"),
    [
        ("google/gemma-2-2b", "hook_resid_mid", "model.layers.4.pre_feedforward_layernorm.input", None),
        ("google/gemma-2-2b", "ln2.hook_normalized", "model.layers.4.pre_feedforward_layernorm.input", 1e-6),
        ("meta-llama/Llama-3.2-1B", "mlp.hook_in", "model.layers.4.mlp.input", None),
        ("somebody/model", "mlp.hook_in", None, None),
    ],
)
def test_load_sae_hooks_become_places(
    tmp_path: Path, model: str, hook: str, hookpoint: str | None, eps: float | None
) -> None:
    config = load_sae(written(tmp_path, model_name=model, feature_input_hook=hook)).config
    assert (config.base_model, config.hookpoint) == (model, hookpoint)
    assert config.input_normalization == (None if eps is None else "rms_norm")
    assert eps is None or config.input_normalization_eps == eps
    assert config.is_transcoder


@pytest.mark.parametrize(
    ("model", "hook"),
    [
        ("google/gemma-2-2b", "ln2.hook_normalised"),
        ("google/gemma-2-2b", "resid"),
        ("somebody/model", "ln2.hook_normalized"),
        (None, "ln2.hook_normalized"),
    ],
)
def test_load_sae_of_a_place_that_may_be_normalised_is_refused(tmp_path: Path, model: str | None, hook: str) -> None:
    written(tmp_path, model_name=model, feature_input_hook=hook)
    with pytest.raises(UnsupportedError, match=r"config\.yaml: feature_input_hook: is no place .*input_normalization"):
        load_sae(tmp_path)
    given = {"input_normalization": "rms_norm", "input_normalization_eps": 1e-6, "hookpoint": "model.layers.4.norm"}
    config = load_sae(tmp_path, **given).config
    assert {name: getattr(config, name) for name in given} == given


def test_load_sae_normalisation_does_not_depend_on_the_name_of_the_file(tmp_path: Path) -> None:
    written(tmp_path, model_name="google/gemma-2-2b", feature_input_hook="ln2.hook_normalized")
    (tmp_path / "layer_4.safetensors").rename(tmp_path / "mine.safetensors")
    config = load_sae(tmp_path / "mine.safetensors", "circuit_tracer").config
    assert (config.hookpoint, config.input_normalization) == (None, "rms_norm")


@pytest.mark.parametrize("hook", ["hook_mlp_aut", "ln2.hook_normalized", "x"])
def test_load_sae_of_an_unknown_place_to_write_to_is_refused(tmp_path: Path, hook: str) -> None:
    written(tmp_path, feature_output_hook=hook)
    with pytest.raises(UnsupportedError, match=r"config\.yaml: feature_output_hook: is no place .*output_hookpoint"):
        load_sae(tmp_path)
    assert load_sae(tmp_path, output_hookpoint="model.layers.4.x").config.output_hookpoint == "model.layers.4.x"


@pytest.mark.parametrize("key", ["feature_input_hook", "feature_output_hook"])
@pytest.mark.parametrize(("value", "reason"), [(..., "is missing"), (None, "is missing"), ("", "must not be empty")])
def test_load_sae_of_a_config_without_its_hooks_is_refused(tmp_path: Path, key: str, value: Any, reason: str) -> None:
    written(tmp_path, **{key: value})
    with pytest.raises(FileFormatError, match=rf"config\.yaml: {key}: {reason}"):
        load_sae(tmp_path)


def test_load_sae_of_another_activation_function_is_refused(tmp_path: Path) -> None:
    for activation in ("relu", "JumpReLU", None):
        load_sae(written(tmp_path, activation=activation))
    with pytest.raises(UnsupportedError, match="activation: cannot be read .got 'topk', expected relu or jumprelu"):
        load_sae(written(tmp_path, activation="topk", k=4))


def test_load_sae_of_an_empty_config_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "config.yaml").write_text("{}\n")
    with pytest.raises(FileFormatError, match="feature_input_hook: is missing"):
        load_sae(tmp_path)


def test_load_sae_with_two_widths_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / "layer_4.safetensors"
    changes = {"W_dec": activations(LATENTS, 7), "b_dec": torch.zeros(7)}
    save_file({**load_file(path), **changes}, path)
    with pytest.raises(FileFormatError, match="decoder: must be as wide as what is reconstructed .got 7, expected 12"):
        load_sae(tmp_path)


def test_load_sae_with_both_names_of_a_threshold_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, threshold="threshold") / "layer_4.safetensors"
    save_file({**load_file(path), "activation_function.threshold": torch.ones(LATENTS)}, path)
    with pytest.raises(FileFormatError, match="threshold: and activation_function.threshold are both there"):
        load_sae(tmp_path)


def test_load_sae_threshold_has_two_names(tmp_path: Path) -> None:
    sae = load_sae(written(tmp_path, threshold="threshold"))
    assert torch.equal(sae.threshold, activations(LATENTS, seed=9).abs())


def test_load_sae_unweighted_norm_comes_back_as_it_was(tmp_path: Path) -> None:
    changes = {"model_name": "google/gemma-2-2b", "feature_input_hook": "ln2.hook_normalized"}
    sae = load_sae(written(tmp_path, **changes))
    export_sae(sae, tmp_path / "again", "circuit_tracer")
    assert yaml.safe_load((tmp_path / "again" / "config.yaml").read_text()) == {**CONFIG, **changes}
    with pytest.raises(UnsupportedError, match="normalises its input, which SAELens"):
        export_sae(sae, tmp_path / "other", "saelens")


def test_load_sae_several_layers_are_named_by_file(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "layer_10.safetensors").write_bytes((tmp_path / "layer_4.safetensors").read_bytes())
    with pytest.raises(FileFormatError, match=r"got layer_4\.safetensors, layer_10\.safetensors\)\. Say .*by file"):
        load_sae(tmp_path)
    assert load_sae(tmp_path, file="layer_10.safetensors").config.layer == 10
    assert load_sae(tmp_path / "layer_10.safetensors").config.layer == 10
    with pytest.raises(FileFormatError, match=r"layer_3\.safetensors: holds no weights"):
        load_sae(tmp_path, file="layer_3.safetensors")
    with pytest.raises(FileFormatError, match=r"layer_3\.safetensors: is missing"):
        load_sae(tmp_path, "circuit_tracer", file="layer_3.safetensors")


def test_export_sae_layers_of_one_set_share_a_folder(tmp_path: Path) -> None:
    for layer in (2, 3):
        sae = transcoder(
            "relu",
            hookpoint=f"model.layers.{layer}.mlp.input",
            output_hookpoint=f"model.layers.{layer}.mlp",
        )
        export_sae(sae, tmp_path, "circuit_tracer")
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.yaml",
        "layer_2.safetensors",
        "layer_3.safetensors",
    }
    before = (tmp_path / "config.yaml").read_text()
    with pytest.raises(FileFormatError, match=r"config\.yaml: model_name: is of another set .got 'Qwen/Qwen3-4B'"):
        export_sae(transcoder("relu", base_model="Qwen/Qwen3-8B"), tmp_path, "circuit_tracer")
    assert (tmp_path / "config.yaml").read_text() == before
    assert not (tmp_path / "layer_4.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "kind", "fields", "reason"),
    [
        ("topk", "transcoder", {}, "ReLU and JumpReLU transcoders only"),
        ("relu", "autoencoder", {"output_hookpoint": None, "output_size": None}, "transcoders of one width only"),
        ("relu", "transcoder", {"output_size": 9}, "of one width only, .*12 to 9"),
        ("relu", "transcoder", {"hookpoint": None}, "of which layer"),
        ("relu", "transcoder", {"hookpoint": "model.layers.4.mlp.up_proj"}, "no name for its hookpoint"),
        ("relu", "transcoder", {"base_model": "somebody/model"}, "no name for its hookpoint"),
        ("relu", "transcoder", {"input_normalization": "layer_norm"}, "normalises its input"),
    ],
)
def test_export_sae_what_circuit_tracer_cannot_hold_is_refused(
    tmp_path: Path, name: str, kind: str, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        export_sae(transcoder(name, kind, **fields), tmp_path / "out", "circuit_tracer")
    assert not (tmp_path / "out").exists()


def test_export_sae_without_a_threshold_is_refused(tmp_path: Path) -> None:
    sae = TinySAE("batch_topk", "transcoder").model(calibrated=False, **PLACES)
    with pytest.raises(UnsupportedError, match="calibrate_threshold"):
        export_sae(sae, tmp_path / "out", "circuit_tracer")


# Across layers

PLACES_AHEAD = 3


def across(folder: Path, skip: bool, threshold: bool) -> list[dict[str, torch.Tensor]]:
    """Write a cross-layer transcoder of three layers; returns its tensors by layer."""
    layers = []
    for layer in range(PLACES_AHEAD):
        tensors = weights(layer * 7 + 1)
        tensors["W_dec"] = activations(LATENTS, PLACES_AHEAD - layer, HIDDEN, seed=layer + 50)
        if threshold:
            tensors["threshold"] = activations(LATENTS, seed=layer + 70).abs()
        if skip:
            tensors["W_skip"] = activations(HIDDEN, HIDDEN, seed=layer + 80)
        layers.append(tensors)
        named = {f"{name}_{layer}": tensor for name, tensor in tensors.items()}
        save_file({f"W_dec_{layer}": named.pop(f"W_dec_{layer}")}, folder / f"W_dec_{layer}.safetensors")
        save_file(named, folder / f"W_enc_{layer}.safetensors")
    config = {**CONFIG, "model_kind": "cross_layer_transcoder", "feature_input_hook": "hook_resid_mid"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return layers


@pytest.mark.oracle
@pytest.mark.parametrize(("skip", "threshold"), [(False, False), (True, True)])
def test_load_sae_layers_of_a_clt_add_up_to_what_circuit_tracer_makes(
    oracle: Any, tmp_path: Path, skip: bool, threshold: bool
) -> None:
    layers = across(tmp_path, skip, threshold)
    inputs = activations(PLACES_AHEAD, 20, HIDDEN, seed=11)
    theirs = oracle.use("circuit_tracer_clt", tmp_path, inputs)
    total = torch.zeros(PLACES_AHEAD, 20, HIDDEN)
    for layer in range(PLACES_AHEAD):
        sae = load_sae(tmp_path, file=f"W_enc_{layer}.safetensors")
        config = sae.config
        assert config.hookpoint == f"model.layers.{layer}.post_attention_layernorm.input"
        assert config.output_hookpoints == [f"model.layers.{n}.mlp" for n in range(layer, PLACES_AHEAD)]
        with torch.no_grad():
            output = sae(inputs[layer], output_latents=True, return_loss=False)
        torch.testing.assert_close(output.latents, theirs.latents[layer], rtol=1e-5, atol=1e-5)
        parts = output.reconstruction.unflatten(-1, (-1, HIDDEN)).transpose(0, 1)
        total[layer:] += parts
    expected = theirs.reconstruction
    if skip:
        # Version 0.5.0 reads no skip connections across layers; later ones add this.
        expected = expected + inputs @ torch.stack([tensors["W_skip"] for tensors in layers])
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("hook", "error", "reason"),
    [
        ("ln2.hook_normalised", UnsupportedError, "feature_input_hook: is no place that is known in Qwen/Qwen3-4B"),
        (None, FileFormatError, "feature_input_hook: is missing"),
        ("", FileFormatError, "feature_input_hook: must not be empty"),
    ],
)
def test_load_sae_clt_of_a_place_that_is_not_known_is_refused(
    tmp_path: Path, hook: str | None, error: type[Exception], reason: str
) -> None:
    across(tmp_path, False, False)
    config = {**CONFIG, "model_kind": "cross_layer_transcoder", "feature_input_hook": hook}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(error, match=reason):
        load_sae(tmp_path, file="W_enc_1.safetensors")


@pytest.mark.parametrize(
    ("hook", "error", "reason"),
    [
        ("hook_mlp_aut", UnsupportedError, "feature_output_hook: is no place that is known in Qwen/Qwen3-4B"),
        (None, FileFormatError, "feature_output_hook: is missing"),
    ],
)
def test_load_sae_clt_to_a_place_that_is_not_known_is_refused(
    tmp_path: Path, hook: str | None, error: type[Exception], reason: str
) -> None:
    across(tmp_path, False, False)
    config = {**CONFIG, "model_kind": "cross_layer_transcoder", "feature_output_hook": hook}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(error, match=reason):
        load_sae(tmp_path, file="W_enc_1.safetensors")


@pytest.mark.parametrize("renamed", [["b_enc"], ["W_enc", "b_enc", "b_dec"]])
def test_load_sae_clt_tensors_without_the_suffix_are_refused(tmp_path: Path, renamed: list[str]) -> None:
    across(tmp_path, False, False)
    path = tmp_path / "W_enc_1.safetensors"
    tensors = load_file(path)
    save_file({**tensors, **{name: tensors[f"{name}_1"].clone() for name in renamed}}, path)
    with pytest.raises(FileFormatError, match=rf"is not named by its layer .got {len(renamed)} such.*end in _1"):
        load_sae(tmp_path, file="W_enc_1.safetensors")


def test_load_sae_clt_without_its_decoder_is_refused(tmp_path: Path) -> None:
    across(tmp_path, False, False)
    (tmp_path / "W_dec_1.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"W_dec_1\.safetensors: cannot be read"):
        load_sae(tmp_path, file="W_enc_1.safetensors")
    save_file({"W_dec_1": torch.zeros(LATENTS, HIDDEN)}, tmp_path / "W_dec_1.safetensors")
    with pytest.raises(FileFormatError, match=r"W_dec_1: is not .latents, layers, width"):
        load_sae(tmp_path, file="W_enc_1.safetensors")
