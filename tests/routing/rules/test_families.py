"""Every family of transformers that routes, on a tiny model: untouched, edited against the reference, refused."""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from caches import cache_of, taking
from packaging.version import Version
from routing.family_reference import FAMILIES, SUFFICIENT_MARGIN, Edit, Numbers, Token, edit_at, numbers_of, route
from routing_cases import COMMON_EDITS, DTYPES, GREEDY, fields_at, no_gradients, num_hooks  # noqa: F401
from tiny_families import TINY_FAMILIES, family_inputs
from tiny_models import tiny_tokenizer
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_mote import MoTEConfig, apply_mote, attribute_experts, find_routers, record_routing
from hf_mote.errors import ModelMismatchError, UnsupportedError
from hf_mote.routing.rules.families import REFUSED as RULES_REFUSED
from hf_mote.routing.rules.families import RULES
from hf_mote.routing.rules.registry import refusals_here
from hf_mote.routing.sites.site import RouterSite

PROMPT = torch.randint(5, 85, (2, 12), generator=torch.Generator().manual_seed(3))

# Each kind of edit, whole and in part; what a family refuses is in REFUSED_EDITS.
FAMILY_EDITS: dict[str, dict[str, Any]] = {
    **COMMON_EDITS,
    "reroute": {"suppress": [1, 6], "suppress_mode": "reroute"},
    "zero_half": {"suppress": [1, 6], "suppress_mode": "zero", "strength": 0.5},
    "own": {"stimulate": [2]},
    "max": {"stimulate": [2], "stimulate_weight": "max"},
    "bias_logits_half": {"bias": [(0, 1.5), (5, -2.0)], "strength": 0.5},
    "bias_selection": {"bias": [(0, 0.3), (5, -0.2)], "bias_on": "selection"},
    "bias_selection_half": {"bias": [(0, 0.3), (5, -0.2)], "bias_on": "selection", "strength": 0.5},
    "drop_and_max": {"suppress": [1], "stimulate": [2, 7], "stimulate_weight": "max"},
    "reroute_and_own": {"suppress": [1], "suppress_mode": "reroute", "stimulate": [2, 7]},
    "gain": {"gain": [(1, 2.5), (6, 0.0)]},
    "gain_half": {"gain": [(1, 4.0), (6, 0.5)], "strength": 0.5},
    "gain_and_drop": {"suppress": [1], "gain": [(6, 3.0)]},
}

# What a kind of router cannot do, by the maths of its family: these edits are refused at these layers.
WEIGHTS = (
    *("drop", "drop_half", "zero", "zero_half", "max", "number", "drop_and_max"),
    *("gain", "gain_half", "gain_and_drop"),
)
REFUSED_EDITS: dict[str, dict[str, tuple[int, ...]]] = {
    # The block computes weights from the logits that the router hands out.
    "dbrx": dict.fromkeys(WEIGHTS, (0, 1)),
    # A table chooses by token id.
    "deepseek_v4": dict.fromkeys(("bias_selection", "bias_selection_half"), (0,)),
    # Sparsemixer has neither a place for an expert that must be chosen nor scores apart from its logits.
    "phimoe": dict.fromkeys(
        ("own", "max", "number", "drop_and_max", "reroute_and_own", "bias_selection", "bias_selection_half"), (0, 1, 2)
    ),
}

# Families that cannot be steered: the class that the error must name, and a word of its reason.
REFUSED = {
    "diffusion_gemma": ("DiffusionGemmaTextRouter", "encoder and its decoder"),
    "doge": ("DogeCDMoE", "product keys"),
    "nllb_moe": ("NllbMoeTop2Router", "experts 0 and 1"),
    "switch_transformers": ("SwitchTransformersTop1Router", "capacity"),
}

# Router classes of the table that no tiny model has.
NOT_EXERCISED = {
    "Qwen3OmniMoeTalkerTextTopKRouter": "speaks what the thinker writes; the thinker is the tiny model",
    "Qwen3OmniMoeTextTopKRouter": "no model of transformers uses it",
}

