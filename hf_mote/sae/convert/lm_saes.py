"""Llama Scope and other files of OpenMOSS' Language-Model-SAEs (now Llamascopium), only to read.

Two layouts: `hyperparams.json` and `checkpoints/final.safetensors` (Llama Scope), and `config.json` and
`sae_weights.safetensors` (Llama Scope R1 and later). Input and output were scaled to norms of about the root of the
width while they were trained, by two numbers that are folded into the weights here. A latent is active where it is
above a threshold, with `sparsity_include_decoder_norm` times the length of its dictionary row. Latents keep the scale
that they had in training, in which SAELens and Neuronpedia show them.

Thresholds: `jump_relu_threshold` of Llama Scope, one number, is of the SAE after folding, in the units of the model's
activations (so SAELens scales it, too); `log_jumprelu_threshold` of the later layout, one for each latent, is of
training.

Source: He et al., arXiv 2410.20526; llamascopium 2.0.0b34 (`models/sae.py`, `models/sparse_dictionary.py`) and its
predecessor lm-saes; readers of SAELens 6.54.12. SAELens leaves `sparsity_include_decoder_norm` out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_mote.errors import FileFormatError, UnsupportedError
from hf_mote.files import read_json
from hf_mote.sae.convert.formats import Format, Source, build, place_read, place_written
from hf_mote.sae.convert.names import hub_model
from hf_mote.sae.convert.tensors import Layout, Sizes, matrix_sizes, read_safetensors, take
from hf_mote.sae.convert.values import agree, check_near, choice, flag, integer, number, section, text
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.variants.bases.thresholds import CLOSED

__all__ = ["LLAMA_SCOPE", "LM_SAES"]

_LINEAR: Layout = {
    "W_enc": ("encoder.weight", False),
    "b_enc": ("encoder.bias", False),
    "W_dec": ("decoder.weight", True),
    "b_dec": ("decoder.bias", False),
}
_PLAIN: Layout = {
    "W_enc": ("W_E", True),
    "b_enc": ("b_E", False),
    "W_dec": ("W_D", False),
    "b_dec": ("b_D", False),
}
_NORM = "dataset_average_activation_norm"
_THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")
_MODEL = "meta-llama/Llama-3.1-8B"
_SAME_NORM = 1e-3
_KEYS = (
    "act_fn",
    "apply_decoder_bias_to_pre_encoder",
    "d_model",
    "d_sae",
    "dataset_average_activation_norm",
    "expansion_factor",
    "hook_point_in",
    "hook_point_out",
    "jump_relu_threshold",
    "model_name",
    "norm_activation",
    "sae_type",
    "sparsity_include_decoder_norm",
    "top_k",
    "use_decoder_bias",
    "use_glu_encoder",
)
# What the library, which writes all of its keys, filled in otherwise before it wrote a `sae_type`.
_ONCE_OTHERS = {"apply_decoder_bias_to_pre_encoder": "true or false", "norm_activation": "such as dataset-wise"}


class _Scales(NamedTuple):
    """Factors on the input before it was encoded, and on what was reconstructed."""

    input: float
    output: float


def _read(source: Source, config_name: str, format_name: str) -> SAEModel:
    path, weights = source.folder / config_name, source.path
    config = read_json(path)
    _check(path, config)
    found = read_safetensors(weights)
    layout = dict(_LINEAR if "encoder.weight" in found else _PLAIN)
    bias = layout["b_dec"][0]
    if not flag(path, config, "use_decoder_bias", default=True):
        if bias in found:
            raise FileFormatError(
                f"{path}: use_decoder_bias", f"contradicts the weights, which hold {bias}", got=False
            )
        found[bias] = torch.zeros(matrix_sizes(weights, found, layout).outputs, dtype=found[layout["W_enc"][0]].dtype)
    norms = {name: found.pop(name) for name in list(found) if name.startswith(f"{_NORM}.")}
    logs = [found.pop(name) for name in _THRESHOLDS if name in found]
    if len(logs) > 1:
        what = "are both there, and are the same thresholds"
        raise FileFormatError(f"{weights}: {' and '.join(_THRESHOLDS)}", what, expected="one of them")
    sizes = matrix_sizes(weights, found, layout)
    width = integer(path, config, "d_model")
    agree(path, "d_model", width, sizes.inputs)
    agree(path, "d_model", width, sizes.outputs)
    if config.get("d_sae") is not None:
        agree(path, "d_sae", integer(path, config, "d_sae"), sizes.latents)
    if config.get("expansion_factor") is not None:
        times = number(path, config, "expansion_factor")
        agree(path, "expansion_factor", round(times * sizes.inputs), sizes.latents)
    tensors = take(weights, found, layout, sizes)
    scales = _scales(path, source, config, norms, sizes)
    fields: dict[str, Any] = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "subtract_decoder_bias": flag(path, config, "apply_decoder_bias_to_pre_encoder", default=False),
        "normalize_decoder": False,
        **_names(path, source, config),
    }
    if not _is_of_one_place(path, config):
        fields["output_size"] = sizes.outputs
        if fields["subtract_decoder_bias"]:
            raise UnsupportedError(f"{path}: apply_decoder_bias_to_pre_encoder", "cannot be in a transcoder")
    kind, threshold = _threshold(path, config, tensors, logs, scales, sizes, weights)
    if kind == "topk_sae":
        fields |= {"k": integer(path, config, "top_k"), "scale_latents_by_decoder_norm": _includes_norm(path, config)}
    elif threshold is not None:
        tensors["threshold"] = threshold
    _fold(path, tensors, scales)
    return build(source, path, kind, fields, tensors, {"format": format_name, "config": config})


def _check(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse settings that no architecture here supports, and keys that may be misspelt."""
    kind = choice(path, config, "sae_type", default="sae")
    if kind != "sae":
        reasons = {
            "clt": "a cross-layer transcoder writes to many layers",
            "crosscoder": "a crosscoder reads and writes several places",
            "lorsa": "its latents are attention heads",
            "molt": "its latents are matrices",
        }
        raise UnsupportedError(f"{path}: sae_type {kind}", f"cannot be read: {reasons.get(kind, 'unknown')}")
    check_near(path, config, _KEYS)
    lost = next((key for key in _ONCE_OTHERS if config.get(key) is None and config.get("sae_type") is None), None)
    if lost is not None:
        what, fix = "is missing, and the library's default changed", "Download the config again, or put it back."
        raise FileFormatError(f"{path}: {lost}", what, expected=_ONCE_OTHERS[lost], fix=fix)
    if flag(path, config, "use_glu_encoder", default=False):
        raise UnsupportedError(f"{path}: use_glu_encoder", "cannot be read: latents have a second, gating encoder")


