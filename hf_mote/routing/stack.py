"""The one hook on a router: merges all edits into one re-selection, then probes, then shows what came out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_mote.errors import RouterContractError
from hf_mote.hooks import Attachment, HookStack, Intervention, Participant, attach, stack_on
from hf_mote.routing.discover import RouterSite, Slots, check_identity, decoder_of, locate_slots, self_test
from hf_mote.routing.selection import Routing, RoutingEdit, merge_edits, select
from hf_mote.routing.tracker import Forward, TokenTracker, Watcher

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
    """Passes the applied weights through a differentiable function that does not change their values."""

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
        slots (`Slots`, *optional*): Where its output keeps what; found in the first pass if not known yet.
    """

    def __init__(self, site: RouterSite, tracker: TokenTracker, slots: Slots | None) -> None:
        super().__init__()
        self.site = site
        self.tracker = tracker
        self.slots = slots

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        """Edit, probe and show one pass of the router."""
        site, forward = self.site, self.tracker.now
        slots = self.slots
        if slots is None:
            slots = locate_slots(output, num_experts=site.num_experts, top_k=site.top_k, where=site.path)
            check_identity(site, *slots.read(output))
            self.slots = slots
        logits, native = slots.read(output)
        if forward is not None and forward.batch * forward.length != len(native.indices):
            forward = None
        edits: list[tuple[RoutingEdit, Tensor | None]] = []
        for participant in self.participants:
            if isinstance(participant, RouterParticipant) and participant.active:
                participant.watcher.fired[site.path] = self.tracker.passes
                if isinstance(participant, Editor):
                    edits += participant.edits(forward, logits.device)
        applied = self._reselect(logits, native, edits) if edits else native
        for participant in self.participants:
            if participant.active and isinstance(participant, Probe):
                applied = Routing(participant.probe(forward, applied), applied.indices)
        observers = [p for p in self.participants if p.active and isinstance(p, Observer)]
        if observers and not _recomputing():
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
        return None if applied is native else slots.write(output, applied)

    def _reselect(self, logits: Tensor, native: Routing, edits: list[tuple[RoutingEdit, Tensor | None]]) -> Routing:
        edited = select(logits, self.site.selection, self.site.selection_bias(), merge_edits(edits))
        weights, indices = edited.weights.to(native.weights.dtype), edited.indices
        masks = [tokens for _, tokens in edits]
        if all(mask is not None for mask in masks):
            # Rows that no edit is meant for keep the router's own decision.
            touched = torch.stack([mask for mask in masks if mask is not None]).any(dim=0)[:, None]
            weights = torch.where(touched, weights, native.weights)
            indices = torch.where(touched, indices, native.indices)
        return Routing(weights, indices)


def attach_to_routers(
    model: nn.Module,
    sites: Sequence[RouterSite],
    watcher: Watcher,
    participant_for: Callable[[RouterSite], RouterParticipant | None],
    on_remove: Callable[[], None] | None = None,
) -> Intervention:
    """Attach a participant to every router that gets one, and the watcher to the decoder; all or nothing.

    Args:
        model (`nn.Module`): The model.
        sites (`Sequence[RouterSite]`): All its router sites.
        watcher (`Watcher`): The intervention's watcher.
        participant_for (`Callable[[RouterSite], RouterParticipant | None]`): The participant for a site, or `None`.
        on_remove (`Callable[[], None]`, *optional*): Called once after removal.

    Raises:
        [`RouterContractError`]: if a router fails its self-test; nothing is attached then.
    """
    decoder = decoder_of(model, list(sites))
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
    return attach(attachments, on_remove)


def _recomputing() -> bool:
    """Whether gradient checkpointing is running this forward again, during a backward pass."""
    return torch._C._current_graph_task_id() != -1
