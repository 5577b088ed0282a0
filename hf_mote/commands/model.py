"""The model of a command: a folder, a Hub id, or a shipped organism."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mote.commands.model_files import (
    check_dtypes,
    check_generation,
    check_kernels,
    check_logits,
    check_numbers,
    check_sizes,
    check_tokens,
)
from hf_mote.commands.tokenizer_files import check_fields, check_ids, check_keys, check_tokens_fit
from hf_mote.commands.verbosity import say, settle_progress
from hf_mote.errors import ConfigError, FileFormatError, HFMoTEError, UnknownNameError, UnsupportedError
from hf_mote.files import local_path, read_json
from hf_mote.processes import launched_as, process_state
from hf_mote.sae.announced import ANNOUNCED

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from hf_mote.organisms.organism import Organism
    from hf_mote.sae.modeling import SAEModel

__all__ = ["ORGANISM", "Organisms", "Subject", "load_subject", "loaded_sae", "served_subject"]

ORGANISM = "organism:"
_TOKENIZER = re.compile(r".*token.*|vocab.*|merges\.txt|.*\.(model|spm|tiktoken)|tekken\.json", re.IGNORECASE)
DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flex_attention")
# The values of `--quantization`: a class of transformers and its arguments.
QUANTIZATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "bnb-8bit": ("BitsAndBytesConfig", {"load_in_8bit": True}),
    "bnb-4bit": ("BitsAndBytesConfig", {"load_in_4bit": True}),
    "quanto-int8": ("QuantoConfig", {"weights": "int8"}),
    "quanto-int4": ("QuantoConfig", {"weights": "int4"}),
    "hqq-8bit": ("HqqConfig", {"nbits": 8, "group_size": 64}),
    "hqq-4bit": ("HqqConfig", {"nbits": 4, "group_size": 64}),
}


@dataclass(frozen=True)
class Subject:
    """A model, its tokenizer and its name.

    Attributes:
        name (`str`): The name as it was given.
        model (`PreTrainedModel`): In evaluation mode.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        organism (`Organism`, *optional*): The organism it belongs to.
        trusted (`bool`): Whether code of its repository was allowed to run.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    organism: Organism | None = None
    trusted: bool = False


class Organisms:
    """Organisms of one command, each loaded once, for its model, its prompts or both."""

    def __init__(self) -> None:
        self._loaded: dict[str, Organism] = {}

    def get(self, name: str) -> Organism:
        """Return an organism by its name, without "organism:"."""
        from hf_mote.organisms.organism import load_organism

        if name not in self._loaded:
            settle_progress()
            self._loaded[name] = load_organism(name)
        return self._loaded[name]


def check_loading(
    name: str, *, dtype: str = "auto", quantization: str | None = None, attn_implementation: str | None = None
) -> None:
    """Refuse invalid arguments of [`load_subject`], without importing torch or transformers.

    Args:
        name (`str`): A folder, a Hub id, or "organism:NAME".
        dtype (`str`, *optional*, defaults to `"auto"`): As in [`load_subject`].
        quantization (`str`, *optional*): As in [`load_subject`].
        attn_implementation (`str`, *optional*): As in [`load_subject`].

    Raises:
        [`UnknownNameError`]: if there is no such name, or a folder holds no model.
        [`ConfigError`]: if an option is not for organisms.
        [`FileFormatError`]: if a folder holds a model without its tokenizer.
        [`UnsupportedError`]: if it holds a sparse autoencoder.
    """
    if dtype not in DTYPES:
        raise UnknownNameError.of("--dtype", dtype, DTYPES)
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise UnknownNameError.of("--quantization", quantization, QUANTIZATIONS)
    if attn_implementation is not None and attn_implementation not in ATTENTIONS:
        raise UnknownNameError.of("--attn-implementation", attn_implementation, ATTENTIONS)
    if not name.startswith(ORGANISM):
        _check_folder(name)
    elif quantization or attn_implementation:
        option = "--quantization" if quantization else "--attn-implementation"
        raise ConfigError(option, "is for models, not for organisms", got=name, fix="Leave it out.")


def loaded_sae(name: str) -> SAEModel:
    """Return a sparse autoencoder in evaluation mode, without a progress bar in a log file.

    Args:
        name (`str`): Folder or Hub id of an SAE, of this library or another one.
    """
    from hf_mote.sae.convert import load_sae

    settle_progress()
    sae: SAEModel = load_sae(name).train(False)
    return sae


