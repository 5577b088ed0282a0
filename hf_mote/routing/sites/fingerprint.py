"""Identifies the model that a config was made for: type, layers, experts, top-k, a hash of the router weights.

A fingerprint also holds a sample of the other weights, from `sampled_weights.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_mote.errors import ModelMismatchError
from hf_mote.routing.sites.packed import feed_of, packed_parts, unpacked
from hf_mote.routing.sites.sampled_weights import differing
from hf_mote.routing.sites.scratch_copy import scratch_copy
from hf_mote.routing.sites.site import RouterSite

__all__ = ["SAMPLED", "check_fingerprint", "fingerprint_of", "same_weights"]

SAMPLED = "sampled_weights"
"""Key of the result of `sample_weights`; older fingerprints lack it."""

PACKED = "quantised:"
"""Prefix of the digest of routers whose weights are packed by a quantisation."""


def fingerprint_of(model: nn.Module, sites: Sequence[RouterSite]) -> dict[str, Any]:
    """Return a model's fingerprint, JSON-native.

    Args:
        model (`nn.Module`): The model.
        sites (`Sequence[RouterSite]`): Its router sites.

    Returns:
        `dict`: `model_type`; `layers`, `num_experts` and `top_k`, one entry for each router; `router_sha256`, over
        router weights and selection biases as bfloat16 so that it does not depend on the dtype they were loaded in, or
        `None` for a model on the meta device. Where a quantisation has packed weights of a router, it is over the
        unpacked weights, and begins with `"quantised:"`.
    """
    return {
        "model_type": _model_type(model, sites),
        "layers": [site.layer for site in sites],
        "num_experts": [site.num_experts for site in sites],
        "top_k": [site.top_k for site in sites],
        "router_sha256": _hash(sites),
    }


def check_fingerprint(
    fingerprint: dict[str, Any],
    live: dict[str, Any],
    sites: Sequence[RouterSite],
    *,
    where: str,
    anew: str = "make the config anew with MoTEConfig.for_model",
) -> None:
    """Raise [`ModelMismatchError`] unless a fingerprint is the model's.

    Args:
        fingerprint (`dict`): What `fingerprint_of` returned for the model that the config was made for.
        live (`dict`): That of the present model.
        sites (`Sequence[RouterSite]`): The router sites of that model.
        where (`str`): The place of the fingerprint, for the error.
        anew (`str`, *optional*): How the same is made for the present model, for the error.
    """
    for key in ("model_type", "layers", "num_experts", "top_k"):
        if fingerprint[key] != live[key]:
            raise ModelMismatchError(
                f"{where}.{key}",
                "the config was made for another model",
                got=_brief(live[key]),
                expected=_brief(fingerprint[key]),
                fix=f"Load the model that it was made for, or {anew} for this one.",
            )
    _check_weights(fingerprint["router_sha256"], live["router_sha256"], sites, f"{where}.router_sha256", anew)
    found, compared = differing(fingerprint.get(SAMPLED), live.get(SAMPLED))
    if found:
        raise ModelMismatchError(
            f"{where}.{SAMPLED}",
            "the config was made for a model with the same routers and other weights elsewhere, as its fine-tune has",
            got=f"{len(found)} of {compared} weights that were compared differ, such as {found[0]}",
            fix="What was measured on the one need not hold on the other. allow_other_weights=True "
            f"(--allow-other-weights) applies it, and what is measured then says so; or {anew}.",
        )


def same_weights(made: dict[str, Any], live: dict[str, Any]) -> bool:
    """Return whether two fingerprints show no difference in weights.

    Args:
        made (`dict`): One fingerprint.
        live (`dict`): Another, of a model of the same shape.
    """
    routers = {made["router_sha256"], live["router_sha256"]} - {None}
    return len(routers) < 2 and not differing(made.get(SAMPLED), live.get(SAMPLED))[0]


def _check_weights(made: str | None, now: str | None, sites: Sequence[RouterSite], where: str, anew: str) -> None:
    """Raise unless the digests of router weights are equal; packed weights are not compared with plain ones."""
    kinds = sorted({kind for site in sites for kind in packed_parts(site.module).values()})
    if made is None or now is None or made == now:
        return
    was, is_packed = made.startswith(PACKED), now.startswith(PACKED)
    if is_packed and not was:
        raise ModelMismatchError(
            where,
            "the config was made for routers in full precision, and those of this model are quantised, so that they "
            "cannot be compared",
            got=", ".join(kinds),
            expected=made[:12],
            fix="Load the model with its routers left in full precision, by the quantisation's list of modules not to "
            f"convert; or {anew} for the quantised model.",
        )
    if was and not is_packed:
        raise ModelMismatchError(
            where,
            "the config was made for quantised routers, and those of this model are in full precision, so that they "
            "cannot be compared",
            got=now[:12],
            expected=made[: len(PACKED) + 12],
            fix=f"Load the model quantised as it was, or {anew}.",
        )
    if is_packed:
        raise ModelMismatchError(
            where,
            "the config was made for quantised routers that unpack to other weights",
            got=f"{now[: len(PACKED) + 12]} ({', '.join(kinds)})",
            expected=made[: len(PACKED) + 12],
            fix=f"They may be quantised otherwise, or be of another model: {anew} if the experts are the same.",
        )
    half = any(parameter.dtype == torch.float16 for site in sites for parameter in site.module.parameters())
    raise ModelMismatchError(
        where,
        "the config was made for a model of the same shape with other router weights",
        got=f"{now[:12]}, loaded in float16" if half else now[:12],
        expected=made[:12],
        fix=(
            "float16 has no digits for the smallest weights: load the model in bfloat16 or float32, where the hash "
            "does not depend on the dtype. If it still differs, the model is another one."
            if half
            else "Expert indices mean nothing in another training run. On a fine-tune of the model it was made for, "
            "allow_other_weights=True (--allow-other-weights) applies it, and what is measured then says so; "
            f"or {anew}."
        ),
    )


def _model_type(model: nn.Module, sites: Sequence[RouterSite]) -> str:
    """The text model's type: the config that the routers' own family carries."""
    inside = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    config = getattr(model, "config", None) or getattr(next(inside, None), "config", None)
    text = config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config
    return str(getattr(text, "model_type", type(sites[0].module).__name__))


def _hash(sites: Sequence[RouterSite]) -> str | None:
    digest = hashlib.sha256()
    packed = False
    for site in sites:
        with align_module_device(site.module):
            parts = packed_parts(site.module)
            packed |= bool(parts)
            tensors = [tensor for _, tensor in sorted(_parameters(site, parts).items())]
            if any(tensor.is_meta for tensor in (*tensors, *site.module.parameters())):
                return None
            for tensor in tensors:
                digest.update(_bytes(tensor))
            for matrix in _matrices(site, parts):
                digest.update(_bytes(matrix))
        bias = site.selection_bias()
        if bias is not None and bias.is_meta:
            return None
        if bias is not None:
            digest.update(_bytes(bias))
    return f"{PACKED if packed else ''}{digest.hexdigest()}"


def _matrices(site: RouterSite, parts: dict[str, str]) -> list[Tensor]:
    """The unpacked weights of a router's packed parts, in the order of their paths."""
    if not parts:
        return []
    with scratch_copy(site.module) as scratch:
        scratch.eval()
        dtype = feed_of(scratch, site.block).dtype
        return [unpacked(scratch.get_submodule(path), dtype) for path in sorted(parts)]


