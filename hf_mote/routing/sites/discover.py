"""Finds the router sites of a live model, and checks them against the table of routing rules.

Routers are the modules whose class the table knows, or `register_routers` has accepted. They are cross-checked against
the classes that the model itself declares as the source of its `router_logits` (`candidates.py`), so a router that the
table lacks is an error and never silently left out.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from hf_mote.errors import UnsupportedError
from hf_mote.routing.rules.registry import rule_for
from hf_mote.routing.sites.candidates import check_all_listed, check_is_model, unlisted_routers, what_it_has_instead
from hf_mote.routing.sites.packed import packed_parts
from hf_mote.routing.sites.placement import check_placement, holder_of
from hf_mote.routing.sites.replaced import missing_routers
from hf_mote.routing.sites.site import RouterSites, site_of

__all__ = ["find_routers"]


def find_routers(model: nn.Module) -> RouterSites:
    """Return a model's router sites, in the order of their layers: a list that prints as a table.

    Args:
        model (`nn.Module`):
            A mixture-of-experts model of transformers, bare or wrapped (PEFT, accelerate).

    Raises:
        [`UnsupportedError`]: if the model has no router that the table knows, or one that it does not know;
            [`register_routers`] can take in the latter.

    Example:

    ```python
    from transformers import MixtralConfig, MixtralForCausalLM
    from hf_mote import find_routers

    config = MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )
    sites = find_routers(MixtralForCausalLM(config))
    assert [(site.layer, site.num_experts, site.top_k) for site in sites] == [(0, 4, 2), (1, 4, 2)]
    ```
    """
    check_is_model(model, "find_routers.model")
    modules = dict(model.named_modules())
    sites = RouterSites(
        site_of(path, module, rule, modules.get(holder_of(path)))
        for path, module in modules.items()
        if (rule := rule_for(module)) is not None and (rule.within is None or rule.within in path.split("."))
    )
    check_placement(model, {site.path: site.module for site in sites}, f"find_routers({type(model).__name__})")
    if not sites:
        _check_none_missing(model)
    check_all_listed(model, f"find_routers({type(model).__name__})", known=bool(sites))
    if not sites:
        raise UnsupportedError(
            f"find_routers({type(model).__name__})",
            "no routed experts found",
            expected="a mixture-of-experts model of a family in the table: see `hf-mote families`",
            fix=what_it_has_instead(model),
        )
    sites.sort(key=lambda site: site.layer)
    for one, other in pairwise(sites):
        if one.layer == other.layer:
            raise UnsupportedError(
                f"find_routers({type(model).__name__})",
                f"layer {one.layer} has several routers, so that [layer, expert] does not name an expert",
                got=f"{one.path} and {other.path}",
                expected="one router in each decoder layer",
                fix="Give the part of the model that generates text, such as model.thinker or model.language_model.",
            )
    return sites


def _check_none_missing(model: nn.Module) -> None:
    """Refuse a model without routers if its own class has some; the error names what replaced them.

    Routers that the table lacks are handled elsewhere.
    """
    others = unlisted_routers(model)
    missing = [
        one for one in missing_routers(model) if not any(f"{path}.".startswith(f"{one.place}.") for path in others)
    ]
    if not missing:
        return
    first = missing[0]
    itself = first.place == first.path
    packed = first.found != "nothing" and bool(packed_parts(model.get_submodule(first.place)))
    name = first.path.rpartition(".")[2]
    raise UnsupportedError(
        f"find_routers({type(model).__name__})",
        f"{len(missing)} routers of the model were replaced" + ("" if itself else " with what holds them"),
        got=f"{first.found} at {first.place}",
        expected=first.expected if itself else f"{first.expected}, which holds the router {first.router}",
        fix=f"Quantise the model without them: '{name}' belongs in the list of modules not to convert."
        if packed
        else "Load the model without what replaced them.",
    )
