"""Every family of the table on a live model: identity, edits against the reference, scopes, caches, refusals."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from caches import cache_of, taking
from routing.family_reference import FAMILIES, SUFFICIENT_MARGIN, Edit, RoutedTokens, edit_at, numbers_of, route_all
from routing_cases import (
    COMMON_EDITS,
    DTYPES,
    GREEDY,
    dense,
    fields_at,
    no_gradients,  # noqa: F401
    num_hooks,
    observe_experts,
)
from tiny_models import TINY_MODELS, tiny_model
from transformers import PreTrainedModel

from hf_mote import MoTEConfig, apply_mote, find_routers, record_routing
from hf_mote.errors import HFMoTEError, LivenessError, ModelMismatchError, RouterContractError, UnsupportedError
from hf_mote.routing.sites.self_test import self_test

MODELS = [(name, dtype) for name in TINY_MODELS for dtype in DTYPES]
PROMPT = torch.randint(5, 95, (2, 12), generator=torch.Generator().manual_seed(3))

# Every model here takes these. With 1 and 6 rerouted away, groups of "deepseek_v2_groups" would have too few experts.
EDITS_FOR_ALL: dict[str, dict[str, Any]] = {
    **COMMON_EDITS,
    "reroute": {"suppress": [7], "suppress_mode": "reroute"},
    "zero_part": {"suppress": [1, 6], "suppress_mode": "zero", "strength": 0.25},
    "own": {"stimulate": [2, 7]},
    "own_tripled": {"stimulate": [2], "strength": 3.0},
    "max": {"stimulate": [2, 7], "stimulate_weight": "max"},
    "number_half": {"stimulate": [2], "stimulate_weight": 0.7, "strength": 0.5},
    "bias_logits_double": {"bias": [(0, 1.5), (5, -2.0)], "strength": 2.0},
    "bias_selection": {"bias": [(0, 0.3), (5, 0.1)], "bias_on": "selection"},
    "drop_own": {"suppress": [1], "stimulate": [2]},
    "drop_max": {"suppress": [1], "stimulate": [2], "stimulate_weight": "max"},
    "zero_own": {"suppress": [1], "stimulate": [2], "suppress_mode": "zero"},
    "reroute_own": {"suppress": [1], "stimulate": [2], "suppress_mode": "reroute"},
    "gain": {"gain": [(1, 2.5), (6, 0.0)]},
    "gain_part": {"gain": [(1, 3.0), (6, 0.0)], "strength": 0.25},
    "gain_reroute": {"suppress": [7], "suppress_mode": "reroute", "gain": [(1, 2.5), (6, 0.5)]},
    "gain_own": {"stimulate": [2], "gain": [(1, 0.5), (6, 4.0)]},
    "all_three": {"suppress": [1], "stimulate": [2], "bias": [(0, 1.0)], "suppress_mode": "reroute"},
}


@pytest.fixture(params=MODELS, ids=lambda value: "-".join(value))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    name, dtype = request.param
    return tiny_model(name, DTYPES[dtype])


@pytest.fixture(params=TINY_MODELS)
def model32(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture(params=["deepseek_v2_groups", "mixtral"])
def one_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """For what does not depend on the family."""
    return tiny_model(request.param)


def layers_of(model: PreTrainedModel) -> list[int]:
    return [site.layer for site in find_routers(model)]


def routed(model: PreTrainedModel, logits: np.ndarray, bias: np.ndarray | None, edit: Edit) -> RoutedTokens:
    """What the reference makes of a router's logits."""
    family = FAMILIES[model.config.model_type]
    return route_all(logits, family, numbers_of(family, model.config), bias, edit)


def router_logits_of(model: PreTrainedModel, tokens: torch.Tensor) -> dict[int, torch.Tensor]:
    """Each router's logits, as the layers after it saw them, through plain hooks."""
    found: dict[int, torch.Tensor] = {}
    handles = [
        site.module.register_forward_hook(lambda m, a, out, layer=site.layer: found.__setitem__(layer, out[0]))
        for site in find_routers(model)
    ]
    try:
        model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return found


