"""Save / load / push and model cards, for configs, maps and rankings alike.

A noun that lives in one file mixes in [`Shareable`] and says how it is written to and read from that file; folders,
the Hub, the card and the promise that a failed save loses nothing come from here. Files are JSON or safetensors and
nothing else, through the four functions of `files.py` re-exported here.
"""

from __future__ import annotations

import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from huggingface_hub import HfApi, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from hf_mote.errors import FileFormatError, UnknownNameError, first_line
from hf_mote.files import RESULT_LIMIT, local_path, read_json, read_tensors, replacing, write_json, write_tensors
from hf_mote.version import __version__

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "RESULT_LIMIT",
    "Shareable",
    "card_header",
    "public_name",
    "read_json",
    "read_tensors",
    "write_json",
    "write_tensors",
]

_MADE_HERE = "<!-- made by hf_mote; take this line out to keep the card when the folder is written again -->"
_HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")
_CACHED = re.compile(r"models--(\w[\w.-]*?)(?:--(\w[\w.-]*))?")  # a repository's folder in the Hub's cache
_PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})


class Shareable(ABC):
    """Mixin for a noun that lives in one file: `save_pretrained`, `from_pretrained`, `push_to_hub`.

    A subclass sets `file_name` and implements `_to_file(path)` and the class method `_from_file(path)`; it may
    override `_card()`, which returns the text of README.md with its YAML front matter (see [`card_header`]).

    Example:
        ```python
        import tempfile
        from pathlib import Path

        from hf_mote.hub import Shareable, read_json, write_json

        class Note(Shareable):
            file_name = "note.json"

            def __init__(self, text):
                self.text = text

            def _to_file(self, path):
                write_json(path, {"text": self.text})

            @classmethod
            def _from_file(cls, path):
                return cls(read_json(path)["text"])

        with tempfile.TemporaryDirectory() as folder:
            Note("hello").save_pretrained(folder)
            assert Note.from_pretrained(folder).text == "hello"
            assert (Path(folder) / "README.md").exists()
        ```
    """

    file_name: ClassVar[str]

    @abstractmethod
    def _to_file(self, path: Path) -> None: ...

    @classmethod
    @abstractmethod
    def _from_file(cls, path: Path) -> Self: ...

    def _card(self) -> str:
        name = type(self).__name__
        return (
            f"{card_header()}\n# {name}\n\nSaved by `hf_mote` {__version__}. To load it:\n\n```python\n"
            f'import hf_mote\n\nhf_mote.{name}.from_pretrained("<this repository or folder>")\n```\n'
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the file, and a card if the folder has none, so that a failure leaves what was there before.

        Args:
            folder (`str` or `os.PathLike`):
                Made if it does not exist. A README.md is kept unless it is a card that was made here.

        Raises:
            [`FileFormatError`]: if `folder` cannot be a folder, or the object holds what a file cannot.
        """
        folder, card = Path(folder), self._card()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise FileFormatError(
                str(folder), "cannot be made a folder", got=first_line(error), fix="Give a folder you may write to."
            ) from error
        with replacing(folder / self.file_name) as path:
            self._to_file(path)
        readme = folder / "README.md"
        if not readme.exists() or _MADE_HERE in readme.read_text(encoding="utf-8", errors="replace"):
            with replacing(readme) as path:
                path.write_text(f"{card}\n{_MADE_HERE}\n", encoding="utf-8")

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Return the object saved in a file, a folder or a Hub repository.

        Args:
            path_or_repo (`str` or `os.PathLike`):
                A local file, a local folder that holds `file_name`, or a Hub repository id. What exists locally wins.
            subfolder (`str`, *optional*):
                Folder below the folder or repository.
            revision (`str`, *optional*):
                Branch, tag or commit of the Hub repository.
            token (`str` or `bool`, *optional*):
                As in `huggingface_hub.hf_hub_download`; so are the next two.
            cache_dir (`str` or `os.PathLike`, *optional*):
                Where downloads are kept.
            local_files_only (`bool`, *optional*, defaults to `False`):
                Look in the cache only.

        Raises:
            [`UnknownNameError`]: if there is no such file, folder or reachable repository.
            [`FileFormatError`]: if the folder or repository lacks the file, or the file is not what it should be.
        """
        local = local_path(path_or_repo)
        if os.path.isdir(local):
            path = local / (subfolder or "") / cls.file_name
            if not os.path.isfile(path):
                found = sorted(os.listdir(path.parent))[:12] if os.path.isdir(path.parent) else []
                raise FileFormatError(
                    str(path.parent),
                    f"holds no {cls.file_name}",
                    got=", ".join(found) or "an empty or missing folder",
                    fix=f"Give the folder that {cls.__name__}.save_pretrained wrote.",
                )
        elif os.path.isfile(local):
            path = local
        else:
            path = _download(
                str(path_or_repo),
                cls.file_name,
                subfolder=subfolder,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
            )
        if path.suffix.lower() in _PICKLE_SUFFIXES:
            raise FileFormatError(
                str(path),
                "looks like a pickle, which can run code when it is read",
                got=path.suffix,
                expected=Path(cls.file_name).suffix,
                fix=f"Nothing is unpickled here. Load a file that {cls.__name__}.save_pretrained wrote.",
            )
        return cls._from_file(path)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Upload the file, and a card if the repository has none, and return the commit's URL.

        Args:
            repo_id (`str`):
                `namespace/name`; made if it does not exist.
            private (`bool`, *optional*):
                Whether a repository that is made here is private; by default as the namespace has it.
            token (`str` or `bool`, *optional*):
                As in `huggingface_hub.HfApi`.
            commit_message (`str`, *optional*):
                By default "Upload <class name>".
            revision (`str`, *optional*):
                Branch to commit to, made if it does not exist.
            create_pr (`bool`, *optional*, defaults to `False`):
                Open a pull request rather than commit.

        Raises:
            `huggingface_hub.errors.HfHubHTTPError`: if the Hub refuses, with the Hub's own reason.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api = HfApi(token=token, library_name="hf_mote", library_version=__version__)
            repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            if api.file_exists(repo_id, "README.md", revision=revision):
                (Path(folder) / "README.md").unlink()
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                revision=revision,
                create_pr=create_pr,
            )
        return str(commit.commit_url)


