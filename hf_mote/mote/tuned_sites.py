"""What is trained at one router: which routers can be, and the edits that the present values make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_mote.errors import ConfigError, ModelMismatchError, UnsupportedError, whole
from hf_mote.mote.checks import SiteEditor
from hf_mote.mote.tuned_values import TunedValues
from hf_mote.passes.forward import Forward
from hf_mote.routing.rules.edits import RoutingEdit
from hf_mote.routing.sites.site import RouterSite
from hf_mote.routing.sites.special_outputs import refusals_of

__all__ = ["TunedEditor", "check_trainable", "sites_in"]


class TunedEditor(SiteEditor):
    """The gains and biases of one router, as they are in each pass.

    Args:
        site (`RouterSite`): The router.
        place (`int`): Its row of the tables.
        tables (`Callable`): Returns the tables of log gains and of biases, or `None` for one that is not trained.
    """

    row = None
    suppressed: frozenset[int] = frozenset()
    stimulated: frozenset[int] = frozenset()
    rerouted = False

    def __init__(
        self, site: RouterSite, place: int, tables: Callable[[], tuple[Tensor | None, Tensor | None]]
    ) -> None:
        self.place, self.tables = place, tables
        self.num_experts = site.num_experts
        self.scaled = frozenset(range(site.num_experts)) if tables()[0] is not None else frozenset()
        self.parts = (self,)

    @property
    def digest(self) -> str:  # type: ignore[override]
        """A digest of the present values."""
        rows = [None if table is None else table.tolist() for table in self._rows()]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def edits(self, forward: Forward | None, device: torch.device) -> list[tuple[RoutingEdit, Tensor | None]]:
        """Return the edit of the present values, for all rows."""
        factors, added = self._rows()
        gain = None if factors is None else factors.exp().to(device)
        return [(RoutingEdit(gain=gain, logit_bias=None if added is None else added.to(device)), None)]

    def _rows(self) -> tuple[Tensor | None, Tensor | None]:
        log_gain, bias = (None if one is None else one[self.place, : self.num_experts] for one in self.tables())
        return log_gain, bias


def sites_in(where: str, sites: Sequence[RouterSite], layers: Sequence[int] | None) -> list[RouterSite]:
    """Return the routers of some layers.

    Args:
        where (`str`): The caller, for errors.
        sites (`Sequence[RouterSite]`): The model's routers.
        layers (`Sequence[int]`, *optional*): Absolute decoder layers; all by default.

    Raises:
        [`ConfigError`]: if they are not a list of layers, each once.
        [`ModelMismatchError`]: if a layer has no routed experts.
    """
    if layers is None:
        return list(sites)
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        got = repr(layers)[:60]
        raise ConfigError(f"{where}.layers", "must be a list of layers", got=got, expected="as in [2, 3]")
    wanted = [whole(f"{where}.layers", layer) for layer in layers]
    if len(set(wanted)) != len(wanted):
        raise ConfigError(f"{where}.layers", "must name each layer once", got=wanted)
    known = [site.layer for site in sites]
    for layer in wanted:
        if layer not in known:
            what = f"layer {layer} has no routed experts"
            raise ModelMismatchError(f"{where}.layers", what, got=layer, expected=f"some of {known}")
    return [site for site in sites if site.layer in wanted]


def check_trainable(site: RouterSite, values: TunedValues) -> None:
    """Raise [`UnsupportedError`] for a router whose weights do not depend on what is to be trained.

    Args:
        site (`RouterSite`): The router.
        values (`TunedValues`): The tables that are to be trained.
    """
    where = f"layer {site.layer} ({site.path})"
    refusals = refusals_of(site)
    wanted = {"log_gain": ["gain"], "bias": ["bias_on_logits", "trained_bias"]}
    for what in ("attribution", *(one for name in values.tables for one in wanted[name])):
        if what in refusals:
            raise UnsupportedError(where, f"{type(site.module).__name__} cannot be trained: {refusals[what]}")
    constant = site.top_k == 1 and (site.selection.renormalize or site.rule.weights_from == "softmax")
    if constant and values.bias is not None:
        raise UnsupportedError(
            where,
            "the weight of the one expert that a token chooses does not depend on its logit, so that a bias has no "
            "gradient",
            got=f"top-k 1, {site.rule.name}",
            fix="Train gains alone: bias=False.",
        )
