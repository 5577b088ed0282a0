"""Random controls: the same intervention on experts that no ranking chose.

The effect of a config shows little until the same number of random experts have less. Controls come from the same
layers, and on request from experts that the model uses about as often, because a busy expert has more effect than an
idle one.

The p value of a comparison rests on one property: had the config's own experts been picked at random among matched
ones, the config and its controls would be exchangeable, so that only chance decides which of them changes most.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from hf_mote.errors import ConfigError, ModelMismatchError
from hf_mote.mote.checks import check_router
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.fields import TARGETS
from hf_mote.routing.sites.site import RouterSite

__all__ = ["CONTROL_KINDS", "random_controls", "random_latents"]

CONTROL_KINDS = ("layer", "usage")
BLOCK_SIZE = 20  # least size of the blocks of experts of like use
_TRIES = 200  # for each control, to find a new one that the model accepts

_Pair: TypeAlias = tuple[int, int]
_Swap: TypeAlias = dict[_Pair, _Pair]


class _Pool(NamedTuple):
    """Experts of one layer that may replace each other, and those of them that a config targets."""

    layer: int
    members: list[int]
    targets: list[int]


def random_controls(
    configs: Sequence[MoTEConfig],
    sites: Sequence[RouterSite],
    num: int,
    seed: int,
    *,
    usage: Mapping[int, Tensor] | None = None,
) -> list[list[MoTEConfig]]:
    """Return configs that do the same to random experts.

    A control gives every expert that any of the configs targets another one of its pool, and applies the same exchange
    to all configs: those of settings that share experts also share the controls' experts. An expert's part in each
    config (suppressed, stimulated, biased or multiplied by how much) goes to one other expert.

    As long as every pool holds enough experts (`N` experts of which `k` are targets, and `N // k` is above `num`), no
    two controls share an expert, and none has one of the configs' own. Otherwise controls are drawn from all sets of
    the same size in each pool, each at most once and none the configs' own, so that they may hold some of the configs'
    experts; where there are no more than `num` of them, all are returned: 7 for one of 8 experts. Either way configs
    and controls are exchangeable if the configs' experts were picked at random in each pool.

    Args:
        configs (`Sequence[MoTEConfig]`): The configs to match, one or more; they fit the model.
        sites (`Sequence[RouterSite]`): The model's router sites.
        num (`int`): How many controls, 0 or more.
        seed (`int`): Seed of the draw.
        usage (`Mapping[int, torch.Tensor]`, *optional*):
            For each layer how often each expert is used, `(experts,)`. Without it a pool is a layer. With it a layer's
            experts, in order of use (of equal use: of index), are split into `max(1, N // 20)` blocks of equal size,
            or sizes that differ by one; each is a pool. Blocks depend on use alone, not on what the configs target. A
            layer of fewer than 40 experts is one block.

    Returns:
        `list[list[MoTEConfig]]`: for each control the counterpart of each config; fewer than `num` if no more exist.

    Raises:
        [`ConfigError`]: if all experts of a pool are targets, or no other experts can take their part.
    """
    roles = _roles(configs)
    if not num:
        return []
    pools = _pools(roles, sites, usage)
    for pool in pools:
        if len(pool.members) == len(pool.targets):
            block = "" if usage is None else f" of one block of {len(pool.members)} experts of like use"
            raise ConfigError(
                "evaluate_mote.num_controls",
                f"layer {pool.layer} has no other experts{block} to draw controls from",
                got=f"0 others for {len(pool.targets)} targets",
                fix="Give num_controls=0, or a config with fewer experts of this layer.",
            )
    draw = random.Random(seed)
    # Each layer keeps its number of survivors; a group's number can change.
    grouped = any(config.suppress and config.suppress_mode == "reroute" for config in configs)
    if not grouped and all(len(pool.members) // len(pool.targets) > num for pool in pools):
        swaps = _disjoint(pools, num, draw)
    else:
        fits = (lambda swap: _fits(configs, sites, swap)) if grouped else (lambda swap: True)
        swaps = _distinct(pools, roles, num, draw, fits)
    if not swaps:
        raise ConfigError(
            "evaluate_mote.num_controls",
            "the model refuses the same change of all other experts that were tried",
            got=f"suppress_mode 'reroute' on {len(roles)} experts",
            fix="Give num_controls=0, or suppress_mode 'drop'.",
        )
    return [[_swapped(config, swap) for config in configs] for swap in swaps]


def random_latents(
    roles: Sequence[Mapping[int, Hashable]], num_latents: int, num: int, seed: int, *, used: Tensor | None = None
) -> list[dict[int, int]]:
    """Return exchanges of latents of an SAE for others, as [`random_controls`] has them for experts.

    Args:
        roles (`Sequence[Mapping[int, Hashable]]`): For each of the configs to match, what it does to which latent.
        num_latents (`int`): Latents of the SAE.
        num (`int`): How many controls, 0 or more.
        seed (`int`): Seed of the draw.
        used (`torch.Tensor` of shape `(latents,)`, *optional*):
            On how many tokens each latent is active. Inactive latents replace each other; the others, in order of
            their density, are split into blocks of `2 * (num + 1)` or more, within which they do. Without it any
            latent replaces any other.

    Returns:
        `list[dict[int, int]]`: for each control the latent that replaces each one.

    Raises:
        [`ConfigError`]: if all latents of a block are changed.
    """
    if not num:
        return []
    together: dict[_Pair, list[Any]] = {}
    for index, one in enumerate(roles):
        for latent, role in one.items():
            together.setdefault((0, latent), []).append((index, role))
    cast: dict[_Pair, Hashable] = {pair: tuple(together[pair]) for pair in sorted(together)}
    pools = []
    for members in _blocks_of_latents(num_latents, num, used):
        targets = [latent for latent in members if (0, latent) in cast]
        if targets and len(targets) == len(members):
            raise ConfigError(
                "evaluate_mote.num_controls",
                "there are no other latents of similar density to draw controls from",
                got=f"0 others for {len(targets)} latents",
                fix="Give num_controls=0, control_kind='layer', or a config of fewer latents.",
            )
        if targets:
            pools.append(_Pool(0, members, targets))
    draw = random.Random(seed)
    if all(len(pool.members) // len(pool.targets) > num for pool in pools):
        swaps = _disjoint(pools, num, draw)
    else:
        swaps = _distinct(pools, cast, num, draw, lambda swap: True)
    return [{target: other for (_, target), (_, other) in swap.items()} for swap in swaps]


def _blocks_of_latents(num_latents: int, num: int, used: Tensor | None) -> list[list[int]]:
    """Return latents that may replace each other, by their use only."""
    if used is None:
        return [list(range(num_latents))]
    counts = used.tolist()
    silent = [latent for latent in range(num_latents) if not counts[latent]]
    order = sorted((latent for latent in range(num_latents) if counts[latent]), key=lambda one: (counts[one], one))
    number = max(1, len(order) // (2 * (num + 1)))
    cuts = [len(order) * block // number for block in range(number + 1)]
    return [block for block in (silent, *(sorted(order[a:b]) for a, b in itertools.pairwise(cuts))) if block]


def _roles(configs: Sequence[MoTEConfig]) -> dict[_Pair, Hashable]:
    """Return what each targeted expert does in each config."""
    roles: dict[_Pair, list[Any]] = {}
    for index, config in enumerate(configs):
        for name in TARGETS:
            for layer, expert, *value in getattr(config, name):
                roles.setdefault((layer, expert), []).append((index, name, *value))
    return {pair: tuple(roles[pair]) for pair in sorted(roles)}


def _pools(
    roles: Mapping[_Pair, Hashable], sites: Sequence[RouterSite], usage: Mapping[int, Tensor] | None
) -> list[_Pool]:
    """Return the pools that hold targets."""
    found = []
    for site in sites:
        blocks = [list(range(site.num_experts))]
        if usage is not None:
            used = usage[site.layer].tolist()
            order = sorted(blocks[0], key=lambda expert: (used[expert], expert))
            number = max(1, len(order) // BLOCK_SIZE)
            cuts = [len(order) * block // number for block in range(number + 1)]
            blocks = [sorted(order[a:b]) for a, b in itertools.pairwise(cuts)]
        for members in blocks:
            targets = [expert for expert in members if (site.layer, expert) in roles]
            if targets:
                found.append(_Pool(site.layer, members, targets))
    return found


def _disjoint(pools: Sequence[_Pool], num: int, draw: random.Random) -> list[_Swap]:
    """Return controls that share no expert with each other or with the targets."""
    swaps: list[_Swap] = [{} for _ in range(num)]
    for layer, members, targets in pools:
        others = draw.sample([expert for expert in members if expert not in targets], num * len(targets))
        for (swap, target), other in zip(itertools.product(swaps, targets), others, strict=True):
            swap[layer, target] = (layer, other)
    return swaps


def _distinct(
    pools: Sequence[_Pool],
    roles: Mapping[_Pair, Hashable],
    num: int,
    draw: random.Random,
    fits: Callable[[_Swap], bool],
) -> list[_Swap]:
    """Return different controls out of all possible ones, or all."""

    def cast(swap: _Swap) -> frozenset[object]:
        return frozenset((other, roles[target]) for target, other in swap.items())

    seen = {cast({pair: pair for pair in roles})}
    found: list[_Swap] = []
    if math.prod(_count(pool, roles) for pool in pools) - 1 <= num:
        each: Iterator[_Swap] = (
            {pair: other for part in parts for pair, other in part.items()}
            for parts in itertools.product(*(list(_arrangements(pool, roles)) for pool in pools))
        )
    else:
        each = (
            {
                (layer, target): (layer, other)
                for layer, members, targets in pools
                for target, other in zip(targets, draw.sample(members, len(targets)), strict=True)
            }
            for _ in range(_TRIES * num)
        )
    for swap in each:
        if cast(swap) not in seen and fits(swap):
            seen.add(cast(swap))
            found.append(swap)
            if len(found) == num:
                break
    return found


def _by_role(pool: _Pool, roles: Mapping[_Pair, Hashable]) -> list[list[int]]:
    """Return groups of targets with the same edit, whose exchange gives the same config."""
    groups: dict[Hashable, list[int]] = {}
    for target in pool.targets:
        groups.setdefault(roles[pool.layer, target], []).append(target)
    return list(groups.values())


def _count(pool: _Pool, roles: Mapping[_Pair, Hashable]) -> int:
    """Return the number of assignments of a pool's experts to the targets, the targets' own included."""
    same = math.prod(math.factorial(len(group)) for group in _by_role(pool, roles))
    return math.perm(len(pool.members), len(pool.targets)) // same


def _arrangements(pool: _Pool, roles: Mapping[_Pair, Hashable]) -> Iterator[_Swap]:
    """Yield each of these assignments once."""

    def fill(groups: list[list[int]], left: list[int]) -> Iterator[_Swap]:
        if not groups:
            yield {}
            return
        for chosen in itertools.combinations(left, len(groups[0])):
            mine = {(pool.layer, a): (pool.layer, b) for a, b in zip(groups[0], chosen, strict=True)}
            for rest in fill(groups[1:], [expert for expert in left if expert not in chosen]):
                yield mine | rest

    return fill(_by_role(pool, roles), pool.members)


def _swapped(config: MoTEConfig, swap: _Swap) -> MoTEConfig:
    changed: dict[str, Any] = {
        name: [[*swap[entry[0], entry[1]], *entry[2:]] for entry in getattr(config, name)] for name in TARGETS
    }
    return dataclasses.replace(config, **changed)


def _fits(configs: Sequence[MoTEConfig], sites: Sequence[RouterSite], swap: _Swap) -> bool:
    for config in (_swapped(config, swap) for config in configs):
        for site in sites:
            mine = [expert for layer, expert in config.suppress if layer == site.layer]
            others = [expert for layer, expert in config.stimulate if layer == site.layer]
            try:
                check_router(site, suppressed=mine, stimulated=others, rerouted=config.suppress_mode == "reroute")
            except ModelMismatchError:
                return False
    return True
