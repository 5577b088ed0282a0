"""Save, load and push, for everything that lives in one file.

A class that derives from [`Shareable`] says how it is written to and read from its file. Folders, the Hub, the card,
the privacy of the author (by `sharing/`), and the promise that a failed save loses nothing, come from here.
Files are JSON or safetensors and nothing else, through the four functions of `files.py` re-exported here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from hf_mote.errors import FileFormatError, first_line
from hf_mote.files import RESULT_LIMIT, local_path, read_json, read_tensors, replacing, write_json, write_tensors
from hf_mote.folders import check_folder, replacing_folder, staging
from hf_mote.sharing.cards import CARD, MADE_HERE, CardNotes, Evidence, card_header, compose_card, evidence_of
from hf_mote.sharing.privacy import public_name
from hf_mote.sharing.shipped import shipped_folder
from hf_mote.sharing.transfer import check_inside, download, upload
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

_PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})


class Shareable(ABC):
    """Mixin for an object that is saved as one file: `save_pretrained`, `from_pretrained`, `push_to_hub`.

    A subclass sets `file_name` and implements `_to_file(path)` and the class method `_from_file(path)`. It may
    override `_card(notes, evidence)`, which returns the text of README.md with its YAML front matter (see
    [`card_header`]); `_evidence()`, what it says on the card of another; `_public()`, a copy without the author's
    private data; and `_texts()`, the texts that a push must not hold.

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

    def _card(self, notes: CardNotes, evidence: Sequence[Evidence]) -> str:
        name = type(self).__name__
        return compose_card(
            card_header(notes=notes, evidence=evidence, name=name),
            name,
            f"Saved by `hf_mote` {__version__}.",
            load=f'import hf_mote\n\nhf_mote.{name}.from_pretrained("<this repository or folder>")',
            notes=notes,
            evidence=evidence,
            intended_use="Not stated.",
            misuse="Not stated.",
        )

    def _evidence(self) -> Evidence:
        return Evidence()

    def _public(self, *, with_texts: bool) -> Self:
        return self

    def _texts(self) -> list[str]:
        return []

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        datasets: Sequence[str] = (),
        license: str | None = None,
        intended_use: str | None = None,
        misuse: str | None = None,
    ) -> None:
        """Write the file, and a card if the folder has none, so that a failure leaves what was there before.

        Args:
            folder (`str` or `os.PathLike`):
                Made if it does not exist. A README.md is kept unless it is a card that was made here.
            datasets (`Sequence[str]`, *optional*):
                For the card: Hub ids of the data sets that it was made or measured with.
            license (`str`, *optional*):
                For the card: its license, as the Hub names it.
            intended_use (`str`, *optional*):
                For the card: what it is for.
            misuse (`str`, *optional*):
                For the card: what it must not be used for.

        Raises:
            [`FileFormatError`]: if `folder` cannot be a folder, or the object holds what a file cannot.
            [`ConfigError`]: if something for the card is malformed.
        """
        self._write(Path(folder), CardNotes(datasets, license, intended_use, misuse), [], [])

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
                A local file, a local folder that holds `file_name`, the name of a config that comes with the package
                (as `hf-mote configs` lists them), or a Hub repository id. What exists locally wins.
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
        check_inside(repr(str(path_or_repo)), "subfolder", subfolder)
        local = local_path(path_or_repo)
        if not os.path.exists(local):
            local = shipped_folder(path_or_repo) or local
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
            path = download(
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
        subfolder: str | None = None,
        with_texts: bool = False,
        datasets: Sequence[str] = (),
        license: str | None = None,
        intended_use: str | None = None,
        misuse: str | None = None,
    ) -> str:
        """Upload the file, its card and pictures in one commit, and return the commit's URL.

        Paths of the author's files are left out or reduced to names, and prompts and responses are left out. All files
        are searched for tokens and paths before they are uploaded.

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
                Open a pull request rather than commit, and return its URL.
            subfolder (`str`, *optional*):
                Folder in the repository. A card there that was not made here is kept.
            with_texts (`bool`, *optional*, defaults to `False`):
                Upload prompts and responses, too, where the object holds them.
            datasets (`Sequence[str]`, *optional*):
                For the card, as in `save_pretrained`; so are the others.
            license (`str`, *optional*):
                See there.
            intended_use (`str`, *optional*):
                See there.
            misuse (`str`, *optional*):
                See there.

        Raises:
            [`UnknownNameError`]: if there is no such repository, or the token is refused.
            [`UnsupportedError`]: if the Hub refuses, with its reason, or something private would be uploaded.
            [`FileFormatError`]: if `subfolder` leads out of the repository.
        """
        notes = CardNotes(datasets, license, intended_use, misuse)
        return self._push(
            repo_id,
            notes,
            [],
            private=private,
            token=token,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            subfolder=subfolder,
            with_texts=with_texts,
        )

    def _push(
        self,
        repo_id: str,
        notes: CardNotes,
        beside: Sequence[tuple[str, Shareable]],
        *,
        private: bool | None,
        token: str | bool | None,
        commit_message: str | None,
        revision: str | None,
        create_pr: bool,
        subfolder: str | None,
        with_texts: bool,
    ) -> str:
        """Upload this and the files beside it, as `push_to_hub` describes."""
        shown = self._public(with_texts=with_texts)
        shared = [(place, one._public(with_texts=with_texts)) for place, one in beside]
        secret = [] if with_texts else [text for one in (self, *(one for _, one in beside)) for text in one._texts()]
        with staging("push_to_hub") as folder:
            evidence = evidence_of([(place, one._evidence()) for place, one in shared or [("", shown)]])
            shown._write(folder, notes, shared, evidence)
            return upload(
                folder,
                repo_id,
                private=private,
                token=token,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                revision=revision,
                create_pr=create_pr,
                subfolder=subfolder,
                texts=secret,
            )

    def _write(
        self, folder: Path, notes: CardNotes, beside: Sequence[tuple[str, Shareable]], evidence: Sequence[Evidence]
    ) -> None:
        """Write the file, the card, and beside them others by their folders, with the pictures of the evidence.

        Several files are put in place at once, as the folder that they are in; where that cannot be exchanged, the
        main one is deleted first and written last, so that a killed run leaves a folder that is refused.
        """
        card = self._card(notes, evidence)
        pictures = [picture for part in evidence for picture in part.pictures]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            fix = "Give a folder you may write to."
            raise FileFormatError(str(folder), "cannot be made a folder", got=first_line(error), fix=fix) from error
        readme = folder / CARD
        keeps = readme.exists() and MADE_HERE not in readme.read_text(encoding="utf-8", errors="replace")

        def write(target: Path) -> None:
            for place, one in beside:
                with _own_errors(target / place):
                    (target / place).mkdir(parents=True, exist_ok=True)
                with replacing(target / place / one.file_name) as path:
                    one._to_file(path)
            for picture in pictures:
                with replacing(target / picture.file_name) as path:
                    picture.draw(path)
            # Both are written before either is put in place: on a full disk neither is.
            with ExitStack() as stack:
                if not keeps:
                    path = stack.enter_context(replacing(target / CARD))
                    path.write_text(f"{card}\n{MADE_HERE}\n", encoding="utf-8")
                self._to_file(stack.enter_context(replacing(target / self.file_name)))

        if not beside and not pictures:
            write(folder)
            return
        try:
            check_folder(folder, str(folder))
        except FileFormatError:
            with _own_errors(folder):
                (folder / self.file_name).unlink(missing_ok=True)
            write(folder)
            return
        with replacing_folder(folder, str(folder), lambda _: ()) as draft:
            write(draft)


@contextmanager
def _own_errors(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        fix = "Give a folder you may write to."
        raise FileFormatError(str(place), "cannot be written to", got=first_line(error), fix=fix) from error
