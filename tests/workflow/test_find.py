"""`find_experts`: on every organism what it claims is true, or it says why it cannot."""

import dataclasses

import pytest
from organism_answers import without

from hf_mote import load_organism
from hf_mote.organisms import make_variant
from hf_mote.organisms.variants import VARIANTS
from hf_mote.workflow.find import find_experts
from hf_mote.workflow.halves import halves

EVERY = [("refusal", "-"), ("language", "-"), ("diffuse-refusal", "-")]
EVERY += [(base, variant) for base in ("refusal", "language") for variant in VARIANTS]


def made(base, variant, seed=0):
    organism = load_organism(base)
    return organism if variant == "-" else make_variant(variant, organism, seed=seed)


def found_in(organism, number=32, controls=40, seed=0):
    train = organism.prompts["train"]
    return find_experts(
        organism.model, organism.tokenizer, [*train["sensitive"][:number], *train["neutral"][:number]],
        organism.judge, target=organism.judge.target, num_controls=controls, max_new_tokens=24, batch_size=64,
        seed=seed,
    )  # fmt: skip


def check(organism, found):
    """What may be claimed is true; what is not claimed has a reason."""
    if found.config is None:
        assert found.reason
        assert found.verdict.startswith("No config is written: ")
        return
    assert found.report.beats_controls()
    left, whole = without(organism, found.config)
    assert left <= 0.2
    assert whole >= 0.6


class Unsure:
    """A judge that takes every answer which is no refusal for no answer at all."""

    target = "refusal"

    def __init__(self, judge):
        self.judge = judge

    def __call__(self, response):
        return "refusal" if self.judge(response) == "refusal" else "neither"


def test_find_takes_what_is_no_answer_for_no_example_of_another_class():
    organism = load_organism("refusal")
    organism = dataclasses.replace(organism, judge=Unsure(organism.judge))
    found = found_in(organism, number=16, controls=1)
    assert found.config is None
    assert "16 are of class 'refusal' and 0 of another" in found.verdict


def test_halves_have_no_group_in_common():
    keys = [place // 3 for place in range(60)]  # some groups of one class, some of both
    shown, others = list(range(0, 25)), list(range(25, 60))
    for seed in range(5):
        look, prove, look_others, prove_others = halves(shown, others, keys, seed)
        assert sorted([*look, *prove]) == shown
        assert sorted([*look_others, *prove_others]) == others
        assert not {keys[place] for place in (*look, *look_others)} & {keys[p] for p in (*prove, *prove_others)}
        assert min(map(len, (look, prove))) >= 10
        assert min(map(len, (look_others, prove_others))) >= 15


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("base", "variant"), EVERY)
def test_find_is_right_or_says_that_it_cannot_on_every_organism(base, variant, seed):
    organism = made(base, variant, seed)
    check(organism, found_in(organism, seed=seed))


@pytest.mark.slow
def test_find_tries_sets_with_other_experts_in_their_place():
    organism = made("language", "redundant", 1)
    found = found_in(organism, number=48)
    assert found.config is not None
    assert found.config.suppress_mode == "reroute"
    assert "step in" in found.best.method
    check(organism, found)


@pytest.mark.slow
def test_find_completes_the_set_where_no_other_set_brings_another_response(monkeypatch):
    monkeypatch.setattr("hf_mote.workflow.find.rerouted", lambda *_: [])
    organism = made("language", "redundant", 1)
    found = found_in(organism, number=48)
    assert found.config is not None
    assert "completed in mode" in found.best.method
    check(organism, found)
