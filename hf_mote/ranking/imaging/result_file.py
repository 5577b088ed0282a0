"""Builds an `FTRIResult` from a file, or from maps of single prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_mote.errors import DataError, FileFormatError, HFMoTEError
from hf_mote.files import read_tensors, write_tensors
from hf_mote.generation.chat import Prompt
from hf_mote.generation.prompts import checked_prompts, prompt_text
from hf_mote.maps.activation_map import ActivationMap
from hf_mote.maps.storage import row_blocks
from hf_mote.mote.fields import check_experts_of, checked_fingerprint
from hf_mote.ranking.imaging.scopes import check_scope

__all__ = ["check_chosen", "check_recorded", "parts_from_maps", "read_parts", "split_tokens", "write_parts"]

_KIND = "ftri_result"
_NAMES = ("prompts", "responses", "classes", "scope", "fingerprint", "base_model", "provenance")


def write_parts(path: Path, parts: Mapping[str, Any]) -> None:
    """Write a result's file.

    Args:
        path (`Path`): The file.
        parts (`Mapping[str, Any]`): Its fields, by name.
    """
    tensors = {name: parts[name] for name in ("counts", "weights", "num_tokens")}
    if parts["prompt_index"] is not None:
        tensors["prompt_index"] = parts["prompt_index"]
    if parts["response_tokens"] is not None:
        tensors["response_tokens"] = torch.tensor(
            [token for tokens in parts["response_tokens"] for token in tokens], dtype=torch.int64
        )
        tensors["response_lengths"] = torch.tensor([len(tokens) for tokens in parts["response_tokens"]])
    known = {name: parts[name] for name in _NAMES}
    # By their names a missing one is noticed.
    metadata = {"kind": _KIND, "layers": list(parts["layers"]), "tensors": sorted(tensors), **known}
    write_tensors(path, tensors, metadata)


def read_parts(path: Path) -> dict[str, Any]:
    """Return the fields of a result that was written to a file, by name.

    Args:
        path (`Path`): The file.

    Raises:
        [`FileFormatError`]: if it holds none, or one whose parts do not fit together.
    """
    tensors, metadata = read_tensors(path, kind=_KIND)
    try:
        parts: dict[str, Any] = {name: metadata[name] for name in _NAMES}
        parts |= {name: tensors[name] for name in ("counts", "weights", "num_tokens")}
        parts |= {"layers": tuple(metadata["layers"]), "prompt_index": tensors.get("prompt_index")}
        parts["response_tokens"] = _tokens(tensors)
        held = metadata.get("tensors", sorted(tensors))  # files of 0.1 do not name them
        if held != sorted(tensors):
            fix = "Take a whole copy of the file, or image again."
            got = ", ".join(sorted(tensors))[:120]
            raise DataError("FTRIResult", "must hold the tensors that it names", got=got, expected=held, fix=fix)
        check_scope("FTRIResult.scope", parts["scope"])
        for name in ("prompts", "responses", "classes"):
            if not isinstance(parts[name], list) or not all(isinstance(text, str) for text in parts[name]):
                raise DataError(f"FTRIResult.{name}", "must be a list of texts")
        if parts["fingerprint"] is not None:
            parts["fingerprint"] = checked_fingerprint(parts["fingerprint"])
        if not isinstance(parts["base_model"], str | None) or not isinstance(parts["provenance"], dict):
            raise DataError("FTRIResult", "base_model or provenance is malformed")
        each = ("prompts", "responses", "classes", "counts", "weights", "num_tokens")
        sizes = {len(parts[name]) for name in each}
        sizes |= {len(parts[name]) for name in ("prompt_index", "response_tokens") if parts[name] is not None}
        if len(sizes) != 1:
            raise DataError("FTRIResult", "prompts, responses, classes and maps differ in number", got=sorted(sizes))
        check_index(parts["prompt_index"], len(parts["prompts"]))
        # Maps from elsewhere may be means or differences.
        if not _from_elsewhere(parts):
            check_recorded(parts["counts"], parts["weights"], parts["num_tokens"])
            _check_weights(parts["counts"], parts["weights"])
        rows = zip(parts["counts"], parts["weights"], parts["num_tokens"].tolist(), strict=True)
        for counts, weights, num_tokens in rows:  # which checks them
            ActivationMap(
                counts=counts.double(), weights=weights.double(), layers=parts["layers"], num_tokens=num_tokens
            )
        if parts["fingerprint"] is not None:
            grids = {name: parts[name] for name in ("counts", "weights")}
            check_experts_of("FTRIResult", parts["layers"], parts["counts"].shape[2], parts["fingerprint"], grids)
            if not _from_elsewhere(parts):
                top_k = dict(zip(*(parts["fingerprint"][name] for name in ("layers", "top_k")), strict=True))
                check_chosen(parts["counts"], parts["num_tokens"], [top_k[layer] for layer in parts["layers"]])
    except KeyError as error:
        raise FileFormatError(str(path), "lacks an entry", expected=error.args[0]) from error
    except (HFMoTEError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FileFormatError(str(path), "must hold an fTRI result", got=str(error).rstrip(".")) from error
    return parts


def _from_elsewhere(parts: Mapping[str, Any]) -> bool:
    """Whether a result is of maps that were not recorded here, by its provenance, which must say what it can.

    Raises:
        [`DataError`]: if it says something else, or what the result contradicts.
    """
    where, said = "FTRIResult.provenance", parts["provenance"]
    if said.get("source") != "maps":
        return False
    if said.get("weights") not in ("recorded", "not recorded"):
        got, expected = repr(said.get("weights"))[:60], "'recorded' or 'not recorded', beside the source 'maps'"
        fix = "Take a whole copy of the file, or make it again."
        raise DataError(f"{where}.weights", "must say whether they were", got=got, expected=expected, fix=fix)
    if parts["response_tokens"] is not None:
        what, fix = "must not be 'maps' beside tokens of responses, which were recorded here", "Leave it out."
        raise DataError(f"{where}.source", what, got="maps", fix=fix)
    return True


def _check_weights(counts: Tensor, weights: Tensor) -> None:
    """Raise [`DataError`] if experts were chosen, but no weight of any was recorded."""
    if any(bool(weights[rows].any()) for rows in row_blocks(weights)):
        return
    if any(bool(counts[rows].any()) for rows in row_blocks(counts)):
        what, fix = "must not be 0 for all experts that were chosen", "Take a whole copy of the file, or image again."
        raise DataError("FTRIResult.weights", what, got=0, fix=fix)


def check_index(index: Tensor | None, number: int) -> None:
    """Raise [`DataError`] unless an index of so many runs names for each the first run, or the first prompt, alike."""
    if index is None:
        return
    if index.ndim != 1 or index.dtype != torch.int64 or bool(((index < 0) | (index >= number)).any()):
        got = f"{index.dtype} of shape {tuple(index.shape)}"
        raise DataError("prompt_index", "names no prompts", got=got, expected=f"0..{number - 1}, int64")
    # Where each prompt was run several times, one after the other, prompts are numbered and not runs.
    if not any(_names_first(index.view(-1, repeats)) for repeats in range(1, number + 1) if number % repeats == 0):
        what, expected = "must name the first of equal prompts", "as in 0, 1, 0 where the third is the first again"
        raise DataError("prompt_index", what, got=str(index[:12].tolist()), expected=expected)


def _names_first(index: Tensor) -> bool:
    """Whether an index of shape `(prompts, runs)` has for each prompt the first equal one."""
    first = index[:, 0]
    return bool((index == first[:, None]).all() and (first < len(first)).all()) and bool(
        (first[first] == first).all() and (first <= torch.arange(len(first))).all()
    )


def check_recorded(counts: Tensor, weights: Tensor, num_tokens: Tensor) -> None:
    """Raise [`DataError`] unless maps can have been recorded.

    Args:
        counts (`torch.Tensor` of shape `(prompts, layers, experts)`): Tokens for which an expert was chosen.
        weights (`torch.Tensor` of the same shape): Sums of its routing weights.
        num_tokens (`torch.Tensor` of shape `(prompts,)`): Tokens counted.
    """
    if counts.ndim != 3 or weights.shape != counts.shape or num_tokens.shape != counts.shape[:1]:
        got = ", ".join(str(tuple(part.shape)) for part in (counts, weights, num_tokens))
        raise DataError("maps", "differ in shape", got=got, expected="one map for each prompt")
    if any(part.dtype not in (torch.float32, torch.float64) for part in (counts, weights, num_tokens)):
        raise DataError("maps", "have another dtype", got=counts.dtype, expected="float32")
    if not all(bool(weights[rows].isfinite().all()) for rows in row_blocks(weights)):
        raise DataError("weights", "must be finite")
    for rows in row_blocks(counts):
        some, most = counts[rows], num_tokens[rows]
        # NaN compares as false.
        whole = bool((most.frac() == 0).all() and (some.frac() == 0).all())
        if not whole or not bool(((some >= 0) & (some <= most[:, None, None])).all()):
            raise DataError("counts", "must be numbers of tokens", expected="whole numbers from 0 to num_tokens")
        if bool((weights[rows][some == 0] != 0).any()):
            what, fix = "must be 0 for experts that were not chosen", "Take a whole copy of the file, or image again."
            raise DataError("weights", what, got="another weight", expected=0, fix=fix)


def check_chosen(counts: Tensor, num_tokens: Tensor, top_k: Sequence[int]) -> None:
    """Raise [`DataError`] if experts were chosen more often than each token's router chooses.

    Args:
        counts (`torch.Tensor` of shape `(prompts, layers, experts)`): Tokens for which an expert was chosen.
        num_tokens (`torch.Tensor` of shape `(prompts,)`): Tokens counted.
        top_k (`Sequence[int]`): Experts that the router of each layer chooses for a token.
    """
    for rows in row_blocks(counts):
        most = torch.tensor(top_k, dtype=torch.float64) * num_tokens[rows].double()[:, None]
        if bool((counts[rows].sum(-1, dtype=torch.float64) > most).any()):
            expected = "at most top_k of each token"
            raise DataError("counts", "must be of at most top_k experts", expected=expected)


def parts_from_maps(
    maps: Sequence[ActivationMap],
    classes: Sequence[object],
    prompts: Sequence[Prompt] | None,
    responses: Sequence[str] | None,
    scope: str,
    fingerprint: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the fields of a result that holds one map for each prompt, by name; see `FTRIResult.from_maps`.

    Raises:
        [`DataError`]: if there are no maps, numbers differ, or maps are of different layers or experts, or of some
            that the fingerprint does not have.
        [`ConfigError`]: if the fingerprint is malformed.
    """
    where = "FTRIResult.from_maps"
    check_scope(f"{where}.scope", scope)
    maps = _listed(f"{where}.maps", maps)
    for index, one in enumerate(maps):
        if not isinstance(one, ActivationMap):
            got = type(one).__name__
            raise DataError(
                f"{where}.maps[{index}]", "must be a map", got=got, expected="an ActivationMap of one prompt"
            )
        if one.layers != maps[0].layers or one.counts.shape != maps[0].counts.shape:
            got = f"layers {list(one.layers)}, {one.counts.shape[1]} experts"
            expected = f"layers {list(maps[0].layers)}, {maps[0].counts.shape[1]} experts, as the first"
            raise DataError(f"{where}.maps[{index}]", "is of another model", got=got, expected=expected)
    labels = _one_each(f"{where}.classes", classes, len(maps))
    asked = [""] * len(maps)
    if prompts is not None:
        asked = [prompt_text(prompt) for prompt in checked_prompts(f"{where}.prompts", prompts)]
        _one_each(f"{where}.prompts", asked, len(maps))
    said = [""] * len(maps) if responses is None else _one_each(f"{where}.responses", responses, len(maps))
    for index, text in enumerate(said):
        if not isinstance(text, str):
            raise DataError(f"{where}.responses[{index}]", "must be a text", got=repr(text)[:60], expected="str")
    known = None if fingerprint is None else checked_fingerprint(fingerprint)
    if known is not None:
        for index, one in enumerate(maps):
            grids = {"counts": one.counts, "weights": one.weights}
            check_experts_of(f"{where}.maps[{index}]", one.layers, one.counts.shape[1], known, grids)
    recorded = all(one.provenance.get("weights") != "not recorded" for one in maps)
    return {
        "prompts": asked,
        "responses": said,
        "classes": [str(label) for label in labels],
        "counts": torch.stack([one.counts for one in maps]).float(),
        "weights": torch.stack([one.weights for one in maps]).float(),
        "num_tokens": torch.tensor([float(one.num_tokens) for one in maps], dtype=torch.float32),
        "layers": maps[0].layers,
        "scope": scope,
        "fingerprint": known,
        "provenance": {"source": "maps", "weights": "recorded" if recorded else "not recorded"},
        "prompt_index": _same_prompts(prompts),
    }