def _includes_norm(path: Path, config: Mapping[str, Any]) -> bool:
    return flag(path, config, "sparsity_include_decoder_norm", default=True)


def _scales(
    path: Path, source: Source, config: Mapping[str, Any], norms: Mapping[str, Tensor], sizes: Sizes
) -> _Scales:
    """Return the two factors: from the weights' own tensors, the config, or a public list."""
    kind = choice(path, config, "norm_activation", default="dataset-wise")
    if kind == "inference":
        return _Scales(1.0, 1.0)
    if kind != "dataset-wise":
        raise UnsupportedError(
            f"{path}: norm_activation", "cannot be read: the norm is that of each batch or token", got=repr(kind)
        )
    roots = math.sqrt(sizes.inputs), math.sqrt(sizes.outputs)
    hooks = _hooks(path, config)
    if all(f"{_NORM}.{hook}" in norms for hook in hooks):
        stored = [_positive(source.path, f"{_NORM}.{hook}", norms) for hook in hooks]
        return _Scales(roots[0] / stored[0], roots[1] / stored[1])
    said = section(path, config, _NORM)
    if said:
        both = number(path, said, "in"), number(path, said, "out")
        # Of one place there is one norm, up to the tokens that it was measured on.
        if hooks[0] == hooks[1] and not math.isclose(*both, rel_tol=_SAME_NORM):
            what = "must be equal where input and output are one place"
            raise FileFormatError(f"{path}: {_NORM}", what, got=f"in {both[0]:g}, out {both[1]:g}")
        return _Scales(roots[0] / both[0], roots[1] / both[1])
    factor = source.wanted.norm_scaling_factor or (source.known and source.known.norm_scaling_factor)
    if factor is None or hooks[0] != hooks[1]:
        raise UnsupportedError(
            f"{path}: {_NORM}",
            "is needed, and neither config nor weights have it",
            fix="Give norm_scaling_factor: the root of d_model divided by the mean norm of the activations.",
        )
    return _Scales(factor, factor)


def _positive(path: Path, name: str, tensors: Mapping[str, Tensor]) -> float:
    """Return the positive number that a tensor of one element holds."""
    tensor = tensors[name]
    value = float(tensor) if tensor.numel() == 1 and not tensor.is_complex() else 0.0
    if not 0 < value < math.inf:
        raise FileFormatError(
            f"{path}: {name}", "must be a positive number", got=f"{tensor.dtype} {tuple(tensor.shape)}"
        )
    return value


def _is_of_one_place(path: Path, config: Mapping[str, Any]) -> bool:
    """Whether what is reconstructed is the input."""
    read, written = _hooks(path, config)
    return written == read


