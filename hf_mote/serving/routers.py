"""vLLM's routers: found at load, refused by name if not supported, and tested before requests are served.

One entry point covers every family: the factory of vLLM's fused MoE layers makes a router, and its `_compute_routing`
turns logits into weights and logical experts, before any balancing maps these to physical ones. While a model is
built, the routers get a subclass of their own class that passes the result through a [`ProfileTables`].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hf_mote.errors import RouterContractError, UnsupportedError
from hf_mote.routing.rules.selection import select
from hf_mote.routing.sites.discover import find_routers
from hf_mote.routing.sites.site import BLOCK, RouterSite
from hf_mote.serving.profiles import LayerRouting, ProfileTables

__all__ = ["layers_of", "materialise", "meta_sites", "routers_with_a_seam"]

KNOWN = ("CPURouter", "CustomRoutingRouter", "FusedTopKBiasRouter", "FusedTopKRouter", "GroupedTopKRouter")
PROBES = 64
TOLERANCE = 1e-5  # of a weight; vLLM takes the softmax of the chosen where transformers divides by their sum
_LEAVE = "Serve it without profiles: leave 'hf_mote' out of additional_config."


@contextmanager
def routers_with_a_seam(loaded: Callable[[nn.Module], None]) -> Iterator[None]:
    """Within the block, build routers with profiles.

    Args:
        loaded (`Callable[[nn.Module], None]`): Called with the model when its weights are loaded, before vLLM brings
            them into the form that its kernels take.
    """
    from vllm.model_executor.layers.fused_moe import layer as moe
    from vllm.model_executor.model_loader import base_loader

    original, pack = moe.create_fused_moe_router, base_loader.process_weights_after_loading

    def create(*args: Any, **kwargs: Any) -> Any:
        router = original(*args, **kwargs)
        base = type(router)
        if base.__name__ in KNOWN:
            router.__class__ = _with_seam(base)
        return router

    def tell_and_pack(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        loaded(model)
        return pack(model, *args, **kwargs)

    moe.create_fused_moe_router = create
    base_loader.process_weights_after_loading = tell_and_pack
    try:
        yield
    finally:
        moe.create_fused_moe_router = original
        base_loader.process_weights_after_loading = pack


def _with_seam(base: type) -> type:
    """Return a subclass of a router's class; it has a single base, so that an object's class can be changed to it."""
    from vllm.model_executor.layers.fused_moe.config import RoutingMethodType

    def compute(
        self: Any, hidden_states: Tensor, router_logits: Tensor, indices_type: Any, *, input_ids: Any = None
    ) -> tuple[Tensor, Tensor]:
        weights, indices = native(self, hidden_states, router_logits, indices_type, input_ids=input_ids)
        if self.mote_tables is None:
            return weights, indices
        routed: tuple[Tensor, Tensor] = self.mote_tables.route(self.mote_layer, router_logits, weights, indices)
        return routed

    native = base._compute_routing  # type: ignore[attr-defined]
    # Kernels that route by themselves do not take this routing method, so the layer gets a kernel that calls the
    # router.
    custom = property(lambda self: RoutingMethodType.Custom)
    members = {
        "_compute_routing": compute,
        "routing_method_type": custom,
        "mote_native": native,
        "mote_tables": None,
        "mote_layer": None,
    }
    return type(f"{base.__name__}WithProfiles", (base,), members)


def meta_sites(config: Any) -> tuple[nn.Module, list[RouterSite]]:
    """Return a model without weights and its router sites.

    Args:
        config (`PreTrainedConfig`): The config of the text model.

    Raises:
        [`UnsupportedError`]: if transformers has no model for it, or the model no router that is known.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UnsupportedError(
            f"model type {getattr(config, 'model_type', None)!r}",
            "transformers has no model of this config to look its routers up in",
            got=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}",
            fix=_LEAVE,
        ) from error
    return model, find_routers(model)


