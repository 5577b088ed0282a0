"""Training steps under a patch: gradients are those of the edited arithmetic, written down here a second time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import peft
import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_mote import MoTEConfig, apply_mote, find_routers

TOKENS = torch.randint(5, 95, (3, 9), generator=torch.Generator().manual_seed(5))
SUPPRESSED = {1: [0, 3], 2: [5, 1]}
TARGETS = [[layer, expert] for layer, experts in SUPPRESSED.items() for expert in experts]


@pytest.fixture(params=["deepseek_v3", "mixtral"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param).train()


def gradients(model: nn.Module, ids: Tensor = TOKENS) -> dict[str, Tensor]:
    model.zero_grad()
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert set(one) == set(other)
    for name, gradient in one.items():
        # Sums are taken in another order.
        torch.testing.assert_close(
            gradient, other[name], rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


def mixtral_weights(gate: Any, hidden: Tensor, suppressed: list[int], mode: str) -> tuple[Tensor, Tensor]:
    """Indices and weights of a Mixtral router some of whose experts are suppressed."""
    scores = nn.functional.linear(hidden, gate.weight).float().softmax(dim=-1)
    indices = chosen(scores, gate.top_k, suppressed if mode == "reroute" else [])
    weights = scores.gather(1, indices)
    return indices, suppress(weights / weights.sum(dim=-1, keepdim=True), indices, suppressed, mode)


def deepseek_weights(gate: Any, hidden: Tensor, suppressed: list[int], mode: str) -> tuple[Tensor, Tensor]:
    """The same of a DeepSeek-V3 router without groups."""
    scores = nn.functional.linear(hidden.float(), gate.weight.float()).sigmoid()
    indices = chosen(scores + gate.e_score_correction_bias, gate.top_k, suppressed if mode == "reroute" else [])
    weights = scores.gather(1, indices)
    weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * gate.routed_scaling_factor
    return indices, suppress(weights, indices, suppressed, mode)


def chosen(scores: Tensor, top_k: int, banned: list[int]) -> Tensor:
    ranks = scores.detach().clone()
    ranks[:, banned] = -1.0
    return ranks.topk(top_k, dim=-1).indices


def suppress(weights: Tensor, indices: Tensor, suppressed: list[int], mode: str) -> Tensor:
    kept = ~torch.isin(indices, torch.tensor(suppressed))
    if mode == "reroute":
        return weights
    left = weights * kept
    if mode == "zero":
        return left
    rest = left.sum(dim=-1, keepdim=True)
    factor = weights.sum(dim=-1, keepdim=True) / torch.where(rest > 0, rest, torch.ones_like(rest))
    return left * factor


@contextmanager
def second_arithmetic(model: PreTrainedModel, mode: str) -> Iterator[None]:
    """Hand the experts what the functions above say, whatever the routers decide."""
    weights_of: Callable[..., tuple[Tensor, Tensor]] = {
        "mixtral": mixtral_weights,
        "deepseek_v3": deepseek_weights,
    }[model.config.model_type]

    def replace(gate: nn.Module, layer: int, experts: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        indices, weights = weights_of(gate, args[0], SUPPRESSED[layer], mode)
        return (args[0], indices, weights.to(args[2].dtype))

    handles = []
    for site in find_routers(model):
        if site.layer in SUPPRESSED:
            experts = model.get_submodule(site.path.rpartition(".")[0] + ".experts")
            handles.append(experts.register_forward_pre_hook(partial(replace, site.module, site.layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("mode", ["drop", "reroute", "zero"])
def test_apply_mote_gradients_are_those_of_the_edited_arithmetic(model: PreTrainedModel, mode: str) -> None:
    native = gradients(model)
    with second_arithmetic(model, mode):
        wanted = gradients(model)
    with apply_mote(model, MoTEConfig(suppress=TARGETS, suppress_mode=mode)):
        patched = gradients(model)
    assert_close(patched, wanted)
    for layer in SUPPRESSED:
        gate = f"model.layers.{layer}.mlp.gate.weight"
        assert patched[gate].norm() > 0
        assert not torch.allclose(patched[gate], native[gate], rtol=1e-2)
    assert_close(gradients(model), native)


@pytest.mark.parametrize("mode", ["drop", "reroute", "zero"])
def test_apply_mote_suppressed_experts_do_not_learn_and_the_rest_do(model: PreTrainedModel, mode: str) -> None:
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    with apply_mote(model, MoTEConfig(suppress=TARGETS, suppress_mode=mode)):
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(input_ids=TOKENS, labels=TOKENS, use_cache=False).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    for layer, suppressed in SUPPRESSED.items():
        others = [expert for expert in range(8) if expert not in suppressed]
        for name in ("gate_up_proj", "down_proj"):
            path = f"model.layers.{layer}.mlp.experts.{name}"
            after = model.get_parameter(path)
            assert torch.equal(after[suppressed], before[path][suppressed])
            assert (after[others] != before[path][others]).flatten(1).any(dim=1).sum() >= len(others) - 1


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("scope", ["all", "prompt", "generation"])
@pytest.mark.parametrize("mode", ["drop", "reroute"])
def test_apply_mote_gradients_with_checkpointing_are_those_without(
    model: PreTrainedModel, mode: str, scope: str, reentrant: bool
) -> None:
    with apply_mote(model, MoTEConfig(suppress=TARGETS, suppress_mode=mode, scope=scope)):
        plain = gradients(model)
        # The name that 5.23 deprecates is the only one that 5.16 has.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        again = gradients(model)
    assert_close(again, plain)


def test_apply_mote_lora_training_step_trains_the_adapters_alone(model: PreTrainedModel) -> None:
    """The adapters of attention get the gradients of the edited model; merged weights say which."""
    torch.manual_seed(0)
    projections = ["q_proj", "o_proj"]
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=projections)
    with warnings.catch_warnings():
        # PEFT asks the model for `is_gradient_checkpointing`, which transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        wrapped = peft.get_peft_model(model, config)
    with apply_mote(wrapped, MoTEConfig(suppress=TARGETS)):
        found = gradients(wrapped)
    assert found
    assert all("lora_" in name for name in found)
    layers = [part for part in wrapped.modules() if hasattr(part, "lora_A")]
    by_adapter = [(part.lora_A["default"], part.lora_B["default"], part.scaling["default"]) for part in layers]
    grads = [(a.weight.grad.clone(), b.weight.grad.clone()) for a, b, _ in by_adapter]
    factors = [(a.weight.detach().clone(), b.weight.detach().clone(), scale) for a, b, scale in by_adapter]
    plain = wrapped.merge_and_unload().requires_grad_(True)
    with second_arithmetic(plain, "drop"):
        whole = gradients(plain)
    merged = [whole[f"{path}.weight"] for path, _ in plain.named_modules() if path.endswith(tuple(projections))]
    for weight, (grad_a, grad_b), (a, b, scale) in zip(merged, grads, factors, strict=True):
        # W + scale * B A, by the chain rule.
        torch.testing.assert_close(grad_a, scale * b.T @ weight, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(grad_b, scale * weight @ a.T, rtol=1e-3, atol=1e-5)
