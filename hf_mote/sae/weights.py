"""`SAEWeights`: the tensors of an SAE, made, initialised, loaded, moved between dtypes and rescaled."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init

from hf_mote.errors import ConfigError, DataError, FileFormatError, UnsupportedError
from hf_mote.sae.configuration import SAEConfig
from hf_mote.sae.fields import check_known
from hf_mote.sae.loading import load_config, load_strictly

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SAEWeights", "wide_dtype"]


def wide_dtype() -> torch.dtype:
    """Return float32, or float64 where a model is made in float64."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


class SAEWeights(PreTrainedModel):
    """The tensors that every SAE has; [`SAEModel`] adds what is done with them, and describes them."""

    config: SAEConfig
    tokens_since_fired: Tensor
    config_class = SAEConfig
    base_model_prefix = "sae"
    main_input_name = "activations"
    _no_split_modules: list[str] = []
    # Float32 or wider whatever the dtype of the rest: in bfloat16 a threshold stops learning and latents flip.
    _float32_tensors: tuple[str, ...] = ()
    # State of training that a checkpoint may lack.
    _keys_to_ignore_on_load_missing = [r"tokens_since_fired"]

    def __init__(self, config: SAEConfig, **others: Any) -> None:
        if type(self).config_class is SAEConfig:
            fix = "Use one of them, such as TopKSAEModel, or SAEModel.from_pretrained."
            raise UnsupportedError(type(self).__name__, "is no architecture", fix=fix)
        if others:
            # From `from_pretrained`, which hands on what is neither a field nor an argument of its own.
            known = config._own_fields()
            check_known(self, others, known, None)
            what = "a config is given, which has the fields already"
            raise ConfigError(type(self).__name__, what, got=", ".join(others), fix="Set them in the config.")
        config.check()
        super().__init__(config)
        # Patterns that are searched for in names: `threshold` would find `threshold_steps`, a count.
        self._keep_in_fp32_modules_strict = {rf"(?:^|\.){name}$" for name in self._float32_tensors}
        self.W_enc = nn.Parameter(torch.empty(config.num_latents, config.hidden_size))
        self.b_enc = nn.Parameter(torch.empty(config.num_latents))
        self.W_dec = nn.Parameter(torch.empty(config.num_latents, config.decoder_size))
        self.b_dec = nn.Parameter(torch.empty(config.decoder_size))
        if config.skip_connection:
            self.W_skip = nn.Parameter(torch.empty(config.decoder_size, config.hidden_size))
        self.register_buffer("tokens_since_fired", torch.zeros(config.num_latents, dtype=torch.long))
        self._add_tensors()
        self.post_init()  # type: ignore[no-untyped-call]

    def _add_tensors(self) -> None:
        """Register the architecture's own parameters and buffers, those of `_float32_tensors` in `wide_dtype()`."""

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Set the rows of `W_dec` to unit length, in place; rows of zeros stay, and so do those of unit length."""
        rows = self.W_dec.data
        width = torch.promote_types(rows.dtype, torch.float32)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=width)
        # Up to rounding, so that doing it again changes nothing: a graph may hold the rows for its backward. Lengths
        # after a division were measured: off by up to 5 eps in float32 and float64, 0.7 in the narrower dtypes.
        slack = (8 if rows.dtype == width else 1) * torch.finfo(rows.dtype).eps
        off = (norms - 1).abs() > slack
        rows.div_(torch.where(off & (norms > 0), norms, 1.0).to(rows.dtype))

    @torch.no_grad()
    def fold_scale(self, scale: float) -> Self:
        """Make an SAE that was trained on `scale * x` one for `x`, in place; returns itself.

        Latents and reconstructions are divided by `scale`; weights stay, biases and thresholds shrink.

        Raises:
            [`DataError`]: if `scale` is not a positive number.
            [`UnsupportedError`]: if `config.input_normalization` is set.
        """
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise DataError("fold_scale: scale", "must be a positive number", got=scale)
        if self.config.input_normalization is not None:
            raise UnsupportedError("fold_scale", "has no meaning for an SAE that normalises its input")
        for tensor in self._scaled_tensors():
            tensor.div_(scale)
        return self

    def _scaled_tensors(self) -> list[Tensor]:
        """Tensors in the units of the activations."""
        return [self.b_enc, self.b_dec]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load an SAE from a folder or the Hub, as any transformers model; `SAEModel` itself finds the architecture.

        Takes what `PreTrainedModel.from_pretrained` takes, fields of the config among it. Nothing is left at random:
        missing, unknown and misshapen tensors are refused, and so are values that are not finite.

        Raises:
            [`FileFormatError`]: if there are no weights, or they do not fit the config.
            [`ModelMismatchError`]: if the config is not that of a sparse autoencoder.
        """
        # `None` where config and state_dict are given instead.
        given = pretrained_model_name_or_path
        path: Any = given if given is None else os.fspath(given)
        if path is not None and os.path.isfile(path):
            raise FileFormatError(path, "is a file", expected="the folder that it is in")
        if cls.config_class is SAEConfig:
            config = load_config(path, kwargs)
            return AutoModel.from_pretrained(path, *args, config=config, **kwargs)
        load: Callable[..., Any] = super().from_pretrained
        model, info = load_strictly(load, cls.config_class, path, *args, **kwargs)
        for name, problem in model._wrong_tensors():
            raise FileFormatError(f"{path}: {name}", problem)
        return (model, info) if kwargs.get("output_loading_info") else model

    def _wrong_tensors(self) -> Iterator[tuple[str, str]]:
        """Yield the tensors that hold what they cannot, and what that is; asked of a model that was just loaded."""
        yield from ()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is not self:
            return
        # The encoder starts as the transpose of a dictionary of random unit rows (Gao et al., arXiv 2406.04093, A.1).
        init.normal_(self.W_dec)
        if not getattr(self.W_dec, "_is_hf_initialized", False):
            self.normalize_decoder()
        if self.config.is_transcoder:
            init.normal_(self.W_enc, std=self.config.hidden_size**-0.5)
        else:
            init.copy_(self.W_enc, self.W_dec)
        for name in ("b_enc", "b_dec", "tokens_since_fired", "W_skip"):
            if hasattr(self, name):
                init.zeros_(getattr(self, name))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        exact = {name: getattr(self, name).detach() for name in self._float32_tensors}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in exact.items():
            after = getattr(self, name)
            wide = torch.promote_types(after.dtype, torch.float32)
            if after.dtype != wide:
                # Through `data`, so that a parameter stays the object that an optimizer holds.
                after.data = before.to(after.device, wide)
        return self
