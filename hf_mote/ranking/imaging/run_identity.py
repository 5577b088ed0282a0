"""What a run of imaging depends on, as its run folder keeps it: JSON-native, and equal for equal runs alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from hf_mote.errors import UnsupportedError
from hf_mote.ranking.imaging.attached import attached_to
from hf_mote.ranking.imaging.weights_digest import weights_digest

__all__ = ["digest_of", "model_settings", "plain"]

_WHERE = "ftri.run_folder"
_DEEPEST = 8  # of objects within objects


def model_settings(model: PreTrainedModel, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the responses and maps of a model depend on, beside the prompts.

    Args:
        model (`PreTrainedModel`): The model, with what is attached to it.
        settings (`Mapping[str, Any]`): The arguments of its `generate`.

    Returns:
        `dict`: `dtype`; `weights_sha256`, see [`weights_digest`]; `attached`, see [`attached_to`]; `generation`, the
        model's own generation config where it is no default, and over it what is given. Objects, such as logits
        processors, are compared by their class and state.

    Raises:
        [`UnsupportedError`]: if something cannot be compared with a later run's; it is named.
    """
    config = settings.get("generation_config")
    given = {name: value for name, value in settings.items() if name != "generation_config"}
    merged = {**_config(model.generation_config), **_config(config), **given}
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights_sha256": weights_digest(model),
        "attached": attached_to(_WHERE, model),
        "generation": {name: plain(f"generate_kwargs.{name}", value) for name, value in sorted(merged.items())},
    }


def digest_of(value: object) -> str:
    """Return a SHA-256 of something JSON-native."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def plain(where: str, value: object, depth: int = 0) -> Any:
    """Return something as JSON has it; an object by its class and a digest of its state.

    Args:
        where (`str`): The place, for the error.
        value (`object`): What is to be compared later.
        depth (`int`, *optional*, defaults to 0): How deep in another object it is.

    Raises:
        [`UnsupportedError`]: if its state cannot be compared, as a function's.
    """
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if depth > _DEEPEST:
        raise _incomparable(where, "is nested too deeply")
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    if isinstance(value, Tensor):
        numbers = value.detach().cpu()
        return {"class": "torch.Tensor", "state_sha256": digest_of([str(numbers.dtype), numbers.tolist()])}
    if isinstance(value, GenerationConfig):
        return plain(where, _config(value), depth + 1)
    if isinstance(value, Mapping):
        entries = [[plain(where, key, depth + 1), plain(where, entry, depth + 1)] for key, entry in value.items()]
        return {str(key): entry for key, entry in entries} if type(value) is dict else _object(value, entries)
    own = vars(value) if hasattr(value, "__dict__") else {}
    if isinstance(value, set | frozenset):
        return _object(value, sorted((plain(where, entry, depth + 1) for entry in value), key=str))
    if isinstance(value, Sequence):
        listed = [plain(where, entry, depth + 1) for entry in value]
        return listed if type(value) in (list, tuple) else _object(value, [listed, plain(where, own, depth + 1)])
    if isinstance(value, type) or not hasattr(value, "__dict__") or hasattr(value, "__code__"):
        raise _incomparable(where, "cannot be compared with a later run's")
    if isinstance(value, Collection) or any(getattr(kind, "__slots__", ()) for kind in type(value).__mro__):
        raise _incomparable(where, f"cannot be compared with a later run's: a {type(value).__qualname__}")
    return _object(value, plain(where, own, depth + 1))


def _config(config: GenerationConfig | None) -> dict[str, Any]:
    found = {} if config is None else config.to_diff_dict()
    found.pop("transformers_version", None)
    return found


def _object(value: object, state: object) -> dict[str, str]:
    kind = type(value)
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "state_sha256": digest_of(state)}


def _incomparable(where: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        where,
        what,
        expected="numbers, texts, tensors, or objects of a class whose attributes are such",
        fix="Give an object of a class in the place of a function, or image without a run folder.",
    )
