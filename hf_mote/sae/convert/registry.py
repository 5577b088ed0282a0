"""All formats, and which of them a folder is in: by the names of its files and by what its config says."""

from __future__ import annotations

from pathlib import Path

from hf_mote.errors import FileFormatError, UnknownNameError
from hf_mote.sae.convert.dictionary_learning import DICTIONARY_LEARNING
from hf_mote.sae.convert.formats import Format
from hf_mote.sae.convert.gemma_scope import GEMMA_SCOPE, GEMMA_SCOPE_2
from hf_mote.sae.convert.native import NATIVE
from hf_mote.sae.convert.saelens import SAELENS
from hf_mote.sae.convert.sparsify import SPARSIFY

__all__ = ["FORMATS", "check_source", "check_target", "detect", "format_named"]

FORMATS = {
    format.name: format for format in (SAELENS, SPARSIFY, DICTIONARY_LEARNING, GEMMA_SCOPE, GEMMA_SCOPE_2, NATIVE)
}


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
        [`FileFormatError`]: if the files are of no format or of several, with what was found.
    """
    names = _names(folder)
    candidates = [format for format in FORMATS.values() if not names.isdisjoint(format.weights)]
    if not candidates:
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
        [`FileFormatError`]: with the files found.
    """
    names = _names(folder)
    if names.isdisjoint(format.weights):
        raise FileFormatError(
            str(folder),
            f"holds no {format.weights[0]}, the weights of {format.name}",
            got=", ".join(sorted(names)[:12]) or "an empty or missing folder",
            fix="Name the folder, subfolder or format that is meant.",
        )


def check_target(folder: Path, format: Format) -> None:
    """Refuse a folder to write to that holds files of another format, or only some of this one.

    Raises:
        [`FileFormatError`]: with the files found.
    """
    if folder.exists() and not folder.is_dir():
        raise FileFormatError(str(folder), "is a file", expected="a folder, or nothing yet")
    names = _names(folder)
    others = [name for other in FORMATS.values() if other is not format for name in other.weights if name in names]
    # What is no file cannot be replaced by one.
    others += [name for name in format.files if name not in names and (folder / name).exists()]
    own = [name for name in format.files if name in names]
    if others or (own and names.isdisjoint(format.weights)):
        raise FileFormatError(
            str(folder),
            f"holds files that are not of {format.name}, which would be overwritten or taken for it",
            got=", ".join(sorted({*others, *own})),
            fix="Give another folder, or remove them.",
        )


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_file()} if folder.is_dir() else set()