def test_find_routers_layers_are_absolute_and_dense_layers_have_none(model32: PreTrainedModel) -> None:
    first = getattr(model32.config, "first_k_dense_replace", 0)
    sites = find_routers(model32)
    assert [site.layer for site in sites] == list(range(first, 3))
    numbers = numbers_of(FAMILIES[model32.config.model_type], model32.config)
    assert {(site.num_experts, site.top_k) for site in sites} == {(numbers.num_experts, numbers.top_k)}
    assert all(model32.get_submodule(site.path) is site.module for site in sites)


def test_self_test_untouched_model_passes(model: PreTrainedModel) -> None:
    for site in find_routers(model):
        assert self_test(site) is not None


def test_self_test_other_arithmetic_is_refused(model32: PreTrainedModel) -> None:
    router = find_routers(model32)[-1].module
    native = type(router).forward
    router.forward = lambda hidden: tuple(
        item if i != 1 else item * 1.001 for i, item in enumerate(native(router, hidden))
    )
    with pytest.raises(RouterContractError, match=r"layers\.2"):
        apply_mote(model32, MoTEConfig(suppress=[[2, 1]]))
    assert num_hooks(model32) == 0


@pytest.mark.parametrize(
    "fields",
    [{}, {"suppress": [[2, 1]], "strength": 0.0}, {"stimulate": [[2, 1]], "strength": 0.0}, {"bias": []}],
    ids=["no_targets", "suppress_strength_0", "stimulate_strength_0", "empty_bias"],
)
def test_apply_mote_without_effect_attaches_nothing_and_logits_are_bit_identical(
    model: PreTrainedModel, fields: dict[str, Any]
) -> None:
    native = model(PROMPT).logits
    with apply_mote(model, MoTEConfig.for_model(model, **fields)):
        assert num_hooks(model) == 0
        assert torch.equal(model(PROMPT).logits, native)
    assert torch.equal(model(PROMPT).logits, native)


@pytest.mark.parametrize("edit", EDITS_FOR_ALL)
def test_apply_mote_after_removal_logits_are_bit_identical(model: PreTrainedModel, edit: str) -> None:
    native, state = model(PROMPT).logits, {k: v.clone() for k, v in model.state_dict().items()}
    with apply_mote(model, MoTEConfig.for_model(model, **fields_at(EDITS_FOR_ALL[edit], layers_of(model)))):
        patched = model(PROMPT).logits
        assert patched.isfinite().all()
        assert not torch.equal(patched, native)
        assert patched.dtype == native.dtype
        assert model.state_dict().keys() == state.keys()
    assert num_hooks(model) == 0
    assert torch.equal(model(PROMPT).logits, native)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("edit", EDITS_FOR_ALL)
def test_apply_mote_experts_get_the_references_weights(model: PreTrainedModel, edit: str) -> None:
    layers = layers_of(model)
    fields = fields_at(EDITS_FOR_ALL[edit], layers)
    with apply_mote(model, MoTEConfig.for_model(model, **fields)), observe_experts(model) as seen:
        logits = router_logits_of(model, PROMPT)
    assert sorted(seen) == layers
    for site in find_routers(model):
        correction = getattr(site.module, "e_score_correction_bias", None)
        bias = None if correction is None else correction.numpy()
        wanted = routed(model, logits[site.layer].float().numpy(), bias, edit_at(site.layer, fields))
        weights, chosen = dense(*seen[site.layer][0], site.num_experts)
        decided = wanted.margin > SUFFICIENT_MARGIN
        assert decided.mean() > 0.6  # bfloat16 logits tie now and then
        np.testing.assert_array_equal(chosen[decided], wanted.chosen[decided])
        np.testing.assert_allclose(weights[decided], wanted.weights[decided], rtol=0, atol=1e-6)
        if EDITS_FOR_ALL[edit].get("strength", 1.0) == 1.0:
            suppressed = [expert for layer, expert in fields.get("suppress", []) if layer == site.layer]
            assert (weights[:, suppressed] == 0).all()
            if fields.get("suppress_mode") == "reroute":
                assert not chosen[:, suppressed].any()
        for layer, expert in fields.get("stimulate", []):
            assert layer != site.layer or chosen[:, expert].all()


