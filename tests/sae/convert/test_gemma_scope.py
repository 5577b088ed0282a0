"""Gemma Scope files: names say what an SAE is of; never written. See `test_oracles.py` for the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_saes import HIDDEN, LATENTS, activations

from hf_mote import export_sae, load_sae
from hf_mote.errors import FileFormatError, UnsupportedError


def arrays(width: int = HIDDEN, **changes: Any) -> dict[str, Any]:
    """Tensors as the second release names them; those given as `...` are left out."""
    found = {
        "w_enc": activations(HIDDEN, LATENTS, seed=3),
        "w_dec": activations(LATENTS, width, seed=4),
        "b_enc": activations(LATENTS, seed=5),
        "b_dec": activations(width, seed=6),
        "threshold": activations(LATENTS, seed=7).abs(),
        **changes,
    }
    return {name: tensor for name, tensor in found.items() if tensor is not ...}


def first(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(
        folder / "params.npz", **{name.replace("w_", "W_"): np.asarray(v) for name, v in arrays(**changes).items()}
    )
    return folder


def second(folder: Path, config: dict[str, Any] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays(**changes), folder / "params.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("names", "model", "hookpoint"),
    [
        ("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "google/gemma-2-2b", "model.layers.20"),
        ("gemma-scope-9b-it-res/layer_9/width_16k/l0_1", "google/gemma-2-9b-it", "model.layers.9"),
        ("gemma-scope-2b-pt-mlp/layer_4/w", "google/gemma-2-2b", "model.layers.4.post_feedforward_layernorm"),
        ("gemma-scope-2b-pt-att/layer_4/w", "google/gemma-2-2b", "model.layers.4.self_attn.o_proj.input"),
        (
            "gemma-scope-2b-pt-transcoders/layer_4/w",
            "google/gemma-2-2b",
            "model.layers.4.pre_feedforward_layernorm.input",
        ),
        ("gemma-scope-2b-pt-res/embedding/width_4k/l0_3", "google/gemma-2-2b", "model.embed_tokens"),
        ("somewhere", None, None),
    ],
)
def test_load_sae_first_release_is_told_by_names(
    tmp_path: Path, names: str, model: str | None, hookpoint: str | None
) -> None:
    sae = load_sae(first(tmp_path / "google" / names))
    assert (sae.config.base_model, sae.config.hookpoint) == (model, hookpoint)
    assert sae.config.is_transcoder == ("transcoders" in names)
    assert not sae.config.subtract_decoder_bias
    assert torch.equal(sae.W_enc.T, arrays()["w_enc"]) == ("embedding" not in names)
    assert torch.equal(sae.threshold, arrays()["threshold"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"threshold": ...}, "threshold: missing tensor"),
        ({"w_dec": ...}, "w_dec: missing tensor"),
        ({"b_enc": torch.full([LATENTS], torch.nan)}, "b_enc: holds NaN"),
        ({"threshold": torch.zeros(3)}, "threshold: wrong shape"),
        ({"w_dec": torch.zeros(LATENTS, 2, HIDDEN)}, "w_dec: must be a matrix"),
        ({"w_dec": torch.zeros(LATENTS - 1, HIDDEN)}, "w_dec: wrong shape"),
        ({"other": torch.zeros(3)}, "other: unknown tensor"),
    ],
)
def test_load_sae_first_release_wrong_array_is_refused(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(FileFormatError, match=rf"params\.npz: {reason}"):
        load_sae(first(tmp_path, **changes))


def test_load_sae_first_release_scaling_factor_must_be_one(tmp_path: Path) -> None:
    assert load_sae(first(tmp_path / "a", scaling_factor=torch.ones(LATENTS))).config.num_latents == LATENTS
    with pytest.raises(FileFormatError, match="scaling_factor: wrong shape"):
        load_sae(first(tmp_path / "c", scaling_factor=torch.ones(LATENTS - 1)))
    with pytest.raises(UnsupportedError, match="scaling_factor"):
        load_sae(first(tmp_path / "b", scaling_factor=torch.full([LATENTS], 2.0)))


def test_load_sae_first_release_array_of_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "params.npz", W_enc=np.array([{}, 3], dtype=object), allow_pickle=True)
    with pytest.raises(FileFormatError, match=r"params\.npz: W_enc\.npy: wrong dtype .got object"):
        load_sae(tmp_path)


@pytest.mark.parametrize("write", [first, second])
def test_load_sae_autoencoder_with_two_widths_is_refused(tmp_path: Path, write: Any) -> None:
    with pytest.raises(FileFormatError, match=r"decoder: must be as wide .* .got 7, expected 12"):
        load_sae(write(tmp_path / "a", width=7))
    assert load_sae(write(tmp_path / "transcoder", width=7)).config.output_size == 7


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("gemma-v3-1b-pt", "google/gemma-3-1b-pt"),
        ("gemma-v3-270m-pt", "google/gemma-3-270m"),
        ("google/gemma-3-4b-it", "google/gemma-3-4b-it"),
        (None, None),
    ],
)
def test_load_sae_second_release_names_model_and_site(tmp_path: Path, name: str | None, model: str | None) -> None:
    config = {"architecture": "jump_relu", "model_name": name, "hf_hook_point_in": "model.layers.9.output", "l0": 60}
    sae = load_sae(second(tmp_path, config))
    # Of the model with a picture tower, in which the text model is a part.
    root = "model.language_model" if "4b" in str(name) else "model"
    assert (sae.config.base_model, sae.config.hookpoint) == (model, f"{root}.layers.9")
    assert not sae.config.is_transcoder
    assert sae.config.origin == {"format": "gemma_scope_2", "config": config}


@pytest.mark.parametrize("kind", ["sae", ...])
def test_load_sae_second_release_autoencoder_names_its_place_twice(tmp_path: Path, kind: Any) -> None:
    hooks = dict.fromkeys(("hf_hook_point_in", "hf_hook_point_out"), "model.layers.9.output")
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", **hooks, "affine_connection": False}
    folder = second(tmp_path, {**config, **({} if kind is ... else {"type": kind})})
    found = load_sae(folder).config
    assert (found.hookpoint, found.is_transcoder) == ("model.layers.9", False)
    assert (found.output_size, found.output_hookpoint) == (None, None)


BEFORE, AFTER = (f"model.layers.9.{side}_feedforward_layernorm.output" for side in ("pre", "post"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"type": "sae"}, "type: contradicts the hooks"),
        ({"hf_hook_point_out": BEFORE}, "type: contradicts the hooks"),
        ({"hf_hook_point_out": ""}, "hf_hook_point_out: must not be empty"),
        ({"hf_hook_point_in": None}, "hf_hook_point_in: is missing, and hf_hook_point_out is there"),
        ({"type": 3}, "type: wrong type"),
    ],
)
def test_load_sae_second_release_hooks_that_contradict_are_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    config = {
        "architecture": "jump_relu",
        "hf_hook_point_in": BEFORE,
        "hf_hook_point_out": AFTER,
        "type": "transcoder",
    }
    assert load_sae(second(tmp_path / "a", config)).config.is_transcoder
    with pytest.raises(FileFormatError, match=rf"config\.json: {reason}"):
        load_sae(second(tmp_path / "b", {**config, **changes}))


def test_load_sae_second_release_without_config_is_told_by_its_tensors(tmp_path: Path) -> None:
    assert not load_sae(second(tmp_path / "a")).config.is_transcoder
    skip = activations(HIDDEN, 7, seed=8)
    sae = load_sae(second(tmp_path / "b", width=7, affine_skip_connection=skip))
    assert sae.config.is_transcoder
    assert torch.equal(sae.W_skip, skip.T)


@pytest.mark.parametrize(
    ("config", "changes", "error", "reason"),
    [
        ({"architecture": "topk"}, {}, FileFormatError, r"config\.json: architecture: unknown .got 'topk'"),
        (None, {"w_dec": torch.zeros(LATENTS, 3, HIDDEN)}, UnsupportedError, "w_dec: is of a cross-layer transcoder"),
        (
            {"architecture": "jump_relu", "affine_connection": True},
            {},
            FileFormatError,
            "affine_skip_conn",
        ),
        ({"architecture": "jump_relu", "affine_connection": 1}, {}, FileFormatError, "affine_connection: wrong type"),
    ],
)
def test_load_sae_second_release_other_meaning_is_refused(
    tmp_path: Path, config: dict[str, Any] | None, changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        load_sae(second(tmp_path, config, **changes))


@pytest.mark.parametrize("format", ["gemma_scope", "gemma_scope_2"])
def test_export_sae_to_gemma_scope_is_refused_and_to_saelens_is_not(tmp_path: Path, format: str) -> None:
    sae = load_sae(second(tmp_path / "in"))
    with pytest.raises(UnsupportedError, match="is not written: .*write it for SAELens"):
        export_sae(sae, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()
    export_sae(sae, tmp_path / "out", "saelens")
    again = load_sae(tmp_path / "out")
    batch = activations(20, HIDDEN)
    assert torch.equal(again.encode(batch), sae.encode(batch))
