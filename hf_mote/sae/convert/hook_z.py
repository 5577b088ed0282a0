"""Attention SAEs of Kissane et al.: a `.pt` for each layer and beside it `..._cfg.json`, only to read.

ReLU SAEs of the outputs of attention heads before they are mixed, all heads of a layer side by side.

Source: arXiv 2406.17759; reader of SAELens 6.54.12 (`loading/pretrained_sae_loaders.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from hf_mote.errors import FileFormatError
from hf_mote.files import read_json
from hf_mote.sae.convert.formats import Format, Source, build, place_read
from hf_mote.sae.convert.names import hub_model
from hf_mote.sae.convert.tensors import Layout, matrix_sizes, read_torch, take
from hf_mote.sae.convert.values import agree, check_near, integer, text
from hf_mote.sae.modeling import SAEModel

__all__ = ["HOOK_Z"]

_LAYOUT: Layout = {
    "W_enc": ("W_enc", True),
    "b_enc": ("b_enc", False),
    "W_dec": ("W_dec", False),
    "b_dec": ("b_dec", False),
}


def _config_of(file: str) -> str:
    return f"{file.removesuffix('.pt')}_cfg.json"


def _holds(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return set(shapes) == {name for name, _ in _LAYOUT.values()} and shapes["W_enc"][1:] == shapes["b_enc"]


def _read(source: Source) -> SAEModel:
    path = source.folder / _config_of(source.file)
    cfg = read_json(path)
    check_near(path, cfg, ("act_name", "act_size", "dict_size", "model_name"))
    found = read_torch(source.path)
    sizes = matrix_sizes(source.path, found, _LAYOUT)
    agree(path, "act_size", integer(path, cfg, "act_size"), sizes.inputs)
    agree(path, "dict_size", integer(path, cfg, "dict_size"), sizes.latents)
    tensors = take(source.path, found, _LAYOUT, sizes)
    model = hub_model(text(path, cfg, "model_name") or "gpt2-small")
    hook = text(path, cfg, "act_name")
    if hook is None:
        what, expected = "is missing or empty", "the place in the model, as in blocks.5.attn.hook_z"
        raise FileFormatError(f"{path}: act_name", what, expected=expected, fix="Download the config again.")
    fields = {
        "hidden_size": sizes.inputs,
        "num_latents": sizes.latents,
        "subtract_decoder_bias": True,
        "base_model": model,
        **place_read(source, f"{path}: act_name", hook, model),
    }
    return build(source, path, "relu_sae", fields, tensors, {"format": HOOK_Z.name, "config": cfg})


HOOK_Z = Format(
    name="hook_z",
    weights=("*Hcat_z*.pt",),
    config=None,
    recognises=lambda config: True,
    holds=_holds,
    beside=lambda file: (_config_of(file),),
    read=_read,
    refusal="this is the format of one release; write it for SAELens",
    loaders=("connor_rob_hook_z",),
    reads="ReLU SAEs of attention heads",
    oracle="SAELens",
)
