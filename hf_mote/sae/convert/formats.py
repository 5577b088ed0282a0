"""The interface of a file format: its files, its detection, how it is read and written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_mote.documents import read_document
from hf_mote.errors import ConfigError, FileFormatError, UnknownNameError, UnsupportedError
from hf_mote.sae.convert.names import hub_model, is_hook, place_of
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.register import sae_class
from hf_mote.sae.weights import SAEWeights

__all__ = [
    "Format",
    "Known",
    "Source",
    "Wanted",
    "build",
    "computes_as",
    "lost_fields",
    "lost_state",
    "origin_of",
    "place_read",
    "place_written",
    "require_plain_input",
]

# Fields about the config itself, which other formats need not hold.
_OF_THE_CONFIG = {"hf_mote_version", "input_normalization_eps", "origin"}
_NORMALIZED = "hook_normalized"  # the end of a hook behind a norm
# Fields that a caller may give against the files: they do not change weights.
_FREE = {"base_model", "base_model_revision", "hookpoint", "input_normalization", "output_hookpoint"}


class Known(NamedTuple):
    """Values of a public list for an SAE, besides its files.

    Attributes:
        repo_id (`str`): The repository.
        path (`str`): Folder or file in it.
        format (`str`): Name of the format.
        release (`str`): Name of the release in the list.
        sae_id (`str`): Name of the SAE in the release.
        model (`str`): Name of the base model.
        hook (`str`, *optional*): Where it is in the model, by TransformerLens, where its name says so.
        norm_scaling_factor (`float`, *optional*): What activations are to be multiplied by.
        normalization (`str`, *optional*): What takes the place of `normalize_activations` in its config.
        centred (`bool`): Whether the model's activations had their mean over the width taken off.
    """

    repo_id: str
    path: str
    format: str
    release: str
    sae_id: str
    model: str
    hook: str | None = None
    norm_scaling_factor: float | None = None
    normalization: str | None = None
    centred: bool = False


class Wanted(NamedTuple):
    """The requests of a caller.

    Attributes:
        dtype (`torch.dtype` or `"auto"`, *optional*): Of the model; float32 or wider by default, `"auto"`: as stored.
        device_map (`Any`): As `from_pretrained` takes it.
        norm_scaling_factor (`float`, *optional*): What activations are to be multiplied by.
        fields (`Mapping[str, Any]`): Of the config.
    """

    dtype: torch.dtype | str | None = None
    device_map: Any = None
    norm_scaling_factor: float | None = None
    fields: Mapping[str, Any] = {}


class Source(NamedTuple):
    """The source of an SAE.

    Attributes:
        folder (`Path`): The folder with its files.
        trail (`str`): Hub id and subfolder, or the folder's path: some formats say by names alone what an SAE is of.
        file (`str`): The file with the weights, by its path in the folder.
        known (`Known`, *optional*): What a public list says about it.
        wanted (`Wanted`): What the caller asks for.
    """

    folder: Path
    trail: str
    file: str
    known: Known | None = None
    wanted: Wanted = Wanted()

    @property
    def path(self) -> Path:
        """The file with the weights."""
        return self.folder / self.file

    @property
    def words(self) -> str:
        """Trail and file with slashes, to look for names in."""
        return f"{self.trail}/{self.file}".replace("\\", "/")


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name (`str`): As `load_sae` and `export_sae` take it.
        weights (`tuple[str, ...]`):
            Possible paths of the file with the weights; a `*` where each SAE of a folder has its own. The first is the
            one that is written.
        config (`str`, *optional*): Name of the JSON or YAML file beside it.
        recognises (`Callable`): Whether the content of the config, `None` if there is none, is of this format.
        holds (`Callable`): Whether tensors of these names and shapes are of this format.
        beside (`Callable`): Further files that go with one file of weights.
        read (`Callable`): From a [`Source`] to the model.
        write (`Callable`, *optional*):
            Writes a model into an empty folder and returns what the format cannot hold; `None` if it is never written.
        refusal (`str`): Why it is never written.
        loaders (`tuple[str, ...]`): What SAELens' list of public SAEs calls it.
        reads (`str`), writes (`str`), oracle (`str`):
            Of the table of formats: what is read and written, and with which library it is compared.
    """

    name: str
    weights: tuple[str, ...]
    config: str | None
    recognises: Callable[[Mapping[str, Any] | None], bool]
    read: Callable[[Source], SAEModel]
    holds: Callable[[Mapping[str, tuple[int, ...]]], bool] = field(default=lambda shapes: True)
    beside: Callable[[str], Sequence[str]] = field(default=lambda file: ())
    write: Callable[[SAEModel, Path], list[str]] | None = None
    refusal: str = ""
    loaders: tuple[str, ...] = ()
    reads: str = ""
    writes: str = ""
    oracle: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all its files."""
        return self.weights if self.config is None else (*self.weights, self.config)

    @property
    def is_one_per_folder(self) -> bool:
        """Whether a folder holds no more than one SAE."""
        return not any(set("*[") & set(name) for name in self.weights)

    def matches(self, file: str) -> bool:
        """Whether a path in a folder is one that this format has weights at."""
        return any(fnmatchcase(file, pattern) for pattern in self.weights)

    def weights_in(self, folder: Path) -> list[str]:
        """Return the paths in a folder that this format has weights at."""
        if not os.path.isdir(folder):
            return []
        found = [path for pattern in self.weights for path in folder.glob(pattern) if os.path.isfile(path)]
        return sorted({str(PurePosixPath(path.relative_to(folder).as_posix())) for path in found})

    def describes(self, folder: Path) -> bool:
        """Whether the config in a folder, or that there is none, is of this format."""
        path = None if self.config is None else folder / self.config
        return self.recognises(read_document(path) if path is not None and os.path.isfile(path) else None)


def build(
    source: Source,
    path: Path,
    model_type: str,
    fields: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    origin: Mapping[str, Any],
) -> SAEModel:
    """Return a model made of checked tensors.

    Args:
        source (`Source`): What is known and wanted.
        path (`Path`): The file an error names.
        model_type (`str`): The architecture.
        fields (`Mapping[str, Any]`): Of its config, as the files have them.
        tensors (`Mapping[str, torch.Tensor]`): Under the names and in the orientation of `SAEModel`, on the CPU.
        origin (`Mapping[str, Any]`): What becomes `config.origin`.

    Raises:
        [`FileFormatError`]: if the config cannot be, a given field contradicts the files, or the decoder has another
            width than the config says.
    """
    model_class = sae_class(model_type)
    said = {name: value for name, value in fields.items() if value is not None}
    said = _with_what_is_known(source.known, said)
    for name, value in source.wanted.fields.items():
        if name not in _FREE and name in said and said[name] != value:
            raise FileFormatError(f"{path}: {name}", "is not what was asked for", got=said[name], expected=value)
    try:
        config = model_class.config_class(**{**said, **source.wanted.fields}, origin=dict(origin))
    except (ConfigError, UnknownNameError) as error:
        raise FileFormatError(str(path), f"describes no {model_type}: {str(error).rstrip('.')}") from error
    if (width := tensors["W_dec"].shape[1]) != config.decoder_size:
        fix = "An SAE that gives another width than it takes is a transcoder: give output_size or output_hookpoint."
        where, what = f"{source.path}: decoder", "must be as wide as what is reconstructed"
        raise FileFormatError(where, what, got=width, expected=config.decoder_size, fix=fix)
    dtype = _dtype(source.wanted.dtype, tensors["W_enc"].dtype)
    cast = {
        # The others keep their dtype: thresholds are wider than the weights.
        name: tensor.to(dtype) if tensor.dtype == tensors["W_enc"].dtype and name != "threshold" else tensor
        for name, tensor in tensors.items()
    }
    # The loader of transformers itself, because there is no file for ours to check.
    load: Callable[..., SAEModel] = super(SAEWeights, model_class).from_pretrained
    return load(
        None,
        config=config,
        state_dict=cast,
        dtype=dtype,
        device_map=source.wanted.device_map,
        trust_remote_code=False,
    )


def place_read(source: Source, where: str, hook: str, model: str | None) -> dict[str, Any]:
    """Return the fields of the config for the place that an SAE reads: its hookpoint, and how that is normalised.

    Args:
        source (`Source`): What is wanted.
        where (`str`): File and key that an error names.
        hook (`str`): As in `"blocks.3.ln2.hook_normalized"`.
        model (`str`, *optional*): Hub id of the model.

    Returns:
        `dict[str, Any]`: Empty for a plain place in a model whose modules are not known.

    Raises:
        [`UnsupportedError`]: if the SAE may take activations that a norm, which is not known, has changed.
    """
    place = place_of(hook, model)
    if place is not None:
        normalized = {"input_normalization": "rms_norm", "input_normalization_eps": place.rms_norm_eps}
        return {"hookpoint": place.hookpoint, **({} if place.rms_norm_eps is None else normalized)}
    if not _is_plain(hook) and "input_normalization" not in source.wanted.fields:
        what = f"is no place that is known in {model or 'this model'}, and its activations may be normalised"
        fix = "Give input_normalization (None for none) and hookpoint to load_sae."
        raise UnsupportedError(where, what, got=repr(hook), fix=fix)
    return {}


def place_written(source: Source, where: str, hook: str, model: str | None) -> dict[str, Any]:
    """Return the field of the config for the place that a transcoder writes to.

    Args:
        source (`Source`): What is wanted.
        where (`str`): File and key that an error names.
        hook (`str`): As in `"blocks.3.hook_mlp_out"`.
        model (`str`, *optional*): Hub id of the model.

    Returns:
        `dict[str, Any]`: Empty for a plain place in a model whose modules are not known.

    Raises:
        [`UnsupportedError`]: if the place is not known, or is behind a norm, whose output is no module's.
    """
    place = place_of(hook, model)
    if place is not None and place.rms_norm_eps is None:
        return {"output_hookpoint": place.hookpoint}
    if not _is_plain(hook) and not {"output_hookpoint", "output_hookpoints"} & set(source.wanted.fields):
        what, fix = f"is no place that is known in {model or 'this model'}", "Give output_hookpoint to load_sae."
        raise UnsupportedError(where, what, got=repr(hook), fix=fix)
    return {}


def _is_plain(hook: str) -> bool:
    """Whether it is a hook, of a place that is not behind a norm."""
    return is_hook(hook) and not hook.endswith(_NORMALIZED)


def computes_as(sae: SAEModel, base: type[SAEModel]) -> bool:
    """Return whether a model is of an architecture and computes what it does outside training, nothing overridden."""
    rules = ("_activate", "_centred", "_decode", "_preactivations")
    return isinstance(sae, base) and all(getattr(type(sae), rule) is getattr(base, rule) for rule in rules)


def require_plain_input(sae: SAEModel, library: str) -> None:
    """Refuse to write a model that normalises its input for a library that does not.

    Raises:
        [`UnsupportedError`]: with the normalisation.
    """
    if sae.config.input_normalization is not None:
        raise UnsupportedError(
            f"export_sae: {type(sae).__name__}",
            f"normalises its input, which {library} does not",
            got=f"input_normalization={sae.config.input_normalization!r}",
            fix="Set config.input_normalization to None, if the file is for activations that are normalised already.",
        )


def origin_of(sae: SAEModel, name: str) -> dict[str, Any]:
    """Return what `load_sae` kept of an SAE's file, empty for another format."""
    origin = sae.config.origin or {}
    return dict(origin) if origin.get("format") == name else {}


