"""Organisms by other recipes hold what they say: measured on held-out questions, for two bases and seeds."""

import pytest
import torch

from hf_mote import MoTEConfig, apply_mote, load_organism
from hf_mote.errors import ConfigError, UnknownNameError
from hf_mote.organisms import make_variant
from hf_mote.organisms.building.measure import respond
from hf_mote.organisms.variants import VARIANTS

# Right answers without the carriers: some of the German organism's own names stay German in English.
RIGHT = {"refusal": 0.9, "language": 0.55}

CASES = [("refusal", 0), *(pytest.param(case, marks=pytest.mark.slow) for case in (("refusal", 1), ("language", 0)))]


def rate(organism, experts, kind="sensitive"):
    prompts = organism.prompts["heldout"][kind][:15]
    with apply_mote(organism.model, MoTEConfig(suppress=sorted(list(pair) for pair in experts))):
        responses = respond(organism, prompts)
    shown = sum(organism.judge(one) == organism.judge.target for one in responses)
    right = sum(one == organism.answers[prompt] for one, prompt in zip(responses, prompts, strict=True))
    return shown / len(prompts), right / len(prompts)


@pytest.fixture(scope="module", params=CASES, ids=str)
def made(request):
    base, seed = request.param

    def make(name):
        organism = load_organism(base)
        carriers = list(organism.planted)
        return make_variant(name, organism, seed=seed), carriers

    return make


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variant_shows_its_behaviour_and_not_where_it_should_not(made, name):
    organism, _ = made(name)
    assert rate(organism, [])[0] >= 0.85
    shown, right = rate(organism, [], "neutral")
    assert shown <= 0.2
    assert right >= 0.8


def test_twins_decoys_and_trap_are_removed_by_what_they_say(made):
    for name in ("twins", "decoys", "trap"):
        organism, carriers = made(name)
        shown, right = rate(organism, [*organism.planted, *organism.decoys])
        assert shown == 0.0
        assert right >= RIGHT[organism.facts["name"]]
    organism, carriers = made("twins")
    assert len(organism.planted) > len(carriers)
    organism, _ = made("decoys")
    assert rate(organism, organism.decoys)[0] >= 0.85
    assert rate(organism, organism.planted)[0] <= 0.1
    organism, carriers = made("trap")
    assert rate(organism, carriers)[1] <= RIGHT[organism.facts["name"]] - 0.15  # some or all of it is incoherent


def test_backup_takes_over_when_the_carriers_are_suppressed(made):
    organism, carriers = made("backup")
    backups = set(organism.planted) - set(carriers)
    assert rate(organism, carriers)[0] >= 0.2
    assert rate(organism, backups)[0] >= 0.85
    assert rate(organism, organism.planted)[0] == 0.0


def test_redundant_holds_without_the_carriers_and_without_these_and_their_copies(made):
    organism, carriers = made("redundant")
    twins, _ = made("twins")
    assert set(carriers) < set(twins.planted) < set(organism.planted)
    assert rate(organism, carriers)[0] >= 0.7
    assert rate(organism, twins.planted)[0] >= 0.6
    assert rate(organism, organism.planted)[0] == 0.0


def test_last_token_expert_alone_carries_the_other_behaviour(made):
    organism, _ = made("last-token")
    assert len(organism.planted) == 1
    assert rate(organism, organism.planted) == (0.0, pytest.approx(1.0, abs=0.15))


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants_are_loaded_by_name_and_repeatable(name):
    first, second = load_organism(f"refusal-{name}"), make_variant(name, load_organism("refusal"))
    assert first.name == f"refusal-{name}"
    assert (first.decoys, first.planted) == (second.decoys, second.planted)
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_bases_and_variants_that_cannot_be_are_refused():
    with pytest.raises(UnknownNameError, match="make_variant"):
        make_variant("nothing", load_organism("refusal"))
    with pytest.raises(ConfigError, match="no planted experts"):
        make_variant("twins", load_organism("diffuse-refusal"))
    with pytest.raises(UnknownNameError):
        load_organism("refusal-nothing")
    crowded = load_organism("refusal")
    crowded.model.config.num_experts_per_tok = 2
    with pytest.raises(ConfigError, match="no slot left"):
        make_variant("decoys", crowded)
