"""OpenSAE of THU-KEG: `config.json` and `model.safetensors`, as transformers writes them, only to read.

TopK SAEs that normalise each token. Where the library does not undo that (`normalize_shift_back`), it
reconstructs the normalised token, and the model here is a transcoder.

Source: THU-KEG/OpenSAE, `saes/open_sae/` (December 2025).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_mote.errors import FileFormatError, UnsupportedError
from hf_mote.files import read_json
from hf_mote.sae.convert.formats import Format, Source, build
from hf_mote.sae.convert.names import family_of, hub_model
from hf_mote.sae.convert.tensors import Layout, matrix_sizes, read_safetensors, take
from hf_mote.sae.convert.values import agree, check_near, choice, flag, integer, section, text
from hf_mote.sae.modeling import SAEModel

__all__ = ["OPENSAE"]

_LAYOUT: Layout = {
    "W_enc": ("encoder.weight", False),
    "b_enc": ("encoder.bias", False),
    "W_dec": ("W_dec", False),
    "b_dec": ("b_dec", False),
}
# What is read, and what else decides in the library how tokens are normalised; keys of training are left alone.
_KEYS = (
    "activation",
    "feature_size",
    "hidden_size",
    "input_hookpoint",
    "input_normalize",
    "input_normalize_eps",
    "k",
    "model_name",
    "normalize_decoder",
    "normalize_shift_back",
    "num_experts",
    "output_hookpoint",
)
_PREFIXES = ("input_normalize", "normalize_")
# What the library fills in where it is missing, as early versions did not write all of it.
_DECIDING = ("activation", "input_normalize", "input_normalize_eps", "normalize_decoder", "normalize_shift_back")
# An eps avoids a division by 0; a larger one would decide what the tokens are.
_MOST_EPS = 1.0
_INDEX = "model.safetensors.index.json"


def _recognises(config: Mapping[str, Any] | None) -> bool:
    return config is not None and "feature_size" in config and "input_hookpoint" in config


def _read(source: Source) -> SAEModel:
    path = source.folder / "config.json"
    config = read_json(path)
    check_near(path, config, _KEYS, prefixes=_PREFIXES, deciding=_DECIDING)
    activation = choice(path, config, "activation", default="topk")
    if activation != "topk":
        raise UnsupportedError(f"{path}: activation", "cannot be read", got=repr(activation), expected="'topk'")
    if config.get("num_experts", 1) != 1:
        raise UnsupportedError(
            f"{path}: num_experts", "cannot be read: latents are those of routed experts", got=config["num_experts"]
        )
    found = _tensors(source)
    sizes = matrix_sizes(source.path, found, _LAYOUT)
    agree(path, "hidden_size", config.get("hidden_size"), sizes.inputs)
    agree(path, "feature_size", config.get("feature_size"), sizes.latents)
    tensors = take(source.path, found, _LAYOUT, sizes)
    fields: dict[str, Any] = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "subtract_decoder_bias": True,
        "normalize_decoder": flag(path, config, "normalize_decoder", default=True),
        "k": integer(path, config, "k"),
        **_names(path, config),
    }
    if flag(path, config, "input_normalize", default=True):
        eps = config.get("input_normalize_eps", 1e-5)
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps <= _MOST_EPS:
            what, fix = f"must be a number from 0 to {_MOST_EPS:g}", "Leave it out for the library's own, 1e-05."
            raise FileFormatError(f"{path}: input_normalize_eps", what, got=repr(eps), fix=fix)
        fields |= {"input_normalization": "standardize", "input_normalization_eps": float(eps)}
        if not flag(path, config, "normalize_shift_back", default=False):
            fields["output_size"] = sizes.inputs
        elif "output_hookpoint" in fields:
            what = "cannot be read in a transcoder: its output would get back mean and spread of its input"
            raise UnsupportedError(f"{path}: normalize_shift_back", what)
    return build(source, path, "topk_sae", fields, tensors, {"format": OPENSAE.name, "config": config})


def _tensors(source: Source) -> dict[str, Tensor]:
    """Return the tensors of one file or of the parts that an index lists."""
    if source.path.name != _INDEX:
        return read_safetensors(source.path)
    index = section(source.path, read_json(source.path), "weight_map")
    found: dict[str, Tensor] = {}
    for part in sorted({str(part) for part in index.values()}):
        if not re.fullmatch(r"model-\d+-of-\d+\.safetensors", part):
            raise FileFormatError(
                f"{source.path}: weight_map", "must name parts model-N-of-N.safetensors", got=repr(part)
            )
        held = read_safetensors(source.folder / part)
        listed = {name for name, place in index.items() if place == part}
        if set(held) != listed:
            first = min(set(held) ^ listed)
            what = f"is in {part}, which the index does not say" if first in held else f"is not in {part}"
            raise FileFormatError(f"{source.path}: weight_map: {first}", what, expected="each tensor in its part")
        found |= held
    return found


def _names(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Model and hookpoint of the SAE for the config; the library looks for a path with `model.` before it, too."""
    model = hub_model(text(path, config, "model_name"))
    family = family_of(model)
    root = "model" if family is None else family.root
    names: dict[str, Any] = {"base_model": model}
    places = []
    for key in ("input_hookpoint", "output_hookpoint"):
        hookpoint = text(path, config, key)
        relative = hookpoint is not None and re.match(r"(layers|h)\.", hookpoint)
        places.append(f"{root}.{hookpoint}" if relative else hookpoint)
    names["hookpoint"] = places[0]
    if places[1] != places[0]:
        names["output_hookpoint"] = places[1]
    return names


OPENSAE = Format(
    name="opensae",
    weights=("model.safetensors", _INDEX),
    config="config.json",
    recognises=_recognises,
    beside=lambda file: ("model-*-of-*.safetensors",) if file == _INDEX else (),
    read=_read,
    refusal="it is that of a library that normalises; write it for SAELens",
    reads="TopK with normalised tokens",
    oracle="its own formulas",
)
