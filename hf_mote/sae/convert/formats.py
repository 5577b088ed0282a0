"""What a file format is: the files it consists of, how to tell it from others, how to read and how to write it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_mote.errors import ConfigError, FileFormatError, UnknownNameError
from hf_mote.files import read_json
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.register import sae_class
from hf_mote.sae.weights import SAEWeights

__all__ = ["Format", "Source", "build", "computes_as", "lost_fields", "lost_state", "origin_of"]

# Fields of a config that say something about the config itself, which no other format needs to hold.
_OF_THE_CONFIG = {"hf_mote_version", "origin"}


class Source(NamedTuple):
    """Where an SAE is read from.

    Attributes:
        folder (`Path`): The folder with its files.
        trail (`str`): Hub id and subfolder, or the folder's path: some formats say by names alone what an SAE is of.
    """

    folder: Path
    trail: str


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name (`str`): As `load_sae` and `export_sae` take it.
        weights (`tuple[str, ...]`): Names of the file that holds the weights; the first is the one that is written.
        config (`str`, *optional*): Name of the JSON file beside it.
        recognises (`Callable`): Whether the content of the JSON file, `None` if there is none, is of this format.
        read (`Callable`): From a [`Source`] to the model.
        write (`Callable`, *optional*):
            Writes a model into an empty folder and returns what the format cannot hold; `None` if it is never written.
        refusal (`str`): Why it is never written.
    """

    name: str
    weights: tuple[str, ...]
    config: str | None
    recognises: Callable[[Mapping[str, Any] | None], bool]
    read: Callable[[Source], SAEModel]
    write: Callable[[SAEModel, Path], list[str]] | None = None
    refusal: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all its files."""
        return self.weights if self.config is None else (*self.weights, self.config)

    def weights_in(self, folder: Path) -> bool:
        """Whether a folder has a file with its weights' name."""
        return any(os.path.isfile(folder / name) for name in self.weights)

    def describes(self, folder: Path) -> bool:
        """Whether the JSON file in a folder, or that there is none, is of this format."""
        path = None if self.config is None else folder / self.config
        return self.recognises(read_json(path) if path is not None and os.path.isfile(path) else None)


def build(
    path: Path, model_type: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor], origin: Mapping[str, Any]
) -> SAEModel:
    """Return a model made of checked tensors.

    Args:
        path (`Path`): The file an error names.
        model_type (`str`): The architecture.
        fields (`Mapping[str, Any]`): Of its config.
        tensors (`Mapping[str, torch.Tensor]`): Under the names and in the orientation of `SAEModel`, on the CPU.
        origin (`Mapping[str, Any]`): What becomes `config.origin`.

    Raises:
        [`FileFormatError`]: if the config cannot be.
    """
    model_class = sae_class(model_type)
    try:
        config = model_class.config_class(**fields, origin=dict(origin))
    except (ConfigError, UnknownNameError) as error:
        raise FileFormatError(str(path), f"describes no {model_type}: {str(error).rstrip('.')}") from error
    # The loader of transformers itself, since there is no file that ours could check.
    load: Callable[..., SAEModel] = super(SAEWeights, model_class).from_pretrained
    return load(None, config=config, state_dict=dict(tensors), dtype=tensors["W_enc"].dtype, trust_remote_code=False)


def computes_as(sae: SAEModel, base: type[SAEModel]) -> bool:
    """Return whether a model is of an architecture and computes what it does outside training, nothing overridden."""
    rules = ("_activate", "_centred", "_decode", "_preactivations")
    return isinstance(sae, base) and all(getattr(type(sae), rule) is getattr(base, rule) for rule in rules)


def origin_of(sae: SAEModel, name: str) -> dict[str, Any]:
    """Return what `load_sae` kept of the file an SAE came from, empty if it came from another format."""
    origin = sae.config.origin or {}
    return dict(origin) if origin.get("format") == name else {}


def lost_fields(sae: SAEModel, held: set[str]) -> dict[str, Any]:
    """Return the fields of the config that differ from their defaults, beside those a format holds."""
    kind = type(sae.config)
    names = [name for name in kind._own_fields() if name not in held | _OF_THE_CONFIG]
    values = {name: getattr(sae.config, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(kind, name, None)}


def lost_state(sae: SAEModel, held: set[str]) -> list[str]:
    """Return the names of the tensors that only training needs and that hold anything, beside those a format holds."""
    return [name for name, tensor in sae.state_dict().items() if name not in held and bool(torch.any(tensor != 0))]
