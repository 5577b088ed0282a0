"""Makes the organisms' folders of hub_configs: `python tests/make_hub_configs.py [NAME ...]`, about a minute each.

Experts are found on training questions; of the two rankings the one whose best experts do more is kept, by training
questions that neither was made from; and what it does is measured once, on held-out questions against 20 random
controls; all at seed 0. What is written is what a push would upload: no prompt, no response.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_mote import EvaluationReport, MoTEConfig, evaluate_mote, load_organism
from hf_mote.commands.validate import MARKS, problems_in
from hf_mote.organisms.organism import Organism, list_organisms
from hf_mote.organisms.scoring import MAX_NEW_TOKENS, draw_prompts, num_suppressed, rank_experts

ROOT = Path(__file__).parents[1] / "hub_configs"
BEHAVIOURS = {"refusal": "refusal", "language": "german", "diffuse-refusal": "refusal"}
NUM_IMAGED, NUM_TESTED, NUM_CONTROLS, SEED = 48, 60, 20, 0
_INTENDED = (
    "Showing and testing the method on a behaviour whose place is known. It fits the model organism "
    '`hf_mote.load_organism("{name}")` and is refused by any other model.'
)
_MISUSE = (
    "What it changes protects nobody: the questions are about birthdays of composers and the like. On a model whose "
    "refusals protect people the same steps would take away a safeguard; the package is not meant for that. Nothing "
    "was measured outside the organism's own questions."
)
_CHOSEN = (
    " Of {count} rankings the one that did better (the first, where none did) was kept, by {prompts} training "
    "questions that neither was made from ({tried}). The effect above was measured on held-out questions afterwards, "
    "of that one alone, so that the choice does not flatter it."
)
_NEGATIVE = (
    " This organism is the negative control: its behaviour was trained into all parameters, and whatever experts a "
    "ranking names, there is no reason for them to carry it. Read the verdict above before you use it for anything."
)


def folder_of(name: str) -> Path:
    """Return the folder of an organism's profile."""
    return ROOT / f"hf_mote--{name}-organism" / BEHAVIOURS[name]


def measured(organism: Organism, config: MoTEConfig, *, num_controls: int = NUM_CONTROLS) -> EvaluationReport:
    """Return what a config does to an organism on held-out questions, as the shipped reports have it."""
    _, test = draw_prompts(organism, seed=SEED, num_imaged=NUM_IMAGED, num_tested=NUM_TESTED)
    unrelated = [*test["neutral"], *test["unrelated"]]
    return _evaluated(organism, config, test["sensitive"], unrelated=unrelated, num_controls=num_controls)


def choosing_prompts(organism: Organism) -> list[str]:
    """Return the questions that a ranking is chosen by: of training, and none that a ranking was made from."""
    train, _ = draw_prompts(organism, seed=SEED, num_imaged=NUM_IMAGED, num_tested=NUM_TESTED)
    others = [prompt for prompt in organism.prompts["train"]["sensitive"] if prompt not in set(train["sensitive"])]
    return random.Random(SEED).sample(others, NUM_TESTED)


def _evaluated(organism: Organism, config: MoTEConfig, prompts: list[str], **options: Any) -> EvaluationReport:
    return evaluate_mote(
        organism.model,
        organism.tokenizer,
        config,
        prompts,
        organism.judge,
        seed=SEED,
        batch_size=NUM_TESTED,
        max_new_tokens=MAX_NEW_TOKENS,
        progress=False,
        **options,
    )


def make(name: str) -> None:
    """Write the folder of one organism."""
    organism = load_organism(name)
    train, _ = draw_prompts(organism, seed=SEED, num_imaged=NUM_IMAGED, num_tested=NUM_TESTED)
    imaged, rankings = rank_experts(organism, train, seed=SEED, batch_size=NUM_TESTED, progress=False)
    target = organism.judge.target
    found, tried = [], []
    choosing = choosing_prompts(organism)
    for method, ranking in rankings.items():
        config = dataclasses.replace(ranking.to_config(suppress=num_suppressed(ranking)), base_model=None)
        chosen_by = _evaluated(organism, config, choosing, num_controls=NUM_CONTROLS)
        found.append((not chosen_by.beats_controls(), chosen_by.after.rate, ranking, config))
        tried.append(f"{method}: {target} {chosen_by.after.rate:.1%}, p = {chosen_by.p_value:.3g}")
    _, _, ranking, config = min(found, key=lambda one: one[:2])
    report = measured(organism, config)
    made = {
        "status": MARKS[0],
        "source": f"hf_mote, tests/make_hub_configs.py {name}",
        "organism": name,
        "rankings_tried": "; ".join(tried),
        "chosen_by": f"{len(choosing)} training questions that no ranking was made from, seed {SEED}",
        "evaluated_on": f"{NUM_TESTED} held-out sensitive questions and {2 * NUM_TESTED} others, seed {SEED}",
        f"{target}_before": report.before.rate,
        f"{target}_after": report.after.rate,
        "random_controls_mean": fmean(report.controls),
    }
    config = dataclasses.replace(config, provenance={**config.provenance, **made})
    report = dataclasses.replace(report, config=config.to_dict())
    chosen = _CHOSEN.format(count=len(tried), prompts=len(choosing), tried="; ".join(tried))
    folder = folder_of(name)
    shutil.rmtree(folder, ignore_errors=True)
    config.save_pretrained(
        folder,
        ranking=ranking,
        report=report._public(with_texts=False),
        maps=imaged.maps,
        license="apache-2.0",
        intended_use=_INTENDED.format(name=name),
        misuse=_MISUSE + chosen + (_NEGATIVE if not organism.planted else ""),
    )
    for problem in problems_in(folder):
        raise SystemExit(f"{folder}: {problem}")
    print(f"{folder}: {report.verdict}")  # noqa: T201


if __name__ == "__main__":
    for given in sys.argv[1:] or list_organisms():
        make(given)
