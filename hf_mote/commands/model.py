"""The model that a command looks into: a folder, a Hub id, or a shipped organism."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import ConfigError, FileFormatError, HFMoTEError, UnknownNameError, UnsupportedError
from hf_mote.organisms.organism import Organism, load_organism
from hf_mote.processes import launched_as, process_state
from hf_mote.routing.sites.discover import find_routers

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
    chat_template: Path | None = None,
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
        chat_template (`Path`, *optional*): File of a chat template, in the place of the tokenizer's.

    Raises:
        [`UnknownNameError`]: if there is no such model.
        [`ConfigError`]: if there is no such device here.
        [`FileFormatError`]: if the chat template's file cannot be read.
        [`UnsupportedError`]: if transformers cannot load it without running code of its repository, or it has no
            routed experts.
    """
    if dtype not in DTYPES:
        raise UnknownNameError.of("--dtype", dtype, DTYPES)
    place = _device(device)
    template = None if chat_template is None else _template(chat_template)
    if name.startswith(ORGANISM):
        # Matrices as small as an organism's gain nothing from more threads, and lose much on a busy machine.
        torch.set_num_threads(1)
        organism = organisms.get(name.removeprefix(ORGANISM))
        return Subject(name, organism.model, _with_template(organism.tokenizer, template), organism)
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
    return Subject(name, model.eval(), _with_template(tokenizer, template))


def _template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = error.strerror if isinstance(error, OSError) else "no UTF-8 text"
        raise FileFormatError(f"--chat-template {path}", "cannot be read", got=got, expected="a text file") from error


def _with_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> PreTrainedTokenizerBase:
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def _device(given: str | None) -> str:
    if given == "auto":
        return given
    if given is not None:
        try:
            torch.empty(0, device=given)  # which asks for the driver, too
        except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
            there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            expected = "cpu" if there is None else f"cpu, {there.type}, or auto"
            got = f"{given!r}: {_first_line(error)}"
            raise ConfigError("--device", "there is no such device here", got=got, expected=expected) from error
        return given
    if launched_as()[1] > 1:  # each process on a device of its own
        return str(process_state().device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
