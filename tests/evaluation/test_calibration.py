"""How often it is said that there is something where there is nothing: sweeps, rankings by groups, verdicts.

Seeds are fixed: no test here can be flaky. Each draws its own null and holds the rate against what is promised, with
the spread that so many draws have.
"""

import dataclasses
import itertools
import math
import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_reports import report_of, with_parts

from hf_mote import FTRIResult, MoTEConfig, evaluate_mote, load_organism
from hf_mote.evaluation.controls import random_controls
from hf_mote.evaluation.sweep import Setting, Sweep
from hf_mote.statistics.rates import Rate

SIZES = (1, 2, 5, 10)
NUM_PROMPTS = 1_000_000


def most(level, draws):
    """Return a rate that one of `level` exceeds in 1 of 200 such numbers of draws."""
    return level + 2.6 * math.sqrt(level * (1 - level) / draws)


def null_sweep(draw, layers, experts, spread, shared):
    """Return a sweep over the first experts of a ranking at random; each expert does something, by chance alone."""
    pairs = list(itertools.product(range(layers), range(experts)))
    sites = [SimpleNamespace(layer=layer, num_experts=experts) for layer in range(layers)]
    layer_effect = [draw.gauss(0, 1) for _ in range(layers)]
    effects = {
        pair: math.exp(spread * (math.sqrt(shared) * layer_effect[pair[0]] + math.sqrt(1 - shared) * draw.gauss(0, 1)))
        for pair in pairs
    }
    ranking = [list(pair) for pair in draw.sample(pairs, max(SIZES))]
    configs = [MoTEConfig(suppress=sorted(ranking[:size])) for size in SIZES]
    controls = random_controls(configs, sites, 60, draw.randrange(10**9))

    def left(config):
        taken = sum(effects[layer, expert] for layer, expert in config.suppress)
        return NUM_PROMPTS - round(taken * NUM_PROMPTS / 5000)

    reports = [
        report_of(
            "x", Rate.of(NUM_PROMPTS, NUM_PROMPTS), Rate.of(left(config), NUM_PROMPTS),
            [left(control[place]) / NUM_PROMPTS for control in controls],
        )
        for place, config in enumerate(configs)
    ]  # fmt: skip
    return Sweep("m", "r", "suppress", [Setting(size, 1.0, one) for size, one in zip(SIZES, reports, strict=True)])


@pytest.mark.parametrize(
    ("layers", "experts", "spread", "shared", "draws"),
    [
        (4, 64, 1.0, 0.5, 150),
        *(
            pytest.param(layers, experts, spread, shared, 300, marks=pytest.mark.slow)
            for layers, experts in ((4, 64), (8, 128), (3, 16))
            for spread, shared in ((0.3, 0.0), (1.0, 0.0), (1.0, 0.5))
        ),
    ],
)
def test_sweep_finds_something_among_its_settings_as_rarely_as_it_says(layers, experts, spread, shared, draws):
    """Four settings of one random ranking: any of them at adjusted p <= 0.05, and any said to beat its controls."""
    draw = random.Random(0)
    sweeps = [null_sweep(draw, layers, experts, spread, shared) for _ in range(draws)]
    small = sum(min(one.adjusted_p) <= 0.05 for one in sweeps) / draws
    beating = sum(bool(one.beating) for one in sweeps) / draws
    sys.stdout.write(
        f"sweep {layers} x {experts}, spread {spread}, shared {shared}: {small:.3f} {beating:.3f} of {draws}\n"
    )
    assert small <= most(0.05, draws)
    assert beating <= small
    unadjusted = sum(min(setting.report.p_value for setting in one.settings) <= 0.05 for one in sweeps) / draws
    assert unadjusted > small  # what the adjustment is for