@pytest.mark.parametrize("edit", ["drop", "zero"])
def test_apply_mote_tokens_without_a_suppressed_expert_keep_their_routing_bit_for_bit(
    model: PreTrainedModel, edit: str
) -> None:
    layer = layers_of(model)[0]
    with observe_experts(model) as seen:
        model(PROMPT)
        with apply_mote(model, MoTEConfig(**fields_at(EDITS_FOR_ALL[edit], [layer]))):
            model(PROMPT)
    (weights, indices), (edited, same) = seen[layer]
    assert torch.equal(indices, same)
    untouched = ~torch.isin(indices, torch.tensor(EDITS_FOR_ALL[edit]["suppress"])).any(dim=1)
    assert untouched.any()
    assert not untouched.all()
    assert torch.equal(weights[untouched], edited[untouched])


def test_apply_mote_gain_multiplies_the_chosen_experts_weights_and_nothing_else(model: PreTrainedModel) -> None:
    layer = layers_of(model)[0]
    gains = {1: 2.5, 4: 0.3, 6: 0.0}
    with observe_experts(model) as seen:
        model(PROMPT)
        with apply_mote(model, MoTEConfig(gain=[[layer, e, value] for e, value in gains.items()])):
            model(PROMPT)
    (weights, indices), (edited, same) = seen[layer]
    assert torch.equal(indices, same)
    factors = torch.tensor([gains.get(expert, 1.0) for expert in range(8)])[indices]
    assert torch.equal(edited, (weights.float() * factors).to(weights.dtype))
    assert not torch.equal(edited, weights)


def test_apply_mote_first_layer_only_edits_that_layers_routing(model: PreTrainedModel) -> None:
    layer = layers_of(model)[-1]
    with observe_experts(model) as seen:
        model(PROMPT)
        with apply_mote(model, MoTEConfig(suppress=[[layer, 1]])):
            model(PROMPT)
    for other, ((weights, indices), (edited, same)) in seen.items():
        if other != layer:
            assert torch.equal(weights, edited)
            assert torch.equal(indices, same)


@pytest.mark.parametrize("mode", ["drop", "zero"])
def test_apply_mote_token_whose_every_expert_is_suppressed_has_zero_routed_output(
    model: PreTrainedModel, mode: str
) -> None:
    layer = layers_of(model)[0]
    with observe_experts(model) as seen:
        model(PROMPT)
    victims = seen[layer][0][1][5].tolist()
    outputs: list[torch.Tensor] = []
    path = find_routers(model)[0].path.rpartition(".")[0] + ".experts"
    handle = model.get_submodule(path).register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        with apply_mote(model, MoTEConfig(suppress=[[layer, e] for e in victims], suppress_mode=mode)):
            logits = model(PROMPT).logits
    finally:
        handle.remove()
    assert (outputs[0].reshape(-1, outputs[0].shape[-1])[5] == 0).all()
    assert logits.isfinite().all()


@pytest.mark.parametrize("edit", ["drop", "reroute", "max", "bias_selection"])
def test_apply_mote_scope_prompt_in_a_plain_forward_equals_scope_all(model: PreTrainedModel, edit: str) -> None:
    fields = fields_at(EDITS_FOR_ALL[edit], layers_of(model))
    with apply_mote(model, MoTEConfig(**fields)):
        everywhere = model(PROMPT).logits
    with apply_mote(model, MoTEConfig(**fields, scope="prompt")):
        assert torch.equal(model(PROMPT).logits, everywhere)


