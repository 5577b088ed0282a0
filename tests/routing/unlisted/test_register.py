"""`register_routers`: an unlisted router is edited exactly as the listed one that it equals, or refused."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from routing.small_decoder import EXPERTS, LAYERS, TOKENS, WIDTH, SmallDecoder, logits_of
from routing_cases import nothing_registered, num_hooks  # noqa: F401
from tiny_families import TINY_FAMILIES
from torch import Tensor, nn
from transformers import DeepseekV3Config, GptOssConfig, MixtralConfig, PreTrainedModel, Qwen3MoeConfig

from hf_mote import MoTEConfig, apply_mote, find_routers, record_routing, register_routers
from hf_mote.errors import ConfigError, RouterContractError, UnknownNameError, UnsupportedError
from hf_mote.routing.rules import registry
from hf_mote.routing.rules.families import RULES
from hf_mote.routing.rules.registry import register_rule
from hf_mote.routing.rules.rule import RoutingRule

MIXTRAL = "softmax, top-k, renormalised"
FLAGGED = "softmax, top-k, renormalised if the config says so"
CHOSEN = "top-k, softmax of the chosen"
GROUPS = "sigmoid, selection bias, group-limited top-k"
GROUPS_AT_0 = "sigmoid, selection bias, group-limited top-k, others at 0"
SIGMOID = "sigmoid, selection bias, top-k, renormalised"
SORTED_SIGMOID = "sigmoid, selection bias, sorted top-k, renormalised"
MUSE = "sigmoid, selection bias, top-k, renormalised, scaled"


class Router(nn.Module):
    """What the unlisted routers here have in common; `order` is that of logits, weights and indices."""

    def __init__(self, top_k: int = 3, order: tuple[int, int, int] = (2, 1, 0)) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.order = EXPERTS, top_k, order
        self.weight = nn.Parameter(torch.zeros(EXPERTS, WIDTH))

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        logits = hidden.flatten(0, -2) @ self.weight.T
        return tuple((logits, *self.decide(logits))[slot] for slot in self.order)

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class Softmax(Router):
    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, indices = logits.float().softmax(-1).topk(self.top_k)
        return weights / weights.sum(-1, keepdim=True), indices


class FlaggedSoftmax(Router):
    def __init__(self, norm_topk_prob: bool = False) -> None:
        super().__init__()
        self.norm_topk_prob = norm_topk_prob

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, indices = logits.float().softmax(-1).topk(self.top_k)
        return weights / weights.sum(-1, keepdim=True) if self.norm_topk_prob else weights, indices


class ChosenSoftmax(Router):
    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, indices = logits.topk(self.top_k)
        return weights.softmax(-1), indices


class Sigmoid(Router):
    """Sigmoid and selection bias, renormalised with `epsilon`."""

    epsilon = 0.0

    def __init__(self, top_k: int = 3) -> None:
        super().__init__(top_k)
        self.e_score_correction_bias = nn.Buffer(torch.zeros(EXPERTS))

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.float().sigmoid()
        indices = (scores + self.e_score_correction_bias).topk(self.top_k, sorted=False).indices
        weights = scores.gather(-1, indices)
        return weights / (weights.sum(-1, keepdim=True) + self.epsilon), indices


class Groups(Sigmoid):
    """The same within the best groups, scaled."""

    epsilon = 1e-20
    fill = float("-inf")

    def __init__(self, num_group: int = 4, topk_group: int = 2) -> None:
        super().__init__()
        self.num_group, self.topk_group = num_group, topk_group
        self.norm_topk_prob, self.routed_scaling_factor = True, 1.5

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.float().sigmoid()
        grouped = (scores + self.e_score_correction_bias).unflatten(-1, (self.num_group, -1))
        kept = grouped.topk(2).values.sum(-1).topk(self.topk_group).indices
        inside = torch.zeros(grouped.shape[:2], dtype=torch.bool).scatter(-1, kept, True)
        choice = grouped.masked_fill(~inside[..., None], self.fill).flatten(1)
        indices = choice.topk(self.top_k, sorted=False).indices
        weights = scores.gather(-1, indices)
        if self.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + self.epsilon)
        return weights * self.routed_scaling_factor, indices


def listed(family: str, router: str, config: Any, **fields: Any) -> Callable[[], nn.Module]:
    """A maker of transformers' own routers."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    names = {"hidden_size": WIDTH, "num_experts_per_tok": 3, **fields}
    return lambda: getattr(module, router)(config(**names))


PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    MIXTRAL: (Softmax, listed("mixtral", "MixtralTopKRouter", MixtralConfig, num_local_experts=EXPERTS)),
    FLAGGED: (FlaggedSoftmax, listed("qwen3_moe", "Qwen3MoeTopKRouter", Qwen3MoeConfig, num_experts=EXPERTS)),
    CHOSEN: (ChosenSoftmax, listed("gpt_oss", "GptOssTopKRouter", GptOssConfig, num_local_experts=EXPERTS)),
    GROUPS: (
        Groups,
        listed(
            "deepseek_v3", "DeepseekV3TopkRouter", DeepseekV3Config, n_routed_experts=EXPERTS, n_group=4,
            topk_group=2, routed_scaling_factor=1.5, norm_topk_prob=True,
        ),
    ),
}  # fmt: skip
# Another expert at each layer, so that an edit at the wrong layer shows.
EDITS_BY_LAYER: dict[str, dict[str, Any]] = {
    "drop": {"suppress": [[0, 1], [1, 2]]},
    "half drop": {"suppress": [[0, 1], [1, 2]], "strength": 0.5},
    "zero": {"suppress": [[0, 1], [1, 2]], "suppress_mode": "zero"},
    "reroute": {"suppress": [[0, 1], [1, 2]], "suppress_mode": "reroute"},
    "stimulate": {"stimulate": [[0, 4], [1, 5]], "stimulate_weight": "max"},
    "bias on logits": {"bias": [[0, 3, 1.5], [1, 6, -2.0]]},
    "bias on selection": {"bias": [[0, 3, 0.5], [1, 6, -0.5]], "bias_on": "selection"},
}


def pair(rule: str) -> tuple[SmallDecoder, SmallDecoder]:
    """An unlisted router's decoder, and the listed one's with the same weights."""
    unlisted, known = (SmallDecoder(make) for make in PAIRS[rule])
    for mine, other in zip(unlisted.layers, known.layers, strict=True):
        if hasattr(other.mlp.gate, "bias"):  # gpt_oss adds one to its logits
            other.mlp.gate.bias.data.zero_()
        assert torch.equal(mine.mlp.gate.weight, other.mlp.gate.weight)
    return unlisted, known


@pytest.mark.parametrize("edit", EDITS_BY_LAYER)
@pytest.mark.parametrize("rule", PAIRS)
def test_apply_mote_registered_router_is_edited_as_the_listed_one(rule: str, edit: str) -> None:
    unlisted, known = pair(rule)
    native = logits_of(unlisted)
    assert torch.equal(native, logits_of(known))
    register_routers(unlisted)
    config = MoTEConfig.for_model(unlisted, **EDITS_BY_LAYER[edit])
    with apply_mote(unlisted, config), apply_mote(known, MoTEConfig(**EDITS_BY_LAYER[edit])):
        patched = logits_of(unlisted)
        assert torch.equal(patched, logits_of(known))
    assert not torch.equal(patched, native)
    assert torch.equal(logits_of(unlisted), native)


