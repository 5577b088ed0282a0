"""Weights that a quantisation has packed: recognised by their form, for any library, and unpacked.

A linear map states its width in `in_features`, for every storage of its weight. It is packed if its weight is not a
plain tensor of floats of its own two numbers: bytes, a tensor subclass that stands for them, or parts under other
names. A packed map is unpacked by running it on the unit vectors, which gives its matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Feed", "feed_of", "num_outputs", "packed_parts", "unpacked"]

PLAIN = (Tensor, nn.Parameter, nn.Buffer)
HALF = 2  # bytes; floats of one byte are codes that a scale belongs to


class Feed(NamedTuple):
    """The input of a router.

    Attributes:
        width (`int`): The hidden size that it reads.
        dtype (`torch.dtype`): The dtype of the hidden states.
        device (`torch.device`): Where they must be.
    """

    width: int
    dtype: torch.dtype
    device: torch.device


def packed_parts(router: nn.Module) -> dict[str, str]:
    """Return the parts of a router whose weights are packed, by their path (`""` is the router), each with its kind.

    Args:
        router (`nn.Module`): The router, or any module. It is not run.
    """
    found: dict[str, str] = {}
    for path, part in router.named_modules():
        if _is_linear(part):
            if not _holds_its_matrix(part):
                found[path] = _kind(part)
            continue
        for parameter in part._parameters.values():
            if parameter is not None and not _is_plain(parameter):
                found[path] = type(part if type(parameter) in PLAIN else parameter).__name__
    # A wrapper, such as LoRA's, has the two numbers of what it wraps, and does more.
    return {path: kind for path, kind in found.items() if not any(p != path and _inside(path, p) for p in found)}


def feed_of(router: nn.Module, block: nn.Module | None = None) -> Feed:
    """Return the input that a router takes, for every storage of its weights.

    Args:
        router (`nn.Module`): The router, its weights in place.
        block (`nn.Module`, *optional*): The module that holds it, which gives the dtype if the router is packed.
    """
    held = [*router.parameters(), *router.buffers()]
    plain = [tensor for tensor in router.parameters() if _is_plain(tensor)]
    around = (tensor for tensor in (block.parameters() if block is not None else ()) if _is_plain(tensor))
    source = plain[0] if plain else next(around, None)
    dtype = source.dtype if source is not None else torch.get_default_dtype()
    device = (plain or held)[0].device if held else torch.device("cpu")
    return Feed(_width(router), dtype, device)


def unpacked(part: nn.Module, dtype: torch.dtype) -> Tensor:
    """Return the matrix of a packed linear map, `(out_features, in_features)`.

    The map is run; give a copy, since some maps put off a last packing until they first run.

    Args:
        part (`nn.Module`): The map.
        dtype (`torch.dtype`): What to run it in.
    """
    width = int(part.in_features)  # type: ignore[arg-type]
    held = next((tensor for tensor in (*part.parameters(), *part.buffers()) if not tensor.is_meta), None)
    units = torch.eye(width, dtype=dtype, device=None if held is None else held.device)
    weight = getattr(part, "weight", None)
    if isinstance(part, nn.Linear) and isinstance(weight, Tensor) and _is_float(weight):
        # The weight itself stands for its matrix; the forward of a router that is a linear map does more.
        return nn.functional.linear(units, weight).T.contiguous()
    matrix: Tensor = part(units) - part(torch.zeros_like(units[:1]))
    return matrix.T.contiguous()


def num_outputs(router: nn.Module) -> set[int]:
    """Return how many outputs the linear maps of a router have, for every storage of their weights.

    Args:
        router (`nn.Module`): The router, or any module. It is not run.
    """
    linear = {int(part.out_features) for part in router.modules() if _is_linear(part)}  # type: ignore[arg-type]
    return linear | {weight.shape[0] for weight in router.parameters() if weight.ndim == 2 and _is_plain(weight)}


def _is_linear(part: nn.Module) -> bool:
    return isinstance(getattr(part, "in_features", None), int) and isinstance(getattr(part, "out_features", None), int)


def _holds_its_matrix(part: nn.Module) -> bool:
    weight = getattr(part, "weight", None)
    numbers = sorted((int(part.out_features), int(part.in_features)))  # type: ignore[arg-type]
    return isinstance(weight, Tensor) and _is_plain(weight) and sorted(weight.shape) == numbers


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor holds its own numbers, or a shard of them."""
    return (type(tensor) in PLAIN or hasattr(tensor, "full_tensor")) and _is_float(tensor)


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() >= HALF


def _kind(part: nn.Module) -> str:
    weight = getattr(part, "weight", None)
    if type(part) is nn.Linear and isinstance(weight, Tensor):
        return type(weight).__name__
    return type(part).__name__


def _inside(path: str, outer: str) -> bool:
    return not outer or path.startswith(f"{outer}.")


def _width(router: nn.Module) -> int:
    named = (getattr(router, name, None) for name in ("hidden_size", "hidden_dim"))
    width = next((width for width in named if width), None)
    if width is None:
        width = next((part.in_features for part in router.modules() if _is_linear(part)), None)
    if width is None:
        width = next(router.parameters()).shape[-1]
    return int(width)  # type: ignore[arg-type]
