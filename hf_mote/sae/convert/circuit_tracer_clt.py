"""Cross-layer transcoders of circuit-tracer: `W_enc_{n}.safetensors`, `W_dec_{n}.safetensors`, `config.yaml`, to read.

The latents of a layer read there and write to the MLP outputs of that layer and all behind it. One layer is one model
here, which reconstructs those side by side; what all layers reconstruct together is the sum, for which the bias of a
layer is in that layer's own model alone. (SAELens adds up the outputs of a latent in all layers, so that only its
latents are usable.)

Source: circuit-tracer 0.5.0, `transcoder/cross_layer_transcoder.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from torch.nn import functional

from hf_mote.documents import read_document
from hf_mote.errors import FileFormatError
from hf_mote.sae.convert.circuit_tracer import hooks_in
from hf_mote.sae.convert.formats import Format, Source, build, place_read, place_written
from hf_mote.sae.convert.names import hub_model
from hf_mote.sae.convert.tensors import Layout, matrix_sizes, read_safetensors, take
from hf_mote.sae.convert.values import text
from hf_mote.sae.modeling import SAEModel

__all__ = ["CIRCUIT_TRACER_CLT"]

_KIND = "cross_layer_transcoder"
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "threshold")


def _decoder_of(file: str) -> str:
    return file.replace("W_enc_", "W_dec_")


def _read(source: Source) -> SAEModel:
    path, weights = source.folder / "config.yaml", source.path
    config = read_document(path) if os.path.isfile(path) else None
    number = re.search(r"W_enc_(\d+)\.safetensors$", source.file)
    if number is None:
        raise FileFormatError(str(weights), "does not name its layer", expected="W_enc_{n}.safetensors")
    layer = int(number[1])
    stored = {**read_safetensors(weights), **read_safetensors(source.folder / _decoder_of(source.file))}
    suffix = f"_{layer}"
    if others := [name for name in stored if not name.endswith(suffix)]:
        what, expected = "is not named by its layer", f"names that end in {suffix}"
        fix = "Of every tensor the name must end so, as in W_enc" + suffix + "."
        raise FileFormatError(f"{weights}: {others[0]}", what, got=f"{len(others)} such", expected=expected, fix=fix)
    found = {name.removesuffix(suffix): tensor for name, tensor in stored.items()}
    decoder = found.get("W_dec")
    if decoder is None or decoder.ndim != 3:
        got = "none" if decoder is None else tuple(decoder.shape)
        raise FileFormatError(f"{weights}: W_dec{suffix}", "is not (latents, layers, width)", got=got)
    latents, places, width = decoder.shape
    encoder = found.get("W_enc")
    if encoder is not None and encoder.shape[-1:] != (width,):
        got, expected = tuple(encoder.shape), f"width {width}, as W_dec"
        raise FileFormatError(
            f"{weights}: W_enc{suffix}", "is of another width than W_dec", got=got, expected=expected
        )
    found["W_dec"] = decoder.reshape(latents, places * width)
    for name in ("b_dec", "W_skip"):
        if name in found:
            # Of the first place, the layer itself. The skip connection is stored as (input, output).
            found[name] = functional.pad(found[name], (0, (places - 1) * width))
    if "W_skip" in found:
        found["W_skip"] = found["W_skip"].T.contiguous()
    layout: Layout = {ours: (ours, False) for ours in _NAMES if ours in found or ours not in ("W_skip", "threshold")}
    sizes = matrix_sizes(weights, found, layout)
    tensors = take(weights, found, layout, sizes)
    model = hub_model(text(path, config or {}, "model_name"))
    hooks = hooks_in(path, config)
    fields: dict[str, Any] = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "output_size": sizes.outputs,
        "skip_connection": "W_skip" in tensors,
        "subtract_decoder_bias": False,
        "normalize_decoder": False,
        "base_model": model,
    }
    if hooks is not None:
        fields |= place_read(source, f"{path}: feature_input_hook", f"blocks.{layer}.{hooks[0]}", model)
        where = f"{path}: feature_output_hook"
        targets = [place_written(source, where, f"blocks.{layer + n}.{hooks[1]}", model) for n in range(places)]
        if all(targets):
            fields["output_hookpoints"] = [target["output_hookpoint"] for target in targets]
    kind = "jumprelu_sae" if "threshold" in tensors else "relu_sae"
    return build(source, path, kind, fields, tensors, {"format": CIRCUIT_TRACER_CLT.name, "config": config or {}})


def _recognises(config: Mapping[str, Any] | None) -> bool:
    return config is None or config.get("model_kind", _KIND) == _KIND


def _holds(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(re.fullmatch(r"W_enc_\d+", name) for name in shapes)


CIRCUIT_TRACER_CLT = Format(
    name="circuit_tracer_clt",
    weights=("W_enc_*.safetensors",),
    config="config.yaml",
    recognises=_recognises,
    holds=_holds,
    beside=lambda file: (_decoder_of(file),),
    read=_read,
    refusal="a set has all layers in one config, of which a model here is one",
    loaders=("mntss_clt_layer_transcoder",),
    reads="one layer of a cross-layer transcoder, to that layer and all behind it",
    oracle="circuit-tracer",
)
