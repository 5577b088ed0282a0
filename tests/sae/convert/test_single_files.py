"""SAEs that are one file: OpenAI's, OpenSAE's, Gemma Scope 2's layers, and files of no format by a layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from release_files import LINEAR, stored, weights
from safetensors.torch import save_file
from tiny_saes import HIDDEN, LATENTS, activations
from torch import Tensor

from hf_mote import SAELayout, load_sae
from hf_mote.errors import ConfigError, DataError, FileFormatError, UnknownNameError, UnsupportedError

INPUTS = activations(50, HIDDEN, seed=11) * 2 + 1


def assert_is(sae: Any, latents: Tensor, rebuilt: Tensor) -> None:
    with torch.no_grad():
        output = sae(INPUTS, output_latents=True, return_loss=False)
    torch.testing.assert_close(output.latents, latents, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.reconstruction, rebuilt, rtol=1e-5, atol=1e-5)
    assert float(latents.abs().max()) > 0.1


def topk(pre: Tensor, k: int) -> Tensor:
    values, indices = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values.relu())


# OpenAI

OPENAI = {"W_enc": "encoder.weight", "b_enc": "latent_bias", "W_dec": "decoder.weight.T", "b_dec": "pre_bias"}


def openai(folder: Path, **changes: Any) -> Path:
    """Write the state of an `Autoencoder` as it saves itself."""
    path = folder / "gpt2-small" / "resid_post_attn_v5_32k" / "autoencoders" / "8.pt"
    path.parent.mkdir(parents=True)
    state = {
        **stored(weights(), OPENAI),
        "stats_last_nonzero": torch.zeros(LATENTS, dtype=torch.long),
        "latents_activation_frequency": torch.ones(LATENTS),
        "latents_mean_square": torch.zeros(LATENTS),
        "activation": "TopK",
        "activation_state_dict": {"k": 5, "postact_fn": "ReLU"},
        **changes,
    }
    torch.save({key: value for key, value in state.items() if value is not ...}, path)
    return path


def test_load_sae_openai_topk_normalises_each_token(tmp_path: Path) -> None:
    sae = load_sae(openai(tmp_path))
    w = weights()
    mean = INPUTS.mean(-1, keepdim=True)
    spread = (INPUTS - mean).std(-1, keepdim=True)
    encoded = (INPUTS - mean) / (spread + 1e-5) - w["b_dec"]
    latents = topk(encoded @ w["W_enc"].T + w["b_enc"], 5)
    assert_is(sae, latents, (latents @ w["W_dec"] + w["b_dec"]) * spread + mean)
    assert (sae.config.base_model, sae.config.hookpoint) == ("openai-community/gpt2", "transformer.h.8.ln_2.input")
    assert sae.config.origin["format"] == "openai"


def test_load_sae_openai_relu_does_not(tmp_path: Path) -> None:
    w = weights()
    latents = ((INPUTS - w["b_dec"]) @ w["W_enc"].T + w["b_enc"]).relu()
    sae = load_sae(openai(tmp_path, activation="ReLU", activation_state_dict={}))
    assert_is(sae, latents, latents @ w["W_dec"] + w["b_dec"])


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"activation": "Identity"}, FileFormatError, "activation: unknown .got 'Identity'"),
        ({"activation": torch.zeros(3)}, FileFormatError, "activation: unknown"),
        ({"activation_state_dict": {"k": 5, "postact_fn": "Identity"}}, UnsupportedError, "negative, too"),
        (
            {"activation_state_dict": {"k": -5, "postact_fn": "ReLU"}},
            FileFormatError,
            "activation_state_dict.k: wrong",
        ),
        ({"activation_state_dict": {"postact_fn": "ReLU"}}, FileFormatError, "activation_state_dict.k"),
        ({"latent_bias": ...}, FileFormatError, "holds no weights|latent_bias|tensors of"),
        ({"more": torch.zeros(3)}, FileFormatError, "more: unknown tensor"),
        ({"more": "text"}, FileFormatError, "more: must be a plain tensor"),
        ({"latent_bias": torch.full([LATENTS], torch.nan)}, FileFormatError, "latent_bias: holds NaN"),
    ],
)
def test_load_sae_openai_that_means_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        load_sae(openai(tmp_path, **changes))


def test_load_sae_openai_renamed_file_is_told_by_its_tensors(tmp_path: Path) -> None:
    path = openai(tmp_path)
    renamed = tmp_path / "mine.pt"
    path.rename(renamed)
    assert load_sae(renamed).config.origin["format"] == "openai"
    assert load_sae(tmp_path, file="mine.pt").config.hookpoint is None


# OpenSAE


def opensae(folder: Path, sharded: bool = False, **changes: Any) -> dict[str, Any]:
    tensors = stored(
        weights(), {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
    )
    if sharded:
        first, second = dict(list(tensors.items())[:2]), dict(list(tensors.items())[2:])
        parts = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second}
        for name, part in parts.items():
            save_file(part, folder / name)
        index = {key: name for name, part in parts.items() for key in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    else:
        save_file(tensors, folder / "model.safetensors")
    config = {
        "hidden_size": HIDDEN,
        "feature_size": LATENTS,
        "activation": "topk",
        "k": 5,
        "input_normalize": True,
        "normalize_shift_back": True,
        "input_normalize_eps": 0.01,
        "input_hookpoint": "layers.7",
        "output_hookpoint": "layers.7",
        "model_name": "meta-llama/Llama-3.1-8B",
        "multi_topk": 4,
        **changes,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return config


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("back", [False, True])
def test_load_sae_opensae_normalises_and_gives_back_what_it_says(tmp_path: Path, back: bool, sharded: bool) -> None:
    opensae(tmp_path, sharded, normalize_shift_back=back)
    w = weights()
    mean = INPUTS.mean(-1, keepdim=True)
    scale = (INPUTS - mean).std(-1, keepdim=True) + 0.01
    latents = topk(((INPUTS - mean) / scale - w["b_dec"]) @ w["W_enc"].T + w["b_enc"], 5)
    rebuilt = latents @ w["W_dec"] + w["b_dec"]
    sae = load_sae(tmp_path)
    assert_is(sae, latents, rebuilt * scale + mean if back else rebuilt)
    assert (sae.config.base_model, sae.config.hookpoint) == ("meta-llama/Llama-3.1-8B", "model.layers.7")
    assert sae.config.is_transcoder == (not back)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"activation": "jumprelu"}, UnsupportedError, "activation: cannot be read"),
        ({"num_experts": 4}, UnsupportedError, "num_experts: .*routed experts"),
        ({"feature_size": 41}, FileFormatError, "feature_size: contradicts"),
        ({"k": 0}, FileFormatError, "k: wrong"),
        ({"input_normalize": 1}, FileFormatError, "input_normalize: wrong type"),
        *[
            ({"input_normalize_eps": eps}, FileFormatError, "input_normalize_eps: must be a number from 0 to 1")
            for eps in ("small", -1e-9, 1.5, 1e30, True, None)
        ],
        (
            {"input_normalize_eps_": 0.1},
            FileFormatError,
            "input_normalize_eps_: unknown key.*mean 'input_normalize_eps'",
        ),
        ({"input_normalize_type": "rms"}, FileFormatError, "input_normalize_type: unknown key"),
        ({"normalize_shift": True}, FileFormatError, "normalize_shift: unknown key"),
        ({"activation": ""}, FileFormatError, "activation: must not be empty"),
        ({"output_hookpoint": "layers.8"}, UnsupportedError, "normalize_shift_back: .*transcoder"),
    ],
)
def test_load_sae_opensae_that_means_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    opensae(tmp_path, **changes)
    with pytest.raises(error, match=reason):
        load_sae(tmp_path)


@pytest.mark.parametrize("eps", [0, 1e-5, 1])
def test_load_sae_opensae_keys_of_training_and_of_transformers_are_left_alone(tmp_path: Path, eps: float) -> None:
    others = {"jumprelu_theta": 0.5, "decoder_impl": "triton", "multi_topk": 4, "auxk_alpha": 0.01, "l1_coef": None}
    others |= {"k_experts": 1, "moe_loss_coef": 0.01, "model_type": "", "torch_dtype": "bfloat16", "num_beams": 1}
    opensae(tmp_path, input_normalize_eps=eps, **others)
    assert load_sae(tmp_path).config.input_normalization_eps == eps


@pytest.mark.parametrize("change", ["left out", "elsewhere"])
def test_load_sae_opensae_index_must_say_what_the_parts_hold(tmp_path: Path, change: str) -> None:
    opensae(tmp_path, sharded=True)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())["weight_map"]
    name = min(index)
    if change == "left out":
        del index[name]
    else:
        index[name] = next(part for part in index.values() if part != index[name])
    path.write_text(json.dumps({"weight_map": index}))
    with pytest.raises(FileFormatError, match=f"weight_map: {name}: is (not )?in model-"):
        load_sae(tmp_path)


def test_load_sae_opensae_index_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    opensae(tmp_path, sharded=True)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"W_dec": "../other.safetensors"}}')
    with pytest.raises(FileFormatError, match="must name parts model-N-of-N.safetensors .got '../other.safetensors'"):
        load_sae(tmp_path)


# Layers of Gemma Scope 2


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("kind", ["crosscoder/layer_7_13_17_width_65k_l0_medium", "clt/width_262k_l0_big_affine"])
def test_load_sae_gemma_scope_2_layers_add_up(tmp_path: Path, kind: str, described: bool) -> None:
    folder = tmp_path / "google" / "gemma-scope-2-1b-pt" / kind
    folder.mkdir(parents=True)
    affine = "affine" in kind
    layers = []
    for layer in range(3):
        tensors = {
            "w_enc": activations(HIDDEN, LATENTS, seed=layer + 3),
            "w_dec": activations(LATENTS, 3, HIDDEN, seed=layer + 13),
            "b_enc": activations(LATENTS, seed=layer + 23),
            "b_dec": activations(HIDDEN, seed=layer + 33),
            "threshold": activations(LATENTS, seed=layer + 43).abs(),
        }
        if affine:
            tensors["affine_skip_connection"] = activations(HIDDEN, HIDDEN, seed=layer + 53)
        save_file(tensors, folder / f"params_layer_{layer}.safetensors")
        layers.append(tensors)
    if described:
        hooks = "{7,13,17}.output" if "cross" in kind else "{all}.pre_feedforward_layernorm.output"
        out = "{7,13,17}.output" if "cross" in kind else "{all}.post_feedforward_layernorm.output"
        config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "affine_connection": affine}
        config |= {"hf_hook_point_in": f"model.layers.{hooks}", "hf_hook_point_out": f"model.layers.{out}"}
        (folder / "config.json").write_text(json.dumps(config))
    inputs = activations(3, 20, HIDDEN, seed=61)
    total, expected = torch.zeros(20, 3, HIDDEN), torch.zeros(20, 3, HIDDEN)
    numbers = [7, 13, 17] if "cross" in kind else [0, 1, 2]
    inner = ("", "") if "cross" in kind else (".pre_feedforward_layernorm", ".post_feedforward_layernorm")
    for layer, tensors in enumerate(layers):
        sae = load_sae(folder, file=f"params_layer_{layer}.safetensors")
        assert sae.config.base_model == "google/gemma-3-1b-pt"
        assert sae.config.hookpoint == f"model.layers.{numbers[layer]}{inner[0]}"
        assert sae.config.output_hookpoints == [f"model.layers.{n}{inner[1]}" for n in numbers]
        with torch.no_grad():
            total += sae(inputs[layer], return_loss=False).reconstruction.unflatten(-1, (3, HIDDEN))
        pre = inputs[layer] @ tensors["w_enc"] + tensors["b_enc"]
        latents = pre.relu() * (pre > tensors["threshold"])
        expected += torch.einsum("tf,fld->tld", latents, tensors["w_dec"])
        expected[:, layer] += tensors["b_dec"]
        if affine:
            expected[:, layer] += inputs[layer] @ tensors["affine_skip_connection"]
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "affine", "reason"),
    [
        ({"architecture": "topk"}, False, "architecture: unknown .got 'topk'"),
        ({"affine_connection": True}, False, "affine_connection: contradicts the weights"),
        ({"affine_connection": False}, True, "affine_connection: contradicts the weights"),
        ({"affine_connection": "yes"}, True, "affine_connection: wrong type"),
        *(
            ({"hf_hook_point_in": hook}, False, "hf_hook_point_in: must name the layers of w_dec .*expected 3 layers")
            for hook in ("model.layers.{7,13}.output", "model.layers.{7,7,17}.output", "model.layers.7.output", None)
        ),
        ({"hf_hook_point_out": "model.layers.{7,,17}.output"}, False, "hf_hook_point_out: must name the layers"),
        ({"hf_hook_point_out": None}, False, "hf_hook_point_out: must name the layers"),
        ({"hf_hook_point_out": "model.layers.{7,13,18}.output"}, False, "names other layers than hf_hook_point_in"),
    ],
)
def test_load_sae_gemma_scope_2_layer_that_is_something_else_is_refused(
    tmp_path: Path, config: dict[str, Any], affine: bool, reason: str
) -> None:
    tensors = {
        "w_enc": activations(HIDDEN, LATENTS),
        "w_dec": activations(LATENTS, 3, HIDDEN),
        "b_enc": activations(LATENTS),
        "b_dec": activations(HIDDEN),
        "threshold": activations(LATENTS).abs(),
        **({"affine_skip_connection": activations(HIDDEN, HIDDEN)} if affine else {}),
    }
    save_file(tensors, tmp_path / "params_layer_1.safetensors")
    good = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "affine_connection": affine}
    good |= {f"hf_hook_point_{end}": "model.layers.{7,13,17}.output" for end in ("in", "out")}
    (tmp_path / "config.json").write_text(json.dumps(good))
    load_sae(tmp_path, file="params_layer_1.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**good, **config}))
    with pytest.raises(FileFormatError, match=reason):
        load_sae(tmp_path, file="params_layer_1.safetensors")


def test_load_sae_gemma_scope_2_layer_beyond_its_decoder_is_refused(tmp_path: Path) -> None:
    save_file({"w_dec": torch.zeros(LATENTS, 3, HIDDEN)}, tmp_path / "params_layer_3.safetensors")
    with pytest.raises(FileFormatError, match="w_dec: is not .latents, layers, width., the file's layer among them"):
        load_sae(tmp_path)


# A file of no format

LAYOUT = SAELayout("topk_sae", {"W_enc": "enc", "b_enc": "be", "W_dec": "dec", "b_dec": "bd"}, transpose=("W_enc",))


def foreign(path: Path, **changes: Any) -> Path:
    w = weights()
    tensors = {"enc": w["W_enc"].T.contiguous(), "be": w["b_enc"], "dec": w["W_dec"], "bd": w["b_dec"], **changes}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not ...}
    if path.suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".pth", ".bin"])
def test_load_sae_by_a_layout_takes_any_file_of_tensors(tmp_path: Path, suffix: str) -> None:
    w = weights()
    path = foreign(tmp_path / f"weights{suffix}")
    sae = load_sae(path, LAYOUT, k=5, hookpoint="model.layers.3", base_model="me/model")
    latents = topk((INPUTS - w["b_dec"]) @ w["W_enc"].T + w["b_enc"], 5)
    assert_is(sae, latents, latents @ w["W_dec"] + w["b_dec"])
    assert (sae.config.base_model, sae.config.hookpoint, sae.config.layer) == ("me/model", "model.layers.3", 3)
    again = load_sae(tmp_path, LAYOUT, file=f"weights{suffix}", k=5)
    assert torch.equal(again.encode(INPUTS), sae.encode(INPUTS))


def test_load_sae_by_a_layout_without_biases_has_zeros(tmp_path: Path) -> None:
    names = {"W_enc": "enc", "W_dec": "enc"}
    path = foreign(tmp_path / "w.safetensors", be=..., bd=..., dec=...)
    sae = load_sae(path, SAELayout("relu_sae", names, transpose=("W_enc", "W_dec")))
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert not bool(sae.b_enc.any() or sae.b_dec.any())


@pytest.mark.parametrize(
    ("layout", "fields", "error", "reason"),
    [
        (LAYOUT, {}, None, ""),
        (LAYOUT, {"k": 41}, FileFormatError, "more latents than there are"),
        (LAYOUT, {"kk": 4}, FileFormatError, "kk"),
        (LAYOUT, {"num_latents": 41}, FileFormatError, "num_latents: is not what was asked for .got 40, expected 41"),
        (
            SAELayout("topk_sae", {"W_enc": "enc", "W_dec": "dec"}),
            {},
            FileFormatError,
            "dec: wrong shape|unknown tensor",
        ),
        (
            SAELayout("topk_sae", {"W_enc": "enc", "W_dec": "dec"}, ("W_enc",)),
            {},
            FileFormatError,
            "b[de]: unknown tensor",
        ),
        (SAELayout("topk_sae", {"W_enc": "x", "W_dec": "dec"}), {}, FileFormatError, "x: missing tensor"),
    ],
)
def test_load_sae_by_a_layout_that_does_not_fit_is_refused(
    tmp_path: Path, layout: SAELayout, fields: dict[str, Any], error: type[Exception] | None, reason: str
) -> None:
    path = foreign(tmp_path / "w.safetensors")
    if error is None:
        assert load_sae(path, layout, **fields).config.k == 32
        return
    with pytest.raises(error, match=reason):
        load_sae(path, layout, **fields)


def test_load_sae_by_a_layout_is_a_transcoder_only_if_somebody_says_so(tmp_path: Path) -> None:
    path = foreign(tmp_path / "w.safetensors", dec=activations(LATENTS, 7), bd=torch.zeros(7))
    with pytest.raises(
        FileFormatError, match="decoder: must be as wide .* .got 7, expected 12.* output_size or output"
    ):
        load_sae(path, LAYOUT, k=5)
    for given in ({"output_size": 7}, {"output_hookpoint": "model.layers.3.mlp"}):
        config = load_sae(path, LAYOUT, k=5, **given).config
        assert (config.is_transcoder, config.output_size) == (True, 7)
    assert not load_sae(foreign(tmp_path / "same.safetensors"), LAYOUT, k=5).config.is_transcoder


def test_load_sae_by_a_layout_ignores_what_it_is_told_to(tmp_path: Path) -> None:
    path = foreign(tmp_path / "w.safetensors", step=torch.zeros(3))
    layout = SAELayout("topk_sae", LAYOUT.names, LAYOUT.transpose, ignore=("step",))
    assert load_sae(path, layout, k=5).config.k == 5


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"model_type": "topk", "names": {}}, UnknownNameError, "Did you mean 'topk_sae'"),
        ({"model_type": "topk_sae", "names": {"W_enc": "a"}}, ConfigError, "lacks W_dec"),
        ({"model_type": "topk_sae", "names": {"w_enc": "a"}}, ConfigError, "name of no tensor .got 'w_enc'"),
        (
            {"model_type": "topk_sae", "names": {"W_enc": "a", "W_dec": "b"}, "transpose": ("enc",)},
            ConfigError,
            "transpose: has a name of no tensor",
        ),
    ],
)
def test_layout_that_cannot_be_is_refused(arguments: dict[str, Any], error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        SAELayout(**arguments)


def test_load_sae_other_files_and_folders_have_no_layout(tmp_path: Path) -> None:
    (tmp_path / "w.txt").touch()
    with pytest.raises(FileFormatError, match="must be a file of tensors"):
        load_sae(tmp_path / "w.txt", LAYOUT)
    with pytest.raises(FileFormatError, match="a layout is of one file"):
        load_sae(tmp_path, LAYOUT)


# Tried on activations


def test_load_sae_is_tried_on_activations(tmp_path: Path) -> None:
    # An orthonormal dictionary of as many latents as dimensions and their negatives reconstructs everything.
    basis = torch.linalg.qr(activations(HIDDEN, HIDDEN)).Q
    dictionary = torch.cat([basis, -basis])
    tensors = {
        "enc": dictionary.T.contiguous(),
        "be": torch.zeros(2 * HIDDEN),
        "dec": dictionary,
        "bd": torch.zeros(HIDDEN),
    }
    save_file(tensors, tmp_path / "w.safetensors")
    names = dict(LAYOUT.names)
    layout = SAELayout("relu_sae", names, ("W_enc",))
    sae = load_sae(tmp_path / "w.safetensors", layout, activations=INPUTS)
    assert float(sae(INPUTS).fvu) < 1e-6
    tensors["dec"] = tensors["dec"].flip(0).contiguous()
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(DataError, match=r"are not reconstructed.*fraction of variance unexplained of \d"):
        load_sae(tmp_path / "wrong.safetensors", layout, activations=INPUTS)
    with pytest.raises(DataError, match="targets: are needed"):
        load_sae(tmp_path / "w.safetensors", layout, activations=INPUTS, output_size=HIDDEN, output_hookpoint="a")


# What is asked for


def test_load_sae_dtype_is_that_of_the_file_and_float32_at_least(tmp_path: Path) -> None:
    half = {name: tensor.bfloat16() for name, tensor in stored(weights(), LINEAR).items()}
    path = tmp_path / "Llama-3.1-8B-Instruct-SAE-l19.pt"
    torch.save(half, path)
    assert load_sae(path).dtype == torch.float32
    assert torch.equal(load_sae(path).W_enc, half["encoder.weight"].float())
    assert load_sae(path, dtype="auto").dtype == torch.bfloat16
    assert load_sae(path, dtype="float64").dtype == torch.float64
    assert load_sae(path, dtype=torch.float16).dtype == torch.float16
    torch.save({name: tensor.double() for name, tensor in half.items()}, path)
    assert load_sae(path).dtype == torch.float64
    for wrong in ("int8", "float33", "nn"):
        with pytest.raises(ConfigError, match="must be a float dtype of torch"):
            load_sae(path, dtype=wrong)


def test_load_sae_device_map_is_that_of_transformers(tmp_path: Path) -> None:
    path = foreign(tmp_path / "w.safetensors")
    assert load_sae(path, LAYOUT, k=5, device_map="cpu").device.type == "cpu"
    assert load_sae(path, LAYOUT, k=5, device_map={"": "meta"}).device.type == "meta"


def test_load_sae_qwen_scope_without_its_name_wants_k(tmp_path: Path) -> None:
    w = weights()
    torch.save({**w, "W_dec": w["W_dec"].T.contiguous()}, tmp_path / "layer3.sae.pt")
    with pytest.raises(FileFormatError, match="how many latents are active.*Give k"):
        load_sae(tmp_path)
    assert load_sae(tmp_path, k=5).config.k == 5
