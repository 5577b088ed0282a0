"""A gain on every routing weight of a model, which causal rankings differentiate by and set to zero.

Every routing weight is multiplied by the gain of its expert, 1 at first. The derivative of a score by a gain is the
first-order effect of the expert; a gain of 0 removes the expert's contribution and changes nothing else
(`suppress_mode="zero"`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_mote.errors import UnsupportedError
from hf_mote.hooks import Intervention
from hf_mote.passes.forward import DecoderParticipant, Forward
from hf_mote.routing.router_hook import WeightProbe, attach_to_routers
from hf_mote.routing.rules.selection import Routing
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.routing.sites.site import RouterSite
from hf_mote.routing.sites.special_outputs import refusals_of

__all__ = ["Gains", "attach_gains"]


class Gains(DecoderParticipant):
    """The gains of one model, for each sequence of a batch.

    Args:
        sites (`Sequence[RouterSite]`): The model's routers.
        value (`float`, *optional*, defaults to 1.0): Gain of all experts.
        differentiable (`bool`, *optional*, defaults to `False`): Whether derivatives by the gains are taken.

    Attributes:
        zeros (`list[tuple[int, int]]`):
            The (row, expert) of gains set to 0, the row being the router's place in `sites`.
        given (`torch.Tensor` of shape `(sequences, layers, experts)`, *optional*):
            The gains of the next passes, instead of `value`; `zeros` is applied, too.
        where (`torch.Tensor` of shape `(sequences * tokens,)`, bool, *optional*):
            The tokens of the next passes that the gains apply to; others have `value`, and no derivative.
    """

    def __init__(self, sites: Sequence[RouterSite], value: float = 1.0, *, differentiable: bool = False) -> None:
        super().__init__()
        self.sites = sites
        self.value = value
        self.differentiable = differentiable
        self.zeros: list[tuple[int, int]] = []
        self.given: Tensor | None = None
        self.where: Tensor | None = None
        self.by_path: dict[str, Tensor] = {}

    def on_forward(self, forward: Forward) -> None:
        """Make the gains of a pass."""
        if self.given is None:
            shapes = [(forward.batch, site.num_experts) for site in self.sites]
            gains = [torch.full(shape, self.value, device=forward.device) for shape in shapes]
        else:
            given = self.given.to(forward.device)
            gains = [given[:, row, : site.num_experts].clone() for row, site in enumerate(self.sites)]
        for row, expert in self.zeros:
            gains[row][:, expert] = 0
        self.by_path = {
            site.path: gain.requires_grad_() if self.differentiable else gain
            for site, gain in zip(self.sites, gains, strict=True)
        }

    def on_trace(self, forward: Forward) -> None:
        """Refuse a compiled graph."""
        raise UnsupportedError(
            "causal ranking",
            "the effect of routing weights is not measured in a compiled graph",
            fix="Give the model itself, not the compiled one.",
        )

    def derivatives(self, score: Tensor) -> Tensor:
        """Return the derivative of a score by each gain, `(sequences, layers, experts)`, float64 on the CPU.

        Raises:
            [`UnsupportedError`]: if the score does not depend on the weights of some router, or has no derivative.
        """
        leaves = [self.by_path[site.path] for site in self.sites]
        if not score.requires_grad:
            raise UnsupportedError(
                "causal ranking", "the score has no derivative", fix="Compute it from the logits, without detach()."
            )
        grads = torch.autograd.grad(score, leaves, allow_unused=True)
        width = max(site.num_experts for site in self.sites)
        table = torch.zeros(len(leaves[0]), len(leaves), width, dtype=torch.float64)
        for row, (site, grad) in enumerate(zip(self.sites, grads, strict=True)):
            if grad is None:
                raise UnsupportedError(
                    site.path,
                    "no gradient reaches its weights, as in a block that runs its experts under no_grad, or under "
                    "gradient checkpointing with use_reentrant=True",
                    fix="Use ftri or ablate_experts, or switch checkpointing off.",
                )
            table[:, row, : grad.shape[1]] = grad.double().cpu()
        return table


def attach_gains(routed: RoutedModel, gains: Gains) -> Intervention:
    """Attach gains to a model.

    Args:
        routed (`RoutedModel`): The model with its routers.
        gains (`Gains`): Gains of these.

    Raises:
        [`UnsupportedError`]: if the weights of a router are out of reach.
    """
    for site in gains.sites:
        reason = refusals_of(site).get("attribution")
        if reason is not None:
            what = f"no effect of its weights can be measured: {reason}"
            raise UnsupportedError(site.path, what, fix="Use ftri.")
    return attach_to_routers(routed, gains, lambda site: _GainProbe(gains, site))


class _GainProbe(WeightProbe):
    def __init__(self, gains: Gains, site: RouterSite) -> None:
        self.gains = gains
        self.path = site.path

    def probe(self, forward: Forward | None, routing: Routing) -> Tensor:
        gains = self.gains.by_path[self.path].to(routing.weights.device)
        rows = torch.arange(len(gains), device=gains.device).repeat_interleave(len(routing.indices) // len(gains))
        factors = gains[rows[:, None], routing.indices]
        if self.gains.where is not None:
            here = self.gains.where.to(factors.device)[:, None]
            factors = torch.where(here, factors, torch.full_like(factors, self.gains.value))
        return routing.weights * factors.to(routing.weights.dtype)
