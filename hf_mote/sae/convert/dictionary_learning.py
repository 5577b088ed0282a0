"""dictionary_learning: `ae.pt`, a pickled dictionary of tensors, and `config.json`, to read and to write.

The file is read as plain tensors and nothing else, so that no code of it runs. A dictionary class of the library
defines how weights are stored and used; the other values of `config.json` are of the training, but for what the
buffer of activations says of them: their width, and whether they are what goes into the module or comes out of it.

Source: dictionary_learning 0.1.0, `dictionary.py`, `utils.py` and `trainers/`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_mote.errors import FileFormatError, UnknownNameError, UnsupportedError
from hf_mote.files import read_json, write_json
from hf_mote.sae.convert.formats import (
    Format,
    Source,
    build,
    computes_as,
    lost_fields,
    lost_state,
    origin_of,
    require_plain_input,
)
from hf_mote.sae.convert.names import layer_of, place_of, site_in
from hf_mote.sae.convert.tensors import Layout, give, matrix_sizes, read_torch, take
from hf_mote.sae.convert.values import agree, check_near, choice, integer, section, text
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.variants.bases.selective import SelectiveSAEModel
from hf_mote.sae.variants.bases.thresholded import ThresholdedSAEModel
from hf_mote.sae.variants.gated import GatedSAEModel
from hf_mote.sae.variants.jumprelu import JumpReLUSAEModel
from hf_mote.sae.variants.matryoshka import MatryoshkaSAEModel
from hf_mote.sae.variants.relu import ReLUSAEModel
from hf_mote.sae.variants.topk import TopKSAEModel

__all__ = ["DICTIONARY_LEARNING"]


class _Class(NamedTuple):
    """A dictionary class: which architecture it is, whether it subtracts the decoder's bias, how it stores tensors."""

    model_type: str
    subtracts: bool
    layout: Layout
    besides: tuple[str, ...] = ()


_LINEAR: Layout = {
    "W_enc": ("encoder.weight", False),
    "b_enc": ("encoder.bias", False),
    "W_dec": ("decoder.weight", True),
}
_PLAIN: Layout = {
    "W_enc": ("W_enc", True),
    "b_enc": ("b_enc", False),
    "W_dec": ("W_dec", False),
    "b_dec": ("b_dec", False),
}
_GATED: Layout = {
    "W_enc": ("encoder.weight", False),
    "b_enc": ("gate_bias", False),
    "b_mag": ("mag_bias", False),
    "r_mag": ("r_mag", False),
    "W_dec": ("decoder.weight", True),
    "b_dec": ("decoder_bias", False),
}
_CLASSES = {
    "AutoEncoder": _Class("relu_sae", True, {**_LINEAR, "b_dec": ("bias", False)}),
    "AutoEncoderNew": _Class("relu_sae", False, {**_LINEAR, "b_dec": ("decoder.bias", False)}),
    "AutoEncoderTopK": _Class("topk_sae", True, {**_LINEAR, "b_dec": ("b_dec", False)}, ("k", "threshold")),
    "BatchTopKSAE": _Class("batch_topk_sae", True, {**_LINEAR, "b_dec": ("b_dec", False)}, ("k", "threshold")),
    "GatedAutoEncoder": _Class("gated_sae", True, _GATED),
    "JumpReluAutoEncoder": _Class("jumprelu_sae", False, {**_PLAIN, "threshold": ("threshold", False)}),
    "MatryoshkaBatchTopKSAE": _Class("matryoshka_sae", True, _PLAIN, ("group_sizes", "k", "threshold")),
}
# The spelling until 2025-01-16.
_OLD_NAMES = {"MatroyshkaBatchTopKSAE": "MatryoshkaBatchTopKSAE"}
# What is read of a trainer's settings; the others are of training alone.
_KEYS = (
    "activation_dim",
    "dict_class",
    "dict_size",
    "group_sizes",
    "k",
    "layer",
    "lm_name",
    "submodule_name",
    "trainer_class",
)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_NUMBERS = {*_INTEGERS, torch.float16, torch.bfloat16, torch.float32, torch.float64}
_MOST_GROUPS = 10_000
# The threshold of a dictionary that was not trained long enough to have one.
_UNSET = -1.0
# Trainers and classes that leave the lengths of dictionary rows free.
_FREE_LENGTHS = {"AutoEncoderNew", "StandardTrainerAprilUpdate"}


