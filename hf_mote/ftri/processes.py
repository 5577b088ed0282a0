"""Several processes image together: who does which batch, and how all get everything.

Under `accelerate launch` or `torchrun` each process takes every n-th batch; at the end all have all results.
"""

from __future__ import annotations

import os
from typing import TypeVar

import torch

__all__ = ["gathered", "place_among_processes"]

_Item = TypeVar("_Item")


def place_among_processes(device: torch.device) -> tuple[int, int]:
    """Return this process's number and how many there are: (0, 1) outside of a launcher.

    Args:
        device (`torch.device`): Where the model is; on a CPU the processes talk through gloo.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not launched and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    # Imported here, since making its state starts the communication.
    from accelerate import PartialState

    state = PartialState(cpu=True) if device.type == "cpu" else PartialState()
    return state.process_index, state.num_processes


def gathered(items: dict[int, _Item], num_processes: int) -> dict[int, _Item]:
    """Return the items of all processes.

    Args:
        items (`dict[int, Any]`): This process's, by number; no number is in two processes.
        num_processes (`int`): How many processes there are.
    """
    if num_processes == 1:
        return items
    everyone: list[dict[int, _Item]] = [{} for _ in range(num_processes)]
    torch.distributed.all_gather_object(everyone, items)
    return {number: item for part in everyone for number, item in part.items()}
