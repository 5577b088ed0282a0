"""Verdicts: no control decides between "beats" and "does not", and under the null they come as rarely as they say."""

import itertools
import math
import random
from types import SimpleNamespace

import pytest
from evaluation_reports import report_of

from hf_mote import MoTEConfig
from hf_mote.evaluation.controls import random_controls
from hf_mote.evaluation.overlap import chance_of_reach
from hf_mote.evaluation.verdict import decide, one_fewer
from hf_mote.statistics.rates import Rate

NUM_PROMPTS = 1_000_000


def said(reached, number):
    p = (1 + reached) / (1 + number)
    return decide(p, one_fewer(p, number), apart=True, broken=False)


@pytest.mark.parametrize("number", range(20, 130))
def test_no_single_control_turns_beats_into_does_not_beat(number):
    for reached in range(number):
        neighbours = {said(reached + 1, number), said(reached, number - 1), said(reached + 1, number + 1)}
        neighbours |= {said(reached, number + 1)} | ({said(reached - 1, number - 1)} if reached else set())
        for other in neighbours:
            assert {said(reached, number), other} != {"beats", "does not beat"}


def test_outcomes_in_words():
    assert decide(None, 0.0, apart=True, broken=False) == "untested"
    assert decide(1 / 41, 1 / 41, apart=False, broken=False) == "does not beat"
    assert decide(1 / 41, 1 / 41, apart=True, broken=True) == "breaks the text"
    assert [said(reached, 40) for reached in range(4)] == ["beats", "beats", "undecided", "does not beat"]
    assert [said(reached, 19) for reached in range(3)] == ["beats", "undecided", "does not beat"]
    assert said(0, 18) == "does not beat"


def test_case_of_the_audit_beats_the_controls_that_share_none_of_its_experts():
    """Five experts with both causal ones; controls that hold one of them do the same, and stand apart."""
    report = report_of(
        "x", Rate.of(50, 50), Rate.of(0, 50), [0.0] * 9 + [1.0] * 31,
        controls_sharing=[True] * 9 + [False] * 31, sharing=9,
    )  # fmt: skip
    assert report.p_value == 10 / 41
    assert report.beats_controls()
    assert "9 of them hold some of its own experts" in report.verdict
    assert "against the other 31 alone p = 0.0312" in report.verdict


def test_config_whose_controls_all_hold_its_experts_is_not_said_to_fail():
    report = report_of("x", Rate.of(50, 50), Rate.of(0, 50), [0.0] * 7, controls_sharing=[True] * 7, sharing=7)
    assert report.outcome() == "untested"
    assert report.verdict.startswith("The config cannot be held against these controls: ")


def test_overlapping_controls_are_worth_less_than_as_many_disjoint_ones():
    draw = random.Random(0)
    own, rest = {0, 1, 2}, range(3, 16)
    overlapping = chance_of_reach(own, [set(draw.sample(rest, 3)) for _ in range(40)])
    assert 2 / 41 < overlapping[0] < overlapping[1] <= overlapping[-1] == 1
    disjoint = chance_of_reach({0}, [{expert} for expert in range(1, 20)])
    assert disjoint == [(1 + reached) / 20 for reached in range(20)]


def suppressed(config):
    return {(layer, expert) for layer, expert in config.suppress}


@pytest.mark.parametrize(
    ("layers", "experts", "targets"),
    [
        (4, 8, 5),
        (1, 16, 3),
        pytest.param(4, 64, 5, marks=pytest.mark.slow),
        *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((3, 16, 4), (2, 8, 3), (1, 8, 2))),
    ],
)
@pytest.mark.parametrize("spread", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_beats_is_rare_where_experts_are_alike(layers, experts, targets, spread):
    """400 draws, seed 0, of effects that differ by chance; a share of 0.05 would come above 0.079 in 1 of 200."""
    draw = random.Random(0)
    beats = 0
    sites = [SimpleNamespace(layer=layer, num_experts=experts) for layer in range(layers)]
    for _ in range(400):
        pairs = list(itertools.product(range(layers), range(experts)))
        effects = {pair: math.exp(draw.gauss(0, spread)) for pair in pairs}
        config = MoTEConfig(suppress=sorted(list(pair) for pair in draw.sample(pairs, targets)))
        controls = [one for (one,) in random_controls([config], sites, 40, draw.randrange(10**9))]

        def left(one, effects=effects):
            return NUM_PROMPTS - round(sum(effects[pair] for pair in suppressed(one)) * NUM_PROMPTS / 2000)

        shares = [not suppressed(config).isdisjoint(suppressed(control)) for control in controls]
        others = [suppressed(control) for control, share in zip(controls, shares, strict=True) if not share]
        report = report_of(
            "x", Rate.of(NUM_PROMPTS, NUM_PROMPTS), Rate.of(left(config), NUM_PROMPTS),
            [left(control) / NUM_PROMPTS for control in controls],
            controls_sharing=shares, sharing=sum(shares),
            disjoint_chances=chance_of_reach(suppressed(config), others) if any(shares) and others else [],
        )  # fmt: skip
        beats += report.beats_controls()
    assert beats / 400 <= 0.079
