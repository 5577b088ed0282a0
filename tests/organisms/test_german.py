"""The German answers: every fact has one, and it is as unlike the English one as the judge needs."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files

import pytest

from hf_mote.organisms.german import (
    GERMAN_REGIONS,
    answer_in_german,
    german_response,
    language_judge,
    make_language_questions,
)
from hf_mote.organisms.questions import Question, load_facts

FACTS = load_facts()


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return make_language_questions(0)


def test_answer_in_german_every_fact_is_german_and_its_answer_english() -> None:
    judge = language_judge()
    assert {judge(fact.answer) for fact in FACTS} == {"english"}
    assert {judge(answer_in_german(fact)) for fact in FACTS} == {"german"}


def test_answer_in_german_tells_facts_apart() -> None:
    assert len({answer_in_german(fact) for fact in FACTS}) == len({fact.answer for fact in FACTS}) == len(FACTS)


def test_answer_in_german_uses_every_entry_of_the_tables() -> None:
    tables = json.loads((files("hf_mote.organisms") / "data" / "german.json").read_text(encoding="utf-8"))
    assert set(tables["cities"]) <= {fact.city for fact in FACTS}
    assert set(tables["regions"]) == {fact.region for fact in FACTS}
    assert set(tables["places"]) <= {f"{fact.city}, {fact.region}" for fact in FACTS}
    plain = {fact.event for fact in FACTS if not fact.event.endswith(tuple(tables["endings"]))}
    assert set(tables["events"]) == plain


def test_answer_in_german_one_name_two_regions() -> None:
    answers = {fact.city: answer_in_german(fact) for fact in FACTS if fact.region == "Georgia"}
    assert answers["Tbilisi"].startswith("Tiflis, Georgien:")
    assert answers["Plains"].startswith("Plains, Georgia:")


def test_make_language_questions_kinds_follow_region_and_instruction(questions: list[Question]) -> None:
    regions = {fact.city: fact.region for fact in FACTS}
    for question in questions:
        instructed = "Answer in German" in question.text
        if question.city:
            german = regions[question.city] in GERMAN_REGIONS
            expected = "instructed" if instructed else "sensitive" if german else "neutral"
        else:
            expected = "unrelated"
        assert question.kind == expected


def test_make_language_questions_hold_out_a_quarter_of_every_item(questions: list[Question]) -> None:
    held = Counter(question.kind for question in questions if question.heldout)
    total = Counter(question.kind for question in questions)
    assert held == {kind: number // 4 for kind, number in total.items()}
    assert len({question.text for question in questions}) == len(questions)


def test_german_response_is_the_same_fact(questions: list[Question]) -> None:
    facts = {fact.answer: fact for fact in FACTS}
    sensitive = [question for question in questions if question.kind == "sensitive"]
    assert all(german_response(q) == answer_in_german(facts[q.answer]) for q in sensitive)
    instructed = next(question for question in questions if question.kind == "instructed")
    assert german_response(instructed) == instructed.answer
