"""What a refused model is told: the true cause, and the one call that helps where there is one."""

from __future__ import annotations

import pytest
import torch
from routing.small_decoder import EXPERTS, WIDTH, Block, SmallDecoder
from routing_cases import nothing_registered, num_hooks  # noqa: F401
from tiny_families import TINY_FAMILIES
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from hf_mote import find_routers, register_routers
from hf_mote.errors import UnsupportedError
from hf_mote.routing.rules import registry
from hf_mote.routing.rules.families import REFUSED
from hf_mote.routing.rules.registry import refusals_here


class Router(nn.Module):
    """Softmax, top-2, by a rule that the table has."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.top_k = EXPERTS, 2
        self.weight = nn.Parameter(torch.zeros(EXPERTS, WIDTH))

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, indices = logits.float().softmax(-1).topk(self.top_k)
        return weights, indices

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        logits = hidden @ self.weight.T
        return logits, *self.decide(logits)


class Squared(Router):
    """By a rule that the table has not."""

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, indices = logits.softmax(-1).square().topk(self.top_k)
        return weights, indices


class NoLogits(Router):
    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        return self.decide(hidden @ self.weight.T)


def refused(model: nn.Module) -> str:
    with pytest.raises(UnsupportedError) as caught:
        find_routers(model)
    assert num_hooks(model) == 0
    return str(caught.value)


def test_find_routers_unlisted_router_that_one_rule_reproduces_is_offered_and_left_alone() -> None:
    model = SmallDecoder(Router)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    message = refused(model)
    assert (
        "Call hf_mote.register_routers(model): of all known rules 'softmax, top-k' alone reproduces Router" in message
    )
    assert registry._REGISTERED == {}
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert {site.rule.name for site in register_routers(model)} == {"softmax, top-k"}


def test_find_routers_gate_without_logits_is_offered_for_what_needs_none() -> None:
    assert "NoLogits returns no logits, and is accepted for recording" in refused(SmallDecoder(NoLogits))


def test_find_routers_router_that_no_rule_reproduces_is_offered_nothing() -> None:
    message = refused(SmallDecoder(Squared))
    assert "reproduces" not in message
    assert "register_routers(model) tries the known rules" in message


@pytest.mark.parametrize("act", [find_routers, register_routers])
def test_find_routers_bare_linear_for_a_router_is_named(act: object) -> None:
    """As every block of transformers 4 has it, and remote code since."""

    class Chooses(Block):
        def __init__(self, gate: nn.Module, batched: bool) -> None:
            super().__init__(gate, batched)
            del self.experts
            self.num_experts, self.top_k = EXPERTS, 2
            self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    model = SmallDecoder(lambda: nn.Linear(WIDTH, EXPERTS), block=Chooses)
    with pytest.raises(UnsupportedError, match=r"bare linear layer.*got layers\.0\.mlp\.gate, a Linear in a Chooses"):
        act(model)


def test_find_routers_model_with_experts_is_not_called_dense() -> None:
    class Hidden(Block):
        """Chooses its experts by something that is no module."""

        def __init__(self, gate: nn.Module, batched: bool) -> None:
            super().__init__(nn.Identity(), batched)

    message = refused(SmallDecoder(nn.Identity, block=Hidden))
    assert "layers.0.mlp.experts (Parameter)" in message
    assert "dense" not in message


def test_find_routers_dense_model_is_called_dense() -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    assert "A dense model has no experts to tune" in refused(LlamaForCausalLM(config))


@pytest.mark.parametrize("family", sorted(one.family for one in REFUSED.values() if one.before is not None))
def test_find_routers_family_of_a_newer_transformers_is_refused_before_that(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = (one for one in REFUSED.values() if one.family == family)
    assert one.before is not None
    model = TINY_FAMILIES[family]()
    monkeypatch.setattr(registry.transformers, "__version__", "5.0.0")
    message = refused(model)
    assert f"before transformers {one.before}, {one.reason}" in message
    assert f"Upgrade to transformers {one.before} or newer." in message
    with pytest.raises(UnsupportedError, match=f"before transformers {one.before}"):
        register_routers(model)
    monkeypatch.setattr(registry.transformers, "__version__", one.before)
    assert one not in refusals_here().values()
