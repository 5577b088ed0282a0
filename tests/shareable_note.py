"""The smallest object that saves, loads and is pushed: a text in a JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_mote.hub import Shareable, read_json, write_json


class Note(Shareable):
    """Stored in git, as JSON is."""

    file_name = "note.json"

    def __init__(self, text: Any) -> None:
        self.text = text

    def _to_file(self, path: Path) -> None:
        write_json(path, {"text": self.text})

    @classmethod
    def _from_file(cls, path: Path) -> Note:
        return cls(read_json(path)["text"])