def load_subject(
    name: str,
    organisms: Organisms,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device: str | None = None,
    any_model: bool = False,
    chat_template: Path | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
    attn_implementation: str | None = None,
    ready: Callable[[PreTrainedTokenizerBase], object] | None = None,
    fits: Callable[[PreTrainedModel], object] | None = None,
) -> Subject:
    """Return a model with routers, and its tokenizer.

    Args:
        name (`str`): A folder, a Hub id, or "organism:NAME".
        organisms (`Organisms`): Where organisms come from.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        dtype (`str`, *optional*, defaults to `"auto"`): "auto" (as saved), "float32", "bfloat16" or "float16".
        device (`str`, *optional*): A device such as "cpu" or "cuda:0", or "auto" to spread the model over all devices;
            by default the accelerator if there is one.
        any_model (`bool`, *optional*, defaults to `False`): Accept a model without routers, too, such as a judge.
        chat_template (`Path`, *optional*): File of a chat template, which replaces the tokenizer's.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run code of the model's repository, and kernels
            that its config names. Without it no such code runs, and the user is not asked.
        quantization (`str`, *optional*): One of [`QUANTIZATIONS`], applied while loading.
        attn_implementation (`str`, *optional*): One of [`ATTENTIONS`]; transformers' choice by default.
        ready (`Callable`, *optional*): Called with the tokenizer before weights are loaded, so that its errors come
            early.
        fits (`Callable`, *optional*): Called with the model without weights before they are loaded, likewise; with an
            organism as it is. It is not called for a model that transformers makes from its weights only.

    Raises:
        [`UnknownNameError`]: if there is no such model.
        [`ConfigError`]: if there is no such device here.
        [`FileFormatError`]: if the chat template's file cannot be read, `generation_config.json` is damaged, the
            tokens that end or fill up a text are not the model's, a number of its config is out of range, a field of
            its tokenizer's is something else, weights are damaged, missing, or whole numbers without a quantization,
            or the model gives no numbers.
        [`UnsupportedError`]: if transformers cannot load it without running code of its repository, or it has no
            routed experts.
    """
    check_loading(name, dtype=dtype, quantization=quantization, attn_implementation=attn_implementation)
    if trust_remote_code:
        say(f"--trust-remote-code: code of {name} runs on this machine with your permissions")
    template = None if chat_template is None else _template(chat_template)
    # Imported here, because they take seconds, and wrong arguments are refused before.
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from hf_mote.routing.sites.discover import find_routers

    settle_progress()
    place = _device(device)
    if name.startswith(ORGANISM):
        # An organism's matrices are too small for several threads, which are slow on a busy machine.
        torch.set_num_threads(1)
        organism = organisms.get(name.removeprefix(ORGANISM))
        subject = Subject(name, organism.model, _with_template(organism.tokenizer, template), organism)
        if ready is not None:
            ready(subject.tokenizer)
        if fits is not None:
            fits(subject.model)
        return subject
    try:
        source, branch = _source_of(name, revision)
        check_sizes(source, branch)
        config = AutoConfig.from_pretrained(source, revision=branch, trust_remote_code=trust_remote_code)
        if not trust_remote_code:
            check_kernels(name, config)
        check_generation(source, branch, config)
        check_numbers(name, config)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
        check_fields(name, config, tokenizer)
        check_keys(name, revision, tokenizer)
        check_ids(name, tokenizer)
        _with_template(tokenizer, template)
        if ready is not None:
            ready(tokenizer)
        if fits is not None and (bare := _without_weights(config, trust_remote_code)) is not None:
            fits(bare)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            output_loading_info=True,
            revision=revision,
            dtype=dtype,
            device_map=place,
            trust_remote_code=trust_remote_code,
            **_optional_arguments(quantization, attn_implementation),
        )
        model: PreTrainedModel = loaded[0]
        # transformers fills missing weights with random numbers, with a warning.
        if missing := sorted(loaded[1]["missing_keys"]):
            raise FileFormatError(
                repr(name),
                "some of the model's weights are missing",
                got=f"none for {', '.join(missing[:3])}" + (f" and {len(missing) - 3} more" if missing[3:] else ""),
                fix="Download or save the model again.",
            )
        check_dtypes(source, branch, config, model, loaded[1]["unexpected_keys"])
        check_tokens_fit(name, config, model, tokenizer)
        check_logits(name, model, tokenizer)
    except HFMoTEError:
        raise
    except OSError as error:
        raise UnknownNameError(
            repr(name),
            "no model can be loaded from there",
            got=_first_line(error),
            fix=f"Give a folder with a config and weights, a Hub id, or {ORGANISM}NAME.{_online()}",
        ) from error
    except SafetensorError as error:
        fix = "Download or save the model again."
        raise FileFormatError(repr(name), "its weights are damaged", got=_first_line(error), fix=fix) from error
    except ImportError as error:
        fix = "Install what it names, or leave --quantization and --attn-implementation out."
        raise UnsupportedError(repr(name), "a library is missing", got=_first_line(error), fix=fix) from error
    # transformers and its dependencies raise errors of many classes for a damaged folder.
    except Exception as error:
        raise UnsupportedError(
            repr(name),
            "transformers does not load it",
            got=f"{type(error).__name__}: {_first_line(error)}",
            fix="If the model needs code of its own repository, read that code and pass --trust-remote-code.",
        ) from error
    if not any_model:
        find_routers(model)
    return Subject(name, model.eval(), tokenizer, trusted=trust_remote_code)