def test_apply_mote_scope_generation_in_a_plain_forward_is_bit_identical(model: PreTrainedModel) -> None:
    native = model(PROMPT).logits
    with apply_mote(model, MoTEConfig(**fields_at(EDITS_FOR_ALL["drop"], layers_of(model)), scope="generation")):
        assert torch.equal(model(PROMPT).logits, native)


@pytest.mark.parametrize("edit", ["drop", "reroute", "own", "bias_logits"])
@pytest.mark.parametrize("scope", ["prompt", "generation"])
def test_apply_mote_scope_touches_only_its_tokens_bit_exactly(model: PreTrainedModel, scope: str, edit: str) -> None:
    first = layers_of(model)[0]
    fields = fields_at(EDITS_FOR_ALL[edit], [first])
    steps = torch.randint(5, 95, (3, 2, 1), generator=torch.Generator().manual_seed(1))

    def run() -> list[torch.Tensor]:
        out = model(PROMPT, use_cache=True)
        logits = [out.logits]
        for step in steps:
            out = model(step, **taking(model, cache_of(out)), use_cache=True)
            logits.append(out.logits)
        return logits

    with observe_experts(model) as seen:
        native = run()
        with apply_mote(model, MoTEConfig(**fields, scope=scope)):
            patched = run()
    # The first MoE layer: its prompt rows come before any edit, so they are the native ones.
    calls = seen[first]
    before, after = calls[:4], calls[4:]
    touched_prompt = not torch.equal(before[0][0], after[0][0]) or not torch.equal(before[0][1], after[0][1])
    assert touched_prompt == (scope == "prompt")
    assert torch.equal(native[0], patched[0]) == (scope == "generation")
    if scope == "generation":
        pairs = zip(before[1:], after[1:], strict=True)
        assert any(not torch.equal(b[0], a[0]) or not torch.equal(b[1], a[1]) for b, a in pairs)


def test_apply_mote_scope_prompt_leaves_generated_tokens_native(model: PreTrainedModel) -> None:
    """The last layer is edited, so what comes before it is native and its own rows can be compared bit by bit."""
    last = layers_of(model)[-1]
    fields = fields_at(EDITS_FOR_ALL["reroute"], [last])
    step = PROMPT[:, :1]
    with observe_experts(model) as seen:
        model(step, **taking(model, cache_of(model(PROMPT, use_cache=True))))
        with apply_mote(model, MoTEConfig(**fields, scope="prompt")):
            model(step, **taking(model, cache_of(model(PROMPT, use_cache=True))))
    (prompt, generated), (edited_prompt, edited_generated) = seen[last][:2], seen[last][2:]
    assert not torch.equal(prompt[1], edited_prompt[1])
    assert torch.equal(generated[0], edited_generated[0])
    assert torch.equal(generated[1], edited_generated[1])