NO_GENERATION = {
    "openai_privacy_filter": "an encoder",
}

# Layers that run several times in one pass of the tiny model, and how often.
LOOPED = {"inkling2_loop": {1: 3}}


HERE = Version(transformers.__version__)
# Families whose tiny model does not run by itself on older releases, and the first on which it does.
RUNS_FROM = {
    ("dbrx", "float32"): "5.15",
    ("dbrx", "bfloat16"): "5.15",
    ("deepseek_v4", "bfloat16"): "5.23",
    ("diffusion_gemma", "float32"): "5.15",
    ("doge", "float32"): "5.18",
}
REFUSED_BEFORE = {one.family: one for one in RULES_REFUSED.values() if one.before is not None}


@functools.cache
def build(family: str, dtype: str = "float32", **overrides: Any) -> PreTrainedModel:
    """The tiny model of a family, built once."""
    first = RUNS_FROM.get((family, dtype))
    if first is not None and Version(first) > HERE:
        pytest.skip(f"transformers {HERE}: the model itself does not run before {first}")
    if family in REFUSED_BEFORE and REFUSED_BEFORE[family] in refusals_here().values():
        pytest.skip(f"transformers {HERE}: refused, as its test says: {REFUSED_BEFORE[family].full_reason}")
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # what a tiny config makes transformers say is nobody's concern here
    try:
        model = TINY_FAMILIES[family](DTYPES[dtype], **overrides)
    except ImportError as error:
        pytest.skip(f"not in this release of transformers: {error}")
    finally:
        logging.set_verbosity(before)
    return model


def logits_of(model: PreTrainedModel, ids: torch.Tensor = PROMPT) -> torch.Tensor:
    output = model(**family_inputs(model, ids))
    found = getattr(output, "logits", None)
    return output.last_hidden_state if found is None else found


class Call(NamedTuple):
    """One pass of a router: its own answer, the answer that went on, and what the experts were given."""

    args: tuple[Any, ...]
    native: Any
    output: Any
    experts: tuple[torch.Tensor, torch.Tensor] | torch.Tensor | None


@contextmanager
def watch(sites: list[RouterSite]) -> Iterator[dict[int, list[Call]]]:
    """Keep each layer's passes, through plain torch hooks that come after the patch."""
    seen: dict[int, list[Call]] = {site.layer: [] for site in sites}
    handles = []
    for site in sites:

        def look(module: Any, args: Any, kwargs: Any, output: Any, layer: int = site.layer) -> None:
            seen[layer].append(Call(args, module.forward(*args, **kwargs), output, None))

        def receive(module: Any, args: Any, layer: int = site.layer) -> None:
            given = args[0].clone() if len(args) == 1 else (args[1].clone(), args[2].clone())
            seen[layer][-1] = seen[layer][-1]._replace(experts=given)

        handles.append(site.module.register_forward_hook(look, with_kwargs=True))
        experts = getattr(site.block, "experts", None)
        if experts is not None:
            handles.append(experts.register_forward_pre_hook(receive))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def raw_logits(native: Any, num_experts: int) -> torch.Tensor:
    """The logits in a router's answer, by their shape: the first place in 5.23, another one before."""
    tensors = [native] if isinstance(native, torch.Tensor) else [t for t in native if isinstance(t, torch.Tensor)]
    fitting = [t for t in tensors if t.is_floating_point() and t.ndim == 2 and t.shape[1] == num_experts]
    return fitting[-1]  # Llama 4 hands out dense scores before its logits


