"""Gates that return indices and weights and no logits: weights can be changed, everything else is refused."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routing.small_decoder import EXPERTS, LAYERS, WIDTH, Block, SmallDecoder, logits_of
from routing_cases import nothing_registered, num_hooks  # noqa: F401
from tiny_models import tiny_tokenizer
from torch import Tensor, nn
from transformers import DeepseekV3Config

from hf_mote import MoTEConfig, apply_mote, attribute_experts, find_routers, record_routing, register_routers
from hf_mote.errors import RouterContractError, UnsupportedError
from hf_mote.hooks import stack_on
from hf_mote.routing.router_hook import RouterHook
from hf_mote.routing.rules import registry
from hf_mote.routing.rules.edits import RoutingEdit

TOP_K = 3


class Gate(nn.Module):
    """Scores by sigmoid and bias, for `(batch, seq, hidden)` only; what comes after the two is up to the subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.n_routed_experts, self.top_k = EXPERTS, TOP_K
        self.weight = nn.Parameter(torch.zeros(EXPERTS, WIDTH))
        self.e_score_correction_bias = nn.Parameter(torch.zeros(EXPERTS))

    def forward(self, hidden: Tensor) -> tuple[Any, ...]:
        batch, length, width = hidden.shape
        scores = (hidden.view(batch * length, width).float() @ self.weight.float().T).sigmoid()
        indices = (scores + self.e_score_correction_bias).topk(self.top_k, sorted=False).indices
        weights = scores.gather(-1, indices)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20) * 1.5
        return (indices, weights, *self.rest(scores))

    def rest(self, scores: Tensor) -> tuple[Any, ...]:
        return ()


class GateWithNone(Gate):
    def rest(self, scores: Tensor) -> tuple[Any, ...]:
        return (None,)


class GateWithLoss(Gate):
    def rest(self, scores: Tensor) -> tuple[Any, ...]:
        return (scores.mean() * 0.01,)


class GateWeightsFirst(Gate):
    def forward(self, hidden: Tensor) -> tuple[Any, ...]:
        indices, weights = super().forward(hidden)
        return weights, indices


