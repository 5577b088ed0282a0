"""Records from a data set of the `datasets` library: on the Hub, in a local folder, or saved by `save_to_disk`."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from hf_mote.commands.record_files import Record
from hf_mote.errors import DataError, HFMoTEError, UnknownNameError

__all__ = ["dataset_records"]

_MOST = 2_000  # files and folders of a data set; datasets searches all of them for each of its many patterns
_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")


def dataset_records(spec: str) -> list[Record]:
    """Return the records of a data set.

    Args:
        spec (`str`): "name", "name:split" or "name:subset:split"; the split is "train" if none is given. The name is
            a Hub id or a folder.

    Raises:
        [`UnknownNameError`]: if there is no such data set, subset or split, or it is the name of a file.
        [`DataError`]: if the library cannot read it, or would search a very large folder.
    """
    if Path(spec).suffix.lower() in _FILES:
        # Not a data set. Without this check the Hub would be asked, which is slow without a network.
        raise _no_such_file(spec)
    name, subset, split = _parts(spec)
    if os.path.isdir(name):
        # The full path: from "..", datasets makes a folder beside its cache.
        name = os.path.realpath(name)
    # Imported here, because it takes a second, and a prompt file does not need it.
    import datasets

    try:
        if any(os.path.isfile(Path(name) / file) for file in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(name)
            table = _split_of(spec, loaded, split) if isinstance(loaded, datasets.DatasetDict) else loaded
        else:
            _check_size(spec, name)
            table = datasets.load_dataset(name, subset, split=split)
    except HFMoTEError:
        raise
    except datasets.exceptions.DatasetsError as error:
        raise DataError(repr(spec), "datasets cannot read it", got=_first_line(error)) from error
    # OSError, ValueError, and errors of pyarrow and others for damaged files.
    except Exception as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise UnknownNameError(
            repr(spec),
            "is not a prompt file here, and datasets loads no data set of that name",
            got=reason,
            fix="Check the path; a data set is given as NAME, NAME:SPLIT or NAME:SUBSET:SPLIT.",
        ) from error
    labels = {key: kind for key, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}
    return [Record(f"{spec}: row {index}", _named(row, labels)) for index, row in enumerate(table)]


def _parts(spec: str) -> tuple[str, str | None, str]:
    name, *others = spec.split(":")
    if len(others) > 2 or not name or not all(others):
        raise UnknownNameError(
            repr(spec), "must name a data set", expected="NAME, NAME:SPLIT or NAME:SUBSET:SPLIT, none of them empty"
        )
    subset = others[0] if len(others) == 2 else None
    return name, subset, others[-1] if others else "train"


def _no_such_file(name: str) -> UnknownNameError:
    path = Path(name).expanduser()
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    place = path.parent.resolve()
    got = f"a folder {str(place)!r} without it" if path.parent.is_dir() else f"no folder {str(place)!r} either"
    return UnknownNameError(repr(name), "no such file", got=got, fix=f"Did you mean {near[0]!r}?" if near else None)


def _check_size(spec: str, folder: str) -> None:
    """Raise if `datasets` would search a tree that is too large for a data set, such as a home folder."""
    seen = 0
    for _, folders, files in os.walk(folder):
        seen += len(folders) + len(files)
        if seen > _MOST:
            fix = "Give the folder that holds only the data set, or one file of it: .jsonl, .csv or .txt."
            raise DataError(
                repr(spec),
                "is a folder of too many files to be searched for a data set",
                got=f"over {_MOST:,} files and folders in {folder}",
                expected=f"at most {_MOST:,}, or a folder that save_to_disk wrote",
                fix=fix,
            )


def _split_of(spec: str, loaded: Any, split: str) -> Any:
    if split not in loaded:
        raise UnknownNameError.of(repr(spec), split, loaded)
    return loaded[split]


def _named(row: dict[str, Any], labels: dict[str, Any]) -> dict[str, Any]:
    """Return a row with class names instead of class numbers; -1, an unknown class, becomes `None`."""
    return {
        key: (labels[key].int2str(value) if value is not None and value >= 0 else None) if key in labels else value
        for key, value in row.items()
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
