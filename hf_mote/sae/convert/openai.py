"""OpenAI's SAEs of GPT-2 small: one `.pt` for each layer and place, only to read.

ReLU SAEs (versions 1 and 4) and TopK ones that normalise each token (version 5). Folder names give model and hookpoint
(`gpt2-small/resid_post_mlp_v5_32k/autoencoders/8.pt`). Statistics of training are left out.

Source: Gao et al., arXiv 2406.04093; openai/sparse_autoencoder, `model.py` and `paths.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_mote.errors import FileFormatError, UnsupportedError
from hf_mote.sae.convert.formats import Format, Source, build
from hf_mote.sae.convert.names import hub_model, place_of, site_in
from hf_mote.sae.convert.tensors import Layout, matrix_sizes, read_torch, take
from hf_mote.sae.convert.values import integer
from hf_mote.sae.modeling import SAEModel

__all__ = ["OPENAI"]

_LAYOUT: Layout = {
    "W_enc": ("encoder.weight", False),
    "b_enc": ("latent_bias", False),
    "W_dec": ("decoder.weight", True),
    "b_dec": ("pre_bias", False),
}
_STATISTICS = ("stats_last_nonzero", "latents_activation_frequency", "latents_mean_square")
_ACTIVATION, _ARGUMENTS = "activation", "activation_state_dict"
_EPS = 1e-5


def _holds(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return {name for name, _ in _LAYOUT.values()} <= set(shapes)


def _read(source: Source) -> SAEModel:
    path = source.path
    found = read_torch(path, others=(_ACTIVATION, _ARGUMENTS))
    activation, arguments = found.pop(_ACTIVATION, "ReLU"), found.pop(_ARGUMENTS, {})
    tensors: dict[str, Tensor] = found
    sizes = matrix_sizes(path, tensors, _LAYOUT)
    fields: dict[str, Any] = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "subtract_decoder_bias": True,
        "normalize_decoder": False,
        **_names(source),
    }
    kind = _activation(path, activation, arguments, fields)
    taken = take(path, tensors, _LAYOUT, sizes, besides=_STATISTICS)
    return build(source, path, kind, fields, taken, {"format": OPENAI.name})


def _activation(path: Path, activation: object, arguments: object, fields: dict[str, Any]) -> str:
    """Return the architecture, and add what it needs to the fields of its config."""
    if activation == "ReLU":
        return "relu_sae"
    if activation != "TopK" or not isinstance(arguments, Mapping):
        raise FileFormatError(f"{path}: {_ACTIVATION}", "unknown", got=repr(activation), expected="'ReLU' or 'TopK'")
    if arguments.get("postact_fn") != "ReLU":
        raise UnsupportedError(
            f"{path}: {_ARGUMENTS}.postact_fn", "its latents are negative, too", got=repr(arguments.get("postact_fn"))
        )
    fields["k"] = integer(path, {f"{_ARGUMENTS}.k": arguments.get("k")}, f"{_ARGUMENTS}.k")
    # The library's own rule: an SAE with TopK normalises.
    fields |= {"input_normalization": "layer_norm", "input_normalization_eps": _EPS}
    return "topk_sae"


def _names(source: Source) -> dict[str, Any]:
    """Model and hookpoint by the names of the release; else empty."""
    found = re.search(r"gpt2-small/([\w-]+)/autoencoders/(\d+)\.pt$", source.words)
    if found is None:
        return {}
    model = hub_model("gpt2-small")
    place = place_of(f"blocks.{found[2]}.{site_in(found[1])}", model)
    return {"base_model": model, "hookpoint": place and place.hookpoint}


OPENAI = Format(
    name="openai",
    weights=("[0-9].pt", "[0-9][0-9].pt"),
    config=None,
    recognises=lambda config: True,
    holds=_holds,
    read=_read,
    refusal="this is the format of one release, whose config is in the names of its folders; write it for SAELens",
    reads="ReLU; TopK with layer norm",
    oracle="its own formulas",
)
