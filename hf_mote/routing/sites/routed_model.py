"""What a model with routers is as a whole: the decoder that contains them all."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from hf_mote.routing.sites.site import RouterSite

__all__ = ["decoder_of"]


def decoder_of(model: nn.Module, sites: list[RouterSite]) -> nn.Module:
    """Return the innermost `PreTrainedModel` that contains every router: its forward sees every routed token.

    Args:
        model (`nn.Module`): The model the sites were found in.
        sites (`list[RouterSite]`): Its router sites.
    """
    paths = [site.path for site in sites]
    candidates = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and all(p.startswith(f"{path}." if path else "") for p in paths)
    ]
    if not candidates:
        return model
    return max(candidates, key=lambda item: len(item[0]))[1]
