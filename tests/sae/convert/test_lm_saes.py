"""SAEs of Language-Model-SAEs: both layouts, their scales and the gate by the lengths of dictionary rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from release_files import weights
from safetensors.torch import load_file, save_file
from tiny_saes import HIDDEN, LATENTS, activations

from hf_mote import load_sae
from hf_mote.errors import FileFormatError, UnsupportedError

HOOK, OUT = "blocks.7.hook_resid_post", "blocks.7.hook_mlp_out"


def scope(folder: Path, **changes: Any) -> dict[str, Any]:
    """Write an SAE as Llama Scope does, in float32, with dictionary rows of free lengths."""
    (folder / "checkpoints").mkdir(parents=True)
    tensors = weights()
    stored = {
        "encoder.weight": tensors["W_enc"],
        "encoder.bias": tensors["b_enc"],
        "decoder.weight": tensors["W_dec"].T.contiguous(),
        "decoder.bias": tensors["b_dec"],
    }
    save_file(stored, folder / "checkpoints" / "final.safetensors")
    config = {
        "d_model": HIDDEN,
        "hook_point_in": HOOK,
        "hook_point_out": HOOK,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 1.5,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 2.5, "out": 2.5},
        "sparsity_include_decoder_norm": True,
        "apply_decoder_bias_to_pre_encoder": False,
        **changes,
    }
    (folder / "hyperparams.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return config


@pytest.mark.parametrize("norms", [(2.5, 2.5), (64.0, 3.39)])
@pytest.mark.parametrize("lengths", [True, False])
def test_load_sae_llama_scope_gates_in_the_units_of_the_model_s_activations(
    tmp_path: Path, norms: tuple[float, float], lengths: bool
) -> None:
    place = {"in": norms[0], "out": norms[1]}
    out = HOOK if norms[0] == norms[1] else OUT
    scope(tmp_path, dataset_average_activation_norm=place, sparsity_include_decoder_norm=lengths, hook_point_out=out)
    sae = load_sae(tmp_path)
    # As the library has it for inference: both norms folded, then every row at unit length, then one threshold.
    x, w = activations(200, HIDDEN, seed=11).double(), {name: t.double() for name, t in weights().items()}
    scale = [math.sqrt(HIDDEN) / norm for norm in norms]
    dictionary = w["W_dec"] * scale[0] / scale[1]
    folded = x @ w["W_enc"].T + w["b_enc"] / scale[0]
    contribution = folded * dictionary.norm(dim=1) if lengths else folded
    latents = folded * (contribution > 1.5)
    with torch.no_grad():
        output = sae(x.float(), output_latents=True, return_loss=False)
    assert torch.equal(output.latents > 0, latents > 0)
    assert 0 < float((latents > 0).float().mean()) < 0.9
    # Latents are in the units of training.
    torch.testing.assert_close(output.latents.double(), latents * scale[0], rtol=1e-5, atol=1e-5)
    expected = latents @ dictionary + w["b_dec"] / scale[1]
    torch.testing.assert_close(output.reconstruction.double(), expected, rtol=1e-5, atol=1e-5)
    assert sae.config.is_transcoder == (out == OUT)


def test_load_sae_llama_scope_row_of_zeros_is_never_active(tmp_path: Path) -> None:
    scope(tmp_path)
    path = tmp_path / "checkpoints" / "final.safetensors"
    tensors = load_file(path)
    tensors["decoder.weight"][:, 3] = 0
    save_file(tensors, path)
    assert not bool(load_sae(tmp_path).encode(activations(200, HIDDEN))[:, 3].any())


def test_load_sae_llama_scope_transcoder_of_normalised_input_takes_the_model_s_own(tmp_path: Path) -> None:
    scope(tmp_path, hook_point_in="blocks.7.ln2.hook_normalized", hook_point_out=OUT, model_name="Llama-3.1-8B")
    config = load_sae(tmp_path).config
    assert (config.hookpoint, config.output_hookpoint) == (
        "model.layers.7.post_attention_layernorm.input",
        "model.layers.7.mlp",
    )
    assert (config.input_normalization, config.input_normalization_eps) == ("rms_norm", 1e-5)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"sae_type": "clt", "hook_points_in": [HOOK]}, UnsupportedError, "a cross-layer transcoder writes to many"),
        ({"norm_activation": "token-wise"}, UnsupportedError, "norm_activation: .*'token-wise'"),
        ({"norm_activation": 3}, FileFormatError, "norm_activation: wrong type"),
        ({"dataset_average_activation_norm": ...}, UnsupportedError, "Give norm_scaling_factor"),
        ({"dataset_average_activation_norm": {"in": 0, "out": 1}}, FileFormatError, "in: wrong .*above 0"),
        ({"dataset_average_activation_norm": {"in": 1}}, FileFormatError, "out: is missing"),
        ({"dataset_average_activation_norm": {"in": 2.5, "out": 2.525}}, FileFormatError, "must be equal where input"),
        (
            {"hook_point_in": "blocks.7.ln2.hook_normalized"},
            UnsupportedError,
            "hook_point_in: is no place that is known",
        ),
        *[
            ({key: ""}, FileFormatError, f"{key}: must not be empty")
            for key in ("norm_activation", "sae_type", "act_fn", "hook_point_in", "hook_point_out")
        ],
        ({"hook_point_in": ..., "sae_type": "sae"}, FileFormatError, "hook_point_in: is missing, and hook_point_out"),
        *[
            (
                {"hook_point_out": hook},
                UnsupportedError,
                "hook_point_out: is no place that is known .*output_hookpoint",
            )
            for hook in ("blocks.7.hook_mlp_aut", "blocks.7.ln2.hook_normalized", "blocks.x.hook_mlp_out")
        ],
        ({"act_fn": "batchtopk"}, UnsupportedError, "act_fn: .*across the batch"),
        ({"jump_relu_threshold": ...}, FileFormatError, "jump_relu_threshold: is missing"),
        ({"jump_relu_threshold": -1}, FileFormatError, "jump_relu_threshold: wrong"),
        ({"use_glu_encoder": True}, UnsupportedError, "use_glu_encoder"),
        ({"sae_type": "lorsa"}, UnsupportedError, "sae_type lorsa: .*attention heads"),
        ({"sae_type": "clt"}, UnsupportedError, "sae_type clt: .*many layers"),
        ({"d_model": 13}, FileFormatError, "d_model: contradicts the weights"),
        ({"use_decoder_bias": "no"}, FileFormatError, "use_decoder_bias: wrong type"),
        ({"use_decoder_bias": False}, FileFormatError, "use_decoder_bias: contradicts the weights"),
        ({"d_sae": LATENTS + 1}, FileFormatError, "d_sae: contradicts the weights"),
        ({"d_sae": [None]}, FileFormatError, "d_sae: wrong type"),
        ({"expansion_factor": 99}, FileFormatError, "expansion_factor: contradicts the weights"),
        ({"act_fn": "relu"}, FileFormatError, "jump_relu_threshold: does not go with act_fn 'relu'"),
        ({"act_fn": ...}, FileFormatError, "jump_relu_threshold: does not go with act_fn 'relu'"),
    ],
)
def test_load_sae_config_that_means_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    scope(tmp_path, **changes)
    with pytest.raises(error, match=rf"hyperparams\.json: .*{reason}"):
        load_sae(tmp_path)


@pytest.mark.parametrize("written", [..., None])
def test_load_sae_without_a_hook_it_writes_to_is_an_autoencoder(tmp_path: Path, written: Any) -> None:
    scope(tmp_path, hook_point_out=written, model_name="Llama-3.1-8B")
    config = load_sae(tmp_path).config
    assert (config.hookpoint, config.output_size, config.output_hookpoint) == ("model.layers.7", None, None)


def test_load_sae_place_that_is_not_known_can_be_given(tmp_path: Path) -> None:
    scope(tmp_path, hook_point_out="blocks.7.hook_mlp_aut", model_name="Llama-3.1-8B")
    config = load_sae(tmp_path, output_hookpoint="model.layers.7.mlp.other").config
    assert (config.output_size, config.output_hookpoint) == (HIDDEN, "model.layers.7.mlp.other")


@pytest.mark.parametrize("kind", ["relu", "topk", "none"])
def test_load_sae_thresholds_beside_another_activation_function_are_refused(tmp_path: Path, kind: str) -> None:
    given = {"act_fn": kind} if kind != "none" else {"act_fn": ...}
    scope(tmp_path, jump_relu_threshold=..., top_k=3, **given)
    file = tmp_path / "checkpoints" / "final.safetensors"
    save_file({**load_file(file), "log_jumprelu_threshold": torch.zeros(LATENTS)}, file)
    with pytest.raises(FileFormatError, match="log_jumprelu_threshold: are thresholds"):
        load_sae(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
def test_load_sae_thresholds_that_are_no_floats_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    scope(tmp_path, jump_relu_threshold=...)
    file = tmp_path / "checkpoints" / "final.safetensors"
    save_file({**load_file(file), "log_jumprelu_threshold": torch.ones(LATENTS).to(dtype)}, file)
    with pytest.raises(FileFormatError, match="log_jumprelu_threshold: wrong shape or value"):
        load_sae(tmp_path)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "fields",
    [
        {"act_fn": "jumprelu", "sparsity_include_decoder_norm": True},
        {"act_fn": "jumprelu", "sparsity_include_decoder_norm": False},
        {"act_fn": "jumprelu", "norm_activation": "inference"},
        {"act_fn": "jumprelu", "use_decoder_bias": False},
        {"act_fn": "jumprelu", "hook_point_out": OUT, "norms": [3.0, 0.7]},
        {"act_fn": "relu"},
        {"act_fn": "topk", "top_k": 5, "sparsity_include_decoder_norm": False},
        {"act_fn": "topk", "top_k": 5, "sparsity_include_decoder_norm": True},
    ],
    ids=str,
)
def test_load_sae_is_what_llamascopium_reads(oracle: Any, tmp_path: Path, fields: dict[str, Any]) -> None:
    options = {"hook_point_in": HOOK, "hook_point_out": HOOK, "norms": [2.5], **fields}
    folder = oracle.make("llamascopium", tmp_path / "made", **options)
    inputs = activations(50, HIDDEN, seed=11)
    theirs = oracle.use("llamascopium", folder, inputs)
    sae = load_sae(folder)
    if fields.get("act_fn") == "topk" and fields["sparsity_include_decoder_norm"]:
        # Selected by what they contribute, which here is what they are.
        scale = math.sqrt(HIDDEN) / 2.5
        lengths = (sae.W_dec * scale).norm(dim=1)
        theirs = theirs._replace(latents=theirs.latents * lengths.detach() / scale)
    theirs.assert_is_what(sae, inputs)
    assert sae.config.layer == 7 or sae.config.hookpoint is None
    assert sae.config.num_latents == LATENTS
