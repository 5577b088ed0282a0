"""Known formats that are not read, each with the reason: they are refused by name, not as unknown files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from hf_mote.errors import UnsupportedError
from hf_mote.sae.convert.formats import Format, Source

__all__ = ["TEMPORAL"]


def _refuses(reason: str) -> Callable[[Source], NoReturn]:
    def read(source: Source) -> NoReturn:
        raise UnsupportedError(str(source.path), f"cannot be read: {reason}")

    return read


def _recognises(config: Mapping[str, Any] | None) -> bool:
    return config is not None and "sae" in config


TEMPORAL = Format(
    name="temporal",
    weights=("latest_ckpt.safetensors",),
    config="conf.yaml",
    recognises=_recognises,
    read=_refuses("latents of a temporal SAE depend on the tokens before, and no architecture here looks at those"),
    refusal="it is not read either",
    loaders=("temporal",),
    reads="nothing: latents depend on the tokens before",
)
