"""The one hook on a router: merges all edits into one re-selection, applies probes, then calls observers."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from hf_mote.errors import RouterContractError, UnsupportedError
from hf_mote.hooks import Attachment, Intervention, Participant, SharedHook, attach, compiled_parts, stack_on
from hf_mote.passes.assisted import assisted_decoding_hooks
from hf_mote.passes.decoder_hook import DecoderHook, decoder_of, recomputing
from hf_mote.passes.forward import DecoderParticipant, Forward, why_stopped
from hf_mote.routing.detour import check_block_follows, shortcut_hooks, why_silent
from hf_mote.routing.rules.edits import RoutingEdit, merge_edits
from hf_mote.routing.rules.selection import Routing, reweigh
from hf_mote.routing.rules.shortcuts import none_chosen, readable_now
from hf_mote.routing.sites.output import RouterOutput
from hf_mote.routing.sites.packed import packed_parts
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.routing.sites.self_test import check_identity
from hf_mote.routing.sites.site import RouterSite
from hf_mote.routing.sites.special_outputs import adapter_for

__all__ = [
    "DecisionObserver",
    "IdleParticipant",
    "RouterHook",
    "RouterParticipant",
    "RoutingEditor",
    "RoutingObserver",
    "WeightProbe",
    "attach_to_routers",
]

logger = logging.getLogger(__name__)

_TOLD: WeakSet[nn.Module] = WeakSet()
"""Models for which quantised routers were logged."""


class RouterParticipant(Participant):
    """A participant on a router."""


class IdleParticipant(RouterParticipant):
    """Does nothing; for a router whose layer shares a compiled graph with layers that have participants."""


class RoutingEditor(RouterParticipant):
    """Changes the selection."""

    always: tuple[RoutingEdit, ...] | None = None
    """The edits, if they are the same for every token of every pass."""

    @abstractmethod
    def edits(self, forward: Forward | None, device: torch.device) -> list[tuple[RoutingEdit, Tensor | None]]:
        """Return edits, each with the rows it is meant for (`None`: all); none for an unchanged pass."""


class WeightProbe(RouterParticipant):
    """Passes the applied weights through a differentiable function."""

    @abstractmethod
    def probe(self, forward: Forward | None, routing: Routing) -> Tensor:
        """Return the weights, `(tokens, top_k)`."""


class RoutingObserver(RouterParticipant):
    """Observes native and applied routing; not called again when gradient checkpointing recomputes a layer."""

    @abstractmethod
    def observe(self, forward: Forward, native: Routing, applied: Routing) -> None:
        """Called after each pass. `applied is native` if nothing was edited."""


class DecisionObserver(RoutingObserver):
    """Hands what a router decided to a function.

    Args:
        decided (`Callable[[Forward, Routing], None]`): Called after each pass with the applied routing.
    """

    def __init__(self, decided: Callable[[Forward, Routing], None]) -> None:
        self.decided = decided

    def observe(self, forward: Forward, native: Routing, applied: Routing) -> None:
        """Called after each pass."""
        self.decided(forward, applied)


class RouterHook(SharedHook):
    """The hook on one router.

    Args:
        site (`RouterSite`): The router.
        tracker (`DecoderHook`): The hook on its decoder.
        adapter (`RouterOutput`, *optional*): Reads its output; determined in the first pass by default.
    """

    def __init__(self, site: RouterSite, tracker: DecoderHook, adapter: RouterOutput | None) -> None:
        super().__init__()
        self.site = site
        self.tracker = tracker
        self.adapter = adapter
        self._numbers = site.numbers()
        self._always: list[RoutingEdit] | None = None
        self._suppressed: frozenset[int] | None = None
        self._only_observed = self._idle = False

    def participants_changed(self) -> None:
        """Determine whether the participants only make the same edits in every pass, or only observe."""
        self._idle = all(isinstance(participant, IdleParticipant) for participant in self.participants)
        self._only_observed = all(isinstance(one, RoutingObserver | IdleParticipant) for one in self.participants)
        busy = [participant for participant in self.participants if not isinstance(participant, IdleParticipant)]
        always = [participant.always for participant in busy if isinstance(participant, RoutingEditor)]
        self._always = None
        if busy and len(always) == len(busy) and None not in always:
            self._always = [edit for edits in always if edits is not None for edit in edits]
        self._suppressed = None if self._always is None else self._suppressed_by(self._always)

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        """Edit, probe and observe one pass of the router."""
        self._check_numbers()
        for participant in self.participants:
            participant.ran |= participant.active
        if self._idle:
            return None
        if self._only_observed and not is_compiling() and self.tracker.passes_unread():
            return None
        adapter = self._adapter_of(args, output)
        native = adapter.read(output)[1]
        if self._suppressed is not None and none_chosen(native.indices, self._suppressed):
            return None
        forward = self.tracker.forward_of(native.indices.shape[0]) if self._always is None else None
        if forward is None and self._always is None:
            self._check_gets_all(native.indices.shape[0])
        edits: list[tuple[RoutingEdit, Tensor | None]] = []
        probes: list[WeightProbe] = []
        observers: list[RoutingObserver] = []
        for participant in self.participants:
            if not participant.active:
                continue
            if isinstance(participant, RoutingEditor):
                edits += participant.edits(forward, native.weights.device)
            elif isinstance(participant, WeightProbe):
                probes.append(participant)
            elif isinstance(participant, RoutingObserver):
                observers.append(participant)
        applied, touched = native, None
        if edits:
            touched = _touched(edits) if self._always is None else None
            applied = self._reselect(adapter, output, args, native, edits, touched)
        for probe in probes:
            applied = applied._replace(weights=probe.probe(forward, applied))
        if observers and not recomputing():
            self._show(observers, forward, native, applied)
        return None if applied is native else adapter.write(output, applied, touched)

    def _check_gets_all(self, rows: int) -> None:
        """Refuse a pass of which this router gets some tokens, if a participant needs to know which."""
        now = self.tracker.under_way()
        knows_all = all(
            isinstance(one, IdleParticipant) or (isinstance(one, RoutingEditor) and one.always is not None)
            for one in self.participants
        )
        if now is None or knows_all:
            return
        raise UnsupportedError(
            self.site.path,
            "the layer gives this router only some of the tokens, so that its rows are ambiguous; image "
            "tokens go elsewhere where they have experts of their own",
            got=f"{rows} of {now.batch * now.length} tokens",
            expected="every token of the pass",
            fix="Apply one config with scope 'all' and without positions; record, and use phases or rows, on text "
            "only.",
        )

    def _check_numbers(self) -> None:
        """Refuse a pass of a router whose numbers were changed after something was attached."""
        for path, (owner, name, value) in self._numbers.items():
            now = getattr(owner, name)
            if now != value and any(participant.active for participant in self.participants):
                raise UnsupportedError(
                    self.site.path,
                    f"{path} was changed after something was attached to the router",
                    got=now,
                    expected=value,
                    fix="Remove the intervention, change it, and attach again.",
                )

    def _show(
        self, observers: Sequence[RoutingObserver], forward: Forward | None, native: Routing, applied: Routing
    ) -> None:
        if forward is None:
            raise RouterContractError(
                self.site.path,
                "the routed rows cannot be matched to tokens",
                got=f"{len(native.indices)} rows",
                expected="one row for each token of the decoder's forward",
                fix="Record around the model's own forward or generate.",
            )
        for observer in observers:
            observer.observe(forward, native, applied)

    def _adapter_of(self, args: tuple[Any, ...], output: Any) -> RouterOutput:
        """The reader of the router's output, determined in the first pass."""
        if self.adapter is None:
            adapter = adapter_for(self.site, output)
            check_identity(adapter, output, args)
            self.adapter = adapter
        return self.adapter

    def _reselect(
        self,
        adapter: RouterOutput,
        output: Any,
        args: tuple[Any, ...],
        native: Routing,
        edits: list[tuple[RoutingEdit, Tensor | None]],
        touched: Tensor | None,
    ) -> Routing:
        if self._suppressed is None and readable_now(native.indices):
            suppressed = self._suppressed_by([edit for edit, _ in edits])
            if suppressed is not None and none_chosen(native.indices, suppressed):
                return native
        edit = merge_edits(edits)
        if edit.only_weights:
            weights = reweigh(native.weights.float(), native.indices, edit).to(native.weights.dtype)
            edited = Routing(weights, native.indices, native.shared)
        else:
            routing = adapter.route(output, args, edit)
            edited = Routing(routing.weights.to(native.weights.dtype), routing.indices, routing.shared)
            if self._concerns_hits_alone(edit):
                # For the other tokens a tie could be broken differently than the router did.
                touched = edit.hits(native.indices)
        if touched is None:
            return edited
        # Rows without an edit, or whose edit changes nothing, keep the router's own decision.
        rows = touched[:, None]
        shared = native.shared
        if edited.shared is not None and native.shared is not None:
            shared = torch.where(rows, edited.shared.to(native.shared.dtype), native.shared)
        return Routing(
            torch.where(rows, edited.weights, native.weights),
            torch.where(rows, edited.indices, native.indices),
            shared,
        )

    def _suppressed_by(self, edits: Sequence[RoutingEdit]) -> frozenset[int] | None:
        """Experts that a token must have chosen for edits to change its routing; `None` if more can change it."""
        if not all(self._concerns_hits_alone(edit) for edit in edits):
            return None
        return frozenset().union(*(edit.suppressed for edit in edits))

    def _concerns_hits_alone(self, edit: RoutingEdit) -> bool:
        """Whether an edit changes nothing for tokens that chose none of the experts that it suppresses.

        Without experts that are not among the best, the best are the same, unless they decide on their group or the
        router does more than its rule states.
        """
        plain = self.site.rule.adapter is None and self.site.selection.num_groups == 1
        return edit.only_weights or (edit.only_suppresses and plain)


