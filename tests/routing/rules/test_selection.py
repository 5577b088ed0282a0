"""Properties of the pure selection, for every rule of the table, with random logits and random edits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from routing.family_reference import FAMILIES, SUFFICIENT_MARGIN, Edit, Family, Numbers, RoutedTokens, route_all
from routing_cases import dense
from tiny_models import TINY_MODELS, tiny_model

from hf_mote import find_routers
from hf_mote.routing.rules.edits import RoutingEdit, merge_edits
from hf_mote.routing.rules.families import RULES
from hf_mote.routing.rules.selection import BoundRule, Routing, select

E = 8
TOKENS = 6
MIXTRAL, V2, V3 = (
    next(rule for rule in RULES if family in rule.families) for family in ("mixtral", "deepseek_v2", "deepseek_v3")
)


@dataclass(frozen=True)
class Case:
    """One router: the package's numbers for it, and the reference's."""

    selection: BoundRule
    family: Family
    numbers: Numbers
    bias: torch.Tensor | None = None

    def routed(self, logits: torch.Tensor, edit: Edit) -> RoutedTokens:
        """What the reference makes of logits."""
        bias = None if self.bias is None else self.bias.numpy()
        return route_all(logits.numpy(), self.family, self.numbers, bias, edit)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


BIAS = torch.linspace(-0.3, 0.3, E)[torch.tensor([3, 0, 6, 1, 7, 2, 5, 4])]
CASES = {
    "mixtral": Case(BoundRule(MIXTRAL, E, 2, renormalize=True), FAMILIES["mixtral"], Numbers(E, 2, renorm=True)),
    "deepseek_v2": Case(BoundRule(V2, E, 3, scale=1.5), FAMILIES["deepseek_v2"], Numbers(E, 3, scale=1.5)),
    "deepseek_v2_groups": Case(
        BoundRule(V2, E, 3, num_groups=4, groups_kept=3, scale=16.0),
        FAMILIES["deepseek_v2"],
        Numbers(E, 3, 4, 3, scale=16.0),
    ),
    "deepseek_v3": Case(
        BoundRule(V3, E, 4, renormalize=True, scale=2.5),
        FAMILIES["deepseek_v3"],
        Numbers(E, 4, renorm=True, scale=2.5, activation=sigmoid),
        BIAS,
    ),
    "deepseek_v3_groups": Case(
        BoundRule(V3, E, 2, num_groups=2, groups_kept=1, renormalize=True, scale=2.5),
        FAMILIES["deepseek_v3"],
        Numbers(E, 2, 2, 1, renorm=True, scale=2.5, activation=sigmoid),
        BIAS,
    ),
    "deepseek_v3_raw": Case(
        BoundRule(V3, E, 2, num_groups=4, groups_kept=2),
        FAMILIES["deepseek_v3"],
        Numbers(E, 2, 4, 2, activation=sigmoid),
        BIAS,
    ),
}

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
seeds = st.integers(0, 2**32 - 1)
experts = st.sets(st.integers(0, E - 1), max_size=3)
shares = st.sampled_from([0.0, 0.25, 0.5, 0.875])
gains = st.sampled_from([1.5, 4.0])


def logits_of(seed: int, spread: float = 1.5) -> torch.Tensor:
    return torch.randn(TOKENS, E, generator=torch.Generator().manual_seed(seed)) * spread


def mask(members: set[int]) -> torch.Tensor:
    return torch.isin(torch.arange(E), torch.tensor(sorted(members), dtype=torch.long))


def shares_of(members: set[int], share: float) -> torch.Tensor:
    return torch.where(mask(members), share, 1.0)


def run(case: Case, logits: torch.Tensor, edit: RoutingEdit | None = None) -> Routing:
    return select(logits, case.selection, case.bias, edit)


def spread(routing: Routing) -> tuple[np.ndarray, np.ndarray]:
    """Weights and choice, `(tokens, experts)`."""
    return dense(routing.weights, routing.indices, E)


def edits(draw: Any) -> RoutingEdit:
    """Any edit: every field may be there or not."""
    forced = draw(st.sets(st.integers(0, E - 1), max_size=1))
    # With one suppressed expert, a forced one finds an unsuppressed one to replace.
    suppressed = draw(st.sets(st.integers(0, E - 1), max_size=1 if forced else 3)) - forced
    values = st.lists(st.floats(-3, 3, width=32), min_size=E, max_size=E).map(torch.tensor)
    fields: dict[str, Any] = {}
    if draw(st.booleans()):
        fields["drop_share"] = shares_of(suppressed, draw(shares))
    if draw(st.booleans()):
        fields["gain"] = shares_of(suppressed, draw(shares | gains))
    if forced:
        fields["forced"] = mask(forced)
        if draw(st.booleans()):
            fields["forced_to_max"] = mask(forced)
        if draw(st.booleans()):
            fields["forced_gain"] = torch.where(mask(forced), draw(st.sampled_from([0.5, 2.0])), 1.0)
    if draw(st.booleans()):
        fields["logit_bias"] = draw(values)
    if draw(st.booleans()):
        fields["selection_bias"] = draw(values)
    if draw(st.booleans()):
        fields["banned"] = mask({expert for expert in suppressed if expert in (1, 5)})
    return RoutingEdit(**fields)


any_edit = st.composite(edits)()


@pytest.mark.parametrize("name", TINY_MODELS)
@given(seed=seeds, spread=st.sampled_from([0.1, 1.0, 30.0]))
@settings(max_examples=15, deadline=None)
def test_select_without_an_edit_is_the_routers_own_answer_bit_for_bit(name: str, seed: int, spread: float) -> None:
    site = find_routers(_model(name))[0]
    hidden = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(seed)) * spread
    with torch.no_grad():
        logits, weights, indices = site.module(hidden)
    given_logits = logits.clone()
    for edit in (None, RoutingEdit()):
        mine = select(logits, site.selection, site.selection_bias(), edit)
        assert torch.equal(mine.indices, indices)
        assert torch.equal(mine.weights, weights.float())
    assert torch.equal(logits, given_logits)


_BUILT: dict[str, Any] = {}


def _model(name: str) -> Any:
    if name not in _BUILT:
        _BUILT[name] = tiny_model(name)
    return _BUILT[name]


@cases
@given(seed=seeds, edit=any_edit)
@settings(max_examples=40, deadline=None)
def test_select_any_edit_indices_are_unique_and_weights_finite_and_not_negative(
    case: Case, seed: int, edit: RoutingEdit
) -> None:
    routing = run(case, logits_of(seed), edit)
    weights, indices = routing.weights, routing.indices
    assert weights.shape == indices.shape == (TOKENS, case.selection.top_k)
    assert (weights.dtype, indices.dtype) == (torch.float32, torch.int64)
    assert ((indices >= 0) & (indices < E)).all()
    dense(weights, indices, E)  # raises on a repeated index
    assert weights.isfinite().all()
    assert (weights >= 0).all()


@cases
@given(seed=seeds, banned=experts, forced=experts)
@settings(max_examples=40, deadline=None)
def test_select_rerouted_experts_are_never_chosen(case: Case, seed: int, banned: set[int], forced: set[int]) -> None:
    forced = set(sorted(forced - banned)[:2])
    assume(_survivors_suffice(case, banned))
    edit = RoutingEdit(banned=mask(banned), forced=mask(forced))
    weights, chosen = spread(run(case, logits_of(seed), edit))
    assert not chosen[:, sorted(banned)].any()
    assert chosen[:, sorted(forced)].all()
    assert (weights.sum(axis=1) > 0).all()


@cases
@given(seed=seeds, banned=st.sets(st.integers(0, E - 1)))
@settings(max_examples=40, deadline=None)
def test_select_too_few_survivors_rerouted_experts_never_return_with_a_weight(
    case: Case, seed: int, banned: set[int]
) -> None:
    weights, _ = spread(run(case, logits_of(seed), RoutingEdit(banned=mask(banned))))
    assert (weights[:, sorted(banned)] == 0).all()
    assert np.isfinite(weights).all()


@cases
@given(seed=seeds, forced=experts, suppressed=experts, share=shares)
@settings(max_examples=40, deadline=None)
def test_select_forced_experts_are_always_chosen_and_dropped_ones_keep_their_slots(
    case: Case, seed: int, forced: set[int], suppressed: set[int], share: float
) -> None:
    suppressed = set(sorted(suppressed)[:1])
    forced = set(sorted(forced - suppressed)[: case.selection.top_k - 1])
    logits = logits_of(seed)
    native = spread(run(case, logits))[1]
    edit = RoutingEdit(drop_share=shares_of(suppressed, share), forced=mask(forced))
    chosen = spread(run(case, logits, edit))[1]
    assert chosen[:, sorted(forced)].all()
    # "it takes the place of the weakest chosen, unsuppressed one": a suppressed expert stays where it was.
    assert (chosen[:, sorted(suppressed)] == native[:, sorted(suppressed)]).all()


@cases
@given(seed=seeds, suppressed=experts, share=shares)
@settings(max_examples=40, deadline=None)
def test_select_drop_keeps_the_choice_and_the_sum(case: Case, seed: int, suppressed: set[int], share: float) -> None:
    logits = logits_of(seed)
    before, after = run(case, logits), run(case, logits, RoutingEdit(drop_share=shares_of(suppressed, share)))
    assert torch.equal(before.indices, after.indices)
    hit = mask(suppressed)[before.indices]
    survives = ~hit.all(dim=1)
    # One division and one multiplication in float32.
    torch.testing.assert_close(after.weights.sum(1)[survives], before.weights.sum(1)[survives], rtol=1e-6, atol=0)
    torch.testing.assert_close(after.weights[hit], before.weights[hit] * share, rtol=0, atol=0)
    ratios = (after.weights / before.weights).masked_fill(hit, float("nan"))
    for row in ratios[survives]:
        kept = row[~row.isnan()]
        torch.testing.assert_close(kept, kept[:1].expand_as(kept), rtol=1e-6, atol=0)  # in proportion
    assert torch.equal(after.weights[~hit.any(dim=1)], before.weights[~hit.any(dim=1)])


@cases
@given(seed=seeds, suppressed=experts, share=shares)
@settings(max_examples=25, deadline=None)
def test_select_zero_changes_nothing_but_the_suppressed_weights(
    case: Case, seed: int, suppressed: set[int], share: float
) -> None:
    logits = logits_of(seed)
    before, after = run(case, logits), run(case, logits, RoutingEdit(gain=shares_of(suppressed, share)))
    assert torch.equal(before.indices, after.indices)
    hit = mask(suppressed)[before.indices]
    assert torch.equal(after.weights[~hit], before.weights[~hit])
    assert torch.equal(after.weights[hit], before.weights[hit] * share)


@cases
def test_select_every_chosen_expert_dropped_gives_zero_weights(case: Case) -> None:
    for edit in (
        RoutingEdit(drop_share=torch.zeros(E)),
        RoutingEdit(gain=torch.zeros(E)),
        RoutingEdit(banned=mask(set(range(E)))),
    ):
        weights = run(case, logits_of(0), edit).weights
        assert torch.equal(weights, torch.zeros_like(weights))


@cases
@pytest.mark.parametrize("gap", [50.0, 89.0, 95.0, 102.0, 110.0, 300.0])
def test_select_drop_of_an_overwhelming_expert_stays_finite_and_keeps_the_sum(case: Case, gap: float) -> None:
    """The survivors' scores may be so small that their inverse is no float32."""
    if case.family.scoring == "softmax":
        logits = -torch.arange(E, dtype=torch.float32)[None] * 0.25 - gap
    else:
        logits = torch.linspace(-0.5, 0.5, E)[None] - gap
    logits[0, 0] = 0.0
    case = replace(case, bias=None) if case.bias is None else replace(case, bias=torch.zeros(E))
    before = run(case, logits)
    after = run(case, logits, RoutingEdit(drop_share=shares_of({0}, 0.0)))
    assert 0 in before.indices
    assert after.weights.isfinite().all()
    assert (after.weights[after.indices == 0] == 0).all()
    if float(before.weights[before.indices != 0].sum()) > 0:
        # Subnormal numbers carry few digits, but they still share out one sum.
        torch.testing.assert_close(after.weights.sum(), before.weights.sum(), rtol=1e-5, atol=0)


