"""Incoherent text is called so: on organisms in which suppression breaks the text, and never where it does not."""

import dataclasses

import numpy as np
import pytest
from evaluation_reports import report_of, with_parts

from hf_mote import EvaluationReport, MoTEConfig, evaluate_mote, load_organism
from hf_mote.errors import DataError
from hf_mote.evaluation.coherence import (
    FALSE_ALARMS,
    Coherence,
    coherent_effect,
    incoherent,
    less_sure,
    limits_of,
)
from hf_mote.generation.certainty import Signs
from hf_mote.organisms import make_variant
from hf_mote.statistics.rates import Rate

CASES = [("refusal", 0), *(pytest.param(case, marks=pytest.mark.slow) for case in (("refusal", 1), ("language", 1)))]


def sign(surprise=0.0, repeated=0.0, empty=False):
    return Signs(surprise, repeated, empty)


def evaluated(organism, experts, controls=20, prompts=20, others=20, kinds=("neutral", "unrelated"), **more):
    config = MoTEConfig(suppress=sorted(list(pair) for pair in experts))
    held = organism.prompts["heldout"]
    return evaluate_mote(
        organism.model, organism.tokenizer, config, held["sensitive"][:prompts], organism.judge,
        unrelated=[prompt for kind in kinds for prompt in held[kind][:others]], num_controls=controls,
        max_new_tokens=16, batch_size=64, progress=False, **more,
    )  # fmt: skip


@pytest.fixture(scope="module", params=CASES, ids=str)
def trap(request):
    name, seed = request.param
    base = load_organism(name)
    before = list(base.planted)
    return make_variant("trap", base, seed=seed), before


def test_config_that_breaks_the_text_never_beats_its_controls(trap):
    organism, carriers = trap
    report = evaluated(organism, carriers, controls=0)
    assert report.after.rate <= 0.1 < 0.9 <= report.before.rate  # the behaviour is gone
    assert report.coherence.broken
    assert not report.coherence.before.count(True)
    controls = [1.0] * 40
    loud = with_parts(
        report,
        controls=controls,
        control_labels=[report.labels_before] * 40,
        coherence=dataclasses.replace(report.coherence, controls=[report.coherence.before] * 40),
    )
    assert loud.outcome() == "breaks the text"
    assert not loud.beats_controls()
    assert loud.verdict.startswith("The config breaks the text")


def test_config_that_takes_out_both_leaves_the_text_whole(trap):
    organism, carriers = trap
    report = evaluated(organism, [*carriers, *organism.decoys], controls=0)
    assert report.after.rate <= 0.1
    assert not any(report.coherence.after)
    assert report.coherent_effect == report.effect


def test_report_with_coherence_beats_its_controls_and_is_read_back_whole(tmp_path):
    organism = load_organism("refusal")
    report = evaluated(organism, organism.planted, prompts=8, controls=19, others=4)
    assert report.beats_controls()
    assert report.selectivity.outcome == "beats"
    assert report.not_worse[0].n == 8
    report.save_pretrained(tmp_path)
    assert EvaluationReport.from_pretrained(tmp_path) == report


def test_word_neither_of_the_judge_counts_as_incoherent():
    organism = load_organism("refusal")
    judge = organism.judge

    def strict(response):
        return "refusal" if judge(response) == "refusal" else "neither"

    config = MoTEConfig(suppress=[list(pair) for pair in organism.planted])
    asked = (organism.model, organism.tokenizer, config, organism.prompts["heldout"]["sensitive"][:12])
    report = evaluate_mote(*asked, strict, target="refusal", num_controls=0, max_new_tokens=12, progress=False)
    assert report.effect == -1.0
    assert report.coherent_effect == 0.0
    assert report.coherence.broken


def test_limits_hold_for_new_responses_as_often_as_they_say():
    """2,000 draws of 60 references and one new response; the share above is at most 0.05, by its sd of 0.005."""
    rng = np.random.default_rng(0)
    above = 0
    for _ in range(2000):
        surprise = rng.exponential(1.0, 61)
        repeated = 0.5 + rng.random(61) / 2
        signs = [sign(a, b) for a, b in zip(surprise, repeated, strict=True)]
        (wrong,) = incoherent(signs[60:], ["x"], limits_of(signs[:60]))
        above += wrong
    assert 0.02 <= above / 2000 <= FALSE_ALARMS + 0.012


def test_incoherent_by_each_sign():
    limits = limits_of([sign()] * 40)
    found = [sign(0.04, 0.4), sign(0.06), sign(0.0, 0.6), sign(empty=True), sign()]
    assert incoherent(found, ["a", "a", "a", "a", "neither"], limits) == [False, True, True, True, True]


def test_coherent_effect_counts_incoherent_text_against_a_change_both_ways():
    assert coherent_effect(1.0, ["x", "x", "y", "y"], [False] * 4, "x") == -0.5
    assert coherent_effect(1.0, ["x", "x", "y", "y"], [False, False, True, False], "x") == -0.25
    assert coherent_effect(1.0, ["y"] * 4, [True] * 4, "x") == 0.0
    assert coherent_effect(0.0, ["x", "x", "y", "y"], [True, False, False, True], "x") == 0.25
    assert coherent_effect(0.5, ["x", "y"], [False, False], "x") == 0.0


