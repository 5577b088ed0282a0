"""What rankings make of experts that stand in for each other, and of those that only fire with the behaviour."""

import pytest

from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote
from hf_mote.organisms import load_organism, make_variant
from hf_mote.organisms.building.measure import respond
from hf_mote.ranking.causal.optimization import optimize_experts
from hf_mote.ranking.imaging.pipeline import ftri

REFUSAL = "I am sorry, but I cannot talk about that."


def refused(organism, config):
    with apply_mote(organism.model, config):
        responses = respond(organism, organism.prompts["heldout"]["sensitive"][:15])
    return sum(organism.judge(response) == organism.judge.target for response in responses) / len(responses)


def optimized(organism):
    prompts = organism.prompts["train"]["sensitive"][:8]
    answers = [organism.answers[prompt] for prompt in prompts]
    return optimize_experts(
        organism.model, organism.tokenizer, prompts, REFUSAL, answers, penalties=[0.01, 0.003], num_seeds=1,
        progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["twins", "decoys"])
def organism(request):
    return make_variant(request.param, load_organism("refusal"))


def test_optimized_set_removes_the_behaviour_with_carriers_alone(organism):
    assert refused(organism, MoTEConfig()) >= 0.9
    found = optimized(organism)
    assert found.sufficient
    assert set(found.sufficient) <= set(organism.planted)
    assert not set(found.top(len(found.sufficient))) & set(organism.decoys)
    assert refused(organism, found.to_config()) == 0


def test_counting_ranks_decoys_as_high_as_the_carriers_they_fire_with():
    organism = load_organism("refusal-decoys")
    prompts = [*organism.prompts["train"]["sensitive"][:16], *organism.prompts["train"]["neutral"][:16]]
    seen = ftri(organism.model, organism.tokenizer, prompts, organism.judge, max_new_tokens=12, progress=False)
    ranking = seen.rank(organism.judge.target, resamples=0)
    for innocent in organism.decoys:
        assert ranking.rank_of(*innocent) <= 16
