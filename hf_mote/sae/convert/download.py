"""The files of a sparse autoencoder in a Hub repository, and no others."""

from __future__ import annotations

import glob
import os
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from hf_mote.errors import FileFormatError, UnknownNameError, first_line
from hf_mote.sae.convert.formats import Format

__all__ = ["download", "subfolders_with"]


def download(
    repo_id: str,
    formats: list[Format],
    *,
    subfolder: str | None,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    local_files_only: bool,
) -> Path:
    """Return the folder that the files of some formats in a repository were downloaded to.

    Raises:
        [`UnknownNameError`]: if there is no such repository, or it cannot be reached and is not in the cache.
        [`FileFormatError`]: if the subfolder leads out of the repository.
    """
    inner = PurePosixPath(subfolder or "")
    if inner.is_absolute() or ".." in inner.parts:
        raise FileFormatError(f"{repo_id}: subfolder", "leads out of the repository", got=repr(subfolder))
    names = {name for format in formats for name in format.files}
    patterns = [str(inner / name) for name in sorted(names)]
    if subfolder:
        # Of the run that the SAEs of all subfolders are from (sparsify).
        patterns.append(str(inner.parent / "config.json"))
    try:
        root = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=local_files_only,
            allow_patterns=[glob.escape(pattern) for pattern in patterns],
            library_name="hf_mote",
        )
    except HFValidationError as error:
        raise _refusal(
            repo_id, "is no folder here and cannot be a Hub id", error, "Check the path, or give 'namespace/name'."
        ) from error
    except LocalEntryNotFoundError as error:
        raise _refusal(
            repo_id,
            "is no folder here, and a Hub repository of that name is not in the cache",
            error,
            "Check the path or the id; to download, be online and unset HF_HUB_OFFLINE and local_files_only.",
        ) from error
    except HfHubHTTPError as error:
        raise _refusal(
            repo_id,
            "is no folder here, and the Hub gave no repository of that name and revision",
            error,
            "Check the path or the id; for a private or gated repository log in or pass token.",
        ) from error
    # What is left: no network, no space, a name that cannot be.
    except (OSError, ValueError) as error:
        raise _refusal(repo_id, "is no folder here, and cannot be downloaded", error, "Check the path.") from error
    return Path(root, inner)


def subfolders_with(
    formats: list[Format], repo_id: str, *, revision: str | None, token: str | bool | None
) -> list[str]:
    """Return the folders of a repository that hold weights of some formats; none if it cannot be asked.

    Args:
        formats (`list[Format]`): The formats.
        repo_id (`str`): The repository.
        revision (`str`, *optional*): Its branch, tag or commit.
        token (`str` or `bool`, *optional*): As in [`download`].
    """
    names = {name for format in formats for name in format.weights}
    try:
        paths = HfApi(token=token, library_name="hf_mote").list_repo_files(repo_id, revision=revision)
    except Exception:  # whatever the network raises: this is about a better error alone
        return []
    files = (PurePosixPath(path) for path in paths)
    return [str(file.parent) for file in files if file.name in names and file.parent.parts]


def _refusal(repo_id: str, what: str, error: Exception, fix: str) -> UnknownNameError:
    return UnknownNameError(repr(repo_id), what, got=first_line(error), fix=fix)
