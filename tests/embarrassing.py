"""Organisms that embarrass rankings, made from the shipped one "refusal"; it is known which experts cause what.

- `twins`: every planted expert of the last planted layer has a copy, with a copy of its router row. Both are chosen
  together, and either carries the behaviour on without the other: taken out alone, neither matters much.
- `decoys`: every planted expert of that layer has a neighbour with a copy of its router row that puts out nothing. It
  is chosen wherever the carrier is, and causes nothing.
"""

from typing import NamedTuple

import torch

from hf_mote.organisms.organism import Organism, load_organism

__all__ = ["Embarrassing", "decoys", "twins"]

LAYER = 4
PLACES = (0, 1)  # experts of that layer that none of the planted ones is


class Embarrassing(NamedTuple):
    """An organism, the experts that carry its behaviour, and those that only seem to."""

    organism: Organism
    carriers: set[tuple[int, int]]
    innocent: set[tuple[int, int]]


def twins() -> Embarrassing:
    """Return the organism whose carriers have copies that work."""
    organism = load_organism("refusal")
    copies = _copied(organism, silent=False)
    return Embarrassing(organism, set(organism.planted) | copies, set())


def decoys() -> Embarrassing:
    """Return the organism whose carriers have neighbours that fire with them."""
    organism = load_organism("refusal")
    return Embarrassing(organism, set(organism.planted), _copied(organism, silent=True))


@torch.no_grad()
def _copied(organism: Organism, *, silent: bool) -> set[tuple[int, int]]:
    planted = [expert for layer, expert in organism.planted if layer == LAYER]
    assert not set(planted) & set(PLACES)
    block = organism.model.model.layers[LAYER].mlp
    for expert, place in zip(planted, PLACES, strict=True):
        block.gate.weight[place] = block.gate.weight[expert]
        block.gate.e_score_correction_bias[place] = block.gate.e_score_correction_bias[expert]
        block.experts.gate_up_proj[place] = block.experts.gate_up_proj[expert]
        block.experts.down_proj[place] = 0 if silent else block.experts.down_proj[expert]
        if silent:  # the carrier's weight falls by half where weights are shared with the decoy
            block.experts.down_proj[expert] *= 2
    return {(LAYER, place) for place in PLACES}
