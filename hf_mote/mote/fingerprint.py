"""What ties a config to the model it was made for: type, layers, experts, top-k and a hash of the router weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from hf_mote.errors import ModelMismatchError
from hf_mote.routing.discover import RouterSite

__all__ = ["check_fingerprint", "fingerprint_of"]


def fingerprint_of(model: nn.Module, sites: Sequence[RouterSite]) -> dict[str, Any]:
    """Return a model's fingerprint, JSON-native.

    Args:
        model (`nn.Module`): The model.
        sites (`Sequence[RouterSite]`): Its router sites.

    Returns:
        `dict`: `model_type`; `layers`, `num_experts` and `top_k`, one entry for each router; `router_sha256`, over
        router weights and selection biases as bfloat16 so that it is the same whatever dtype they were loaded in, or
        `None` for a model on the meta device.
    """
    return {
        "model_type": _model_type(model, sites),
        "layers": [site.layer for site in sites],
        "num_experts": [site.num_experts for site in sites],
        "top_k": [site.top_k for site in sites],
        "router_sha256": _hash(sites),
    }


def check_fingerprint(
    fingerprint: dict[str, Any], model: nn.Module, sites: Sequence[RouterSite], *, where: str
) -> None:
    """Raise [`ModelMismatchError`] unless a fingerprint is the model's.

    Args:
        fingerprint (`dict`): What `fingerprint_of` returned for the model that the config was made for.
        model (`nn.Module`): The model it meets.
        sites (`Sequence[RouterSite]`): The model's router sites.
        where (`str`): The place of the fingerprint, for the error.
    """
    live = fingerprint_of(model, sites)
    for key in ("model_type", "layers", "num_experts", "top_k"):
        if fingerprint[key] != live[key]:
            raise ModelMismatchError(
                f"{where}.{key}",
                "the config was made for another model",
                got=_brief(live[key]),
                expected=_brief(fingerprint[key]),
                fix="Load the model that the config names, or make a config for this one with MoTEConfig.for_model.",
            )
    made, now = fingerprint["router_sha256"], live["router_sha256"]
    if made is not None and now is not None and made != now:
        raise ModelMismatchError(
            f"{where}.router_sha256",
            "the config was made for a model of the same shape with other router weights",
            got=now[:12],
            expected=made[:12],
            fix="Expert indices mean nothing in another training run. If the routers were only fine-tuned and the "
            "experts still do the same, make the config anew with MoTEConfig.for_model.",
        )


def _model_type(model: nn.Module, sites: Sequence[RouterSite]) -> str:
    """The text model's type: the config that the routers' own family carries."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    return str(getattr(text, "model_type", type(sites[0].module).__name__))


def _hash(sites: Sequence[RouterSite]) -> str | None:
    digest = hashlib.sha256()
    for site in sites:
        with align_module_device(site.module):
            for _, parameter in sorted(site.module.named_parameters(), key=lambda item: item[0]):
                if parameter.is_meta:
                    return None
                digest.update(_bytes(parameter))
        bias = site.selection_bias()
        if bias is not None and bias.is_meta:
            return None
        if bias is not None:
            digest.update(_bytes(bias))
    return digest.hexdigest()


def _bytes(values: Tensor) -> bytes:
    """Values as bfloat16, the same whatever dtype they were loaded in."""
    return values.detach().to(device="cpu", dtype=torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(value) if isinstance(value, list) else 1} entries)"
