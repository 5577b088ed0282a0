"""`latent_activity`: on how many tokens of a text each latent is active; and reading a text with an SAE."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_mote.errors import ConfigError, DataError
from hf_mote.runs.folder import RunFolder
from hf_mote.sae.hookpoints import Hookpoint
from hf_mote.sae.intervene import sites_of, unwrapped
from hf_mote.sae.kept import digest_of_sequences, kept, run_of
from hf_mote.sae.kernels.sparse import SparseLatents
from hf_mote.sae.left_out import LeftOut
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.tapped import activations_of
from hf_mote.sae.training.sequences import Sequences, batch_of

__all__ = ["LatentActivity", "latent_activity", "latents_in", "reading"]


class LatentActivity(NamedTuple):
    """On how many tokens of a text each latent is active.

    Attributes:
        counts (`list[int]`): Tokens on which it is, of each latent.
        tokens (`int`): Tokens read.
    """

    counts: list[int]
    tokens: int

    def most_active(self, most: int, *, least: int = 1) -> list[int]:
        """Return the latents that are active on most tokens, the most active first.

        Args:
            most (`int`): How many, at most.
            least (`int`, *optional*, defaults to 1):
                Tokens on which each is active; where no latent reaches it, 1 is enough.
        """
        order = sorted(range(len(self.counts)), key=lambda latent: (-self.counts[latent], latent))
        often = [latent for latent in order if self.counts[latent] >= least]
        return (often or [latent for latent in order if self.counts[latent]])[:most]


@torch.no_grad()
def latent_activity(
    model: nn.Module,
    sae: SAEModel,
    dataset: Iterable[Any],
    tokenizer: Any,
    *,
    max_tokens: int | None = None,
    context_length: int = 128,
    sequences_per_forward: int = 8,
    text_column: str = "text",
    hookpoint: str | None = None,
    exclude_special_tokens: bool = True,
    exclude_positions: str | None = None,
    max_norm: float | None = None,
    run_folder: str | os.PathLike[str] | None = None,
) -> LatentActivity:
    """Count on how many tokens of a text each latent is active.

    Args:
        model (`nn.Module`): The model.
        sae ([`SAEModel`]): In evaluation mode.
        dataset (`Iterable`): Texts, or rows of columns, as in [`collect_activations`].
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        max_tokens (`int`, *optional*): Tokens that are read, in whole forwards; by default all.
        context_length (`int`, *optional*, defaults to 128): Most tokens of a sequence.
        sequences_per_forward (`int`, *optional*, defaults to 8): Sequences that run together.
        text_column (`str`, *optional*, defaults to `"text"`): Where a row has its text.
        hookpoint (`str`, *optional*): Where the SAE belongs; by default its `config.hookpoint`.
        exclude_special_tokens (`bool`, *optional*, defaults to `True`): Leave out the tokenizer's special tokens.
        exclude_positions (`str`, *optional*): Leave out positions of each sequence, as in [`collect_activations`].
        max_norm (`float`, *optional*):
            Leave out tokens whose input is longer than so many times the median of their forward.
        run_folder (`str` or `os.PathLike`, *optional*): Where the counts of each forward are kept.

    Raises:
        [`ConfigError`]: if the SAE does not say where it belongs, or is in training mode.
        [`DataError`]: if the text has no tokens.
        [`UnsupportedError`], [`ModelMismatchError`], [`FileFormatError`]: of the run folder, as in
            [`top_activations`].
    """
    left_out = LeftOut.of(
        "latent_activity", tokenizer, special=exclude_special_tokens, positions=exclude_positions, max_norm=max_norm
    )
    reads, forwards, run = reading(
        "latent_activity",
        model,
        sae,
        dataset,
        tokenizer,
        max_tokens=max_tokens,
        context_length=context_length,
        sequences_per_forward=sequences_per_forward,
        text_column=text_column,
        hookpoint=hookpoint,
        run_folder=run_folder,
        left_out=left_out.identity(),
    )
    number = sae.config.num_latents
    form = {"counts": (torch.int64, (number,)), "tokens": (torch.int64, ())}
    counts, tokens = torch.zeros(number, dtype=torch.long), 0

    def counted(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        sparse, read = latents_in(model, sae, reads, ids, mask, left_out)
        active = torch.bincount(sparse.pattern.columns[sparse.values > 0].cpu(), minlength=number)
        return {"counts": active, "tokens": read.sum()}

    for place, taken in enumerate(forwards):
        ids, mask = batch_of(taken)
        part = kept(run, f"forward-{place:06d}", partial(counted, ids, mask), form)
        most = int(part["counts"].max())
        if not max(most, 0) <= int(part["tokens"]) <= int(mask.sum()) or int(part["counts"].min()) < 0:
            assert run is not None
            raise run.damaged(f"forward-{place:06d}", "counts of another forward")
        counts += part["counts"]
        tokens += int(part["tokens"])
    if not tokens:
        raise DataError("latent_activity: dataset", "has no token left", fix="Give more text, or exclude less.")
    return LatentActivity(counts.tolist(), tokens)


def reading(
    where: str,
    model: nn.Module,
    sae: SAEModel,
    dataset: Iterable[Any],
    tokenizer: Any,
    *,
    max_tokens: int | None,
    context_length: int,
    sequences_per_forward: int,
    text_column: str,
    hookpoint: str | None,
    run_folder: str | os.PathLike[str] | None,
    **settings: Any,
) -> tuple[Hookpoint, Iterable[list[list[int]]], RunFolder | None]:
    """Return where the SAE reads, the sequences of each forward, and the run folder; see [`latent_activity`].

    Args:
        where (`str`): The function that reads.
        model (`nn.Module`): See there, and so are the others.
        sae ([`SAEModel`]): See there.
        dataset (`Iterable`): See there.
        tokenizer (`PreTrainedTokenizerBase`): See there.
        max_tokens (`int`, *optional*): See there.
        context_length (`int`): See there.
        sequences_per_forward (`int`): See there.
        text_column (`str`): See there.
        hookpoint (`str`, *optional*): See there.
        run_folder (`str` or `os.PathLike`, *optional*): See there.
        **settings (`Any`): JSON-native: what else the result depends on.
    """
    if sae.training:
        raise ConfigError(f"{where}.sae", "is in training mode", fix="Call sae.eval() first.")
    reads, _ = sites_of(model, sae, hookpoint, where)
    sequences = Sequences(tokenizer, dataset, text_column=text_column, context_length=context_length, packed=False)
    forwards: Iterable[list[list[int]]] = sequences.forwards(sequences_per_forward, max_tokens)
    run = None
    if run_folder is not None:
        forwards = list(forwards)
        run = run_of(
            where,
            run_folder,
            unwrapped(model),
            sae,
            text_sha256=digest_of_sequences(line for taken in forwards for line in taken),
            hookpoint=reads.name,
            sequences_per_forward=sequences_per_forward,
            **settings,
        )
    return reads, forwards, run


def latents_in(
    model: nn.Module, sae: SAEModel, reads: Hookpoint, ids: Tensor, mask: Tensor, left_out: LeftOut
) -> tuple[SparseLatents, Tensor]:
    """Return the latents of a forward, none of them at tokens that are left out; and which tokens are not.

    Args:
        model (`nn.Module`): The model.
        sae ([`SAEModel`]): The SAE.
        reads ([`Hookpoint`]): Where it reads.
        ids (`torch.Tensor` of shape `(batch, length)`, int64): The tokens.
        mask (`torch.Tensor` of that shape): 0 at padding.
        left_out ([`LeftOut`]): What is left out.

    Returns:
        `tuple`: the latents of all tokens, and bool `(batch, length)` on the CPU.
    """
    activations = activations_of(model, ids, mask, [reads])[reads.name]
    read = left_out.kept(ids, mask, activations.reshape(ids.numel(), -1))
    latents = sae._encode(sae._tokens(activations.to(sae.W_dec.device), read)).latents
    return latents if isinstance(latents, SparseLatents) else SparseLatents.from_dense(latents), read
