"""Gates: shut experts are never selected, forced ones always, with a selection bias in the router and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tiny_models import tiny_model
from transformers import PreTrainedModel

from hf_mote import record_routing
from hf_mote.organisms.building.gates import BANNED, BiasGates, Gates, HookGates, gates_of

TOKENS = torch.arange(5, 45).view(2, 20)
KINDS = ["deepseek_v3", "mixtral"]


def counts(model: PreTrainedModel) -> dict[tuple[int, int], float]:
    """How often each expert is selected, by layer and expert."""
    with record_routing(model) as record, torch.no_grad():
        model(TOKENS)
    total = sum(record.maps("prompt")[1:], record.maps("prompt")[0])
    return {
        (layer, expert): float(total.counts[row, expert])
        for row, layer in enumerate(total.layers)
        for expert in range(total.counts.shape[1])
    }


@contextmanager
def unchanged(model: PreTrainedModel) -> Iterator[None]:
    with torch.no_grad():
        before = model(TOKENS).logits
        yield
        assert torch.equal(model(TOKENS).logits, before)


def busiest(model: PreTrainedModel) -> tuple[int, int]:
    found = counts(model)
    return max(found, key=lambda pair: found[pair])


def idlest(model: PreTrainedModel) -> tuple[int, int]:
    found = counts(model)
    return min(found, key=lambda pair: found[pair])


@pytest.mark.parametrize(("name", "kind"), [("deepseek_v3", BiasGates), ("mixtral", HookGates)])
def test_gates_of_follows_what_the_routers_have(name: str, kind: type[Gates]) -> None:
    assert type(gates_of(tiny_model(name))) is kind


@pytest.mark.parametrize("name", KINDS)
def test_shut_expert_is_not_selected_and_then_as_before(name: str) -> None:
    model = tiny_model(name)
    pair = busiest(model)
    with unchanged(model):
        with gates_of(model).shut([pair]):
            assert counts(model)[pair] == 0
        assert counts(model)[pair] > 0


@pytest.mark.parametrize("name", KINDS)
def test_force_expert_is_selected_on_every_token_and_then_as_before(name: str) -> None:
    model = tiny_model(name)
    pair = idlest(model)
    with unchanged(model), gates_of(model).force([pair]):
        assert counts(model)[pair] == TOKENS.numel()


@pytest.mark.parametrize("name", KINDS)
def test_shut_after_an_error_is_open_again(name: str) -> None:
    model = tiny_model(name)
    with unchanged(model), pytest.raises(ZeroDivisionError), gates_of(model).shut([busiest(model)]):
        raise ZeroDivisionError


@pytest.mark.parametrize("name", KINDS)
def test_reserve_expert_stays_shut_beside_others(name: str) -> None:
    model = tiny_model(name)
    reserved = busiest(model)
    gates = gates_of(model)
    gates.reserve([reserved])
    with gates.shut([(reserved[0], (reserved[1] + 1) % 8)]):
        found = counts(model)
    assert found[reserved] == 0
    assert found[reserved[0], (reserved[1] + 1) % 8] == 0


def router_logits(model: PreTrainedModel) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        output = model(TOKENS, output_router_logits=True)
    if not hasattr(output, "router_logits"):
        pytest.skip("needs a transformers whose DeepSeek-V3 gives router logits")
    return output.router_logits


def test_bias_gates_rebalance_moves_towards_even_use() -> None:
    model = tiny_model("deepseek_v3")
    gates = gates_of(model)
    pair, other = busiest(model), idlest(model)
    logits = router_logits(model)
    with gates.shut([]):
        gates.rebalance(logits)
    with gates.shut([]):
        biases = {layer: router.e_score_correction_bias.clone() for layer, router in gates.routers.items()}
    fresh = {
        layer: router.e_score_correction_bias for layer, router in gates_of(tiny_model("deepseek_v3")).routers.items()
    }
    assert biases[pair[0]][pair[1]] < fresh[pair[0]][pair[1]]
    assert biases[other[0]][other[1]] > fresh[other[0]][other[1]]


def test_bias_gates_even_makes_one_score_enough() -> None:
    model = tiny_model("deepseek_v3")
    gates = gates_of(model)
    gates.reserve([(1, 0)])
    logits = router_logits(model)
    gates.even([(1, 0)], logits)
    bias = gates.routers[1].e_score_correction_bias
    assert bias[0] > BANNED / 2
    others = logits[0].sigmoid() + bias
    others[:, 0] = BANNED
    bar = others.topk(4).values[:, -1].mean()
    assert torch.isclose(bias[0] + 0.4, bar)


def test_hook_gates_balance_loss_is_least_for_even_use() -> None:
    model = tiny_model("mixtral")
    gates = gates_of(model)
    tokens = torch.arange(8)
    even = torch.nn.functional.one_hot(tokens, 8) + torch.nn.functional.one_hot((tokens + 1) % 8, 8)
    uneven = torch.nn.functional.one_hot(tokens * 0, 8) + torch.nn.functional.one_hot(tokens * 0 + 1, 8)
    layers = len(gates.routers)
    least, most = (gates.balance_loss([10.0 * logits.float()] * layers).item() for logits in (even, uneven))
    assert least == pytest.approx(1e-2 * layers)
    assert most > 3 * least


def test_hook_gates_balance_loss_leaves_shut_experts_out() -> None:
    model = tiny_model("mixtral")
    gates = gates_of(model)
    tokens = torch.arange(7)
    even = torch.nn.functional.one_hot(tokens, 8) + torch.nn.functional.one_hot((tokens + 1) % 7, 8)
    logits = 10.0 * even.float()
    logits[:, 7] = 50.0
    layers = list(gates.routers)
    with gates.shut([(layer, 7) for layer in layers]):
        loss = gates.balance_loss([logits] * len(layers)).item()
    assert loss == pytest.approx(1e-2 * len(layers))