def received(family: str, call: Call, n: Numbers) -> tuple[np.ndarray, np.ndarray]:
    """Weights and choice, `(tokens, experts)`, as the experts got them."""
    tokens = len(raw_logits(call.native, n.num_experts))
    if family == "jetmoe":
        order, token, weight, sizes, _ = call.output
        experts = torch.repeat_interleave(torch.arange(n.num_experts), torch.tensor(sizes))
        assert torch.equal(token, order // n.top_k)
        weights = torch.zeros(tokens, n.num_experts).index_put((token, experts), weight.float(), accumulate=True)
        counts = torch.zeros(tokens, n.num_experts).index_put((token, experts), torch.tensor(1.0), accumulate=True)
    elif family == "llama4":
        # Every expert runs on the token times its score, so the score is in the length of what it gets.
        hidden = call.args[0].double()
        inputs = call.experts.view(n.num_experts, tokens, -1).double()
        weights = ((inputs * hidden).sum(dim=-1) / (hidden * hidden).sum(dim=-1)).T
        np.testing.assert_allclose(weights.numpy(), call.output[0].double().numpy(), rtol=0, atol=4e-3)
        if weights.dtype != call.args[0].dtype == torch.bfloat16:
            weights = call.output[0]  # to the last bit, which the inputs have lost
        counts = (call.output[0] != 0).float()
    else:
        indices, given = call.experts
        weights = torch.zeros(tokens, n.num_experts, dtype=given.dtype).scatter_add(1, indices, given)
        counts = torch.nn.functional.one_hot(indices, n.num_experts).sum(dim=1)
    assert int(counts.max()) == 1, "an expert was chosen twice for one token"
    return weights.double().numpy(), counts.bool().numpy()


def wanted_of(family: str, model: PreTrainedModel, site: RouterSite, call: Call, edit: Edit) -> list[Any]:
    """What the reference makes of one layer's own logits."""
    row, n = FAMILIES[family], numbers_of(FAMILIES[family], model.config.get_text_config())
    bias, scale, shared, listed = None, None, None, None
    hashed = hasattr(site.module, "tid2eid")
    if row.bias is not None and not hashed:
        owner = site.block if row.bias.startswith("block.") else site.module
        for name in row.bias.removeprefix("block.").split("."):
            owner = getattr(owner, name)
        bias = owner.double().reshape(-1).numpy()
    if row.expert_scale is not None:
        scale = getattr(site.module, row.expert_scale).double().numpy()
    if row.weights == "joint":
        scale = site.module.global_scale.double().numpy()
        hidden = call.args[0].reshape(-1, site.module.weight.shape[1])
        shared = (hidden.double() @ site.module.weight.double().T)[:, n.num_experts :].numpy()
    if hashed:
        listed = site.module.tid2eid[call.args[1].reshape(-1)].tolist()
    found = []
    for token, logits in enumerate(raw_logits(call.native, n.num_experts).double().numpy()):
        knows = Token(bias, scale, None if shared is None else shared[token], listed and listed[token])
        found.append(route(logits, row, n, edit, knows))
    return found


def assert_as_reference(
    family: str, model: PreTrainedModel, sites: list[RouterSite], fields: dict[str, Any], decided_at_least: float = 0.6
) -> None:
    """Run a patched model; every layer's experts must get what the reference says."""
    n = numbers_of(FAMILIES[family], model.config.get_text_config())
    with apply_mote(model, MoTEConfig(**fields)), watch(sites) as seen:
        assert logits_of(model).isfinite().all()
    for site, call in ((each, call) for each in sites for call in seen[each.layer]):
        edit = edit_at(site.layer, fields)
        wanted = wanted_of(family, model, site, call, edit)
        weights, chosen = received(family, call, n)
        decided = np.array([token.margin > SUFFICIENT_MARGIN for token in wanted])
        assert decided.mean() > decided_at_least
        expected = np.stack([token.weights for token in wanted])
        expected_choice = np.stack([token.chosen for token in wanted])
        if FAMILIES[family].special == "skip" or family == "llama4":
            # Skipping looks to the experts like expert 0 with no weight; Llama 4 runs every expert, on nothing.
            chosen, expected_choice = chosen & (weights != 0), expected_choice & (expected != 0)
        tolerance = 2e-6 * max(1.0, np.abs(expected).max())
        np.testing.assert_array_equal(chosen[decided], expected_choice[decided])
        np.testing.assert_allclose(weights[decided], expected[decided], rtol=0, atol=tolerance)
        if edit.strength == 1 and edit.suppress:
            assert (weights[:, sorted(edit.suppress)] == 0).all()
            if edit.suppress_mode == "reroute":
                assert not chosen[:, sorted(edit.suppress)].any()
        if family == "dbrx":
            continue  # its logits are how it is edited
        assert torch.equal(raw_logits(call.output, n.num_experts), raw_logits(call.native, n.num_experts))
        if FAMILIES[family].weights == "joint":
            shared = np.stack([token.shared for token in wanted])
            np.testing.assert_allclose(call.output[3].numpy()[decided], shared[decided], rtol=0, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_find_routers_every_family_gives_its_layers_and_numbers(family: str) -> None:
    model = build(family)
    row = FAMILIES[family]
    n = numbers_of(row, model.config.get_text_config())
    sites = find_routers(model)
    assert tuple(site.layer for site in sites) == row.layers
    assert {(site.num_experts, site.top_k) for site in sites} == {(n.num_experts, n.top_k)}
    for site in sites:
        assert RULES_BY_ROUTER[class_of(site)] == family or family in site.rule.lent_to


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_apply_mote_without_effect_or_after_removal_is_bit_identical(family: str, dtype: str) -> None:
    model = build(family, dtype)
    native = logits_of(model)
    layers = FAMILIES[family].layers
    for fields in ({}, {"suppress": [[layers[-1], 1]], "suppress_mode": "reroute", "strength": 0.0}):
        with apply_mote(model, MoTEConfig.for_model(model, **fields)):
            assert num_hooks(model) == 0
            assert torch.equal(logits_of(model), native)
    with apply_mote(model, MoTEConfig(**fields_at(FAMILY_EDITS["reroute"], layers))):
        patched = logits_of(model)
    assert patched.isfinite().all()
    assert not torch.equal(patched, native)
    assert patched.dtype == native.dtype
    assert num_hooks(model) == 0
    assert torch.equal(logits_of(model), native)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "dbrx"])
