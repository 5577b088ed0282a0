"""sparsify files: what is refused and why, hookpoints by folder names. See `test_oracles.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_saes import HIDDEN, LATENTS, TinySAE, activations

from hf_mote import export_sae, load_sae
from hf_mote.errors import FileFormatError, UnsupportedError

WEIGHTS = "sae.safetensors"


def written(folder: Path, kind: str = "autoencoder") -> Path:
    export_sae(TinySAE("topk", kind).model(), folder, "sparsify")
    return folder


def change_config(folder: Path, **changes: Any) -> None:
    """Change keys of cfg.json; those given as `...` are removed."""
    config = json.loads((folder / "cfg.json").read_text()) | changes
    (folder / "cfg.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"activation": "groupmax"}, UnsupportedError, "groupmax: cannot be read: .*groups"),
        ({"activation": "relu"}, FileFormatError, "activation: unknown .got 'relu', expected 'topk'"),
        ({"signed": True}, UnsupportedError, "signed: cannot be read: latents are never negative"),
        ({"signed": "no"}, FileFormatError, "signed: wrong type"),
        ({"new_key": 1}, FileFormatError, "new_key: unknown key"),
        ({"k": LATENTS + 1}, FileFormatError, r"describes no topk_sae: TopKSAEConfig\.k"),
        ({"num_latents": 0, "expansion_factor": 4}, FileFormatError, r"encoder\.weight: wrong shape .*\(48, 12\)"),
        ({"num_latents": ..., "expansion_factor": ...}, FileFormatError, "expansion_factor: is missing"),
        ({"d_in": 13}, FileFormatError, r"sae\.safetensors: encoder\.weight: wrong shape"),
        ({"skip_connection": True}, FileFormatError, r"sae\.safetensors: W_skip: missing tensor"),
        ({"transcode": 1}, FileFormatError, "transcode: wrong type"),
        ({"multi_topk": "x"}, FileFormatError, "multi_topk: wrong type"),
    ],
)
def test_load_sae_config_that_means_something_else_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    change_config(written(tmp_path), **changes)
    with pytest.raises(error, match=reason) as caught:
        load_sae(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_load_sae_encoder_alone_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path) / WEIGHTS
    save_file({name: tensor for name, tensor in load_file(path).items() if name != "W_dec"}, path)
    with pytest.raises(FileFormatError, match=r"sae\.safetensors: W_dec: missing tensor"):
        load_sae(tmp_path)


def test_load_sae_older_config_has_fewer_keys(tmp_path: Path) -> None:
    change_config(written(tmp_path), activation=..., multi_topk=..., skip_connection=..., transcode=..., signed=False)
    assert load_sae(tmp_path).config.k == 4


@pytest.mark.parametrize(
    ("folder", "hookpoint"),
    [
        ("layers.10", "model.layers.10"),
        ("layers.3.mlp", "model.layers.3.mlp"),
        ("h.5", "transformer.h.5"),
        ("h.5.mlp", "transformer.h.5.mlp"),
        ("embed_tokens", None),
        ("my-sae", None),
        ("layers", None),
    ],
)
def test_load_sae_hookpoint_is_the_folder_s_name_from_the_model_on(
    tmp_path: Path, folder: str, hookpoint: str | None
) -> None:
    assert load_sae(written(tmp_path / folder)).config.hookpoint == hookpoint


def test_load_sae_model_is_that_of_the_run(tmp_path: Path) -> None:
    written(tmp_path / "layers.3")
    run = {"sae": {"k": 4}, "model": "HuggingFaceTB/SmolLM2-135M", "revision": "main", "batch_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(run))
    config = load_sae(tmp_path, subfolder="layers.3").config
    assert (config.base_model, config.base_model_revision) == ("HuggingFaceTB/SmolLM2-135M", "main")
    assert config.hookpoint == "model.layers.3"


def test_load_sae_config_above_that_is_no_run_s_is_left_alone(tmp_path: Path) -> None:
    written(tmp_path / "layers.3")
    (tmp_path / "config.json").write_text('{"model_type": "llama", "model": 3}')
    assert load_sae(tmp_path / "layers.3").config.base_model is None


@pytest.mark.parametrize("kind", ["autoencoder", "skip_transcoder"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_sae_read_again_is_the_same(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    model = TinySAE("topk", kind).model(dtype)
    assert export_sae(model, tmp_path, "sparsify") == []
    again = load_sae(tmp_path, dtype="auto")
    assert again.dtype == dtype
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    fields = {"hidden_size", "num_latents", "k", "skip_connection", "subtract_decoder_bias", "output_size"}
    assert all(getattr(model.config, name) == getattr(again.config, name) for name in fields)


def test_export_sae_scaled_latents_are_folded(tmp_path: Path) -> None:
    model = TinySAE("topk_scaled", "autoencoder").model()
    export_sae(model, tmp_path, "sparsify")
    batch = activations(60, HIDDEN, seed=9)
    assert torch.allclose(load_sae(tmp_path).encode(batch), model.encode(batch), atol=1e-5)


def test_export_sae_hookpoint_and_model_are_lost_and_said_so(tmp_path: Path) -> None:
    model = TinySAE("topk", "autoencoder").model(hookpoint="model.layers.3", base_model="me/model", aux_k=3)
    lost = export_sae(model, tmp_path, "sparsify")
    assert sorted(lost) == ["aux_k = 3", "base_model = 'me/model'", "hookpoint = 'model.layers.3'"]


@pytest.mark.parametrize("name", ["relu", "gated", "batch_topk", "jumprelu", "feature_choice", "mutual_choice"])
def test_export_sae_other_rule_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedError, match="sparsify has TopK only"):
        export_sae(TinySAE(name, "autoencoder").model(), tmp_path, "sparsify")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        ("transcoder", {}),
        ("autoencoder", {"subtract_decoder_bias": False}),
        ("skip_transcoder", {"skip_connection": False, "subtract_decoder_bias": True}),
    ],
)
def test_export_sae_shape_that_the_format_cannot_hold_is_refused(
    tmp_path: Path, kind: str, overrides: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedError, match="one width only, and subtracts b_dec"):
        export_sae(TinySAE("topk", kind).model(**overrides), tmp_path, "sparsify")
