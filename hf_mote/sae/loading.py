"""Strict loading of an SAE: no tensor stays random, foreign models are refused, and no code of a folder is run.

The files are found and read here, not by transformers: `config.json` by a list of keys, tensors by their headers
before their values, shards in their folder alone. transformers gets a config and tensors, but no file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from hf_mote.errors import FileFormatError, HFMoTEError, ModelMismatchError, UnsupportedError, first_line
from hf_mote.files import check_memory, check_name, read_json
from hf_mote.sae.configuration import SAEConfig
from hf_mote.sharing.transfer import check_inside, download

__all__ = ["load_config", "load_strictly"]

# Arguments of `from_pretrained` for the files, and those for the model only.
_OF_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_OF_MODEL = ("code_revision", "dtype", "quantization_config", "torch_dtype", "trust_remote_code")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.int32, torch.int64)
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_PLAIN_NAME = re.compile(r"\w[\w.-]*\.safetensors")


def load_config(config_class: type[SAEConfig], path: str | None, kwargs: dict[str, Any]) -> SAEConfig:
    """Return the config that `from_pretrained` was given as `config`, taken out of `kwargs`, or else that of a folder.

    Fields among `kwargs` are taken out too, and replace those in the folder.

    Args:
        config_class (`type[SAEConfig]`): The expected class; `SAEConfig` itself for any registered one.
        path (`str`, *optional*): Folder or Hub id.
        kwargs (`dict[str, Any]`): What `from_pretrained` was given.

    Raises:
        [`FileFormatError`]: if it is missing or cannot be read.
        [`ModelMismatchError`]: if it is not that of a sparse autoencoder, or of another architecture.
        [`ConfigError`]: if a field that is given has a wrong type or is out of range.
    """
    config = kwargs.pop("config", None)
    if not isinstance(config, PreTrainedConfig):
        place = str(config or path)
        of_hub = {key: kwargs[key] for key in _OF_HUB if key in kwargs}
        data = read_json(_file(place, "config.json", of_hub))
        model_type = data.get("model_type")
        known = CONFIG_MAPPING[model_type] if isinstance(model_type, str) and model_type in CONFIG_MAPPING else None
        if known is None or not issubclass(known, SAEConfig) or not issubclass(known, config_class):
            raise _mismatch(place, repr(model_type), config_class)
        fields = {key: kwargs.pop(key) for key in kwargs.keys() - {*_OF_HUB, *_OF_MODEL}}
        config, others = known.from_dict(data, return_unused_kwargs=True, **fields)
        config._name_or_path = place
        kwargs.update(others)
    if not isinstance(config, config_class):
        raise _mismatch(str(path), repr(config.model_type), config_class)
    return config


def load_strictly(
    load: Callable[..., tuple[PreTrainedModel, dict[str, Any]]],
    config: SAEConfig,
    path: str | None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Any, dict[str, Any]]:
    """Call a transformers loader with a config and checked tensors, and refuse what it would only warn about.

    Args:
        load (`Callable`): `from_pretrained` of the architecture, as transformers has it.
        config ([`SAEConfig`]): The architecture's.
        path (`str`, *optional*): Folder or Hub id; `None` if `kwargs` holds `state_dict`.
        *args (`Any`): Arguments of the architecture beside the config.
        **kwargs (`Any`): What else `from_pretrained` was given.

    Returns:
        `tuple[PreTrainedModel, dict]`: The model and transformers' information on loading it.

    Raises:
        [`FileFormatError`]: if there are no safetensors; if tensors are missing, unknown or of another shape; or if
            one holds values that are not finite, or a count below 0.
    """
    if path is not None:
        if (kwargs.pop("adapter_kwargs", None) or {}).get("_adapter_model_path") is not None:
            raise _adapter(path)
        of_hub = {key: kwargs.pop(key) for key in _OF_HUB if key in kwargs}
        kwargs["state_dict"] = _read_weights(path, config, of_hub, kwargs.pop("variant", None))
    kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True, "trust_remote_code": False}
    model, info = load(None, *args, config=config, **kwargs)
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise FileFormatError(f"{path}: {name}", "wrong shape", got=tuple(found), expected=tuple(expected))
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            raise _unfit(str(path), kind.replace("_", " "), info[kind], model.state_dict())
    for name, other in getattr(model, "_needs", ()):
        if other not in kwargs["state_dict"] and _is_set(kwargs["state_dict"].get(name)):
            what, fix = f"is missing, and {name} is there", "Save the SAE again, or take both out of its file."
            raise FileFormatError(f"{path}: {other}", what, fix=fix)
    _check_dtypes(str(path), kwargs["state_dict"], model)
    _check_values(str(path), model)
    return model, info


def _file(path: str, name: str, of_hub: Mapping[str, Any]) -> Path:
    """Return a file of a local folder, or of a Hub repository, downloaded if needed."""
    check_inside(repr(path), "subfolder", of_hub.get("subfolder"))
    folder = Path(path, of_hub.get("subfolder") or "")
    # An impossible path, such as one of 5,000 characters, has no folder.
    if os.path.isdir(path):
        if os.path.isfile(folder / _ADAPTER):
            raise _adapter(str(folder))
        if os.path.isfile(folder / name):
            return folder / name
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) if os.path.isdir(folder) else ""
        fix = "Give the folder that save_pretrained wrote, or name it by subfolder."
        raise FileFormatError(f"{folder}", f"holds no {name}", got=found or "an empty or missing folder", fix=fix)
    asked = {key: value for key, value in of_hub.items() if value is not None}
    if asked.pop("proxies", None) is not None:
        fix = "Set the environment variables HTTPS_PROXY and HTTP_PROXY."
        raise UnsupportedError(path, "proxies cannot be given", fix=fix)
    return download(path, name, **{**asked, "subfolder": asked.get("subfolder") or None})


def _read_weights(path: str, config: SAEConfig, of_hub: Mapping[str, Any], variant: str | None) -> dict[str, Tensor]:
    """Return the tensors of a folder or repository; sizes are compared with the config before values are read."""
    files = _shards(path, of_hub, variant)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, shape in _shapes_in(file).items():
            if name in shapes:
                raise FileFormatError(f"{file}: {name}", "is in another shard too")
            shapes[name] = shape
    expected = {
        "W_enc": (config.num_latents, config.hidden_size),
        "b_enc": (config.num_latents,),
        "W_dec": (config.num_latents, config.decoder_size),
        "b_dec": (config.decoder_size,),
        **({"W_skip": (config.decoder_size, config.hidden_size)} if config.skip_connection else {}),
    }
    for name, shape in expected.items():
        if name in shapes and shapes[name] != shape:
            raise FileFormatError(f"{path}: {name}", "wrong shape", got=shapes[name], expected=shape)
    if missing := expected.keys() - shapes.keys():
        raise _unfit(path, "missing keys", missing, expected)
    size = sum(file.stat().st_size for file in files)
    check_memory(path, size, size)
    tensors: dict[str, Tensor] = {}
    for file in files:
        with _own_errors(str(file)), safe_open(file, framework="pt", device="cpu") as content:
            tensors |= {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (not a mapping)
    return tensors


def _shards(path: str, of_hub: Mapping[str, Any], variant: str | None) -> list[Path]:
    """Return the files that hold the weights: one, or those that the index names, all in one folder."""
    weights, index = (f"model.{variant}.{name[6:]}" if variant else name for name in (_WEIGHTS, _INDEX))
    try:
        return [_file(path, weights, of_hub)]
    except FileFormatError as error:
        try:
            listed = _file(path, index, of_hub)
        except FileFormatError:
            raise error from None
    where = f"{listed}: weight_map"
    shards = read_json(listed).get("weight_map")
    if not isinstance(shards, Mapping) or not shards:
        raise FileFormatError(where, "names no files", got=type(shards).__name__, expected="tensors and their files")
    for tensor, name in shards.items():
        if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
            raise FileFormatError(
                f"{where}.{tensor}", "must be a file of this folder", got=repr(name), expected=weights
            )
    files = {str(name): _file(path, str(name), of_hub) for name in sorted(set(shards.values()))}
    for name, file in files.items():
        held = _shapes_in(file)
        if unlike := sorted(held.keys() ^ {tensor for tensor, holder in shards.items() if holder == name}):
            raise FileFormatError(where, f"is not what {name} holds", got=", ".join(unlike[:5]))
    return list(files.values())


def _shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a file, by its header."""
    with _own_errors(str(file)), safe_open(file, framework="pt", device="cpu") as content:
        names = [check_name(file, name) for name in content.keys()]  # noqa: SIM118 (not a mapping)
        return {name: tuple(content.get_slice(name).get_shape()) for name in names}