combinations = st.fixed_dictionaries(
    {
        "suppress": experts.map(frozenset),
        "stimulate": experts.map(frozenset),
        "bias": st.dictionaries(st.integers(0, E - 1), st.sampled_from([0.05, 0.4, 1.5]), max_size=3),
        "suppress_mode": st.sampled_from(["drop", "reroute", "zero"]),
        "stimulate_weight": st.sampled_from(["own", "max", 0.3]),
        "bias_on": st.sampled_from(["logits", "selection"]),
        "strength": st.sampled_from([1.0, 0.5]),
        "gain": st.dictionaries(st.integers(0, E - 1), shares | gains, max_size=2),
    }
)


@cases
@given(seed=seeds, fields=combinations)
@settings(max_examples=80, deadline=None)
def test_select_any_combination_equals_the_reference(case: Case, seed: int, fields: dict[str, Any]) -> None:
    edit = Edit(**fields)
    if edit.suppress_mode == "reroute":
        assume(_survivors_suffice(case, set(edit.suppress)))
        edit = replace(edit, strength=1.0)
    edit = replace(edit, gain={e: value for e, value in edit.gain.items() if e not in edit.suppress})
    weakened = sum(value < 1 for value in edit.gain.values())
    # Two suppressed experts at most and one forced: somebody unsuppressed can make room.
    room = max(case.selection.top_k - len(edit.suppress), 0) if edit.suppress_mode != "reroute" else 2
    room = max(room - weakened, 0)
    edit = replace(edit, stimulate=frozenset(sorted(edit.stimulate - edit.suppress - edit.gain.keys())[:room]))
    logits = logits_of(seed)
    wanted = case.routed(logits, edit)
    weights, chosen = spread(run(case, logits, _as_routing_edit(edit)))
    decided = wanted.margin > SUFFICIENT_MARGIN
    np.testing.assert_array_equal(chosen[decided], wanted.chosen[decided])
    # Weights reach 16; float32 carries seven digits.
    np.testing.assert_allclose(weights[decided], wanted.weights[decided], rtol=2e-6, atol=1e-6)