def card_header(*, tags: Iterable[str] = (), base_model: str | None = None, about: str = "mixture-of-experts") -> str:
    """Return a card's YAML front matter, fences included.

    Args:
        tags (`Iterable[str]`, *optional*):
            Added to "hf_mote" and `about`.
        base_model (`str`, *optional*):
            The model this belongs to; left out unless it reads as a Hub id, as the Hub refuses any other.
        about (`str`, *optional*, defaults to `"mixture-of-experts"`):
            What kind of thing it is about.
    """
    data = ModelCardData(
        library_name="hf_mote",
        tags=list(dict.fromkeys(["hf_mote", about, *tags])),
        base_model=base_model if re.fullmatch(r"[\w.-]+/[\w.-]+", base_model or "") else None,
    )
    return f"---\n{data.to_yaml().strip()}\n---\n"


def public_name(name: str | os.PathLike[str] | None) -> str | None:
    """Return what to call a model in a file that others may read: nothing of where it lies on somebody's machine.

    Args:
        name (`str` or `os.PathLike`, *optional*):
            What the model was loaded from, as `model.config.name_or_path` has it.

    Returns:
        `str`, *optional*: a Hub id as it is; a folder's own name, or the repository's id for one in the Hub's cache;
        `None` for no name.
    """
    text = os.fspath(name) if name is not None else ""
    if _HUB_ID.fullmatch(text) and not os.path.exists(text):
        return text
    parts = [part for part in re.split(r"[/\\]", text) if part]
    for part in reversed(parts):
        cached = _CACHED.fullmatch(part)
        if cached:
            return "/".join(filter(None, cached.groups()))
    if parts and not parts[-1].strip("."):
        parts = [part for part in Path(text).resolve().parts if part != os.sep]
    return parts[-1] if parts else None


def _download(repo_id: str, file_name: str, **options: Any) -> Path:
    def refusal(what: str, reason: str, fix: str) -> UnknownNameError:
        return UnknownNameError(repr(repo_id), what, got=(reason.strip() or "no reason").splitlines()[0], fix=fix)

    try:
        return Path(hf_hub_download(repo_id, file_name, library_name="hf_mote", **options))
    except HFValidationError as error:
        raise refusal(
            "is no file or folder here and cannot be a Hub id", str(error), "Check the path, or give 'namespace/name'."
        ) from error
    except LocalEntryNotFoundError as error:
        raise refusal(
            f"is no file or folder here, and {file_name} of a Hub repository of that name is not in the cache",
            str(error),
            "Check the path or the id; to download, be online and unset HF_HUB_OFFLINE and local_files_only.",
        ) from error
    except EntryNotFoundError as error:
        raise FileFormatError(
            repr(repo_id),
            f"the Hub repository holds no {file_name}",
            got=f"subfolder {options['subfolder']!r}, revision {options['revision']!r}",
            fix="Name the subfolder or revision that has it.",
        ) from error
    except HfHubHTTPError as error:
        raise refusal(
            "is no file or folder here, and the Hub gave no repository of that name",
            str(error),
            "Check the path or the id; for a private or gated repository log in or pass token.",
        ) from error
    # What is left: no network, no space, a path that cannot be.
    except (OSError, ValueError) as error:
        raise refusal("is no file or folder here, and cannot be downloaded", str(error), "Check the path.") from error
