"""`SAEConfig`: the base of all sparse autoencoder configs.

An architecture derives its config from this one, in its file in `variants/`. The values are JSON-native, checked when
the config is made and again when it is saved, and an unknown key is refused instead of kept.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from transformers import PreTrainedConfig

from hf_mote.errors import ConfigError, FileFormatError, HFMoTEError, ModelMismatchError, first_line
from hf_mote.sae.fields import check_known, check_positive, check_types
from hf_mote.sae.hookpoints import canonical
from hf_mote.sae.normalization import InputNormalization
from hf_mote.version import __version__

if TYPE_CHECKING:
    from typing import Self

__all__ = ["SAEConfig"]

# Keys that transformers writes into a config.json, or passes while it loads one.
_OF_TRANSFORMERS = {
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "_name_or_path",
    "attn_implementation",
    "auto_map",
    "experts_implementation",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}

# Keys that a config.json may have besides the fields: versions and dtype. Others that transformers would act on
# (quantizers, kernels, other files to read) are refused for an SAE.
_OF_FILES = {
    "_commit_hash",  # not a key of a file: transformers up to 5.17 adds the Hub's answer to those
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "model_type",
    "torch_dtype",
    "transformers_version",
    # Keys that the Trainer sets in every config.
    "use_cache",
}
_MOST_NAME = 4096
_DTYPES = {"float16", "bfloat16", "float32", "float64"}


class SAEConfig(PreTrainedConfig):
    """Configuration shared by all sparse autoencoders.

    Args:
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the activations that are encoded.
        num_latents (`int`, *optional*, defaults to 24576):
            Number of latents, the rows of the dictionary.
        output_size (`int`, *optional*):
            Width of what is reconstructed, if it is not the input: a transcoder.
        hookpoint (`str`, *optional*):
            Path of the module whose output is encoded (`"model.layers.10"`), or whose input is
            (`"model.layers.10.mlp.gate.input"`), in the model named by `base_model`.
        output_hookpoint (`str`, *optional*):
            The same for what is reconstructed, if it is not the input: a transcoder.
        output_hookpoints (`list[str]`, *optional*):
            Several places that are reconstructed, side by side in equal parts of `output_size`, instead of
            `output_hookpoint`: one layer of a cross-layer transcoder or crosscoder.
        base_model (`str`, *optional*):
            Hub id or folder of the model that the activations are of.
        base_model_revision (`str`, *optional*):
            Its revision.
        skip_connection (`bool`, *optional*, defaults to `False`):
            Whether a transcoder has a linear path `W_skip` around the latents (Paulo et al., arXiv 2501.18823).
        subtract_decoder_bias (`bool`, *optional*):
            Whether `b_dec` is subtracted before encoding. By default it is, except in a transcoder.
        input_normalization (`"center"`, `"rms_norm"`, `"standardize"` or `"layer_norm"`, *optional*):
            The normalisation of each token before it is encoded (and before a skip connection), which is undone for an
            autoencoder's reconstruction; see `hf_mote.sae.normalization`. Such an SAE is not trained here.
        input_normalization_eps (`float`, *optional*, defaults to 1e-5):
            Avoids a division by zero in it; 0 to 1.
        normalize_decoder (`bool`, *optional*, defaults to `True`):
            Whether rows of `W_dec` are set to unit length before each training step.
        reconstruction_loss (`"fvu"` or `"mse"`, *optional*, defaults to `"fvu"`):
            What is minimised; see `hf_mote.sae.losses`.
        dead_after_tokens (`int`, *optional*, defaults to 10,000,000):
            A latent that was not active in this many training tokens counts as dead.
        origin (`dict[str, Any]`, *optional*):
            Set by `load_sae`: the file format of the SAE and its further values, so that `export_sae` restores
            them.

    Raises:
        [`ConfigError`]: if a field has a wrong type or is out of range.
        [`UnknownNameError`]: if a key is not a field.
    """

    model_type = "sae"
    # Fields that a file must have, as the default would silently be another SAE. `save_pretrained` writes them all.
    _needed: ClassVar[tuple[str, ...]] = (
        "input_normalization",
        "input_normalization_eps",
        "output_size",
        "subtract_decoder_bias",
    )
    # Numbers of a whole batch, which `Trainer.predict` would take for predictions.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "fvu",
        "mse",
        "l0",
        "sparsity_loss",
        "aux_loss",
        "dead_fraction",
    ]

    hidden_size: int = 768
    num_latents: int = 24576
    output_size: int | None = None
    hookpoint: str | None = None
    output_hookpoint: str | None = None
    output_hookpoints: list[str] | None = None
    base_model: str | None = None
    base_model_revision: str | None = None
    skip_connection: bool = False
    subtract_decoder_bias: bool | None = None
    input_normalization: InputNormalization | None = None
    input_normalization_eps: float = 1e-5
    normalize_decoder: bool = True
    reconstruction_loss: Literal["fvu", "mse"] = "fvu"
    dead_after_tokens: int = 10_000_000
    origin: dict[str, Any] | None = None
    hf_mote_version: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        others = (key for key in kwargs if key not in _OF_TRANSFORMERS)
        check_known(self, others, self._own_fields(), self.hf_mote_version)
        for name, dtype in (("dtype", self.dtype), ("torch_dtype", kwargs.get("torch_dtype"))):
            if dtype is not None and str(dtype).removeprefix("torch." * isinstance(dtype, torch.dtype)) not in _DTYPES:
                expected = f"one of {', '.join(sorted(_DTYPES))}"
                where = f"{type(self).__name__}.{name}"
                raise ConfigError(where, "must be a dtype that an SAE computes in", got=repr(dtype), expected=expected)
        # Code that a folder names is never run: the architectures are those that are registered.
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
        self.hf_mote_version = self.hf_mote_version or __version__
        if self.subtract_decoder_bias is None:
            self.subtract_decoder_bias = not self.is_transcoder
        self.check()

    @classmethod
    def _own_fields(cls) -> list[str]:
        inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
        return [field.name for field in dataclasses.fields(cls) if field.name not in inherited]

    @property
    def is_transcoder(self) -> bool:
        """Whether another activation than the input is reconstructed."""
        return any(one is not None for one in (self.output_size, self.output_hookpoint, self.output_hookpoints))

    @property
    def decoder_size(self) -> int:
        """Width of what is reconstructed."""
        return self.hidden_size if self.output_size is None else self.output_size

    @property
    def layer(self) -> int | None:
        """Absolute index of the layer that `hookpoint` is in, `None` if it is not in a layer."""
        numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", self.hookpoint or "")
        return int(numbers[0]) if numbers else None

    def check(self) -> None:
        """Raise [`ConfigError`] with the field's name if a value cannot be; architectures add their own checks."""
        check_types(self, self._own_fields())
        check_positive(self, "hidden_size", "num_latents", "output_size", "dead_after_tokens")
        check_positive(self, "input_normalization_eps", zero=True)
        where = type(self).__name__
        if self.input_normalization_eps > 1:
            what, got = "must avoid a division by zero, and not decide what is encoded", self.input_normalization_eps
            raise ConfigError(f"{where}.input_normalization_eps", what, got=got, expected="0 to 1")
        if self.input_normalization in ("standardize", "layer_norm") and self.hidden_size < 2:
            raise ConfigError(f"{where}.input_normalization", "needs a width of 2 or more", got=self.hidden_size)
        if self.output_hookpoints is not None:
            places = len(self.output_hookpoints)
            if self.output_hookpoint is not None or not places or self.decoder_size % places:
                raise ConfigError(
                    f"{where}.output_hookpoints",
                    "are to be some, without output_hookpoint, and to divide output_size",
                    got=f"{places} of them, output_size {self.decoder_size}",
                )
            names = [canonical(name) for name in self.output_hookpoints]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ConfigError(f"{where}.output_hookpoints", "hold one place twice", got=repr(twice[0])[:80])
        single = ("hookpoint", "output_hookpoint", "base_model", "base_model_revision")
        said = [(name, getattr(self, name)) for name in single]
        for name, value in [*said, *(("output_hookpoints", one) for one in self.output_hookpoints or ())]:
            if value is not None and not (value.isprintable() and 0 < len(value) <= _MOST_NAME):
                expected = f"1 to {_MOST_NAME} printable characters"
                raise ConfigError(f"{where}.{name}", "must be a name", got=ascii(value[:40]), expected=expected)
        if self.skip_connection and not self.is_transcoder:
            raise ConfigError(
                f"{where}.skip_connection",
                "needs a transcoder: around an autoencoder the identity would be learned",
                fix="Give output_size or output_hookpoint, or leave skip_connection out.",
            )
        if self.subtract_decoder_bias and self.decoder_size != self.hidden_size:
            raise ConfigError(
                f"{where}.subtract_decoder_bias",
                "b_dec does not have the width of the input",
                got=f"output_size {self.decoder_size}",
                expected=f"hidden_size {self.hidden_size}",
                fix="Set subtract_decoder_bias=False.",
            )

    def validate(self) -> None:
        """Check the config, as transformers does before it saves one."""
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """Return the config of a dictionary, refusing that of another architecture.

        Raises:
            [`ModelMismatchError`]: if `config_dict["model_type"]` is another architecture's.
            [`ConfigError`]: if a field has a wrong type or is out of range, or one is missing without which this would
                be another SAE: those that say how inputs and latents are scaled, and `k`, where the architecture has
                one.
            [`UnknownNameError`]: if a key is a method and no field.
        """
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ModelMismatchError(
                f"{cls.__name__}: model_type",
                "is another architecture's",
                got=repr(found),
                expected=repr(cls.model_type),
                fix="Load it with AutoModel.from_pretrained, after `import hf_mote`.",
            )
        cls._check_file(config_dict)
        needed = cls._needed
        if config_dict.get("hf_mote_version") is not None:
            # Every version writes it, while whoever writes a config by hand may leave it out of an autoencoder's.
            needed = (*needed, "output_hookpoint")
        if missing := [name for name in needed if name not in config_dict and name not in kwargs]:
            where, fix = f"{cls.__name__}.{missing[0]}", f"Give it: from_pretrained(folder, {missing[0]}=...)."
            raise ConfigError(where, "is missing, and its default may be another SAE's", fix=fix)
        # transformers would set every attribute of the config, its methods included.
        check_known(cls, (key for key in kwargs if callable(getattr(cls, key, None))), cls._own_fields(), None)
        made = super().from_dict(config_dict, **kwargs)
        # Fields in kwargs are set on a config that has been checked already.
        (made[0] if isinstance(made, tuple) else made).check()
        return made

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the content of a folder's or repository's config.json, as transformers does.

        Raises:
            [`FileFormatError`]: if it is missing or not JSON.
        """
        try:
            found: tuple[dict[str, Any], dict[str, Any]] = super().get_config_dict(
                pretrained_model_name_or_path, **kwargs
            )
        # OSError for missing files, other errors for damaged ones.
        except Exception as error:
            if isinstance(error, HFMoTEError):
                raise
            raise FileFormatError(
                str(pretrained_model_name_or_path),
                "cannot be loaded",
                got=first_line(error),
                expected="a folder with config.json",
            ) from error
        if not isinstance(found[0], dict):
            where, got = f"{pretrained_model_name_or_path}: config.json", type(found[0]).__name__
            raise FileFormatError(where, "must hold a JSON object", got=got)
        return found

    @classmethod
    def _check_file(cls, data: dict[str, Any]) -> None:
        """Refuse keys of a file that are not fields, versions or keys of every transformers config."""
        allowed = {*cls._own_fields(), *_OF_FILES}
        given_to_all = PreTrainedConfig().to_dict()
        others = [
            key
            for key, value in data.items()
            if key not in allowed and not (key in given_to_all and given_to_all[key] == value)
        ]
        check_known(cls, others, cls._own_fields(), data.get("hf_mote_version"))
        for key in ("_name_or_path", "dtype", "model_type", "torch_dtype", "transformers_version"):
            # `to_dict` does not return a dtype as text.
            if not isinstance(data.get(key), str | torch.dtype | None):
                raise ConfigError(f"{cls.__name__}.{key}", "must be a text", got=repr(data[key]))
        classes = data.get("architectures")
        if classes is not None and not (isinstance(classes, list) and all(isinstance(one, str) for one in classes)):
            raise ConfigError(f"{cls.__name__}.architectures", "must be a list of names", got=repr(classes))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, stamped with the version of `hf_mote` that writes them."""
        return {**super().to_dict(), "hf_mote_version": __version__}

    def dict_dtype_to_str(self, d: dict[str, Any]) -> None:
        """Make texts of dtypes, as transformers does, but of none in `origin`: there it is another library's word."""
        outside = {key: value for key, value in d.items() if key != "origin"}
        super().dict_dtype_to_str(outside)
        d.update(outside)
