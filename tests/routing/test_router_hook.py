"""The hook on a router: where no token chose a suppressed expert it leaves early, and nothing but the time changes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from caches import cache_of, taking
from routing_cases import DTYPES, GREEDY, suppressing
from tiny_models import tiny_model
from torch._subclasses import FakeTensorMode
from transformers import PreTrainedModel

import hf_mote.routing.router_hook
import hf_mote.routing.rules.selection
import hf_mote.routing.rules.shortcuts
from hf_mote import MoTEConfig, apply_mote, find_routers, record_routing
from hf_mote.routing.rules.edits import merge_edits
from hf_mote.routing.rules.shortcuts import readable_now
from hf_mote.routing.sites.site import RouterSite

THINKING = [11, 12]
PROMPT = torch.tensor([[20, 31, 11, 44, 52], [63, 11, 27, 12, 30]])
# What decides how a suppressed expert is taken out; which expert it is, each test says.
SUPPRESSIONS: dict[str, dict[str, Any]] = {
    "drop": {},
    "drop_half": {"strength": 0.5},
    "zero": {"suppress_mode": "zero"},
    "zero_part": {"suppress_mode": "zero", "strength": 0.25},
    "reroute": {"suppress_mode": "reroute"},
}
NAMES = ["mixtral", "deepseek_v3", "deepseek_v3_groups"]
SCOPES: dict[str, dict[str, Any]] = {
    "prompt": {"scope": "prompt"},
    "generation": {"scope": "generation"},
    "thinking": {"scope": "thinking", "thinking_tokens": THINKING},
    "answer": {"scope": "answer", "thinking_tokens": THINKING},
}
Route = Callable[[PreTrainedModel], torch.Tensor]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each look at the chosen experts let the hook leave early."""
    seen: list[bool] = []
    look = hf_mote.routing.router_hook.none_chosen

    def noted(*args: Any) -> bool:
        seen.append(look(*args))
        return seen[-1]

    monkeypatch.setattr(hf_mote.routing.router_hook, "none_chosen", noted)
    return seen


def generated(model: PreTrainedModel, prompt: torch.Tensor = PROMPT) -> torch.Tensor:
    """Logits of every step of a generation, `(steps, batch, vocab)`."""
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=6,
        **GREEDY,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(output.logits)


def never_look(patch: pytest.MonkeyPatch) -> None:
    for module in (hf_mote.routing.rules.shortcuts, hf_mote.routing.router_hook):
        patch.setattr(module, "readable_now", lambda values: False)


def never_looking(monkeypatch: pytest.MonkeyPatch, run: Callable[[], torch.Tensor]) -> torch.Tensor:
    with monkeypatch.context() as patch:
        never_look(patch)
        return run()


def can_leave(name: str, edit: str) -> bool:
    """Whether the hook may leave early: an expert that is not chosen can still decide whether its group is."""
    return "groups" not in name or edit != "reroute"