def layers_of(model: nn.Module, sites: Sequence[RouterSite]) -> dict[int, tuple[Any, LayerRouting]]:
    """Return the routers of a model of vLLM with their share in profiles, by absolute decoder layer; each is tested.

    Args:
        model (`nn.Module`): vLLM's model, its weights loaded.
        sites (`Sequence[RouterSite]`): The routers that transformers has for it.

    Raises:
        [`UnsupportedError`]: if a layer's router or kernel is one that profiles do not reach.
        [`RouterContractError`]: if a router does not choose as transformers' does.
    """
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    by_layer = {site.layer: site for site in sites}
    found: dict[int, tuple[Any, LayerRouting]] = {}
    for runner in model.modules():
        if not isinstance(runner, MoERunner):
            continue
        where = f"layer {runner.layer_id} ({runner.layer_name})"
        if runner.layer_id in found:
            raise UnsupportedError(where, "has several routers, so that [layer, expert] names no expert", fix=_LEAVE)
        if runner.layer_id not in by_layer:
            raise UnsupportedError(
                where, "transformers has no router in that layer", expected=sorted(by_layer), fix=_LEAVE
            )
        _check_reached(where, runner)
        layer = _layer(where, runner, by_layer[runner.layer_id])
        found[runner.layer_id] = (runner.router, layer)
    missing = sorted(set(by_layer) - set(found))
    if missing:
        raise UnsupportedError(
            f"layer {missing[0]} ({by_layer[missing[0]].path})",
            "vLLM runs its experts outside of the layer with the profiles",
            got=", ".join(sorted({type(part).__name__ for part in model.modules()}))[:300],
            fix=_LEAVE,
        )
    return found


def _check_reached(where: str, runner: Any) -> None:
    router = runner.router
    name = type(router).__name__
    if not hasattr(router, "mote_native"):
        raise UnsupportedError(where, "an unknown router", got=name, expected=", ".join(KNOWN), fix=_LEAVE)
    if runner.is_monolithic:
        kernel = type(runner.routed_experts.quant_method).__name__
        raise UnsupportedError(where, "a kernel that routes by itself, past the router", got=kernel, fix=_LEAVE)
    refused = {
        "experts chosen by a table of token ids": getattr(router, "_hash_indices_table", None) is not None
        or getattr(router, "hash_indices_table", None) is not None,
        "a second bias for images": getattr(router, "bias_vl", None) is not None,
        "shared experts fused with the routed ones": runner._fse_fuse_gate
        or bool(getattr(router, "num_fused_shared_experts", 0)),
        "rows of other ranks (data or sequence parallelism)": runner.do_naive_dispatch_combine
        or runner.moe_config.is_sequence_parallel
        or runner.moe_config.pcp_size > 1,
        "experts that move between ranks (EPLB)": router.eplb_state is not None,
    }
    for what, there in refused.items():
        if there:
            raise UnsupportedError(where, f"{what}: profiles were not tested there", fix=_LEAVE)


def _layer(where: str, runner: Any, site: RouterSite) -> LayerRouting:
    router = runner.router
    if site.rule.adapter is not None or site.rule.expert_scale is not None or site.rule.divide_by_top_k:
        raise UnsupportedError(where, f"the rule {site.rule.name!r} is not served", fix=_LEAVE)
    if (runner.moe_config.num_logical_experts, router.top_k) != (site.num_experts, site.top_k):
        raise RouterContractError(
            where,
            "vLLM has other numbers of experts",
            got=f"{runner.moe_config.num_logical_experts}, {router.top_k} chosen",
            expected=f"{site.num_experts}, {site.top_k} chosen",
        )
    scale = float(runner.routed_scaling_factor)
    own_scale = site.selection.scale if site.rule.scale is not None else 1.0
    if scale != 1 and site.rule.scale is None:
        raise UnsupportedError(where, "vLLM scales the experts where transformers does not", got=scale, fix=_LEAVE)
    selection = replace(site.selection, scale=own_scale / scale)
    bias = getattr(router, "e_score_correction_bias", None)
    if (bias is not None) != (site.rule.selection_bias is not None and site.selection_bias() is not None):
        raise UnsupportedError(where, "vLLM and transformers disagree on a selection bias", got=bias, fix=_LEAVE)
    layer = LayerRouting(site, selection, bias, scale, {})
    _self_test(where, runner, layer)
    return layer


