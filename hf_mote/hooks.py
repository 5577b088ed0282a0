"""The only file that attaches hooks to modules.

Each hooked module carries one hook of ours, a [`SharedHook`]: an ordered list of participants, which the stack
combines. Several interventions on one router therefore meet in one place instead of running one after another,
and they can be removed in any order. Attaching is atomic (every module or none) and returns an [`Intervention`], the
handle that users hold.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from types import MethodType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import nn

from hf_mote.version import warn_if_untested

if TYPE_CHECKING:
    from typing import Self

__all__ = ["LOCK", "Attachment", "Intervention", "Participant", "SharedHook", "attach", "compiled_parts", "stack_on"]

LOCK = threading.RLock()
"""Held while hooks are attached or removed, and while a stack is looked up in order to join it."""


class Participant:
    """Something that takes part in a module's [`SharedHook`]; `active` switches it off without detaching it."""

    active: bool = True
    ran: bool = False
    """Whether its module has run since it joined, if the stack records this."""

    digest: str | None = None
    """A digest of what it changes, the same for the same change; `None` if unknown."""


class SharedHook:
    """The one hook of this package on one module.

    Subclasses override `before` (runs before the module's forward), `after` (runs on its output) or both; what they
    return replaces the arguments, `(args, kwargs)`, or the output, unless it is `None`. One that overrides `after` may
    override `failed` too, where the module never returns `None`. What follows from the participants alone is computed
    in `participants_changed`. The hook is prepended, so what other tools capture from the module is the output
    after the participants have acted.

    A stack belongs to one module of one model: a deep copy or a pickle of the model carries an inert stack with no
    participants, so the copy behaves as the unpatched model.

    A stack may also wrap methods of the module, its `entrances`: `around` runs them, in the caller's thread, and may
    refuse the call or check its result. Methods that a class lacks are skipped.
    """

    entrances: ClassVar[tuple[str, ...]] = ()
    """Names of methods of the module whose calls go through `around`."""

    def __init__(self) -> None:
        self.participants: tuple[Participant, ...] = ()

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what replaces a module's arguments, `(args, kwargs)`, or `None` to leave them."""
        return None

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        """Return what replaces a module's output, or `None` to leave it."""
        return None

    def failed(self) -> None:
        """Called when the module's forward has raised an error; `after` is not run then."""

    def participants_changed(self) -> None:
        """Called when participants have joined or left."""

    def around(self, module: nn.Module, method: str, call: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        """Called instead of a method in `entrances` while a participant is active; returns what `call` returns.

        Args:
            module (`nn.Module`): The module.
            method (`str`): The method that was called.
            call (`Callable[[], Any]`): Runs it.
            args (`tuple`): What it was called with.
            kwargs (`dict`): What it was called with by name.
        """
        return call()

    def join(self, module: nn.Module, participant: Participant) -> None:
        """Add a participant, hooking the module if it is the first.

        After an error or a KeyboardInterrupt in the middle, `leave` removes what is left.
        """
        if not self.participants:
            pre = type(self).before is not SharedHook.before
            if pre:
                module.register_forward_pre_hook(self._run_before, prepend=True, with_kwargs=True)
            # At least one hook is always registered: `stack_on` finds the stack by it.
            if type(self).after is not SharedHook.after or not pre:
                module.register_forward_hook(
                    self._run_after, prepend=True, with_kwargs=True, always_call=self._hears_of_failures
                )
            for method in self.entrances:
                if hasattr(type(module), method):
                    vars(module)[method] = _Entrance(self, module, method)
        self.participants = (*self.participants, participant)
        self.participants_changed()

    def leave(self, module: nn.Module, participant: Participant) -> None:
        """Drop a participant, unhooking the module if it was the last."""
        self.participants = tuple(other for other in self.participants if other is not participant)
        self.participants_changed()
        if not self.participants:
            self._unhook(module)

    def _unhook(self, module: nn.Module) -> None:
        """Remove all hooks of this package from a module, found by owner: an interrupted `join` has no handles."""
        for hooks, more in (
            (module._forward_pre_hooks, (module._forward_pre_hooks_with_kwargs,)),
            (module._forward_hooks, (module._forward_hooks_with_kwargs, module._forward_hooks_always_called)),
        ):
            for key in [key for key, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                for flags in (*more, hooks):  # the hook last, so that it is still found if this is interrupted
                    flags.pop(key, None)
        for method in self.entrances:
            entrance = vars(module).get(method)
            if not isinstance(entrance, _Entrance) or entrance.stack is not self:
                continue
            if entrance.before is None:
                del vars(module)[method]
            else:
                vars(module)[method] = entrance.before

    def _run_before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.before(module, args, kwargs) if self.participants else None

    def _run_after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        if output is None and self._hears_of_failures:  # torch calls it so where the forward, or a hook, raised
            self.failed()
            return None
        return self.after(module, args, kwargs, output) if self.participants else None

    @property
    def _hears_of_failures(self) -> bool:
        return type(self).failed is not SharedHook.failed

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedHook:
        return _inert(type(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_inert, (type(self),))


class _Entrance:
    """Replaces a method of one module, in the module's own `vars`, and runs it through the stack.

    A copy or a pickle of the module gets the plain method instead.
    """

    def __init__(self, stack: SharedHook, module: nn.Module, method: str) -> None:
        self.stack = stack
        self.module = module
        self.method = method
        # What somebody else has put there, or a copy of a hooked model still holds, is called, and put back.
        self.before: Callable[..., Any] | None = vars(module).get(method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def call() -> Any:
            return self.__wrapped__(*args, **kwargs)

        if any(participant.active for participant in self.stack.participants):
            return self.stack.around(self.module, self.method, call, args, kwargs)
        return call()

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The method itself, for `inspect.signature`."""
        return _plain_method(self.module, self.method) if self.before is None else self.before

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _plain_method(memo.get(id(self.module), self.module), self.method)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_plain_method, (self.module, self.method))


class Attachment(NamedTuple):
    """One participant's place: the module, the stack it joins there, and itself."""

    module: nn.Module
    stack: SharedHook
    participant: Participant


class Intervention:
    """The handle of what is attached to a model.

    Usable bare (`handle.remove()`) or as a context manager, which removes on leaving the block, exception or not.
    Removing twice, or in another order than attaching, is fine. `active = False` switches it off without detaching.

    Attributes:
        active (`bool`): Whether it takes effect. Setting it acts at once, also in the middle of a generation.
        removed (`bool`): Whether it has been detached.
        note (`str`): A remark by the code that attached it; it is printed with the handle.

    Example:

    ```python
    from torch import nn
    from hf_mote.hooks import Attachment, SharedHook, Participant, attach

    layer = nn.Linear(2, 2)
    with attach([Attachment(layer, SharedHook(), Participant())]) as handle:
        assert handle.active
    assert handle.removed and not layer._forward_hooks
    ```
    """

    def __init__(self, attachments: Sequence[Attachment] = ()) -> None:
        self._attachments = tuple(attachments)
        self._active = True
        self.removed = False
        self.note = ""

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
            try:
                self._leave()
            except BaseException:  # a KeyboardInterrupt half way: all or nothing, and nothing is left to go back to
                self._leave()
                raise
            finally:
                self.removed = True

    def _leave(self) -> None:
        for attachment in reversed(self._attachments):
            attachment.stack.leave(attachment.module, attachment.participant)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "removed" if self.removed else "active" if self.active else "inactive"
        note = f", {self.note}" if self.note else ""
        return f"{type(self).__name__}({len(self._attachments)} hooks, {state}{note})"


def attach(
    attachments: Sequence[Attachment] | Callable[[], Sequence[Attachment]], handle: Intervention | None = None
) -> Intervention:
    """Attach every participant to its module and return the handle; on any failure or interrupt attach none.

    Args:
        attachments (`Sequence[Attachment]` or `Callable[[], Sequence[Attachment]]`):
            The places, in the order in which the stacks see the participants, or what gives them. It is called
            while no other thread can attach, so that what it checks still holds when the participants join.
        handle (`Intervention`, *optional*): An empty handle to use; a new one by default.
    """
    warn_if_untested()
    handle = Intervention() if handle is None else handle
    try:
        with LOCK:
            handle._attachments = tuple(attachments() if callable(attachments) else attachments)
            for attachment in handle._attachments:
                attachment.stack.join(attachment.module, attachment.participant)
            if handle._attachments and "torch._dynamo" in sys.modules:
                # A graph compiled without hooks has no guard that would notice them: it is compiled again.
                torch.compiler.reset()
        return handle
    except BaseException:
        handle.remove()
        raise


StackT = TypeVar("StackT", bound=SharedHook)


def stack_on(module: nn.Module, kind: type[StackT]) -> StackT | None:
    """Return the live stack of the given kind on a module, or `None`.

    Args:
        module (`nn.Module`): The module to look at.
        kind (`type[SharedHook]`): The kind of stack looked for.
    """
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, kind) and owner.participants:
            return owner
    return None


def compiled_parts(model: nn.Module) -> list[str]:
    """Return the paths of parts of a model that torch compiles by themselves, as layers are.

    The graph of one layer then serves its like, and torch does not look whether they have the same hooks.

    Args:
        model (`nn.Module`): The model.
    """
    if "torch._dynamo" not in sys.modules:
        return []
    return [
        path
        for path, part in model.named_modules()
        if part._compiled_call_impl is not None or hasattr(vars(part).get("forward"), "_torchdynamo_orig_callable")
    ]


def _inert(kind: type[SharedHook]) -> SharedHook:
    stack = kind.__new__(kind)
    SharedHook.__init__(stack)
    return stack


def _plain_method(module: nn.Module, method: str) -> Callable[..., Any]:
    return MethodType(getattr(type(module), method), module)
