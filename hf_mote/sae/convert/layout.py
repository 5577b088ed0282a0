"""`SAELayout`: how to read a file of tensors without a known format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_mote.errors import ConfigError, FileFormatError
from hf_mote.sae.convert.formats import Source, build
from hf_mote.sae.convert.tensors import matrix_sizes, read_npz, read_safetensors, read_torch, take
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.register import sae_class

__all__ = ["SAELayout"]

_READERS = {
    ".safetensors": read_safetensors,
    ".npz": read_npz,
    ".pt": read_torch,
    ".pth": read_torch,
    ".bin": read_torch,
}
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "threshold", "b_mag", "r_mag")
_ZERO_BY_DEFAULT = ("b_enc", "b_dec")
# What a caller gives of a transcoder. Widths alone make none: they may be those of a damaged autoencoder.
_OF_TRANSCODERS = ("output_size", "output_hookpoint", "output_hookpoints")


@dataclass(frozen=True)
class SAELayout:
    """The tensors of a file, given to `load_sae` instead of a format's name.

    Args:
        model_type (`str`):
            The architecture, such as `"topk_sae"`. Fields of its config are given to `load_sae`.
        names (`Mapping[str, str]`):
            By our name of a tensor (`W_enc`, `b_enc`, `W_dec`, `b_dec`, `W_skip`, `threshold`, `b_mag`, `r_mag`), its
            name in the file. A bias that is left out is zero. The same name twice is a tied decoder. It is of a
            transcoder if it has a `W_skip`, or if `output_size` or `output_hookpoint` is given to `load_sae`.
        transpose (`tuple[str, ...]`, *optional*):
            Our names of the matrices that the file stores transposed: here `W_enc` is
            `(num_latents, hidden_size)`, `W_dec` `(num_latents, output_size)`, `W_skip` `(output_size, hidden_size)`.
        ignore (`tuple[str, ...]`, *optional*):
            Names of further tensors in the file; any other is refused.

    Raises:
        [`ConfigError`]: if a name is not one of ours.

    Example:

    ```python
    import torch
    from safetensors.torch import save_file
    from hf_mote import SAELayout, load_sae

    save_file({"enc": torch.randn(8, 32), "dec": torch.randn(32, 8)}, "weights.safetensors")
    layout = SAELayout("topk_sae", {"W_enc": "enc", "W_dec": "dec"}, transpose=("W_enc",))
    sae = load_sae("weights.safetensors", layout, k=4, hookpoint="model.layers.3")
    assert sae.config.num_latents == 32 and sae.config.k == 4
    ```
    """

    model_type: str
    names: Mapping[str, str]
    transpose: tuple[str, ...] = ()
    ignore: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        sae_class(self.model_type)
        for where, given in (("names", self.names), ("transpose", self.transpose)):
            for name in given:
                if name not in _NAMES:
                    expected = f"one of {', '.join(_NAMES)}"
                    raise ConfigError(
                        f"SAELayout.{where}", "has a name of no tensor", got=repr(name), expected=expected
                    )
        for name in ("W_enc", "W_dec"):
            if name not in self.names:
                raise ConfigError("SAELayout.names", f"lacks {name}", got=", ".join(self.names) or "nothing")

    def read(self, source: Source) -> SAEModel:
        """Return the model in a file.

        Raises:
            [`FileFormatError`]: if a tensor is missing, unknown or of another shape, or the config cannot be.
        """
        path = source.path
        reader = _READERS.get(path.suffix)
        if reader is None:
            raise FileFormatError(str(path), "must be a file of tensors", expected=f"one of {', '.join(_READERS)}")
        found: dict[str, Tensor] = {name: t for name, t in reader(path).items() if name not in self.ignore}
        layout = {ours: (theirs, ours in self.transpose) for ours, theirs in self.names.items()}
        sizes = matrix_sizes(path, found, layout)
        tensors = take(path, found, layout, sizes)
        for name in _ZERO_BY_DEFAULT:
            if name not in tensors:
                width = sizes.latents if name == "b_enc" else sizes.outputs
                tensors[name] = torch.zeros(width, dtype=tensors["W_enc"].dtype)
        wanted = source.wanted.fields
        fields: dict[str, Any] = {"hidden_size": sizes.inputs, "num_latents": sizes.latents}
        if "W_skip" in tensors or any(wanted.get(name) is not None for name in _OF_TRANSCODERS):
            fields["output_size"] = sizes.outputs
        if "W_skip" in tensors:
            fields["skip_connection"] = True
        origin = {"format": "layout", "names": dict(self.names), "transpose": list(self.transpose)}
        return build(source, path, self.model_type, fields, tensors, origin)
