"""Gemma Scope 1 (`params.npz`) and 2 (`params.safetensors` and `config.json`) of Google DeepMind, only to read.

JumpReLU SAEs and transcoders that do not subtract the decoder's bias. The first release has no config: repository and
folder names give model and hookpoint of an SAE; otherwise there are only the weights.

Cross-layer transcoders and crosscoders of the second release (`params_layer_{n}.safetensors`) have latents for each
layer that write to all layers. One file is one model here, from one layer to all of them side by side; what all files
of a folder reconstruct together is the sum, for which the bias of a layer is in that layer's own file alone.

Source: Lieberum et al., arXiv 2408.05147; readers of SAELens 6.54.12 (`loading/pretrained_sae_loaders.py`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional

from hf_mote.errors import FileFormatError, UnsupportedError
from hf_mote.files import read_json
from hf_mote.sae.convert.formats import Format, Source, build
from hf_mote.sae.convert.names import hookpoint_of, layer_of
from hf_mote.sae.convert.tensors import Layout, factors_in, matrix_sizes, read_npz, read_safetensors, take
from hf_mote.sae.convert.values import check_near, choice, flag, text
from hf_mote.sae.modeling import SAEModel

__all__ = ["GEMMA_SCOPE", "GEMMA_SCOPE_2", "GEMMA_SCOPE_2_LAYERS"]

_LAYOUT: Layout = {
    "W_enc": ("w_enc", True),
    "b_enc": ("b_enc", False),
    "W_dec": ("w_dec", False),
    "b_dec": ("b_dec", False),
    "threshold": ("threshold", False),
}
_SKIP: Layout = {"W_skip": ("affine_skip_connection", True)}
_KEYS = ("affine_connection", "architecture", "hf_hook_point_in", "hf_hook_point_out", "model_name")
_REFUSAL = "this is the format of one release, whose config is in the names of its folders; write it for SAELens"


# Of the norm before the MLP of Gemma 2, whose output before its weights the transcoders were trained on.
_NORM_EPS = 1e-6
_LONGEST_NUMBER = 6  # digits of a layer


def _read_1(source: Source) -> SAEModel:
    path = source.path
    found = {re.sub(r"^W_", "w_", name): tensor for name, tensor in read_npz(path).items()}
    sizes = matrix_sizes(path, found, _LAYOUT)
    scaling = factors_in(path, found, sizes.latents)
    if scaling is not None and bool((scaling != 1).any()):
        raise UnsupportedError(f"{path}: scaling_factor", "cannot be read: latents would have to be scaled by it")
    tensors = take(path, found, _LAYOUT, sizes)
    trail = source.words
    transcoder = "transcoder" in trail
    if "embedding" in trail.rpartition("gemma-scope")[2]:
        # Trained on embeddings divided by the root of the width, which transformers multiplies them by.
        tensors["W_enc"] = tensors["W_enc"] / math.sqrt(sizes.inputs)
        tensors["W_dec"] = tensors["W_dec"] * math.sqrt(sizes.inputs)
    fields = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "output_size": sizes.outputs if transcoder else None,
        "subtract_decoder_bias": False,
        "normalize_decoder": False,
        **_names_1(trail),
    }
    return build(source, path, "jumprelu_sae", fields, tensors, {"format": GEMMA_SCOPE.name})


def _names_1(trail: str) -> dict[str, Any]:
    """Model and hookpoints by the names of the release, `google/gemma-scope-2b-pt-res/layer_20/...`; else empty."""
    repository = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att|transcoders)\b(.*)", trail)
    if repository is None:
        return {}
    size, tuned, site, rest = repository.groups()
    names: dict[str, Any] = {"base_model": f"google/gemma-2-{size}" + ("-it" if tuned == "it" else "")}
    layer = re.search(r"layer_(\d+)", rest)
    if "embedding" in rest:
        return {**names, "hookpoint": "model.embed_tokens"}
    if layer is None:
        return names
    block = f"model.layers.{layer[1]}"
    hookpoints = {
        "res": block,
        "mlp": f"{block}.post_feedforward_layernorm",
        "att": f"{block}.self_attn.o_proj.input",
        "transcoders": f"{block}.pre_feedforward_layernorm.input",
    }
    names["hookpoint"] = hookpoints[site]
    if site == "transcoders":
        names["output_hookpoint"] = f"{block}.post_feedforward_layernorm"
        # No module of transformers returns the output of a norm before its weights, but its input is available.
        names |= {"input_normalization": "rms_norm", "input_normalization_eps": _NORM_EPS}
    return names


def _read_2(source: Source) -> SAEModel:
    path, weights = source.folder / "config.json", source.path
    config = read_json(path) if os.path.isfile(path) else {}
    _check_architecture(path, config)
    found = read_safetensors(weights)
    if "w_dec" in found and found["w_dec"].ndim == 3:
        raise UnsupportedError(
            f"{weights}: w_dec",
            "is of a cross-layer transcoder, in a file named as those of one layer are not",
            got=tuple(found["w_dec"].shape),
            expected="params_layer_{n}.safetensors",
        )
    skip = flag(path, config, "affine_connection", default="affine_skip_connection" in found)
    layout = {**_LAYOUT, **_SKIP} if skip else _LAYOUT
    sizes = matrix_sizes(weights, found, layout)
    tensors = take(weights, found, layout, sizes)
    known = _names_2(source.words)
    model = _model_2(text(path, config, "model_name")) or known.get("base_model")
    read = text(path, config, "hf_hook_point_in") or known.get("hookpoint")
    target = choice(path, config, "hf_hook_point_out") or known.get("output_hookpoint")
    transcoder = _is_transcoder(path, config, read, target, skip=skip, named="transcoder" in source.trail)
    fields = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "output_size": sizes.outputs if transcoder else None,
        "skip_connection": skip,
        "subtract_decoder_bias": False,
        "normalize_decoder": False,
        "base_model": model,
        "hookpoint": hookpoint_of(read, model),
        "output_hookpoint": hookpoint_of(target, model) if transcoder else None,
    }
    return build(source, path, "jumprelu_sae", fields, tensors, {"format": GEMMA_SCOPE_2.name, "config": config})


def _is_transcoder(
    path: Path, config: Mapping[str, Any], read: str | None, target: str | None, *, skip: bool, named: bool
) -> bool:
    """Whether another place than the input is reconstructed: an autoencoder of the release names its own twice."""
    kind = choice(path, config, "type")
    if target is not None and read is None:
        what, fix = "is missing, and hf_hook_point_out is there", "Put it back: the two tell a transcoder."
        raise FileFormatError(f"{path}: hf_hook_point_in", what, expected="the place that is read", fix=fix)
    elsewhere = target is not None and target != read
    if (kind == "sae" and (elsewhere or skip)) or (kind == "transcoder" and target is not None and not elsewhere):
        got = f"{kind!r}, from {read} to {target}{', with a skip connection' if skip else ''}"
        raise FileFormatError(f"{path}: type", "contradicts the hooks", got=got, fix="Download the config again.")
    return elsewhere or skip or (named and kind != "sae")


def _model_2(name: str | None) -> str | None:
    """Return the Hub id of a model that the release calls `gemma-v3-...`; the smallest one has no `-pt` on the Hub."""
    if name is None:
        return None
    known = name.replace("-v3", "-3")
    known = known.removesuffix("-pt") if "-270m" in known else known
    return known if "/" in known else f"google/{known}"


def _names_2(trail: str) -> dict[str, str]:
    """Model and hookpoints by the names of the release, `google/gemma-scope-2-1b-pt/resid_post/layer_9_...`."""
    repository = re.search(r"gemma-scope-2-(\d+[mb]-(?:pt|it))(.*)", trail)
    if repository is None:
        return {}
    model, rest = repository.groups()
    names = {"base_model": _model_2(f"gemma-3-{model}") or ""}
    layer = re.search(r"layer_(\d+)", rest)
    sites = {
        "transcoder": ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        "resid_post": ("", ""),
        "attn_out": ("self_attn.o_proj.input", ""),
        "mlp_out": ("post_feedforward_layernorm", ""),
    }
    site = next((ends for word, ends in sites.items() if word in rest), None)
    if layer is None or site is None:
        return names
    paths = [f"model.layers.{layer[1]}.{end}".rstrip(".") for end in site]
    names["hookpoint"] = paths[0]
    return {**names, "output_hookpoint": paths[1]} if site[1] else names


def _check_architecture(path: Path, config: Mapping[str, Any]) -> None:
    check_near(path, config, _KEYS)
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise FileFormatError(
            f"{path}: architecture", "unknown", got=repr(config["architecture"]), expected="'jump_relu'"
        )


def _read_layer(source: Source) -> SAEModel:
    path, weights = source.folder / "config.json", source.path
    config = read_json(path) if os.path.isfile(path) else {}
    _check_architecture(path, config)
    found = read_safetensors(weights)
    decoder, skip = found.get("w_dec"), found.get("affine_skip_connection")
    if flag(path, config, "affine_connection", default=skip is not None) != (skip is not None):
        there = "none" if skip is None else "affine_skip_connection"
        held = f"{config['affine_connection']}, and {there}"
        raise FileFormatError(f"{path}: affine_connection", "contradicts the weights", got=held)
    index = re.search(r"params_layer_(\d+)\.safetensors$", source.file)
    if decoder is None or decoder.ndim != 3 or index is None or int(index[1]) >= decoder.shape[1]:
        got = "none" if decoder is None else tuple(decoder.shape)
        what = "is not (latents, layers, width), the file's layer among them"
        raise FileFormatError(f"{weights}: w_dec", what, got=got)
    own, (latents, places, width) = int(index[1]), decoder.shape
    for name, axis in (("w_enc", 0), ("b_dec", -1), ("affine_skip_connection", -1)):
        if name in found and (not found[name].ndim or found[name].shape[axis] != width):
            got, expected = tuple(found[name].shape), f"width {width}, as w_dec"
            raise FileFormatError(f"{weights}: {name}", "is of another width than w_dec", got=got, expected=expected)
    start = own * width
    found["w_dec"] = decoder.reshape(latents, places * width)
    if "b_dec" in found:
        found["b_dec"] = _placed(found["b_dec"], start, places * width)
    layout = dict(_LAYOUT)
    if skip is not None:
        layout |= _SKIP
        found["affine_skip_connection"] = _placed(skip, start, places * width)
    sizes = matrix_sizes(weights, found, layout)
    tensors = take(weights, found, layout, sizes)
    model = _model_2(text(path, config, "model_name")) or _names_2(source.words).get("base_model")
    fields: dict[str, Any] = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "output_size": sizes.outputs,
        "skip_connection": skip is not None,
        "subtract_decoder_bias": False,
        "normalize_decoder": False,
        "base_model": model,
    }
    hooks = text(path, config, "hf_hook_point_in"), text(path, config, "hf_hook_point_out")
    if all(hook is None for hook in hooks):
        ends = [_places_of(hook, places, model) for hook in _hooks_of_layers(source.words)]
    else:
        ends = [_places_of(hook, places, model) for hook in hooks]
        for name, hook, end in zip(("in", "out"), hooks, ends, strict=True):
            if end is None:
                what, expected = (
                    "must name the layers of w_dec",
                    f"{places} layers, as in model.layers.{{7,13}}.output",
                )
                raise FileFormatError(f"{path}: hf_hook_point_{name}", what, got=repr(hook), expected=expected)
        if [layer_of(one) for one in ends[0] or ()] != [layer_of(one) for one in ends[1] or ()]:
            what = "names other layers than hf_hook_point_in"
            raise FileFormatError(f"{path}: hf_hook_point_out", what, got=repr(hooks[1]), expected=repr(hooks[0]))
    if ends[0] is not None and ends[1] is not None:
        fields |= {"hookpoint": ends[0][own], "output_hookpoints": ends[1]}
    origin = {"format": GEMMA_SCOPE_2_LAYERS.name, "config": config}
    return build(source, path, "jumprelu_sae", fields, tensors, origin)


def _placed(tensor: Tensor, start: int, width: int) -> Tensor:
    """Return a tensor with zeros before and behind it in its last dimension."""
    return functional.pad(tensor, (start, width - start - tensor.shape[-1]))


def _places_of(hook: str | None, count: int, model: str | None) -> list[str] | None:
    """Return the paths that a hook of several layers means, `"model.layers.{7,13}.output"`, or `None`."""
    layers = re.search(r"\{([\d,\s]+|all)\}", hook or "")
    if hook is None or layers is None:
        return None
    given = [] if layers[1] == "all" else [part.strip() for part in layers[1].split(",")]
    if given and not all(part.isdecimal() and len(part) < _LONGEST_NUMBER for part in given):
        return None
    numbers = [int(part) for part in given] or list(range(count))
    paths = [hookpoint_of(hook.replace(layers[0], str(number)), model) for number in numbers]
    fit = len(set(numbers)) == len(numbers) == count
    return [path for path in paths if path is not None] if fit else None


def _hooks_of_layers(words: str) -> tuple[str | None, str | None]:
    """Return the hooks that the folders of the release name: `crosscoder/layer_7_13_...`, `clt/...`."""
    layers = re.search(r"crosscoder/layer_((?:\d+_)+)width", words)
    if layers is not None:
        hook = f"model.layers.{{{layers[1].rstrip('_').replace('_', ',')}}}.output"
        return hook, hook
    if "clt/" in words:
        path = "model.layers.{all}"
        return f"{path}.pre_feedforward_layernorm.output", f"{path}.post_feedforward_layernorm.output"
    return None, None


def _recognises_1(config: Mapping[str, Any] | None) -> bool:
    return True


def _recognises_2(config: Mapping[str, Any] | None) -> bool:
    return config is None or "architecture" in config


GEMMA_SCOPE_2_LAYERS = Format(
    name="gemma_scope_2_layers",
    weights=("params_layer_*.safetensors",),
    config="config.json",
    recognises=_recognises_2,
    holds=lambda shapes: len(shapes.get("w_dec", ())) == 3,
    read=_read_layer,
    refusal=_REFUSAL,
    reads="one layer of a cross-layer transcoder or crosscoder of Gemma Scope 2, to all layers",
    oracle="its own formulas",
)
GEMMA_SCOPE = Format(
    name="gemma_scope",
    weights=("params.npz",),
    config=None,
    recognises=_recognises_1,
    read=_read_1,
    refusal=_REFUSAL,
    loaders=("gemma_2", "gemma_2_transcoder"),
    reads="JumpReLU SAEs and transcoders of Gemma Scope",
    oracle="SAELens",
)
GEMMA_SCOPE_2 = Format(
    name="gemma_scope_2",
    weights=("params.safetensors",),
    config="config.json",
    recognises=_recognises_2,
    read=_read_2,
    refusal=_REFUSAL,
    loaders=("gemma_3",),
    reads="JumpReLU SAEs and transcoders of Gemma Scope 2, affine ones too",
    oracle="SAELens",
)
