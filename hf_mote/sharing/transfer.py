"""Downloads from the Hub and uploads to it, for every kind of shared object.

`huggingface_hub` transfers the files. This module adds checks: contents are compared with their digests on the Hub,
paths that lead out of the repository are refused, and failures of a server, a network or a token become errors of this
package.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_mote.errors import FileFormatError, HFMoTEError, UnknownNameError, UnsupportedError, first_line
from hf_mote.sharing.cards import CARD, MADE_HERE
from hf_mote.sharing.privacy import check_nothing_private
from hf_mote.version import __version__

__all__ = ["check_inside", "check_upload", "download", "download_matching", "text_there", "upload"]

_DIGESTS = {40: "sha1", 64: "sha256"}
_AT_ONCE = 2**20
_ONLINE = "Check the path or the id; to download, be online and unset HF_HUB_OFFLINE and local_files_only."


def download(
    repo_id: str,
    file_name: str,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """Return a file of a Hub repository, from the cache or downloaded, its content checked against its digest.

    Args:
        repo_id (`str`): The repository.
        file_name (`str`): The file, in the folder.
        subfolder (`str`, *optional*): Folder in the repository.
        revision (`str`, *optional*): Branch, tag or commit.
        token (`str` or `bool`, *optional*): As in `huggingface_hub.hf_hub_download`; so are the others.
        cache_dir (`str` or `os.PathLike`, *optional*): Where downloads are kept.
        local_files_only (`bool`, *optional*, defaults to `False`): Look in the cache only.
        force_download (`bool`, *optional*, defaults to `False`): Download what is in the cache, too.

    Raises:
        [`UnknownNameError`]: if there is no such repository or revision, or it cannot be reached and is not cached.
        [`FileFormatError`]: if the repository lacks the file, or its content is not what the Hub says it is.
    """
    where = repr(str(repo_id))
    check_inside(where, "subfolder", subfolder)
    check_inside(where, "revision", revision)
    with _hub_errors(where, file_name, subfolder=subfolder, revision=revision):
        path = Path(
            hf_hub_download(
                str(repo_id),
                file_name,
                subfolder=subfolder,
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
                library_name="hf_mote",
                library_version=__version__,
                force_download=force_download,
            )
        )
    _check_content(where, path)
    return path


def download_matching(
    repo_id: str,
    patterns: Sequence[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the folder with the files of a Hub repository that match patterns, each checked as by [`download`].

    Args:
        repo_id (`str`): The repository.
        patterns (`Sequence[str]`): Globs of the files' paths in the repository.
        revision (`str`, *optional*): As in [`download`]; so are the others.
        token (`str` or `bool`, *optional*): See there.
        cache_dir (`str` or `os.PathLike`, *optional*): See there.
        local_files_only (`bool`, *optional*, defaults to `False`): See there.

    Raises:
        [`UnknownNameError`]: if there is no such repository or revision, or it cannot be reached and is not cached.
        [`FileFormatError`]: if a content is not what the Hub says it is.
    """
    where = repr(str(repo_id))
    check_inside(where, "revision", revision)
    with _hub_errors(where, "such file", subfolder=None, revision=revision):
        root = Path(
            snapshot_download(
                str(repo_id),
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                local_files_only=local_files_only,
                allow_patterns=list(patterns),
                library_name="hf_mote",
                library_version=__version__,
            )
        )
    for path in sorted(root.rglob("*")):
        if path.is_file() and any(fnmatchcase(path.relative_to(root).as_posix(), one) for one in patterns):
            _check_content(where, path)
    return root


