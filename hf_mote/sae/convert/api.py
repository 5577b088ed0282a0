"""`load_sae` and `export_sae`: sparse autoencoders of other libraries, in and out."""

from __future__ import annotations

import os
from functools import partial

from hf_mote.errors import FileFormatError, UnsupportedError
from hf_mote.files import local_path
from hf_mote.folders import replacing_folder
from hf_mote.sae.convert.download import download, subfolders_with
from hf_mote.sae.convert.formats import Source
from hf_mote.sae.convert.native import NATIVE
from hf_mote.sae.convert.registry import FORMATS, check_source, check_target, detect, format_named, refuse_several
from hf_mote.sae.modeling import SAEModel

__all__ = ["export_sae", "load_sae"]


def load_sae(
    path_or_repo: str | os.PathLike[str],
    format: str = "auto",
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> SAEModel:
    """Return the sparse autoencoder in a folder or Hub repository, whichever library wrote it, in `eval()` mode.

    It encodes and decodes as that library does, in the dtype of the file. What the file says beyond the config's
    fields is kept in `config.origin`, and [`export_sae`] gives it back. Files that mean something no architecture here
    computes are refused with the reason. Nothing of a file is ever run.

    Args:
        path_or_repo (`str` or `os.PathLike`):
            A folder, or the id of a Hub repository, from which only the needed files are downloaded.
        format (`str`, *optional*, defaults to `"auto"`):
            `"saelens"` (version 6), `"sparsify"`, `"dictionary_learning"`, `"gemma_scope"`, `"gemma_scope_2"` or
            `"hf_mote"`; by default it is told by the files' names and contents.
        subfolder (`str`, *optional*):
            Where the files are in the folder or repository.
        revision (`str`, *optional*):
            Branch, tag or commit of the repository.
        token (`str` or `bool`, *optional*):
            As in `huggingface_hub.snapshot_download`; so are the next two.
        cache_dir (`str` or `os.PathLike`, *optional*):
            Where downloads are kept.
        local_files_only (`bool`, *optional*, defaults to `False`):
            Look in the cache only.

    Returns:
        [`SAEModel`]: of the architecture that the file describes.

    Raises:
        [`FileFormatError`]: if a file is missing, damaged or contradicts another, with the key or tensor.
        [`UnsupportedError`]: if no architecture here computes what the file describes.
        [`UnknownNameError`]: if there is no such format, architecture or reachable repository.
    """
    wanted = None if format == "auto" else format_named(format, where="load_sae: format")
    local = local_path(path_or_repo)
    if os.path.isdir(local):
        folder = local / (subfolder or "")
        trail = str(folder.resolve())
    elif os.path.exists(local):
        raise FileFormatError(str(local), "is a file", expected="the folder that it is in")
    else:
        repo_id = str(path_or_repo)
        trail = f"{repo_id}/{subfolder or ''}"
        # Not our own: a repository with model.safetensors may be a language model.
        foreign = [one for one in FORMATS.values() if one is not NATIVE]
        fetch = partial(
            download,
            repo_id,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        folder = fetch([wanted] if wanted else foreign)
        if wanted is None and NATIVE.describes(folder):
            folder = fetch([NATIVE])
        elif not local_files_only and not any(one.weights_in(folder) for one in ([wanted] if wanted else foreign)):
            others = subfolders_with([wanted] if wanted else foreign, repo_id, revision=revision, token=token)
            inner = [other for other in others if other.startswith(f"{subfolder}/")]
            refuse_several(repo_id, inner or others)
    if wanted is None:
        wanted = detect(folder)
    else:
        check_source(folder, wanted)
    return wanted.read(Source(folder, trail))


def export_sae(sae: SAEModel, path: str | os.PathLike[str], format: str) -> list[str]:
    """Write a sparse autoencoder as another library does, whole or not at all, and return what its format cannot hold.

    The library then encodes and decodes as the model does outside training. What is lost is state and settings of
    training; a model that the format cannot hold without changing what it computes is refused. Files of another format
    are not overwritten.

    Args:
        sae ([`SAEModel`]):
            Not modified. Feature Choice, Mutual Choice, BatchTopK and Matryoshka need their thresholds; for SAELens
            they become JumpReLU. A `scale_latents_by_decoder_norm` that the format cannot say is folded into the
            weights, which rounds.
        path (`str` or `os.PathLike`):
            A folder, made if it does not exist.
        format (`str`):
            `"saelens"`, `"sparsify"`, `"dictionary_learning"` or `"hf_mote"`.

    Returns:
        `list[str]`: Settings and tensors of training that the files do not hold.

    Raises:
        [`UnsupportedError`]: if the format cannot hold the model, with the reason.
        [`FileFormatError`]: if the folder holds files of another format, or cannot be written to.
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
    check_target(target, wanted)
    # Files of the same format give way, its other way of storing weights too.
    with replacing_folder(target, str(target), lambda _: {*wanted.files, *wanted.weights}) as folder:
        return wanted.write(sae, folder)