@cases
@given(seed=seeds)
@settings(max_examples=10, deadline=None)
def test_select_forced_expert_among_only_suppressed_ones_replaces_the_weakest(case: Case, seed: int) -> None:
    logits = logits_of(seed)[:1]
    ranked = spread(run(case, logits))[1][0]
    suppressed = frozenset(np.flatnonzero(ranked).tolist())
    forced = min(set(range(E)) - suppressed)
    edit = Edit(suppressed, frozenset({forced}))
    wanted = case.routed(logits, edit)
    assume((wanted.margin > SUFFICIENT_MARGIN).all())
    weights, chosen = spread(run(case, logits, _as_routing_edit(edit)))
    np.testing.assert_array_equal(chosen, wanted.chosen)
    np.testing.assert_allclose(weights, wanted.weights, rtol=2e-6, atol=1e-6)


@cases
@given(seed=seeds, edit=any_edit)
@settings(max_examples=40, deadline=None)
def test_select_relabelling_experts_commutes(case: Case, seed: int, edit: RoutingEdit) -> None:
    """Groups trade places, and experts within them: what is chosen trades places likewise."""
    generator = torch.Generator().manual_seed(seed)
    size = E // case.selection.num_groups
    order = torch.cat(
        [
            group * size + torch.randperm(size, generator=generator)
            for group in torch.randperm(case.selection.num_groups, generator=generator).tolist()
        ]
    )
    logits = logits_of(seed)
    bias = None if case.bias is None else case.bias[order]
    moved = RoutingEdit(**{name: value[order] for name, value in _fields(edit).items()})
    assume(_decided(case, logits, edit))
    weights, chosen = spread(run(case, logits, edit))
    weights_moved, chosen_moved = spread(select(logits[:, order], case.selection, bias, moved))
    np.testing.assert_array_equal(chosen[:, order], chosen_moved)
    # The softmax and the sums add up in another order.
    np.testing.assert_allclose(weights[:, order], weights_moved, rtol=1e-5, atol=1e-6)


