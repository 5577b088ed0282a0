"""What a reader is, of which `readers.py` holds the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from mutations import Mutation

__all__ = ["Reader"]


@dataclass(frozen=True)
class Reader:
    """Something that reads.

    Attributes:
        name (`str`): What the table calls it.
        make (`Callable[[Path], None]`): Fills an empty folder with valid files.
        read (`Callable[[Path], Any]`): Reads the folder, and uses what it accepted.
        mutations (`Mapping[str, Mutation]`): How to damage which file.
        share (`float`): Of the inputs; less where an input takes long.
        extra (`Callable[[Path, Random], str]`, *optional*): Something else to do to the folder, now and then.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    mutations: Mapping[str, Mutation]
    share: float = 1.0
    extra: Callable[[Path, Random], str] | None = None

    @property
    def needs_no_seed(self) -> bool:
        """Whether what `make` writes is valid, and not the seed of what is read."""
        return "seed" not in self.mutations
