"""Blocks that bypass their router: fused kernels are off while something is attached, replaced forwards are tested.

transformers marks modules that have been hooked with `_is_hooked`, as its expert parallelism does; blocks whose
fused kernels bypass the router (those of MXFP4 weights) check the mark, and call router and experts one after the
other where it is set. The mark is set only on such blocks, while a participant is active.

A block with a replaced forward may call its router and ignore the decision. A copy of it is run on a few tokens with
another decision: its output must differ.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from hf_mote.errors import UnsupportedError
from hf_mote.hooks import Attachment, Participant, SharedHook, attach, compiled_parts, stack_on
from hf_mote.routing.rules.selection import Routing
from hf_mote.routing.sites.output import RouterOutput
from hf_mote.routing.sites.packed import feed_of
from hf_mote.routing.sites.replaced import replaced_forward, say_once
from hf_mote.routing.sites.scratch_copy import scratch_copy
from hf_mote.routing.sites.site import RouterSite

__all__ = ["check_block_follows", "shortcut_hooks", "why_silent"]

MARK = "_is_hooked"
FEW_TOKENS = 4
CHANGES = ("weights", "experts")


def shortcut_hooks(site: RouterSite) -> list[Attachment]:
    """Return the attachments by which a block does not bypass its router; for most blocks none.

    Args:
        site (`RouterSite`): The router.
    """
    block = site.block
    if block is None:
        return []
    code = getattr(inspect.unwrap(type(block).forward), "__code__", None)
    if code is None or MARK not in (*code.co_consts, *code.co_names):
        return []
    asked = [child for name, child in block.named_children() if name in code.co_names and child is not site.module]
    stack = stack_on(block, _Shortcut) or _Shortcut(asked)
    return [Attachment(block, stack, Participant())]


class _Shortcut(SharedHook):
    """The hook that keeps a block from its fused kernel."""

    def __init__(self, asked: list[nn.Module]) -> None:
        super().__init__()
        self.asked = [child for child in asked if not getattr(child, MARK, False)]

    def participants_changed(self) -> None:
        """Set or remove the mark."""
        for child in self.asked:
            if self.participants:
                setattr(child, MARK, _Mark(self))
            else:
                vars(child).pop(MARK, None)


class _Mark:
    """True while a participant is active; a copy of the model carries one that never is."""

    def __init__(self, stack: SharedHook) -> None:
        self.stack = stack

    def __bool__(self) -> bool:
        return any(participant.active for participant in self.stack.participants)


def check_block_follows(site: RouterSite, adapter: RouterOutput | None) -> None:
    """Raise [`UnsupportedError`] if somebody has replaced a block's forward with one that does not follow its router.

    The block runs on a copy; too large ones share their experts with it.

    Args:
        site (`RouterSite`): The router.
        adapter (`RouterOutput`, *optional*): Reads its output, if known.
    """
    block = site.block
    by = None if block is None else replaced_forward(block)
    if block is None or by is None:
        return
    what = f"{by} has replaced the forward of {type(block).__name__}"
    fix = f"Load the model without what patches it ({by.partition('.')[0]})."
    if adapter is None:
        raise UnsupportedError(
            site.path, f"{what}, and nothing can be tried on weights in shards or on the meta device", fix=fix
        )
    path = next(name for name, module in block.named_modules() if module is site.module)
    with scratch_copy(block) as scratch:
        router = scratch.get_submodule(path)
        feed = feed_of(router, scratch)
        noise = torch.randn(1, FEW_TOKENS, feed.width, generator=torch.Generator().manual_seed(0))
        hidden = noise.to(feed.device, feed.dtype)
        try:
            native, ran = _result(scratch, router, hidden, _Another(adapter, None))
            others = [
                _result(scratch, router, hidden, _Another(adapter, change))[0] for change in ("weights", "experts")
            ]
        except Exception as error:  # foreign code may raise any error
            raise UnsupportedError(
                site.path,
                f"{what}, and it cannot be tried whether it follows the router",
                got=f"{type(error).__name__}: {error}"[:120],
                fix=fix,
            ) from error
    if not ran:
        raise UnsupportedError(site.path, f"{what}, and a copy of the block does not run the router", fix=fix)
    for other, change in zip(others, CHANGES, strict=True):
        if torch.equal(other, native):
            raise UnsupportedError(
                site.path,
                f"{what}, and a copy of the block returns the same whatever {change} its router gives",
                fix=fix,
            )
    say_once(f"{what}; tried on a copy, it follows its router")


def why_silent(model: nn.Module, path: str) -> str:
    """Return the visible reason why a router did not run: which forwards around it are replaced.

    Args:
        model (`nn.Module`): The model.
        path (`str`): The router's dotted path.
    """
    names = path.split(".")
    for end in range(len(names) + 1):
        at = ".".join(names[:end])
        by = replaced_forward(model.get_submodule(at))
        if by is not None:
            return f"{by} has replaced the forward of {at or type(model).__name__}: load the model without it."
    if compiled_parts(model):
        return "Attach after the layers are compiled, or do not compile parts of the model by themselves."
    return "No forward around it was replaced: its layer was skipped, or the module around it did not call it."


class _Another(SharedHook):
    """The hook on a copied router that changes its decision."""

    def __init__(self, adapter: RouterOutput, change: str | None) -> None:
        super().__init__()
        self.adapter = adapter
        self.change = change
        self.ran = False

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        """Halve the first expert's weight, or choose each expert's neighbour."""
        self.ran = True
        if self.change is None:
            return None
        native = self.adapter.read(output)[1]
        weights, indices = native.weights, native.indices
        if self.change == "weights":
            weights = torch.cat([weights[:, :1] / 2, weights[:, 1:]], dim=-1)
        else:
            indices = (indices + 1) % self.adapter.site.num_experts
        return self.adapter.write(output, Routing(weights, indices, native.shared), None)


def _result(block: nn.Module, router: nn.Module, hidden: Tensor, stack: _Another) -> tuple[Tensor, bool]:
    with attach([Attachment(router, stack, Participant())]):
        output = block(hidden.clone())
    first = output[0] if isinstance(output, tuple) else output
    return first, stack.ran