@torch.no_grad()
def _self_test(where: str, runner: Any, layer: LayerRouting) -> None:
    """Check that the rule gives what the engine's own router gives, on random logits of the engine's dtype."""
    router, site = runner.router, layer.site
    parameter = next(iter(runner.routed_experts.parameters()))
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(PROBES, site.num_experts, generator=generator)
    dtype = runner.moe_config.router_logits_dtype or runner.moe_config.in_dtype
    logits = logits.to(parameter.device, dtype)
    hidden = torch.randn(PROBES, runner.moe_config.hidden_dim, generator=generator).to(parameter.device, dtype)
    native_weights, native = router.mote_native(hidden, logits, None)
    # The engine may order the chosen experts differently.
    mine = select(logits, layer.selection, layer.selection_bias)
    native, order = native.long().sort(dim=-1)
    ours, our_order = mine.indices.sort(dim=-1)
    native_weights = native_weights.float().gather(-1, order)
    our_weights = mine.weights.float().gather(-1, our_order)
    largest = float((native_weights - our_weights).abs().max())
    tolerance = TOLERANCE if logits.dtype == torch.float32 else 2**-8
    if not torch.equal(native, ours) or not largest <= tolerance * float(native_weights.abs().max()):
        raise RouterContractError(
            where,
            f"vLLM's {type(router).__name__} does not follow the row {site.rule.name!r} says",
            got=f"{int((native != ours).any(dim=-1).sum())} of {PROBES} tokens with other experts, weights off by "
            f"{largest:.2g}",
            expected="its own routing",
            fix=_LEAVE,
        )


def materialise(sites: Sequence[RouterSite], model: nn.Module) -> bool:
    """Fill router sites with the weights that vLLM has loaded, and return whether all were found.

    Args:
        sites (`Sequence[RouterSite]`): Routers of a model on the meta device.
        model (`nn.Module`): vLLM's model, as its weights were loaded.
    """
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    blocks = {
        part.layer_id: model.get_submodule(path.rpartition(".")[0])
        for path, part in model.named_modules()
        if isinstance(part, MoERunner)
    }
    for site in sites:
        if site.layer not in blocks:
            return False
        block = blocks[site.layer]
        # Of the block itself and of its router, but of no expert.
        mine = [
            (path.rpartition(".")[2], tensor)
            for path, tensor in (*block.named_parameters(), *block.named_buffers())
            if path.count(".") <= 1 and "expert" not in path.partition(".")[0]
        ]
        wanted = dict(site.module.named_parameters()) | dict(site.module.named_buffers())
        bias = site.rule.selection_bias or ""
        if bias.startswith(BLOCK) and site.selection_bias() is not None:
            wanted[bias] = getattr(site.block, bias.removeprefix(BLOCK))
        for name, tensor in wanted.items():
            last = name.rpartition(".")[2]
            fits = {given.data_ptr(): given for other, given in mine if other == last and given.shape == tensor.shape}
            if len(fits) != 1:
                return False
            _set(site, name, next(iter(fits.values())).detach().clone())
    return True


def _set(site: RouterSite, name: str, tensor: Tensor) -> None:
    owner: Any = site.block if name.startswith(BLOCK) else site.module
    *path, last = name.removeprefix(BLOCK).split(".")
    for part in path:
        owner = getattr(owner, part)
    if last in owner._parameters:
        owner._parameters[last] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[last] = tensor


def attach(found: dict[int, tuple[Any, LayerRouting]], tables: ProfileTables) -> None:
    """Connect routers to a worker's tables."""
    for router, layer in found.values():
        router.mote_layer = layer
        router.mote_tables = tables
