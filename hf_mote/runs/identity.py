"""What a run depends on, as its run folder keeps it: JSON-native, and equal only for equal runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from hf_mote.errors import UnsupportedError
from hf_mote.runs.attached import attached_to
from hf_mote.runs.folder import digest_of
from hf_mote.runs.weights_digest import weights_digest

__all__ = ["model_settings", "plain"]

_DEEPEST = 8  # of objects within objects


def model_settings(where: str, model: PreTrainedModel, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what the passes and responses of a model depend on, except the prompts.

    Args:
        where (`str`): The argument that names the folder, for the error.
        model (`PreTrainedModel`): The model, with what is attached to it.
        settings (`Mapping[str, Any]`, *optional*): The arguments of its `generate`; without it nothing is generated.

    Returns:
        `dict`: `dtype`; `device`, as "cuda"; `implementations`, of attention and experts; `versions` of torch and
        transformers; `weights_sha256`, see [`weights_digest`]; `attached`, see [`attached_to`]; `generation`, the
        model's own generation config where it is not the default, updated by what is given. Objects, such as logits
        processors, are compared by their class and state.

    Raises:
        [`UnsupportedError`]: if something cannot be compared with a later run's; it is named.
    """
    found: dict[str, Any] = {}
    if settings is not None:
        given = {name: value for name, value in settings.items() if name != "generation_config"}
        merged = {**_config(model.generation_config), **_config(settings.get("generation_config")), **given}
        comparable = {name: plain(f"generate_kwargs.{name}", value) for name, value in sorted(merged.items())}
        found["generation"] = comparable
    used = {part: getattr(model.config, f"_{part}_implementation", None) for part in ("attn", "experts")}
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "implementations": {part: None if name is None else str(name) for part, name in used.items()},
        "versions": {"torch": str(torch.__version__), "transformers": version("transformers")},
        "weights_sha256": weights_digest(model),
        "attached": attached_to(where, model),
        **found,
    }


def plain(where: str, value: object, depth: int = 0) -> Any:
    """Return something as JSON has it; an object by its class and a digest of its state.

    Args:
        where (`str`): The place, for the error.
        value (`object`): What is to be compared later.
        depth (`int`, *optional*, defaults to 0): How deep it is in another object.

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
        fix="Give an object of a class in the place of a function, or run without a run folder.",
    )
