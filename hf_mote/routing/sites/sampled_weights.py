"""A sample of the weights outside the routers, which distinguishes a fine-tune with unchanged routers from its base.

It is taken from plain tensors, by names that wrappers, adapters and shards do not change, and only what two models
both have is compared. So the same model, loaded in another way, counts as the same.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_mote.routing.sites.packed import packed_parts
from hf_mote.routing.sites.site import RouterSite

__all__ = ["differing", "sample_weights"]

VALUES = 2**16  # of a tensor, or of tensors that differ in a number of their name
RUN = 2**10  # values that follow each other
LARGE = 2**28  # values of a tensor that is not fetched from elsewhere to be sampled
_FLOAT16 = "float16"
# Names of wrappers in the path of a module.
_WRAPPERS = ("_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_orig_mod", "base_layer", "module")


def sample_weights(model: nn.Module, sites: Sequence[RouterSite]) -> dict[str, str] | str:
    """Return digests of a model's weights outside its routers, or the reason why there are none.

    Sampled are up to 65,536 values of each tensor of the first, the middle and the last decoder layer that have
    routers, and of the embeddings of tokens and the output; as bfloat16, so that they do not depend on the dtype they
    were loaded in, and with LoRA merged. A tensor that a library keeps elsewhere or in
    shards is left out if it has more than 268 million values.

    Args:
        model (`nn.Module`): The model, bare or wrapped.
        sites (`Sequence[RouterSite]`): Its router sites.

    Returns:
        `dict[str, str]`: by name, shape and digest, as `"32x64:0a1b..."`. Or a text, where nothing can be compared: a
        model that is quantised, that was loaded in float16, whose weights are not there, or that is not transformers'.
    """
    pretrained = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    if not pretrained:
        return "not sampled: no model of transformers"
    if any(getattr(part.config, "quantization_config", None) is not None for part in pretrained):
        return "not sampled: quantised"
    layers = {site.layer: _layer_of(model, site) for site in (sites[0], sites[len(sites) // 2], sites[-1])}
    if any(map(_is_packed, layers.values())):
        return "not sampled: packed by a quantisation, or in shards"
    routers = {id(held) for site in sites for held in site.module.parameters()}
    found: dict[str, str] = {}
    with torch.no_grad():
        for number, layer in layers.items():
            found |= {f"layers.{number}.{name}": one for name, one in _digests(layer, routers)}
        for name, ends in (("embeddings", "get_input_embeddings"), ("output", "get_output_embeddings")):
            part = _end_of(pretrained, ends)
            if part is not None and not _is_packed(part):
                sampled = dict(_digests(part, routers)).get("weight")
                found |= {} if sampled is None else {name: sampled}
    if _FLOAT16 in found.values():
        return "not sampled: loaded in float16, which has no digits for the smallest weights"
    return dict(sorted(found.items())) or "not sampled: the weights are not there"


def differing(made: object, now: object) -> tuple[list[str], int]:
    """Return the names of sampled weights that differ between two models, and how many could be compared.

    Args:
        made (`object`): What [`sample_weights`] returned for one model; `None` if it was not taken.
        now (`object`): What it returned for another.
    """
    if not isinstance(made, Mapping) or not isinstance(now, Mapping):
        return [], 0
    same_shape = [name for name in made if name in now and _shape(made[name]) == _shape(now[name])]
    return [name for name in same_shape if made[name] != now[name]], len(same_shape)


def _is_packed(part: nn.Module) -> bool:
    """Whether weights of a part of a model are packed; adapters have no weight of their own."""
    return any(not hasattr(part.get_submodule(path), "get_base_layer") for path in packed_parts(part))


def _shape(sampled: str) -> str:
    return sampled.partition(":")[0]


def _layer_of(model: nn.Module, site: RouterSite) -> nn.Module:
    """The decoder layer around a router: its path up to the first number in it."""
    parts = site.path.split(".")
    first = next(at for at, part in enumerate(parts) if part.isdigit())
    return model.get_submodule(".".join(parts[: first + 1]))


def _end_of(pretrained: Sequence[PreTrainedModel], ends: str) -> nn.Module | None:
    for part in pretrained:
        try:
            found = getattr(part, ends)()
        except (AttributeError, NotImplementedError):  # models without such a part
            continue
        if isinstance(found, nn.Module):
            return found
    return None


class _Held(NamedTuple):
    """A parameter: its holder, its name there, and the adapters that are on around it."""

    holder: nn.Module
    name: str
    adapters: list[nn.Module]


def _digests(part: nn.Module, without: set[int]) -> Iterator[tuple[str, str]]:
    """Names in a part of a model, with shape and digest; tensors whose names differ in a number are one."""
    alike: dict[str, list[_Held]] = defaultdict(list)
    for path, held in _parameters(part, without):
        alike[".".join("*" if word.isdigit() else word for word in path)].append(held)
    for name, members in alike.items():
        digest, shape = hashlib.sha256(), ""
        for held in members:
            with ExitStack() as stack:
                for module in (held.holder, *(inner for adapter in held.adapters for inner in _parts_of(adapter))):
                    stack.enter_context(align_module_device(module))
                tensor = _with_adapters(held)
                if tensor is None or tensor.is_meta:
                    break
                if tensor.dtype == torch.float16:
                    yield name, _FLOAT16
                    break
                shape = "x".join(map(str, tensor.shape))
                digest.update(_sample(tensor, max(RUN, VALUES // len(members))))
                for adapter in held.adapters:
                    if not _adds(adapter):
                        for own in _own(adapter):
                            digest.update(_sample(own, RUN))
        else:
            size = shape if len(members) == 1 else f"{len(members)} of {shape}"
            yield name, f"{size}:{digest.hexdigest()[:16]}"


def _parameters(part: nn.Module, without: set[int]) -> Iterator[tuple[list[str], _Held]]:
    """The parameters that a part of a model has by itself, by path; copies that PEFT trains where they are on."""
    modules = dict(part.named_modules())
    tuned = {path: module for path, module in modules.items() if hasattr(module, "get_base_layer")}
    around: dict[tuple[int, str], list[nn.Module]] = defaultdict(list)
    for module in tuned.values():
        around[id(module.get_base_layer()), getattr(module, "parameter_name", "weight")].append(module)
    copied = {
        path: _kept(module)
        for path, module in modules.items()
        if hasattr(module, "original_module") and hasattr(module, "active_adapters")
    }
    for path, holder in modules.items():
        words = path.split(".") if path else []
        outer = [".".join(words[:at]) for at in range(len(words) + 1)]
        if any(one in tuned and not _inside(path, _joined(one, "base_layer")) for one in outer):
            continue
        if any(one in copied and not _inside(path, _joined(one, copied[one])) for one in outer):
            continue
        for at, one in enumerate(outer):
            if one in copied:
                steps = len(copied[one].split("."))
                words[at : at + steps] = [""] * steps
        words = [word for word in words if word and word not in _WRAPPERS]
        for name, parameter in holder._parameters.items():
            if parameter is None or id(parameter) in without:
                continue
            mine = around.get((id(holder), name), ())
            adapters = [module for module in mine if not module.disable_adapters and not module.merged]
            yield [*words, name], _Held(holder, name, adapters)


def _with_adapters(held: _Held) -> Tensor | None:
    """A parameter with LoRA merged; `None` for one that is too large to be fetched or merged."""
    tensor = held.holder._parameters[held.name]
    assert tensor is not None
    away = tensor.is_meta or hasattr(tensor, "full_tensor") or bool(held.adapters)
    if away and tensor.numel() > LARGE or any(own.is_meta for adapter in held.adapters for own in _own(adapter)):
        return None
    for adapter in filter(_adds, held.adapters):
        for name in adapter.active_adapters:  # type: ignore[union-attr]
            if name in adapter.lora_A or name in getattr(adapter, "lora_embedding_A", ()):  # type: ignore[operator]
                tensor = tensor + adapter.get_delta_weight(name)  # type: ignore[operator]
    return tensor


def _adds(adapter: nn.Module) -> bool:
    """Whether an adapter adds to its weight, as LoRA does; DoRA and others do not only add."""
    return hasattr(adapter, "lora_A") and not getattr(adapter, "lora_magnitude_vector", None)


def _parts_of(adapter: nn.Module) -> list[nn.Module]:
    """The modules of an adapter, without the module it wraps."""
    return [module for path, module in adapter.named_modules() if path.split(".")[0] != "base_layer"]


def _own(adapter: nn.Module) -> list[Tensor]:
    """The parameters of an adapter, without those of the module it wraps."""
    return [held for name, held in adapter.named_parameters() if not name.startswith("base_layer.")]


def _kept(wrapper: Any) -> str:
    """Which of the modules that PEFT keeps side by side runs."""
    names = (
        []
        if wrapper.disable_adapters
        else [n for n in wrapper.active_adapters if n in getattr(wrapper, "modules_to_save", ())]
    )
    return f"modules_to_save.{names[0]}" if names else "original_module"


def _inside(path: str, outer: str) -> bool:
    return not outer or path == outer or path.startswith(f"{outer}.")


def _joined(outer: str, inner: str) -> str:
    return f"{outer}.{inner}" if outer else inner


def _sample(tensor: Tensor, number: int) -> bytes:
    """Up to a number of values, in evenly spread runs, as bfloat16."""
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()  # in shards; every process must ask for it
    flat = tensor.detach().reshape(-1)
    if flat.numel() > number:
        runs = max(1, number // RUN)
        flat = flat[: flat.numel() // runs * runs].view(runs, -1)[:, :RUN].reshape(-1)
    return flat.to(device="cpu", dtype=torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()
