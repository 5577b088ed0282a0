"""The only file that attaches hooks to anybody's module.

Each hooked module carries one hook of ours, a [`HookStack`]: an ordered list of participants that the stack combines
as it sees fit. Several interventions on one router therefore meet in one place instead of running one after another,
and they can be removed in any order. Attaching is atomic (every module or none) and returns an [`Intervention`], the
handle that users hold.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

__all__ = ["LOCK", "Attachment", "HookStack", "Intervention", "Participant", "attach", "stack_on"]

LOCK = threading.RLock()
"""Held while hooks are attached or removed, and by whoever looks for a stack in order to join it."""


class Participant:
    """Something that takes part in a module's [`HookStack`]; `active` switches it off without detaching it."""

    active: bool = True
    ran: bool = False
    """Whether its module has run since it joined, as far as the stack takes note."""

    told: str | None = None
    """A digest of what it changes, the same for the same change; `None` if it cannot tell."""


class HookStack:
    """The one hook of this package on one module.

    Subclasses override `before` (runs before the module's forward), `after` (runs on its output) or both; what they
    return replaces the arguments, `(args, kwargs)`, or the output, unless it is `None`. What follows from the
    participants alone is worked out in `take_stock`. The hook is prepended, so what other tools capture from the
    module is the output after the participants have acted.

    A stack belongs to one module of one model: a deep copy or a pickle of the model carries an inert stack with no
    participants, so the copy behaves as the unpatched model.
    """

    def __init__(self) -> None:
        self.participants: tuple[Participant, ...] = ()
        self._handles: list[RemovableHandle] = []

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what replaces a module's arguments, `(args, kwargs)`, or `None` to leave them."""
        return None

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        """Return what replaces a module's output, or `None` to leave it."""
        return None

    def take_stock(self) -> None:
        """Hear that participants have joined or left."""

    def join(self, module: nn.Module, participant: Participant) -> None:
        """Add a participant, hooking the module if it is the first."""
        if not self._handles:
            try:
                if type(self).before is not HookStack.before:
                    hook = module.register_forward_pre_hook(self._run_before, prepend=True, with_kwargs=True)
                    self._handles.append(hook)
                # One at least is registered, whatever they do: it is how `stack_on` finds the stack again.
                if type(self).after is not HookStack.after or not self._handles:
                    self._handles.append(module.register_forward_hook(self._run_after, prepend=True, with_kwargs=True))
            except BaseException:
                self._unhook()
                raise
        self.participants = (*self.participants, participant)
        self.take_stock()

    def leave(self, participant: Participant) -> None:
        """Drop a participant, unhooking the module if it was the last."""
        self.participants = tuple(other for other in self.participants if other is not participant)
        self.take_stock()
        if not self.participants:
            self._unhook()

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _run_before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.before(module, args, kwargs) if self.participants else None

    def _run_after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        return self.after(module, args, kwargs, output) if self.participants else None

    def __deepcopy__(self, memo: dict[int, Any]) -> HookStack:
        return _inert(type(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_inert, (type(self),))


class Attachment(NamedTuple):
    """One participant's place: the module, the stack it joins there, and itself."""

    module: nn.Module
    stack: HookStack
    participant: Participant


class Intervention:
    """The handle of whatever is attached to a model.

    Usable bare (`handle.remove()`) or as a context manager, which removes on leaving the block, exception or not.
    Removing twice, or in another order than attaching, is fine. `active = False` switches it off without detaching.

    Attributes:
        active (`bool`): Whether it takes effect. Setting it acts at once, also in the middle of a generation.
        removed (`bool`): Whether it has been detached.

    Example:

    ```python
    from torch import nn
    from hf_mote.hooks import Attachment, HookStack, Participant, attach

    layer = nn.Linear(2, 2)
    with attach([Attachment(layer, HookStack(), Participant())]) as handle:
        assert handle.active
    assert handle.removed and not layer._forward_hooks
    ```
    """

    def __init__(self, attachments: Sequence[Attachment]) -> None:
        self._attachments = tuple(attachments)
        self._active = True
        self.removed = False

    @property
    def active(self) -> bool:
        """Whether the intervention takes effect."""
        return self._active and not self.removed

    @active.setter
    def active(self, value: bool) -> None:
        self._active = bool(value)
        for attachment in self._attachments:
            attachment.participant.active = self._active

    def remove(self) -> None:
        """Detach from the model; a second call does nothing."""
        with LOCK:
            if self.removed:
                return
            for attachment in reversed(self._attachments):
                attachment.stack.leave(attachment.participant)
            self.removed = True

    def __enter__(self) -> Intervention:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "removed" if self.removed else "active" if self.active else "inactive"
        return f"{type(self).__name__}({len(self._attachments)} hooks, {state})"


def attach(attachments: Sequence[Attachment]) -> Intervention:
    """Attach every participant to its module and return the handle; on any failure attach none.

    Args:
        attachments (`Sequence[Attachment]`):
            The places, in the order in which the stacks see the participants.
    """
    joined: list[Attachment] = []
    with LOCK:
        try:
            for attachment in attachments:
                attachment.stack.join(attachment.module, attachment.participant)
                joined.append(attachment)
        except BaseException:
            for attachment in reversed(joined):
                attachment.stack.leave(attachment.participant)
            raise
    if attachments and "torch._dynamo" in sys.modules:
        # A graph compiled without hooks has no guard that would notice them: let it be compiled anew.
        torch.compiler.reset()
    return Intervention(joined)


StackT = TypeVar("StackT", bound=HookStack)


def stack_on(module: nn.Module, kind: type[StackT]) -> StackT | None:
    """Return the live stack of the given kind on a module, or `None`.

    Args:
        module (`nn.Module`): The module to look at.
        kind (`type[HookStack]`): The kind of stack looked for.
    """
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, kind) and owner.participants:
            return owner
    return None


def _inert(kind: type[HookStack]) -> HookStack:
    stack = kind.__new__(kind)
    HookStack.__init__(stack)
    return stack
