"""Options that travel together: a dataclass in a command's signature stands for the options that are its fields."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from hf_mote.commands import options as o
from hf_mote.commands.model import Organisms, Subject, load_subject

__all__ = ["AS_SAVED", "Loading", "bundled"]


@dataclasses.dataclass(frozen=True)
class Loading:
    """How a model is loaded.

    Attributes:
        revision (`str`, *optional*): `--revision`; so are the others, as [`load_subject`] has them.
        dtype (`str`, *optional*, defaults to `"auto"`): See there.
        device (`str`, *optional*): See there.
        quantization (`str`, *optional*): See there.
        attn_implementation (`str`, *optional*): See there.
        trust_remote_code (`bool`, *optional*, defaults to `False`): See there.
    """

    revision: o.Revision = None
    dtype: o.Dtype = "auto"
    device: o.Device = None
    quantization: o.Quantization = None
    attn_implementation: o.AttnImplementation = None
    trust_remote_code: o.TrustRemoteCode = False

    def subject(self, model: str, organisms: Organisms, *, any_model: bool = False) -> Subject:
        """Return the model.

        Args:
            model (`str`): A folder, a Hub id, or "organism:NAME".
            organisms (`Organisms`): Where organisms come from.
            any_model (`bool`, *optional*, defaults to `False`): Take a model without routers, too.
        """
        return load_subject(model, organisms, any_model=any_model, **dataclasses.asdict(self))


AS_SAVED = Loading()


def bundled(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command that takes the fields of the dataclasses in its signature as options of its own.

    They stand in `--help` where the dataclass stands in the signature, with the fields' names and defaults.

    Args:
        command (`Callable`): The function of a command.

    Raises:
        `ValueError`: if two options have one name.
    """
    bundles: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        kind = parameter.annotation
        if not dataclasses.is_dataclass(kind):
            parameters.append(parameter)
            continue
        bundles[parameter.name] = kind
        hints = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=hints[one.name]
            )
            for one in dataclasses.fields(kind)
        ]
    # Given by name alone, so that options with a default may stand before others.
    flat = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for name, kind in bundles.items():
            given[name] = kind(**{one.name: given.pop(one.name) for one in dataclasses.fields(kind)})
        command(**given)

    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return run
