"""The oracle of edits: a second model whose routers' forwards are replaced by what the reference says of their logits.

It shares nothing with the package: the numbers come from the model's config, the routing from `family_reference`
(token by token, numpy, float64), and the replaced forward stands on the model itself, with no hook.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from routing.family_reference import FAMILIES, Edit, Family, Numbers, edit_at, numbers_of, route_all
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["replace_routers"]


def replace_routers(
    model: PreTrainedModel, family: str, routers: dict[int, str], fields: dict[str, Any], by_layer: dict[int, int]
) -> list[float]:
    """Replace the forward of every router, at the paths given by layer; `by_layer` has a layer's number of experts.

    Returns a list that every pass adds to: by how much the choice of each token was decided.
    """
    margins: list[float] = []
    row = FAMILIES[family]
    numbers = numbers_of(row, model.config.get_text_config())
    for layer, path in routers.items():
        router, block = model.get_submodule(path), model.get_submodule(path.rpartition(".")[0])
        n = numbers._replace(num_experts=by_layer.get(layer, numbers.num_experts))
        edit = edit_at(layer, fields)
        bias = None if row.bias is None else _bias(row.bias, router, block)
        if row.special == "p_norm":
            block.route_tokens_to_experts = _routed(row, n, edit, bias, margins)
        else:
            router.forward = _forward(router.forward, row, n, edit, bias, margins)
    return margins


def _bias(path: str, router: nn.Module, block: nn.Module) -> np.ndarray:
    owner: Any = block if path.startswith("block.") else router
    for name in path.removeprefix("block.").split("."):
        owner = getattr(owner, name)
    return owner.double().reshape(-1).numpy()


def _decide(
    logits: Tensor,
    row: Family,
    n: Numbers,
    edit: Edit,
    bias: np.ndarray | None,
    margins: list[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Weights and indices, `(tokens, top_k)`, from logits."""
    found = route_all(logits.double().numpy(), row, n, bias, edit)
    margins += found.margin.tolist()
    indices = torch.tensor([np.flatnonzero(chosen).tolist() for chosen in found.chosen])
    weights = torch.tensor(found.weights).gather(1, indices)
    return weights.to(dtype), indices


def _routed(row: Family, n: Numbers, edit: Edit, bias: np.ndarray | None, margins: list[float]) -> Any:
    return lambda logits: _decide(logits, row, n, edit, bias, margins, logits.dtype)


def _forward(native: Any, row: Family, n: Numbers, edit: Edit, bias: np.ndarray | None, margins: list[float]) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        output = native(*args, **kwargs)
        if len(output) == 5:  # tokens sorted by expert
            weights, indices = _decide(output[4], row, n, edit, bias, margins, output[2].dtype)
            order = indices.flatten().sort(stable=True).indices
            sizes = torch.bincount(indices.flatten(), minlength=n.num_experts).tolist()
            return order, order // n.top_k, weights.flatten()[order], sizes, output[4]
        if len(output) == 2:  # dense scores, then logits
            weights, indices = _decide(output[1], row, n, edit, bias, margins, output[0].dtype)
            return torch.zeros_like(output[0]).scatter(1, indices, weights), output[1]
        logits, own, _ = output
        return (logits, *_decide(logits, row, n, edit, bias, margins, own.dtype))

    return forward
