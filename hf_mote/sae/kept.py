"""Partial results of running a model with its SAE over a text, kept in a run folder after each forward."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_mote.errors import UnsupportedError
from hf_mote.runs.folder import RunFolder, digest_of
from hf_mote.runs.identity import model_settings
from hf_mote.runs.weights_digest import weights_digest
from hf_mote.sae.modeling import SAEModel

__all__ = ["Form", "digest_of_sequences", "kept", "run_of"]

Form = Mapping[str, tuple[torch.dtype, Sequence[int | None]]]
"""The tensors of a record by name: dtype, and shape with `None` in the place of any number."""


def run_of(
    where: str,
    run_folder: str | os.PathLike[str] | None,
    model: nn.Module,
    sae: SAEModel,
    **settings: Any,
) -> RunFolder | None:
    """Return the run folder of a function that runs a model and an SAE; `None` without one.

    Args:
        where (`str`): The function.
        run_folder (`str` or `os.PathLike`, *optional*): The folder.
        model (`nn.Module`): The model, with what is attached to it.
        sae ([`SAEModel`]): The SAE.
        **settings (`Any`): JSON-native: what else the result depends on.

    Raises:
        [`UnsupportedError`]: if the model is not of transformers, or something attached to it cannot be compared.
        [`ModelMismatchError`]: if the folder is that of another run.
        [`FileFormatError`]: if it cannot be a run folder.
    """
    if run_folder is None:
        return None
    place = f"{where}.run_folder"
    if not isinstance(model, PreTrainedModel):
        fix = "Run without a run folder."
        raise UnsupportedError(place, "needs a model of transformers", got=type(model).__name__, fix=fix)
    own = {
        "config_sha256": digest_of(json.loads(sae.config.to_json_string(use_diff=False))),
        "weights_sha256": weights_digest(sae),
        "device": sae.W_dec.device.type,
    }
    return RunFolder(run_folder, {"kind": where, **settings, "sae": own, **model_settings(place, model)})


def digest_of_sequences(sequences: Iterable[Sequence[int]]) -> str:
    """Return a SHA-256 of sequences of tokens, in their order.

    Args:
        sequences (`Iterable[Sequence[int]]`): Token ids.
    """
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(f"{len(sequence)}:{','.join(map(str, sequence))};".encode())
    return digest.hexdigest()


def kept(
    run: RunFolder | None, name: str, make: Callable[[], Mapping[str, Tensor]], form: Form
) -> Mapping[str, Tensor]:
    """Return the tensors of a record, made and kept if missing; without a run folder only made.

    Args:
        run ([`RunFolder`], *optional*): The run's.
        name (`str`): Which record.
        make (`Callable[[], Mapping[str, torch.Tensor]]`): Computes them.
        form (`Mapping`): What they must be.

    Raises:
        [`FileFormatError`]: if the record is damaged, or of another form.
    """
    if run is None:
        return make()
    found = run.kept(name, make, {key: shape for key, (_, shape) in form.items()})
    for key, (dtype, _) in form.items():
        if found[key].dtype != dtype:
            raise run.damaged(name, f"{key} of {found[key].dtype}", expected=dtype)
    return found
