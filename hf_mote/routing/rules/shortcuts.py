"""Whether code may branch on the values of a tensor, in order to skip work.

Reading values is cheap on the CPU, but waits for an accelerator. A traced or transformed
model would keep one branch for all values.
"""

from __future__ import annotations

from itertools import chain

from torch import Tensor
from torch._C import _get_tracing_state
from torch._C._functorch import maybe_current_level
from torch.compiler import is_compiling

__all__ = ["none_chosen", "readable_now"]


def readable_now(values: Tensor) -> bool:
    """Return whether the values of a tensor may be read.

    Args:
        values (`torch.Tensor`): The tensor.
    """
    return (
        not is_compiling()
        and values.is_cpu
        and type(values) is Tensor
        and _get_tracing_state() is None
        and maybe_current_level() is None
    )


def none_chosen(indices: Tensor, experts: frozenset[int]) -> bool:
    """Return whether no token chose any of some experts; `False` if this may not be read.

    Args:
        indices (`torch.Tensor` of shape `(tokens, top_k)`): The chosen experts.
        experts (`frozenset[int]`): The experts in question.
    """
    return readable_now(indices) and experts.isdisjoint(chain.from_iterable(indices.tolist()))
