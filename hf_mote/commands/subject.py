"""The model that a command looks into: a folder, a Hub id, or a shipped organism."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import ConfigError, HFMoTEError, UnknownNameError, UnsupportedError
from hf_mote.organisms.organism import Organism, load_organism
from hf_mote.routing.discover import find_routers

__all__ = ["ORGANISM", "Organisms", "Subject", "load_subject"]

ORGANISM = "organism:"
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Subject:
    """A model, its tokenizer and what it is called.

    Attributes:
        name (`str`): As it was given.
        model (`PreTrainedModel`): In evaluation mode.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        organism (`Organism`, *optional*): The organism it belongs to.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    organism: Organism | None = None


class Organisms:
    """Organisms that one command loads once, be they its model, its prompts or both."""

    def __init__(self) -> None:
        self._loaded: dict[str, Organism] = {}

    def get(self, name: str) -> Organism:
        """Return an organism by its name, without "organism:"."""
        if name not in self._loaded:
            self._loaded[name] = load_organism(name)
        return self._loaded[name]


def load_subject(
    name: str,
    organisms: Organisms,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    any_model: bool = False,
) -> Subject:
    """Return a model that has routers to look at.

    Args:
        name (`str`): A folder, a Hub id, or "organism:NAME".
        organisms (`Organisms`): Where organisms come from.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        dtype (`str`, *optional*, defaults to `"auto"`): "auto" (as saved), "float32", "bfloat16" or "float16".
        device (`str`, *optional*): A device such as "cpu" or "cuda:0", or "auto" to spread the model over what there
            is; by default the accelerator if there is one.
        any_model (`bool`, *optional*, defaults to `False`): Take a model without routers, too: one that judges.

    Raises:
        [`UnknownNameError`]: if there is no such model.
        [`UnsupportedError`]: if transformers cannot load it without running code of its repository, or it has no
            routed experts.
    """
    if dtype not in DTYPES:
        raise UnknownNameError.of("--dtype", dtype, DTYPES)
    if name.startswith(ORGANISM):
        # Matrices as small as an organism's gain nothing from more threads, and lose much on a busy machine.
        torch.set_num_threads(1)
        organism = organisms.get(name.removeprefix(ORGANISM))
        return Subject(name, organism.model, organism.tokenizer, organism)
    place = _device(device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype, device_map=place)
    except HFMoTEError:
        raise
    except OSError as error:
        raise UnknownNameError(
            repr(name),
            "no model can be loaded from there",
            got=_first_line(error),
            fix=f"Give a folder with a config and weights, a Hub id, or {ORGANISM}NAME.",
        ) from error
    except (ValueError, KeyError, ImportError) as error:
        raise UnsupportedError(
            repr(name),
            "transformers does not load it",
            got=f"{type(error).__name__}: {_first_line(error)}",
            fix="Models that need code of their own repository can be loaded in Python and handed to the functions.",
        ) from error
    if not any_model:
        find_routers(model)
    return Subject(name, model.eval(), tokenizer)


def _device(given: str | None) -> str:
    if given == "auto":
        return given
    if given is not None:
        try:
            torch.device(given)
        except RuntimeError as error:
            raise ConfigError(
                "--device", "no device", got=repr(given), expected="cpu, cuda:0, ..., or auto"
            ) from error
        return given
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # under a launcher: each process on a device of its own
        return str(PartialState().device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