def _same_prompts(prompts: Sequence[Prompt] | None) -> Tensor | None:
    """Return for each prompt the first equal one; `None` if all differ, or prompts are unknown."""
    first: dict[str, int] = {}
    index = [first.setdefault(repr(prompt), place) for place, prompt in enumerate(prompts or ())]
    return torch.tensor(index) if len(first) < len(index) else None


def _listed(where: str, given: object) -> list[Any]:
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise DataError(where, "must be a non-empty list", got=repr(given)[:60], expected="one for each prompt")
    return list(given)


def _one_each(where: str, given: object, number: int) -> list[Any]:
    found = _listed(where, given)
    if len(found) != number:
        raise DataError(where, "is not one for each map", got=len(found), expected=number)
    if any(entry is None for entry in found):
        raise DataError(f"{where}[{found.index(None)}]", "is missing", got=None)
    return found


def _tokens(tensors: Mapping[str, Tensor]) -> list[list[int]] | None:
    if ("response_tokens" in tensors) != ("response_lengths" in tensors):
        found = next(name for name in ("response_tokens", "response_lengths") if name in tensors)
        expected = "both of response_tokens and response_lengths, or neither"
        raise DataError("FTRIResult", "holds one half of the tokens of responses", got=found, expected=expected)
    if "response_tokens" not in tensors:
        return None
    return split_tokens(tensors)


def split_tokens(tensors: Mapping[str, Tensor], vocab_size: int | None = None) -> list[list[int]]:
    """Return the tokens of each response from the two tensors in a file.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): `response_tokens`, one after the other, and `response_lengths`.
        vocab_size (`int`, *optional*): Size of the vocabulary.

    Raises:
        [`DataError`]: if they do not fit together, or hold invalid tokens.
    """
    tokens, lengths = tensors["response_tokens"], tensors["response_lengths"]
    for name, part in (("response_tokens", tokens), ("response_lengths", lengths)):
        if part.ndim != 1 or part.dtype != torch.int64 or (part.numel() and int(part.min()) < 0):
            got = f"{part.dtype} of shape {tuple(part.shape)}"
            raise DataError(name, "must be whole numbers", got=got, expected="int64 from 0")
    if int(lengths.sum()) != len(tokens):
        raise DataError("response_lengths", "do not add up", got=int(lengths.sum()), expected=len(tokens))
    if vocab_size is not None and tokens.numel() and int(tokens.max()) >= vocab_size:
        what = "must be tokens of this model"
        raise DataError("response_tokens", what, got=int(tokens.max()), expected=f"below {vocab_size}")
    return [part.tolist() for part in tokens.split(lengths.tolist())]