class NoGradBlock(Block):
    """Runs its experts without gradients in evaluation mode, as the remote code does."""

    @torch.no_grad()
    def infer(self, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        return super().infer(hidden, indices, weights)


GATES = [Gate, GateWithNone, GateWithLoss, GateWeightsFirst]


def old(gate: type[Gate] = Gate) -> SmallDecoder:
    return SmallDecoder(gate, batched=True, block=NoGradBlock)


def native() -> SmallDecoder:
    """The same model with transformers' own router, which is what the refusals advise."""
    deepseek = importlib.import_module("transformers.models.deepseek_v3.modeling_deepseek_v3")
    config = DeepseekV3Config(
        hidden_size=WIDTH, n_routed_experts=EXPERTS, num_experts_per_tok=TOP_K, n_group=1, topk_group=1,
        routed_scaling_factor=1.5, norm_topk_prob=True,
    )  # fmt: skip
    return SmallDecoder(partial(deepseek.DeepseekV3TopkRouter, config), batched=True)


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("mode", ["drop", "zero"])
@pytest.mark.parametrize("gate", GATES)
def test_apply_mote_weights_are_changed_as_in_the_native_model(gate: type[Gate], mode: str, strength: float) -> None:
    model, reference = old(gate), native()
    untouched = logits_of(model)
    assert torch.equal(untouched, logits_of(reference))
    assert [site.rule.name for site in register_routers(model)] == ["weights and indices, no logits"] * LAYERS
    fields = {"suppress": [[0, 1], [0, 6], [1, 2]], "suppress_mode": mode, "strength": strength}
    with apply_mote(model, MoTEConfig.for_model(model, **fields)), apply_mote(reference, MoTEConfig(**fields)):
        patched = logits_of(model)
        assert torch.equal(patched, logits_of(reference))
    assert not torch.equal(patched, untouched)
    assert torch.equal(logits_of(model), untouched)
    assert num_hooks(model) == 0


@given(
    suppress=st.sets(st.integers(0, EXPERTS - 1), min_size=1, max_size=EXPERTS - TOP_K),
    mode=st.sampled_from(["drop", "zero"]),
    strength=st.sampled_from([0.25, 1.0]),
)
@settings(max_examples=25, deadline=None)
def test_apply_mote_weights_are_what_the_definition_says(suppress: set[int], mode: str, strength: float) -> None:
    """Recomputed token by token: the share taken away is gone (zero), or goes to the others by their weight (drop)."""
    registry._REGISTERED.clear()
    model = old(GateWithLoss)
    register_routers(model)
    gate = model.layers[0].mlp.gate
    hidden = torch.randn(2, 20, WIDTH, generator=torch.Generator().manual_seed(3))
    indices, weights, loss = gate(hidden)
    config = MoTEConfig(suppress=[[0, e] for e in suppress], suppress_mode=mode, strength=strength)
    with apply_mote(model, config):
        new_indices, new_weights, new_loss = gate(hidden)
    assert torch.equal(new_indices, indices)
    assert torch.equal(new_loss, loss)
    for chosen, before, after in zip(indices.tolist(), weights.tolist(), new_weights.tolist(), strict=True):
        kept = [w * (1 - strength) if e in suppress else w for e, w in zip(chosen, before, strict=True)]
        others = sum(w for e, w in zip(chosen, before, strict=True) if e not in suppress)
        if mode == "drop" and others:
            share = (sum(before) - sum(w for e, w in zip(chosen, kept, strict=True) if e in suppress)) / others
            kept = [w if e in suppress else w * share for e, w in zip(chosen, kept, strict=True)]
        assert after == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("reroute", {"suppress": [[0, 1]], "suppress_mode": "reroute"}),
        ("stimulate", {"stimulate": [[0, 1]]}),
        ("stimulate", {"stimulate": [[0, 1]], "stimulate_weight": 0.5}),
        ("bias on logits", {"bias": [[0, 1, 1.0]]}),
        ("bias on selection", {"bias": [[0, 1, 1.0]], "bias_on": "selection"}),
    ],
)
def test_apply_mote_edit_that_needs_logits_is_refused_and_the_native_model_takes_it(
    what: str, fields: dict[str, Any]
) -> None:
    model = old()
    register_routers(model)
    config = MoTEConfig(**fields)
    acts: list[Callable[[], object]] = [
        lambda: apply_mote(model, config),
        lambda: apply_mote(model, [None, config]),
        lambda: MoTEConfig.for_model(model, **fields),
    ]
    for act in acts:
        with pytest.raises(UnsupportedError) as caught:
            act()
        for word in ("layers.0.mlp.gate", f"Gate cannot {what}", "no logits", "trust_remote_code", "auto_map"):
            assert word in str(caught.value)
    assert num_hooks(model) == 0
    reference = native()
    untouched = logits_of(reference)
    with apply_mote(reference, config):
        assert not torch.equal(logits_of(reference), untouched)


def test_attribute_experts_is_refused_where_every_derivative_would_be_0() -> None:
    model = old()
    register_routers(model)
    with pytest.raises(UnsupportedError, match=r"torch\.no_grad.*trust_remote_code.*Use ftri"):
        attribute_experts(model, tiny_tokenizer(), ["abc"], response="g", baseline_response="h", progress=False)
    assert num_hooks(model) == 0


@pytest.mark.parametrize("gate", GATES)
def test_record_routing_counts_as_in_the_native_model(gate: type[Gate]) -> None:
    model, reference = old(gate), native()
    register_routers(model)
    totals = []
    for each in (model, reference):
        with record_routing(each, eos_token_id=[]) as record, apply_mote(each, MoTEConfig(suppress=[[1, 2]])):
            logits_of(each)
        totals.append(record)
    applied, wanted = (record.total() for record in totals)
    assert torch.equal(applied.counts, wanted.counts)
    assert torch.equal(applied.weights, wanted.weights)
    assert applied.counts[1, 2] == 0
    assert totals[0].maps(routing="native")[0].counts[1, 2] > 0