def test_apply_mote_gain_of_one_changes_no_bit_and_gain_of_zero_is_zero_suppression(family: str, dtype: str) -> None:
    model = build(family, dtype)
    native = logits_of(model)
    pairs = [[layer, expert] for layer in FAMILIES[family].layers for expert in (1, 6)]
    for strength in (1.0, 0.25):
        with apply_mote(model, MoTEConfig(gain=[[*pair, 1] for pair in pairs], strength=strength)):
            assert num_hooks(model) > 0
            assert torch.equal(logits_of(model), native)
        with apply_mote(model, MoTEConfig(suppress=pairs, suppress_mode="zero", strength=strength)):
            zeroed = logits_of(model)
        with apply_mote(model, MoTEConfig(gain=[[*pair, 0] for pair in pairs], strength=strength)):
            assert torch.equal(logits_of(model), zeroed)
        assert not torch.equal(zeroed, native)
    assert torch.equal(logits_of(model), native)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_record_routing_every_token_counts_top_k_experts_and_changes_nothing(family: str, dtype: str) -> None:
    model = build(family, dtype)
    native = logits_of(model)
    sites = find_routers(model)
    with record_routing(model) as record, watch(sites) as seen:
        assert torch.equal(logits_of(model), native)
    assert record.layers == FAMILIES[family].layers
    maps = record.maps()
    assert len(maps) == len(PROMPT)
    n = numbers_of(FAMILIES[family], model.config.get_text_config())
    rows = len(raw_logits(seen[sites[0].layer][0].native, n.num_experts)) // len(PROMPT)
    for found in maps:
        assert found.num_tokens == rows
        assert found.counts.shape == (len(sites), n.num_experts)
        np.testing.assert_allclose(found.counts.sum(dim=1).numpy(), rows * n.top_k, rtol=1e-6)
    skips = 0
    for position, site in enumerate(sites):
        # Of a layer that runs several times in one pass, the mean.
        runs = [received(family, call, n) for call in seen[site.layer]]
        assert len(runs) == LOOPED.get(family, {}).get(site.layer, 1)
        weights, chosen = (np.mean([run[i].astype(float) for run in runs], axis=0) for i in range(2))
        if FAMILIES[family].special == "skip":
            skipped = (weights == 0).all(axis=1)
            chosen[skipped, 0], chosen[skipped, -1] = 0, 1
            skips += skipped.sum()
        total = sum(found.counts[position] for found in maps)
        np.testing.assert_allclose(total.numpy(), chosen.sum(axis=0), rtol=1e-6)
        summed = sum(found.weights[position] for found in maps)
        np.testing.assert_allclose(summed.numpy(), weights.sum(axis=0), rtol=1e-5, atol=1e-5)
    assert skips or FAMILIES[family].special != "skip"


