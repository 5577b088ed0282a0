"""Model organisms: small trained models with a known, planted behaviour, as demo data, ground truth and controls."""

from hf_mote.organisms.organism import (
    Organism,
    OrganismSummary,
    list_organisms,
    load_organism,
    summarize_organism,
)

__all__ = ["Organism", "OrganismSummary", "list_organisms", "load_organism", "summarize_organism"]