def _recognises(config: Mapping[str, Any] | None) -> bool:
    return config is not None and isinstance(config.get("trainer"), Mapping)


def _read(source: Source) -> SAEModel:
    path, weights = source.folder / "config.json", source.path
    document = read_json(path)
    trainer = section(path, document, "trainer")
    check_near(path, trainer, _KEYS)
    said = choice(path, trainer, "dict_class")
    name = _OLD_NAMES.get(said, said)
    if name not in _CLASSES:
        raise UnknownNameError.of(f"{path}: trainer.dict_class", name, _CLASSES)
    kind = _CLASSES[name]
    found = read_torch(weights)
    sizes = matrix_sizes(weights, found, kind.layout)
    agree(path, "trainer.activation_dim", trainer.get("activation_dim"), sizes.inputs)
    agree(path, "trainer.dict_size", trainer.get("dict_size"), sizes.latents)
    agree(path, "buffer.d_submodule", section(path, document, "buffer").get("d_submodule"), sizes.inputs)
    tensors = take(weights, found, kind.layout, sizes, besides=kind.besides)
    fields: dict[str, Any] = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "subtract_decoder_bias": kind.subtracts,
        "normalize_decoder": _FREE_LENGTHS.isdisjoint((name, choice(path, trainer, "trainer_class"))),
        **_names(path, document, trainer, source.words),
    }
    origin: dict[str, Any] = {"format": DICTIONARY_LEARNING.name, "config": document}
    if "k" in kind.besides:
        # Files of before 2024-12-22 hold neither; only in a TopK the threshold is a value of training.
        if "k" in found:
            fields["k"] = int(_number(weights, found, "k"))
            agree(path, "trainer.k", integer(path, trainer, "k"), fields["k"])
        else:
            fields["k"] = integer(path, trainer, "k")
        threshold = _number(weights, found, "threshold") if "threshold" in found else None
        if kind.model_type == "topk_sae":
            if threshold is not None:
                # Only used if a caller asks for it; no file states this.
                origin["threshold"] = threshold
        elif threshold is None:
            raise FileFormatError(f"{weights}: threshold", "missing tensor", got=", ".join(sorted(found)))
        else:
            width = torch.promote_types(found["threshold"].dtype, torch.float32)
            tensors["threshold"] = torch.tensor(torch.nan if threshold == _UNSET else threshold, dtype=width)
            tensors["threshold_k"] = torch.tensor(0 if threshold == _UNSET else fields["k"])
    if "threshold" in found:
        origin["threshold_dtype"] = str(found["threshold"].dtype).removeprefix("torch.")
    if "group_sizes" in kind.besides:
        fields["group_sizes"] = _integers(weights, found, "group_sizes")
        agree(path, "trainer.group_sizes", trainer.get("group_sizes"), fields["group_sizes"])
    return build(source, path, kind.model_type, fields, tensors, origin)


