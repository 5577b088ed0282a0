"""The one hook on a router: merges all edits into one re-selection, then probes, then shows what came out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_mote.errors import RouterContractError
from hf_mote.hooks import LOCK, Attachment, HookStack, Intervention, Participant, attach, stack_on
from hf_mote.routing.adapters import adapter_for
from hf_mote.routing.discover import RouterSite, check_identity, decoder_of, self_test
from hf_mote.routing.edits import RoutingEdit, merge_edits
from hf_mote.routing.forward import Forward
from hf_mote.routing.selection import Routing, reweigh
from hf_mote.routing.tracker import TokenTracker, Watcher, recomputing
from hf_mote.routing.tuple_adapter import TupleAdapter

__all__ = ["Editor", "Observer", "Probe", "RouterParticipant", "RouterStack", "attach_to_routers"]


class RouterParticipant(Participant):
    """Something on a router; `watcher` is its intervention's watcher on the decoder."""

    watcher: Watcher


class Editor(RouterParticipant):
    """Changes the selection."""

    @abstractmethod
    def edits(self, forward: Forward | None, device: torch.device) -> list[tuple[RoutingEdit, Tensor | None]]:
        """Return edits, each with the rows it is meant for (`None`: all); none to leave this pass alone."""


class Probe(RouterParticipant):
    """Passes the applied weights through a differentiable function."""

    @abstractmethod
    def probe(self, forward: Forward | None, routing: Routing) -> Tensor:
        """Return the weights, `(tokens, top_k)`."""


class Observer(RouterParticipant):
    """Looks at native and applied routing; not called again when gradient checkpointing recomputes a layer."""

    @abstractmethod
    def observe(self, forward: Forward, native: Routing, applied: Routing) -> None:
        """See one pass. `applied is native` when nothing was edited."""


class RouterStack(HookStack):
    """The hook on one router.

    Args:
        site (`RouterSite`): The router.
        tracker (`TokenTracker`): The hook on its decoder.
        adapter (`TupleAdapter`, *optional*): What reads its output; found in the first pass if not known yet.
    """

    def __init__(self, site: RouterSite, tracker: TokenTracker, adapter: TupleAdapter | None) -> None:
        super().__init__()
        self.site = site
        self.tracker = tracker
        self.adapter = adapter

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        """Edit, probe and show one pass of the router."""
        site = self.site
        adapter = self.adapter
        if adapter is None:
            adapter = adapter_for(site, output)
            check_identity(adapter, output, args)
            self.adapter = adapter
        native = adapter.read(output)[1]
        forward = self.tracker.forward_of(len(native.indices))
        edits: list[tuple[RoutingEdit, Tensor | None]] = []
        for participant in self.participants:
            if isinstance(participant, RouterParticipant) and participant.active:
                if not torch.compiler.is_compiling():
                    participant.watcher.fired[site.path] = self.tracker.passes
                if isinstance(participant, Editor):
                    edits += participant.edits(forward, native.weights.device)
        touched = _touched(edits)
        applied = self._reselect(adapter, output, args, native, edits, touched) if edits else native
        for participant in self.participants:
            if participant.active and isinstance(participant, Probe):
                applied = applied._replace(weights=participant.probe(forward, applied))
        observers = [p for p in self.participants if p.active and isinstance(p, Observer)]
        if observers and not recomputing():
            if forward is None:
                raise RouterContractError(
                    site.path,
                    "cannot tell which token each routed row is",
                    got=f"{len(native.indices)} rows",
                    expected="one row for each token of the decoder's forward",
                    fix="Record around the model's own forward or generate.",
                )
            for observer in observers:
                observer.observe(forward, native, applied)
        return None if applied is native else adapter.write(output, applied, touched)

    def _reselect(
        self,
        adapter: TupleAdapter,
        output: Any,
        args: tuple[Any, ...],
        native: Routing,
        edits: list[tuple[RoutingEdit, Tensor | None]],
        touched: Tensor | None,
    ) -> Routing:
        edit = merge_edits(edits)
        if edit.only_weights:
            edited = native._replace(weights=reweigh(native.weights.float(), native.indices, edit))
        else:
            edited = adapter.route(output, args, edit)
        edited = edited._replace(weights=edited.weights.to(native.weights.dtype))
        if touched is None:
            return edited
        # Rows that no edit is meant for keep the router's own decision.
        rows = touched[:, None]
        shared = native.shared
        if edited.shared is not None and native.shared is not None:
            shared = torch.where(rows, edited.shared.to(native.shared.dtype), native.shared)
        return Routing(
            torch.where(rows, edited.weights, native.weights),
            torch.where(rows, edited.indices, native.indices),
            shared,
        )


def attach_to_routers(
    model: nn.Module,
    sites: Sequence[RouterSite],
    watcher: Watcher,
    participant_for: Callable[[RouterSite], RouterParticipant | None],
) -> Intervention:
    """Attach a participant to every router that gets one, and the watcher to the decoder; all or nothing.

    Args:
        model (`nn.Module`): The model.
        sites (`Sequence[RouterSite]`): All its router sites.
        watcher (`Watcher`): The intervention's watcher.
        participant_for (`Callable[[RouterSite], RouterParticipant | None]`): The participant for a site, or `None`.

    Raises:
        [`RouterContractError`]: if a router fails its self-test; nothing is attached then.
    """
    decoder = decoder_of(model, list(sites))
    with LOCK:
        tracker = stack_on(decoder, TokenTracker) or TokenTracker()
        attachments = [Attachment(decoder, tracker, watcher)]
        for site in sites:
            participant = participant_for(site)
            if participant is None:
                continue
            participant.watcher = watcher
            watcher.expect(site.path)
            stack = stack_on(site.module, RouterStack)
            if stack is None:
                stack = RouterStack(site, tracker, self_test(site))
            attachments.append(Attachment(site.module, stack, participant))
        return attach(attachments)


def _touched(edits: Sequence[tuple[RoutingEdit, Tensor | None]]) -> Tensor | None:
    """Rows that some edit is meant for, bool `(tokens,)`; `None` for all."""
    masks = [tokens for _, tokens in edits]
    present = [mask for mask in masks if mask is not None]
    return torch.stack(present).any(dim=0) if present and len(present) == len(masks) else None
