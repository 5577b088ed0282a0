"""A copy of a router to run and change, without effect on the router, the model or torch's random state.

What a router's forward changes while it runs (running statistics, load counters, a list of what it saw) is changed in
the copy. Used by `discover` and `experiments`, which run routers that the table does not list.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

__all__ = ["scratch_copy"]

MOST_COPIED_BYTES = (
    2**28
)  # bytes of parameters; a router of 512 experts on a hidden size of 16384 has 32 MiB in float32

# Attributes that accelerate sets on a module: with them the copy would run the original, and hold all weights.
_OF_ACCELERATE = ("_hf_hook", "_old_forward", "forward")


@contextmanager
def scratch_copy(router: nn.Module) -> Iterator[nn.Module]:
    """Yield a copy of a router without hooks, its weights in place, and restore torch's random state afterwards.

    Parameters, buffers and submodules are copies, tied where the router's are, and so are its other attributes:
    tensors, random generators, containers, objects. Shared are modules outside of it, objects that cannot be copied,
    and the parameters of modules that are too large for a router, such as a whole block of experts. Gradients are off.

    Args:
        router (`nn.Module`): The router; offloaded weights are fetched.
    """
    with torch.no_grad(), ExitStack() as stack:
        large = sum(parameter.nbytes for parameter in router.parameters()) > MOST_COPIED_BYTES
        for part in [router] if large else router.modules():
            stack.enter_context(align_module_device(part))
        devices = {tensor.device for tensor in (*router.parameters(), *router.buffers())}
        # The random state of "mps" is not available by device.
        for kind in {device.type for device in devices} - {"cpu", "meta", "mps"}:
            stack.enter_context(torch.random.fork_rng([d for d in devices if d.type == kind], device_type=kind))
        stack.enter_context(torch.random.fork_rng([]))
        yield _copy_of(router, shared=router.parameters() if large else ())


def _copy_of(router: nn.Module, shared: Iterable[Tensor]) -> nn.Module:
    copies: dict[int, Any] = {id(part): copy.copy(part) for part in router.modules()}
    copies |= {id(tensor): tensor for tensor in shared}
    for part in router.modules():
        held = dict(vars(part))
        if "_hf_hook" in held:
            held = {name: value for name, value in held.items() if name not in _OF_ACCELERATE}
        twin = copies[id(part)].__dict__
        twin.clear()
        for name, value in held.items():
            is_hooks = name.startswith(("_forward_", "_backward_")) and "hooks" in name
            twin[name] = OrderedDict() if is_hooks else _copied(value, copies)
    twin_of_router: nn.Module = copies[id(router)]
    return twin_of_router


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    """A copy of an attribute, made once; the object itself if it is not the router's or cannot be copied."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, nn.Module | type):
        return value
    try:
        return _new(value, copies)
    except Exception:  # foreign code may hold anything: locks, process groups, files
        return value


def _new(value: Any, copies: dict[int, Any]) -> Any:
    if isinstance(value, tuple):
        items = [_copied(item, copies) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, MethodType):
        return MethodType(value.__func__, _copied(value.__self__, copies))
    if isinstance(value, partial):
        named = {name: _copied(item, copies) for name, item in value.keywords.items()}
        return partial(_copied(value.func, copies), *(_copied(item, copies) for item in value.args), **named)
    twin: Any
    if isinstance(value, nn.Parameter):
        twin = copy.deepcopy(value)
    elif isinstance(value, Tensor):
        twin = value.detach().clone()
    elif isinstance(value, torch.Generator):
        twin = torch.Generator(value.device).set_state(value.get_state())
    else:
        twin = copy.copy(value)
    if twin is value:
        return value
    copies[id(value)] = twin
    if isinstance(value, dict):
        for key, item in value.items():
            twin[key] = _copied(item, copies)
    elif isinstance(value, list | deque):
        for place, item in enumerate(value):
            twin[place] = _copied(item, copies)
    elif not isinstance(value, Tensor) and hasattr(value, "__dict__"):
        for name, item in vars(value).items():
            vars(twin)[name] = _copied(item, copies)
    return twin
