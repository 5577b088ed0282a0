"""`load_sae` and `export_sae`: sparse autoencoders of other libraries, in and out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from hf_mote.documents import read_document
from hf_mote.errors import ConfigError, DataError, FileFormatError, UnsupportedError, first_line
from hf_mote.files import local_path
from hf_mote.folders import replacing_folder
from hf_mote.sae.convert.card import CARD, write_card
from hf_mote.sae.convert.download import Repository
from hf_mote.sae.convert.formats import Format, Known, Source, Wanted
from hf_mote.sae.convert.layout import SAELayout
from hf_mote.sae.convert.registry import FORMATS, check_source, check_target, detect, format_named, refuse_several
from hf_mote.sae.convert.releases import entries, find, of_path, releases
from hf_mote.sae.modeling import SAEModel
from hf_mote.sharing.transfer import check_inside

__all__ = ["export_sae", "list_saes", "load_sae"]

# May be a whole language model: downloaded only after the config shows that it is an SAE.
_COMMON_WEIGHTS = "model.safetensors"


def load_sae(
    path_or_repo: str | os.PathLike[str],
    format: str | SAELayout = "auto",
    *,
    sae_id: str | None = None,
    subfolder: str | None = None,
    file: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    norm_scaling_factor: float | None = None,
    activations: Tensor | None = None,
    targets: Tensor | None = None,
    **fields: Any,
) -> SAEModel:
    """Return a sparse autoencoder of a folder, a Hub repository or a public list, in `eval()` mode.

    It encodes and decodes as in the library that wrote it. Values of the file beyond the config's fields are kept in
    `config.origin`, and [`export_sae`] restores them. `config.base_model` and `config.hookpoint` have transformers'
    names, if files or names show them. Files of an architecture that is not supported are refused with the reason.
    Code in files is never run.

    Args:
        path_or_repo (`str` or `os.PathLike`):
            A folder or file; the id of a Hub repository, from which only the needed files are downloaded; a release of
            SAELens' list (`"gemma-scope-2b-pt-res-canonical"`, with `sae_id`); or an id of Neuronpedia
            (`"gpt2-small/8-res-jb"`).
        format (`str` or [`SAELayout`], *optional*, defaults to `"auto"`):
            One of those that `hf-mote sae formats` lists; by default it is detected by the files' names and contents.
            A [`SAELayout`] reads a file of tensors without a format.
        sae_id (`str`, *optional*):
            The SAE of a release.
        subfolder (`str`, *optional*):
            Where the files are in the folder or repository.
        file (`str`, *optional*):
            The file with the weights, where a folder holds several.
        revision (`str`, *optional*):
            Branch, tag or commit of the repository.
        token (`str` or `bool`, *optional*):
            As in `huggingface_hub.snapshot_download`; so are the next two.
        cache_dir (`str` or `os.PathLike`, *optional*):
            Where downloads are kept.
        local_files_only (`bool`, *optional*, defaults to `False`):
            Look in the cache only.
        dtype (`torch.dtype` or `str`, *optional*):
            Of the model. By default that of the file but float32 at least, in which SAELens computes, too; `"auto"` is
            that of the file.
        device_map (*optional*):
            As in `from_pretrained`.
        norm_scaling_factor (`float`, *optional*):
            What activations are multiplied by before they are encoded, for files that need it and do not hold it.
        activations (`torch.Tensor` of shape `(..., hidden_size)`, *optional*):
            Activations for a test: an SAE that explains less of them than their mean does is refused.
        targets (`torch.Tensor` of shape `(..., output_size)`, *optional*):
            Targets of a transcoder for them.
        fields:
            Fields of the config that are not in the files. One that contradicts them is refused, except for names and
            `input_normalization`.

    Returns:
        [`SAEModel`]: of the architecture that the file describes.

    Raises:
        [`FileFormatError`]: if a file is missing, damaged or contradicts another, with the key or tensor.
        [`UnsupportedError`]: if no architecture here computes what the file describes.
        [`UnknownNameError`]: if there is no such format, architecture, release or reachable repository.
        [`DataError`]: if the SAE does not reconstruct the activations that are given.
    """
    layout = format if isinstance(format, SAELayout) else None
    wanted = None if layout is not None or format == "auto" else format_named(str(format), where="load_sae: format")
    asked = Wanted(_dtype(dtype), device_map, norm_scaling_factor, fields)
    for name, inner in (("subfolder", subfolder), ("file", file)):
        check_inside(repr(str(path_or_repo)), name, inner)
    local = local_path(path_or_repo)
    known: Known | None = None
    place: Repository | None = None
    if sae_id is None and os.path.exists(local):
        if os.path.isfile(local):
            if subfolder is not None or file is not None:
                raise FileFormatError(
                    str(local), "is a file, so subfolder and file cannot be given", got=subfolder or file
                )
            local, file = local.parent, local.name
        folder = local / (subfolder or "")
        try:
            folder.lstat()
        except (FileNotFoundError, NotADirectoryError):
            pass  # the formats name what is missing
        except (OSError, ValueError) as error:
            raise FileFormatError(
                str(local), "subfolder cannot be one", got=f"{str(subfolder)[:40]!r}: {first_line(error)}"
            ) from error
        trail = str(folder.resolve())
    else:
        repo_id = str(path_or_repo)
        known = find(repo_id, sae_id)
        if known is not None:
            if subfolder is not None or file is not None:
                raise ConfigError(
                    "load_sae: subfolder, file", "are said by the release already", got=subfolder or file
                )
            repo_id, subfolder, file = known.repo_id, *_place_of(known)
            wanted = wanted or (None if layout else format_named(known.format, where="load_sae"))
        else:
            known = of_path(repo_id, "/".join(part for part in (subfolder, file) if part))
        place = Repository(repo_id, subfolder, revision, token, cache_dir, local_files_only)
        trail = f"{repo_id}/{subfolder or ''}"
        folder, file = _fetch(place, wanted, file, layout)
    if layout is not None:
        if file is None:
            raise FileFormatError(str(folder), "a layout is of one file", fix="Give the file's path, or file.")
        sae = layout.read(Source(folder, trail, check_file(folder, file), known, asked))
    else:
        if wanted is None:
            wanted, file = detect(folder, file)
        else:
            file = check_source(folder, wanted, file)
        sae = wanted.read(Source(folder, trail, file, known, asked))
    if place is not None and sae.config.origin is not None:
        sae.config.origin["source"] = _source_of(place, file, known)
    if activations is not None:
        _try_on(sae, activations, targets)
    return sae


def list_saes(
    path_or_repo: str | os.PathLike[str] | None = None, *, revision: str | None = None, token: str | bool | None = None
) -> list[str]:
    """Return the names of public SAEs: all releases, or the SAEs of one, of a repository or of a folder.

    Args:
        path_or_repo (`str` or `os.PathLike`, *optional*):
            A release, whose `sae_id`s are returned; a folder or repository, whose subfolders and files are, each as
            `load_sae` takes it behind the folder. By default the releases.
        revision (`str`, *optional*): Branch, tag or commit of a repository.
        token (`str` or `bool`, *optional*): As in `huggingface_hub.snapshot_download`.
    """
    if path_or_repo is None:
        return releases()
    if str(path_or_repo) in releases():
        return [entry.known.sae_id for entry in entries(str(path_or_repo))]
    local = local_path(path_or_repo)
    place = Repository(str(path_or_repo), revision=revision, token=token)
    if os.path.isdir(local):
        paths = [path.relative_to(local).as_posix() for path in sorted(local.rglob("*")) if os.path.isfile(path)]
    else:
        paths = place.files()
    found: set[str] = set()
    for format in FORMATS.values():
        for folder, tail in place.weights_in([format], paths):
            inner = folder if format.is_one_per_folder else str(PurePosixPath(folder, tail))
            found.add(inner)
    return sorted(found)


def export_sae(
    sae: SAEModel, path: str | os.PathLike[str], format: str, *, card: bool = False, force: bool = False
) -> list[str]:
    """Write a sparse autoencoder in another library's format, whole or not at all; return what it cannot hold.

    The library then encodes and decodes as the model does outside training. State and settings of training are
    lost; a model that the format cannot hold without changing what it computes is refused.

    Args:
        sae ([`SAEModel`]):
            Not modified. Feature Choice, Mutual Choice, BatchTopK and Matryoshka need their thresholds; for SAELens
            they become JumpReLU. A `scale_latents_by_decoder_norm` that the format cannot say is folded into the
            weights, which rounds.
        path (`str` or `os.PathLike`):
            A folder, made if it does not exist. For circuit-tracer it may hold other layers of the same set.
        format (`str`):
            `"saelens"`, `"sparsify"`, `"dictionary_learning"`, `"circuit_tracer"` or `"hf_mote"`.
        card (`bool`, *optional*, defaults to `False`):
            Whether to write a `README.md`, too: model, origin, and what is lost.
        force (`bool`, *optional*, defaults to `False`):
            Replace a sparse autoencoder of the same format that the folder holds. Files of another format are never
            overwritten.

    Returns:
        `list[str]`: Settings and tensors of training that the files do not hold.

    Raises:
        [`UnsupportedError`]: if the format cannot hold the model, with the reason.
        [`FileFormatError`]: if the folder holds a sparse autoencoder already, files of another format or, with `card`,
            a card, or cannot be written to.
        [`UnknownNameError`]: if there is no such format.
        [`DataError`]: if a tensor is not finite.

    Example:

    ```python
    import torch
    from hf_mote import TopKSAEConfig, TopKSAEModel, export_sae, load_sae

    sae = TopKSAEModel(TopKSAEConfig(hidden_size=16, num_latents=64, k=4)).eval()
    export_sae(sae, "for-saelens", "saelens")
    again = load_sae("for-saelens")
    x = torch.randn(3, 16)
    assert torch.equal(again.encode(x), sae.encode(x)) and again.config.origin["format"] == "saelens"
    ```
    """
    wanted = format_named(format, where="export_sae: format")
    if wanted.write is None:
        raise UnsupportedError(f"export_sae: {wanted.name}", f"is not written: {wanted.refusal}")
    target = local_path(path)
    check_target(target, wanted, force=force)
    if card and os.path.exists(target / CARD):
        raise FileFormatError(str(target / CARD), "exists already, and a card would replace it")
    # Files of the same format are replaced, also in its other layout; other layers of a set stay.
    with replacing_folder(target, str(target), lambda _: {*wanted.files, *wanted.weights}) as folder:
        lost = wanted.write(sae, folder)
        if not wanted.is_one_per_folder:
            _check_same_set(target, folder, wanted)
            there = [name for name in wanted.weights_in(folder) if os.path.exists(target / name)]
            if there and not force:
                fix = "Give another folder, or force=True (--force on the command line) to replace it."
                raise FileFormatError(str(target / there[0]), "holds a sparse autoencoder already", fix=fix)
        if card:
            write_card(sae, folder, wanted.name, lost)
    return lost


def check_file(folder: Path, file: str) -> str:
    """Return the path of a file in a folder, refusing one that is not there."""
    if not os.path.isfile(folder / file):
        raise FileFormatError(str(folder / file), "is missing")
    return file


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError("load_sae: dtype", "must be a float dtype of torch", got=repr(dtype))
    return found


def _place_of(known: Known) -> tuple[str | None, str | None]:
    """Return the subfolder and the file of an SAE in a repository."""
    if FORMATS[known.format].is_one_per_folder:
        return known.path, None
    path = PurePosixPath(known.path)
    return (str(path.parent) if path.parent.parts else None), path.name


def _fetch(
    place: Repository, wanted: Format | None, file: str | None, layout: SAELayout | None
) -> tuple[Path, str | None]:
    """Return the folder that an SAE was downloaded to, and the file with its weights if that had to be chosen."""
    if layout is not None:
        return place.fetch([], file), file
    if file is not None:
        return place.fetch([wanted] if wanted else list(FORMATS.values()), file), file
    common = [format for format in FORMATS.values() if _COMMON_WEIGHTS in format.weights]
    looked_for = [wanted] if wanted else [format for format in FORMATS.values() if format not in common]
    folder = place.fetch(looked_for)
    if wanted is None:
        for format in common:
            if format.describes(folder):
                return place.fetch([format]), None
    if any(format.weights_in(folder) for format in looked_for):
        return folder, None
    found = place.weights_in(looked_for, place.files())
    inner = str(PurePosixPath(place.subfolder or "."))
    here = sorted({tail for path, tail in found if path == inner})
    if len(here) == 1:
        return place.fetch(looked_for, here[0]), here[0]
    if here:
        raise FileFormatError(
            f"{place.repo_id}/{place.subfolder or ''}".rstrip("/"),
            "holds several files with an SAE each",
            got=f"{', '.join(here[:12])}{f' and {len(here) - 12} more' if len(here) > 12 else ''}",
            fix="Say which one is meant, by file (--file on the command line).",
        )
    others = [path for path, _ in found if path != "."]
    below = [path for path in others if path.startswith(f"{place.subfolder}/")]
    refuse_several(place.repo_id, list(dict.fromkeys(below or others)))
    return folder, None


def _source_of(place: Repository, file: str | None, known: Known | None) -> dict[str, Any]:
    """Return the origin of an SAE from `config.origin`."""
    found = {"repo_id": place.repo_id, "subfolder": place.subfolder, "file": file, "revision": place.revision}
    if known is not None:
        found |= {"release": known.release, "sae_id": known.sae_id}
    return {name: value for name, value in found.items() if value is not None}


@torch.no_grad()
def _try_on(sae: SAEModel, activations: Tensor, targets: Tensor | None) -> None:
    """Refuse an SAE that explains less of activations than their mean does."""
    if sae.config.is_transcoder and targets is None:
        raise DataError("load_sae: targets", "are needed to try a transcoder on activations")
    fvu = sae(activations, targets=targets).fvu
    if fvu is None or not float(fvu) < 1:
        raise DataError(
            "load_sae: activations",
            "are not reconstructed: tensors, normalisation or hookpoint may be others than they seem",
            got=f"a fraction of variance unexplained of {float(fvu):.3g}",
            expected="below 1",
        )


def _check_same_set(target: Path, written: Path, format: Format) -> None:
    """Refuse to change the config of a set, which other files in the folder share."""
    if format.config is None or not os.path.isfile(target / format.config):
        return
    before, after = (read_document(folder / format.config) for folder in (target, written))
    kept = {name: _comparable(before.get(name)) for name in after}
    if kept != {name: _comparable(value) for name, value in after.items()}:
        differing = [name for name in after if kept[name] != _comparable(after[name])]
        raise FileFormatError(
            f"{target / format.config}: {differing[0]}",
            "is of another set",
            got=repr(before.get(differing[0])),
            expected=repr(after[differing[0]]),
            fix="Give another folder.",
        )


def _comparable(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
