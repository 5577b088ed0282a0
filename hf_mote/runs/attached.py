"""What is attached to a live model that changes what it does, described so that two models can be compared.

This package's own interventions have a digest of what they change. Foreign hooks and replaced forwards have none, so a
model that carries one is refused where two models must do the same.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from hf_mote.errors import UnsupportedError
from hf_mote.hooks import Participant, SharedHook
from hf_mote.passes.forward import DecoderParticipant
from hf_mote.routing.router_hook import RoutingObserver

__all__ = ["attached_to"]

# Libraries whose hooks and forwards only place, wrap or read modules.
_LIBRARIES = ("accelerate", "bitsandbytes", "kernels", "peft", "torch", "transformers")


def attached_to(where: str, model: nn.Module) -> list[list[Any]]:
    """Return what is attached to a model and changes it, JSON-native: path, digest, active or not, in order.

    Args:
        where (`str`): The place, for the error.
        model (`nn.Module`): The model.

    Raises:
        [`UnsupportedError`]: if something is attached whose changes are unknown; it is named.

    Adapters of peft are described by their names and whether they are in use, beside their parameters.
    """
    found: list[list[Any]] = []
    for path, module in model.named_modules():
        participants: dict[int, Participant] = {}
        for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, SharedHook):
                participants |= {id(participant): participant for participant in owner.participants}
            elif not _of_a_library(hook):
                raise _unknown(where, path, f"the hook {_name(hook)}", "Remove it")
        for participant in participants.values():
            if isinstance(participant, RoutingObserver | DecoderParticipant):  # which only observe
                continue
            if participant.digest is None:
                raise _unknown(where, path, type(participant).__name__, "Remove the intervention")
            found.append([path, participant.digest, participant.active])
        forward = vars(module).get("forward")
        if forward is not None and not _of_a_library(forward):
            raise _unknown(where, path, f"the forward {_name(forward)}", "Restore the module's own")
        if getattr(module, "lora_A", None) is not None:
            adapters = sorted(map(str, getattr(module, "active_adapters", [])))
            on = not getattr(module, "disable_adapters", False)
            found.append([path, f"adapters: {', '.join(adapters)}", on])
    return found


def _of_a_library(function: object) -> bool:
    module = getattr(function, "__module__", None) or getattr(getattr(function, "func", None), "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in _LIBRARIES


def _name(function: object) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))


def _unknown(where: str, path: str, what: str, fix: str) -> UnsupportedError:
    return UnsupportedError(
        where,
        f"a later run cannot be compared: something unknown is attached to {path or 'it'}",
        got=what,
        expected="interventions of apply_mote, or none",
        fix=f"{fix}, or run without a run folder.",
    )
