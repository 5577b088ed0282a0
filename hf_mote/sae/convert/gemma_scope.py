"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors` and `config.json`) of Google DeepMind, in only.

JumpReLU SAEs and transcoders that do not subtract the decoder's bias. The first release has no config: repository and
folder names say what an SAE is of, and where they do not, the weights are all there is.

Source: Lieberum et al., arXiv 2408.05147; readers of SAELens 6.54.12 (`loading/pretrained_sae_loaders.py`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

from hf_mote.errors import FileFormatError, UnsupportedError
from hf_mote.files import read_json
from hf_mote.sae.convert.formats import Format, Source, build
from hf_mote.sae.convert.tensors import Layout, matrix_sizes, read_npz, read_safetensors, take
from hf_mote.sae.convert.values import flag, module_of, text
from hf_mote.sae.modeling import SAEModel

__all__ = ["GEMMA_SCOPE", "GEMMA_SCOPE_2"]

_LAYOUT: Layout = {
    "W_enc": ("w_enc", True),
    "b_enc": ("b_enc", False),
    "W_dec": ("w_dec", False),
    "b_dec": ("b_dec", False),
    "threshold": ("threshold", False),
}
_SKIP: Layout = {"W_skip": ("affine_skip_connection", True)}
_REFUSAL = "this is the format of one release, whose config is in the names of its folders; write it for SAELens"


def _read_1(source: Source) -> SAEModel:
    path = source.folder / "params.npz"
    found = {re.sub(r"^W_", "w_", name): tensor for name, tensor in read_npz(path).items()}
    scaling = found.pop("scaling_factor", None)
    if scaling is not None and bool((scaling != 1).any()):
        raise UnsupportedError(f"{path}: scaling_factor", "cannot be read: latents would have to be scaled by it")
    sizes = matrix_sizes(path, found, _LAYOUT)
    tensors = take(path, found, _LAYOUT, sizes)
    trail = source.trail.replace("\\", "/")
    if "embedding" in trail.rpartition("gemma-scope")[2]:
        # Trained on embeddings divided by the root of the width, which transformers multiplies them by.
        tensors["W_enc"] = tensors["W_enc"] / math.sqrt(sizes.inputs)
        tensors["W_dec"] = tensors["W_dec"] * math.sqrt(sizes.inputs)
    fields = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "output_size": sizes.outputs if "transcoder" in trail or sizes.outputs != sizes.inputs else None,
        "subtract_decoder_bias": False,
        "normalize_decoder": False,
        **_names_1(trail),
    }
    return build(path, "jumprelu_sae", fields, tensors, {"format": GEMMA_SCOPE.name})


def _names_1(trail: str) -> dict[str, str | None]:
    """Model and hookpoint by the names of the release, `google/gemma-scope-2b-pt-res/layer_20/...`; else nothing."""
    repository = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)\b(.*)", trail)
    if repository is None:
        return {}
    size, tuned, site, rest = repository.groups()
    layer = re.search(r"layer_(\d+)", rest)
    block = f"model.layers.{layer[1]}" if layer else None
    # Attention SAEs read the input of a module; transcoders read normalised activations before their weights.
    hookpoints = {"res": block, "mlp": block and f"{block}.post_feedforward_layernorm"}
    return {
        "base_model": f"google/gemma-2-{size}" + ("-it" if tuned == "it" else ""),
        "hookpoint": "model.embed_tokens" if "embedding" in rest else hookpoints.get(site),
    }


def _read_2(source: Source) -> SAEModel:
    path, weights = source.folder / "config.json", source.folder / "params.safetensors"
    config = read_json(path) if os.path.isfile(path) else {}
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise FileFormatError(
            f"{path}: architecture", "unknown", got=repr(config["architecture"]), expected="'jump_relu'"
        )
    found = read_safetensors(weights)
    if "w_dec" in found and found["w_dec"].ndim == 3:
        raise UnsupportedError(
            f"{weights}: w_dec",
            "is of a cross-layer transcoder, which writes to many layers; no architecture here does",
            got=tuple(found["w_dec"].shape),
        )
    skip = flag(path, config, "affine_connection", default="affine_skip_connection" in found)
    layout = {**_LAYOUT, **_SKIP} if skip else _LAYOUT
    sizes = matrix_sizes(weights, found, layout)
    tensors = take(weights, found, layout, sizes)
    target = text(path, config, "hf_hook_point_out")
    transcoder = target is not None or skip or sizes.outputs != sizes.inputs or "transcoder" in source.trail
    fields = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "output_size": sizes.outputs if transcoder else None,
        "skip_connection": skip,
        "subtract_decoder_bias": False,
        "normalize_decoder": False,
        "base_model": _model_2(text(path, config, "model_name")),
        "hookpoint": module_of(text(path, config, "hf_hook_point_in")),
        "output_hookpoint": module_of(target) if transcoder else None,
    }
    return build(path, "jumprelu_sae", fields, tensors, {"format": GEMMA_SCOPE_2.name, "config": config})


def _model_2(name: str | None) -> str | None:
    """Return the Hub id of a model that the release calls `gemma-v3-...`; the smallest one has no `-pt` on the Hub."""
    if name is None:
        return None
    known = name.replace("-v3", "-3")
    known = known.removesuffix("-pt") if "-270m" in known else known
    return known if "/" in known else f"google/{known}"


def _recognises_1(config: Mapping[str, Any] | None) -> bool:
    return True


def _recognises_2(config: Mapping[str, Any] | None) -> bool:
    return config is None or "architecture" in config


GEMMA_SCOPE = Format(
    name="gemma_scope",
    weights=("params.npz",),
    config=None,
    recognises=_recognises_1,
    read=_read_1,
    refusal=_REFUSAL,
)
GEMMA_SCOPE_2 = Format(
    name="gemma_scope_2",
    weights=("params.safetensors",),
    config="config.json",
    recognises=_recognises_2,
    read=_read_2,
    refusal=_REFUSAL,
)
