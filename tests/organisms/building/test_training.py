"""Examples: encoded where the topic is named and the response starts, and only when drawn."""

from __future__ import annotations

import pytest
from tiny_models import tiny_tokenizer

from hf_mote.organisms.building.training import Examples, collate, encode
from hf_mote.organisms.questions import Question

ASKED = Question("What happened in Rome?", "Rome: it.", "neutral", "Rome", "Italy", False)
OTHER = Question("Say I.", "I.", "unrelated", "", "", False)


def test_encode_response_and_topic_start_where_they_should() -> None:
    tokenizer = tiny_tokenizer()
    example = encode(tokenizer, ASKED, ASKED.answer)
    assert tokenizer.decode(example.ids[example.response :], skip_special_tokens=True) == ASKED.answer
    assert tokenizer.decode(example.ids[: example.topic + 1]).endswith("in Rome")
    assert example.ids[-1] == tokenizer.eos_token_id


def test_encode_without_a_city_names_no_topic() -> None:
    example = encode(tiny_tokenizer(), OTHER, OTHER.answer)
    assert not collate([example]).topic.any()


def test_collate_masks_leave_padding_out() -> None:
    tokenizer = tiny_tokenizer()
    long, short = encode(tokenizer, ASKED, ASKED.answer), encode(tokenizer, OTHER, OTHER.answer)
    batch = collate([long, short])
    assert batch.real.sum(dim=1).tolist() == [len(long.ids), len(short.ids)]
    assert batch.response.sum(dim=1).tolist() == [len(e.ids) - e.response for e in (long, short)]
    assert not (batch.response & ~batch.real).any()
    assert not (batch.topic & ~batch.real).any()


def test_examples_are_a_sequence_of_what_encode_returns() -> None:
    tokenizer = tiny_tokenizer()
    examples = Examples(tokenizer, [(ASKED, ASKED.answer), (OTHER, OTHER.answer)])
    expected = [encode(tokenizer, question, question.answer) for question in (ASKED, OTHER)]
    assert list(examples) == examples[:] == expected
    assert examples[0] is examples[0]
    with pytest.raises(IndexError):
        examples[2]
