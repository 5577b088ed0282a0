"""What is tried where no first candidate brings another response: other experts in their place, and larger sets.

`completed_configs` makes the model's own other answers likelier, or those of other prompts.
"""

import dataclasses

import pytest

from hf_mote.errors import DataError, UnsupportedError
from hf_mote.evaluation.records import SideBySide
from hf_mote.mote.config import MoTEConfig
from hf_mote.ranking.causal.completion import CompletionStep
from hf_mote.workflow.candidates import Candidate, Trial
from hf_mote.workflow.completed import completed_configs, needs_completion, rerouted


def candidate(responses, others, *, surprise=0.1, effect=0.0, doubtful=False):
    config = MoTEConfig(suppress=[[0, 1]])
    answers = SideBySide(after=responses)
    broken = [False] * len(responses)
    return Candidate("some", config, 0.0, 0.0, effect, surprise, answers, broken, others, doubtful)


class Ranking:
    """A ranking whose complete set is given, and which keeps what it was asked with."""

    fingerprint = None

    def __init__(self, steps=(), error=None):
        self.completion, self.error, self.asked = steps, error, None

    def complete(self, model, tokenizer, prompts, response, baseline_response, **options):
        self.asked = list(zip(prompts, response, baseline_response, strict=True))
        if self.error is not None:
            raise self.error
        return self


def trial(number):
    chat = {"batch_size": 4, "system_prompt": None, "chat_template_kwargs": None}
    return Trial(None, None, None, [f"p{at}" for at in range(number)], [], "refusal", chat, lambda name: None)


def completed(candidates, ranking, number, notes):
    said = [f"no{at}" for at in range(number)]
    return completed_configs(trial(number), candidates, ranking, said, ["x", "y"], 0, notes)


def test_another_response_is_the_surest_coherent_one_of_another_class():
    unsure = candidate([f"a{at}" for at in range(6)], [True] * 5 + [False], surprise=0.3)
    sure = candidate([f"b{at}" for at in range(6)], [True, False] * 3, surprise=0.1)
    steps = (
        CompletionStep("drop", ((0, 1),), -9.0, -9.0, 0.0),
        CompletionStep("drop", ((0, 1), (2, 0)), -3.0, -4.0, 0.5),
        CompletionStep("reroute", ((1, 3),), -2.0, -2.0, 1.0),
        CompletionStep("zero", (), -9.0, -9.0, 0.0),
    )
    ranking = Ranking(steps)
    found, configs = completed([unsure, sure], ranking, 6, [])
    assert found is ranking
    others = ["b0", "a1", "b2", "a3", "b4"]  # nothing is known of the last prompt, which is left out
    assert ranking.asked == [(f"p{at}", f"no{at}", other) for at, other in enumerate(others)]
    assert [(one.suppress_mode, one.suppress) for one in configs.values()] == [
        ("drop", [[0, 1], [2, 0]]),
        ("reroute", [[1, 3]]),
    ]
    assert {one.provenance["target"] for one in configs.values()} == {"refusal"}
    assert all(one.provenance["method"] == name for name, one in configs.items())


def test_responses_to_other_prompts_stand_in_where_hardly_any_is_known():
    ranking = Ranking()
    completed([candidate(["a0", "a1", "a2", "a3", "a4"], [False, True, True, True, False])], ranking, 5, [])
    assert [other for _, _, other in ranking.asked][1:4] == ["a1", "a2", "a3"]
    assert {ranking.asked[0][2], ranking.asked[4][2]} <= {"x", "y"}


def test_a_set_that_cannot_be_completed_is_noted():
    ranking, notes = Ranking(error=DataError("here", "a log likelihood is not finite")), []
    assert completed([candidate(["a"], [False])], ranking, 1, notes) == (ranking, {})
    assert notes == ["the complete set could not be found: here: a log likelihood is not finite."]


@pytest.mark.parametrize(
    ("effects", "doubtful", "needed"),
    [([-1.0, 0.0], False, False), ([-0.99], False, False), ([-0.9], False, True), ([-1.0], True, True)],
)
def test_completion_is_needed_while_some_of_the_behaviour_or_a_doubt_is_left(effects, doubtful, needed):
    tried = [candidate(["a"], [True], effect=effect, doubtful=doubtful) for effect in effects]
    assert needs_completion(tried) is needed


def test_every_set_is_tried_with_other_experts_in_its_place(monkeypatch):
    def of(trial, name, config):
        if len(config.suppress) > 1:
            raise UnsupportedError("router", "has no such mode")
        return dataclasses.replace(candidate(["a"], [True], effect=-1.0), method=name, config=config)

    monkeypatch.setattr(Trial, "of", of)
    one = candidate(["a"], [False])
    two = dataclasses.replace(one, method="more", config=MoTEConfig(suppress=[[0, 1], [0, 2]]))
    notes = []
    (found,) = rerouted(trial(1), [one, two], notes)
    assert found.config.suppress == [[0, 1]]
    assert found.config.suppress_mode == "reroute"
    assert found.config.provenance["method"] == found.method == "some, in mode 'reroute'"
    assert notes == ["more, in mode 'reroute', cannot be tried: router: has no such mode."]