def null_result(seed, subjects=16, wordings=6, layers=2, experts=32, tokens=24):
    """Return an imaging in which class and routing go with the subject, and routing not with the class.

    Logits of a subject are Gaussian with two factors that all experts load on, so that experts rise and fall together;
    every prompt has its own besides; counts are the top 4 of each token, whose logits vary about the prompt's.
    """
    rng = np.random.default_rng(seed)
    loads = rng.normal(size=(2, layers * experts))
    base = rng.normal(size=layers * experts)

    def drawn(number, scale):
        return scale * (rng.normal(size=(number, 2)) @ loads + rng.normal(size=(number, layers * experts)))

    of_subject = np.repeat(base + drawn(subjects, 0.35), wordings, axis=0)
    prompts = of_subject + drawn(subjects * wordings, 0.15)
    logits = prompts[:, None] + rng.gumbel(size=(len(prompts), tokens, layers * experts))
    tops = np.argpartition(-logits.reshape(len(prompts), tokens, layers, experts), 4, axis=-1)[..., :4]
    counts = torch.from_numpy((tops[..., None] == np.arange(experts)).sum(axis=(1, 3)).astype("float32"))
    subject = np.repeat(np.arange(subjects), wordings)
    classes = ["refusal" if number < subjects // 2 else "answer" for number in subject]
    names = [f"prompt {number}" for number in range(len(prompts))]
    result = FTRIResult(
        names, [""] * len(names), classes, counts, counts / 4, torch.full((len(names),), float(tokens)),
        tuple(range(layers)), "all", None,
    )  # fmt: skip
    return result, subject.tolist()


@pytest.mark.parametrize("score", ["mean_difference", "log_odds"])
@pytest.mark.parametrize("runs", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_groups_keep_p_q_and_intervals_where_routing_goes_with_the_subject(score, runs, caplog):
    """The same runs without groups are the false findings of the paper's kind of prompts."""
    rates = {}
    for grouped in (True, False):
        small, found, held = [], [], []
        for seed in range(runs):
            result, subject = null_result(seed)
            groups = subject if grouped else None
            ranking = result.rank("refusal", score=score, groups=groups, resamples=199, permutations=999, seed=seed)
            tested = ~ranking.p.isnan()
            small.append((ranking.p[tested] <= 0.05).double().mean().item())
            found.append(bool((ranking.q[tested] <= 0.05).any()))
            if score == "mean_difference":
                held.append(((ranking.low <= 0) & (ranking.high >= 0)).double().mean().item())
        rates[grouped] = (np.mean(small), np.mean(found), np.mean(held) if held else math.nan)
        said = "p {:.3f}, q {:.3f}, intervals {:.3f}".format(*rates[grouped])
        sys.stdout.write(f"{score}, groups {grouped}: {said} of {runs} runs\n")
    small, found, held = rates[True]
    # Experts of a run share factors, so that rates of p vary between runs as do those of q.
    assert small <= 0.05 + 2.6 * 0.07 / math.sqrt(runs)
    assert found <= most(0.05, runs)
    if score == "mean_difference":
        assert 0.90 <= held <= 0.98
    assert rates[False][0] > 0.12
    assert rates[False][1] > 0.5


@pytest.mark.slow
def test_random_experts_of_a_real_model_beat_their_controls_as_rarely_as_it_says():
    """120 random sets of five experts of "refusal", each held against 40 of the others that share none of them.

    Sets that hold a planted expert do something, as controls that hold one do: which is which is chance.
    """
    organism = load_organism("refusal")
    draw = random.Random(0)
    held = organism.prompts["heldout"]
    profile = (1, 1, 1, 2)
    reports = []
    for _ in range(120):
        experts = [
            [layer, expert] for layer, n in enumerate(profile, start=1) for expert in sorted(draw.sample(range(64), n))
        ]
        reports.append(
            evaluate_mote(
                organism.model, organism.tokenizer, MoTEConfig(suppress=experts), held["sensitive"][:20],
                organism.judge, num_controls=0, max_new_tokens=12, batch_size=64, progress=False,
            )
        )  # fmt: skip
    said = []
    for one in reports:
        mine = {tuple(pair) for pair in one.config["suppress"]}
        others = [other for other in reports if mine.isdisjoint(tuple(pair) for pair in other.config["suppress"])]
        controls = draw.sample(others, 40)
        whole = with_parts(
            one,
            controls=[other.after.rate for other in controls],
            control_labels=[other.labels_after for other in controls],
            coherence=dataclasses.replace(one.coherence, controls=[other.coherence.after for other in controls]),
        )
        said.append(whole.outcome())
    beats = said.count("beats") / len(said)
    sys.stdout.write(
        f"random sets of a real model: {beats:.3f} of {len(said)}; { ({word: said.count(word) for word in said}) }"
    )
    assert beats <= most(0.05, len(said))