def _names(path: Path, document: Mapping[str, Any], trainer: Mapping[str, Any], words: str) -> dict[str, str | None]:
    """Model and hookpoint: a module path, or words (`"resid_post_layer_3"`) in config or folder names."""
    side = choice(path, section(path, document, "buffer"), "io", default="out")
    if side == "in_and_out":
        what = "cannot be read: it is trained on what goes into a module and what comes out of it, together"
        raise UnsupportedError(f"{path}: buffer.io", what, got=repr(side))
    if side not in ("in", "out"):
        raise UnknownNameError.of(f"{path}: buffer.io", side, ("in", "out", "in_and_out"))
    model, submodule = text(path, trainer, "lm_name"), text(path, trainer, "submodule_name")
    folder = re.search(r"[a-z_]+_layer_\d+", words)
    said = submodule or (folder[0] if folder else "")
    if "." in said:
        named = layer_of(said)
    else:
        number = re.search(r"_(\d+)$", said)
        named = int(number[1]) if number else None
    layer = None if trainer.get("layer") is None else integer(path, trainer, "layer", least=0)
    if layer is not None and named is not None and named != layer:
        raise FileFormatError(f"{path}: trainer.layer", "is not that of its module", got=layer, expected=said)
    if "." in said:
        inside = re.sub(r"\.(input|output)$", "", said)
        return {"base_model": model, "hookpoint": f"{inside}.input" if side == "in" else said}
    if side == "in":  # the words name a place, and not the module whose input is meant
        return {"base_model": model, "hookpoint": None}
    place = place_of(f"blocks.{named if layer is None else layer}.{site_in(said)}", model)
    return {"base_model": model, "hookpoint": place and place.hookpoint}


def _number(path: Path, tensors: Mapping[str, Tensor], name: str) -> float:
    """Return the number that a tensor of one element holds."""
    tensor = tensors.get(name)
    if tensor is None or tensor.ndim != 0 or not _is_plain(tensor) or not bool(tensor.isfinite()):
        got = "none" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise FileFormatError(f"{path}: {name}", "must be a finite number", got=got)
    return float(tensor)