def upload(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    commit_message: str,
    commit_description: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
    texts: Sequence[str] = (),
) -> str:
    """Upload a folder to a Hub repository in one commit, and return the commit's URL.

    A card that is there already is kept, unless it was made here.

    Args:
        folder (`str` or `os.PathLike`): The folder; every file in it is searched for private data before the upload.
        repo_id (`str`): `namespace/name`; made if it does not exist.
        private (`bool`, *optional*): Whether a repository that is made here is private.
        token (`str` or `bool`, *optional*): As in `huggingface_hub.HfApi`.
        commit_message (`str`): Title of the commit.
        commit_description (`str`, *optional*): Description of the commit.
        revision (`str`, *optional*): Branch to commit to, made if it does not exist.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request rather than commit.
        subfolder (`str`, *optional*): Folder in the repository.
        texts (`Sequence[str]`, *optional*): Texts that must not be among what is uploaded.

    Raises:
        [`UnsupportedError`]: if a file holds something private, or the Hub refuses, with its reason.
        [`UnknownNameError`]: if there is no such repository or the token is refused.
    """
    where = repr(str(repo_id))
    check_upload(folder, repo_id, token=token, revision=revision, subfolder=subfolder, texts=texts)
    with _push_errors(where):
        api = HfApi(token=token, library_name="hf_mote", library_version=__version__)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        theirs = text_there(repo_id, CARD, subfolder=subfolder, revision=revision, token=token)
        is_ours = theirs is None or MADE_HERE in theirs
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=Path(folder),
            path_in_repo=subfolder,
            ignore_patterns=None if is_ours else [CARD],
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit.pr_url or commit.commit_url)


def check_upload(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    token: str | bool | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    texts: Sequence[str] = (),
) -> None:
    """Refuse an upload that can be known to be wrong without asking the Hub.

    Args:
        folder (`str` or `os.PathLike`): As in [`upload`]; so are the others.
        repo_id (`str`): See there.
        token (`str` or `bool`, *optional*): See there.
        revision (`str`, *optional*): See there.
        subfolder (`str`, *optional*): See there.
        texts (`Sequence[str]`, *optional*): See there.

    Raises:
        [`UnsupportedError`]: if a file holds something private.
        [`UnknownNameError`]: if the repository's name can be none.
        [`FileFormatError`]: if the folder or the revision leads out of the repository.
    """
    where = repr(str(repo_id))
    check_inside(where, "subfolder", subfolder)
    check_inside(where, "revision", revision)
    with _push_errors(where):
        validate_repo_id(repo_id)
    check_nothing_private(Path(folder), token=token, texts=texts)


def text_there(
    repo_id: str, file_name: str, *, subfolder: str | None, revision: str | None, token: str | bool | None
) -> str | None:
    """Return the text of a file as a repository has it now; `None` where there is none.

    Args:
        repo_id (`str`): The repository, which need not exist.
        file_name (`str`): The file.
        subfolder (`str`, *optional*): Folder in the repository.
        revision (`str`, *optional*): Branch, which need not exist.
        token (`str` or `bool`, *optional*): As in `huggingface_hub.HfApi`.

    Raises:
        [`UnknownNameError`]: if the Hub cannot be asked.
    """
    with tempfile.TemporaryDirectory() as cache:
        try:
            path = download(repo_id, file_name, subfolder=subfolder, revision=revision, token=token, cache_dir=cache)
        except HFMoTEError as error:
            # If the Hub cannot be reached, an existing file might be overwritten.
            absent = isinstance(error.__cause__, (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError))
            if not absent or isinstance(error.__cause__, (LocalEntryNotFoundError, GatedRepoError)):
                raise
            return None
        return path.read_text(encoding="utf-8", errors="replace")


def check_inside(where: str, what: str, path: str | None) -> None:
    """Refuse a folder, file or revision that leads out of its folder or repository.

    Args:
        where (`str`): What errors name.
        what (`str`): What it is.
        path (`str`, *optional*): The path.

    Raises:
        [`FileFormatError`]: if it is absolute, or goes up.
    """
    inner = PurePosixPath(str(path or "").replace("\\", "/"))
    if inner.is_absolute() or ".." in inner.parts or re.match(r"[A-Za-z]:", str(inner)):
        raise FileFormatError(f"{where}: {what}", "leads out of the folder or repository", got=repr(path))


