"""Keeps private data of the author out of shared files: local paths, access tokens, texts of prompts."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from hf_mote.errors import UnsupportedError

__all__ = ["check_nothing_private", "is_hub_id", "private_in", "public_name", "without_places"]

_HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*")
_CACHED = re.compile(r"models--(\w[\w.-]*?)(?:--(\w[\w.-]*))?")  # a repository's folder in the Hub's cache
# An absolute path or one from the home folder, with a folder in it; not the rest of a URL or of a fraction.
_PLACE = re.compile(
    r"(?<![\w:/.~-])(?:~|[A-Za-z]:)?[/\\](?!/)[^\s/\\\"'`,;:|()<>]+(?:[/\\][^\s/\\\"'`,;:|()<>]+)+[/\\]?"
)
_TOKEN = re.compile(rb"\b(?:hf_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,})")


def public_name(name: str | os.PathLike[str] | None) -> str | None:
    """Return the name of a model for a file that others may read, without local paths.

    Args:
        name (`str` or `os.PathLike`, *optional*):
            What the model was loaded from, as `model.config.name_or_path` has it.

    Returns:
        `str`, *optional*: a Hub id as it is; a folder's own name, or the repository's id for one in the Hub's cache;
        `None` for no name.
    """
    text = os.fspath(name) if name is not None else ""
    if is_hub_id(text):
        return text
    parts = [part for part in re.split(r"[/\\]", text) if part]
    for part in reversed(parts):
        cached = _CACHED.fullmatch(part)
        if cached:
            return "/".join(filter(None, cached.groups()))
    if parts and not parts[-1].strip("."):
        parts = [part for part in Path(text).resolve().parts if part != os.sep]
    return parts[-1] if parts else None


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of a Hub id and is not a file or folder here."""
    return bool(_HUB_ID.fullmatch(name)) and not os.path.exists(name)


def without_places(value: Any) -> Any:
    """Return a JSON-native value in whose texts paths are reduced to the names of files and folders.

    Args:
        value (`Any`): Text, or lists and mappings of it; anything else is returned as it is.
    """
    if isinstance(value, str):
        return _PLACE.sub(lambda found: public_name(found[0]) or "", value)
    if isinstance(value, Mapping):
        return {without_places(key): without_places(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(entry) for entry in value]
    return value


def check_nothing_private(folder: Path, *, token: str | bool | None = None, texts: Iterable[str] = ()) -> None:
    """Raise if a file of a folder holds a token, a path of the author's files, or texts that are not to be shared.

    Args:
        folder (`Path`): What is about to be uploaded.
        token (`str` or `bool`, *optional*): The token that it is uploaded with.
        texts (`Iterable[str]`, *optional*): Texts that must not be in it, of 12 characters or more.

    Raises:
        [`UnsupportedError`]: with the file's name and what it holds; the token itself is not repeated.
    """
    for name, found in private_in(folder, token=token, texts=texts):
        fix = "Take it out and push again; nothing was uploaded."
        raise UnsupportedError(f"push: {name}", f"holds {found}, and would be read by others", fix=fix)


def private_in(
    folder: Path, *, token: str | bool | None = None, texts: Iterable[str] = ()
) -> Iterator[tuple[str, str]]:
    """Yield each file of a folder that holds what others must not read, with what it is.

    Args:
        folder (`Path`): As in [`check_nothing_private`]; so are the others.
        token (`str` or `bool`, *optional*): See there.
        texts (`Iterable[str]`, *optional*): See there.
    """
    home = os.path.expanduser("~")
    secret = {text for text in (token, get_token()) if isinstance(text, str) and text}
    wanted = [(text.encode(), "the token that you are logged in with") for text in secret]
    if len(Path(home).parts) > 1:
        wanted += [(f"{home}{os.sep}".encode(), "a path in your home folder")]
    wanted += [(text.encode(), "the text of a prompt or response") for text in texts if len(text) >= 12]
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file()):
        if not path.stat().st_size:
            continue
        # Mapped, since weights may be larger than memory.
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            found = next((what for text, what in wanted if content.find(text) >= 0), None)
            if found is None and _TOKEN.search(content):
                found = "what looks like a token"
        if found is not None:
            yield path.relative_to(folder).as_posix(), found