@pytest.mark.parametrize("edit", ["drop", "reroute", "max", "zero_part", "bias_logits"])
def test_generate_with_cache_under_a_patch_equals_a_full_forward(model32: PreTrainedModel, edit: str) -> None:
    with apply_mote(model32, MoTEConfig(**fields_at(EDITS_FOR_ALL[edit], layers_of(model32)))):
        out = model32.generate(
            PROMPT,
            attention_mask=torch.ones_like(PROMPT),
            max_new_tokens=6,
            return_dict_in_generate=True,
            output_logits=True,
            **GREEDY,
        )
        full = model32(out.sequences[:, :-1]).logits[:, PROMPT.shape[1] - 1 :]
    # One token at a time and all at once add up in another order.
    torch.testing.assert_close(torch.stack(out.logits, dim=1), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scope", ["prompt", "generation", "all"])
@pytest.mark.parametrize("edit", ["drop", "reroute", "max"])
def test_generate_without_cache_equals_with_cache(model32: PreTrainedModel, scope: str, edit: str) -> None:
    def run(use_cache: bool) -> torch.Tensor:
        out = model32.generate(
            PROMPT,
            attention_mask=torch.ones_like(PROMPT),
            max_new_tokens=6,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_logits=True,
            **GREEDY,
        )
        return torch.stack(out.logits, dim=1)

    native = run(True)
    with apply_mote(model32, MoTEConfig(**fields_at(EDITS_FOR_ALL[edit], layers_of(model32)), scope=scope)):
        cached = run(True)
        torch.testing.assert_close(run(False), cached, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(native, cached, rtol=1e-3, atol=1e-3)


def test_plain_forwards_of_growing_texts_under_scope_prompt_are_edited_throughout(one_model: PreTrainedModel) -> None:
    """A text that happens to extend the one before by a token is a prompt like any other."""
    fields = fields_at(EDITS_FOR_ALL["drop"], layers_of(one_model))
    longer, shorter = PROMPT, PROMPT[:, :-1]
    with apply_mote(one_model, MoTEConfig(**fields, scope="prompt")):
        alone = one_model(longer).logits
        one_model(shorter)
        assert torch.equal(one_model(longer).logits, alone)


@pytest.mark.parametrize("scope", ["prompt", "generation"])
def test_generate_chunked_prefill_under_a_scope_is_refused_and_the_remedy_works(
    one_model: PreTrainedModel, scope: str
) -> None:
    """A chunk of a prompt looks like a guess of assisted decoding."""
    ids = PROMPT[:, :11]

    def run(**how: Any) -> torch.Tensor:
        out = one_model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=4,
            return_dict_in_generate=True,
            output_logits=True,
            **GREEDY,
            **how,
        )
        return torch.stack(out.logits, dim=1)

    native = run()
    torch.testing.assert_close(run(prefill_chunk_size=5), native, rtol=1e-4, atol=1e-4)
    fields = fields_at(EDITS_FOR_ALL["reroute"], layers_of(one_model))
    with (
        apply_mote(one_model, MoTEConfig(**fields, scope=scope)),
        pytest.raises(UnsupportedError, match="prefill_chunk_size"),
    ):
        run(prefill_chunk_size=5)
    with apply_mote(one_model, MoTEConfig(**fields)):
        torch.testing.assert_close(run(prefill_chunk_size=5), run(), rtol=1e-4, atol=1e-4)


def test_generate_prompt_lookup_under_scope_generation_equals_plain_or_is_refused(one_model: PreTrainedModel) -> None:
    """Speculative decoding feeds several generated tokens at once, and takes some of them back."""
    ids = torch.tensor([[10, 11, 12, 13] * 4])
    how = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, **GREEDY}
    assert torch.equal(one_model.generate(ids, **how), one_model.generate(ids, prompt_lookup_num_tokens=3, **how))
    fields = fields_at(EDITS_FOR_ALL["reroute"], layers_of(one_model))
    with apply_mote(one_model, MoTEConfig(**fields, scope="generation")):
        plain = one_model.generate(ids, **how)
        with contextlib.suppress(UnsupportedError):
            assert torch.equal(one_model.generate(ids, prompt_lookup_num_tokens=3, **how), plain)


def test_generate_static_cache_equals_dynamic_cache(model32: PreTrainedModel) -> None:
    how = {"attention_mask": torch.ones_like(PROMPT), "max_new_tokens": 5, **GREEDY}
    for scope in ("all", "prompt", "generation"):
        with apply_mote(model32, MoTEConfig(**fields_at(EDITS_FOR_ALL["max"], layers_of(model32)), scope=scope)):
            dynamic = model32.generate(PROMPT, **how)
            assert torch.equal(model32.generate(PROMPT, cache_implementation="static", **how), dynamic)


def _refused(model: PreTrainedModel, match: str, **fields: Any) -> None:
    config = MoTEConfig(**fields)
    native = model(PROMPT).logits
    for act in (
        lambda: config.check(model),
        lambda: apply_mote(model, config),
        lambda: MoTEConfig.for_model(model, **fields),
    ):
        with pytest.raises(ModelMismatchError, match=match):
            act()
        assert num_hooks(model) == 0
    assert torch.equal(model(PROMPT).logits, native)


