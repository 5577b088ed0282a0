"""Releases that are one torch file without a config: Goodfire's and qresearch's, only to read.

ReLU SAEs that do not subtract the decoder's bias. The file's name gives the model and the layer of the residual
stream (`Llama-3.1-8B-Instruct-SAE-l19.pth`). The two differ in the names of their tensors.

Source: readers of SAELens 6.54.12 (`loading/pretrained_sae_loaders.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from hf_mote.sae.convert.formats import Format, Source, build
from hf_mote.sae.convert.names import hub_model, place_of
from hf_mote.sae.convert.tensors import Layout, matrix_sizes, read_torch, take
from hf_mote.sae.modeling import SAEModel

__all__ = ["DEEPSEEK_R1", "GOODFIRE"]


def _layout(encoder: str, decoder: str) -> Layout:
    return {
        "W_enc": (f"{encoder}.weight", False),
        "b_enc": (f"{encoder}.bias", False),
        "W_dec": (f"{decoder}.weight", True),
        "b_dec": (f"{decoder}.bias", False),
    }


_GOODFIRE, _DEEPSEEK_R1 = _layout("encoder_linear", "decoder_linear"), _layout("encoder", "decoder")


def _holder(layout: Layout) -> Callable[[Mapping[str, tuple[int, ...]]], bool]:
    return lambda shapes: set(shapes) == {name for name, _ in layout.values()}


def _reader(format_name: str, layout: Layout) -> Callable[[Source], SAEModel]:
    def read(source: Source) -> SAEModel:
        path = source.path
        found = read_torch(path)
        sizes = matrix_sizes(path, found, layout)
        tensors = take(path, found, layout, sizes)
        name = re.search(r"([\w.-]+)-SAE-l(\d+)\.pth?$", source.file)
        model = hub_model(name[1]) if name else None
        place = place_of(f"blocks.{name[2]}.hook_resid_post" if name else None, model)
        fields = {
            "hidden_size": sizes.inputs,
            "num_latents": sizes.latents,
            "subtract_decoder_bias": False,
            "normalize_decoder": False,
            "base_model": model,
            "hookpoint": place and place.hookpoint,
        }
        return build(source, path, "relu_sae", fields, tensors, {"format": format_name})

    return read


_REFUSAL = "this is the format of one release, whose config is in the name of its file; write it for SAELens"
GOODFIRE = Format(
    name="goodfire",
    weights=("*-SAE-l*.pth", "*-SAE-l*.pt"),
    config=None,
    recognises=lambda config: True,
    holds=_holder(_GOODFIRE),
    read=_reader("goodfire", _GOODFIRE),
    refusal=_REFUSAL,
    loaders=("goodfire",),
    reads="ReLU",
    oracle="SAELens",
)
DEEPSEEK_R1 = Format(
    name="deepseek_r1",
    weights=("*-SAE-l*.pt",),
    config=None,
    recognises=lambda config: True,
    holds=_holder(_DEEPSEEK_R1),
    read=_reader("deepseek_r1", _DEEPSEEK_R1),
    refusal=_REFUSAL,
    loaders=("deepseek_r1",),
    reads="ReLU",
    oracle="SAELens",
)