def _is_set(tensor: Tensor | None) -> bool:
    """Whether a file holds a tensor, and not as NaN throughout, which it is before anything has set it."""
    return tensor is not None and not tensor.is_meta and not bool(tensor.isnan().all())


def _check_dtypes(path: str, found: Mapping[str, Tensor], model: PreTrainedModel) -> None:
    """Refuse dtypes that would be converted: integers or 8-bit floats instead of floats."""
    for name, tensor in model.state_dict().items():
        if name in found and found[name].dtype not in (_FLOATS if tensor.is_floating_point() else _INTEGERS):
            raise FileFormatError(f"{path}: {name}", "wrong dtype", got=found[name].dtype, expected=tensor.dtype)


def _check_values(path: str, model: PreTrainedModel) -> None:
    buffers = dict(model.named_buffers())
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            continue
        if not tensor.is_floating_point():
            if tensor.numel() and int(tensor.min()) < 0:
                raise FileFormatError(f"{path}: {name}", "holds a negative number", got=int(tensor.min()))
            continue
        # A threshold that was never set is NaN throughout; a learned one never is.
        unset = name == "threshold" and name in buffers and bool(tensor.isnan().all())
        if not unset and not bool(tensor.isfinite().all()):
            raise FileFormatError(f"{path}: {name}", "holds NaN or infinite numbers")


