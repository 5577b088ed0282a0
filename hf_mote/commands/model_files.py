"""What is looked for in the files of a model, since transformers takes it: code, tokens, numbers, dtypes.

`model.py` calls these in the order of its steps: what the config says before weights are loaded, the rest after.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mote.errors import FileFormatError, UnsupportedError, is_finite
from hf_mote.files import read_json

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "cached",
    "check_dtypes",
    "check_generation",
    "check_kernels",
    "check_logits",
    "check_numbers",
    "check_sizes",
    "check_token",
    "check_tokens",
    "vocabulary_of",
]

_PLAIN_IMPLEMENTATION = re.compile(r"\w+(\|\w+)?")
# Numbers of a config by the ends of their names: what is added under a root, and the base of rotary frequencies.
_LEAST_0 = re.compile(r"(?:.*_)?eps(?:ilon)?")
# An epsilon of a norm is below 1: families have 0.001 at most, and with more all texts are alike.
_OF_A_NORM = re.compile(r"\w*norm\w*")
_ABOVE_0 = re.compile(r"(?:.*_)?theta|(?:.*_)?(?:rope|rotary)\w*_base(?:_freq)?")
_LAYERS = re.compile(r"(?!max_|.*_per_layer$)(?:.*_)?(?:layers?|depth)")
_MOST_LAYERS = 1000  # which transformers builds one by one, even without weights
_OF_ROTATION = ("rope_type", "rope_theta")  # one of which is beside the factor by which positions are stretched
# Of the files that there are, transformers takes the first.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_INDEX = ".index.json"
_NO_FLOATS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "C64", "C128", "QU8", "QI8", "QI32")
_EXPERTS = re.compile(r"\bexperts?\.")


def check_sizes(name: str, revision: str | None) -> None:
    """Refuse a config that is no strict JSON, or names more layers than any model has; before it is made an object.

    Numbers may be infinite: Mamba models write so that a time step has no upper limit.

    Args:
        name (`str`): A folder or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.

    Raises:
        [`FileFormatError`]: with the file and the field.
    """
    path = cached(name, "config.json", revision)
    for place, value, _ in () if path is None else _numbers("", read_json(path, infinite=True)):
        if _LAYERS.fullmatch(place.rpartition(".")[2]) and value > _MOST_LAYERS:
            what, expected = "must be a number of layers that a model can have", f"at most {_MOST_LAYERS}"
            fix = "Correct the file, or download the model again."
            raise FileFormatError(f"{path}: {place}", what, got=value, expected=expected, fix=fix)


def check_generation(name: str, revision: str | None, config: PreTrainedConfig) -> None:
    """Refuse a damaged `generation_config.json`, which transformers passes over, and tokens that are none.

    Args:
        name (`str`): A folder or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        config (`PreTrainedConfig`): The model's.

    Raises:
        [`FileFormatError`]: with the file and the reason.
    """
    path = cached(name, "generation_config.json", revision)
    # There is none, as of a model that says nothing on how it generates.
    check_tokens(name, config, *(() if path is None else (read_json(path), str(path))))


def check_tokens(
    name: str, config: PreTrainedConfig, generation: Mapping[str, Any] | None = None, file: str | None = None
) -> None:
    """Refuse ends of a text, and padding, of a config and a file on generation, that are not tokens of the model.

    Args:
        name (`str`): A folder or a Hub id.
        config (`PreTrainedConfig`): The model's.
        generation (`Mapping`, *optional*): What the file on generation says; it comes before the config.
        file (`str`, *optional*): Its path.

    Raises:
        [`FileFormatError`]: with the file and the field. A `pad_token_id` of -1, as in many configs, means none.
    """
    own = f"{name}: config.json"
    said = {} if generation is None else generation
    ends, pads = said.get("eos_token_id"), said.get("pad_token_id")
    most = vocabulary_of(config)
    if ends is None:
        _check_tokens(f"{own}: eos_token_id", getattr(config, "eos_token_id", None), most)
    else:
        _check_tokens(f"{file}: eos_token_id", ends, most)
    of_config = [getattr(one, "pad_token_id", None) for one in (config, config.get_text_config())]
    for place, pad in ((file, pads), *((own, pad) for pad in of_config)):
        if pad != -1 or isinstance(pad, bool):
            _check_tokens(f"{place}: pad_token_id", pad, most, one=True)


def vocabulary_of(config: PreTrainedConfig) -> float:
    """Return how many tokens a config says that its model has; infinite where it does not say."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else math.inf