def _without_weights(config: PreTrainedConfig, trust_remote_code: bool) -> PreTrainedModel | None:
    """Return a model on the meta device; `None` if it cannot be made there, as code of its own repository may need."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
            return model
    except Exception:  # what is wrong with it is said when it is loaded
        return None


def _optional_arguments(quantization: str | None, attn_implementation: str | None) -> dict[str, Any]:
    """Return the optional arguments of `from_pretrained` that were given."""
    found: dict[str, Any] = {}
    if attn_implementation is not None:
        found["attn_implementation"] = attn_implementation
    if quantization is not None:
        import transformers

        kind, settings = QUANTIZATIONS[quantization]
        found["quantization_config"] = getattr(transformers, kind)(**settings)
    return found


def _check_folder(name: str) -> None:
    """Refuse a folder without a language model and its tokenizer, before anything is loaded."""
    folder = local_path(name)
    if not os.path.isdir(folder):
        return
    names = {entry.name for entry in folder.iterdir()}
    shown = ", ".join(sorted(names)[:12]) or "an empty folder"
    if "config.json" not in names and "adapter_config.json" in names:
        return  # an adapter may use config and tokenizer of its base model
    if "config.json" not in names:
        fix = "Give the folder that save_pretrained wrote."
        raise UnknownNameError(repr(name), "no model can be loaded from there: no config.json", got=shown, fix=fix)
    model_type = read_json(folder / "config.json", infinite=True).get("model_type")
    if isinstance(model_type, str) and model_type in ANNOUNCED:
        what = "must be a language model, not a sparse autoencoder"
        raise UnsupportedError(repr(name), what, got=f"model_type {model_type!r}", fix="See hf-mote sae --help.")
    if not any(_TOKENIZER.fullmatch(entry) for entry in names):
        fix = "Save the tokenizer there, too: tokenizer.save_pretrained(folder)."
        raise FileFormatError(repr(name), "holds a model without its tokenizer", got=shown, fix=fix)


def _source_of(name: str, revision: str | None) -> tuple[str, str | None]:
    """Return where a model's config is, and the revision; of an adapter, those of its base, which is loaded."""
    from transformers.utils.peft_utils import find_adapter_config_file

    adapter = find_adapter_config_file(name, revision=revision)
    if adapter is not None and not os.path.isfile(os.path.join(name, "config.json")):
        return str(read_json(adapter).get("base_model_name_or_path")), None
    return name, revision


def served_subject(name: str, organisms: Organisms, *, revision: str | None, chat_template: Path | None) -> Subject:
    """Return the local part of a model that runs on a server: its tokenizer, and the model without weights.

    Args:
        name (`str`): A folder, a Hub id, or "organism:NAME".
        organisms (`Organisms`): Where organisms come from.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        chat_template (`Path`, *optional*): File of a chat template, which replaces the tokenizer's.

    Raises:
        [`UnknownNameError`]: if there is no such model.
        [`FileFormatError`]: if the tokens that end or fill up a text are not the model's, a number of its config is
            out of range, or a field of its tokenizer's is something else.
        [`UnsupportedError`]: if transformers cannot load config and tokenizer without running code.
    """
    template = None if chat_template is None else _template(chat_template)
    if name.startswith(ORGANISM):
        organism = organisms.get(name.removeprefix(ORGANISM))
        return Subject(name, organism.model, _with_template(organism.tokenizer, template), organism)
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    try:
        check_sizes(name, revision)
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        check_kernels(name, config)
        check_tokens(name, config)
        check_fields(name, config, tokenizer)
        check_keys(name, revision, tokenizer)
        check_ids(name, tokenizer)
        check_numbers(name, config)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        check_tokens_fit(name, config, model, tokenizer)
    except HFMoTEError:
        raise
    except OSError as error:
        what = "no tokenizer and config can be loaded from there"
        fix = f"Give a folder with both, a Hub id, or {ORGANISM}NAME.{_online()}"
        raise UnknownNameError(repr(name), what, got=_first_line(error), fix=fix) from error
    # As in `load_subject`.
    except Exception as error:
        got = f"{type(error).__name__}: {_first_line(error)}"
        raise UnsupportedError(repr(name), "transformers does not load its tokenizer and config", got=got) from error
    return Subject(name, model, _with_template(tokenizer, template))


def _template(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise FileFormatError(f"--chat-template {path}", "cannot be read", got=got, expected="a text file") from error


def _with_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> PreTrainedTokenizerBase:
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def _device(given: str | None) -> str:
    if given == "auto":
        return given
    import torch

    if given is not None:
        try:
            torch.empty(0, device=given)  # this also needs the driver
        except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
            other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            expected = "cpu" if other is None else f"cpu, {other.type}, or auto"
            got = f"{given!r}: {_first_line(error)}"
            raise ConfigError("--device", "there is no such device here", got=got, expected=expected) from error
        return given
    if launched_as()[1] > 1:  # each process on a device of its own
        return str(process_state().device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator is None else accelerator.type


def _online() -> str:
    """Return a note that the Hub was not asked, if the environment forbids it."""
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    return " HF_HUB_OFFLINE is set, so the Hub was not asked: unset it to download." if offline else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