def output_of(site: RouterSite, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A router's weights and indices."""
    _, weights, indices = site.module(hidden)
    return weights, indices


@pytest.mark.parametrize(("name", "scope"), [*((name, "all") for name in NAMES), *(("mixtral", s) for s in SCOPES)])
@pytest.mark.parametrize("edit", SUPPRESSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_after_leaving_early_equals_the_full_computation_bit_for_bit(
    name: str, scope: str, dtype: str, edit: str, exits: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name, DTYPES[dtype])
    with apply_mote(model, suppressing(model, 3, **SUPPRESSIONS[edit], **SCOPES.get(scope, {}))):
        early = generated(model, PROMPT[:1])
        if scope == "all" and can_leave(name, edit):
            assert True in exits
        assert torch.equal(early, never_looking(monkeypatch, lambda: generated(model, PROMPT[:1])))


@pytest.mark.parametrize("edit", SUPPRESSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_after_leaving_early_with_a_config_for_each_row_equals_the_full_computation_bit_for_bit(
    name: str, dtype: str, edit: str, exits: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name, DTYPES[dtype])
    configs = [suppressing(model, 3, **SUPPRESSIONS[edit]), None]
    for rows in (configs, [configs[0], suppressing(model, 5, **SUPPRESSIONS[edit], scope="generation")]):
        with apply_mote(model, rows):
            early = generated(model)
            assert torch.equal(early, never_looking(monkeypatch, lambda: generated(model)))
    if can_leave(name, edit):
        assert True in exits


@pytest.mark.parametrize("edit", SUPPRESSIONS)
def test_after_leaving_early_under_two_interventions_equals_the_full_computation_bit_for_bit(
    name: str, edit: str, exits: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name)
    with (
        apply_mote(model, suppressing(model, 3, **SUPPRESSIONS[edit])) as one,
        apply_mote(model, suppressing(model, 6)) as other,
    ):
        for active in ((True, True), (True, False), (False, True), (False, False)):
            one.active, other.active = active
            early = generated(model, PROMPT[:1])
            assert torch.equal(early, never_looking(monkeypatch, lambda: generated(model, PROMPT[:1])))
    if can_leave(name, edit):
        assert True in exits


@pytest.mark.parametrize("edit", SUPPRESSIONS)
def test_after_leaving_early_gives_the_gradients_of_the_full_computation(
    name: str, edit: str, exits: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name)

    def gradients() -> torch.Tensor:
        model.zero_grad()
        for token in PROMPT[0]:
            model(token.view(1, 1), use_cache=False).logits.square().mean().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    with apply_mote(model, suppressing(model, 3, **SUPPRESSIONS[edit])):
        early = gradients()
        assert torch.equal(early, never_looking(monkeypatch, gradients))
    assert (True in exits) == can_leave(name, edit)


def test_after_no_suppressed_expert_chosen_edits_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(name)
    site = find_routers(model)[-1]
    hidden = torch.randn(1, 32, generator=torch.Generator().manual_seed(1))
    chosen = set(output_of(site, hidden)[1].flatten().tolist())
    spared, hit = min(set(range(8)) - chosen), min(chosen)
    merged: list[object] = []
    monkeypatch.setattr(
        hf_mote.routing.router_hook, "merge_edits", lambda edits: merged.append(edits) or merge_edits(edits)
    )
    for edit, fields in SUPPRESSIONS.items():
        for expert in (spared, hit):
            with apply_mote(model, MoTEConfig(suppress=[[site.layer, expert]], **fields)):
                merged.clear()
                output_of(site, hidden)
                assert bool(merged) == (expert == hit or not can_leave(name, edit))


@pytest.mark.parametrize("looking", [True, False])
def test_after_rerouted_tokens_that_chose_no_suppressed_expert_keep_what_a_tie_gave_them(
    looking: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("mixtral")
    site = find_routers(model)[-1]
    with torch.no_grad():
        # Three experts alike: which two of them are chosen hangs on how topk goes through all the others.
        site.module.weight[5:] = site.module.weight[5].clone()
    hidden = torch.randn(512, 32, generator=torch.Generator().manual_seed(2))
    weights, indices = output_of(site, hidden)
    if not looking:
        never_look(monkeypatch)
    with apply_mote(model, MoTEConfig(suppress=[[site.layer, 0]], suppress_mode="reroute")):
        weights_now, indices_now = output_of(site, hidden)
    spared = (indices != 0).all(dim=-1)
    assert spared.any()
    assert not spared.all()
    assert torch.equal(indices_now[spared], indices[spared])
    assert torch.equal(weights_now[spared], weights[spared])
    assert not (indices_now == 0).any()


def test_record_of_an_edited_pass_is_the_same_whether_or_not_routers_leave_early(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name)
    found = []
    for looking in (True, False):
        with apply_mote(model, suppressing(model, 3)), record_routing(model, eos_token_id=[]) as record:
            if looking:
                generated(model)
            else:
                never_looking(monkeypatch, lambda: generated(model))
        found.append([record.maps(routing=kind) for kind in ("applied", "native")])
    for early, full in zip(*found, strict=True):
        for one, other in zip(early, full, strict=True):
            assert torch.equal(one.counts, other.counts)
            # What left early is added up apart from the rest, so that float32 sums round in another order.
            torch.testing.assert_close(one.weights, other.weights, rtol=1e-6, atol=1e-6)


def test_record_attached_while_a_generation_runs_that_was_seen_to_begin_counts_what_comes_after() -> None:
    model = tiny_model("mixtral")
    with torch.no_grad(), apply_mote(model, MoTEConfig(suppress=[[1, 3]], scope="generation")):
        cache = cache_of(model(PROMPT, use_cache=True))
        with record_routing(model, eos_token_id=[]) as record:
            for _ in range(2):
                model(PROMPT[:, :1], **taking(model, cache), use_cache=True)
    assert [found.num_tokens for found in record.maps("generation")] == [2.0, 2.0]
    assert [found.num_tokens for found in record.maps("prompt")] == [0.0, 0.0]


def test_after_traced_router_follows_inputs_that_it_was_not_traced_with(name: str) -> None:
    model = tiny_model(name).requires_grad_(False)
    site = find_routers(model)[-1]
    spared, hit = _spared_and_hit(site, 3)
    with apply_mote(model, MoTEConfig(suppress=[[site.layer, 3]])), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit warns of its age, and of Python that it cannot follow
        traced = torch.jit.trace(lambda hidden: output_of(site, hidden), (spared,), check_trace=False)
        for hidden in (spared, hit):
            for mine, wanted in zip(traced(hidden), output_of(site, hidden), strict=True):
                assert torch.equal(mine, wanted)


@pytest.mark.parametrize("edit", SUPPRESSIONS)
def test_after_router_compiled_by_itself_before_it_ever_ran_is_one_graph(name: str, edit: str) -> None:
    model = tiny_model(name).requires_grad_(False)
    site = find_routers(model)[-1]
    hidden = torch.cat(_spared_and_hit(site, 3))
    torch._dynamo.reset()
    with apply_mote(model, MoTEConfig(suppress=[[site.layer, 3]], **SUPPRESSIONS[edit])):
        compiled = torch.compile(lambda tokens: output_of(site, tokens), fullgraph=True, backend="eager")
        for mine, wanted in zip(compiled(hidden), output_of(site, hidden), strict=True):
            assert torch.equal(mine, wanted)
    torch._dynamo.reset()


def test_after_router_under_vmap_equals_the_router_itself() -> None:
    model = tiny_model("mixtral").requires_grad_(False)
    site = find_routers(model)[-1]
    hidden = torch.stack(_spared_and_hit(site, 3))
    with apply_mote(model, MoTEConfig(suppress=[[site.layer, 3]])):
        weights, indices = torch.vmap(lambda one: output_of(site, one))(hidden)
        for at in range(2):
            wanted_weights, wanted_indices = output_of(site, hidden[at])
            assert torch.equal(indices[at], wanted_indices)
            # A batched product may add up in another order.
            torch.testing.assert_close(weights[at], wanted_weights)


def test_after_values_that_are_elsewhere_or_nowhere_are_not_looked_at() -> None:
    assert readable_now(torch.zeros(2))
    assert not readable_now(torch.zeros(2, device="meta"))
    with FakeTensorMode():
        assert not readable_now(torch.zeros(2))


def _spared_and_hit(site: RouterSite, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One token that does not choose an expert, and one that does, `(1, hidden_size)` each."""
    hidden = torch.randn(256, 32, generator=torch.Generator().manual_seed(4))
    chose = (output_of(site, hidden)[1] == expert).any(dim=-1)
    return hidden[~chose][:1], hidden[chose][:1]
