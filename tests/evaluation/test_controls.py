"""Random controls: matched, exchangeable with the config, and what follows for the p values."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluation_reports import report_of

from hf_mote import EvaluationReport, MoTEConfig
from hf_mote.errors import ConfigError
from hf_mote.evaluation.controls import random_controls
from hf_mote.evaluation.sweep import Setting, Sweep
from hf_mote.statistics.rates import Rate

Pair = tuple[int, int]
NUM_PROMPTS = 100_000  # so many that rates do not tie by rounding


def layers(number: int, experts: int) -> Any:
    return [SimpleNamespace(layer=layer, num_experts=experts) for layer in range(number)]


def suppressed(config: MoTEConfig) -> set[Pair]:
    return {(layer, expert) for layer, expert in config.suppress}


def controls_of(config: MoTEConfig, sites: Any, num: int = 20, seed: int = 0, **more: Any) -> list[MoTEConfig]:
    return [control for (control,) in random_controls([config], sites, num, seed, **more)]


def test_controls_of_large_layers_match_and_share_no_expert() -> None:
    config = MoTEConfig(suppress=[[0, 3], [0, 60], [2, 5]], suppress_mode="zero", strength=0.5, scope="prompt")
    controls = controls_of(config, layers(3, 64))
    assert len(controls) == 20
    for control in controls:
        assert [layer for layer, _ in control.suppress] == [0, 0, 2]
        assert (control.suppress_mode, control.strength, control.scope) == ("zero", 0.5, "prompt")
    for a, b in itertools.combinations([config, *controls], 2):
        assert not suppressed(a) & suppressed(b)


@pytest.mark.parametrize(("num", "experts", "disjoint"), [(7, 8, True), (8, 8, False), (3, 9, True)])
def test_controls_share_experts_only_where_a_layer_has_too_few(num: int, experts: int, disjoint: bool) -> None:
    config = MoTEConfig(suppress=[[0, 1]] if experts == 8 else [[0, 1], [0, 2]])
    sets = [suppressed(one) for one in [config, *controls_of(config, layers(1, experts), num)]]
    assert sum(map(len, sets)) == len(set().union(*sets))
    assert len(sets) == (1 + num if disjoint else 8)


def test_controls_of_one_expert_of_eight_are_the_seven_others() -> None:
    controls = controls_of(MoTEConfig(suppress=[[0, 3]]), layers(1, 8))
    assert sorted(control.suppress for control in controls) == [[[0, e]] for e in range(8) if e != 3]


def test_controls_where_experts_are_few_are_different_sets_that_may_hold_the_configs_own() -> None:
    config = MoTEConfig(suppress=[[0, 0], [0, 1], [1, 4]])
    drawn = [suppressed(control) for control in controls_of(config, layers(2, 8), 200)]
    assert len({frozenset(one) for one in drawn}) == 200
    assert suppressed(config) not in drawn
    assert any(one & suppressed(config) for one in drawn)
    # 28 x 8 sets, one of them the config's own.
    every = controls_of(config, layers(2, 8), 1000)
    assert len({frozenset(suppressed(control)) for control in every}) == len(every) == 28 * 8 - 1


def test_controls_give_every_part_to_an_expert_of_its_own() -> None:
    config = MoTEConfig(suppress=[[0, 0], [0, 1]], stimulate=[[0, 2]], bias=[[0, 0, 0.5], [0, 3, -1.0]])
    every = controls_of(config, layers(1, 6), 10_000)
    # Expert 0 is suppressed and biased, 1 suppressed, 2 stimulated, 3 biased: 6 x 5 x 4 x 3 ways, one the config's.
    assert len({str(control.to_dict()) for control in every}) == len(every) == 6 * 5 * 4 * 3 - 1
    for control in [*every, *controls_of(config, layers(1, 64), 15)]:
        own = {expert for _, expert in control.suppress}
        (first, second) = sorted(control.bias, key=lambda entry: -entry[2])
        assert len({*own, control.stimulate[0][1], second[1]}) == 4
        assert first[1] in own
        assert (first[2], second[2]) == (0.5, -1.0)


def test_controls_of_gains_give_each_gain_to_a_random_expert() -> None:
    config = MoTEConfig(gain=[[0, 1, 0.5], [0, 3, 4.0]], bias=[[0, 3, 1.0]], strength=0.5)
    every = controls_of(config, layers(1, 6), 10_000)
    assert len({str(control.to_dict()) for control in every}) == len(every) == 6 * 5 - 1
    for control in [*every, *controls_of(config, layers(1, 64), 15)]:
        by_value = {value: expert for _, expert, value in control.gain}
        assert by_value.keys() == {0.5, 4.0}
        assert control.bias == [[0, by_value[4.0], 1.0]]
    far = controls_of(config, layers(1, 64), 15)
    assert len({expert for one in [config, *far] for _, expert, _ in one.gain}) == 2 * 16


def test_controls_of_settings_hold_each_other_as_the_settings_do() -> None:
    order = [[0, 5], [1, 2], [0, 7], [1, 60]]
    configs = [MoTEConfig(suppress=order[:n], strength=s) for n in (1, 2, 4) for s in (0.5, 1.0)]
    for sites in (layers(2, 64), layers(2, 8)):
        order[3][1] = min(order[3][1], sites[0].num_experts - 1)
        configs = [MoTEConfig(suppress=order[:n], strength=s) for n in (1, 2, 4) for s in (0.5, 1.0)]
        for control in random_controls(configs, sites, 20, 3):
            assert [len(one.suppress) for one in control] == [1, 1, 2, 2, 4, 4]
            assert [one.strength for one in control] == [0.5, 1.0] * 3
            for smaller, larger in itertools.pairwise(control):
                assert suppressed(smaller) <= suppressed(larger)


def test_controls_by_usage_come_from_the_block_of_like_use() -> None:
    used = torch.tensor([float((7 * expert) % 64) for expert in range(64)])  # expert 55 is used once, 0 never
    config = MoTEConfig(suppress=[[0, 0]])
    drawn = controls_of(config, layers(1, 64), 20, usage={0: used})
    assert {int(used[control.suppress[0][1]]) for control in drawn} == set(range(1, 21))
    busiest = MoTEConfig(suppress=[[0, int(used.argmax())]])
    drawn = controls_of(busiest, layers(1, 64), 21, usage={0: used})
    assert {int(used[control.suppress[0][1]]) for control in drawn} == set(range(42, 63))
    # Fewer than 40 experts are one block.
    drawn = controls_of(config, layers(1, 39), 38, usage={0: used[:39]})
    assert {control.suppress[0][1] for control in drawn} == set(range(1, 39))


def test_controls_by_usage_split_experts_of_equal_use_by_index() -> None:
    drawn = controls_of(MoTEConfig(suppress=[[0, 5]]), layers(1, 40), 19, usage={0: torch.ones(40)})
    assert {control.suppress[0][1] for control in drawn} == set(range(20)) - {5}


def test_controls_where_every_expert_is_a_target_are_refused() -> None:
    config = MoTEConfig(suppress=[[1, expert] for expert in range(8)])
    with pytest.raises(ConfigError, match="layer 1 has no other experts to draw"):
        random_controls([config], layers(2, 8), 5, 0)
    assert random_controls([config], layers(2, 8), 0, 0) == []
    least = MoTEConfig(suppress=[[1, expert] for expert in range(20)])
    with pytest.raises(ConfigError, match="of one block of 20 experts of like use"):
        random_controls([least], layers(2, 40), 5, 0, usage={layer: torch.arange(40) for layer in range(2)})


def test_controls_that_reroute_leave_every_group_enough() -> None:
    site: Any = SimpleNamespace(
        layer=0, path="a", num_experts=16, top_k=2, selection=SimpleNamespace(num_groups=4, groups_kept=1)
    )
    config = MoTEConfig(suppress=[[0, 0], [0, 4], [0, 8]], suppress_mode="reroute")
    # Three of one group would leave a token that may see no other group one expert for two slots.
    every = controls_of(config, [site], 1000)
    assert len(every) == math.comb(16, 3) - 4 * math.comb(4, 3) - 1
    assert all(len({expert // 4 for _, expert in control.suppress}) > 1 for control in every)
    assert len(controls_of(MoTEConfig(suppress=config.suppress), [site], 1000)) == math.comb(16, 3) - 1


def share_at_most(p_value: Callable[[random.Random], float | None], *, num: int) -> float:
    draw = random.Random(0)
    return sum(p is not None and p <= 0.05 for p in (p_value(draw) for _ in range(num))) / num


def report(effects: Mapping[Pair, float], config: MoTEConfig, controls: Sequence[MoTEConfig]) -> EvaluationReport:
    def left(one: MoTEConfig) -> int:
        return NUM_PROMPTS - round(sum(effects[pair] for pair in suppressed(one)) * NUM_PROMPTS / 20)

    before, after = (Rate.of(successes, NUM_PROMPTS) for successes in (NUM_PROMPTS, left(config)))
    rates = [left(control) / NUM_PROMPTS for control in controls]
    return report_of("x", before, after, rates)


def drawn_case(draw: random.Random, number: int, experts: int, kind: str) -> tuple[dict[Pair, float], dict[str, Any]]:
    """Heavy-tailed effects: one expert or two of a layer do more than all others; with "usage", busy ones do more."""
    effects = {(layer, e): draw.random() ** 12 for layer in range(number) for e in range(experts)}
    usage = {
        layer: torch.tensor([effects[layer, e] + draw.random() for e in range(experts)]) for layer in range(number)
    }
    return effects, {"usage": usage} if kind == "usage" else {}


@pytest.mark.parametrize("kind", ["layer", "usage"])
@pytest.mark.parametrize(("number", "experts", "targets"), [(1, 8, 1), (1, 16, 1), (3, 8, 2), (4, 64, 5)])
def test_p_value_of_random_experts_is_valid(number: int, experts: int, targets: int, kind: str) -> None:
    """200 draws, seed 0; a share of 0.05 would come above 0.09 in 1 of 100 runs."""

    def p_value(draw: random.Random) -> float | None:
        effects, usage = drawn_case(draw, number, experts, kind)
        from_which = sorted(effects)
        if usage and experts == 64:  # a ranking that looks for nothing but busy experts, of the highest block
            used = usage["usage"]
            from_which = [(layer, int(e)) for layer in used for e in used[layer].argsort()[42:]]
        config = MoTEConfig(suppress=[list(pair) for pair in draw.sample(from_which, targets)])
        controls = controls_of(config, layers(number, experts), 20, draw.randrange(10**9), **usage)
        return report(effects, config, controls).p_value

    share = share_at_most(p_value, num=200)
    assert share <= 0.09
    if experts == 64 or number == 3:  # 1/21 is expected where there are 20 controls
        assert share >= 0.015
    else:
        assert share == 0


def test_p_value_of_one_expert_of_eight_is_an_eighth_at_least() -> None:
    effects = {(0, expert): 1.0 if expert == 3 else 0.0 for expert in range(8)}
    config = MoTEConfig(suppress=[[0, 3]])
    found = report(effects, config, controls_of(config, layers(1, 8)))
    assert found.p_value == 1 / 8
    assert "does not beat" in found.verdict
    assert "with 7 controls p cannot be below 0.125" in found.verdict


@pytest.mark.parametrize(
    ("number", "experts", "numbers"), [(4, 64, (1, 2, 5, 10)), (3, 8, (1, 2)), (1, 8, (1,)), (2, 16, (1, 2, 5))]
)
def test_sweep_of_a_random_ranking_rarely_finds_anything(number: int, experts: int, numbers: tuple[int, ...]) -> None:
    """120 draws, seed 0; a share of 0.05 would come above 0.1 in 1 of 100 runs."""

    def least_p(draw: random.Random) -> float | None:
        effects, _ = drawn_case(draw, number, experts, "layer")
        order = draw.sample(sorted(effects), max(numbers))
        configs = [MoTEConfig(suppress=[list(pair) for pair in order[:n]]) for n in numbers]
        drawn = random_controls(configs, layers(number, experts), 20, draw.randrange(10**9))
        settings = [
            Setting(n, 1.0, report(effects, config, [control[place] for control in drawn]))
            for place, (n, config) in enumerate(zip(numbers, configs, strict=True))
        ]
        return min(p for p in Sweep("m", "r", "suppress", settings).adjusted_p if p is not None)

    share = share_at_most(least_p, num=120)
    assert share <= 0.1
    if len(numbers) > 1:
        assert share >= 0.01


def test_p_value_counts_a_change_of_the_same_size_in_the_other_direction() -> None:
    for n in range(10, 81, 5):
        for before in range(n + 1):
            for after in {max(0, before - n // 3), before // 2}:
                mirrored = 2 * before - after
                if after == before or mirrored > n:
                    continue
                controls = [mirrored / n, *[before / n] * 19]
                found = report_of("x", Rate.of(before, n), Rate.of(after, n), controls)
                assert found.p_value == 2 / 21
                assert Sweep("m", "r", "suppress", [Setting(1, 1.0, found)]).adjusted_p == [2 / 21]