@contextmanager
def _own_errors(path: str) -> Iterator[None]:
    """Turn what the libraries below raise on files that are missing or damaged into [`FileFormatError`]."""
    try:
        yield
    except HFMoTEError:
        raise
    # OSError, ValueError, SafetensorError and others, for unknown dtypes or impossible paths.
    except Exception as error:
        raise FileFormatError(
            path,
            "cannot be loaded",
            got=first_line(error),
            expected="a folder or repository with config.json and model.safetensors",
        ) from error


def _adapter(path: str) -> FileFormatError:
    what = f"holds an {_ADAPTER}, which would have transformers load another model"
    return FileFormatError(path, what, fix="Take it out of the folder of the SAE.")


def _unfit(path: str, what: str, names: Iterable[str], known: Iterable[str]) -> FileFormatError:
    return FileFormatError(
        f"{path}: weights",
        f"have {what}",
        got=", ".join(sorted(names)),
        expected=", ".join(sorted(known)),
        fix="The config and the weights are of different models, or a file is damaged.",
    )


def _mismatch(path: str, got: str, expected: type[SAEConfig]) -> ModelMismatchError:
    if expected is SAEConfig:
        what, fix = "is not a sparse autoencoder of this package", "hf_mote.load_sae reads those of other libraries."
        return ModelMismatchError(f"{path}: model_type", what, got=got, fix=fix)
    return ModelMismatchError(
        f"{path}: model_type",
        "is another architecture's",
        got=got,
        expected=repr(expected.model_type),
        fix="Load it with AutoModel.from_pretrained, after `import hf_mote`.",
    )