@pytest.mark.parametrize("family", LOOPED)
def test_record_routing_looped_layers_have_no_trace_and_one_number_of_loops(family: str) -> None:
    model = build(family)
    config = model.config.get_text_config()
    loops = config.loop_num_passes
    with record_routing(model, trace=True), pytest.raises(UnsupportedError, match="several times in one pass"):
        logits_of(model)
    assert num_hooks(model) == 0
    with record_routing(model) as record:
        cache = taking(model, cache_of(model(PROMPT, use_cache=True)))
        try:
            config.loop_num_passes = loops - 1
            with pytest.raises(UnsupportedError, match=f"{loops - 1} times, expected {loops}"):
                model(PROMPT[:, -1:], **cache)
        finally:
            config.loop_num_passes = loops
        record.forget()
        logits_of(model)
    assert record.maps()[0].num_tokens == PROMPT.shape[1]


@pytest.mark.parametrize("edit", FAMILY_EDITS)
@pytest.mark.parametrize("family", FAMILIES)
def test_apply_mote_experts_of_every_family_get_what_the_reference_says(family: str, edit: str) -> None:
    model, row = build(family), FAMILIES[family]
    sites = find_routers(model)
    refused = REFUSED_EDITS.get(family, {}).get(edit, ())
    layers = tuple(layer for layer in row.layers if layer not in refused)
    for layer in refused:
        fields = fields_at(FAMILY_EDITS[edit], (*layers, layer))
        with pytest.raises(UnsupportedError, match=rf"layer {layer}\b.*{class_of(sites[0])} cannot"):
            apply_mote(model, MoTEConfig(**fields))
        assert num_hooks(model) == 0
    if layers:
        assert_as_reference(family, model, sites, fields_at(FAMILY_EDITS[edit], layers, sites[0].top_k))


@pytest.mark.parametrize("edit", ["reroute", "drop", "own"])
@pytest.mark.parametrize("family", [family for family, row in FAMILIES.items() if isinstance(row.renorm, str)])
def test_apply_mote_family_that_renormalises_by_config_follows_it(family: str, edit: str) -> None:
    model = build(family, norm_topk_prob=False)
    assert model.config.get_text_config().norm_topk_prob is False
    assert_as_reference(family, model, find_routers(model), fields_at(FAMILY_EDITS[edit], FAMILIES[family].layers))


