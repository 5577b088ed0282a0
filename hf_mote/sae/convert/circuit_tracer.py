"""Transcoders of circuit-tracer: `layer_{n}.safetensors`, one for each layer, and `config.yaml`, to read and to write.

ReLU transcoders of MLPs, or JumpReLU ones if there are thresholds, with or without a skip connection. Config and
weights are of a whole set; here each layer is a model of its own.

Source: circuit-tracer 0.5.0, `transcoder/single_layer_transcoder.py` and `utils/hf_utils.py`; reader of SAELens
6.54.12.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hf_mote.documents import read_document
from hf_mote.errors import FileFormatError, UnsupportedError
from hf_mote.files import replacing
from hf_mote.sae.convert.formats import (
    Format,
    Source,
    build,
    computes_as,
    lost_fields,
    lost_state,
    origin_of,
    place_read,
    place_written,
    require_plain_input,
)
from hf_mote.sae.convert.names import hook_at, hub_model
from hf_mote.sae.convert.tensors import Layout, give, matrix_sizes, narrowed, read_safetensors, take, write_safetensors
from hf_mote.sae.convert.values import check_near, choice, section, text
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.variants.bases.thresholded import ThresholdedSAEModel
from hf_mote.sae.variants.jumprelu import JumpReLUSAEModel
from hf_mote.sae.variants.relu import ReLUSAEModel

__all__ = ["CIRCUIT_TRACER", "hooks_in"]

_LAYOUT: Layout = {
    "W_enc": ("W_enc", False),
    "b_enc": ("b_enc", False),
    "W_dec": ("W_dec", False),
    "b_dec": ("b_dec", False),
}
_SKIP: Layout = {"W_skip": ("W_skip", False)}
_THRESHOLD: Layout = {"threshold": ("activation_function.threshold", False)}
# Where a set of transcoders is, if its config does not say.
_HOOKS = ("mlp.hook_in", "hook_mlp_out")
_HOOK_KEYS = ("feature_input_hook", "feature_output_hook")
_KIND = "transcoder_set"
_ACTIVATIONS = ("relu", "jumprelu", "jump_relu")


def _holds(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return {name for name, _ in _LAYOUT.values()} <= set(shapes) and shapes["W_enc"][:1] == shapes["b_enc"]


def _recognises(config: Mapping[str, Any] | None) -> bool:
    return config is None or config.get("model_kind", _KIND) == _KIND


def _read(source: Source) -> SAEModel:
    path, weights = source.folder / "config.yaml", source.path
    config = read_document(path) if os.path.isfile(path) else None
    kind = (config or {}).get("model_kind", _KIND)
    if kind != _KIND:
        raise UnsupportedError(f"{path}: model_kind", "must be a set of transcoders", got=repr(kind), expected=_KIND)
    if config is not None:
        _check_activation(path, config)
    found = read_safetensors(weights)
    (threshold, _) = _THRESHOLD["threshold"]
    if "threshold" in found:
        if threshold in found:
            what, fix = f"and {threshold} are both there", "Keep the one that the library uses."
            raise FileFormatError(f"{weights}: threshold", what, expected=f"{threshold} alone", fix=fix)
        found[threshold] = found.pop("threshold")
    layout = dict(_LAYOUT)
    for part in (_SKIP, _THRESHOLD):
        layout |= {ours: place for ours, place in part.items() if place[0] in found}
    sizes = matrix_sizes(weights, found, layout)
    tensors = take(weights, found, layout, sizes)
    fields = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "output_size": sizes.inputs,
        "skip_connection": "W_skip" in tensors,
        "subtract_decoder_bias": False,
        "normalize_decoder": False,
        **_names(path, config, source),
    }
    origin = {"format": CIRCUIT_TRACER.name, "config": config or {}}
    return build(source, path, "jumprelu_sae" if "threshold" in tensors else "relu_sae", fields, tensors, origin)


def _names(path: Path, config: Mapping[str, Any] | None, source: Source) -> dict[str, Any]:
    """Model and hookpoints of the transcoder for the config."""
    # Of the sets without a config, by the repository's name.
    word = re.search(r"qwen\d(?:\.\d)?-[\d.]+b", source.words, re.IGNORECASE)
    model = hub_model(text(path, config or {}, "model_name") or (word[0] if word else None))
    layer = re.search(r"layer_(\d+)\.safetensors$", source.file)
    hooks = hooks_in(path, config) or _HOOKS
    read, written = (f"blocks.{layer[1] if layer else 0}.{hook}" for hook in hooks)
    names = place_read(source, f"{path}: feature_input_hook", read, model)
    names |= place_written(source, f"{path}: feature_output_hook", written, model)
    if layer is None:
        # Its normalisation is that of all layers.
        names.pop("hookpoint", None)
        names.pop("output_hookpoint", None)
    return {**names, "base_model": model}


def _check_activation(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse another activation function, as of newer sets, than the two that thresholds tell apart."""
    activation = choice(path, config, "activation")
    if activation and activation.lower() not in _ACTIVATIONS:
        what, fix = "cannot be read", "Describe the file with an SAELayout."
        raise UnsupportedError(f"{path}: activation", what, got=repr(activation), expected="relu or jumprelu", fix=fix)


