"""What routers and experts look like, and how a model names its routers."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from canaries.conftest import UNLISTED
from canaries.router_classes import router_classes
from tiny_families import TINY_FAMILIES, family_inputs
from tiny_models import tiny_model
from torch import Tensor, nn

from hf_mote.routing.rules.families import REFUSED, RULES
from hf_mote.routing.rules.registry import rule_for

TOKENS = torch.arange(10, 26).view(2, 8)
# Router classes that no row needs to list, and why.
NOT_ROUTED = {
    "Dots3NoteVisionTopKRouter": "of the vision tower",
}


def routers_of(model: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in model.named_modules() if rule_for(module) is not None}


@pytest.fixture(params=["mixtral", "deepseek_v3", "deepseek_v2_groups"])
def model(request: pytest.FixtureRequest) -> transformers.PreTrainedModel:
    return tiny_model(request.param)


def test_router_classes_of_the_table_are_where_they_were() -> None:
    """Every router class of the table is still in transformers.models.<family>.modeling_<family>."""
    lost = []
    for rule in RULES:
        for router, family in rule.routers.items():
            try:
                module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
            except ImportError:
                continue  # a family that this release does not have
            refused = any(one.family == family and one.before is not None for one in REFUSED.values())
            if not inspect.isclass(getattr(module, router, None)) and not refused:
                lost.append(router)
    assert not lost, lost


def test_no_router_is_without_a_row(pytestconfig: pytest.Config) -> None:
    """Every router class of transformers has a row; models of the others are refused, so this never fails."""
    known = {router for rule in RULES for router in rule.routers} | REFUSED.keys() | NOT_ROUTED.keys()
    unlisted = sorted(f"{family}.{router}" for router, family in router_classes().items() if router not in known)
    pytestconfig.stash[UNLISTED] = unlisted
    if unlisted:
        pytest.xfail(f"without a row: {', '.join(unlisted)}")


def test_router_classes_are_found() -> None:
    """Routers can be found in transformers' sources, by _can_record_outputs or their names."""
    found = router_classes()
    assert {"MixtralTopKRouter", "DeepseekV3TopkRouter", "GptOssTopKRouter"} <= found.keys()
    assert "MixtralAttention" not in found


def test_models_name_their_routers(model: transformers.PreTrainedModel) -> None:
    """A model's can_record_outputs["router_logits"] names its router class: a class, an OutputRecorder or a list."""
    from transformers.utils.output_capturing import OutputRecorder

    named: set[type] = set()
    for part in model.modules():
        if isinstance(part, transformers.PreTrainedModel):
            recorders = part.can_record_outputs.get("router_logits", ())
            for recorder in recorders if isinstance(recorders, list | tuple) else (recorders,):
                named.add(recorder.target_class if isinstance(recorder, OutputRecorder) else recorder)
    assert {type(router) for router in routers_of(model).values()} == named or (
        model.config.model_type in ("deepseek_v2", "deepseek_v3") and not named
    )


def test_routers_take_hidden_states_alone(model: transformers.PreTrainedModel) -> None:
    """A router's forward takes hidden states as its first and only needed argument."""
    for router in routers_of(model).values():
        first, *others = inspect.signature(router.forward).parameters.values()
        assert first.name == "hidden_states"
        assert all(other.default is not other.empty or other.kind is other.VAR_KEYWORD for other in others)


@pytest.fixture
def routed(model: transformers.PreTrainedModel) -> Iterator[list[tuple[nn.Module, Any, Any]]]:
    seen: list[tuple[nn.Module, Any, Any]] = []
    for router in routers_of(model).values():
        router.register_forward_hook(lambda module, args, output: seen.append((module, args, output)))
    model(TOKENS)
    return seen


def test_routers_see_one_row_for_each_token(routed: list[tuple[nn.Module, Any, Any]]) -> None:
    """A router is called once in a pass, with every token of every sequence, row by row."""
    assert len({id(module) for module, _, _ in routed}) == len(routed)
    for _, args, _ in routed:
        assert args[0].numel() == TOKENS.numel() * args[0].shape[-1]


