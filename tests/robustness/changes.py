"""Changes of one value of a reader's files, for tests of what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from readers import READERS

from hf_mote.files import read_tensors, write_tensors

__all__ = ["BY_NAME", "change_document", "change_tensors", "drop", "put"]

BY_NAME = {reader.name: reader for reader in READERS}


def put(*places: Any, value: Any) -> Callable[[Any], Any]:
    """Return what sets a value of a JSON document."""

    def change(document: Any) -> Any:
        if not places:
            return value
        inner = document
        for place in places[:-1]:
            inner = inner[place]
        inner[places[-1]] = value
        return document

    return change


def drop(*places: Any) -> Callable[[Any], Any]:
    """Return what takes a value of a JSON document out."""

    def change(document: Any) -> Any:
        inner = document
        for place in places[:-1]:
            inner = inner[place]
        del inner[places[-1]]
        return document

    return change


def change_document(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON or YAML document; of another file the whole is given."""
    whole = path.suffix in (".json", ".yaml")
    load = json.loads if path.suffix == ".json" else yaml.safe_load
    found = change(load(path.read_text()) if whole else None)
    path.write_text(found if isinstance(found, str) else json.dumps(found))


def change_tensors(path: Path, kind: str, change: Callable[[Any, Any], Any]) -> None:
    """Change tensors and metadata of a file of this package."""
    tensors, metadata = read_tensors(path, kind=kind)
    change(tensors, metadata)
    write_tensors(path, tensors, metadata)
