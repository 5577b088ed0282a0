"""Qwen-Scope: `layer{n}.sae.pt`, one file for each layer of a model's residual stream, only to read.

TopK SAEs that do not subtract the decoder's bias. There is no config: the repository's name gives the model, how many
latents there are and how many are active (`Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50`).

Source: reader of SAELens 6.54.12 (`loading/pretrained_sae_loaders.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hf_mote.errors import FileFormatError
from hf_mote.sae.convert.formats import Format, Source, build
from hf_mote.sae.convert.names import place_of
from hf_mote.sae.convert.tensors import Layout, matrix_sizes, read_torch, take
from hf_mote.sae.modeling import SAEModel

__all__ = ["QWEN_SCOPE"]

_LAYOUT: Layout = {
    "W_enc": ("W_enc", False),
    "b_enc": ("b_enc", False),
    "W_dec": ("W_dec", True),
    "b_dec": ("b_dec", False),
}


def _holds(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return set(shapes) == {name for name, _ in _LAYOUT.values()} and shapes["W_enc"][:1] == shapes["b_enc"]


def _read(source: Source) -> SAEModel:
    path = source.path
    found = read_torch(path)
    sizes = matrix_sizes(path, found, _LAYOUT)
    tensors = take(path, found, _LAYOUT, sizes)
    name = re.search(r"SAE-Res-([\w.-]+?)-W(\d+)K-L0_(\d+)", source.words)
    fields: dict[str, Any] = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "subtract_decoder_bias": False,
        "normalize_decoder": False,
    }
    if name is not None:
        fields |= {"base_model": f"Qwen/{name[1]}", "k": int(name[3])}
    elif "k" not in source.wanted.fields:
        raise FileFormatError(
            str(path),
            "does not say how many latents are active, only the name of its repository does",
            expected="a folder named as in Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50",
            fix="Give k.",
        )
    layer = re.search(r"layer(\d+)\.sae", source.file)
    place = place_of(f"blocks.{layer[1]}.hook_resid_post" if layer else None, fields.get("base_model"))
    fields["hookpoint"] = place and place.hookpoint
    return build(source, path, "topk_sae", fields, tensors, {"format": QWEN_SCOPE.name})


QWEN_SCOPE = Format(
    name="qwen_scope",
    weights=("layer*.sae.pt",),
    config=None,
    recognises=lambda config: True,
    holds=_holds,
    read=_read,
    refusal="this is the format of one release, whose config is in its name; write it for SAELens",
    loaders=("qwen_scope",),
    reads="TopK",
    oracle="SAELens",
)
