"""An SAE of the public list, synthesised where the list says it is and in the layout that its loader reads.

What is in its files is what the list, the release's name and the loader's source say; where a config decides, as in
SAELens' own format, it is one of the time of the release.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from tiny_saes import HIDDEN, LATENTS, activations

from hf_mote import SAEModel, load_sae
from hf_mote.sae.convert.download import Repository
from hf_mote.sae.convert.names import hub_model
from hf_mote.sae.convert.releases import Entry

__all__ = ["load", "write"]

_W = {
    "W_enc": activations(LATENTS, HIDDEN, seed=3),
    "b_enc": activations(LATENTS, seed=4),
    "W_dec": activations(LATENTS, HIDDEN, seed=5),
    "b_dec": activations(HIDDEN, seed=6),
}
_GEMMA = {
    "w_enc": _W["W_enc"].T.contiguous(),
    "w_dec": _W["W_dec"],
    "b_enc": _W["b_enc"],
    "b_dec": _W["b_dec"],
    "threshold": _W["b_enc"].abs(),
}
_LINEAR = {
    "encoder.weight": _W["W_enc"],
    "encoder.bias": _W["b_enc"],
    "decoder.weight": _W["W_dec"].T.contiguous(),
    "decoder.bias": _W["b_dec"],
}
_SAELENS = {**_W, "W_enc": _W["W_enc"].T.contiguous()}


def load(entry: Entry, root: Path) -> SAEModel:
    """Write an SAE under a folder and load it by release and id, the folder standing for the Hub."""
    write(entry, root)
    known = entry.known

    def fetch(place: Repository, formats: Any, file: str | None = None) -> Path:
        return root / place.repo_id / (place.subfolder or "")

    with patch.object(Repository, "fetch", fetch), patch.object(Repository, "files", lambda place: []):
        return load_sae(known.release, sae_id=known.sae_id)


def write(entry: Entry, root: Path) -> None:
    """Write the files of an SAE of the list into the root of its repository."""
    _WRITERS[entry.loader](entry, root / entry.known.repo_id)


def _gemma_2(entry: Entry, root: Path) -> None:
    np.savez(_folder(root, entry) / "params.npz", **{k.replace("w_", "W_"): t.numpy() for k, t in _GEMMA.items()})


def _gemma_3(entry: Entry, root: Path) -> None:
    affine = {"affine_skip_connection": activations(HIDDEN, HIDDEN)} if "affine" in entry.known.path else {}
    save_file({**_GEMMA, **affine}, _folder(root, entry) / "params.safetensors")


def _dictionary_learning(entry: Entry, root: Path) -> None:
    release, place = entry.known.release, re.search(r"([a-z_]+)_layer_(\d+)", entry.known.path)
    assert place is not None
    plain = {**{k: t for k, t in _LINEAR.items() if k != "decoder.bias"}, "b_dec": _W["b_dec"]}
    batch = {"k": torch.tensor(4), "threshold": torch.tensor(0.5)}
    matryoshka = {**_W, "W_enc": _W["W_enc"].T.contiguous(), **batch, "group_sizes": torch.tensor([10, 30])}
    gated = {k: plain[k] for k in ("encoder.weight", "decoder.weight")}
    gated |= dict.fromkeys(("gate_bias", "mag_bias", "r_mag"), _W["b_enc"]) | {"decoder_bias": _W["b_dec"]}
    kinds = [
        (r"topk_", "AutoEncoderTopK", plain),
        (r"gated", "GatedAutoEncoder", gated),
        (r"andyrdt", "BatchTopKSAE", {**plain, **batch}),
        (r"date-010[78]", "MatroyshkaBatchTopKSAE", matryoshka),
        (r"", "AutoEncoder", {**{k: t for k, t in plain.items() if k != "b_dec"}, "bias": _W["b_dec"]}),
    ]
    _, name, tensors = next(kind for kind in kinds if re.search(kind[0], release))
    trainer = {"dict_class": name, "activation_dim": HIDDEN, "dict_size": LATENTS, "k": 4, "layer": int(place[2])}
    trainer |= {"lm_name": hub_model(entry.known.model), "submodule_name": place[0]}
    folder = _folder(root, entry)
    torch.save(tensors, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))


def _qwen_scope(entry: Entry, root: Path) -> None:
    # As many latents at least as are active.
    wide = {name: tensor.repeat(3, *[1] * (tensor.ndim - 1)) for name, tensor in _W.items() if name != "b_dec"}
    torch.save({**_W, **wide, "W_dec": wide["W_dec"].T.contiguous()}, _file(root, entry))


def _mwhanna(entry: Entry, root: Path) -> None:
    save_file(_W, _file(root, entry))
    if "14b" not in entry.known.repo_id:
        config = {"model_name": hub_model(entry.known.model), "feature_input_hook": "mlp.hook_in"}
        config |= {"feature_output_hook": "hook_mlp_out", "model_kind": "transcoder_set"}
        (root / "config.yaml").write_text(yaml.safe_dump(config))


def _llama_scope(entry: Entry, root: Path) -> None:
    place = re.search(r"L(\d+)([AMR])-", entry.known.path)
    assert place is not None
    hook = f"blocks.{place[1]}.hook_" + {"A": "attn_out", "M": "mlp_out", "R": "resid_post"}[place[2]]
    config = {"d_model": HIDDEN, "hook_point_in": hook, "hook_point_out": hook, "act_fn": "jumprelu"}
    config |= {"jump_relu_threshold": 0.5, "norm_activation": "dataset-wise", "sparsity_include_decoder_norm": True}
    config |= {"dataset_average_activation_norm": {"in": 2.0, "out": 2.0}, "apply_decoder_bias_to_pre_encoder": False}
    folder = _folder(root, entry)
    (folder / "checkpoints").mkdir(exist_ok=True)
    save_file({k: t.bfloat16() for k, t in _LINEAR.items()}, folder / "checkpoints" / "final.safetensors")
    (folder / "hyperparams.json").write_text(json.dumps(config))


def _llama_scope_r1(entry: Entry, root: Path) -> None:
    place = re.search(r"L(\d+)R", entry.known.path)
    assert place is not None
    hook = f"blocks.{place[1]}.hook_resid_post"
    config = {"sae_type": "sae", "d_model": HIDDEN, "expansion_factor": LATENTS / HIDDEN, "act_fn": "jumprelu"}
    config |= {"hook_point_in": hook, "hook_point_out": hook, "norm_activation": "dataset-wise"}
    folder = _folder(root, entry)
    save_file({**_LINEAR, "log_jumprelu_threshold": _W["b_enc"].clone()}, folder / "sae_weights.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def _hook_z(entry: Entry, root: Path) -> None:
    path = _file(root, entry)
    torch.save(_SAELENS, path)
    config = {"act_size": HIDDEN, "dict_size": LATENTS, "act_name": entry.known.hook}
    path.with_name(path.name.replace(".pt", "_cfg.json")).write_text(json.dumps(config))


def _goodfire(entry: Entry, root: Path) -> None:
    torch.save(
        {name.replace("coder.", "coder_linear."): tensor for name, tensor in _LINEAR.items()}, _file(root, entry)
    )


def _deepseek_r1(entry: Entry, root: Path) -> None:
    torch.save(_LINEAR, _file(root, entry))


def _saelens(entry: Entry, root: Path) -> None:
    """Version 6 for the Matryoshka releases; before it for the others, with what their names say."""
    known, folder = entry.known, _folder(root, entry)
    tensors = dict(_SAELENS)
    about = {"model_name": known.model, "hook_name": known.hook}
    sizes = {"d_in": HIDDEN, "d_sae": LATENTS, "dtype": "float32"}
    if "matryoshka-dc" in known.release:
        tensors["threshold"] = _W["b_enc"].abs()
        config: dict[str, Any] = {**sizes, "architecture": "jumprelu", "apply_b_dec_to_input": True}
        config["metadata"] = {**about, "sae_lens_version": "6.12.0"}
    else:
        config = {**sizes, **about, "architecture": "standard"}
        if "-v5-" in known.release:
            config |= {
                "activation_fn_str": "topk",
                "activation_fn_kwargs": {"k": 4},
                "normalize_activations": "layer_norm",
            }
        elif known.norm_scaling_factor is not None:
            config["normalize_activations"] = "expected_average_only_in"
    save_file(tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))


def _mntss(entry: Entry, root: Path) -> None:
    layer = re.search(r"\d+", entry.known.sae_id)
    assert layer is not None
    outputs = 3
    root.mkdir(parents=True, exist_ok=True)
    encoder = {name: _W[name] for name in ("W_enc", "b_enc", "b_dec")}
    encoder["W_enc"] = _W["W_enc"]
    save_file({f"{k}_{layer[0]}": t for k, t in encoder.items()}, root / f"W_enc_{layer[0]}.safetensors")
    decoder = {f"W_dec_{layer[0]}": activations(LATENTS, outputs, HIDDEN)}
    save_file(decoder, root / f"W_dec_{layer[0]}.safetensors")
    config = {"model_name": "google/gemma-2-2b", "model_kind": "cross_layer_transcoder"}
    config |= {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    (root / "config.yaml").write_text(yaml.safe_dump(config))


def _temporal(entry: Entry, root: Path) -> None:
    folder = _folder(root, entry)
    save_file({"D": _W["W_dec"], "E": _SAELENS["W_enc"], "b": _W["b_dec"]}, folder / "latest_ckpt.safetensors")
    (folder / "conf.yaml").write_text(yaml.safe_dump({"llm": {"dimin": HIDDEN}, "sae": {"exp_factor": 4}}))


def _folder(root: Path, entry: Entry) -> Path:
    folder = root / entry.known.path
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _file(root: Path, entry: Entry) -> Path:
    path = root / entry.known.path
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


_WRITERS: dict[str, Callable[[Entry, Path], None]] = {
    "connor_rob_hook_z": _hook_z,
    "deepseek_r1": _deepseek_r1,
    "dictionary_learning_1": _dictionary_learning,
    "gemma_2": _gemma_2,
    "gemma_2_transcoder": _gemma_2,
    "gemma_3": _gemma_3,
    "goodfire": _goodfire,
    "llama_scope": _llama_scope,
    "llama_scope_r1_distill": _llama_scope_r1,
    "mntss_clt_layer_transcoder": _mntss,
    "mwhanna_transcoder": _mwhanna,
    "qwen_scope": _qwen_scope,
    "sae_lens": _saelens,
    "temporal": _temporal,
}