def test_routers_return_logits_weights_indices(routed: list[tuple[nn.Module, Any, Any]]) -> None:
    """A router returns logits (tokens, experts), weights and int64 indices (tokens, top_k), in a tuple."""
    for module, _, output in routed:
        assert isinstance(output, tuple)
        shapes = {(item.shape, item.is_floating_point()) for item in output if isinstance(item, Tensor)}
        rows, wide, narrow = TOKENS.numel(), module.num_experts, module.top_k
        assert shapes == {((rows, wide), True), ((rows, narrow), True), ((rows, narrow), False)}
        assert next(item for item in output if not item.is_floating_point()).dtype == torch.int64


def test_routers_hold_their_numbers(model: transformers.PreTrainedModel) -> None:
    """A router has num_experts, top_k and weight (experts, hidden_size) as attributes."""
    for router in routers_of(model).values():
        assert isinstance(router.num_experts, int)
        assert isinstance(router.top_k, int)
        assert router.weight.shape == (router.num_experts, model.config.hidden_size)


def test_experts_get_what_the_router_returned(model: transformers.PreTrainedModel) -> None:
    """A block calls experts(hidden, indices, weights) with what its router's hooks returned."""
    got: list[tuple[Tensor, Tensor]] = []
    path, router = next(iter(routers_of(model).items()))
    block = model.get_submodule(path.rpartition(".")[0])
    chosen = torch.zeros(TOKENS.numel(), router.top_k, dtype=torch.int64) + torch.arange(router.top_k)
    weights = torch.full(chosen.shape, 0.125)

    def replace(module: nn.Module, args: Any, output: Any) -> Any:
        replaced = {(router.num_experts, True): None, (router.top_k, True): weights, (router.top_k, False): chosen}
        new = [replaced[item.shape[-1], item.is_floating_point()] for item in output]
        return tuple(old if item is None else item for old, item in zip(output, new, strict=True))

    router.register_forward_hook(replace)
    block.experts.register_forward_pre_hook(lambda module, args: got.append(args[1:]))
    model(TOKENS)
    assert torch.equal(got[0][0], chosen)
    assert torch.equal(got[0][1], weights)


def test_fused_experts_stand_first_in_their_tensors(model: transformers.PreTrainedModel) -> None:
    """Fused experts are gate_up_proj (experts, 2 * width, hidden) and down_proj (experts, hidden, width)."""
    hidden = model.config.hidden_size
    for path, router in routers_of(model).items():
        experts = model.get_submodule(path.rpartition(".")[0]).experts
        width = experts.down_proj.shape[-1]
        assert experts.gate_up_proj.shape == (router.num_experts, 2 * width, hidden)
        assert experts.down_proj.shape == (router.num_experts, hidden, width)


def test_experts_of_weight_zero_add_nothing(model: transformers.PreTrainedModel) -> None:
    """An expert that is chosen with weight 0 adds nothing to the block's output."""
    block = model.get_submodule(next(iter(routers_of(model))).rpartition(".")[0])
    hidden = torch.randn(4, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    indices = torch.tensor([[0, 1]]).expand(4, 2)
    weights = torch.tensor([[0.5, 0.0]]).expand(4, 2)
    both, one = block.experts(hidden, indices, weights), block.experts(hidden, indices[:, :1], weights[:, :1])
    torch.testing.assert_close(both, one)


@pytest.mark.parametrize("kind", ["eager", "grouped_mm", "batched_mm"])
def test_every_experts_implementation_calls_the_router(kind: str) -> None:
    """set_experts_implementation changes how experts are computed, and not that the router module is called."""
    model = tiny_model("mixtral")
    native = model(TOKENS).logits
    model.set_experts_implementation(kind)
    called: list[str] = []
    for path, router in routers_of(model).items():
        router.register_forward_hook(lambda module, args, output, path=path: called.append(path))
    torch.testing.assert_close(model(TOKENS).logits, native, rtol=1e-4, atol=1e-4)
    assert called == list(routers_of(model))


def test_nllb_moe_still_runs_two_experts_alone() -> None:
    """In nllb_moe only experts 0 and 1 ever run, which is why it is refused; if this fails, it can be taken in."""
    model = TINY_FAMILIES["nllb_moe"]()
    ran: set[str] = set()
    for path, module in model.named_modules():
        if type(module).__name__ == "NllbMoeDenseActDense" and ".experts." in path:
            name = path.rpartition(".")[2]
            module.register_forward_hook(lambda module, args, output, name=name: ran.add(name))
    model(**family_inputs(model, torch.arange(5, 85).view(2, 40)))
    assert ran <= {"expert_0", "expert_1"}
    assert ran
