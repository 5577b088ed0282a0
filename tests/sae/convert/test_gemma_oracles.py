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
    "residual": ("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71", "gemma_2"),
    "attention": ("google/gemma-scope-2b-pt-att", "layer_20/width_16k/average_l0_71", "gemma_2"),
    "embedding": ("google/gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_44", "gemma_2"),
    "transcoder": ("google/gemma-scope-2b-pt-transcoders", "layer_5/width_16k/average_l0_8", "gemma_2_transcoder"),
}


@pytest.mark.parametrize("name", GEMMA_1)
def test_load_sae_gemma_scope_is_what_saelens_reads(oracle: Any, tmp_path: Path, name: str) -> None:
    repo_id, subfolder, reader = GEMMA_1[name]
    root = tmp_path / repo_id
    folder = root / subfolder
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **{key.replace("w_", "W_"): value.numpy() for key, value in gemma().items()})
    sizes = {"d_in": HIDDEN, "d_sae": LATENTS} | ({"d_out": HIDDEN} if name == "transcoder" else {})
    inputs = activations(50, HIDDEN)
    if name == "transcoder":
        # What the hook of TransformerLens gives, that SAELens names, is what the SAE here makes of its input itself.
        inputs = inputs / inputs.pow(2).mean(-1, keepdim=True).sqrt()
    theirs = oracle.use("release", root, inputs, reader=reader, repo_id=repo_id, folder_name=subfolder, **sizes)
    sae = load_sae(folder)
    # The norm adds an eps, 1e-6 of what it divides by.
    theirs.assert_is_what(sae, inputs, slack=2 if name == "transcoder" else 1)
    assert sae.config.is_transcoder == (name == "transcoder")


@pytest.mark.parametrize(
    ("site", "affine"),
    [("resid_post", False), ("attn_out", False), ("mlp_out", False), ("transcoder", False), ("transcoder", True)],
)
@pytest.mark.parametrize("described", [True, False])
def test_load_sae_gemma_scope_2_is_what_saelens_reads(
    oracle: Any, tmp_path: Path, site: str, affine: bool, described: bool
) -> None:
    repo_id, subfolder = "google/gemma-scope-2-1b-pt", f"{site}/layer_9_width_16k_l0_medium{'_affine' * affine}"
    root = tmp_path / repo_id
    folder = root / subfolder
    folder.mkdir(parents=True)
    places = {
        "resid_post": ("model.layers.9", None),
        "attn_out": ("model.layers.9.self_attn.o_proj.input", None),
        "mlp_out": ("model.layers.9.post_feedforward_layernorm", None),
        "transcoder": ("model.layers.9.pre_feedforward_layernorm", "model.layers.9.post_feedforward_layernorm"),
    }
    source, target = places[site]
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt"}
    config["hf_hook_point_in"] = source if source.endswith(".input") else f"{source}.output"
    if target is not None:
        config |= {"hf_hook_point_out": f"{target}.output", "affine_connection": affine}
    if described:
        (folder / "config.json").write_text(json.dumps(config))
    width = 7 if site == "transcoder" else HIDDEN
    skip = {"affine_skip_connection": activations(HIDDEN, width, seed=8)} if affine else {}
    save_file({**gemma(width), **skip}, folder / "params.safetensors")
    inputs = activations(50, HIDDEN)
    theirs = oracle.use("release", root, inputs, reader="gemma_3", repo_id=repo_id, folder_name=subfolder)
    sae = load_sae(folder)
    theirs.assert_is_what(sae, inputs)
    assert (sae.config.base_model, sae.config.hookpoint) == ("google/gemma-3-1b-pt", source)
    assert sae.config.output_hookpoint == target


def gemma(width: int = HIDDEN) -> dict[str, Tensor]:
    """Return tensors as Gemma Scope 2 stores them."""
    return {
        "w_enc": activations(HIDDEN, LATENTS, seed=3),
        "w_dec": activations(LATENTS, width, seed=4),
        "b_enc": activations(LATENTS, seed=5),
        "b_dec": activations(width, seed=6),
        "threshold": activations(LATENTS, seed=7).abs(),
    }