@pytest.mark.parametrize("edit", ["reroute", "own", "bias_logits"])
@pytest.mark.parametrize("p", [None, 2.0])
def test_apply_mote_dbrx_follows_its_own_norm_or_refuses(p: float | None, edit: str) -> None:
    model = build("dbrx")
    sites = find_routers(model)
    before = [site.block.moe_normalize_expert_weights for site in sites]
    model.config.ffn_config.moe_normalize_expert_weights = p
    for site in sites:
        site.block.moe_normalize_expert_weights = p
    try:
        assert_as_reference("dbrx", model, sites, fields_at(FAMILY_EDITS[edit], (0, 1)))
    except UnsupportedError:
        assert num_hooks(model) == 0
    finally:
        model.config.ffn_config.moe_normalize_expert_weights = before[0]
        for site, value in zip(sites, before, strict=True):
            site.block.moe_normalize_expert_weights = value


def fewest_survivors(n: Numbers, *, grouped: bool) -> list[int]:
    """As few experts as may be left; in groups, so few that some choice of groups has exactly top-k."""
    if not grouped:
        return list(range(n.num_experts))[-n.top_k :]
    size, least = n.num_experts // n.groups, n.top_k // n.groups_kept
    left = [least] + [n.top_k - least] * (n.groups - 1)
    return [group * size + i for group in range(n.groups) for i in range(left[group])]


@pytest.mark.parametrize("mode", ["drop", "zero", "reroute"])
@pytest.mark.parametrize("family", FAMILIES)
def test_apply_mote_as_few_survivors_as_allowed_never_lets_a_suppressed_expert_back(family: str, mode: str) -> None:
    if mode in REFUSED_EDITS.get(family, {}):
        pytest.skip(f"{family} cannot {mode}")
    model = build(family)
    row, sites = FAMILIES[family], find_routers(model)
    n = numbers_of(row, model.config.get_text_config())
    survivors = fewest_survivors(n, grouped=mode == "reroute" and n.groups > 1)
    suppress = [[layer, expert] for layer in row.layers for expert in range(n.num_experts) if expert not in survivors]
    assert_as_reference(family, model, sites, {"suppress": suppress, "suppress_mode": mode}, decided_at_least=0.5)
    for layer in row.layers:
        one_more = [*suppress, [layer, survivors[-1]]]
        with pytest.raises(ModelMismatchError, match=rf"(?s)layer {layer}\b.*at least {n.top_k}"):
            apply_mote(model, MoTEConfig(suppress=one_more, suppress_mode=mode))
        assert num_hooks(model) == 0


def test_apply_mote_reroute_suppressed_expert_is_not_better_than_chosen_ones_below_zero() -> None:
    """A.X K1's successor puts experts outside the best groups at 0, where those inside can be below."""
    pytest.importorskip("transformers.models.axk2.modeling_axk2", reason="not in this release of transformers")
    model = TINY_FAMILIES["axk2"]()
    for site in find_routers(model):
        site.module.e_score_correction_bias.fill_(-2.0)
    fields = fields_at(FAMILY_EDITS["reroute"], FAMILIES["axk2"].layers)
    with apply_mote(model, MoTEConfig(**fields)), watch(find_routers(model)) as seen:
        logits_of(model)
    for call in itertools.chain(*seen.values()):
        assert not torch.isin(call.experts[0], torch.tensor(FAMILY_EDITS["reroute"]["suppress"])).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_with_cache_under_a_patch_equals_full_forwards_without(family: str) -> None:
    if family in NO_GENERATION:
        pytest.skip(NO_GENERATION[family])
    model = build(family)
    assert model.can_generate()
    with apply_mote(model, MoTEConfig(**fields_at(FAMILY_EDITS["reroute"], FAMILIES[family].layers))):
        generated = model.generate(
            PROMPT,
            attention_mask=torch.ones_like(PROMPT),
            max_new_tokens=5,
            **GREEDY,
            return_dict_in_generate=True,
            output_logits=True,
        )
        for step, logits in enumerate(generated.logits):
            text = generated.sequences[:, : PROMPT.shape[1] + step]
            full = model(text, attention_mask=torch.ones_like(text), use_cache=False).logits[:, -1]
            # One token at a time and all at once add up in another order.
            torch.testing.assert_close(logits, full.to(logits.dtype), rtol=1e-3, atol=1e-3)
            best = full.topk(2, dim=-1)
            clear = best.values[:, 0] - best.values[:, 1] > 1e-2
            assert torch.equal(generated.sequences[clear, PROMPT.shape[1] + step], best.indices[clear, 0])
    # A patch that the generation did not feel would pass as well.
    assert not torch.allclose(logits_of(model)[:, -1].to(torch.float32), generated.logits[0], rtol=1e-3, atol=1e-3)