def check_token(where: str, given: int | None, most: float) -> None:
    """Refuse something else than a token of a model, or none.

    Args:
        where (`str`): The place, for the error.
        given (`int`, *optional*): The token.
        most (`float`): How many the model has.

    Raises:
        [`FileFormatError`]: with the place.
    """
    _check_tokens(where, given, most, one=True)


def _check_tokens(where: str, given: object, most: float, *, one: bool = False) -> None:
    if given is None:
        return
    tokens = given if isinstance(given, list | tuple) and not one else [given]
    if not tokens or not all(
        isinstance(token, int) and not isinstance(token, bool) and 0 <= token < most for token in tokens
    ):
        allowed = "a whole number" if one else "a whole number, or a list of one or more,"
        expected = f"{allowed} from 0" + ("" if most == math.inf else f" to {int(most) - 1}")
        fix = "Correct the file, or take the field out." if one else "Correct the file: without it no response ends."
        what = "must be a token of the model" if one else "must be tokens of the model"
        raise FileFormatError(where, what, got=repr(given)[:80], expected=expected, fix=fix)


def check_numbers(name: str, config: PreTrainedConfig) -> None:
    """Refuse numbers of a config with which a model computes roots and powers that are none.

    Args:
        name (`str`): A folder or a Hub id.
        config (`PreTrainedConfig`): The model's, whatever its family: fields are known by the ends of their names.

    Raises:
        [`FileFormatError`]: for an epsilon below 0, one of a norm that is 1 or more, and a base or a factor of rotary
            positions that is not above 0.
    """
    for place, value, beside in _numbers("", config.to_dict()):
        field = place.rpartition(".")[2]
        stretches = field == "factor" and any(key in beside for key in _OF_ROTATION)
        above = stretches or _ABOVE_0.fullmatch(field)
        if not above and not _LEAST_0.fullmatch(field):
            continue
        below_1 = not above and _OF_A_NORM.fullmatch(field)
        if not is_finite(value) or value < 0 or (above and value == 0) or (below_1 and value >= 1):
            expected = "above 0" if above else "0 or more" + (", and below 1" if below_1 else "")
            what, fix = (
                "must be a number that the model can compute with",
                "Correct the file, or download the model again.",
            )
            raise FileFormatError(f"{name}: config.json: {place}", what, got=repr(value), expected=expected, fix=fix)


def _numbers(place: str, value: Mapping[str, Any]) -> Iterator[tuple[str, int | float, Mapping[str, Any]]]:
    """Yield the place of each number of a config, the number, and the fields beside it."""
    for key, entry in value.items():
        if isinstance(entry, Mapping):
            yield from _numbers(f"{place}{key}.", entry)
        elif isinstance(entry, int | float) and not isinstance(entry, bool):
            yield f"{place}{key}", entry, value


def check_kernels(name: str, config: PreTrainedConfig) -> None:
    """Refuse a config that makes transformers download kernels, which are code, from a repository that it names.

    Args:
        name (`str`): A folder or a Hub id.
        config (`PreTrainedConfig`): The model's.

    Raises:
        [`UnsupportedError`]: with the field.
    """
    pending = [config]
    while pending:
        one = pending.pop()
        for kind in ("attn", "experts"):
            named = getattr(one, f"_{kind}_implementation", None)
            if named is not None and not (isinstance(named, str) and _PLAIN_IMPLEMENTATION.fullmatch(named)):
                raise UnsupportedError(
                    f"{name}: config.json: {kind}_implementation",
                    "names kernels of a repository, which are code",
                    got=repr(named),
                    fix="Remove it from the config, or read that code and pass --trust-remote-code.",
                )
        pending += [part for key in one.sub_configs if (part := getattr(one, key, None)) is not None]


