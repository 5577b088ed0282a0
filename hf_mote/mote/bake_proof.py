"""Checks that a baked model does what the live profile does: blocks and whole model are run and compared."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_mote.errors import RouterContractError, UnsupportedError
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote
from hf_mote.routing.sites.discover import find_routers
from hf_mote.routing.sites.packed import feed_of
from hf_mote.routing.sites.self_test import probe_args
from hf_mote.routing.sites.site import RouterSite
from hf_mote.routing.sites.special_outputs import adapter_for

__all__ = ["BakeProof", "prove"]

PROBES = 256
TOKENS = 24
# Of the largest output: sums in another order, and in lower precision a weight rounded the other way.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}


class BakeProof(NamedTuple):
    """How far a baked model is from the live profile on the inputs that were tried.

    Attributes:
        exact (`bool`): Whether every block gave the same, bit for bit.
        block_difference (`float`): Largest difference of a block's output, of the largest output.
        logit_difference (`float`): Largest difference of a logit of the whole model, on random tokens.
    """

    exact: bool
    block_difference: float
    logit_difference: float


@torch.no_grad()
def prove(
    model: PreTrainedModel,
    baked: PreTrainedModel,
    config: MoTEConfig,
    sites: Sequence[RouterSite],
    *,
    touched: Sequence[int],
) -> BakeProof:
    """Return how far a baked model is from the live profile.

    Args:
        model (`PreTrainedModel`): The model, to which the config is attached during the check.
        baked (`PreTrainedModel`): The baked one.
        config (`MoTEConfig`): The config.
        sites (`Sequence[RouterSite]`): The model's routers.
        touched (`Sequence[int]`): Layers that were changed.

    Raises:
        [`RouterContractError`]: if a block differs by more than rounding.
        [`UnsupportedError`]: if a block cannot be run by itself, or no input was found that reaches an expert.
    """
    twins = {site.layer: site for site in find_routers(baked)}
    worst, exact = 0.0, True
    for site in sites:
        if site.layer not in touched:
            continue
        hidden = _reaching(site, _weighed(config, site.layer))
        mine = _run(twins[site.layer], hidden)
        with apply_mote(model, config):
            live = _run(site, hidden)
        difference = float((mine - live).abs().max() / live.abs().max().clamp(min=1e-30))
        exact &= torch.equal(mine, live)
        worst = max(worst, difference)
        if not difference <= TOLERANCE.get(live.dtype, 0.0):
            raise RouterContractError(
                f"bake_mote: layer {site.layer}",
                "the baked block does not do what the live one does",
                got=f"off by {difference:.2g} of the largest output",
                expected=f"at most {TOLERANCE.get(live.dtype, 0.0):.2g}",
                fix="Attach the config with apply_mote, or serve it as a profile.",
            )
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(vocabulary, (1, TOKENS), generator=generator).to(model.device)
    mine = baked(input_ids=ids).logits
    with apply_mote(model, config):
        live = model(input_ids=ids).logits
    return BakeProof(exact, worst, float((mine - live).abs().max()))


def _weighed(config: MoTEConfig, layer: int) -> list[int]:
    """The experts of a layer that have other weights, or none, without having been chosen for it."""
    return sorted(expert for at, expert, *_ in (*config.suppress, *config.gain) if at == layer)


def _reaching(site: RouterSite, experts: Sequence[int]) -> Tensor:
    """Return hidden states, `(tokens, hidden_size)`, that between them choose each of the experts."""
    weight = next(p for p in site.module.parameters() if p.ndim == 2)
    generator = torch.Generator().manual_seed(1)
    width = feed_of(site.module, site.block).width
    hidden = torch.randn(PROBES, width, generator=generator)
    if weight.shape == (site.num_experts, width) and experts:
        rows = weight[list(experts)].float().cpu()
        towards = rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-30) * width**0.5
        hidden = torch.cat([hidden, towards, towards + torch.randn(towards.shape, generator=generator)])
    hidden = hidden.to(weight)
    args = probe_args(site, hidden)
    output = site.module(*args)
    chosen = set(adapter_for(site, output).read(output)[1].indices.flatten().tolist())
    missing = sorted(set(experts) - chosen)
    if missing:
        raise UnsupportedError(
            f"bake_mote: layer {site.layer}",
            "no input was found for which the router chooses an expert, so that nothing can be checked",
            got=f"expert {missing[0]}, {len(hidden)} inputs",
            fix="Take it out of the config if the router never chooses it; or attach the config with apply_mote.",
        )
    return hidden


def _run(site: RouterSite, hidden: Tensor) -> Tensor:
    block: nn.Module = site.block if site.block is not None else site.module
    taken = [
        name
        for name, parameter in inspect.signature(type(block).forward).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if len(taken) != 2:
        raise UnsupportedError(
            f"bake_mote: layer {site.layer}",
            "its block cannot be run by itself to show that the baked one does the same",
            got=f"{type(block).__name__}.forward({', '.join(taken[1:])})",
            expected="a block of experts that takes hidden states alone",
            fix="Attach the config with apply_mote.",
        )
    output: Any = block(hidden[None])
    while isinstance(output, tuple):
        output = output[0]
    found: Tensor = output
    return found