def refused_untouched(model: torch.nn.Module, *words: str) -> None:
    """Refused by every way in, with those words and a way out, and the model is as it was."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = num_hooks(model)
    config = MoTEConfig(suppress=[[1, 1]])
    for act in (
        lambda: find_routers(model),
        lambda: apply_mote(model, config),
        lambda: MoTEConfig.for_model(model, suppress=[[1, 1]]),
        lambda: record_routing(model).__enter__(),
    ):
        with pytest.raises(UnsupportedError) as caught:
            act()
        for word in words:
            assert word in str(caught.value)
        # The way out is a sentence after the closing bracket of what was found.
        assert len(str(caught.value).rpartition("). ")[2]) > 5
        assert num_hooks(model) == hooks
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", REFUSED_BEFORE)
def test_find_routers_family_that_is_refused_here_names_the_release_to_upgrade_to(family: str) -> None:
    refusal = REFUSED_BEFORE[family]
    if refusal not in refusals_here().values():
        pytest.skip(f"transformers {HERE} is not before {refusal.before}")
    refused_untouched(TINY_FAMILIES[family](), f"before transformers {refusal.before}", refusal.remedy)


@pytest.mark.parametrize("family", REFUSED)
def test_find_routers_family_that_cannot_work_is_refused_with_reason_and_way_out(family: str) -> None:
    model = build(family)
    before = logits_of(model)
    refused_untouched(model, *REFUSED[family])
    assert torch.equal(logits_of(model), before)


def test_find_routers_vitpose_backbone_is_refused() -> None:
    """Its experts belong to data sets, and the caller picks them."""
    vitpose = importlib.import_module("transformers.models.vitpose_backbone")
    config = vitpose.VitPoseBackboneConfig(
        image_size=(32, 32), patch_size=(16, 16), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_experts=4, part_features=8,
    )  # fmt: skip
    refused_untouched(vitpose.VitPoseBackbone(config).eval(), "VitPoseBackbone", "no routed experts")


def test_attribute_experts_dbrx_is_refused_before_anything_runs() -> None:
    """Its weights are computed after the router, so the gradient by them is out of reach."""
    model = build("dbrx")
    with pytest.raises(UnsupportedError, match=r"DbrxRouter|router"), torch.enable_grad():
        attribute_experts(model, tiny_tokenizer(), ["abc", "def"], response="g", baseline_response="h", progress=False)
    assert num_hooks(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in {*NO_GENERATION, "dbrx"}])
def test_attribute_experts_last_layers_effect_is_what_a_little_less_of_the_expert_shows(family: str) -> None:
    """The last layer, because a change before it can make a later layer choose other experts, which is a jump."""
    model, tokenizer = build(family), tiny_tokenizer()
    tokenizer.chat_template = None
    prompt = tokenizer("abcdef")["input_ids"]
    target, baseline = tokenizer.convert_tokens_to_ids(["g", "h"])

    def advantage(strength: float) -> float:
        config = MoTEConfig(suppress=[[layer, expert]], suppress_mode="zero", strength=strength)
        with apply_mote(model, config):
            last = model(torch.tensor([prompt]), use_cache=False).logits[0, -1].double()
        return float(last[target] - last[baseline])

    ranking = attribute_experts(
        model, tokenizer, ["abcdef"], response="g", baseline_response="h", resamples=0, progress=False
    )
    layer, expert = ranking.layers[-1], int(abs(ranking.score[-1]).argmax())
    effect, step = float(ranking.score[-1, expert]), 0.01
    assert effect != 0
    assert (advantage(0.0) - advantage(step)) / step == pytest.approx(effect, rel=0.02, abs=5e-3)


@pytest.mark.parametrize("family", LOOPED)
def test_attribute_experts_looped_layers_effect_is_that_of_all_its_runs(family: str) -> None:
    model, tokenizer = build(family), tiny_tokenizer()
    tokenizer.chat_template = None
    prompt = torch.tensor([tokenizer("abcdef")["input_ids"]])
    target, baseline = tokenizer.convert_tokens_to_ids(["g", "h"])
    ranking = attribute_experts(
        model, tokenizer, ["abcdef"], response="g", baseline_response="h", resamples=0, progress=False
    )
    (layer,) = LOOPED[family]
    effects = ranking.score[ranking.layers.index(layer)]

    def advantage(strength: float, expert: int) -> float:
        config = MoTEConfig(suppress=[[layer, expert]], suppress_mode="zero", strength=strength)
        with apply_mote(model, config):
            last = model(prompt, use_cache=False).logits[0, -1].double()
        return float(last[target] - last[baseline])

    step = 0.005
    for expert, effect in enumerate(effects.tolist()):
        shown = (advantage(0.0, expert) - advantage(step, expert)) / step
        assert shown == pytest.approx(effect, rel=0.05, abs=5e-3)
    assert abs(effects).max() > 0.1


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_apply_mote_hash_layer_in_bfloat16_stimulated_expert_takes_the_weakest_place(strength: float) -> None:
    """Scores of a hash layer are bfloat16 then; the weakest of the table's experts is still the weakest."""
    model = build("deepseek_v4", "bfloat16")
    site = find_routers(model)[0]
    with apply_mote(model, MoTEConfig(stimulate=[[0, 2]], strength=strength)), watch([site]) as seen:
        logits_of(model)
    (call,) = seen[0]
    wanted = wanted_of("deepseek_v4", model, site, call, Edit(stimulate=frozenset([2]), strength=strength))
    chosen = torch.nn.functional.one_hot(call.experts[0], 8).sum(dim=1).bool().numpy()
    decided = np.array([token.margin > 0.01 for token in wanted])
    assert decided.mean() > 0.6
    np.testing.assert_array_equal(chosen[decided], np.stack([token.chosen for token in wanted])[decided])


