"""What was written down before is what is measured, or there is no measurement."""

import functools
import json

import pytest

from hf_mote import RefusalJudge, RegexJudge
from hf_mote.errors import DataError, FileFormatError
from hf_mote.evaluation.preregistration import Preregistration, judge_identity, preregister

PLAN = {
    "model": {"model_type": "x"},
    "config": {"suppress": [[1, 2]], "provenance": {"when": "today"}},
    "prompts": ["a", "b"],
    "unrelated": ["c"],
    "target": "refusal",
    "num_controls": 40,
    "margin": 0.1,
}


def plan(**changed):
    return preregister(**{**PLAN, "judge": RefusalJudge(), **changed})


def test_the_same_plan_passes_and_provenance_is_no_part_of_it(tmp_path):
    plan().write(tmp_path / "plan.json")
    read = Preregistration.read(tmp_path / "plan.json")
    read.check(plan(config={"suppress": [[1, 2]]}))
    assert read.num_prompts == 2
    assert len(read.digest) == 64


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"prompts": ["b", "a"]}, "prompts"),
        ({"prompts": ["a"]}, "prompts"),
        ({"unrelated": []}, "unrelated"),
        ({"config": {"suppress": [[1, 3]]}}, "config"),
        ({"margin": 0.2}, "settings: {'margin': \\(0.1, 0.2\\)}"),
        ({"num_controls": 20}, "settings"),
        ({"target": "answer"}, "target"),
        ({"model": {}}, "model"),
        ({"judge": RegexJudge({"refusal": "sorry"})}, "judge"),
    ],
)
def test_whatever_changes_is_named(changed, named):
    with pytest.raises(DataError, match=f"other .*{named}"):
        plan().check(plan(**changed))


def test_judges_are_told_apart_by_what_they_hold():
    first, second = RegexJudge({"refusal": "sorry"}), RegexJudge({"refusal": "cannot"})
    assert judge_identity(first) == judge_identity(RegexJudge({"refusal": "sorry"}))
    assert judge_identity(first) != judge_identity(second)

    def made(word):
        return lambda response: word in response

    assert judge_identity(made("a")) == judge_identity(made("a"))
    assert judge_identity(made("a")) != judge_identity(made("b"))


class Wordy:
    def __init__(self, word):
        self.word = word

    def judge(self, response):
        return self.word in response


def test_judges_with_values_held_elsewhere_are_told_apart():
    def holds(response, word):
        return word in response

    def by_default(given):
        def judge(response, word=given):
            return word in response

        return judge

    for made in (lambda word: functools.partial(holds, word=word), lambda word: Wordy(word).judge, by_default):
        assert judge_identity(made("a")) == judge_identity(made("a"))
        assert judge_identity(made("a")) != judge_identity(made("b"))
        plan(judge=made("a")).check(plan(judge=made("a")))
        with pytest.raises(DataError, match="other judge"):
            plan(judge=made("a")).check(plan(judge=made("b")))


def test_an_edited_file_is_refused_and_one_is_never_replaced(tmp_path):
    file = tmp_path / "plan.json"
    plan().write(file)
    with pytest.raises(FileFormatError, match="exists"):
        plan().write(file)
    data = json.loads(file.read_text())
    file.write_text(json.dumps({**data, "written": "2020-01-01T00:00:00+00:00"}))
    with pytest.raises(FileFormatError, match="was changed after"):
        Preregistration.read(file)
    for wrong in ({}, {**data, "hashes": []}, {**data, "more": 1}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(FileFormatError, match="must be a pre-registration"):
            Preregistration.read(file)
