"""`SAEGroup`: several SAEs that are trained on one stream, each as if it were alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_mote.errors import ConfigError, DataError
from hf_mote.sae.hookpoints import canonical
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.step import TrainingStep

__all__ = ["OF_THE_TEXT", "SAEGroup", "named", "record_for"]

# Keys of a batch of whole sequences for the language model, and not for the SAE.
OF_THE_TEXT = ("input_ids", "text_mask")


class SAEGroup(nn.Module):
    """SAEs by name, as one module; its loss is the sum of theirs, so that each gets its own gradient.

    Args:
        saes (`Mapping[str, SAEModel]`): The SAEs; a name becomes a folder when they are saved.
    """

    def __init__(self, saes: Mapping[str, SAEModel]) -> None:
        super().__init__()
        for name in saes:
            if not name or any(character in name for character in "./\\"):
                raise ConfigError(
                    "model", "must be a name for an SAE and its folder", got=repr(name), expected="no dots or slashes"
                )
        self.saes = nn.ModuleDict(saes)

    def forward(
        self, steps: Mapping[str, TrainingStep] | None = None, return_loss: bool = True, **record: Any
    ) -> dict[str, Any]:
        """Return `loss`, a scalar, and `outputs`, what each SAE returned, by name.

        Args:
            return_loss (`bool`, *optional*, defaults to `True`): As in an SAE's forward.
            steps (`Mapping[str, TrainingStep]`, *optional*): The step of each SAE.
            record (`Any`): Arguments of an SAE's forward for all of them, or such arguments by hookpoint.
        """
        outputs = {
            name: sae(
                **record_for(sae, record, name),
                return_loss=return_loss,
                step=None if steps is None else steps[name],
            )
            for name, sae in named(self).items()
        }
        losses = [output.loss for output in outputs.values()]
        loss = None if any(loss is None for loss in losses) else torch.stack(losses).sum()
        return {"loss": loss, "outputs": outputs}


def named(model: nn.Module) -> dict[str, SAEModel]:
    """Return the SAEs of a group by name, or a single one under the empty name."""
    if isinstance(model, SAEGroup):
        return {name: sae for name, sae in model.saes.items() if isinstance(sae, SAEModel)}
    assert isinstance(model, SAEModel)
    return {"": model}


def record_for(sae: SAEModel, record: Mapping[str, Any], name: str = "") -> dict[str, Tensor]:
    """Return the part of a record for one SAE: all of it, or the part of its hookpoint.

    Args:
        sae ([`SAEModel`]): The SAE.
        record (`Mapping[str, Any]`): Arguments of its forward, or such arguments by hookpoint.
        name (`str`, *optional*): The SAE's name in errors.

    Raises:
        [`DataError`]: if the record is by hookpoint and has none for it.
    """
    if "activations" in record:
        return {key: value for key, value in record.items() if key not in OF_THE_TEXT}
    hookpoint = canonical(sae.config.hookpoint or "")
    if hookpoint not in record:
        raise DataError(
            f"{name or type(sae).__name__}: config.hookpoint",
            "must be a hookpoint at which activations are collected",
            got=repr(sae.config.hookpoint),
            expected=", ".join(map(repr, sorted(map(str, record)))),
            fix="Set the SAE's config.hookpoint to the one that it is for.",
        )
    return dict(record[hookpoint])