def class_of(site: RouterSite) -> str:
    return type(site.module).__name__


RULES_BY_ROUTER = {router: family for rule in RULES for router, family in rule.routers.items()}


def test_every_router_class_of_the_table_is_exercised_or_excused() -> None:
    seen = set()
    for family in FAMILIES:
        try:
            model = build(family)
        except pytest.skip.Exception:
            continue
        seen |= {class_of(site) for site in find_routers(model)}
    missing = set(RULES_BY_ROUTER) - seen - set(NOT_EXERCISED)
    # Of a release on which the model does not run, or is refused, the class may be there all the same.
    later = {family for (family, _), first in RUNS_FROM.items() if Version(first) > HERE}
    later |= {one.family for one in refusals_here().values()}
    assert not {router for router in missing if _exists(router) and RULES_BY_ROUTER[router] not in later}
    assert not seen & set(NOT_EXERCISED), "exercised now: no excuse needed"


def _exists(router: str) -> bool:
    family = RULES_BY_ROUTER[router]
    try:
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    except ImportError:
        return False
    return inspect.isclass(getattr(module, router, None))


def test_every_tiny_family_is_supported_or_refused_and_at_least_64_steer() -> None:
    assert set(TINY_FAMILIES) == set(FAMILIES) | set(REFUSED)
    assert not set(FAMILIES) & set(REFUSED)
    assert {family for rule in RULES for family in rule.families} == set(FAMILIES)
    assert len(FAMILIES) >= 64
