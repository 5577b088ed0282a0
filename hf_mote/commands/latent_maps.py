"""Saved maps of latents and experts, read for a report on the same model: `--latents`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_mote.errors import ModelMismatchError

if TYPE_CHECKING:
    from hf_mote.links.latent_expert_map import LatentExpertMap
    from hf_mote.routing.sites.routed_model import RoutedModel

__all__ = ["MORE", "check_latent_maps", "latent_maps"]

MORE = "links"
"""Folder, in the output of `hf-mote sae experts`, of the maps by further methods."""


def latent_maps(sources: Sequence[str] | None) -> dict[str, LatentExpertMap]:
    """Return maps by their source: those in the folders or Hub ids, and those by further methods beside them.

    Args:
        sources (`Sequence[str]`, *optional*): The values of `--latents`.

    Raises:
        [`FileFormatError`]: if there is no map, or one cannot be read.
    """
    if not sources:
        return {}
    from hf_mote.links.latent_expert_map import LatentExpertMap

    found = {}
    for source in dict.fromkeys(sources):
        found[source] = LatentExpertMap.from_pretrained(source)
        further = sorted(Path(source, MORE).glob(f"*/{LatentExpertMap.file_name}"))
        found |= {str(path.parent): LatentExpertMap.from_pretrained(path.parent) for path in further}
    return found


def check_latent_maps(maps: dict[str, LatentExpertMap], routed: RoutedModel) -> None:
    """Raise [`ModelMismatchError`] unless maps fit a model: by fingerprint, or, without one, by layers and experts.

    Args:
        maps (`dict[str, LatentExpertMap]`): The result of [`latent_maps`].
        routed (`RoutedModel`): The model.
    """
    from hf_mote.routing.sites.fingerprint import same_weights

    for source, links in maps.items():
        where, made = f"--latents {source}", links.fingerprint
        sizes = {site.layer: site.num_experts for site in routed.sites}
        unknown = [layer for layer in links.layers if layer not in sizes]
        widest = max((sizes[layer] for layer in links.layers if layer in sizes), default=0)
        got = expected = None
        if unknown:
            got, expected = f"layer {unknown[0]}", f"layers {', '.join(map(str, sizes))}"
        elif made is None and links.values.shape[2] < widest:
            got, expected = f"{links.values.shape[2]} experts", f"{widest}"
        elif made is not None:
            live = routed.fingerprint
            for key in ("model_type", "layers", "num_experts", "top_k"):
                if made[key] != live[key] and got is None:
                    got, expected = f"{key} {made[key]}"[:120], str(live[key])[:120]
            if got is None and not same_weights(made, live):
                got, expected = "other weights in a model of this shape", "the weights it was made with"
        if got is not None:
            fix = "Make a map for this model with hf-mote sae experts."
            raise ModelMismatchError(where, "is a map of another model", got=got, expected=expected, fix=fix)
