"""A KeyboardInterrupt anywhere in attaching or removing: everything is attached or nothing is."""

from __future__ import annotations

import linecache
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

import hf_mote
from hf_mote import MoTEConfig, apply_mote, record_routing
from hf_mote.hooks import LOCK, Intervention

PACKAGE = str(Path(hf_mote.__file__).parent)
HOOKING = str(Path(nn.Module.register_forward_hook.__code__.co_filename))
IDS = torch.tensor([[5, 6, 7, 8]])


class InterruptAt:
    """Raises KeyboardInterrupt at the n-th line that runs in our package or in torch's registration of hooks."""

    def __init__(self, place: int) -> None:
        self.left = place

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        code = frame.f_code
        hooking = code.co_filename == HOOKING and code.co_name.startswith("register_forward")
        if not code.co_filename.startswith(PACKAGE) and not hooking:
            return None
        # The interpreter looks for interrupts at calls and jumps. Were one raised on these lines, no `with` would give
        # its lock back, whoever wrote it.
        source = linecache.getline(code.co_filename, frame.f_lineno).strip()
        if event == "line" and source not in ("with LOCK:", "try:"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def interrupted(place: int, act: Callable[[], object]) -> bool:
    """Whether the interrupt came before the act was over."""
    before = sys.gettrace()
    sys.settrace(InterruptAt(place))
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def free() -> bool:
    """Whether another thread can take the lock."""
    found: list[bool] = []

    def take() -> None:
        found.append(LOCK.acquire(timeout=5))
        if found[0]:
            LOCK.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return found[0]


def num_traces(model: nn.Module) -> int:
    """Hooks and stand-ins for methods that are left on a model."""
    found = 0
    for module in model.modules():
        for name in vars(module):
            if "forward" in name and "hook" in name and isinstance(getattr(module, name), dict):
                found += len(getattr(module, name))
        found += sum("batch" in name for name in vars(module))
    return found


ACTS: dict[str, Callable[[nn.Module], Intervention | Any]] = {
    "apply_mote": lambda model: apply_mote(model, MoTEConfig(suppress=[[1, 2], [2, 3]])),
    "apply_mote, scope": lambda model: apply_mote(model, MoTEConfig(suppress=[[1, 2]], scope="generation")),
    "record_routing": lambda model: record_routing(model),
}


@pytest.mark.parametrize("act", ACTS)
def test_interrupt_while_attaching_leaves_nothing_behind(act: str) -> None:
    model = tiny_model("mixtral")
    logits = model(IDS).logits
    handles: list[Any] = []
    place = 1
    while interrupted(place, lambda: handles.append(ACTS[act](model))):
        assert num_traces(model) == 0, f"interrupted at line {place}"
        assert handles == []
        place += 1 if place < 40 else 3
    assert len(handles) == 1
    assert place > 50
    assert num_traces(model) > 0
    handles[0].remove()
    assert torch.equal(model(IDS).logits, logits)
    assert free()


@pytest.mark.parametrize("act", ACTS)
def test_interrupt_while_removing_removes_all(act: str) -> None:
    model = tiny_model("mixtral")
    place = 1
    while True:
        handle = ACTS[act](model)
        done = not interrupted(place, handle.remove)
        # On the first lines nothing has begun, and the handle is whole.
        assert num_traces(model) == 0 or (place <= 4 and handle.active), f"interrupted at line {place}"
        handle.remove()
        assert num_traces(model) == 0
        if done:
            break
        place += 1
    assert place > 10
    assert free()
