"""This package's own files, `config.json` and `model.safetensors`, so that conversion can start and end here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hf_mote.sae.convert.formats import Format, Source
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.register import registered_saes

__all__ = ["NATIVE"]


def _recognises(config: Mapping[str, Any] | None) -> bool:
    model_type = None if config is None else config.get("model_type")
    return isinstance(model_type, str) and model_type in registered_saes()


def _read(source: Source) -> SAEModel:
    wanted = source.wanted
    dtype = "auto" if wanted.dtype is None else wanted.dtype
    return cast(
        SAEModel,
        SAEModel.from_pretrained(source.folder, dtype=dtype, device_map=wanted.device_map, **wanted.fields),
    )


def _write(sae: SAEModel, folder: Path) -> list[str]:
    sae.save_pretrained(folder)
    return []


NATIVE = Format(
    name="hf_mote",
    weights=("model.safetensors", "model.safetensors.index.json"),
    config="config.json",
    recognises=_recognises,
    read=_read,
    write=_write,
    beside=lambda file: ("model-*-of-*.safetensors",) if file.endswith(".index.json") else (),
    reads="all architectures",
    writes="all architectures",
    oracle="itself",
)
