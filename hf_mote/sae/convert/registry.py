"""All formats, and which of them a folder is in: by the names of its files and by what its config says."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from hf_mote.errors import FileFormatError, UnknownNameError
from hf_mote.sae.convert.dictionary_learning import DICTIONARY_LEARNING
from hf_mote.sae.convert.formats import Format
from hf_mote.sae.convert.gemma_scope import GEMMA_SCOPE, GEMMA_SCOPE_2
from hf_mote.sae.convert.native import NATIVE
from hf_mote.sae.convert.saelens import SAELENS
from hf_mote.sae.convert.sparsify import SPARSIFY

__all__ = ["FORMATS", "below", "check_source", "check_target", "detect", "format_named", "refuse_several"]

_DEEPEST, _MOST_FOLDERS = 4, 2000  # Gemma Scope's lie three folders deep
_MOST_NAMED = 12

FORMATS = {
    format.name: format for format in (SAELENS, SPARSIFY, DICTIONARY_LEARNING, GEMMA_SCOPE, GEMMA_SCOPE_2, NATIVE)
}
_WEIGHTS = {name for format in FORMATS.values() for name in format.weights}


def format_named(name: str, *, where: str) -> Format:
    """Return a format by its name.

    Raises:
        [`UnknownNameError`]: if there is none, listing those there are.
    """
    if name not in FORMATS:
        raise UnknownNameError.of(where, name, FORMATS)
    return FORMATS[name]


def detect(folder: Path) -> Format:
    """Return the one format whose files are in a folder.

    Raises:
        [`FileFormatError`]: if the files are of no format or of several, with what was found; if the folders below
            hold some, with their names.
    """
    names = _names(folder)
    candidates = [format for format in FORMATS.values() if format.weights_in(folder)]
    if not candidates:
        refuse_several(str(folder), below(folder))
        wanted = "; ".join(f"{format.name}: {', '.join(format.files)}" for format in FORMATS.values())
        raise FileFormatError(
            str(folder),
            "holds no weights of a sparse autoencoder",
            got=", ".join(sorted(names)[:12]) or "an empty or missing folder",
            expected=f"the files of one format ({wanted})",
            fix="Name the folder, or the subfolder of the repository, that holds them.",
        )
    fitting = [format for format in candidates if format.describes(folder)]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(format.name for format in fitting or candidates)
    if fitting:
        raise FileFormatError(
            str(folder), "holds files of several formats", got=listed, fix="Say which is meant, by format."
        )
    config = next(format.config for format in candidates)
    raise FileFormatError(
        f"{folder}: {config}",
        "is missing, or not what belongs to the weights",
        got=", ".join(sorted(names)[:12]),
        expected=f"the config of {listed}",
        fix="Download the whole folder, or name the format to see what is wrong.",
    )


def check_source(folder: Path, format: Format) -> None:
    """Refuse a folder that holds no weights of a format.

    Raises:
        [`FileFormatError`]: with the files found, or the folders below that hold some.
    """
    names = _names(folder)
    if not format.weights_in(folder):
        if names.isdisjoint(_WEIGHTS):
            refuse_several(str(folder), below(folder))
        raise FileFormatError(
            str(folder),
            f"holds no {format.weights[0]}, the weights of {format.name}",
            got=", ".join(sorted(names)[:12]) or "an empty or missing folder",
            fix="Name the folder, subfolder or format that is meant.",
        )


def below(folder: Path) -> list[str]:
    """Return the folders below a folder that hold a sparse autoencoder, by their path from there, as far as looked."""
    found: list[str] = []
    for path, folders, names in islice(os.walk(folder), _MOST_FOLDERS):
        depth = len(Path(path).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < _DEEPEST else []
        if depth and not _WEIGHTS.isdisjoint(names) and _is_of_a_format(Path(path)):
            found.append(str(Path(path).relative_to(folder).as_posix()))
    return found


def refuse_several(where: str, subfolders: Sequence[str]) -> None:
    """Raise [`FileFormatError`] with the subfolders that hold a sparse autoencoder, where the folder itself does not.

    Args:
        where (`str`): The folder or repository.
        subfolders (`Sequence[str]`): Those in it; nothing is raised if there are none.
    """
    if not subfolders:
        return
    # Layer 9 before layer 10.
    ordered = sorted(subfolders, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
    shown = ", ".join(ordered[:_MOST_NAMED])
    more = len(ordered) - _MOST_NAMED
    raise FileFormatError(
        where,
        "holds no weights of a sparse autoencoder itself, but its subfolders do",
        got=f"{shown} and {more} more" if more > 0 else shown,
        fix="Say which one is meant, by subfolder (--subfolder on the command line).",
    )


def check_target(folder: Path, format: Format) -> None:
    """Refuse a folder to write to that holds files of another format, or only some of this one.

    Raises:
        [`FileFormatError`]: with the files found.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise FileFormatError(str(folder), "is a file", expected="a folder, or nothing yet")
    names = _names(folder)
    others = [name for other in FORMATS.values() if other is not format for name in other.weights if name in names]
    # What is no file cannot be replaced by one.
    others += [name for name in format.files if name not in names and os.path.exists(folder / name)]
    own = [name for name in format.files if name in names]
    if others or (own and names.isdisjoint(format.weights)):
        raise FileFormatError(
            str(folder),
            f"holds files that are not of {format.name}, which would be overwritten or taken for it",
            got=", ".join(sorted({*others, *own})),
            fix="Give another folder, or remove them.",
        )


def _is_of_a_format(folder: Path) -> bool:
    try:
        detect(folder)
    except FileFormatError:
        return False
    return True


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_file()} if os.path.isdir(folder) else set()