def _check_content(where: str, path: Path) -> None:
    """Refuse a file in the Hub's cache whose content does not have the digest in its name."""
    # Without symbolic links the cache does not say which digest a file has.
    if not path.is_symlink():
        return
    blob = Path(os.path.realpath(path))
    kind = _DIGESTS.get(len(blob.name)) if re.fullmatch(r"[0-9a-f]+", blob.name) else None
    inside = path.parts[path.parts.index("snapshots") :] if "snapshots" in path.parts else ()
    commit = inside[1] if len(inside) > 2 else ""
    if kind is None or blob.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise FileFormatError(
            f"{where}: {path.name}",
            "the server names no digest or commit, as the Hub does",
            got=f"{blob.name[:80]!r} of commit {commit[:80]!r}",
            fix="Check the environment variable HF_ENDPOINT, and which server it names.",
        )
    # Large files are named by the digest of their content, files in git by git's, which some mirrors do not frame.
    plain = hashlib.new(kind)
    digests = [plain] if kind == "sha256" else [plain, hashlib.new(kind, b"blob %d\0" % blob.stat().st_size)]
    try:
        with open(blob, "rb") as file:
            while part := file.read(_AT_ONCE):
                for digest in digests:
                    digest.update(part)
    except OSError as error:
        raise FileFormatError(f"{where}: {path.name}", "cannot be read", got=first_line(error)) from error
    if blob.name not in [digest.hexdigest() for digest in digests]:
        raise FileFormatError(
            f"{where}: {path.name}",
            "its content is not what the Hub says it is",
            got=f"{kind} {plain.hexdigest()[:12]}",
            expected=blob.name[:12],
            fix=f"The download was damaged or somebody changed it: delete {blob} and load it again.",
        )


@contextmanager
def _hub_errors(where: str, file_name: str, *, subfolder: str | None, revision: str | None) -> Iterator[None]:
    """Turn the errors of a download into this package's errors."""

    def unknown(what: str, error: Exception, fix: str) -> UnknownNameError:
        return UnknownNameError(where, what, got=first_line(error), fix=fix)

    try:
        yield
    except HFMoTEError:
        raise
    except HFValidationError as error:
        fix = "Check the path, or give 'namespace/name'."
        raise unknown("is not a file or folder here and cannot be a Hub id", error, fix) from error
    except LocalEntryNotFoundError as error:
        what = f"is not a file or folder here, and {file_name} of a Hub repository of that name is not in the cache"
        raise unknown(what, error, _ONLINE) from error
    except EntryNotFoundError as error:
        raise FileFormatError(
            where,
            f"the Hub repository holds no {file_name}",
            got=f"subfolder {subfolder!r}, revision {revision!r}",
            fix="Name the subfolder or revision that has it.",
        ) from error
    except RevisionNotFoundError as error:
        what, fix = f"the Hub repository has no revision {revision!r}", "Name a branch, tag or commit that it has."
        raise unknown(what, error, fix) from error
    except GatedRepoError as error:
        fix = "Ask for access on its page on the Hub, then log in or pass token."
        raise unknown("the Hub repository is gated", error, fix) from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code == 401 and _bad_token(error):
            fix = "Log in again with `hf auth login`, or pass another token."
            raise unknown("the Hub refuses the token", error, fix) from error
        raise unknown(
            "is not a file or folder here, and the Hub gave no repository of that name",
            error,
            "Check the path or the id; for a private or gated repository log in or pass token.",
        ) from error
    # The rest: no network, a broken connection, no space, an impossible path.
    except Exception as error:
        fix = "Check the path and the connection, and try again."
        raise unknown("is not a file or folder here, and cannot be downloaded", error, fix) from error


@contextmanager
def _push_errors(where: str) -> Iterator[None]:
    """Turn the errors of an upload into this package's errors."""
    try:
        yield
    except HFMoTEError:
        raise
    except HFValidationError as error:
        fix = "Give 'namespace/name'."
        raise UnknownNameError(where, "cannot be a Hub id", got=first_line(error), fix=fix) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        reason = error.server_message or first_line(error)
        if status == 401 and _bad_token(error):
            fix = "Log in again with `hf auth login`, or pass another token."
            raise UnknownNameError(where, "the Hub refuses the token", got=reason, fix=fix) from error
        if status in (401, 404):
            what = "the Hub does not let you write there"
            fix = "Log in with `hf auth login`, or pass a token that may write to it."
            raise UnknownNameError(where, what, got=reason, fix=fix) from error
        raise UnsupportedError(where, "the Hub refuses the upload", got=reason) from error
    # The rest: no token, no network, a card that the Hub refuses.
    except Exception as error:
        raise UnsupportedError(where, "cannot be uploaded", got=first_line(error)) from error


def _bad_token(error: HfHubHTTPError) -> bool:
    return "credentials" in str(error).lower() or "username or password" in str(error).lower()