def _parameters(site: RouterSite, packed: Iterable[str]) -> dict[str, Tensor]:
    """The router's parameters by name, without packed parts, with LoRA merged."""
    elsewhere = {id(held) for path in packed for held in site.module.get_submodule(path).parameters()}
    parts = site.block.children() if site.block is not None else iter(())
    router = next((part for part in parts if any(inner is site.module for inner in part.modules())), site.module)
    adapted: dict[str, Any] = {path: part for path, part in router.named_modules() if getattr(part, "lora_A", None)}
    # DoRA also scales the sum; its parameters are hashed separately.
    added = not any(getattr(part, "lora_magnitude_vector", None) for part in adapted.values())
    found: dict[str, Tensor] = {
        name.replace("base_layer.", ""): parameter
        for name, parameter in router.named_parameters()
        if id(parameter) not in elsewhere and not (added and any(part.startswith("lora_") for part in name.split(".")))
    }
    for path, part in adapted.items() if added else ():
        name = f"{path}.{getattr(part, 'parameter_name', 'weight')}".replace("base_layer.", "").lstrip(".")
        for adapter in part.active_adapters:
            # An adapter on a packed part is included when the part is unpacked.
            if name in found and adapter in part.lora_A and not part.merged and not part.disable_adapters:
                found[name] = found[name] + part.get_delta_weight(adapter)
    return found


def _bytes(values: Tensor) -> bytes:
    """Values as bfloat16, independent of the dtype they were loaded in."""
    if hasattr(values, "full_tensor"):
        values = values.full_tensor()  # in shards; every process must ask for it
    return values.detach().to(device="cpu", dtype=torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


def _brief(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(value) if isinstance(value, list) else 1} entries)"
