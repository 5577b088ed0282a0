"""`top_activations`: where latents are most active in a text, how often, and their effect on the logits."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_mote.errors import ConfigError, DataError
from hf_mote.sae.activity import latents_in, reading
from hf_mote.sae.hookpoints import Hookpoint
from hf_mote.sae.kept import kept
from hf_mote.sae.left_out import LeftOut
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.training.sequences import batch_of

__all__ = ["Excerpt", "Histogram", "LatentProfile", "top_activations"]

_BARS = 40


class Excerpt(NamedTuple):
    """A stretch of text around a token on which a latent is active.

    Attributes:
        pieces (`list[str]`): Its tokens as text.
        values (`list[float]`): The latent on each.
        place (`int`): Which of them is the one.
    """

    pieces: list[str]
    values: list[float]
    place: int


class Histogram(NamedTuple):
    """A histogram of values.

    Attributes:
        heights (`list[int]`): Values in each bar, from the smallest on.
        values (`list[float]`): The middle of each bar.
    """

    heights: list[int]
    values: list[float]


class LatentProfile(NamedTuple):
    """The profile of one latent from a text and the model's weights.

    Attributes:
        latent (`int`): The latent.
        density (`float`): Share of tokens on which it is active.
        largest (`float`): Its largest value.
        excerpts (`list[Excerpt]`): Where it is largest, one for each sequence, the largest first.
        promoted (`list[tuple[str, float]]`): Tokens whose logits its dictionary row raises most, by how much for each
            unit, as the unembedding alone has it; empty where the widths differ.
        suppressed (`list[tuple[str, float]]`): Those it lowers most.
        histogram (`Histogram`): Its values on the tokens on which it is active.
        logit_histogram (`Histogram`): What a unit of it adds to the logits of all tokens.
    """

    latent: int
    density: float
    largest: float
    excerpts: list[Excerpt]
    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]
    histogram: Histogram = Histogram([], [])
    logit_histogram: Histogram = Histogram([], [])


@torch.no_grad()
def top_activations(
    model: nn.Module,
    sae: SAEModel,
    dataset: Iterable[Any],
    tokenizer: Any,
    latents: Sequence[int],
    *,
    top: int = 10,
    around: int = 12,
    max_tokens: int | None = None,
    context_length: int = 128,
    sequences_per_forward: int = 8,
    text_column: str = "text",
    hookpoint: str | None = None,
    exclude_special_tokens: bool = True,
    exclude_positions: str | None = None,
    max_norm: float | None = None,
    run_folder: str | os.PathLike[str] | None = None,
) -> list[LatentProfile]:
    """Find where latents are most active.

    Args:
        model (`nn.Module`): The model.
        sae ([`SAEModel`]): In evaluation mode.
        dataset (`Iterable`): Texts, or rows of columns, as in [`collect_activations`].
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        latents (`Sequence[int]`): Which latents.
        top (`int`, *optional*, defaults to 10): Excerpts, and tokens of each list.
        around (`int`, *optional*, defaults to 12): Tokens shown before and after.
        max_tokens (`int`, *optional*): Tokens that are read, in whole forwards; by default all.
        context_length (`int`, *optional*, defaults to 128): Most tokens of a sequence.
        sequences_per_forward (`int`, *optional*, defaults to 8): Sequences that run together.
        text_column (`str`, *optional*, defaults to `"text"`): Where a row has its text.
        hookpoint (`str`, *optional*): Where the SAE belongs; by default its `config.hookpoint`.
        exclude_special_tokens (`bool`, *optional*, defaults to `True`): Leave out the tokenizer's special tokens.
        exclude_positions (`str`, *optional*): Leave out positions of each sequence, as in [`collect_activations`].
        max_norm (`float`, *optional*):
            Leave out tokens whose input is longer than so many times the median of their forward.
        run_folder (`str` or `os.PathLike`, *optional*):
            Where the latents of each forward are kept, so that a stopped run continues with exactly the same result. A
            folder of another model, SAE, text or other latents is refused; `top` and `around` may be others.

    Returns:
        `list[LatentProfile]`, in the order of `latents`.

    Raises:
        [`ConfigError`]: if there is no such latent, or the SAE does not say where it belongs.
        [`DataError`]: if the text has no tokens.
        [`UnsupportedError`]: with a run folder, if something is attached to the model that cannot be compared with a
            later run's.
        [`ModelMismatchError`]: if the run folder is that of another run.
        [`FileFormatError`]: if a record of it is damaged.
    """
    wanted = list(dict.fromkeys(latents))
    for latent in wanted:
        if isinstance(latent, bool) or not isinstance(latent, int) or not 0 <= latent < sae.config.num_latents:
            expected = f"0..{sae.config.num_latents - 1}"
            raise ConfigError("latents", "the SAE has no such latent", got=repr(latent), expected=expected)
    left_out = LeftOut.of(
        "top_activations", tokenizer, special=exclude_special_tokens, positions=exclude_positions, max_norm=max_norm
    )
    reads, forwards, run = reading(
        "top_activations",
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
        latents=wanted,
        left_out=left_out.identity(),
    )
    place = torch.full((sae.config.num_latents,), -1)
    place[wanted] = torch.arange(len(wanted))
    tokens, fired = 0, torch.zeros(len(wanted), dtype=torch.long)
    best: list[list[tuple[float, int, list[int], list[float], int]]] = [[] for _ in wanted]
    order = count()
    seen: list[list[Tensor]] = [[] for _ in wanted]
    form = {
        "places": (torch.int64, (None,)),
        "values": (torch.float64, (None,)),
        "tokens": (torch.int64, ()),
    }
    for number, taken in enumerate(forwards):
        ids, mask = batch_of(taken)
        make = partial(_active, model, sae, reads, ids, mask, left_out, place, len(wanted))
        active = kept(run, f"forward-{number:06d}", make, form)
        size = mask.numel() * len(wanted)
        places, values = active["places"], active["values"]
        outside = bool(((places < 0) | (places >= size)).any()) or not 0 <= int(active["tokens"]) <= int(mask.sum())
        if places.shape != values.shape or outside:
            assert run is not None
            raise run.damaged(f"forward-{number:06d}", "latents of another forward")
        dense = values.new_zeros(size)
        dense[places] = values
        dense = dense.reshape(*mask.shape, len(wanted))
        tokens += int(active["tokens"])
        fired += (dense > 0).sum((0, 1))
        for index, line in enumerate(dense.flatten(0, 1).T):
            seen[index].append(line[line > 0])
        for row, sequence in enumerate(taken):
            for index in range(len(wanted)):
                line = dense[row, : len(sequence), index]
                value, at = line.max(0)
                if float(value) > 0:
                    entry = (float(value), -next(order), sequence, line.tolist(), int(at))
                    heapq.heappush(best[index], entry)
                    if len(best[index]) > top:
                        heapq.heappop(best[index])
    if not tokens:
        raise DataError("top_activations: dataset", "has no token left", fix="Give more text, or exclude less.")
    effects = _effects(model, sae, wanted, tokenizer, top)
    profiles = []
    for index, latent in enumerate(wanted):
        found = sorted(best[index], reverse=True)
        excerpts = []
        for _, _, ids_of, values_of, spot in found:
            start = max(spot - around, 0)
            part = slice(start, spot + around + 1)
            pieces = [tokenizer.decode([token]) for token in ids_of[part]]
            excerpts.append(Excerpt(pieces, values_of[part], spot - start))
        largest = found[0][0] if found else 0.0
        density = float(fired[index]) / tokens
        shown = _histogram(torch.cat(seen[index]))
        profiles.append(
            LatentProfile(latent, density, largest, excerpts, *effects[index][:2], shown, effects[index][2])
        )
    return profiles


def _histogram(values: Tensor) -> Histogram:
    if not len(values):
        return Histogram([], [])
    low, high = float(values.min()), float(values.max())
    if low == high:
        return Histogram([len(values)], [low])
    heights = torch.histc(values.float(), _BARS, low, high).long().tolist()
    return Histogram(heights, [low + (high - low) * (bar + 0.5) / _BARS for bar in range(_BARS)])


def _active(
    model: nn.Module,
    sae: SAEModel,
    reads: Hookpoint,
    ids: Tensor,
    mask: Tensor,
    left_out: LeftOut,
    place: Tensor,
    number: int,
) -> dict[str, Tensor]:
    """Where in a forward the chosen latents are not 0, as places in `(batch, length, number)`, and their values."""
    sparse, read = latents_in(model, sae, reads, ids, mask, left_out)
    columns = place.to(sparse.values.device)[sparse.pattern.columns]
    here = (columns >= 0) & (sparse.values != 0)
    places = sparse.pattern.rows[here] * number + columns[here]
    return {"places": places.cpu(), "values": sparse.values[here].double().cpu(), "tokens": read.sum()}


def _effects(
    model: nn.Module, sae: SAEModel, latents: list[int], tokenizer: Any, top: int
) -> list[tuple[list[tuple[str, float]], list[tuple[str, float]], Histogram]]:
    """The effect of a unit of each latent on the logits through the unembedding: most, least, and a histogram."""
    find: Any = getattr(model, "get_output_embeddings", lambda: None)
    weight = getattr(find(), "weight", None)
    if not isinstance(weight, Tensor) or weight.shape[1] != sae.config.decoder_size:
        return [([], [], Histogram([], [])) for _ in latents]
    rows = sae.W_dec[latents].to(weight.device, weight.dtype)
    logits = (rows @ weight.T).float().cpu()
    found = []
    for line in logits:
        parts = []
        for largest in (True, False):
            values, tokens = line.topk(min(top, len(line)), largest=largest)
            names = [tokenizer.decode([token]) for token in tokens.tolist()]
            parts.append(list(zip(names, values.tolist(), strict=True)))
        found.append((parts[0], parts[1], _histogram(line)))
    return found
