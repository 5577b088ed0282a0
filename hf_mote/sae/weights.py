"""`SAEWeights`: the tensors of an SAE, made, initialised, loaded, moved between dtypes and rescaled."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from hf_mote.errors import ConfigError, DataError, FileFormatError, UnsupportedError
from hf_mote.sae.configuration import SAEConfig
from hf_mote.sae.fields import check_known
from hf_mote.sae.loading import load_config, load_strictly
from hf_mote.sae.saving import save_whole
from hf_mote.sae.sharing import push_sae
from hf_mote.sharing.cards import CardNotes

if TYPE_CHECKING:
    from typing import Self

    from hf_mote.sae.report import SAEReport

__all__ = ["SAEWeights", "wide_dtype"]

_logger = logging.get_logger(__name__)
# Further from unit length than an optimizer's step takes a row.
_FAR_OFF = 0.1
# Dictionary rows whose lengths are measured together on a CPU.
_ROWS = 512


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
    # Float32 or wider for any dtype of the rest: in bfloat16 a threshold stops learning and latents flip.
    _float32_tensors: tuple[str, ...] = ()
    # State of training that a checkpoint may lack.
    _keys_to_ignore_on_load_missing = [r"tokens_since_fired"]
    # Which of it a checkpoint may not lack beside another tensor, once that was set: (tensor, what it needs).
    _needs: tuple[tuple[str, str], ...] = ()

    def __init__(self, config: SAEConfig, **others: Any) -> None:
        if type(self).config_class is SAEConfig:
            fix = "Use one of them, such as TopKSAEModel, or SAEModel.from_pretrained."
            raise UnsupportedError(type(self).__name__, "must be an architecture", fix=fix)
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
        """Set the rows of `W_dec` to unit length, in place; rows of zeros stay, and so do those of unit length.

        What training does after a step. It changes what is reconstructed, by as much as the lengths are off: for an
        SAE from elsewhere there is [`fold_decoder_norm`]. Where they are off by more than a tenth it is logged.
        """
        rows = self.W_dec.data
        width = torch.promote_types(rows.dtype, torch.float32)
        # Up to rounding, so that doing it again changes nothing: a graph may hold the rows for its backward. Lengths
        # after a division were measured: off by up to 5 eps in float32 and float64, 0.7 in the narrower dtypes.
        slack = (8 if rows.dtype == width else 1) * torch.finfo(rows.dtype).eps
        found = []
        # On a CPU in parts, which are still in the cache when they are divided.
        for part in rows.split(_ROWS if rows.device.type == "cpu" else max(len(rows), 1)):
            norms = torch.linalg.vector_norm(part, dim=1, keepdim=True, dtype=width)
            off = ((norms - 1).abs() > slack) & (norms > 0)
            part.div_(torch.where(off, norms, 1.0).to(rows.dtype))
            found.append(norms)
        norms = torch.cat(found)
        if bool(((norms - 1).abs() > _FAR_OFF).logical_and(norms > 0).any()):
            _logger.warning(
                "%s: rows of W_dec are set to unit length that were up to %.3g long, which changes reconstructions; "
                "fold_decoder_norm() does not.",
                type(self).__name__,
                float(norms.max()),
            )

    @torch.no_grad()
    def fold_decoder_norm(self) -> Self:
        """Set the rows of `W_dec` to unit length and let latents take up their lengths, in place; returns itself.

        Reconstructions stay the same up to rounding; each latent is multiplied by the length that its row had. This is
        for an SAE from elsewhere: [`normalize_decoder`] changes what it reconstructs.

        Raises:
            [`UnsupportedError`]: if latents are chosen by comparing them with each other, or with one threshold, in
                another unit than the folded one, so that other latents would be active.
        """
        wide = torch.promote_types(self.W_dec.dtype, torch.float32)
        norms = torch.linalg.vector_norm(self.W_dec, dim=1, dtype=wide)
        factors = torch.where(norms > 0, norms, 1.0)
        spread = float(factors.max() / factors.min()) - 1 if len(factors) else 0.0
        if self._compares_latents and spread > 16 * torch.finfo(self.W_dec.dtype).eps:
            raise UnsupportedError(
                f"{type(self).__name__}.fold_decoder_norm",
                "latents are compared before they are multiplied by the lengths of their rows: others would be active",
                got=f"lengths from {float(factors.min()):.4g} to {float(factors.max()):.4g}",
                expected="scale_latents_by_decoder_norm=True, or rows of one length",
                fix="Leave the rows as they are, with normalize_decoder=False in the config.",
            )
        for tensor in self._latent_tensors():
            rows = factors.to(tensor.dtype)
            tensor.mul_(rows.reshape(-1, *[1] * (tensor.ndim - 1)) if tensor.ndim else rows.mean())
        self.W_dec.div_(factors[:, None].to(self.W_dec.dtype))
        return self

    @property
    def _compares_latents(self) -> bool:
        """Whether which latents are active depends on how long one latent's unit is beside another's."""
        return False

    def _latent_tensors(self) -> list[Tensor]:
        """Tensors that a latent's values are proportional to, one row or entry for each latent."""
        return [self.W_enc, *self._encoder_biases()]

    def _encoder_biases(self) -> list[Tensor]:
        """Biases that are added to products with `W_enc`."""
        return [self.b_enc]

    @torch.no_grad()
    def fold_scale(self, scale: float | Tensor, output_scale: float | Tensor | None = None) -> Self:
        """Make an SAE that was trained on `scale * x` one for `x`, in place; returns itself.

        By a number, latents and reconstructions are divided by the scale of what is reconstructed; biases and
        thresholds shrink, and the decoder stays, rows of unit length too. By one number for each dimension, latents
        stay, and encoder and decoder take the scales up: `normalize_decoder` is then off, since rows of unit length
        would be another function.

        Args:
            scale (`float` or `torch.Tensor` of shape `(hidden_size,)`): What activations were multiplied by.
            output_scale (`float` or `torch.Tensor` of shape `(output_size,)`, *optional*):
                What a transcoder's targets were multiplied by; `scale` by default.

        Raises:
            [`DataError`]: if a scale is not positive, of another shape, or an autoencoder is given two.
            [`UnsupportedError`]: if the scales differ and `b_dec` is subtracted from the input, which has the other;
                if the input is normalised; or, by dimension, if latents are scaled by the lengths of their rows.
        """
        if self.config.input_normalization is not None:
            raise UnsupportedError("fold_scale", "has no meaning for an SAE that normalises its input")
        output_scale = scale if output_scale is None else output_scale
        sizes = (self.config.hidden_size, self.config.decoder_size)
        for name, value, size in zip(("scale", "output_scale"), (scale, output_scale), sizes, strict=True):
            _check_scale(f"fold_scale: {name}", value, size)
        by_dimension = isinstance(scale, Tensor) or isinstance(output_scale, Tensor)
        wide = [torch.as_tensor(one, dtype=torch.float64, device="cpu") for one in (scale, output_scale)]
        same = (not by_dimension or sizes[0] == sizes[1]) and torch.equal(*torch.broadcast_tensors(*wide))
        if not same:
            if not self.config.is_transcoder:
                what = "an autoencoder reconstructs its input, in one scale"
                raise DataError("fold_scale: output_scale", what, got=output_scale, expected=scale)
            if self.config.subtract_decoder_bias:
                raise UnsupportedError(
                    f"{type(self).__name__}.fold_scale",
                    "b_dec is subtracted from the input and added to the output, which have different scales",
                    got=f"{scale} and {output_scale}",
                    fix="Train the transcoder with subtract_decoder_bias=False.",
                )
        if by_dimension:
            self._fold_by_dimension(scale, output_scale)
            return self
        ratio = float(scale / output_scale)
        if ratio != 1:
            self.W_enc.mul_(ratio)
            if self.config.skip_connection:
                self.W_skip.mul_(ratio)
        for tensor in self._scaled_tensors():
            tensor.div_(output_scale)
        return self

    def _fold_by_dimension(self, scale: float | Tensor, output_scale: float | Tensor) -> None:
        if self._measures_rows:
            raise UnsupportedError(
                f"{type(self).__name__}.fold_scale",
                "latents are chosen by the lengths of their rows, which scales of dimensions change",
                fix="Set scale_latents_by_decoder_norm=False, or normalise by the mean square.",
            )
        into, out = (
            torch.as_tensor(one, dtype=torch.float64, device=self.W_enc.device) for one in (scale, output_scale)
        )
        for tensor, factor in ((self.W_enc, into), (self.W_dec, 1 / out), (self.b_dec, 1 / out)):
            tensor.copy_(tensor.double() * factor)
        if self.config.skip_connection:
            self.W_skip.copy_(self.W_skip.double() * into / out.reshape(-1, 1))
        self.config.normalize_decoder = False

    @property
    def _measures_rows(self) -> bool:
        """Whether the lengths of dictionary rows decide which latents are active."""
        return False

    def _scaled_tensors(self) -> list[Tensor]:
        """Tensors in the units of what is reconstructed."""
        return [*self._encoder_biases(), self.b_dec]

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
        config = load_config(cls.config_class, path, kwargs)
        # The architecture that is registered for the config, never one that a folder names.
        if cls.config_class is SAEConfig:
            model_class: Any = AutoModel._model_mapping[type(config)]
            return model_class.from_pretrained(path, *args, config=config, **kwargs)
        load: Callable[..., Any] = super().from_pretrained
        model, info = load_strictly(load, config, path, *args, **kwargs)
        for name, problem in model._wrong_tensors():
            raise FileFormatError(f"{path}: {name}", problem)
        return (model, info) if kwargs.get("output_loading_info") else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Save as any transformers model, so that the folder holds the old SAE or the new one, never parts of both.

        Takes what `PreTrainedModel.save_pretrained` takes.

        Raises:
            [`FileFormatError`]: if the folder cannot be written to, or the disk is full.
        """
        main = args[0] if args else kwargs.get("is_main_process", True)
        if not main:
            return super().save_pretrained(save_directory, *args, **kwargs)
        return save_whole(super().save_pretrained, Path(save_directory), *args, **kwargs)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        report: SAEReport | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "50GB",
        tags: list[str] | None = None,
        subfolder: str | None = None,
        datasets: Sequence[str] = (),
        license: str | None = None,
        intended_use: str | None = None,
        misuse: str | None = None,
    ) -> str:
        """Upload config, weights and card in one commit, and return the commit's URL.

        Args:
            repo_id (`str`): `namespace/name`; made if it does not exist.
            report ([`SAEReport`], *optional*): What `evaluate_sae` found, for the card; it is uploaded, too.
            private (`bool`, *optional*): Whether a repository that is made here is private.
            token (`str` or `bool`, *optional*): As in `huggingface_hub.HfApi`.
            commit_message (`str`, *optional*): By default "Upload <class name>".
            commit_description (`str`, *optional*): Of the commit.
            revision (`str`, *optional*): Branch to commit to, made if it does not exist.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request, and return its URL.
            max_shard_size (`int` or `str`, *optional*, defaults to `"50GB"`): As in transformers.
            tags (`list[str]`, *optional*): Further tags of the card.
            subfolder (`str`, *optional*): Folder in the repository. A card there that was not made here is kept.
            datasets (`Sequence[str]`, *optional*): For the card: Hub ids of the data sets it was trained on.
            license (`str`, *optional*): For the card: its license, as the Hub names it.
            intended_use (`str`, *optional*): For the card: what it is for.
            misuse (`str`, *optional*): For the card: what it is not for.

        Raises:
            [`UnknownNameError`]: if there is no such repository, or the token is refused.
            [`UnsupportedError`]: if the Hub refuses, with its reason, or something private would be uploaded.
        """
        notes = CardNotes(datasets, license, intended_use, misuse)
        upload_options = {"private": private, "token": token, "revision": revision, "create_pr": create_pr}
        return push_sae(
            self,
            repo_id,
            notes,
            report,
            tags or [],
            max_shard_size,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            commit_description=commit_description,
            subfolder=subfolder,
            **upload_options,
        )

    def _wrong_tensors(self) -> Iterator[tuple[str, str]]:
        """Yield the tensors that hold what they cannot, and what that is; asked of a model that was just loaded."""
        yield from ()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is not self:
            return
        # The encoder starts as the transpose of a dictionary of random unit rows (Gao et al., arXiv 2406.04093, A.1).
        if not getattr(self.W_dec, "_is_hf_initialized", False):
            init.copy_(self.W_dec, nn.functional.normalize(torch.randn_like(self.W_dec), dim=1))
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


def _check_scale(where: str, value: float | Tensor, size: int) -> None:
    if isinstance(value, Tensor):
        if value.shape != (size,) or not bool((value > 0).all() and value.isfinite().all()):
            got = f"shape {tuple(value.shape)}" if value.shape != (size,) else f"from {float(value.min()):.4g}"
            raise DataError(where, "must be a positive number for each dimension", got=got, expected=f"({size},)")
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise DataError(where, "must be a positive number", got=value)