def check_dtypes(
    name: str, revision: str | None, config: PreTrainedConfig, model: PreTrainedModel, unexpected: Collection[str]
) -> None:
    """Refuse weights that a quantization made whole numbers, or scaled: transformers takes them as they are.

    It does so where neither the config nor that of the text has a quantization. Buffers may be whole numbers, as
    tables are.

    Args:
        name (`str`): A folder or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        config (`PreTrainedConfig`): The model's, as it is stored.
        model (`PreTrainedModel`): As it was loaded.
        unexpected (`Collection[str]`): Names of stored tensors that it has no place for.

    Raises:
        [`FileFormatError`]: with the file and the tensor.
    """
    parts = (config, config.get_text_config(decoder=True))
    if any(getattr(part, "quantization_config", None) is not None for part in parts):
        return
    state = model.state_dict()
    tables = {key for key, value in state.items() if not value.is_floating_point()}
    weights = {key for key, _ in model.named_parameters()} - tables
    for path in _weight_files(name, revision, getattr(config, "transformers_weights", None)):
        stored = _dtypes_in(path)
        scaled = {key.rpartition("_scale")[0] for key in stored}
        for key, dtype in stored.items():
            is_weight = key in weights or key.endswith(".weight") or _EXPERTS.search(key)
            is_part = dtype in _NO_FLOATS or (dtype.startswith("F8") and key in scaled)
            if is_part and is_weight and key not in tables and key not in unexpected:
                what, fix = "must hold weights", "Download or save the model again, with its quantization_config."
                got, expected = (
                    f"{key} as {dtype}",
                    "floating point numbers without scales, or a config with a quantization",
                )
                raise FileFormatError(str(path), what, got=got, expected=expected, fix=fix)


def _weight_files(name: str, revision: str | None, chosen: str | None) -> list[Path]:
    """Return the files of a model's weights; `chosen` is the one that its config names, if it does."""
    for file in _WEIGHTS if chosen is None else (chosen,):
        if (path := cached(name, file, revision)) is not None:
            if not file.endswith(_INDEX):
                return [path]
            parts = sorted(set(read_json(path).get("weight_map", {}).values()))
            return [found for part in parts if (found := cached(name, part, revision)) is not None]
    return []


def _dtypes_in(path: Path) -> dict[str, str]:
    """Return the dtypes of a file of weights by the tensors' names, as safetensors spells them; no weight is read."""
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return {key: str(entry["dtype"]) for key, entry in header.items() if key != "__metadata__"}
    import torch

    from hf_mote.sae.convert.archives import check_storages

    if archive := zipfile.is_zipfile(path):
        check_storages(path)
    # transformers has loaded it in the same way. Files of torch before 1.6 are no archives, and are read.
    found = torch.load(path, map_location="meta", weights_only=True, mmap=archive)
    return {key: _spelled(value.dtype) for key, value in found.items() if isinstance(value, torch.Tensor)}


def _spelled(dtype: torch.dtype) -> str:
    """Return the name of a dtype as safetensors spells it: "I8" for int8."""
    name = str(dtype).removeprefix("torch.")
    for long, short in (("complex", "C"), ("float", "F"), ("uint", "U"), ("int", "I")):
        name = name.replace(long, short)
    return name.upper()


def cached(name: str, file: str, revision: str | None) -> Path | None:
    """Return the path of a file of a model, `None` where it has none."""
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(name, file, revision=revision)
    except OSError:
        return None
    return None if found is None else Path(found)


def check_logits(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a model whose logits are no numbers, as a config or weights that are damaged can make them.

    Args:
        name (`str`): A folder or a Hub id.
        model (`PreTrainedModel`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.

    Raises:
        [`FileFormatError`]: if one of them is NaN, or infinite upwards.
    """
    import torch

    from hf_mote.generation.prompts import padded

    try:
        batch = padded([tokenizer("The")["input_ids"]], 0, side="right", device=model.device)
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits
    except Exception:  # a model that takes more than tokens; what uses it says so
        return
    if bool((logits.isnan() | (logits == math.inf)).any()):
        fix = "Download the model again, or load it in another dtype (--dtype)."
        what = "must give logits that are numbers: its config or its weights are damaged"
        raise FileFormatError(repr(name), what, got="NaN or infinite ones", fix=fix)