def _hooks(path: Path, config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the names of the places that are read and written, `None` where none is said.

    The library fills in the second where it is left out, and has no SAE without the first.
    """
    read = choice(path, config, "hook_point_in")
    written = choice(path, config, "hook_point_out", default=read)
    if written and not read:
        what, fix = "is missing, and hook_point_out is there", "Put it back: the two tell a transcoder."
        raise FileFormatError(f"{path}: hook_point_in", what, expected="the place that is read", fix=fix)
    return read or None, written or None


def _threshold(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    logs: list[Tensor],
    scales: _Scales,
    sizes: Sizes,
    weights: Path,
) -> tuple[str, Tensor | None]:
    """Return the architecture and its thresholds, in the units of the latents of training."""
    kind = choice(path, config, "act_fn", default="relu").lower()
    if kind == "topk" and config.get("jump_relu_threshold") and not logs:
        # The library itself does this with a trained SAE.
        kind = "jumprelu"
    if logs and kind != "jumprelu":
        what = "are thresholds, which this activation function does not have"
        raise FileFormatError(f"{weights}: {_THRESHOLDS[0]}", what, got=f"act_fn {kind!r}", expected="'jumprelu'")
    if kind == "relu" and config.get("jump_relu_threshold"):
        what, got = "does not go with act_fn 'relu'", repr(config["jump_relu_threshold"])
        raise FileFormatError(f"{path}: jump_relu_threshold", what, got=got, expected="act_fn 'jumprelu'")
    if kind == "relu":
        return "relu_sae", None
    if kind == "topk":
        return "topk_sae", None
    if kind != "jumprelu":
        raise UnsupportedError(f"{path}: act_fn", "cannot be read: it looks across the batch", got=repr(kind))
    if logs:
        right = tuple(logs[0].shape) == (sizes.latents,) and logs[0].is_floating_point()
        if not right or not bool(logs[0].double().isfinite().all()):
            raise FileFormatError(f"{weights}: {_THRESHOLDS[0]}", "wrong shape or value", got=tuple(logs[0].shape))
        threshold = logs[0].double().exp()
    else:
        # Of contributions in the units of the output, or of latents in those of the input.
        factor = scales.output if _includes_norm(path, config) else scales.input
        threshold = torch.full((sizes.latents,), number(path, config, "jump_relu_threshold") * factor).double()
    if _includes_norm(path, config):
        lengths = torch.linalg.vector_norm(tensors["W_dec"].double(), dim=1)
        # A latent without a dictionary row is never active.
        threshold = torch.where(lengths > 0, threshold / lengths, CLOSED)
    return "jumprelu_sae", threshold.clamp(max=CLOSED).to(torch.promote_types(tensors["W_enc"].dtype, torch.float32))


def _fold(path: Path, tensors: dict[str, Tensor], scales: _Scales) -> None:
    """Fold both factors into the weights, in float32 at least: latents stay in the units of training."""
    for name, factor in (("W_enc", scales.input), ("W_dec", 1 / scales.output), ("b_dec", 1 / scales.output)):
        tensors[name] = tensors[name].double() * factor
    wide = torch.promote_types(tensors["b_enc"].dtype, torch.float32)
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        tensors[name] = tensors[name].to(wide)
        if not bool(tensors[name].isfinite().all()):
            raise FileFormatError(
                f"{path}: {_NORM}",
                f"makes {name} more than its dtype holds",
                got=f"factors {scales.input:g} and {scales.output:g}",
            )


def _names(path: Path, source: Source, config: Mapping[str, Any]) -> dict[str, Any]:
    """Model and hookpoint of the SAE for the config."""
    model = hub_model(text(path, config, "model_name"))
    if model is None and source.known is not None:
        model = hub_model(source.known.model)
    if model is None and ("Llama3_1-8B-Base" in source.words or "Llama-Scope" in source.words):
        model = _MODEL
    names: dict[str, Any] = {"base_model": model}
    read, written = _hooks(path, config)
    if read is not None:
        names |= place_read(source, f"{path}: hook_point_in", read, model)
    if written is not None and written != read:
        names |= place_written(source, f"{path}: hook_point_out", written, model)
    return names


def _recognises(config: Mapping[str, Any] | None) -> bool:
    return config is not None and "d_model" in config and ("hook_point_in" in config or "sae_type" in config)


_REFUSAL = "its SAEs scale what they take; write it for SAELens"
LLAMA_SCOPE = Format(
    name="llama_scope",
    weights=("checkpoints/final.safetensors",),
    config="hyperparams.json",
    recognises=_recognises,
    read=lambda source: _read(source, "hyperparams.json", "llama_scope"),
    refusal=_REFUSAL,
    loaders=("llama_scope",),
    reads="JumpReLU SAEs and transcoders, ReLU, TopK",
    oracle="SAELens, Llamascopium",
)
LM_SAES = Format(
    name="lm_saes",
    weights=("sae_weights.safetensors",),
    config="config.json",
    recognises=_recognises,
    read=lambda source: _read(source, "config.json", "lm_saes"),
    refusal=_REFUSAL,
    loaders=("llama_scope_r1_distill",),
    reads="JumpReLU SAEs and transcoders, ReLU, TopK",
    oracle="SAELens, Llamascopium",
)
