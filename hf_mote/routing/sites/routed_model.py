"""`RoutedModel`: the routers of a model, their tests and their fingerprint, computed once for each public call.

The time to find routers, to hash their weights and to test them grows with the model. A public function makes one of
these and passes it on; the next call makes its own, so that changed weights are noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from torch import nn

from hf_mote.routing.sites.discover import find_routers
from hf_mote.routing.sites.fingerprint import SAMPLED, fingerprint_of
from hf_mote.routing.sites.output import RouterOutput
from hf_mote.routing.sites.sampled_weights import sample_weights
from hf_mote.routing.sites.self_test import self_test
from hf_mote.routing.sites.site import RouterSite

__all__ = ["RoutedModel"]


class RoutedModel:
    """A model with its routers.

    Args:
        model (`nn.Module`): The model.
        sites (`Sequence[RouterSite]`, *optional*): All its router sites; by default they are found.
        fingerprint (`dict`, *optional*): Its fingerprint, of a model without weights whose weights are elsewhere; by
            default it is computed.

    Attributes:
        model (`nn.Module`): The model.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[RouterSite] | None = None, fingerprint: dict[str, Any] | None = None
    ) -> None:
        self.model = model
        self._given = sites
        self._known = fingerprint
        self._tested: dict[str, RouterOutput | None] = {}

    @cached_property
    def sites(self) -> list[RouterSite]:
        """The router sites, in the order of their layers; found on first use.

        Raises:
            [`UnsupportedError`]: as [`find_routers`].
        """
        return find_routers(self.model) if self._given is None else list(self._given)

    @property
    def layers(self) -> tuple[int, ...]:
        """The absolute decoder layer of each router."""
        return tuple(site.layer for site in self.sites)

    @property
    def shape(self) -> tuple[int, int]:
        """Routers, and experts of the router with most."""
        return len(self.sites), max(site.num_experts for site in self.sites)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What [`fingerprint_of`] and [`sample_weights`] return, hashed on first use."""
        if self._known is not None:
            return self._known
        return {**fingerprint_of(self.model, self.sites), SAMPLED: sample_weights(self.model, self.sites)}

    def tested(self, site: RouterSite) -> RouterOutput | None:
        """Return the reader of a router's output, after a self-test the first time; see [`self_test`].

        Args:
            site (`RouterSite`): One of `sites`.

        Raises:
            [`RouterContractError`]: if the router does not do what its rule says.
        """
        if site.path not in self._tested:
            self._tested[site.path] = self_test(site)
        return self._tested[site.path]