@cases
@given(seed=seeds, first=experts, second=experts, name=st.sampled_from(["drop_share", "gain", "banned"]))
@settings(max_examples=25, deadline=None)
def test_merge_edits_of_two_target_sets_is_the_edit_of_their_union(
    case: Case, seed: int, first: set[int], second: set[int], name: str
) -> None:
    def make(members: set[int]) -> RoutingEdit:
        suppress = mask(members) if name == "banned" else shares_of(members, 0.0)
        bias = torch.where(mask(members), 0.5, 0.0)
        return RoutingEdit(**{name: suppress}, logit_bias=bias, selection_bias=bias)

    second = second - first
    logits = logits_of(seed)
    union = run(case, logits, make(first | second))
    for pair in ((first, second), (second, first)):
        merged = run(case, logits, merge_edits([(make(members), None) for members in pair]))
        assert torch.equal(merged.indices, union.indices)
        assert torch.equal(merged.weights, union.weights)


@cases
@given(seed=seeds, edit=any_edit, other=any_edit, tokens=st.lists(st.booleans(), min_size=TOKENS, max_size=TOKENS))
@settings(max_examples=40, deadline=None)
def test_merge_edits_token_mask_touches_only_its_tokens(
    case: Case, seed: int, edit: RoutingEdit, other: RoutingEdit, tokens: list[bool]
) -> None:
    """Two edits on complementary tokens: every token is as if its own edit were the only one."""
    logits, here = logits_of(seed), torch.tensor(tokens)
    both = run(case, logits, merge_edits([(edit, here), (other, ~here)]))
    mine, others = run(case, logits, edit), run(case, logits, other)
    alone = run(case, logits, merge_edits([(edit, here)]))
    native = run(case, logits)
    for found, wanted, at in ((both, mine, here), (both, others, ~here), (alone, mine, here), (alone, native, ~here)):
        weights, chosen = spread(found)
        weights_wanted, chosen_wanted = spread(wanted)
        np.testing.assert_array_equal(chosen[at.numpy()], chosen_wanted[at.numpy()])
        # The order of the slots may be another, and with it that of the sum.
        np.testing.assert_allclose(weights[at.numpy()], weights_wanted[at.numpy()], rtol=1e-6, atol=0)


