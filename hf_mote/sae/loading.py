"""Loading an SAE so that nothing is left at random and nothing foreign is taken for one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from hf_mote.errors import FileFormatError, HFMoTEError, ModelMismatchError
from hf_mote.sae.configuration import SAEConfig

__all__ = ["load_config", "load_strictly"]

# Where to look, among what `from_pretrained` takes, and what only the model is asked for.
_OF_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_OF_MODEL = ("code_revision", "dtype", "quantization_config", "torch_dtype", "trust_remote_code")


def load_config(path: str, kwargs: dict[str, Any]) -> SAEConfig:
    """Return the config that `from_pretrained` was given as `config`, taken out of `kwargs`, or else that of a folder.

    Fields among `kwargs` are taken out too, and take the place of those in the folder.

    Raises:
        [`FileFormatError`]: if there is none, or it cannot be read.
        [`ModelMismatchError`]: if it is not that of a sparse autoencoder.
        [`ConfigError`]: if a field that is given has a wrong type or is out of range.
    """
    config = kwargs.pop("config", None)
    if not isinstance(config, PreTrainedConfig):
        folder = Path(config or path, kwargs.get("subfolder") or "")
        if Path(config or path).is_dir() and not (folder / "config.json").is_file():
            entries = sorted(entry.name for entry in folder.iterdir())[:12] if folder.is_dir() else []
            raise FileFormatError(
                f"{folder}",
                "holds no config.json",
                got=", ".join(entries) or "an empty or missing folder",
                fix="Give the folder that save_pretrained wrote, or name it by subfolder.",
            )
        with _own_errors(path):
            try:
                of_hub = {key: kwargs[key] for key in _OF_HUB if key in kwargs}
                fields = {key: kwargs.pop(key) for key in kwargs.keys() - {*_OF_HUB, *_OF_MODEL}}
                config, others = AutoConfig.from_pretrained(
                    config or path, return_unused_kwargs=True, **of_hub, **fields
                )
                kwargs.update(others)
            except ValueError as error:
                if isinstance(error, HFMoTEError | json.JSONDecodeError):
                    raise
                raise _mismatch(path, str(error).strip().splitlines()[0], SAEConfig) from error
    if not isinstance(config, SAEConfig):
        raise _mismatch(path, repr(config.model_type), SAEConfig)
    return config


def load_strictly(
    load: Callable[..., tuple[PreTrainedModel, dict[str, Any]]],
    config_class: type[SAEConfig],
    path: str,
    *args: Any,
    **kwargs: Any,
) -> tuple[Any, dict[str, Any]]:
    """Call a transformers loader and refuse what it would only warn about; returns model and loading info.

    Raises:
        [`FileFormatError`]: if there are no safetensors; if tensors are missing, unknown or of another shape; or if
            one holds values that are not finite, or a count below 0.
        [`ModelMismatchError`]: if a config is given that is not the architecture's.
    """
    config = kwargs.get("config")
    if isinstance(config, PreTrainedConfig) and not isinstance(config, config_class):
        raise _mismatch(path, repr(config.model_type), config_class)
    kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True, "use_safetensors": True}
    with _own_errors(path):
        model, info = load(path, *args, **kwargs)
    for name, found, expected in sorted(info["mismatched_keys"]):
        raise FileFormatError(f"{path}: {name}", "wrong shape", got=tuple(found), expected=tuple(expected))
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            raise FileFormatError(
                f"{path}: weights",
                f"have {kind.replace('_', ' ')}",
                got=", ".join(sorted(info[kind])),
                expected=", ".join(sorted(model.state_dict())),
                fix="The config and the weights are of different models, or a file is damaged.",
            )
    _check_values(path, model)
    return model, info


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
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise FileFormatError(
            path,
            "cannot be loaded",
            got=(str(error).strip() or type(error).__name__).splitlines()[0],
            expected="a folder or repository with config.json and model.safetensors",
        ) from error


def _mismatch(path: str, got: str, expected: type[SAEConfig]) -> ModelMismatchError:
    if expected is SAEConfig:
        what, fix = "is no sparse autoencoder of this package", "hf_mote.load_sae reads those of other libraries."
        return ModelMismatchError(f"{path}: model_type", what, got=got, fix=fix)
    return ModelMismatchError(
        f"{path}: model_type",
        "is another architecture's",
        got=got,
        expected=repr(expected.model_type),
        fix="Load it with AutoModel.from_pretrained, after `import hf_mote`.",
    )