@pytest.mark.parametrize("mode", ["drop", "zero", "reroute"])
def test_apply_mote_fewer_survivors_than_top_k_is_refused_with_layer_and_counts(
    model32: PreTrainedModel, mode: str
) -> None:
    k = model32.config.num_experts_per_tok
    suppress = [[2, expert] for expert in range(8 - k + 1)]
    match = rf"(?s)layer 2\b.*{k - 1} of 8.*at least {k}"
    _refused(model32, match, suppress=suppress, suppress_mode=mode)
    with apply_mote(model32, MoTEConfig(suppress=suppress[:-1], suppress_mode="drop")):
        assert model32(PROMPT).logits.isfinite().all()


@pytest.mark.parametrize("mode", ["drop", "zero", "reroute"])
def test_apply_mote_all_experts_of_a_layer_is_refused(model32: PreTrainedModel, mode: str) -> None:
    suppress = [[1, expert] for expert in range(8)]
    _refused(model32, r"(?s)layer 1\b.*0 of 8", suppress=suppress, suppress_mode=mode)


@pytest.mark.parametrize(
    ("name", "suppress"), [("deepseek_v2_groups", [[1, 0], [1, 2]]), ("deepseek_v3_groups", [[1, 4], [1, 5], [1, 6]])]
)
def test_apply_mote_reroute_group_left_with_too_few_is_refused(name: str, suppress: list[list[int]]) -> None:
    model = tiny_model(name)
    _refused(model, r"layer 1\b.*group.*at least", suppress=suppress, suppress_mode="reroute")
    for mode in ("drop", "zero"):  # nobody else takes a slot there, so no group has to supply more
        with apply_mote(model, MoTEConfig(suppress=suppress, suppress_mode=mode)):
            assert model(PROMPT).logits.isfinite().all()


def test_apply_mote_more_than_top_k_stimulated_is_refused(model32: PreTrainedModel) -> None:
    k = model32.config.num_experts_per_tok
    stimulate = [[2, expert] for expert in range(k + 1)]
    _refused(model32, rf"layer 2\b.*got {k + 1}, expected at most {k}", stimulate=stimulate)
    with apply_mote(model32, MoTEConfig(stimulate=stimulate[:-1])), observe_experts(model32) as seen:
        model32(PROMPT)
    assert (seen[2][0][1].sort(dim=1).values == torch.arange(k)).all()


@pytest.mark.parametrize("name", ["suppress", "stimulate", "bias"])
def test_apply_mote_target_that_does_not_exist_is_refused(model32: PreTrainedModel, name: str) -> None:
    tail = [1.0] if name == "bias" else []
    first = getattr(model32.config, "first_k_dense_replace", 0)
    _refused(model32, rf"MoTEConfig\.{name}.*expert 8 at layer 2.*got 8, expected 0\.\.7", **{name: [[2, 8, *tail]]})
    _refused(model32, rf"MoTEConfig\.{name}.*layer 3.*{first}\.\.2", **{name: [[3, 0, *tail]]})
    if first:
        _refused(model32, rf"MoTEConfig\.{name}.*layer 0 .*1\.\.2", **{name: [[0, 0, *tail]]})


@pytest.mark.parametrize(
    "fields",
    [
        {"bias": [[2, 1, 1e300]]},
        {"stimulate": [[2, 1]], "stimulate_weight": 1e300},
        {"bias": [[2, 1, 3e38]], "strength": 10},
    ],
    ids=["bias", "stimulate_weight", "bias_times_strength"],
)
def test_apply_mote_number_beyond_float32_is_refused_by_the_package(
    one_model: PreTrainedModel, fields: dict[str, Any]
) -> None:
    """A number that is finite in JSON but not in float32 must not become NaN, nor a bare torch error."""
    try:
        handle = apply_mote(one_model, MoTEConfig(**fields))
    except HFMoTEError:
        assert num_hooks(one_model) == 0
        return
    with handle:
        assert one_model(PROMPT).logits.isfinite().all()


