"""SAELens files: what is refused and why, names of models and hookpoints, what is lost. See `test_oracles.py`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from release_files import saelens_3, saelens_of_openai
from safetensors.torch import load_file, save_file
from tiny_saes import ALL_SAES, HIDDEN, LATENTS, TinySAE, activations

from hf_mote import JumpReLUSAEModel, SAEModel, TopKSAEModel, export_sae, load_sae
from hf_mote.errors import FileFormatError, HFMoTEError, UnknownNameError, UnsupportedError

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


def written(folder: Path, name: str = "topk", kind: str = "autoencoder", **overrides: Any) -> Path:
    export_sae(TinySAE(name, kind).model(**overrides), folder, "saelens")
    return folder


def change_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """Change keys of cfg.json, those given as `...` are removed; return what is written."""
    config = json.loads((folder / CONFIG).read_text()) | changes
    config = {key: value for key, value in config.items() if value is not ...}
    (folder / CONFIG).write_text(json.dumps(config))
    return config


def change_tensors(folder: Path, **changes: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    for name, change in changes.items():
        new = change(tensors.pop(name, torch.zeros(LATENTS)))
        if new is not None:
            tensors[name] = new.contiguous()
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"architecture": "topkk"}, UnknownNameError, r"cfg\.json: architecture: .*Did you mean 'topk'"),
        ({"architecture": ...}, UnknownNameError, "architecture"),
        ({"architecture": 3}, FileFormatError, "architecture: wrong type or value .*3"),
        ({"architecture": "batchtopk"}, UnsupportedError, "state of training.*save_inference_model"),
        ({"architecture": "matryoshka_batchtopk"}, UnsupportedError, "state of training.*save_inference_model"),
        ({"architecture": "abstopk"}, UnsupportedError, "negative"),
        ({"architecture": "temporal"}, UnsupportedError, "tokens before"),
        ({"architecture": "matching_pursuit"}, UnsupportedError, "search"),
        ({"metadata": {"sae_lens_version": "x"}}, FileFormatError, "sae_lens_version: must be a version .got 'x'"),
        ({"metadata": [1]}, FileFormatError, "metadata: wrong type"),
        ({"aux_loss_coefficient": 1.0}, FileFormatError, "aux_loss_coefficient: unknown key.*save_inference_model"),
        ({"d_ina": 3}, FileFormatError, "d_ina: unknown key.*Did you mean 'd_in'"),
        ({"normalize_activations": "covariance_whitening"}, UnsupportedError, "fold_activation_whitening"),
        (
            {"normalize_activations": "expected_average_only_in"},
            UnsupportedError,
            "Give norm_scaling_factor: the root",
        ),
        ({"reshape_activations": "other"}, UnsupportedError, "reshape_activations: .*'other'"),
        ({"k": LATENTS + 1}, FileFormatError, r"cfg\.json: describes no topk_sae: TopKSAEConfig\.k: more latents"),
        ({"k": 4.5}, FileFormatError, r"cfg\.json: k: wrong type or value .got 4\.5"),
        ({"k": ...}, FileFormatError, "k: is missing"),
        ({"k": 0}, FileFormatError, "k: wrong .*at least 1"),
        ({"k": True}, FileFormatError, "k: wrong type"),
        ({"d_in": "12"}, FileFormatError, "d_in: wrong type or value .got '12'"),
        (
            {"d_in": 13},
            FileFormatError,
            r"sae_weights\.safetensors: W_enc: wrong shape .got \(12, 40\), .* \(13, 40\)",
        ),
        ({"d_sae": 41}, FileFormatError, "W_enc: wrong shape"),
        ({"dtype": "bfloat16"}, FileFormatError, "dtype: is not that of the weights .got bfloat16, expected float32"),
        ({"dtype": 3}, FileFormatError, "dtype: wrong type"),
        ({"apply_b_dec_to_input": "yes"}, FileFormatError, "apply_b_dec_to_input: wrong type"),
        ({"rescale_acts_by_decoder_norm": 1}, FileFormatError, "rescale_acts_by_decoder_norm: wrong type"),
        ({"metadata": {"sae_lens_version": "6.1.0", "hf_hook_name": 3}}, FileFormatError, "hf_hook_name: wrong type"),
    ],
)
def test_load_sae_config_that_means_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    change_config(written(tmp_path), **changes)
    with pytest.raises(error, match=reason) as caught:
        load_sae(tmp_path)
    assert str(tmp_path) in str(caught.value)


# Texts that choose among values, by their old names and those that an error has.
CHOOSING = {
    "activation_fn_str": "activation_fn",
    "architecture": "architecture",
    "normalize_activations": "normalize_activations",
    "reshape_activations": "reshape_activations",
    "sae_lens_version": "sae_lens_version",
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *[({"sae_lens_version": value}, "sae_lens_version: wrong type") for value in (0, False, [], 5)],
        ({"metadata": {"sae_lens_version": []}}, "sae_lens_version: wrong type"),
        *[({"activation_fn_str": value}, "activation_fn: wrong type") for value in (0, False, {}, ["topk"])],
        *[({"activation_fn_str": gone}, "activation_fn: is missing, and has arguments") for gone in (None, ...)],
        *[({key: ""}, f"{name}: must not be empty") for key, name in CHOOSING.items()],
        ({"architecture": "jumprelu"}, "architecture: must be one that goes with activation_fn 'topk'"),
        ({"architecture": "standart"}, "architecture: must be one that goes with activation_fn 'topk'"),
        ({"activation_fn": "relu"}, "activation_fn: contradicts the other name of activation_fn"),
        ({"hook_point": "blocks.4.hook_resid_mid"}, "hook_point: contradicts the other name of hook_name"),
        ({"activation_fn_kwargs": {"k": 5, "sign": True}}, "activation_fn_kwargs.sign: unknown key"),
        ({"activation_fn_kwargs": {"k": 5, "signed": 0}}, "signed: wrong type"),
        *[({"normalize_activations": value}, "normalize_activations: wrong type") for value in (0, [], {})],
        *[({"reshape_activations": value}, "reshape_activations: wrong type") for value in (0, False, [])],
        *[({"hook_head_index": value}, "hook_head_index: wrong type") for value in (False, "1", -1, [])],
    ],
)
def test_load_sae_config_of_before_6_with_a_wrong_type_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    folder = tmp_path / saelens_of_openai(tmp_path).place["subfolder"]
    assert load_sae(folder).config.k == 5
    change_config(folder, **changes)
    with pytest.raises(FileFormatError, match=rf"cfg\.json: {reason}"):
        load_sae(folder)


def test_load_sae_config_of_before_6_with_a_k_that_its_relu_ignores_is_read(tmp_path: Path) -> None:
    folder = tmp_path / saelens_of_openai(tmp_path).place["subfolder"]
    change_config(folder, activation_fn_str="relu")
    assert load_sae(folder).config.model_type == "relu_sae"


@pytest.mark.parametrize("changes", [{"activation_fn_kwargs": {"k": 5, "signed": False}}, {"hook_head_index": None}])
def test_load_sae_config_of_before_6_may_say_what_holds_anyway(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tmp_path / saelens_of_openai(tmp_path).place["subfolder"]
    change_config(folder, **changes)
    assert load_sae(folder).config.hookpoint == "transformer.h.3.ln_2.input"


@pytest.mark.parametrize("shape", [(LATENTS - 1,), (LATENTS, 1), (0,), (HIDDEN,)])
def test_load_sae_factors_of_other_latents_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    folder = tmp_path / saelens_3(tmp_path).place["subfolder"]
    load_sae(folder)
    change_tensors(folder, scaling_factor=lambda tensor: torch.ones(shape))
    with pytest.raises(FileFormatError, match="scaling_factor: wrong shape or dtype"):
        load_sae(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"b_enc": lambda tensor: None}, "b_enc: missing tensor .got W_dec, W_enc, b_dec"),
        ({"more": lambda tensor: tensor}, "more: unknown tensor .expected only W_dec, W_enc, b_dec, b_enc"),
        ({"b_enc": lambda tensor: tensor[:-1]}, r"b_enc: wrong shape .got \(39,\), expected \(40,\)"),
        ({"W_enc": lambda tensor: tensor.T}, r"W_enc: wrong shape .got \(40, 12\), expected \(12, 40\)"),
        ({"W_dec": lambda tensor: tensor * torch.inf}, "W_dec: holds NaN or infinite"),
        ({"W_dec": lambda tensor: tensor.index_fill(0, torch.tensor(3), torch.nan)}, "W_dec: holds NaN"),
        ({"b_dec": lambda tensor: tensor.long()}, r"b_dec: wrong dtype .got torch\.int64"),
        ({"b_dec": lambda tensor: tensor.to(torch.float8_e4m3fn)}, "b_dec: wrong dtype"),
        ({"b_dec": lambda tensor: tensor.half()}, r"b_dec: not the dtype of the encoder .got torch\.float16"),
    ],
)
def test_load_sae_wrong_tensor_is_refused_by_file_and_name(tmp_path: Path, changes: Any, reason: str) -> None:
    change_tensors(written(tmp_path), **changes)
    with pytest.raises(FileFormatError, match=rf"sae_weights\.safetensors: {reason}"):
        load_sae(tmp_path)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_load_sae_truncated_file_is_refused(tmp_path: Path, name: str, length: int) -> None:
    path = written(tmp_path) / name
    path.write_bytes(path.read_bytes().rstrip()[:length])
    with pytest.raises(FileFormatError, match=name.replace(".", r"\.")):
        load_sae(tmp_path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_load_sae_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    (written(tmp_path) / name).unlink()
    for format in ("auto", "saelens"):
        with pytest.raises(FileFormatError):
            load_sae(tmp_path, format)


def test_load_sae_transcoder_that_subtracts_is_refused(tmp_path: Path) -> None:
    change_config(written(tmp_path, "relu", "transcoder"), apply_b_dec_to_input=True)
    with pytest.raises(FileFormatError, match="apply_b_dec_to_input: must be false"):
        load_sae(tmp_path)


@pytest.mark.parametrize("spelling", ["torch.float32", "float32", ...])
def test_load_sae_dtype_may_be_spelt_as_saelens_does(tmp_path: Path, spelling: Any) -> None:
    change_config(written(tmp_path), dtype=spelling)
    assert load_sae(tmp_path).dtype == torch.float32


def test_load_sae_names_of_model_and_hookpoints_become_fields(tmp_path: Path) -> None:
    metadata = {
        "sae_lens_version": "6.54.12",
        "model_name": "google/gemma-2-2b",
        "model_from_pretrained_kwargs": {"revision": "main"},
        "hook_name": "blocks.3.hook_mlp_in",
        "hf_hook_name": "model.layers.3.output",
        "hf_hook_name_out": "model.layers.3.mlp",
    }
    change_config(written(tmp_path / "a", "relu", "transcoder"), metadata=metadata)
    config = load_sae(tmp_path / "a").config
    assert (config.base_model, config.base_model_revision) == ("google/gemma-2-2b", "main")
    assert (config.hookpoint, config.output_hookpoint) == ("model.layers.3", "model.layers.3.mlp")
    export_sae(load_sae(tmp_path / "a"), tmp_path / "b", "saelens")
    assert json.loads((tmp_path / "b" / CONFIG).read_text())["metadata"] == metadata


@pytest.mark.parametrize(
    ("metadata", "model", "hookpoint"),
    [
        ({"model_name": "gpt2-small", "hook_name": "blocks.3.hook_resid_post"}, "gpt2", "transformer.h.3"),
        ({"model_name": "gpt2-small", "hook_name": "blocks.3.hook_resid_pre"}, "gpt2", "transformer.h.3.input"),
        ({"model_name": "nobody-knows", "hook_name": "blocks.3.hook_resid_post"}, None, None),
        ({"model_name": "gpt2-small", "hook_name": "blocks.3.attn.hook_q"}, "gpt2", None),
        ({"hf_hook_name": "model.layers.3.self_attn.o_proj.input"}, None, "model.layers.3.self_attn.o_proj.input"),
        ({"hf_hook_name": "model.layers.3", "hook_head_index": 0}, None, None),
    ],
)
def test_load_sae_names_of_transformerlens_are_translated_and_kept(
    tmp_path: Path, metadata: dict[str, Any], model: str | None, hookpoint: str | None
) -> None:
    metadata = {**metadata, "sae_lens_version": "6.54.12"}
    change_config(written(tmp_path / "a"), metadata=metadata)
    sae = load_sae(tmp_path / "a")
    assert (sae.config.base_model, sae.config.hookpoint) == (model and f"openai-community/{model}", hookpoint)
    assert sae.config.layer == (None if hookpoint is None else 3)
    export_sae(sae, tmp_path / "b", "saelens")
    assert json.loads((tmp_path / "b" / CONFIG).read_text())["metadata"].items() >= metadata.items()


def test_export_sae_changed_names_replace_those_of_the_file(tmp_path: Path) -> None:
    metadata = {"sae_lens_version": "6.54.12", "hook_name": "blocks.3.hook_resid_post", "hf_hook_name": "h.3"}
    change_config(written(tmp_path / "a"), metadata=metadata)
    sae = load_sae(tmp_path / "a")
    sae.config.hookpoint, sae.config.base_model, sae.config.base_model_revision = "h.4", "me/model", "v1"
    export_sae(sae, tmp_path / "b", "saelens")
    found = json.loads((tmp_path / "b" / CONFIG).read_text())["metadata"]
    assert "hook_name" not in found
    assert (found["hf_hook_name"], found["model_name"]) == ("h.4", "me/model")
    assert found["model_from_pretrained_kwargs"] == {"revision": "v1"}
    again = load_sae(tmp_path / "b").config
    assert (again.hookpoint, again.base_model, again.base_model_revision) == ("h.4", "me/model", "v1")


@pytest.mark.parametrize(
    "sae", [s for s in ALL_SAES if s.name in ("relu", "jumprelu") or s.kind == "autoencoder"], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_export_sae_read_again_computes_the_same(tmp_path: Path, sae: TinySAE, dtype: torch.dtype) -> None:
    model = sae.model(dtype)
    export_sae(model, tmp_path, "saelens")
    again = load_sae(tmp_path, dtype="auto")
    assert again.dtype == dtype
    assert not again.training
    batch = activations(60, HIDDEN, dtype=dtype, seed=9)
    if getattr(model.config, "scale_latents_by_decoder_norm", False) and not isinstance(model, TopKSAEModel):
        # Folded into the weights, which rounds.
        slack = 100 * torch.finfo(dtype).eps
        assert (again.encode(batch) - model.encode(batch)).abs().max() <= slack * model.encode(batch).abs().max()
        return
    assert torch.equal(again.encode(batch), model.encode(batch))
    assert torch.equal(again(batch).reconstruction, model(batch).reconstruction)
    for name, tensor in again.state_dict().items():
        if name not in ("threshold", "tokens_since_fired"):
            assert torch.equal(tensor, model.state_dict()[name]), name


def test_export_sae_says_what_is_lost_and_keeps_it_in_the_metadata(tmp_path: Path) -> None:
    model = TinySAE("matryoshka", "autoencoder").model()
    lost = export_sae(model, tmp_path, "saelens")
    assert lost[0] == "the selection in training: matryoshka_sae is read as jumprelu_sae"
    assert {"k = 4", "group_sizes = [4, 12, 24]"} <= set(lost)
    metadata = json.loads((tmp_path / CONFIG).read_text())["metadata"]
    assert metadata["training_architecture"] == "matryoshka_sae"
    assert metadata["training_architecture_details"] == {"k": 4, "group_sizes": [4, 12, 24]}
    assert isinstance(load_sae(tmp_path), JumpReLUSAEModel)


def test_export_sae_thresholds_are_one_per_latent_or_all_the_same(tmp_path: Path) -> None:
    for name in ("feature_choice", "mutual_choice"):
        model = TinySAE(name, "autoencoder").model()
        export_sae(model, tmp_path / name, "saelens")
        found = load_file(tmp_path / name / WEIGHTS)["threshold"]
        assert torch.equal(found, model.threshold.expand(LATENTS))
        assert (len(found.unique()) > 1) == (name == "feature_choice")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: TinySAE("mutual_choice", "autoencoder").model(calibrated=False),
            "no threshold yet.*calibrate_thresh",
        ),
        (lambda: TinySAE("feature_choice", "autoencoder").model(calibrated=False), "no threshold yet"),
        (lambda: TinySAE("topk", "transcoder").model(), "no topk transcoder, only ReLU and JumpReLU"),
        (lambda: TinySAE("gated", "transcoder").model(), "no gated transcoder"),
        (
            lambda: TinySAE("relu", "skip_transcoder").model(subtract_decoder_bias=True),
            "subtracts b_dec from its input, which no transcoder",
        ),
    ],
)
def test_export_sae_model_that_the_format_cannot_hold_is_refused(
    tmp_path: Path, model: Callable[[], SAEModel], reason: str
) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        export_sae(model(), tmp_path / "new" / "out", "saelens")
    assert list(tmp_path.iterdir()) == []


def test_export_sae_architecture_that_overrides_a_rule_is_refused(tmp_path: Path) -> None:
    class Doubled(TopKSAEModel):
        def _activate(self, preactivations: torch.Tensor) -> torch.Tensor:
            return 2 * super()._activate(preactivations)

    model = Doubled(TinySAE("topk", "autoencoder").config())
    for format in ("saelens", "sparsify", "dictionary_learning"):
        with pytest.raises(UnsupportedError, match="Doubled: .*"):
            export_sae(model, tmp_path, format)
    assert list(tmp_path.iterdir()) == []


def test_load_sae_threshold_wider_than_the_weights_comes_back_as_it_was(tmp_path: Path) -> None:
    export_sae(TinySAE("jumprelu", "autoencoder").model(torch.bfloat16), tmp_path / "a", "saelens")
    thresholds = torch.linspace(0.1, 0.2, LATENTS)
    change_tensors(tmp_path / "a", threshold=lambda tensor: thresholds)
    sae = load_sae(tmp_path / "a", dtype="auto")
    assert torch.equal(sae.threshold, thresholds)
    export_sae(sae, tmp_path / "b", "saelens")
    assert (tmp_path / "b" / WEIGHTS).read_bytes() == (tmp_path / "a" / WEIGHTS).read_bytes()


def test_errors_of_conversion_are_those_of_the_package(tmp_path: Path) -> None:
    with pytest.raises(HFMoTEError):
        load_sae(tmp_path)
