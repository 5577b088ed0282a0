"""Regression on random subsets: it finds what carries a response, stand-ins included, and refuses odd numbers."""

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import load_organism
from hf_mote.errors import ConfigError
from hf_mote.organisms import make_variant
from hf_mote.ranking.causal.subsets import random_subsets

REFUSAL = "I am sorry, but I cannot talk about that."


def test_carriers_that_stand_in_for_each_other_come_first():
    organism = make_variant("twins", load_organism("refusal"))
    prompts = organism.prompts["train"]["sensitive"][:3]
    ranking = random_subsets(
        organism.model, organism.tokenizer, prompts, REFUSAL, [organism.answers[prompt] for prompt in prompts],
        num_subsets=200, progress=False,
    )  # fmt: skip
    assert len(set(ranking.top(10)) & set(organism.planted)) >= 4
    assert ranking.unit == "nats"


def test_same_seed_gives_the_same_ranking_and_leaves_the_model():
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    before = model(torch.tensor([[5, 6]])).logits
    found = [random_subsets(model, tokenizer, ["abcd"], "g", "h", num_subsets=6, progress=False) for _ in range(2)]
    assert torch.equal(found[0].score, found[1].score)
    assert torch.equal(model(torch.tensor([[5, 6]])).logits, before)


@pytest.mark.parametrize(("name", "value"), [("num_subsets", 1), ("share", 0.0), ("share", 0.6), ("seed", -1)])
def test_numbers_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name):
        random_subsets(None, None, ["a"], "g", "h", **{name: value})
