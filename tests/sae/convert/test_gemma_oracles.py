"""Gemma Scope files against the readers that SAELens has for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file
from tiny_saes import HIDDEN, LATENTS, activations
from torch import Tensor

from hf_mote import load_sae

pytestmark = pytest.mark.oracle

GEMMA_1 = {
    "residual": ("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", "gemma_2_sae"),
    "embedding": ("google/gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_44", "gemma_2_sae"),
    "transcoder": ("google/gemma-scope-2b-pt-transcoders", "layer_5/width_16k/average_l0_8", "gemma_2_transcoder"),
}


@pytest.mark.parametrize("name", GEMMA_1)
def test_load_sae_gemma_scope_is_what_saelens_reads(oracle: Any, tmp_path: Path, name: str) -> None:
    repo_id, subfolder, reader = GEMMA_1[name]
    folder = tmp_path / repo_id / subfolder
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{key.replace("w_", "W_"): value.numpy() for key, value in gemma().items()})
    inputs = activations(50, HIDDEN)
    theirs = oracle.use(
        "gemma_scope",
        folder,
        inputs,
        repo_id=repo_id,
        folder_name=subfolder,
        reader=f"{reader}_huggingface_loader",
    )
    sae = load_sae(folder)
    theirs.assert_is_what(sae, inputs)
    assert sae.config.is_transcoder == (name == "transcoder")


@pytest.mark.parametrize(("site", "affine"), [("resid_post", False), ("transcoder", False), ("transcoder", True)])
def test_load_sae_gemma_scope_2_is_what_saelens_reads(oracle: Any, tmp_path: Path, site: str, affine: bool) -> None:
    subfolder = f"{site}/layer_9_width_16k_l0_medium{'_affine' * affine}"
    folder = tmp_path / "google/gemma-scope-2-1b-pt" / subfolder
    folder.mkdir(parents=True)
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.9.output"}
    if site == "transcoder":
        config |= {"hf_hook_point_out": "model.layers.9.post_feedforward_layernorm.output"}
        config |= {"affine_connection": affine}
    (folder / "config.json").write_text(json.dumps(config))
    width = 7 if site == "transcoder" else HIDDEN
    skip = {"affine_skip_connection": activations(HIDDEN, width, seed=8)} if affine else {}
    save_file({**gemma(width), **skip}, folder / "params.safetensors")
    inputs = activations(50, HIDDEN)
    theirs = oracle.use(
        "gemma_scope",
        folder,
        inputs,
        repo_id="google/gemma-scope-2-1b-pt",
        folder_name=subfolder,
        reader="gemma_3_sae_huggingface_loader",
    )
    theirs.assert_is_what(load_sae(folder), inputs)


def gemma(width: int = HIDDEN) -> dict[str, Tensor]:
    """Return tensors as Gemma Scope 2 stores them."""
    return {
        "w_enc": activations(HIDDEN, LATENTS, seed=3),
        "w_dec": activations(LATENTS, width, seed=4),
        "b_enc": activations(LATENTS, seed=5),
        "b_dec": activations(width, seed=6),
        "threshold": activations(LATENTS, seed=7).abs(),
    }
