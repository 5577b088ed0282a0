"""All formats, and detection of a folder's format, by the names of its files and by its config and weights."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from hf_mote.errors import FileFormatError, UnknownNameError, first_line
from hf_mote.files import read_json
from hf_mote.sae.convert.circuit_tracer import CIRCUIT_TRACER
from hf_mote.sae.convert.circuit_tracer_clt import CIRCUIT_TRACER_CLT
from hf_mote.sae.convert.dictionary_learning import DICTIONARY_LEARNING
from hf_mote.sae.convert.formats import Format
from hf_mote.sae.convert.gemma_scope import GEMMA_SCOPE, GEMMA_SCOPE_2, GEMMA_SCOPE_2_LAYERS
from hf_mote.sae.convert.hook_z import HOOK_Z
from hf_mote.sae.convert.lm_saes import LLAMA_SCOPE, LM_SAES
from hf_mote.sae.convert.native import NATIVE
from hf_mote.sae.convert.openai import OPENAI
from hf_mote.sae.convert.opensae import OPENSAE
from hf_mote.sae.convert.qwen_scope import QWEN_SCOPE
from hf_mote.sae.convert.refused import TEMPORAL
from hf_mote.sae.convert.saelens import SAELENS
from hf_mote.sae.convert.sparsify import SPARSIFY
from hf_mote.sae.convert.tensors import shapes_in
from hf_mote.sae.convert.torch_releases import DEEPSEEK_R1, GOODFIRE

__all__ = ["FORMATS", "below", "check_source", "check_target", "detect", "format_named", "refuse_several"]

_DEEPEST, _MOST_FOLDERS = 4, 2000  # Gemma Scope's are three folders deep
_MOST_NAMED = 12

FORMATS = {
    format.name: format
    for format in (
        SAELENS,
        SPARSIFY,
        DICTIONARY_LEARNING,
        GEMMA_SCOPE,
        GEMMA_SCOPE_2,
        GEMMA_SCOPE_2_LAYERS,
        QWEN_SCOPE,
        CIRCUIT_TRACER,
        CIRCUIT_TRACER_CLT,
        LLAMA_SCOPE,
        LM_SAES,
        HOOK_Z,
        GOODFIRE,
        DEEPSEEK_R1,
        OPENAI,
        OPENSAE,
        TEMPORAL,
        NATIVE,
    )
}


def format_named(name: str, *, where: str) -> Format:
    """Return a format by its name.

    Raises:
        [`UnknownNameError`]: if it is unknown, listing the known ones.
    """
    if name not in FORMATS:
        raise UnknownNameError.of(where, name, FORMATS)
    return FORMATS[name]


def detect(folder: Path, file: str | None = None) -> tuple[Format, str]:
    """Return the one format whose files are in a folder, and the file with the weights.

    Args:
        folder (`Path`): The folder.
        file (`str`, *optional*): The file with the weights, if it is known.

    Raises:
        [`FileFormatError`]: if the files are of no format or of several, with what was found; if the folders below
            hold some, or the folder holds several files with an SAE each, with their names.
    """
    names = _names(folder)
    candidates = {format.name: found for format in FORMATS.values() if (found := _weights(format, folder, file))}
    if not candidates:
        _refuse_other_models(folder)
        if file is None:
            refuse_several(str(folder), below(folder))
        raise FileFormatError(
            str(folder if file is None else folder / file),
            "holds no weights of a sparse autoencoder",
            got=", ".join(sorted(names)[:12]) or "an empty or missing folder",
            expected=f"{NATIVE.config} and {NATIVE.weights[0]}, or the files that hf-mote sae formats lists",
            fix="Name the folder, or the subfolder of the repository, that holds them.",
        )
    fitting = {name: found for name, found in candidates.items() if _fits(FORMATS[name], folder, found[0])}
    if len(fitting) == 1:
        ((name, found),) = fitting.items()
        return FORMATS[name], _only_file(folder, FORMATS[name], found)
    listed = ", ".join(fitting or candidates)
    if fitting:
        raise FileFormatError(
            str(folder), "holds files of several formats", got=listed, fix="Say which is meant, by format."
        )
    _refuse_other_models(folder)
    config = next((FORMATS[name].config for name in candidates if FORMATS[name].config is not None), None)
    raise FileFormatError(
        f"{folder}: {config or next(iter(candidates.values()))[0]}",
        "is missing, or does not belong to the weights",
        got=", ".join(sorted(names)[:12]),
        expected=f"the config of {listed}" if config else f"the tensors of {listed}",
        fix="Download the whole folder, or name the format to see what is wrong.",
    )


def _refuse_other_models(folder: Path) -> None:
    """Raise for the folder of another transformers model, whose weights have the same file name as ours."""
    path = folder / NATIVE.config if NATIVE.config is not None else folder
    model_type = read_json(path).get("model_type") if path.is_file() else None
    if isinstance(model_type, str) and model_type and not NATIVE.describes(folder):
        raise FileFormatError(
            str(folder),
            "holds another model, where a sparse autoencoder is meant",
            got=f"model_type {model_type!r}",
            fix="Name the folder of the sparse autoencoder; a language model is the MODEL of hf-mote ftri and others.",
        )


def check_source(folder: Path, format: Format, file: str | None = None) -> str:
    """Return the file with the weights of a format in a folder, refusing a folder that holds none or several.

    Raises:
        [`FileFormatError`]: with the files found, or the folders below that hold some.
    """
    if file is not None:
        if not os.path.isfile(folder / file):
            raise FileFormatError(
                str(folder / file), "is missing", got=", ".join(sorted(_names(folder))[:12]) or "an empty folder"
            )
        return file
    names = _names(folder)
    found = format.weights_in(folder)
    if not found:
        if not any(other.weights_in(folder) for other in FORMATS.values()):
            refuse_several(str(folder), below(folder))
        raise FileFormatError(
            str(folder),
            f"holds no {format.weights[0]}, the weights of {format.name}",
            got=", ".join(sorted(names)[:12]) or "an empty or missing folder",
            fix="Name the folder, subfolder or format that is meant.",
        )
    return _only_file(folder, format, found)


def below(folder: Path) -> list[str]:
    """Return the folders below a folder that hold a sparse autoencoder, by their relative path, down to a depth."""
    found: list[str] = []
    for path, folders, _ in islice(os.walk(folder), _MOST_FOLDERS):
        depth = len(Path(path).relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if depth < _DEEPEST else []
        if depth and _holds_some(Path(path)):
            found.append(str(Path(path).relative_to(folder).as_posix()))
    return found


def refuse_several(where: str, subfolders: Sequence[str]) -> None:
    """Raise [`FileFormatError`] with the subfolders that hold a sparse autoencoder, where the folder itself does not.

    Args:
        where (`str`): The folder or repository.
        subfolders (`Sequence[str]`): Those in it; nothing is raised if it is empty.
    """
    if subfolders:
        raise FileFormatError(
            where,
            "holds no weights of a sparse autoencoder itself, but its subfolders do",
            got=_some_of(subfolders),
            fix="Say which one is meant, by subfolder (--subfolder on the command line).",
        )


def check_target(folder: Path, format: Format, *, force: bool) -> None:
    """Refuse a folder to write to that holds an SAE already, files of another format, or only some of this one.

    Args:
        folder (`Path`): The folder.
        format (`Format`): What is to be written.
        force (`bool`): Whether it may replace an SAE of the same format.

    Raises:
        [`FileFormatError`]: with the files found.
    """
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise FileFormatError(str(folder), "is a file", expected="a folder, or a path where nothing exists yet")
    names = _names(folder)
    weights = format.weights_in(folder) if os.path.isdir(folder) else []
    others = [
        name
        for other in FORMATS.values()
        if other is not format and os.path.isdir(folder)
        for name in other.weights_in(folder)
        if not format.matches(name)
    ]
    # Only files can be replaced.
    others += [name for name in format.files if name not in names and os.path.exists(folder / name)]
    own = [name for name in format.files if name in names]
    if others or (own and not weights):
        raise FileFormatError(
            str(folder),
            f"holds files that are not of {format.name}, which would be overwritten or taken for it",
            got=", ".join(sorted({*others, *own})),
            fix="Give another folder, or remove them.",
        )
    if own and not force and format.is_one_per_folder:
        fix = "Give another folder, or force=True (--force on the command line) to replace it."
        raise FileFormatError(str(folder), "holds a sparse autoencoder already", got=", ".join(own), fix=fix)


def _weights(format: Format, folder: Path, file: str | None) -> list[str]:
    """Return the files in a folder that may be the weights of a format."""
    if file is None:
        return format.weights_in(folder)
    if not os.path.isfile(folder / file):
        return []
    if format.matches(file):
        return [file]
    # A renamed file may still be a single file of the format.
    same_kind = any(PurePosixPath(pattern).suffix == PurePosixPath(file).suffix for pattern in format.weights)
    return [file] if same_kind and not format.is_one_per_folder else []


def _fits(format: Format, folder: Path, file: str) -> bool:
    """Whether config and tensors are of a format; weights are opened only where names could be of several formats."""
    return format.describes(folder) and (format.is_one_per_folder or format.holds(shapes_in(folder / file)))


def _only_file(folder: Path, format: Format, found: Sequence[str]) -> str:
    if len(found) == 1 or format.is_one_per_folder:
        # In the order that the format prefers them.
        return next((name for name in format.weights if name in found), found[0])
    raise FileFormatError(
        str(folder),
        f"holds several files of {format.name}, an SAE in each",
        got=_some_of(found),
        fix="Say which one is meant, by file (--file on the command line).",
    )


def _holds_some(folder: Path) -> bool:
    """Whether a folder holds weights, with the config that belongs to them."""
    for format in FORMATS.values():
        found = format.weights_in(folder)
        try:
            if found and _fits(format, folder, found[0]):
                return True
        except FileFormatError:
            continue
    return False


def _some_of(names: Sequence[str]) -> str:
    # Layer 9 before layer 10.
    ordered = sorted(names, key=lambda name: [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in _parts(name)])
    more = len(ordered) - _MOST_NAMED
    shown = ", ".join(ordered[:_MOST_NAMED])
    return f"{shown} and {more} more" if more > 0 else shown


def _parts(name: str) -> list[str]:
    return [part for part in re.split(r"(\d+)", name) if part]


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir() if entry.is_file()} if os.path.isdir(folder) else set()
    except OSError as error:
        raise FileFormatError(str(folder), "cannot be read", got=first_line(error)) from error
