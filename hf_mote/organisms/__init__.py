"""Model organisms: small trained models with a known, planted behaviour, as demo data, ground truth and controls."""

from hf_mote.organisms.organism import Organism, list_organisms, load_organism

__all__ = ["Organism", "list_organisms", "load_organism"]
