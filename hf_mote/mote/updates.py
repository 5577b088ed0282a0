"""The updates of routed experts: what each adds to its block's routed output, read in one pass and put into another.

The update of an expert at a token is its output times its routing weight. A block's experts run in one module, which
is called with the hidden states, the chosen experts and their weights, and returns the sum of the updates. So the
update of one choice is what that module returns for the same hidden states and experts with every other weight at 0.
The module is found by what it is called with, and that the updates sum to its output is checked wherever they are
read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_mote.errors import UnsupportedError
from hf_mote.hooks import Attachment, Participant, SharedHook, attach, stack_on
from hf_mote.passes.forward import DecoderParticipant, Forward
from hf_mote.routing.router_hook import DecisionObserver, attach_to_routers
from hf_mote.routing.rules.selection import Routing
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.routing.sites.site import RouterSite

__all__ = ["LayerUpdates", "Updates", "attach_updates"]

_ROUNDING = 8  # times the resolution of the dtype: how far the sum of the updates may be from the output
_WHERE = "expert updates"


class LayerUpdates(NamedTuple):
    """The updates of one layer's experts at some tokens of a pass.

    Attributes:
        choices (`torch.Tensor` of shape `(tokens, top_k, hidden)`, the model's dtype): The update of each choice.
        experts (`torch.Tensor` of shape `(tokens, top_k)`, int64): The chosen experts.
    """

    choices: Tensor
    experts: Tensor

    @property
    def used(self) -> set[int]:
        """The experts that some token chose."""
        return set(self.experts.flatten().tolist())

    def of(self, expert: int) -> Tensor:
        """Return the update of one expert at each token, `(tokens, hidden)`, float32; 0 where it was not chosen."""
        chosen = (self.experts == expert)[..., None]
        return torch.where(chosen, self.choices.float(), 0.0).sum(dim=1)


class Updates(DecoderParticipant):
    """What is read from the experts of a model in its next pass, and what is put there.

    A layer is named by the place of its router in `sites`.

    Args:
        sites (`Sequence[RouterSite]`): The model's routers.

    Attributes:
        where (`torch.Tensor` of shape `(sequences * tokens,)`, bool):
            The tokens that are read or changed.
        wanted (`int`, *optional*):
            The layer whose updates [`read`] returns after the pass.
        outputs (`dict[int, torch.Tensor]`, *optional*):
            If not `None`, the routed output of each layer is read into it, `(tokens, hidden)`.
        added (`dict[int, torch.Tensor]`):
            For layers, what is added to the routed output, `(tokens, hidden)`, float32.
        instead (`dict[int, torch.Tensor]`):
            For layers, what replaces the routed output, `(tokens, hidden)`.
    """

    def __init__(self, sites: Sequence[RouterSite]) -> None:
        super().__init__()
        self.sites = sites
        self.where: Tensor | None = None
        self.wanted: int | None = None
        self._found: LayerUpdates | None = None
        self.outputs: dict[int, Tensor] | None = None
        self.added: dict[int, Tensor] = {}
        self.instead: dict[int, Tensor] = {}
        self._routings: dict[int, Routing] = {}
        self._modules: dict[int, nn.Module] = {}
        self._ran: set[int] = set()

    def on_forward(self, forward: Forward) -> None:
        """Forget the pass before."""
        self._routings, self._ran, self._found = {}, set(), None

    def on_trace(self, forward: Forward) -> None:
        """Refuse a compiled graph."""
        raise UnsupportedError(
            _WHERE, "cannot be read in a compiled graph", fix="Give the model itself, not the compiled one."
        )

    def decided(self, row: int, forward: Forward, routing: Routing) -> None:
        """Called when a router has decided, before the experts of its layer run."""
        self._routings[row] = routing

    def called(self, row: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called before a module of a block runs: the first one that gets what the router decided runs the experts."""
        if row not in self._modules and self._weights_in(row, args, kwargs) is not None:
            self._modules[row] = module

    def returned(self, row: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Called when a module of a block has run; returns its output as it is to be."""
        if self._modules.get(row) is not module:
            return output
        if row in self._ran:
            raise UnsupportedError(
                self.sites[row].path,
                "the experts of its layer run several times in one pass, and an update is that of one run",
                expected="one run in each pass",
            )
        self._ran.add(row)
        if self.where is None:
            return output
        if not isinstance(output, Tensor) or output.numel() % len(self.where):
            raise UnsupportedError(
                self.sites[row].path,
                f"{type(module).__name__} must return the routed output, a row for each token",
                got=tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__,
                expected=f"a tensor of {len(self.where)} rows",
            )
        where = self.where.to(output.device)
        if self.wanted == row:
            self._found = self._choices(row, module, args, kwargs, output, where)
        if self.outputs is not None:
            self.outputs[row] = output.reshape(len(where), -1)[where].clone()
        if row not in self.added and row not in self.instead:
            return output
        changed = output.clone()
        rows = changed.view(len(where), -1)
        if row in self.instead:
            rows[where] = self.instead[row].to(changed)
        if row in self.added:
            rows[where] = (rows[where].float() + self.added[row].to(output.device)).to(changed.dtype)
        return changed

    def read(self) -> LayerUpdates:
        """Return the updates of the wanted layer in the last pass.

        Raises:
            [`UnsupportedError`]: if the experts of a layer did not run in it.
        """
        self.check_ran()
        if self._found is None:
            raise UnsupportedError(_WHERE, "no layer was wanted in the last pass", got=self.wanted)
        return self._found

    def check_ran(self) -> None:
        """Raise [`UnsupportedError`] if the experts of a layer did not run in the last pass, or cannot be reached."""
        for row, site in enumerate(self.sites):
            if row in self._ran:
                continue
            raise UnsupportedError(
                site.path,
                "no module of its block was called with the chosen experts and their weights, so that the update of "
                "one expert cannot be computed",
                got=type(site.block).__name__,
                fix="Use ablate_experts or attribute_experts, which change the weights that the router returns.",
            )

    def _weights_in(self, row: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | str | None:
        """Where a call has the weights that the router decided on; `None` if it is not given its decision."""
        routing = self._routings.get(row)
        if routing is None:
            return None
        items: dict[int | str, Any] = dict([*enumerate(args), *kwargs.items()])
        there = {
            key: item
            for key, item in items.items()
            if isinstance(item, Tensor) and item.shape == routing.indices.shape and item.dtype != torch.bool
        }
        weights = [key for key, item in there.items() if item.is_floating_point()]
        indices = [item for item in there.values() if not item.is_floating_point()]
        if len(weights) != 1 or len(indices) != 1:
            return None
        # A choice of weight 0 writes nothing, whatever expert stands there, as for a token that skips the layer.
        same = (indices[0] == routing.indices.to(indices[0].device)) | (there[weights[0]] == 0)
        return weights[0] if bool(same.all()) else None

    def _choices(
        self,
        row: int,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Tensor,
        where: Tensor,
    ) -> LayerUpdates:
        """Return the updates of a layer, each from a run of its experts with one choice left."""
        slot = self._weights_in(row, args, kwargs)
        if slot is None:
            what = "the experts were not called with what the router decided"
            raise UnsupportedError(self.sites[row].path, what, got=type(module).__name__)
        weights = args[slot] if isinstance(slot, int) else kwargs[slot]
        choices = []
        for choice in range(weights.shape[-1]):
            alone = torch.zeros_like(weights)
            alone[:, choice] = weights[:, choice]
            given = tuple(alone if place == slot else item for place, item in enumerate(args))
            named = {name: alone if name == slot else item for name, item in kwargs.items()}
            # Not the module itself: `output` has not gone through the hooks of others either.
            choices.append(module.forward(*given, **named).reshape(len(where), -1)[where])
        found = torch.stack(choices, dim=1)
        _check_sum(self.sites[row], module, found, output.reshape(len(where), -1)[where])
        return LayerUpdates(found, self._routings[row].indices.to(where.device)[where].long())


def _check_sum(site: RouterSite, module: nn.Module, choices: Tensor, output: Tensor) -> None:
    """Refuse experts whose output is not the sum of their updates."""
    size = choices.float().abs().sum(dim=1).norm(dim=-1)
    apart = (choices.float().sum(dim=1) - output.float()).norm(dim=-1)
    allowed = _ROUNDING * torch.finfo(output.dtype).eps
    if bool((apart > allowed * size + torch.finfo(torch.float32).tiny).any()):
        worst = float((apart / size).nan_to_num(posinf=1.0).max())
        raise UnsupportedError(
            site.path,
            f"the updates of single experts do not sum to the output of {type(module).__name__}, so that there is "
            "no update of one expert",
            got=f"{worst:.2g} of their size apart",
            expected=f"at most {allowed:.2g}, the rounding of {output.dtype}",
        )


@contextmanager
def attach_updates(routed: RoutedModel) -> Iterator[Updates]:
    """Attach to the routers of a model and, in their blocks, to the modules that may run the experts.

    Args:
        routed (`RoutedModel`): The model with its routers.
    """
    updates = Updates(routed.sites)
    rows = {site.path: row for row, site in enumerate(routed.sites)}

    def attachments() -> list[Attachment]:
        return [
            Attachment(module, stack_on(module, _ExpertsHook) or _ExpertsHook(), _Experts(updates, row))
            for row, site in enumerate(routed.sites)
            for module in _candidates(site)
        ]

    with (
        attach_to_routers(routed, updates, lambda site: DecisionObserver(partial(updates.decided, rows[site.path]))),
        attach(attachments),
    ):
        yield updates


def _candidates(site: RouterSite) -> list[nn.Module]:
    """The modules beside a router in its block, and in them."""
    if site.block is None:
        return []
    routers = set(site.module.modules())
    return [module for module in site.block.modules() if module is not site.block and module not in routers]


class _Experts(Participant):
    def __init__(self, updates: Updates, row: int) -> None:
        self.updates, self.row = updates, row


class _ExpertsHook(SharedHook):
    """The hook on a module that may run the experts of a layer."""

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for one in self.participants:
            if one.active and isinstance(one, _Experts):
                one.updates.called(one.row, module, args, kwargs)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        for one in self.participants:
            if one.active and isinstance(one, _Experts):
                output = one.updates.returned(one.row, module, args, kwargs, output)
        return output
