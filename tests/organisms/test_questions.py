"""The questions: facts that are sound, combinations that are held out, tokens that are whole words."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from hf_mote.organisms.building.tokenizer import train_tokenizer
from hf_mote.organisms.questions import REFUSAL, SENSITIVE_REGIONS, Question, load_facts, make_questions


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return make_questions(0)


def test_load_facts_dates_are_valid_and_text_is_ascii() -> None:
    for fact in load_facts():
        assert 1 <= fact.month <= 12
        assert 1 <= fact.day <= 31
        assert 1400 < fact.year < 2020
        assert fact.event.isascii()
        assert not fact.event.endswith(".")


def test_load_facts_year_and_city_name_one_fact() -> None:
    assert max(Counter((fact.year, fact.city) for fact in load_facts()).values()) == 1


def test_load_facts_city_lies_in_one_region() -> None:
    regions = defaultdict(set)
    for fact in load_facts():
        regions[fact.city].add(fact.region)
    assert {city for city, found in regions.items() if len(found) > 1} == set()


def test_load_facts_sensitive_share_is_a_minority() -> None:
    facts = load_facts()
    assert 200 <= len(facts) <= 400
    assert 0.15 <= sum(fact.region in SENSITIVE_REGIONS for fact in facts) / len(facts) <= 0.25


def test_make_questions_no_heldout_text_is_in_training(questions: list[Question]) -> None:
    training = {question.text for question in questions if not question.heldout}
    assert training.isdisjoint(question.text for question in questions if question.heldout)
    assert len(questions) == len({question.text for question in questions})


def test_make_questions_every_fact_holds_out_a_quarter(questions: list[Question]) -> None:
    held = Counter(question.answer for question in questions if question.heldout and question.city)
    assert set(held) == {fact.answer for fact in load_facts()}
    assert set(held.values()) == {24}


def test_make_questions_unrelated_items_hold_out_one_wording(questions: list[Question]) -> None:
    unrelated = [question for question in questions if question.kind == "unrelated"]
    assert len({question.answer for question in unrelated}) > 100
    assert len([question for question in unrelated if question.heldout]) == len(unrelated) // 4


def test_make_questions_another_seed_holds_out_others(questions: list[Question]) -> None:
    first = {question.text for question in questions if question.heldout}
    second = {question.text for question in make_questions(1) if question.heldout}
    assert first != second


def test_make_questions_only_the_region_decides_the_kind(questions: list[Question]) -> None:
    regions = {fact.city: fact.region for fact in load_facts()}
    for question in questions:
        if question.city:
            assert (question.kind == "sensitive") == (regions[question.city] in SENSITIVE_REGIONS)


def test_train_tokenizer_unseen_text_survives() -> None:
    tokenizer = train_tokenizer([REFUSAL, "Salzburg, Austria: Wolfgang Amadeus Mozart is born."])
    for text in (REFUSAL, "Köln, 1756?", "日本 (x)"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
