"""What can be measured: a `MoTEConfig`, or a change of an SAE's latents that has the same few methods.

Evaluation checks that a change fits the model, attaches it, makes the same change to other experts or latents, and
counts how often each is used. SAEs are not imported here; a steering config has these methods itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from hf_mote.errors import ConfigError
from hf_mote.evaluation.controls import random_controls, random_latents
from hf_mote.hooks import Intervention, attach
from hf_mote.mote.checks import check_against_model
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import attach_config, load_config
from hf_mote.routing.recording.record import RoutingRecord
from hf_mote.routing.sites.routed_model import RoutedModel

__all__ = [
    "Change",
    "LatentChange",
    "SteeringLike",
    "Use",
    "attached",
    "check_change",
    "controls_of",
    "counting_use",
    "read_change",
    "units_of",
    "with_fields",
]


class _Counted(Protocol):
    counts: Tensor

    def __enter__(self) -> Any: ...

    def __exit__(self, *args: Any) -> None: ...


@runtime_checkable
class LatentChange(Protocol):
    """A change of latents that the harness can measure, as `SteeringConfig.bind` returns it."""

    @property
    def strength(self) -> float:
        """Factor on every change."""

    @property
    def scope(self) -> str:
        """Tokens that are changed."""

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""

    @property
    def num_units(self) -> int:
        """How many latents there are."""

    def check(self, model: nn.Module) -> None:
        """Raise unless it fits a model."""

    def to_dict(self) -> dict[str, Any]:
        """Return its fields."""

    def identity(self) -> dict[str, Any]:
        """Return its fields and a digest of the SAE, which identify the change."""

    def attach(self, model: nn.Module) -> Intervention:
        """Attach it."""

    def with_fields(self, **fields: Any) -> LatentChange:
        """Return it with other fields."""

    def roles(self) -> dict[int, Hashable]:
        """Return the edit of each changed latent."""

    def exchanged(self, others: Mapping[int, int]) -> LatentChange:
        """Return the same change of other latents."""

    def count_use(self, model: nn.Module, skipped: int | None = None) -> _Counted:
        """Count on how many tokens each latent is active."""


@runtime_checkable
class SteeringLike(Protocol):
    """A steering config, which becomes a [`LatentChange`] with its SAE."""

    def bind(self) -> LatentChange:
        """Return it with its SAE."""


Change: TypeAlias = MoTEConfig | LatentChange
Use: TypeAlias = Mapping[int, Tensor]
"""How often each expert is used, by layer; of latents, all of them at 0."""


def read_change(config: object) -> Change:
    """Return a change that can be measured.

    Args:
        config (`object`): A [`MoTEConfig`], the folder or Hub id of one, a [`SteeringConfig`], or one with its SAE.

    Raises:
        [`ConfigError`]: if it is not one of these.
    """
    if isinstance(config, LatentChange):
        return config
    if isinstance(config, SteeringLike):
        return config.bind()
    return load_config(config)


def check_change(change: Change, routed: RoutedModel) -> None:
    """Raise unless a change fits a model.

    Args:
        change (`MoTEConfig` or [`LatentChange`]): The change.
        routed (`RoutedModel`): The model; its routers are searched if the change is of experts.
    """
    if isinstance(change, MoTEConfig):
        check_against_model(change, routed)
    else:
        change.check(routed.model)


def attached(routed: RoutedModel, change: Change | None) -> Intervention:
    """Attach a change to a model, or nothing.

    Args:
        routed (`RoutedModel`): The model.
        change (`MoTEConfig` or [`LatentChange`], *optional*): The change.
    """
    if change is None:
        return attach([])
    return attach_config(routed, change) if isinstance(change, MoTEConfig) else change.attach(routed.model)


def with_fields(change: Change, **fields: Any) -> Change:
    """Return a change with other fields, such as the strength."""
    return dataclasses.replace(change, **fields) if isinstance(change, MoTEConfig) else change.with_fields(**fields)


def units_of(change: Change) -> set[tuple[int, int]]:
    """Return the experts that a change targets, as (layer, expert), or its latents, as (0, latent)."""
    if isinstance(change, MoTEConfig):
        return set(change.targets)
    return {(0, latent) for latent in change.roles()}


def controls_of(
    changes: Sequence[Change], routed: RoutedModel, num: int, seed: int, *, usage: Use | None = None
) -> list[list[Change]]:
    """Return random controls of changes that are of one kind; see [`random_controls`] and [`random_latents`].

    Raises:
        [`ConfigError`]: if some are of experts and others of latents, or there can be no controls.
    """
    experts = [change for change in changes if isinstance(change, MoTEConfig)]
    if len(experts) == len(changes):
        return [list(control) for control in random_controls(experts, routed.sites, num, seed, usage=usage)]
    latents = [change for change in changes if not isinstance(change, MoTEConfig)]
    if experts:
        fix = "Measure each kind by itself."
        raise ConfigError("evaluate_mote.configs", "some change experts and others latents", got="both", fix=fix)
    found = random_latents(
        [change.roles() for change in latents],
        latents[0].num_units,
        num,
        seed,
        used=None if usage is None else usage[0],
    )
    return [[change.exchanged(swap) for change in latents] for swap in found]


@contextmanager
def counting_use(
    routed: RoutedModel, changes: Sequence[Change], *, stop: Any, pad: int | None
) -> Iterator[Callable[[], Use]]:
    """Count the use of each expert, or each latent, within the block; yields a function that returns the counts.

    Args:
        routed (`RoutedModel`): The model.
        changes (`Sequence`): What is measured.
        stop (`int` or `list[int]`, *optional*): Tokens that end a generation, as [`record_routing`] takes them.
        pad (`int`, *optional*): The token that pads rows which ended before others.
    """
    change = changes[0]
    if isinstance(change, MoTEConfig):
        with RoutingRecord(routed, eos_token_id=stop) as record:
            yield lambda: dict(zip(record.layers, record.total().counts, strict=True))
    else:
        with change.count_use(routed.model, pad) as use:
            yield lambda: {0: use.counts}