def hooks_in(path: Path, config: Mapping[str, Any] | None) -> tuple[str, str] | None:
    """Return the hooks in a block that a set reads and writes, `None` if there is no config.

    Raises:
        [`FileFormatError`]: if a config lacks one, as none of the library does.
    """
    if config is None:
        return None
    check_near(path, config, ("model_kind", "model_name", *_HOOK_KEYS))
    found = {key: choice(path, config, key) for key in _HOOK_KEYS}
    for key, hook in found.items():
        if not hook:
            fix = "Put it back, or take the config away for the places of the sets without one."
            raise FileFormatError(f"{path}: {key}", "is missing", expected="a hook, such as hook_mlp_out", fix=fix)
    read, written = found.values()
    return read, written


def _write(sae: SAEModel, folder: Path) -> list[str]:
    config, origin = sae.config, origin_of(sae, CIRCUIT_TRACER.name)
    where = f"export_sae: {type(sae).__name__}"
    bases = (JumpReLUSAEModel, ThresholdedSAEModel, ReLUSAEModel)
    if not any(computes_as(sae, base) for base in bases):
        raise UnsupportedError(where, "circuit-tracer has ReLU and JumpReLU transcoders only")
    if isinstance(sae, ThresholdedSAEModel) and not sae.is_calibrated:
        raise UnsupportedError(
            where, "has no threshold yet", fix="Train it, or call calibrate_threshold(activations)."
        )
    if not config.is_transcoder or config.subtract_decoder_bias or config.decoder_size != config.hidden_size:
        raise UnsupportedError(
            where,
            "circuit-tracer has transcoders of one width only, and they do not subtract b_dec",
            got=f"{config.hidden_size} to {config.decoder_size}, subtract_decoder_bias={config.subtract_decoder_bias}",
            fix="Write it for SAELens (format='saelens').",
        )
    if config.layer is None:
        raise UnsupportedError(where, "does not say of which layer it is", fix="Set config.hookpoint.")
    document = section(Path("config.origin"), origin, "config")
    hooks = [hook_at(hookpoint, config.base_model) for hookpoint in (config.hookpoint, config.output_hookpoint)]
    normalizes = config.input_normalization is not None
    if normalizes and document.get("feature_input_hook") != "ln2.hook_normalized":
        require_plain_input(sae, "circuit-tracer")
    if document.get("feature_input_hook") is None or hooks[0] != document["feature_input_hook"]:
        if hooks[0] is None and not normalizes:
            raise UnsupportedError(
                where,
                "circuit-tracer has no name for its hookpoint",
                got=f"hookpoint={config.hookpoint!r}, base_model={config.base_model!r}",
            )
        document["feature_input_hook"] = "ln2.hook_normalized" if normalizes else hooks[0]
    document |= {"model_kind": _KIND, "model_name": config.base_model}
    document["feature_output_hook"] = hooks[1] or document.get("feature_output_hook") or _HOOKS[1]
    document.setdefault("scan", None)
    layout = {**_LAYOUT, **_SKIP} if config.skip_connection else _LAYOUT
    tensors = give(sae, layout, fold=True)
    if "threshold" in sae.state_dict():
        threshold = sae.state_dict()["threshold"].expand(config.num_latents)
        tensors["activation_function.threshold"] = narrowed(threshold, sae.W_enc.dtype).contiguous()
    write_safetensors(folder / f"layer_{config.layer}.safetensors", tensors)
    with replacing(folder / "config.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(document, sort_keys=True), encoding="utf-8")
    held = {"base_model", "hidden_size", "hookpoint", "input_normalization", "num_latents", "output_hookpoint"}
    held |= {"normalize_decoder", "output_size", "skip_connection", "subtract_decoder_bias"}
    held |= {"scale_latents_by_decoder_norm"}
    becomes = [f"the selection in training: {config.model_type} is read as jumprelu_sae"]
    return [
        *(becomes if isinstance(sae, ThresholdedSAEModel) else []),
        *(f"{name} = {value!r}" for name, value in lost_fields(sae, held).items()),
        *lost_state(sae, {*layout, "threshold"}),
    ]


CIRCUIT_TRACER = Format(
    name="circuit_tracer",
    weights=("layer_*.safetensors",),
    config="config.yaml",
    recognises=_recognises,
    holds=_holds,
    read=_read,
    write=_write,
    loaders=("mwhanna_transcoder",),
    reads="ReLU and JumpReLU transcoders, with and without skip",
    writes="these; `batch_topk`, `matryoshka`, `mutual_choice` and `feature_choice` transcoders as jumprelu",
    oracle="circuit-tracer, SAELens",
)
