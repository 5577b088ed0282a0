"""Several processes image together: which process does which batch, and how all get all results.

Under `accelerate launch` or `torchrun` each process takes every n-th batch; at the end all have all results. A process
that fails does so at once, and its launcher ends the others.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState

__all__ = ["gathered", "launched_as", "part", "place_among_processes", "process_state"]

# How long a process that is done waits for one that has long prompts left; torch's 10 or 30 minutes lose long runs.
PATIENCE = timedelta(days=7)

_Item = TypeVar("_Item")


def launched_as() -> tuple[int, int]:
    """Return this process's number and how many there are, as the launcher states them; nothing is started."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def process_state(*, cpu: bool = False) -> PartialState:
    """Return accelerate's state of the processes; communication between them is started if it was not yet.

    Args:
        cpu (`bool`, *optional*, defaults to `False`): Whether to leave accelerators alone.
    """
    # Imported here: the command line asks launched_as() before it loads torch.
    import torch
    from accelerate import PartialState

    # What is not launched takes no timeout.
    several = launched_as()[1] > 1 and not torch.distributed.is_initialized()
    return PartialState(cpu=cpu, timeout=PATIENCE) if several else PartialState(cpu=cpu)


def place_among_processes(device: torch.device) -> tuple[int, int]:
    """Return this process's number and how many there are: (0, 1) outside of a launcher.

    Args:
        device (`torch.device`): Where the model is; on a CPU the processes talk through gloo.
    """
    import torch

    talking = torch.distributed.is_available() and torch.distributed.is_initialized()
    if launched_as()[1] == 1 and not talking:
        return 0, 1
    state = process_state(cpu=device.type == "cpu")
    return state.process_index, state.num_processes


def gathered(items: dict[int, _Item], num_processes: int) -> dict[int, _Item]:
    """Return the items of all processes.

    Args:
        items (`dict[int, Any]`): This process's, by number; no number is in two processes.
        num_processes (`int`): How many processes there are.
    """
    if num_processes == 1:
        return items
    import torch

    everyone: list[dict[int, _Item]] = [{} for _ in range(num_processes)]
    torch.distributed.all_gather_object(everyone, items)
    return {number: item for part in everyone for number, item in part.items()}


def part() -> None:
    """End the communication between the processes when all have their results; a single process does nothing."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