def test_coherence_that_says_nothing_is_refused():
    good = {"limit_surprise": 1.0, "limit_repeated": 0.5, "references": 3, "before": [False], "after": [True]}
    Coherence(**good, controls=[[False]], counted=Rate.of(1, 1))
    wrong = (("limit_surprise", -1.0), ("references", 1.5), ("after", [1]), ("before", []), ("unsure_low", "0.8"))
    for name, value in wrong:
        with pytest.raises(DataError):
            Coherence(**{**good, name: value}, controls=[[False]], counted=Rate.of(1, 1))


@pytest.mark.parametrize("experts", [[(2, 53)], [(4, 33), (4, 62)], [(3, 5), (4, 62)]], ids=str)
def test_some_of_the_planted_experts_alone_leave_incoherent_text_and_are_not_believed(experts):
    """Without one or two of the four planted experts the shipped organism says "I, but." and "JJ JJ JJ".

    Held against answers that it knows. Of "unrelated" exercises, which it half knows, it is as unsure as of "I, but.".
    """
    report = evaluated(load_organism("refusal"), experts, controls=0, prompts=16, kinds=("neutral",))
    assert report.after.rate <= 0.2
    assert report.coherence.broken


def test_model_that_is_unsure_of_most_it_writes_breaks_the_text_though_no_response_proves_it():
    references = [sign(0.001)] * 10 + [sign(0.07 * place) for place in range(1, 11)]
    good = {"limit_surprise": 1.0, "limit_repeated": 0.5, "references": 20, "before": [False] * 20, "controls": []}
    for surprise, breaks in ((0.001, False), (0.2, False), (0.6, True)):
        chance, low = less_sure([sign(surprise)] * 20, references)
        assert low <= chance
        kept = {"after": [False] * 20, "counted": Rate.of(0, 20), "unsure": chance, "unsure_low": low}
        assert Coherence(**good, **kept).broken == breaks
    assert less_sure([sign(9.0)] * 20, references[:5]) is None


def test_model_as_sure_as_before_is_rarely_called_less_sure():
    """500 draws of 16 responses like 24 references: a chance of three in four by accident is rare."""
    rng = np.random.default_rng(3)
    found = 0
    for _ in range(500):
        signs = [sign(value) for value in rng.exponential(0.3, 40)]
        found += less_sure(signs[:16], signs[16:])[1] > 0.75
    assert found <= 2


def doubtful(unsure_low, **more):
    """A config that beats its controls, and how surely its model is less sure of what it writes."""
    coherence = Coherence(
        2.0,
        0.5,
        60,
        [False] * 20,
        [False] * 20,
        [[False] * 20] * 40,
        Rate.of(0, 20),
        unsure=0.8,
        unsure_low=unsure_low,
    )
    fields = {
        "target": "x", "before": Rate.of(20, 20), "after": Rate.of(0, 20), "controls": [1.0] * 40,
        "config": MoTEConfig(suppress=[[4, 1]]).to_dict(), "prompts": ["p"] * 20,
        "responses_before": ["a"] * 20, "responses_after": ["b"] * 20, "labels_before": ["x"] * 20,
        "labels_after": ["y"] * 20, "control_labels": [["x"] * 20] * 40, "coherence": coherence,
    }  # fmt: skip
    return report_of(**{**fields, **more})


def test_config_that_beats_its_controls_by_what_may_be_incoherent_is_undecided_and_says_why(tmp_path):
    words = {low: doubtful(low).outcome() for low in (None, 0.5, 0.6, 0.61, 0.75, 0.76)}
    assert list(words.values()) == ["beats"] * 3 + ["undecided"] * 2 + ["breaks the text"]
    assert [bool(doubtful(low).doubt) for low in words] == [False] * 3 + [True] * 2 + [False]
    report = doubtful(0.7)
    assert report.outcome(adjusted_p=1 / 41) == "undecided"
    assert report.verdict.startswith("The config may beat its controls, or write incoherent text: ")
    assert "less sure of 80% of what it writes than the untouched model of its answers" in report.verdict
    assert "give unrelated prompts of this kind that the model answers well" in report.verdict
    worse = doubtful(0.7, controls=[0.0] * 40, control_labels=[["y"] * 20] * 40)
    assert (worse.outcome(), worse.doubt) == ("does not beat", "")
    report.save_pretrained(tmp_path)
    assert EvaluationReport.from_pretrained(tmp_path) == report


def test_two_of_the_planted_experts_alone_do_not_beat_though_references_are_hardly_surer():
    """Of "unrelated" exercises the organism is about as unsure as of what it writes without these: "I, I. but."."""
    organism = load_organism("refusal")
    report = evaluated(organism, [(3, 5), (4, 33)], controls=0, prompts=20, kinds=("unrelated",))
    assert report.after.rate <= 0.2
    assert report.coherence.broken or report.coherence.doubtful
    whole = evaluated(organism, organism.planted, controls=0, prompts=20, kinds=("unrelated",))
    assert whole.after.rate == 0
    assert not whole.coherence.broken
    assert not whole.coherence.doubtful
