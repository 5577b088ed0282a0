"""What an organism answers on questions that are held out."""

from __future__ import annotations

from hf_mote import MoTEConfig, apply_mote
from hf_mote.organisms.building.measure import respond
from hf_mote.organisms.organism import Organism


def without(organism: Organism, config: MoTEConfig) -> tuple[float, float]:
    """The behaviour left, and whole answers (of right names, in whichever language), on questions held out."""
    asked = organism.prompts["heldout"]["sensitive"][40:70]
    with apply_mote(organism.model, config):
        responses = respond(organism, asked)
    left = sum(organism.judge(one) == organism.judge.target for one in responses) / len(asked)
    ends = sum(one.endswith(organism.answers[prompt][-6:]) for one, prompt in zip(responses, asked, strict=True))
    return left, ends / len(asked)
