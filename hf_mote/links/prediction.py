"""How well latents of an SAE tell on which tokens of a text each expert is chosen: sums over tokens, in one pass.

The latents that are active on a token, and its experts, are read from one forward and kept in the run folder as they
are, which takes memory by the tokens of a forward; what is added up has one place for each latent and expert, whatever
the length of the text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_mote.errors import ConfigError, RouterContractError
from hf_mote.routing.recording.record import RoutingRecord, record_routing
from hf_mote.routing.sites.site import RouterSite
from hf_mote.runs.folder import RunFolder
from hf_mote.sae.hookpoints import Hookpoint
from hf_mote.sae.kept import kept
from hf_mote.sae.kernels.sparse import SparseLatents
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.tapped import activations_of

__all__ = ["Predicted", "by_prediction", "check_size"]

MOST_LINKS = 2**27  # latents times experts, of which each takes 16 bytes while a text is read
_CONSTANT = 1e-12  # a variance, against the mean square, that rounding alone can make


class Predicted(NamedTuple):
    """What a text says: the fields of [`LatentExpertMap`] of the same names."""

    values: Tensor
    tokens: Tensor
    together: Tensor
    chosen: Tensor
    num_tokens: int


def check_size(where: str, num_latents: int, sites: Sequence[RouterSite]) -> None:
    """Raise [`ConfigError`] if there are more latents and experts than sums can be kept for.

    Args:
        where (`str`): What the error names.
        num_latents (`int`): How many latents.
        sites (`Sequence[RouterSite]`): The routers.
    """
    experts = len(sites) * max(site.num_experts for site in sites)
    if num_latents * experts > MOST_LINKS:
        raise ConfigError(
            where,
            "must be fewer to keep sums of each with each expert",
            got=f"{num_latents:,} latents and {experts:,} experts",
            expected=f"at most {MOST_LINKS // experts:,} latents",
            fix="Name latents.",
        )


def by_prediction(
    run: RunFolder | None,
    model: nn.Module,
    sae: SAEModel,
    reads: Hookpoint,
    sites: Sequence[RouterSite],
    batches: Sequence[tuple[Tensor, Tensor]],
    latents: Sequence[int],
    progress: bool,
) -> Predicted:
    """Return the correlation of each latent with the choice of each expert, and on how many tokens there are both.

    Over `n` tokens, with activation `a` (0 where the latent is not active) and choice `c` (1 or 0),
    `r = (n Σac - Σa Σc) / sqrt((n Σa² - (Σa)²) (n Σc² - (Σc)²))`; 0 where either is the same on all tokens.

    Args:
        run (`RunFolder`, *optional*): Where what each forward gives is kept.
        model (`nn.Module`): The model.
        sae ([`SAEModel`]): The SAE.
        reads (`Hookpoint`): Where the SAE reads.
        sites (`Sequence[RouterSite]`): The model's routers.
        batches (`Sequence[tuple[torch.Tensor, torch.Tensor]]`): Token ids and mask of each forward.
        latents (`Sequence[int]`): Which latents.
        progress (`bool`): Show a progress bar.
    """
    width = max(site.num_experts for site in sites)
    num_experts = len(sites) * width
    rows = torch.full((sae.config.num_latents,), -1)
    rows[list(latents)] = torch.arange(len(latents))
    sums = torch.zeros(len(latents) * num_experts, dtype=torch.float64)
    together = torch.zeros(len(latents) * num_experts, dtype=torch.int64)
    chosen = torch.zeros(num_experts, dtype=torch.int64)
    total, squares = torch.zeros(2, len(latents), dtype=torch.float64)
    active = torch.zeros(len(latents), dtype=torch.int64)
    read = 0
    form = {
        "tokens": (torch.int64, (None,)),
        "latents": (torch.int64, (None,)),
        "values": (torch.float64, (None,)),
        "chosen": (torch.int32, (None, len(sites), None)),
    }
    with (
        record_routing(model, phase="prompt", trace=True) as record,
        logging.tqdm(total=len(batches), desc="predicting", disable=not progress, leave=False) as bar,
    ):
        for number, (ids, mask) in enumerate(batches):
            name = f"seen-{number:06d}"
            found = kept(run, name, partial(_seen, model, sae, reads, record, ids, mask), form)
            tokens, routed, values = found["tokens"], found["chosen"], found["values"]
            if run is not None and not _fits(found, int(mask.sum()), sae.config.num_latents, sites):
                raise run.damaged(name, "tokens, latents or experts that are not there")
            read += len(routed)
            row = rows[found["latents"]]
            mine = row >= 0
            row, tokens, values = row[mine], tokens[mine], values[mine]
            total.index_add_(0, row, values)
            squares.index_add_(0, row, values**2)
            active += row.bincount(minlength=len(latents))
            for layer in range(len(sites)):  # one at a time: a place for each active latent and chosen expert
                experts = routed[:, layer].long()
                chosen[layer * width :][:width] += experts[experts >= 0].bincount(minlength=width)
                experts = experts[tokens]
                there = experts >= 0
                places = (row[:, None] * num_experts + layer * width + experts)[there]
                sums.index_add_(0, places, values[:, None].expand_as(experts)[there])
                together.index_add_(0, places, torch.ones_like(places))
            bar.update()
    shape = (len(latents), len(sites), width)
    correlations = _correlations(sums.view(len(latents), num_experts), total, squares, chosen.double(), read)
    return Predicted(correlations.view(shape), active, together.view(shape), chosen.view(shape[1:]), num_tokens=read)


def _seen(
    model: nn.Module, sae: SAEModel, reads: Hookpoint, record: RoutingRecord, ids: Tensor, mask: Tensor
) -> dict[str, Tensor]:
    """The tokens of a forward, padding left out: latents that are active, one entry each, and experts."""
    record.forget()
    activations = activations_of(model, ids, mask, [reads], whole=True)[reads.name].to(sae.W_dec.device)
    traces = record.traces()
    record.forget()
    chosen = torch.cat([torch.where(trace.weights != 0, trace.indices, -1) for trace in traces])
    if len(chosen) != int(mask.sum()):
        what = "the recorded routing is not of the tokens that were read"
        raise RouterContractError("link_latents", what, got=len(chosen), expected=int(mask.sum()))
    latents = sae._encode(sae._tokens(activations, mask.to(activations.device))).latents
    sparse = latents if isinstance(latents, SparseLatents) else SparseLatents.from_dense(latents)
    active = sparse.values > 0
    places = mask.flatten().cumsum(0) - 1  # of each row among those that are no padding
    return {
        "tokens": places[sparse.pattern.rows[active].cpu()],
        "latents": sparse.pattern.columns[active].cpu(),
        "values": sparse.values[active].double().cpu(),
        "chosen": chosen,
    }


def _fits(found: Mapping[str, Tensor], num_tokens: int, num_latents: int, sites: Sequence[RouterSite]) -> bool:
    """Whether a record can be of this forward."""
    tokens, latents, values, chosen = (found[name] for name in ("tokens", "latents", "values", "chosen"))
    most = torch.tensor([site.num_experts for site in sites])[:, None]
    return (
        tokens.shape == latents.shape == values.shape
        and len(chosen) == num_tokens
        and not bool(((tokens < 0) | (tokens >= num_tokens) | (latents < 0) | (latents >= num_latents)).any())
        and not bool(((chosen < -1) | (chosen >= most)).any())
    )


def _correlations(sums: Tensor, total: Tensor, squares: Tensor, chosen: Tensor, read: int) -> Tensor:
    """Correlations of the sums Σac, `(latents, experts)`, which they take the place of."""
    of_latents = read * squares - total**2
    of_latents = torch.where(of_latents > _CONSTANT * read * squares, of_latents, torch.inf)
    of_experts = read * chosen - chosen**2
    of_experts = torch.where(of_experts > 0, of_experts, torch.inf)
    sums.addr_(total, chosen, beta=read, alpha=-1)
    return sums.div_(of_latents.sqrt()[:, None]).div_(of_experts.sqrt()).clamp_(-1, 1)
