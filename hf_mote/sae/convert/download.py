"""The files of a sparse autoencoder in a Hub repository, and no others."""

from __future__ import annotations

import glob
import os
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from huggingface_hub import HfApi

from hf_mote.sae.convert.formats import Format
from hf_mote.sharing.transfer import check_inside, download_matching

__all__ = ["Repository"]


class Repository(NamedTuple):
    """A Hub repository, or a folder in one.

    Attributes:
        repo_id (`str`): Its id.
        subfolder (`str`, *optional*): The folder in it.
        revision (`str`, *optional*): Branch, tag or commit.
        token (`str` or `bool`, *optional*), cache_dir, local_files_only: As in `snapshot_download`.
    """

    repo_id: str
    subfolder: str | None = None
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False

    def fetch(self, formats: list[Format], file: str | None = None) -> Path:
        """Return the folder that the files of some formats were downloaded to.

        Args:
            formats (`list[Format]`): The formats.
            file (`str`, *optional*):
                The file with the weights, by its path in the folder. Without it, formats that have a file for each
                SAE are left out: all of them together may be larger than a disk.

        Raises:
            [`UnknownNameError`]: if there is no such repository, or it cannot be reached and is not in the cache.
            [`FileFormatError`]: if subfolder or file lead out of the repository.
        """
        inner = self._inside("subfolder", self.subfolder or "")
        names: set[str] = {format.config for format in formats if format.config is not None}
        beside: set[str] = set()
        if file is None:
            names |= {name for format in formats if format.is_one_per_folder for name in format.weights}
            beside = {
                name for format in formats for own in format.weights for name in format.beside(own) if "*" in name
            }
        else:
            names |= {str(self._inside("file", file))}
            beside = {name for format in formats for name in format.beside(file)}
        names |= {name for name in beside if "*" not in name}
        patterns = [glob.escape(str(inner / name)) for name in sorted(names)]
        patterns += [
            f"{glob.escape(str(inner))}/{name}" if self.subfolder else name for name in sorted(beside - names)
        ]
        if self.subfolder:
            # Of the run that the SAEs of all subfolders are from (sparsify).
            patterns.append(glob.escape(str(inner.parent / "config.json")))
        root = download_matching(
            self.repo_id,
            patterns,
            revision=self.revision,
            token=self.token,
            cache_dir=self.cache_dir,
            local_files_only=self.local_files_only,
        )
        return Path(root, inner)

    def files(self) -> list[str]:
        """Return the paths of all files in the repository; none if it cannot be reached."""
        if self.local_files_only:
            return []
        try:
            api = HfApi(token=self.token, library_name="hf_mote")
            return list(api.list_repo_files(self.repo_id, revision=self.revision))
        except Exception:  # any error of the network: a listing is only for a choice and for better errors
            return []

    def weights_in(self, formats: list[Format], files: list[str]) -> list[tuple[str, str]]:
        """Return the folder and the path in it of each file that may be weights of some formats.

        Args:
            formats (`list[Format]`): The formats.
            files (`list[str]`): Of [`files`].
        """
        found: list[tuple[str, str]] = []
        for path in files:
            for pattern in sorted({name for format in formats for name in format.weights}):
                depth = len(PurePosixPath(pattern).parts)
                parts = PurePosixPath(path).parts
                tail = str(PurePosixPath(*parts[-depth:])) if len(parts) >= depth else ""
                if fnmatchcase(tail, pattern):
                    found.append((str(PurePosixPath(*parts[:-depth])), tail))
                    break
        return found

    def _inside(self, what: str, path: str) -> PurePosixPath:
        check_inside(self.repo_id, what, path)
        return PurePosixPath(path)