@cases
@given(seed=seeds, edit=any_edit)
@settings(max_examples=20, deadline=None)
def test_select_tokens_do_not_depend_on_each_other(case: Case, seed: int, edit: RoutingEdit) -> None:
    logits = logits_of(seed)
    routing = run(case, logits, edit)
    weights, indices = routing.weights, routing.indices
    for row in range(TOKENS):
        alone = run(case, logits[row : row + 1], edit)
        assert torch.equal(alone.indices[0].sort().values, indices[row].sort().values)
        torch.testing.assert_close(alone.weights[0].sort().values, weights[row].sort().values, rtol=1e-6, atol=1e-7)


def _as_routing_edit(edit: Edit) -> RoutingEdit:
    bias = torch.zeros(E)
    for expert, value in edit.bias.items():
        bias[expert] = value * edit.strength
    gain = shares_of(set(edit.suppress), 1 - edit.strength) if edit.suppress_mode == "zero" else torch.ones(E)
    for expert, factor in edit.gains().items():
        gain[expert] = factor
    left, forced, weight = (
        shares_of(set(edit.suppress), 1 - edit.strength),
        mask(set(edit.stimulate)),
        edit.stimulate_weight,
    )
    return RoutingEdit(
        drop_share=left if edit.suppress_mode == "drop" else None,
        gain=gain if edit.gain or edit.suppress_mode == "zero" else None,
        banned=mask(set(edit.suppress)) if edit.suppress_mode == "reroute" else None,
        forced=forced if edit.stimulate else None,
        forced_to_max=forced if weight == "max" else None,
        forced_weight=torch.where(forced, weight, torch.nan) if isinstance(weight, float) else None,
        forced_gain=torch.where(forced, edit.strength, 1.0),
        logit_bias=bias if edit.bias_on == "logits" else None,
        selection_bias=bias if edit.bias_on == "selection" else None,
    )


