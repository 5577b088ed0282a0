"""What tests of routing share: edits, dtypes, greedy decoding, hooks counted, what experts get, and fixtures.

A module that imports `no_gradients` or `nothing_registered` has all its tests run so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from hf_mote import MoTEConfig, find_routers
from hf_mote.routing.rules import registry

__all__ = [
    "COMMON_EDITS",
    "DTYPES",
    "GREEDY",
    "dense",
    "fields_at",
    "no_gradients",
    "nothing_registered",
    "num_hooks",
    "observe_experts",
    "suppressing",
    "transformers_calls_itself_deprecated",
]

GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Edits that both the tiny decoders and the tiny families are given, without layers; see `fields_at`.
COMMON_EDITS: dict[str, dict[str, Any]] = {
    "drop": {"suppress": [1, 6]},
    "drop_half": {"suppress": [1, 6], "strength": 0.5},
    "zero": {"suppress": [1, 6], "suppress_mode": "zero"},
    "number": {"stimulate": [2], "stimulate_weight": 0.7},
    "bias_logits": {"bias": [(0, 1.5), (5, -2.0)]},
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """Run the tests of the module without gradients."""
    with torch.no_grad():
        yield


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start each test of the module without registered routers, and forget those that it registers."""
    monkeypatch.setattr(registry, "_REGISTERED", {})


@pytest.fixture(autouse=True)
def transformers_calls_itself_deprecated() -> Iterator[None]:
    """Assisted decoding calls the assistant's `generate` in a way that transformers itself deprecates."""

    def quiet(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Passing `generation_config` together with")

    logger = logging.getLogger("transformers.generation.utils")
    logger.addFilter(quiet)
    yield
    logger.removeFilter(quiet)


def fields_at(edit: dict[str, Any], layers: Sequence[int], top_k: int | None = None) -> dict[str, Any]:
    """An edit without layers as the fields of a config at the layers given, with at most `top_k` stimulated."""
    fields = {**edit, **({"stimulate": edit["stimulate"][:top_k]} if "stimulate" in edit else {})}
    for name in ("suppress", "stimulate"):
        if name in fields:
            fields[name] = [[layer, expert] for layer in layers for expert in fields[name]]
    for name in ("bias", "gain"):
        if name in fields:
            fields[name] = [[layer, expert, value] for layer in layers for expert, value in fields[name]]
    return fields


def suppressing(model: PreTrainedModel, *experts: int, **fields: Any) -> MoTEConfig:
    """A config that suppresses the experts at every layer of a model that routes."""
    pairs = [[site.layer, expert] for site in find_routers(model) for expert in experts]
    return MoTEConfig.for_model(model, suppress=pairs, **fields)


def num_hooks(model: nn.Module) -> int:
    """Return how many hooks hang on a model, of whatever kind."""
    return sum(len(getattr(module, name)) for module in model.modules() for name in _HOOKS)


def dense(weights: torch.Tensor, indices: torch.Tensor, num_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and choice of a router's answer, `(tokens, experts)`; an expert chosen twice is an error."""
    onehot = torch.nn.functional.one_hot(indices, num_experts)
    assert int(onehot.sum(dim=1).max()) == 1, "an expert was chosen twice for one token"
    spread = torch.zeros(len(indices), num_experts, dtype=weights.dtype).scatter(1, indices, weights.detach())
    return spread.double().numpy(), onehot.sum(dim=1).bool().numpy()


@contextmanager
def observe_experts(model: torch.nn.Module) -> Any:
    """Keep what each layer's experts are given, `{layer: [(weights, indices), ...]}`, through plain torch hooks."""
    seen: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    handles = []
    for path, module in model.named_modules():
        if path.endswith(".experts"):
            layer = int(path.split("layers.")[1].split(".")[0])

            def look(module: Any, args: Any, layer: int = layer) -> None:
                _, indices, weights = args
                seen.setdefault(layer, []).append((weights.detach().clone(), indices.clone()))

            handles.append(module.register_forward_pre_hook(look))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
