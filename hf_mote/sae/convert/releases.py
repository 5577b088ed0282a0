"""Public SAEs by name: the releases that SAELens lists, as a table in this package.

`releases.json` is made from the list in SAELens by `tests/make_releases.py`, with its version and date. It
holds only names and places, not the SAEs themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from hf_mote.errors import FileFormatError, UnknownNameError
from hf_mote.sae.convert.formats import Known

__all__ = ["Entry", "Provenance", "entries", "find", "of_path", "provenance", "releases"]

# SAELens' names of the formats of this package.
_FORMATS = {
    "connor_rob_hook_z": "hook_z",
    "deepseek_r1": "deepseek_r1",
    "dictionary_learning_1": "dictionary_learning",
    "gemma_2": "gemma_scope",
    "gemma_2_transcoder": "gemma_scope",
    "gemma_3": "gemma_scope_2",
    "goodfire": "goodfire",
    "llama_scope": "llama_scope",
    "llama_scope_r1_distill": "lm_saes",
    "mntss_clt_layer_transcoder": "circuit_tracer_clt",
    "mwhanna_transcoder": "circuit_tracer",
    "qwen_scope": "qwen_scope",
    "sae_lens": "saelens",
    "sparsify": "sparsify",
    "temporal": "temporal",
}


class Provenance(NamedTuple):
    """The origin of the table.

    Attributes:
        source (`str`): Library and version.
        date (`str`): Day it was made.
    """

    source: str
    date: str


class Entry(NamedTuple):
    """One SAE of the table.

    Attributes:
        known (`Known`): What the table says of it.
        loader (`str`): What SAELens calls its format.
        neuronpedia (`str`, *optional*): Its id there.
    """

    known: Known
    loader: str
    neuronpedia: str | None


def provenance() -> Provenance:
    """Return the origin of the table."""
    return Provenance(_table()["source"], _table()["date"])


def releases() -> list[str]:
    """Return the names of all releases."""
    return list(_table()["releases"])


def entries(release: str) -> list[Entry]:
    """Return the SAEs of a release.

    Raises:
        [`UnknownNameError`]: if there is no such release, with the nearest name.
    """
    table = _table()["releases"]
    if release not in table:
        raise UnknownNameError.of("release", release, table)
    return [_entry(release, table[release], item) for item in table[release]["saes"]]


def find(name: str, sae_id: str | None) -> Known | None:
    """Return the entry of an SAE by release and id or by its Neuronpedia id, or `None`.

    Raises:
        [`FileFormatError`]: if a release is named without an id, with the ids there are.
        [`UnknownNameError`]: if the release has no such id, or an id is given without a release.
    """
    if name in _table()["releases"]:
        found = {entry.known.sae_id: entry.known for entry in entries(name)}
        if sae_id is None:
            shown = ", ".join(list(found)[:12])
            more = f" and {len(found) - 12} more" if len(found) > 12 else ""
            raise FileFormatError(
                name, "is a release of several SAEs", got=f"{shown}{more}", fix="Say which one is meant, by sae_id."
            )
        if sae_id not in found:
            # Not all of up to a thousand.
            raise UnknownNameError.of(f"{name}: sae_id", sae_id, _nearest(sae_id, list(found)))
        return found[sae_id]
    if sae_id is not None:
        raise UnknownNameError.of("load_sae: sae_id is given, but release", name, _nearest(name, releases()))
    return _by_neuronpedia().get(name)


def of_path(repo_id: str, path: str) -> Known | None:
    """Return the entry of an SAE by its repository and the folder or file in it, or `None`."""
    return _by_path().get((repo_id, path.strip("/")))


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(files(__package__).joinpath("releases.json").read_text(encoding="utf-8"))
    return table


@cache
def _by_neuronpedia() -> dict[str, Known]:
    found = (entry for release in releases() for entry in entries(release))
    return {entry.neuronpedia: entry.known for entry in found if entry.neuronpedia is not None}


@cache
def _by_path() -> dict[tuple[str, str], Known]:
    found = (entry.known for release in releases() for entry in entries(release))
    return {(known.repo_id, known.path): known for known in found}


def _entry(release: str, about: Mapping[str, Any], item: str | list[Any]) -> Entry:
    sae_id, path, neuronpedia, factor = [*([item] if isinstance(item, str) else item), None, None, None][:4]
    loader = about["loader"]
    known = Known(
        repo_id=about["repo_id"],
        path=_path(loader, path or about["path"].replace("{}", sae_id)),
        format=_FORMATS.get(loader, loader),
        release=release,
        sae_id=sae_id,
        model=about["model"],
        hook=_hook(sae_id),
        norm_scaling_factor=factor,
        normalization=about.get("normalize_activations"),
        centred=about.get("center_writing_weights", False),
    )
    return Entry(known, loader, neuronpedia)


def _path(loader: str, path: str) -> str:
    """Return the folder or file of an SAE, where the list has only the number of a layer."""
    return f"W_enc_{path}.safetensors" if loader == "mntss_clt_layer_transcoder" else path


def _hook(sae_id: str) -> str | None:
    """Return the hook of TransformerLens that an id names (`"blocks.3.hook_resid_post__trainer_0"`)."""
    found = re.match(r"blocks\.\d+\.(attn\.|mlp\.)?hook_[a-z]+(_[a-z]+)*(?=$|_)", sae_id)
    if found is None:
        return None
    # The list leaves the component out.
    return found[0].replace(".hook_z", ".attn.hook_z") if ".attn." not in found[0] else found[0]


def _nearest(name: str, known: list[str]) -> list[str]:
    """Return the names that share most with one, so that an error does not list thousands."""
    parts = set(re.findall(r"[a-z]+|\d+", name.lower()))
    return sorted(known, key=lambda one: -len(parts & set(re.findall(r"[a-z]+|\d+", one.lower()))))[:12]
