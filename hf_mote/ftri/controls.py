"""Random controls: the same intervention on experts that no ranking chose.

What a config does says little until as many random experts do less. They come from the same layers, and if wanted
from among experts that the model uses about as often, since switching off a busy expert does more than an idle one.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from hf_mote.errors import ConfigError
from hf_mote.mote.config import MoTEConfig
from hf_mote.routing.discover import RouterSite

__all__ = ["CONTROL_KINDS", "random_control"]

CONTROL_KINDS = ("layer", "usage")

# A control of kind "usage" is drawn from the experts nearest in use: so many for each target, and some at least.
_NEAR_PER_TARGET = 4
_LEAST_NEAR = 8


def random_control(
    config: MoTEConfig,
    sites: Sequence[RouterSite],
    draw: random.Random,
    *,
    usage: Mapping[int, Tensor] | None = None,
) -> MoTEConfig:
    """Return a config that does the same to random experts: as many in each layer, none of the config's own.

    Args:
        config (`MoTEConfig`): The config to match.
        sites (`Sequence[RouterSite]`): The model's router sites.
        draw (`random.Random`): Where the randomness comes from.
        usage (`Mapping[int, torch.Tensor]`, *optional*):
            For each layer how often each expert is used, `(experts,)`. With it every target is replaced by one of the
            experts nearest to it in use (8, or 4 for each target of the layer); without it by any.

    Raises:
        [`ConfigError`]: if a layer has too few other experts.
    """
    own: dict[int, set[int]] = {}
    for layer, expert, *_ in (*config.suppress, *config.stimulate, *config.bias):
        own.setdefault(layer, set()).add(expert)
    swap: dict[tuple[int, int], int] = {}
    for site in sites:
        mine = sorted(own.get(site.layer, ()))
        pool = [expert for expert in range(site.num_experts) if expert not in own.get(site.layer, ())]
        if len(pool) < len(mine):
            raise ConfigError(
                "evaluate_mote.num_controls",
                f"layer {site.layer} has too few other experts to draw controls from",
                got=f"{len(pool)} others for {len(mine)} targets",
                fix="Give num_controls=0, or a config with fewer experts of this layer.",
            )
        if usage is None:
            swap.update({(site.layer, e): other for e, other in zip(mine, draw.sample(pool, len(mine)), strict=True)})
            continue
        used = usage[site.layer].tolist()
        near = max(_LEAST_NEAR, _NEAR_PER_TARGET * len(mine))
        for expert in draw.sample(mine, len(mine)):
            nearest = sorted(pool, key=lambda other: (abs(used[other] - used[expert]), other))[:near]
            chosen = draw.choice(nearest)
            pool.remove(chosen)
            swap[site.layer, expert] = chosen
    changed: dict[str, Any] = {
        name: [[entry[0], swap[entry[0], entry[1]], *entry[2:]] for entry in getattr(config, name)]
        for name in ("suppress", "stimulate", "bias")
    }
    return dataclasses.replace(config, **changed)