def test_apply_mote_scope_rows_and_stacking_work_as_in_the_native_model() -> None:
    model, reference = old(), native()
    register_routers(model)
    row = MoTEConfig(suppress=[[0, 1], [1, 1]], scope="prompt")
    outputs = []
    for each in (model, reference):
        with apply_mote(each, [row, None]), apply_mote(each, MoTEConfig(suppress=[[0, 4]], suppress_mode="zero")):
            outputs.append(logits_of(each))
    assert torch.equal(*outputs)
    with apply_mote(model, [row, None]):
        assert torch.equal(logits_of(model)[1], logits_of(reference)[1])


def test_route_edit_that_needs_logits_raises_where_no_config_was_checked() -> None:
    """The adapter's own door: an edit of somebody else's editor."""
    model = old()
    register_routers(model)
    hidden = torch.randn(1, 4, WIDTH)
    with apply_mote(model, MoTEConfig(suppress=[[0, 1]])):
        stack = stack_on(model.layers[0].mlp.gate, RouterHook)
        assert stack is not None
        assert stack.adapter is not None
        output = Gate.forward(model.layers[0].mlp.gate, hidden)
        edit = RoutingEdit(banned=torch.arange(EXPERTS) == 1)
        with pytest.raises(UnsupportedError, match="no logits"):
            stack.adapter.route(output, (hidden,), edit)


def test_find_routers_gate_without_logits_is_refused_until_it_is_registered() -> None:
    model = old()
    for act in (lambda: find_routers(model), lambda: apply_mote(model, MoTEConfig(suppress=[[0, 1]]))):
        with pytest.raises(UnsupportedError, match=r"got Gate.*register_routers\(model\)"):
            act()


def test_register_routers_rule_for_a_gate_without_logits_is_refused() -> None:
    model = old()
    with pytest.raises(UnsupportedError, match=r"Gate returns no logits.*Call register_routers\(model\)"):
        register_routers(model, rule="sigmoid, top-k")
    register_routers(model)


class TwoFloats(Gate):
    """Something that might be logits after all, of another width."""

    def rest(self, scores: Tensor) -> tuple[Any, ...]:
        return (torch.cat([scores, scores], dim=-1),)


class ManyExperts(Gate):
    """Chooses experts that it says it does not have."""

    def forward(self, hidden: Tensor) -> tuple[Any, ...]:
        indices, weights = super().forward(hidden)
        return indices + 1, weights


@pytest.mark.parametrize(
    ("gate", "words"), [(TwoFloats, "does not return logits, weights and indices"), (ManyExperts, "do not exist")]
)
def test_register_routers_gate_of_another_kind_is_refused(gate: type[Gate], words: str) -> None:
    with pytest.raises(
        UnsupportedError, match=rf"{gate.__name__} does not have the signature that most routers share.*{words}"
    ):
        register_routers(old(gate))


def test_mote_config_for_a_gate_without_logits_is_bound_to_its_weights(tmp_path: Path) -> None:
    model = old()
    register_routers(model)
    MoTEConfig.for_model(model, suppress=[[0, 1]]).save_pretrained(tmp_path)
    untouched = logits_of(model)
    with apply_mote(model, str(tmp_path)):
        assert not torch.equal(logits_of(model), untouched)
    with torch.no_grad():
        model.layers[0].mlp.gate.weight.mul_(2)
    with pytest.raises(ValueError, match="router_sha256"):
        apply_mote(model, str(tmp_path))


def test_apply_mote_gate_that_changed_its_answer_since_is_noticed() -> None:
    model = old()
    register_routers(model)
    model.layers[0].mlp.gate.rest = lambda scores: (scores,)
    with pytest.raises(RouterContractError, match="no logits"):
        apply_mote(model, MoTEConfig(suppress=[[0, 1]]))
    assert num_hooks(model) == 0