@pytest.mark.parametrize("top_k", [1, 8])
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v2", "deepseek_v3"])
def test_apply_mote_smallest_and_largest_top_k_work(name: str, top_k: int) -> None:
    model = tiny_model(name, num_experts_per_tok=top_k)
    native = model(PROMPT).logits
    with apply_mote(model, MoTEConfig(stimulate=[[2, 3]], stimulate_weight="max")), observe_experts(model) as seen:
        model(PROMPT)
    weights, chosen = dense(*seen[2][0], 8)
    assert chosen[:, 3].all()
    assert (weights[:, 3] == weights.max(axis=1)).all()
    assert torch.equal(model(PROMPT).logits, native)


def test_apply_mote_unnormalised_deepseek_v3_follows_its_own_flag() -> None:
    model = tiny_model("deepseek_v3", norm_topk_prob=False)
    with apply_mote(model, MoTEConfig(suppress=[[2, 1]], suppress_mode="reroute")), observe_experts(model) as seen:
        logits = router_logits_of(model, PROMPT)[2]
    correction = find_routers(model)[1].module.e_score_correction_bias.numpy()
    edit = edit_at(2, {"suppress": [[2, 1]], "suppress_mode": "reroute"})
    wanted = routed(model, logits.numpy(), correction, edit)
    weights, _ = dense(*seen[2][0], 8)
    np.testing.assert_allclose(weights, wanted.weights, rtol=0, atol=1e-6)


def test_apply_mote_negative_selection_bias_keeps_the_group_limit() -> None:
    """Experts outside the chosen groups are not in the choice, however far the ones inside are pushed down."""
    model = tiny_model("deepseek_v2_groups")
    fields = {"bias": [[1, expert, -10.0] for expert in range(8)], "bias_on": "selection"}
    with apply_mote(model, MoTEConfig(**fields)), observe_experts(model) as seen:
        logits = router_logits_of(model, PROMPT)[1]
    wanted = routed(model, logits.numpy(), None, edit_at(1, fields))
    _, chosen = dense(*seen[1][0], 8)
    decided = wanted.margin > SUFFICIENT_MARGIN
    assert decided.mean() > 0.6
    np.testing.assert_array_equal(chosen[decided], wanted.chosen[decided])


def test_liveness_model_compiled_and_run_before_patching_is_patched_or_refused() -> None:
    """A graph that was compiled without hooks must not go on silently without them."""
    model = tiny_model("mixtral", num_hidden_layers=1)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    try:
        native = compiled(PROMPT, use_cache=False).logits
        fields = fields_at(EDITS_FOR_ALL["reroute"], layers_of(model))
        with apply_mote(model, MoTEConfig(**fields)):
            wanted = model(PROMPT, use_cache=False).logits
        with apply_mote(model, MoTEConfig(**fields)):
            try:
                patched = compiled(PROMPT, use_cache=False).logits
            except LivenessError:
                return
        assert not torch.allclose(wanted, native, atol=1e-2)
        torch.testing.assert_close(patched, wanted, rtol=1e-4, atol=1e-4)
    finally:
        torch._dynamo.reset()


def test_record_routing_traces_what_the_experts_got(model: PreTrainedModel) -> None:
    layers = layers_of(model)
    with (
        apply_mote(model, MoTEConfig(**fields_at(EDITS_FOR_ALL["drop_max"], layers))),
        record_routing(model, trace=True) as record,
        observe_experts(model) as seen,
    ):
        model(PROMPT)
    for row, trace in enumerate(record.traces()):
        tokens = slice(row * PROMPT.shape[1], (row + 1) * PROMPT.shape[1])
        for position, layer in enumerate(trace.layers):
            weights, indices = seen[layer][0]
            assert torch.equal(trace.indices[:, position], indices[tokens].int())
            assert torch.equal(trace.weights[:, position], weights[tokens].float())
