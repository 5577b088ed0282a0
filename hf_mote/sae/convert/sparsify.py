"""sparsify of EleutherAI: `cfg.json` and `sae.safetensors` in a folder named by the hookpoint, to read and to write.

Its SAEs and transcoders are TopK ones. Names of hookpoints are relative to the model's `base_model`; here they start
at the model itself.

Source: sparsify 1.3.3 (`eai-sparsify`), `sparse_coder.py` and `config.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_mote.errors import FileFormatError, UnsupportedError
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
from hf_mote.sae.convert.names import family_of
from hf_mote.sae.convert.tensors import Layout, Sizes, give, read_safetensors, take, write_safetensors
from hf_mote.sae.convert.values import check_keys, flag, integer, section, text
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.variants.topk import TopKSAEModel

__all__ = ["SPARSIFY"]

_LAYOUT: Layout = {
    "W_enc": ("encoder.weight", False),
    "b_enc": ("encoder.bias", False),
    "W_dec": ("W_dec", False),
    "b_dec": ("b_dec", False),
}
_SKIP: Layout = {"W_skip": ("W_skip", False)}
_KEYS = {
    "activation",
    "d_in",
    "expansion_factor",
    "k",
    "multi_topk",
    "normalize_decoder",
    "num_latents",
    "signed",
    "skip_connection",
    "transcode",
}
# Name of `base_model` in models whose list of layers has this name, unless their family has another.
_ROOTS = {"layers": "model", "h": "transformer"}


def _recognises(config: Mapping[str, Any] | None) -> bool:
    return config is not None and "d_in" in config and "k" in config and "d_sae" not in config


def _read(source: Source) -> SAEModel:
    path, weights = source.folder / "cfg.json", source.path
    cfg = read_json(path)
    _check(path, cfg)
    d_in = integer(path, cfg, "d_in")
    # 0 latents: expansion_factor gives the number.
    latents = integer(path, cfg, "num_latents", least=0) if "num_latents" in cfg else 0
    sizes = Sizes(latents or d_in * integer(path, cfg, "expansion_factor"), d_in, d_in)
    transcode = flag(path, cfg, "transcode", default=False)
    skip = flag(path, cfg, "skip_connection", default=False)
    tensors = take(weights, read_safetensors(weights), {**_LAYOUT, **_SKIP} if skip else _LAYOUT, sizes)
    fields = {
        "hidden_size": d_in,
        "num_latents": sizes.latents,
        "output_size": d_in if transcode or skip else None,
        "skip_connection": skip,
        "subtract_decoder_bias": not transcode,
        "normalize_decoder": flag(path, cfg, "normalize_decoder", default=True),
        "k": integer(path, cfg, "k"),
        **_names(source),
    }
    return build(source, path, "topk_sae", fields, tensors, {"format": SPARSIFY.name, "config": cfg})


def _check(path: Path, cfg: Mapping[str, Any]) -> None:
    check_keys(path, cfg, _KEYS)
    activation = cfg.get("activation", "topk")
    if activation == "groupmax":
        raise UnsupportedError(
            f"{path}: activation groupmax",
            "cannot be read: it keeps the largest latent of each of k groups, and no architecture here does",
        )
    if activation != "topk":
        raise FileFormatError(f"{path}: activation", "unknown", got=repr(activation), expected="'topk'")
    if flag(path, cfg, "signed", default=False):
        raise UnsupportedError(f"{path}: signed", "cannot be read: latents are never negative here")
    # A loss of training, without effect on latents.
    flag(path, cfg, "multi_topk", default=False)


def _names(source: Source) -> dict[str, str | None]:
    """Fields of the config from names and the run's `config.json`."""
    name = source.trail.replace("\\", "/").rstrip("/").rpartition("/")[2]
    layers = re.match(r"(layers|h)\.\d+(\.|$)", name)
    path = source.folder.parent / "config.json"
    run = read_json(path) if os.path.isfile(path) else {}
    names: dict[str, str | None] = {}
    if isinstance(run.get("sae"), Mapping):
        names = {"base_model": text(path, run, "model"), "base_model_revision": text(path, run, "revision")}
    # A run without a config may have the model in its name: `EleutherAI/sae-pythia-160m-32k/layers.3`.
    family = family_of(names.get("base_model") or _model_in(source.words))
    if layers is not None:
        root = _ROOTS[layers[1]] if family is None or family.layers != layers[1] else family.root
        names["hookpoint"] = f"{root}.{name}"
    elif name == "embed_tokens" and family is not None:
        names["hookpoint"] = f"{family.root}.{name}"
    return names


def _model_in(words: str) -> str | None:
    """Return the part of a path that identifies a family with an unusual root."""
    found = re.search(r"pythia-[\w.-]+", words)
    return found[0] if found else None


def _write(sae: SAEModel, folder: Path) -> list[str]:
    if not isinstance(sae, TopKSAEModel) or not computes_as(sae, TopKSAEModel):
        raise UnsupportedError(
            f"export_sae: {type(sae).__name__}",
            "sparsify has TopK only, and another rule would give other latents",
            fix="Write it for SAELens (format='saelens').",
        )
    require_plain_input(sae, "sparsify")
    config = sae.config
    transcode, skip = not config.subtract_decoder_bias, config.skip_connection
    if config.decoder_size != config.hidden_size or config.is_transcoder != (transcode or skip):
        raise UnsupportedError(
            "export_sae: TopKSAEModel",
            "sparsify has transcoders of one width only, and subtracts b_dec in autoencoders and never in transcoders "
            "without a skip connection",
            got=f"{config.hidden_size} to {config.decoder_size}, subtract_decoder_bias={config.subtract_decoder_bias}",
        )
    cfg: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": max(config.num_latents // config.hidden_size, 1),
        "multi_topk": False,
        **section(Path("config.origin"), origin_of(sae, SPARSIFY.name), "config"),
        "d_in": config.hidden_size,
        "k": config.k,
        "normalize_decoder": config.normalize_decoder,
        "num_latents": config.num_latents,
        "skip_connection": skip,
        "transcode": transcode,
    }
    tensors = give(sae, {**_LAYOUT, **_SKIP} if skip else _LAYOUT, fold=True)
    write_safetensors(folder / "sae.safetensors", tensors)
    write_json(folder / "cfg.json", cfg)
    held = {"hidden_size", "num_latents", "output_size", "skip_connection", "subtract_decoder_bias"}
    held |= {"k", "normalize_decoder", "scale_latents_by_decoder_norm"}
    lost = [f"{name} = {value!r}" for name, value in lost_fields(sae, held).items()]
    return [*lost, *lost_state(sae, {*_LAYOUT, *_SKIP})]


SPARSIFY = Format(
    name="sparsify",
    weights=("sae.safetensors",),
    config="cfg.json",
    recognises=_recognises,
    read=_read,
    write=_write,
    loaders=("sparsify",),
    reads="TopK, transcoders, skip connections",
    writes="TopK",
    oracle="sparsify",
)