@pytest.mark.parametrize("rule", PAIRS)
def test_record_routing_registered_router_is_counted_as_the_listed_one(rule: str) -> None:
    unlisted, known = pair(rule)
    register_routers(unlisted)
    maps = []
    for model in (unlisted, known):
        with record_routing(model, eos_token_id=[]) as record:
            logits_of(model)
        maps.append(record.total())
    assert maps[0].counts.sum() == TOKENS.numel() * 3 * LAYERS
    assert torch.equal(maps[0].counts, maps[1].counts)
    assert torch.equal(maps[0].weights, maps[1].weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rule", PAIRS)
def test_register_routers_gives_the_listed_ones_rule_and_leaves_no_trace(rule: str, dtype: torch.dtype) -> None:
    model, known = (model.to(dtype) for model in pair(rule))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    native, random_state = logits_of(model), torch.get_rng_state()
    sites = register_routers(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(logits_of(model), native)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert num_hooks(model) == 0
    wanted = find_routers(known)
    assert [site.rule.name for site in sites] == [rule] * LAYERS
    assert [(s.path, s.layer, s.num_experts, s.top_k) for s in sites] == [
        (s.path, s.layer, s.num_experts, s.top_k) for s in wanted
    ]


# A family and its options for each row that is for routers of the common shape.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        rule.name: (min(set(rule.families) & set(TINY_FAMILIES)), {})
        for rule in RULES
        if rule.adapter is None and rule.within is None
    },
    "softmax, top-k, scaled": ("deepseek_v2", {"topk_method": "greedy"}),
    "softmax, group-limited top-k": ("deepseek_v2", {}),
    "top-k, sigmoid of the chosen": ("cohere2_moe", {"expert_selection_fn": "sigmoid"}),
    "own activation, selection bias, top-k, renormalised, scaled": ("inkling2", {}),
}


