"""`top_activations`: where latents are most active in a text, how often, and what they do to the logits."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_mote.errors import ConfigError, DataError
from hf_mote.sae.intervene import sites_of
from hf_mote.sae.kernels.sparse import SparseLatents
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.tapped import activations_of
from hf_mote.sae.training.sequences import Sequences, batch_of

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
    """How often values lie where.

    Attributes:
        heights (`list[int]`): Values in each bar, from the smallest on.
        values (`list[float]`): The middle of each bar.
    """

    heights: list[int]
    values: list[float]


class LatentProfile(NamedTuple):
    """What a text and the model's weights say of one latent.

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

    Returns:
        `list[LatentProfile]`, in the order of `latents`.

    Raises:
        [`ConfigError`]: if there is no such latent, or the SAE does not say where it belongs.
        [`DataError`]: if the text has no tokens.
    """
    wanted = list(dict.fromkeys(latents))
    for latent in wanted:
        if isinstance(latent, bool) or not isinstance(latent, int) or not 0 <= latent < sae.config.num_latents:
            expected = f"0..{sae.config.num_latents - 1}"
            raise ConfigError("latents", "the SAE has no such latent", got=repr(latent), expected=expected)
    if sae.training:
        raise ConfigError("top_activations.sae", "is in training mode", fix="Call sae.eval() first.")
    reads, _ = sites_of(model, sae, hookpoint, "top_activations")
    sequences = iter(
        Sequences(tokenizer, dataset, text_column=text_column, context_length=context_length, packed=False)
    )
    place = torch.full((sae.config.num_latents,), -1)
    place[wanted] = torch.arange(len(wanted))
    tokens, fired = 0, torch.zeros(len(wanted), dtype=torch.long)
    best: list[list[tuple[float, int, list[int], list[float], int]]] = [[] for _ in wanted]
    order = count()
    seen: list[list[Tensor]] = [[] for _ in wanted]
    while taken := list(islice(sequences, sequences_per_forward)):
        ids, mask = batch_of(taken)
        values = activations_of(model, ids, mask, [reads])[reads.name]
        dense = _columns(sae, values.to(sae.W_dec.device), mask, place, len(wanted)).cpu()
        tokens += int(mask.sum())
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
        if max_tokens is not None and tokens >= max_tokens:
            break
    if not tokens:
        raise DataError("top_activations: dataset", "holds no tokens")
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


def _columns(sae: SAEModel, values: Tensor, mask: Tensor, place: Tensor, number: int) -> Tensor:
    """The wanted latents of `(batch, length, width)` activations, `(batch, length, number)`."""
    latents = sae._encode(sae._tokens(values, mask)).latents
    sparse = latents if isinstance(latents, SparseLatents) else SparseLatents.from_dense(latents)
    columns = place.to(sparse.values.device)[sparse.pattern.columns]
    here = columns >= 0
    dense = sparse.values.new_zeros(sparse.pattern.num_rows, number)
    dense[sparse.pattern.rows[here], columns[here]] = sparse.values[here]
    return dense.reshape(*mask.shape, number)


def _effects(
    model: nn.Module, sae: SAEModel, latents: list[int], tokenizer: Any, top: int
) -> list[tuple[list[tuple[str, float]], list[tuple[str, float]], Histogram]]:
    """What a unit of each latent adds to the logits through the unembedding: most, least, and how often what."""
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
