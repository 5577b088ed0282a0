"""Model organisms: small trained models with a known, planted behaviour, as demo data, ground truth and controls.

Files in reading order:

- `organism.py`: `load_organism`, and the fields of an organism.
- `recipes.py`: the table of organisms: model, questions, behaviour and training of each.
- `variants.py`: harder organisms, made from these by edits of their weights, on which rankings or verdicts go wrong.
- `questions.py` and `german.py`: the facts and questions, with `data/`.
- `scoring.py`: searches the experts behind a behaviour, and scores the result.
- `building/`: how they are made; `build.py` keeps `python -m hf_mote.organisms.build` working.
- `refusal/`, `language/`, `diffuse-refusal/`: the trained models.

May import `ranking`, `evaluation`, `folders`, and what `ranking` may except `printing` and `plots`; not `sae`. A new
organism is a row in `recipes.py`.
"""

from hf_mote.organisms.organism import (
    Organism,
    OrganismSummary,
    list_organisms,
    load_organism,
    make_variant,
    summarize_organism,
)

__all__ = ["Organism", "OrganismSummary", "list_organisms", "load_organism", "make_variant", "summarize_organism"]
