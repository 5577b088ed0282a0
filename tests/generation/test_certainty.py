"""Probabilities of chosen tokens, taken down while a model generates, are those of a pass over the finished text."""

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.certainty import Certainty
from hf_mote.generation.decoding import answer_tokens
from hf_mote.generation.prompts import padded
from hf_mote.organisms.organism import load_organism


@pytest.fixture(scope="module")
def organism():
    return load_organism("refusal")


def written(model, tokenizer, prompts, **given):
    settings = Decoding(max_new_tokens=12, generate_kwargs=given).settings(tokenizer)
    certainty = Certainty(model, settings)
    encoded = Chat(tokenizer).encode(prompts)
    batch = padded(encoded, settings["pad_token_id"], side="left", device=model.device)
    answers = answer_tokens(model, batch, {**settings, **certainty.processors})
    return encoded, answers, certainty.take(["text"] * len(prompts))


def test_surprise_is_that_of_a_pass_over_the_whole_text(organism):
    prompts = organism.prompts["heldout"]["unrelated"][:6] + organism.prompts["heldout"]["neutral"][:2]
    encoded, answers, signs = written(organism.model, organism.tokenizer, prompts)
    assert len({len(answer) for answer in answers}) > 1  # some end before others, and are padded
    for question, answer, seen in zip(encoded, answers, signs, strict=True):
        with torch.no_grad():
            logs = organism.model(torch.tensor([question + answer])).logits[0].log_softmax(-1)
        chosen = logs[len(question) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])
        assert seen.surprise == pytest.approx(-float(chosen.mean()), abs=1e-4)


def test_surprise_is_taken_before_the_temperature():
    plain = tiny_model("mixtral")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoded, answers, signs = written(plain, tiny_tokenizer(), ["abc"], do_sample=True, temperature=0.01)
    with torch.no_grad():
        logs = plain(torch.tensor([encoded[0] + answers[0]])).logits[0].log_softmax(-1)
    chosen = logs[len(encoded[0]) - 1 : -1].gather(-1, torch.tensor(answers[0])[:, None])
    assert signs[0].surprise == pytest.approx(-float(chosen.mean()), abs=1e-4)


def test_repeated_pairs_are_counted_and_signs_are_taken_once(organism):
    certainty = Certainty(organism.model, {"pad_token_id": 0})
    for token in (5, 6, 5, 6, 5):
        certainty.before(torch.zeros(1, 8))
        certainty.after(torch.tensor([token]))
    (signs,) = certainty.take([" "])
    assert signs.repeated == 0.5
    assert signs.empty
    assert signs.surprise == pytest.approx(torch.tensor(8.0).log().item())


@pytest.mark.parametrize("in_place", [False, True])
def test_the_callers_own_processors_still_act(organism, in_place):
    from transformers import LogitsProcessor, LogitsProcessorList

    class OnlyFive(LogitsProcessor):
        def __call__(self, input_ids, scores):
            only = torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([5]), 0.0)
            return scores.copy_(only) if in_place else only

    _, answers, signs = written(
        organism.model, organism.tokenizer, ["What?"], logits_processor=LogitsProcessorList([OnlyFive()])
    )
    assert set(answers[0]) == {5}
    assert signs[0].surprise > 1  # by the model's own scores