def attach_to_routers(
    routed: RoutedModel,
    watcher: DecoderParticipant,
    participant_for: Callable[[RouterSite], RouterParticipant | None],
    *,
    handle: Intervention | None = None,
) -> Intervention:
    """Attach participants to routers, and the watcher to the decoder; all or none.

    Args:
        routed (`RoutedModel`): The model with its routers.
        watcher (`DecoderParticipant`): The intervention's watcher.
        participant_for (`Callable[[RouterSite], RouterParticipant | None]`): The participant for a site, or `None`.
        handle (`Intervention`, *optional*): An empty handle to use; a new one by default.

    Raises:
        [`RouterContractError`]: if a router fails its self-test; nothing is attached then.
        [`UnsupportedError`]: if a block's forward was replaced by one that does not follow its router.
    """
    model, decoder = routed.model, decoder_of(routed.model, [site.path for site in routed.sites])

    def attachments() -> list[Attachment]:
        tracker = stack_on(decoder, DecoderHook) or DecoderHook()
        found = [Attachment(decoder, tracker, watcher)]
        if watcher.needs_phases or watcher.needs_rows or watcher.thinking_tokens:
            found += assisted_decoding_hooks(model, decoder, tracker, watcher)
        compiled = bool(compiled_parts(model))
        for site in routed.sites:
            participant = participant_for(site)
            if participant is None and compiled:
                participant = IdleParticipant()
            if participant is None:
                continue
            watcher.expect(site.path, participant)
            stack = stack_on(site.module, RouterHook)
            if stack is None:
                adapter = routed.tested(site)
                check_block_follows(site, adapter)
                stack = RouterHook(site, tracker, adapter)
            found.append(Attachment(site.module, stack, participant))
            found += shortcut_hooks(site)
        watcher.why_silent = partial(why_silent, model)
        watcher.why_stopped = partial(why_stopped, model)
        _tell_of_packed(model, routed.sites)
        return found

    return attach(attachments, handle)


def _tell_of_packed(model: nn.Module, sites: Sequence[RouterSite]) -> None:
    """Log once for a model that its routers are quantised."""
    packed = {site.path: packed_parts(site.module) for site in sites}
    if model in _TOLD or not any(packed.values()):
        return
    _TOLD.add(model)
    kinds = {kind for parts in packed.values() for kind in parts.values()}
    names = {f"{path.rpartition('.')[2]}.{part}".rstrip(".") for path, parts in packed.items() for part in parts}
    logger.warning(
        "The routers of %s are quantised themselves (%s): their logits are not those of full precision, and some "
        "tokens go to other experts. The quantisation's list of modules not to convert keeps them: %s.",
        type(model).__name__,
        ", ".join(sorted(kinds)),
        ", ".join(sorted(names)),
    )


def _touched(edits: Sequence[tuple[RoutingEdit, Tensor | None]]) -> Tensor | None:
    """Rows with an edit, bool `(tokens,)`; `None` for all."""
    masks = [tokens for _, tokens in edits]
    present = [mask for mask in masks if mask is not None]
    return torch.stack(present).any(dim=0) if present and len(present) == len(masks) else None