def lost_fields(sae: SAEModel, held: set[str]) -> dict[str, Any]:
    """Return the fields of the config that differ from their defaults, besides those that a format holds."""
    kind = type(sae.config)
    names = [name for name in kind._own_fields() if name not in held | _OF_THE_CONFIG]
    values = {name: getattr(sae.config, name) for name in names}
    return {name: value for name, value in values.items() if value != getattr(kind, name, None)}


def lost_state(sae: SAEModel, held: set[str]) -> list[str]:
    """Return the names of non-empty tensors that only training needs, besides those that a format holds."""
    return [name for name, tensor in sae.state_dict().items() if name not in held and bool(torch.any(tensor != 0))]


def _with_what_is_known(known: Known | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields with those of a public list."""
    if known is None:
        return fields
    added = {"base_model": hub_model(known.model)}
    place = place_of(known.hook, fields.get("base_model") or added["base_model"])
    if place is not None and place.rms_norm_eps is None:
        added["hookpoint"] = place.hookpoint
    if known.centred:
        added["input_normalization"] = "center"
    return {**{name: value for name, value in added.items() if value is not None}, **fields}


def _dtype(wanted: torch.dtype | str | None, stored: torch.dtype) -> torch.dtype:
    """Return the dtype of a model, `wanted` if that is one."""
    if isinstance(wanted, torch.dtype):
        return wanted
    return stored if wanted == "auto" else torch.promote_types(stored, torch.float32)
