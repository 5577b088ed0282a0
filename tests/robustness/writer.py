"""What a writer is, of which `kill.py` holds the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Writer"]


@dataclass(frozen=True)
class Writer:
    """Something that writes.

    Attributes:
        name (`str`): What the table calls it.
        write (`Callable[[Path, int], Any]`): Writes state 1 or 2 into a folder, which may hold the other one.
        read (`Callable[[Path], int]`): Which of them a folder holds, 0 for nothing; raises for anything else.
        replaces (`bool`): Whether it may be written over; otherwise only a folder without it is tried.
        least (`int`): Places at which it is killed, at least, in a full run.
    """

    name: str
    write: Callable[[Path, int], Any]
    read: Callable[[Path], int]
    replaces: bool = True
    least: int = 20