def _integers(path: Path, tensors: Mapping[str, Tensor], name: str) -> list[int]:
    """Return the integers that a tensor of one dimension holds."""
    tensor = tensors.get(name)
    plain = tensor is not None and _is_plain(tensor) and not tensor.is_floating_point()
    if tensor is None or tensor.ndim != 1 or not plain or len(tensor) > _MOST_GROUPS:
        got = "none" if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise FileFormatError(f"{path}: {name}", f"must be a list of up to {_MOST_GROUPS} integers", got=got)
    return [int(value) for value in tensor.tolist()]


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds integers, or floats that torch computes with."""
    return tensor.dtype in _NUMBERS


def _write(sae: SAEModel, folder: Path) -> list[str]:
    require_plain_input(sae, "dictionary_learning")
    config, origin = sae.config, origin_of(sae, DICTIONARY_LEARNING.name)
    name = _class_of(sae, origin)
    kind = _CLASSES[name]
    layout = {ours: place for ours, place in kind.layout.items() if ours != "threshold"}
    tensors = give(sae, layout, fold=True)
    held = {"base_model", "hidden_size", "hookpoint", "num_latents", "subtract_decoder_bias"}
    held |= {"normalize_decoder", "scale_latents_by_decoder_norm"}
    trainer: dict[str, Any] = {}
    if isinstance(sae, SelectiveSAEModel) and "k" in kind.besides:
        tensors["k"] = torch.tensor(sae.config.k, dtype=torch.int32)
        trainer["k"] = sae.config.k
        held |= {"k"}
    if "threshold" in {*kind.layout, *kind.besides}:
        tensors["threshold"] = _threshold(sae, origin)
    if isinstance(sae, MatryoshkaSAEModel):
        tensors["group_sizes"] = torch.tensor(sae.config.group_sizes)
        trainer["group_sizes"] = sae.config.group_sizes
        held |= {"group_sizes"}
    content = io.BytesIO()
    torch.save(tensors, content)
    (folder / "ae.pt").write_bytes(content.getbuffer())  # whose errors, on a full disk, are those of the system
    write_json(folder / "config.json", _document(sae, name, trainer, origin))
    becomes = config.model_type != kind.model_type
    return [
        *([f"the selection in training: {config.model_type} is read as {kind.model_type}"] if becomes else []),
        *(f"{field} = {value!r}" for field, value in lost_fields(sae, held).items()),
        *lost_state(sae, {*kind.layout, "threshold"}),
    ]


def _threshold(sae: SAEModel, origin: Mapping[str, Any]) -> Tensor:
    """Return the threshold, in the dtype it was read in if that holds it."""
    threshold: Tensor | None = sae.state_dict().get("threshold")
    if threshold is None or not bool(threshold.isfinite().all()):
        threshold = torch.tensor(origin.get("threshold", _UNSET), dtype=torch.float64)
        return threshold.to(_dtype(origin))
    exact = threshold.to("cpu", copy=True)
    rounded = exact.to(_dtype(origin))
    return rounded if torch.equal(rounded.to(exact.dtype), exact) else exact


def _dtype(origin: Mapping[str, Any]) -> torch.dtype:
    """Return the dtype that a threshold was read in, float32 where none was."""
    dtype = getattr(torch, str(origin.get("threshold_dtype")), None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _class_of(sae: SAEModel, origin: Mapping[str, Any]) -> str:
    """Return the dictionary class that computes the same outside training."""
    config, where = sae.config, f"export_sae: {type(sae).__name__}"
    if config.is_transcoder:
        raise UnsupportedError(where, "dictionary_learning has no class of transcoders", fix="Write it for SAELens.")
    one_threshold = isinstance(sae, ThresholdedSAEModel) and sae.threshold.ndim == 0
    kinds = (
        (MatryoshkaSAEModel, "MatryoshkaBatchTopKSAE"),
        (ThresholdedSAEModel, "BatchTopKSAE" if one_threshold else "JumpReluAutoEncoder"),
        (JumpReLUSAEModel, "JumpReluAutoEncoder"),
        (TopKSAEModel, "AutoEncoderTopK"),
        (GatedSAEModel, "GatedAutoEncoder"),
        (ReLUSAEModel, "AutoEncoder" if config.subtract_decoder_bias else "AutoEncoderNew"),
    )
    name = next((name for base, name in kinds if computes_as(sae, base)), None)
    if name is None:
        raise UnsupportedError(where, "dictionary_learning has no class that computes the same")
    if isinstance(sae, ThresholdedSAEModel) and not sae.is_calibrated and not origin:
        raise UnsupportedError(
            where,
            "has no threshold yet, and without one every positive latent is active in dictionary_learning",
            fix="Train it, or call calibrate_threshold(activations).",
        )
    if _CLASSES[name].subtracts is not config.subtract_decoder_bias:
        raise UnsupportedError(
            where,
            f"{name} of dictionary_learning {'always' if _CLASSES[name].subtracts else 'never'} subtracts b_dec",
            got=f"subtract_decoder_bias={config.subtract_decoder_bias}",
            fix="Write it for SAELens, which can do either.",
        )
    return name


def _document(sae: SAEModel, name: str, own: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of config.json: that of the file an SAE came from, brought up to date."""
    path = Path("config.origin")
    document = section(path, origin, "config")
    trainer = section(path, document, "trainer")
    config = sae.config
    trainer |= {"dict_class": name, "activation_dim": config.hidden_size, "dict_size": config.num_latents, **own}
    if "d_submodule" in (buffer := section(path, document, "buffer")):
        document["buffer"] = {**buffer, "d_submodule": config.hidden_size}
    if config.hookpoint != _names(path, document, trainer, "")["hookpoint"]:
        layer = re.search(r"\.(\d+)(\.|$)", config.hookpoint or "")
        module = config.hookpoint and config.hookpoint.removesuffix(".input")
        trainer |= {"submodule_name": module, "layer": int(layer[1]) if layer else None}
        document["buffer"] = {**section(path, document, "buffer"), "io": "out" if module == config.hookpoint else "in"}
    trainer["lm_name"] = config.base_model
    return {**document, "trainer": trainer}


DICTIONARY_LEARNING = Format(
    name="dictionary_learning",
    weights=("ae.pt",),
    config="config.json",
    recognises=_recognises,
    read=_read,
    write=_write,
    loaders=("dictionary_learning_1",),
    reads="AutoEncoder, AutoEncoderNew, Gated, JumpRelu, TopK, BatchTopK, MatryoshkaBatchTopK, older files too",
    writes="these; `mutual_choice` as BatchTopK; JumpRelu only of SAEs that do not subtract `b_dec`",
    oracle="dictionary_learning",
)