def _fields(edit: RoutingEdit) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(edit).items() if isinstance(value, torch.Tensor)}


def _survivors_suffice(case: Case, banned: set[int]) -> bool:
    """Whether every group keeps the two experts that its score is made of, and any kept groups fill all slots."""
    size = E // case.selection.num_groups
    left = [size - sum(e // size == group for e in banned) for group in range(case.selection.num_groups)]
    enough = sum(sorted(left)[: case.selection.groups_kept]) >= case.selection.top_k
    return enough and (case.family.groups != "sum2" or case.selection.num_groups == 1 or min(left) > 1)


def _decided(case: Case, logits: torch.Tensor, edit: RoutingEdit) -> bool:
    """Whether small changes of the scores leave the choice as it is."""
    chosen = spread(run(case, logits, edit))[1]
    for step in range(6):
        noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(step)) * 1e-4
        if (spread(run(case, logits + noise, edit))[1] != chosen).any():
            return False
    return True


def test_select_groups_with_one_survivor_are_ranked_by_it() -> None:
    """Four groups of two with one survivor each: the best two survivors win, not whichever groups come first."""
    rule = next(rule for rule in RULES if "DeepseekV3TopkRouter" in rule.routers)
    selection = BoundRule(rule, num_experts=8, top_k=2, num_groups=4, groups_kept=2, renormalize=True)
    logits = torch.tensor([[0.0, 3.0, 0.0, 1.0, 0.0, 2.0, 0.0, -1.0], [0.0, -1.0, 0.0, 1.0, 0.0, 2.0, 0.0, 3.0]])
    banned = torch.tensor([True, False] * 4)
    indices = select(logits, selection, torch.zeros(8), RoutingEdit(banned=banned)).indices
    assert [sorted(row) for row in indices.tolist()] == [[1, 5], [5, 7]]


@cases
@given(seed=seeds, suppressed=experts)
@settings(max_examples=25, deadline=None)
def test_select_dropping_all_or_nothing_is_dropping_by_shares(case: Case, seed: int, suppressed: set[int]) -> None:
    """The cheaper way for whole experts gives what the general one gives, and leaves the same rows alone."""
    logits, keep = logits_of(seed), shares_of(set(suppressed), 0.0)
    general = run(case, logits, RoutingEdit(drop_share=keep))
    cheaper = run(case, logits, RoutingEdit(drop_share=keep, keeps_all_or_nothing=True))
    assert torch.equal(general.indices, cheaper.indices)
    torch.testing.assert_close(general.weights, cheaper.weights, rtol=1e-6, atol=0)
    untouched = (keep[general.indices] == 1).all(dim=-1)
    assert torch.equal(cheaper.weights[untouched], run(case, logits).weights[untouched])
    assert (cheaper.weights[keep[general.indices] == 0] == 0).all()


def test_select_dropped_expert_of_next_to_no_weight_gets_exactly_none() -> None:
    """Its weight is so small that the sum does not notice it."""
    mixtral = BoundRule(RULES[0], num_experts=4, top_k=2, renormalize=True)
    logits = torch.tensor([[20.0, 0.0, -1.0, -2.0]])
    edit = RoutingEdit(drop_share=torch.tensor([1.0, 0.0, 1.0, 1.0]), keeps_all_or_nothing=True)
    native, dropped = select(logits, mixtral), select(logits, mixtral, edit=edit)
    assert native.weights[native.indices == 1].item() > 0
    assert dropped.weights[dropped.indices == 1].item() == 0


@cases
@given(seed=seeds, suppressed=experts, factors=shares)
@settings(max_examples=25, deadline=None)
def test_edit_hits_are_the_tokens_that_chose_a_suppressed_expert(
    case: Case, seed: int, suppressed: set[int], factors: float
) -> None:
    indices = run(case, logits_of(seed)).indices
    wanted = torch.tensor([not suppressed.isdisjoint(row) for row in indices.tolist()])
    for edit in (
        RoutingEdit(drop_share=shares_of(suppressed, factors)),
        RoutingEdit(gain=shares_of(suppressed, factors)),
        RoutingEdit(banned=mask(suppressed)),
        RoutingEdit(
            drop_share=shares_of(set(sorted(suppressed)[:1]), factors), banned=mask(set(sorted(suppressed)[1:]))
        ),
    ):
        assert edit.only_suppresses
        assert edit.suppressed == suppressed
        assert torch.equal(edit.hits(indices), wanted)
    here = torch.arange(TOKENS) % 2 == 0
    for_some = merge_edits([(RoutingEdit(banned=mask(suppressed)), here)])
    assert torch.equal(for_some.hits(indices), wanted & here)
    assert not RoutingEdit(banned=mask(suppressed), logit_bias=torch.zeros(E)).only_suppresses


@pytest.mark.parametrize("case", [case for case in CASES.values() if case.selection.num_groups == 1])
@given(seed=seeds, banned=experts)
@settings(max_examples=40, deadline=None)
def test_select_without_groups_banning_experts_that_are_not_chosen_changes_nothing(
    case: Case, seed: int, banned: set[int]
) -> None:
    """The proof that the hook on a router may leave such tokens alone."""
    logits, edit = logits_of(seed), RoutingEdit(banned=mask(banned))
    native, edited = run(case, logits), run(case, logits, edit)
    spared = ~edit.hits(native.indices).numpy()
    for mine, wanted in zip(spread(edited), spread(native), strict=True):
        # Slots that are not sorted may change places, and with them the order of their sum.
        np.testing.assert_allclose(mine[spared], wanted[spared], rtol=1e-6, atol=0)
    if case.selection.rule.sorted:
        assert torch.equal(edited.indices[spared], native.indices[spared])
        assert torch.equal(edited.weights[spared], native.weights[spared])


def test_select_with_groups_banning_an_expert_that_is_not_chosen_can_change_the_choice() -> None:
    """It counts for the score of its group: 0.32 + 0.24 keeps the third group in, 0.32 alone does not."""
    scores = torch.tensor([[0.5, 0.05, 0.3, 0.26, 0.32, 0.24, 0.01, 0.01]])
    selection = BoundRule(V3, num_experts=8, top_k=2, num_groups=4, groups_kept=2, renormalize=True)
    banned = mask({5})
    native = select(scores.logit(), selection, torch.zeros(8)).indices
    edited = select(scores.logit(), selection, torch.zeros(8), RoutingEdit(banned=banned)).indices
    assert sorted(native[0].tolist()) == [2, 4]
    assert sorted(edited[0].tolist()) == [0, 2]
