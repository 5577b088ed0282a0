"""Wrappers and shards under which the routers of a model cannot be hooked or checked; they are refused."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from hf_mote.errors import UnsupportedError

__all__ = ["check_placement", "holder_of"]

WRAPPED = (".base_layer", ".original_module")
"""Names of modules that PEFT has wrapped."""


def check_placement(model: nn.Module, routers: Mapping[str, nn.Module], where: str) -> None:
    """Raise [`UnsupportedError`] if hooks on a model's routers would see or change something else than its routing.

    Args:
        model (`nn.Module`): The model; it is not run.
        routers (`Mapping[str, nn.Module]`): Its routers by their path.
        where (`str`): The caller, for the error.
    """
    kinds = {type(part).__name__ for part in model.modules()}
    if any(isinstance(part, nn.DataParallel) for part in model.modules()):
        raise UnsupportedError(
            where,
            "DataParallel copies the model for every forward, so that a text cannot be followed from pass to pass",
            got="DataParallel",
            fix="Use DistributedDataParallel, or give the model inside, model.module.",
        )
    if "FullyShardedDataParallel" in kinds:
        raise UnsupportedError(
            where,
            "the routers' weights are part of a flat tensor of all weights, so that they cannot be checked",
            got="FullyShardedDataParallel",
            fix="Shard the model with fully_shard (FSDP2), or attach before wrapping it.",
        )
    plans = [getattr(getattr(part, "config", None), "distributed_config", None) for part in model.modules()]
    if any((getattr(plan, "pp_size", None) or 1) > 1 for plan in plans):
        raise UnsupportedError(
            where,
            "each process of a pipeline holds some of the layers, and a config is for all of them",
            got="pp_size above 1",
            fix="Load with tensor parallelism, tp_plan='auto'.",
        )
    for path, router in routers.items():
        if ".modules_to_save." in path:
            raise UnsupportedError(
                path,
                "PEFT keeps a trained copy of the router beside the original, and chooses between them at run time",
                got="modules_to_save",
                expected="one router in each decoder layer",
                fix="Call merge_and_unload() before; or train the router by LoRA, naming it in target_modules or "
                "target_parameters.",
            )
        if getattr(router, "_is_hooked", False) and "forward" in vars(router):
            raise UnsupportedError(
                path,
                "transformers' plan for expert parallelism changes what the router returns: each process gets the "
                "numbers of its own experts alone",
                got="ep_router",
                expected="a plan that leaves the routers alone",
                fix="Load with tensor parallelism, tp_plan='auto' and no expert parallelism; or upgrade to "
                "transformers 5.23 or newer, where experts select their tokens themselves.",
            )


def holder_of(path: str) -> str:
    """Return the path of the module that holds a router, without PEFT's wrappers.

    Args:
        path (`str`): The router's dotted path.
    """
    while path.endswith(WRAPPED):
        path = path.rpartition(".")[0]
    return path.rpartition(".")[0]