def declare(monkeypatch: pytest.MonkeyPatch, model: PreTrainedModel, router: type[nn.Module]) -> None:
    """Let a model name a class as the source of its router logits."""
    monkeypatch.setattr(type(model), "can_record_outputs", {"router_logits": router}, raising=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row", ROWS)
def test_register_routers_finds_every_row_of_the_table(
    row: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Routers of transformers under a name that the table does not have; the row found is theirs."""
    family, options = ROWS[row]
    try:
        model = TINY_FAMILIES[family](dtype=dtype, **options)
        sites = find_routers(model)
    except (ImportError, AttributeError, UnsupportedError) as error:
        pytest.skip(f"not in this transformers: {error}")
    cls = type(sites[0].module)
    body = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    unlisted = type("Unlisted", cls.__bases__, {**body, "__module__": __name__})
    for site in sites:
        site.module.__class__ = unlisted
    declare(monkeypatch, model, unlisted)
    with pytest.raises(UnsupportedError, match="Unlisted"):
        find_routers(model)
    assert {site.rule.name for site in register_routers(model)} == {row}


@pytest.mark.parametrize("norm_topk_prob", [True, False])
def test_register_routers_flag_that_the_router_reads_is_followed_in_other_models(norm_topk_prob: bool) -> None:
    """Of two rows that do the same while the flag is set, the one that reads it is the router's."""
    model = SmallDecoder(partial(FlaggedSoftmax, norm_topk_prob))
    assert register_routers(model)[0].rule.name == FLAGGED
    other = SmallDecoder(partial(FlaggedSoftmax, not norm_topk_prob))
    native = logits_of(other)
    with apply_mote(other, MoTEConfig(suppress=[[0, 1]], suppress_mode="reroute")):
        assert not torch.equal(logits_of(other), native)


def test_register_routers_flag_that_the_router_ignores_is_ignored() -> None:
    class Ignoring(Softmax):
        def __init__(self) -> None:
            super().__init__()
            self.norm_topk_prob = True

    assert register_routers(SmallDecoder(Ignoring))[0].rule.name == MIXTRAL


@pytest.mark.parametrize(("fill", "rule"), [(float("-inf"), GROUPS), (0.0, GROUPS_AT_0)])
@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_register_routers_rows_that_agree_on_all_inputs_are_told_apart_by_the_bias(
    fill: float, rule: str, bias: float
) -> None:
    """With no negative choice score it makes no difference what the other groups are filled with."""

    class Filled(Groups):
        pass

    Filled.fill = fill
    model = SmallDecoder(Filled)
    for layer in model.layers:
        layer.mlp.gate.e_score_correction_bias.fill_(bias)
    assert {site.rule.name for site in register_routers(model)} == {rule}


@pytest.mark.parametrize(("epsilon", "rule"), [(1e-15, MUSE), (0.0, SIGMOID)])
def test_register_routers_rows_that_agree_on_ordinary_inputs_are_told_apart_by_low_logits(
    epsilon: float, rule: str
) -> None:
    class Scaled(Sigmoid):
        def __init__(self) -> None:
            super().__init__()
            self.routed_scaling_factor = 1.0

    Scaled.epsilon = epsilon
    assert {site.rule.name for site in register_routers(SmallDecoder(Scaled))} == {rule}


def test_register_routers_order_of_unsorted_experts_is_told_apart_by_another_top_k() -> None:
    """Two unsorted experts come out sorted on a CPU, and four do not."""
    assert register_routers(SmallDecoder(partial(Sigmoid, 2)))[0].rule.name == SIGMOID


class Stubborn(Sigmoid):
    """Always two experts, so that nothing shows whether they are meant to be sorted."""

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits.float().sigmoid()
        indices = (scores + self.e_score_correction_bias).topk(2, sorted=False).indices
        weights = scores.gather(-1, indices)
        return weights / weights.sum(-1, keepdim=True), indices


def test_register_routers_ambiguous_router_is_refused_with_the_rows_and_naming_one_settles_it() -> None:
    model = SmallDecoder(partial(Stubborn, 2))
    with pytest.raises(UnsupportedError) as caught:
        register_routers(model)
    for name in (SIGMOID, SORTED_SIGMOID, "Stubborn", "layers.0.mlp.gate", "rule="):
        assert name in str(caught.value)
    with pytest.raises(UnsupportedError, match="register_routers"):
        find_routers(model)
    assert {site.rule.name for site in register_routers(model, rule=SIGMOID)} == {SIGMOID}


class Squared(Router):
    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        weights, indices = logits.softmax(-1).square().topk(self.top_k)
        return weights, indices


class Bare(Router):
    def forward(self, hidden: Tensor) -> Tensor:  # type: ignore[override]
        return hidden @ self.weight.T


class Raising(Router):
    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        raise ZeroDivisionError("of its own")


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize(
    ("router", "words"),
    [
        (Squared, ["no rule reproduces Squared", "layers.0.mlp.gate", "tokens by", "RoutingRule"]),
        (Bare, ["Bare does not have the signature that most routers share", "logits, weights and indices"]),
        (Raising, ["Raising does not have the signature that most routers share", "of its own"]),
    ],
)
def test_register_routers_router_that_no_rule_reproduces_is_refused(
    router: type[Router], words: list[str], declared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SmallDecoder(router)
    if declared:
        declare(monkeypatch, model, router)
    with pytest.raises(UnsupportedError) as caught:
        register_routers(model)
    for word in words:
        assert word in str(caught.value)
    with pytest.raises(UnsupportedError):
        find_routers(model)
    assert num_hooks(model) == 0


def test_register_routers_one_layer_that_differs_refuses_the_class_and_registers_none() -> None:
    """A scale that no row reads, in the last layer alone."""

    class Tempered(Softmax):
        temperature = 1.0

        def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
            return super().decide(logits / self.temperature)

    model = SmallDecoder(Tempered)
    model.layers[-1].mlp.gate.temperature = 2.0
    with pytest.raises(UnsupportedError, match=r"layers\.1\.mlp\.gate: no rule reproduces Tempered"):
        register_routers(model)
    model.layers[0].mlp.gate = Softmax()
    with pytest.raises(UnsupportedError, match="Tempered"):
        register_routers(model)
    assert registry._REGISTERED == {}


@pytest.mark.parametrize("declared", [False, True])
def test_find_routers_unlisted_router_is_refused_by_default_and_the_remedy_helps(
    declared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SmallDecoder(Softmax)
    if declared:
        declare(monkeypatch, model, Softmax)
    config = MoTEConfig(suppress=[[0, 1]])
    acts: list[Callable[[], object]] = [
        lambda: find_routers(model),
        lambda: apply_mote(model, config),
        lambda: MoTEConfig.for_model(model, suppress=[[0, 1]]),
        lambda: record_routing(model),
    ]
    for act in acts:
        with pytest.raises(UnsupportedError, match=r"no row of the table.*got Softmax.*register_routers\(model\)"):
            act()
    assert num_hooks(model) == 0
    register_routers(model)
    for act in acts:
        act()


def test_register_routers_twice_changes_nothing_and_a_deep_copy_is_known() -> None:
    model = SmallDecoder(Softmax)
    first = [site.rule for site in register_routers(model)]
    assert [site.rule for site in register_routers(model)] == first
    assert [site.rule for site in find_routers(copy.deepcopy(model))] == first


def test_register_rule_class_with_a_rule_is_refused() -> None:
    row = next(rule for rule in RULES if rule.name == CHOSEN)
    register_rule(ChosenSoftmax, row)
    with pytest.raises(ConfigError, match="ChosenSoftmax"):
        register_rule(ChosenSoftmax, row)
    listed_one = type(PAIRS[MIXTRAL][1]())
    with pytest.raises(ConfigError, match="MixtralTopKRouter"):
        register_rule(listed_one, row)


def test_register_routers_rule_for_a_model_without_unlisted_routers_is_refused() -> None:
    known = SmallDecoder(PAIRS[MIXTRAL][1])
    assert [site.rule.name for site in register_routers(known)] == [MIXTRAL] * LAYERS
    with pytest.raises(ConfigError, match="register_routers.*rule"):
        register_routers(known, rule=CHOSEN)


def test_register_routers_rule_that_does_not_fit_or_exist_is_refused() -> None:
    model = SmallDecoder(Softmax)
    with pytest.raises(UnsupportedError, match="no rule reproduces Softmax"):
        register_routers(model, rule=GROUPS)
    with pytest.raises(UnknownNameError, match=f"Did you mean '{CHOSEN}'"):
        register_routers(model, rule="top-k, softmax of the choosen")
    with pytest.raises(ConfigError, match="adapter"):
        register_routers(model, rule=RoutingRule(name="mine", scoring="logits", adapter="sparsemixer"))
    with pytest.raises(UnsupportedError, match="not a model"):
        register_routers("Softmax")  # type: ignore[arg-type]


def test_register_routers_takes_the_id_of_a_rule() -> None:
    model = SmallDecoder(Softmax)
    with pytest.raises(UnsupportedError, match="no rule reproduces Softmax"):
        register_routers(model, rule="softmax_group_topk_renorm")
    with pytest.raises(UnknownNameError, match="Did you mean 'softmax_topk_renorm'"):
        register_routers(model, rule="softmax_topk_renormed")
    sites = register_routers(model, rule="softmax_topk_renorm")
    assert {site.rule.name for site in sites} == {MIXTRAL}


def test_routing_rules_have_ids_of_their_own() -> None:
    ids = [rule.id for rule in RULES]
    assert len({*ids, *(rule.name for rule in RULES)}) == 2 * len(RULES) - sum(rule.id == rule.name for rule in RULES)
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in ids)
    own = RoutingRule(name="Top-k, my way", scoring="softmax")
    assert (own.id, own.routers) == ("top_k_my_way", {})


def test_register_routers_rule_of_ones_own_names_the_attributes() -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts_in_all, self.experts_at_once, self.factor = EXPERTS, 2, 0.5
            self.weight = nn.Parameter(torch.zeros(EXPERTS, WIDTH))

        def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
            logits = hidden @ self.weight.T
            weights, indices = logits.sigmoid().topk(self.experts_at_once)
            return logits, weights * self.factor, indices

    model = SmallDecoder(Foreign)
    with pytest.raises(UnsupportedError, match="no routed experts"):
        register_routers(model)
    mine = RoutingRule(
        name="sigmoid, scaled",
        scoring="sigmoid",
        num_experts="experts_in_all",
        top_k="experts_at_once",
        scale="factor",
    )
    sites = register_routers(model, rule=mine)
    assert [(site.rule.name, site.num_experts, site.top_k) for site in sites] == [(mine.name, EXPERTS, 2)] * LAYERS
    with apply_mote(model, MoTEConfig(suppress=[[0, 1]], suppress_mode="reroute")), record_routing(model) as record:
        logits_of(model)
    assert record.total().counts[0, 1] == 0


def test_register_routers_leaves_what_a_router_counts_and_its_mode_alone() -> None:
    class Counting(Softmax):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.load = nn.Buffer(torch.zeros(EXPERTS))

        def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
            self.calls += 1
            noise = torch.randn_like(logits)
            if self.training:
                logits = logits + noise
            weights, indices = super().decide(logits)
            self.load += torch.bincount(indices.flatten(), minlength=EXPERTS)
            return weights, indices

    model = SmallDecoder(Counting).train()
    loads = [layer.mlp.gate.load.clone() for layer in model.layers]
    random_state = torch.get_rng_state()
    assert {site.rule.name for site in register_routers(model)} == {MIXTRAL}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in model.modules())
    assert [layer.mlp.gate.calls for layer in model.layers] == [0] * LAYERS
    assert all(torch.equal(layer.mlp.gate.load, load) for layer, load in zip(model.layers, loads, strict=True))


def test_register_routers_router_without_an_answer_to_zeros_is_taken_in() -> None:
    class Normed(Softmax):
        def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
            return super().forward(hidden / hidden.norm(dim=-1, keepdim=True))

    assert {site.rule.name for site in register_routers(SmallDecoder(Normed))} == {MIXTRAL}


def test_register_routers_what_only_looks_like_a_router_is_passed_over_beside_one() -> None:
    class Experts(nn.Linear):
        num_experts, top_k = EXPERTS, 3

        def forward(self, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
            return hidden

    model = SmallDecoder(Softmax)
    model.layers[0].mlp.fused = Experts(WIDTH, WIDTH)
    assert [site.path for site in register_routers(model)] == ["layers.0.mlp.gate", "layers.1.mlp.gate"]


def test_register_routers_layer_with_nothing_but_a_strange_router_is_refused() -> None:
    model = SmallDecoder(Softmax)
    model.layers[1].mlp.gate = Raising()
    with pytest.raises(UnsupportedError, match=r"layers\.1\.mlp\.gate: Raising"):
        register_routers(model)
    assert registry._REGISTERED == {}


def test_register_routers_router_in_float32_and_after_registration_another_rule_is_noticed() -> None:
    """Every router is checked against its rule again before it is touched."""

    class Tempered(Softmax):
        temperature = 1.0

        def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
            return super().decide(logits / self.temperature)

    model = SmallDecoder(Tempered)
    register_routers(model)
    Tempered.temperature = 2.0
    with pytest.raises(RouterContractError, match="Tempered"):
        apply_mote(model, MoTEConfig(suppress=[[0, 1]]))
    assert num_hooks(model) == 0


def test_register_routers_offloaded_router_is_run_with_its_weights() -> None:
    model = cpu_offload(SmallDecoder(Groups), execution_device="cpu", offload_buffers=True)
    assert next(model.layers[0].mlp.gate.parameters()).is_meta
    assert {site.rule.name for site in register_routers(model)} == {GROUPS}
    assert next(model.layers[0].mlp.gate.parameters()).is_meta


def test_register_routers_router_without_weights_is_refused_naming_the_way_out() -> None:
    model = SmallDecoder(Softmax).to("meta")
    with pytest.raises(UnsupportedError, match="meta device.*Load the weights"):
        register_routers(model)


def test_register_routers_family_that_cannot_work_stays_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"register_routers.*product keys"):
        register_routers(TINY_FAMILIES["doge"]())


class Many(Router):
    """Many rules in one, most of which the table does not have."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(options["top_k"], options["order"])
        self.options = options
        self.e_score_correction_bias = nn.Buffer(torch.zeros(EXPERTS))
        self.norm_topk_prob, self.routed_scaling_factor = options["norm"], options["scale"]
        self.num_group, self.topk_group = options["groups"], max(1, options["groups"] // 2)

    def decide(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        options = self.options
        scores = {"softmax": logits.softmax(-1), "sigmoid": logits.sigmoid(), "logits": logits}[options["scoring"]]
        choice = scores + self.e_score_correction_bias if options["biased"] else scores
        if self.num_group > 1:
            grouped = choice.unflatten(-1, (self.num_group, -1))
            kept = grouped.topk(2).values.sum(-1).topk(self.topk_group).indices
            inside = torch.zeros(grouped.shape[:2], dtype=torch.bool).scatter(-1, kept, True)
            choice = grouped.masked_fill(~inside[..., None], options["fill"]).flatten(1)
        indices = choice.topk(self.top_k, sorted=options["sorted"]).indices
        weights = scores.gather(-1, indices)
        if options["chosen"] != "scores":
            weights = weights.softmax(-1) if options["chosen"] == "softmax" else weights.sigmoid()
        if self.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + options["epsilon"])
        return (weights * self.routed_scaling_factor if options["scaled"] else weights), indices


OPTIONS = st.fixed_dictionaries(
    {
        "top_k": st.integers(1, 4),
        "order": st.permutations([0, 1, 2]).map(tuple),
        "scoring": st.sampled_from(["softmax", "sigmoid", "logits"]),
        "chosen": st.sampled_from(["scores", "softmax", "sigmoid"]),
        "biased": st.booleans(),
        "bias": st.sampled_from([0.0, 0.3, 2.0]),
        "groups": st.sampled_from([1, 2, 4]),
        "fill": st.sampled_from([float("-inf"), 0.0]),
        "sorted": st.booleans(),
        "norm": st.booleans(),
        "epsilon": st.sampled_from([0.0, 1e-20, 1e-15, 1e-6]),
        "scaled": st.booleans(),
        "scale": st.sampled_from([1.0, 2.5]),
    }
)


def test_register_routers_accepts_only_what_the_rule_does_on_inputs_it_has_not_seen() -> None:
    accepted: set[str] = set()

    @given(options=OPTIONS, seed=st.integers(0, 2**31))
    @settings(max_examples=100, deadline=None)
    def check(options: dict[str, Any], seed: int) -> None:
        registry._REGISTERED.clear()
        generator = torch.Generator().manual_seed(seed)
        model = SmallDecoder(partial(Many, options))
        for layer in model.layers:
            bias = torch.randn(EXPERTS, generator=generator) * options["bias"]
            layer.mlp.gate.e_score_correction_bias.copy_(bias)
        try:
            sites = register_routers(model)
        except UnsupportedError as error:
            if "no rule reproduces Many" not in str(error) and "they cannot be distinguished" not in str(error):
                raise
            return
        accepted.add(sites[0].rule.name)
        for site in sites:
            hidden = torch.randn(200, WIDTH, generator=generator) * 2 * float(torch.rand(1, generator=generator))
            output = site.module(hidden)
            logits, weights, indices = (output[options["order"].index(slot)] for slot in range(3))
            routing = site.select(logits)
            assert torch.equal(routing.indices, indices)
            # The sigmoid of a part of a tensor can differ in its last bit from the part of a sigmoid.
            torch.testing.assert_close(routing.weights, weights, rtol=1e-6, atol=0)

    check()
    assert len(accepted) >= 3, "the property is not about refusals alone"
