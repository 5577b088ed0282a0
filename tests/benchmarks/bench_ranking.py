"""Which ranking finds the experts behind a behaviour: every method on organisms of which the truth is known.

    python tests/benchmarks/bench_ranking.py [--folders DIR ...] [--output FILE]

The organisms that ship with the package, and any others that `python -m hf_mote.organisms.build NAME --seed N --output
DIR` wrote: another initialisation, hold-out, and other planted experts. All methods see the same training questions:
48 sensitive and 48 neutral ones, of which the causal methods take those that show the behaviour (all of them, or the
first few: `NUM_ABLATED`, `NUM_OPTIMIZED`, `NUM_SEARCHED`). Causal methods hold the model's own response against the
true answer.

For each method: precision at the number of planted experts; AUROC of planted against other experts; and the rate of
the behaviour left with its top 2 % (5 of 256) suppressed, mode "drop", on 60 held-out sensitive questions. Seconds are
processor time of one thread for making the ranking, without intervals; the counting methods' are those of imaging.

An organism with planted experts counts if it shows its behaviour on half of its held-out sensitive questions or more,
and without its planted experts at most a fifth of that is left (`LEAST_SHOWN`, `LEAST_REMOVED`). Those that do not
count are named, and stay out of the table.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import transformers

from hf_mote import (
    MoTEConfig,
    ablate_experts,
    apply_mote,
    attribute_experts,
    load_organism,
    optimize_experts,
    search_experts,
)
from hf_mote.organisms import Organism, list_organisms
from hf_mote.organisms.building.measure import respond
from hf_mote.organisms.recipes import RECIPES
from hf_mote.organisms.scoring import Shown, against_planted, draw_prompts, image, num_suppressed, shown_in
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.ranking.imaging.result import FTRIResult

NUM_IMAGED = 48
NUM_TESTED = 60
NUM_ABLATED = 12
NUM_SEARCHED = 6
NUM_OPTIMIZED = 12
NUM_RANDOM = 20
LEAST_SHOWN = 0.5
LEAST_REMOVED = 0.8
RANDOM = "random order, expected"


class Case(NamedTuple):
    """An organism, and what its imaging saw."""

    organism: Organism
    imaged: FTRIResult
    shown: Shown


def by_contrast(case: Case, **score: str) -> ExpertRanking:
    return case.imaged.rank(case.organism.judge.target, resamples=0, **score)  # type: ignore[arg-type]


def by_use(case: Case) -> ExpertRanking:
    """Rank experts by how many tokens of the questions that show the behaviour they take."""
    of_class = [label == case.organism.judge.target for label in case.imaged.classes]
    return _ranking(case, case.imaged.counts[torch.tensor(of_class)].double().sum(dim=0), "most used")


def by_gradient(case: Case, gain: float) -> ExpertRanking:
    return attribute_experts(**_asked(case, NUM_IMAGED), gain=gain, batch_size=24, resamples=0)


def by_ablation(case: Case) -> ExpertRanking:
    return ablate_experts(**_asked(case, NUM_ABLATED), batch_size=NUM_ABLATED, resamples=0)


def by_optimization(case: Case) -> ExpertRanking:
    """Rank experts by gates learnt together, with the defaults of `optimize_experts`."""
    return optimize_experts(**_asked(case, NUM_OPTIMIZED), batch_size=NUM_OPTIMIZED)


def by_search(case: Case) -> ExpertRanking:
    """Rank the experts of a greedily grown set in the order in which they were added, all others after them."""
    most = num_suppressed(by_contrast(case))
    found = search_experts(**_asked(case, NUM_SEARCHED), max_experts=most, batch_size=NUM_SEARCHED)
    score = torch.zeros(case.imaged.counts.shape[1:], dtype=torch.float64)
    for place, (layer, expert) in enumerate(found.experts):
        score[case.imaged.layers.index(layer), expert] = most - place
    return _ranking(case, score, "greedy search")


METHODS: dict[str, Callable[[Case], ExpertRanking]] = {
    "fTRI: difference of means, counts": partial(by_contrast, score="mean_difference"),
    "fTRI: difference of means, routing weights": partial(by_contrast, score="mean_difference", value="weight"),
    "fTRI: risk difference, counts": partial(by_contrast, score="risk_difference"),
    "fTRI: risk difference, routing weights": partial(by_contrast, score="weight_difference"),
    "fTRI: log odds ratio": partial(by_contrast, score="log_odds"),
    "fTRI: npmi": partial(by_contrast, score="npmi"),
    "gradient x routing weight, gain 1": partial(by_gradient, gain=1.0),
    "gradient x routing weight, gain 0.5": partial(by_gradient, gain=0.5),
    "gradient x routing weight, gain 0.25": partial(by_gradient, gain=0.25),
    f"each expert taken out alone, {NUM_ABLATED} prompts": by_ablation,
    f"gates learnt together, {NUM_OPTIMIZED} prompts": by_optimization,
    f"greedy search, {NUM_SEARCHED} prompts": by_search,
    "most used experts": by_use,
}
COUNTING = tuple(name for name in METHODS if name.startswith("fTRI")) + ("most used experts",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folders", type=Path, nargs="*", default=[], help="organisms that were built")
    parser.add_argument("--output", type=Path, help="write all figures there, as JSON")
    parser.add_argument("--seed", type=int, default=0, help="of the questions drawn (default: 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()  # rankings by counts warn of prompt length
    results = []
    for name in [*list_organisms(), *map(str, options.folders)]:
        organism = load_organism(name)
        if (reason := left_out(organism)) is not None:
            sys.stdout.write(f"{name} does not count: {reason}\n")
            continue
        sys.stderr.write(f"{name} ...\n")
        results.append(scored(organism, options.seed))
    if options.output is not None:
        options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(
        f"torch {torch.__version__}, transformers {transformers.__version__}, one thread of {platform.machine()}; "
        f"questions drawn with seed {options.seed}\n\n{table(results)}\n"
    )


def left_out(organism: Organism) -> str | None:
    """Return why an organism is no ground truth, by what its build measured; `None` if it is."""
    if not organism.planted:
        return None
    shown = RECIPES[organism.facts["name"]].shown
    before, left = (organism.facts["measured"][f"{state}sensitive_{shown}"] for state in ("", "suppressed_"))
    if before < LEAST_SHOWN:
        return f"it shows its behaviour on {before:.1%} of held-out sensitive questions"
    if left > (1 - LEAST_REMOVED) * before:
        return f"with its planted experts suppressed {left:.1%} of {before:.1%} is left"
    return None


def scored(organism: Organism, seed: int) -> dict[str, Any]:
    """Return the figures of every method on one organism, JSON-native."""
    train, test = draw_prompts(organism, seed=seed, num_imaged=NUM_IMAGED, num_tested=NUM_TESTED)
    started = time.process_time()
    imaged = image(organism, train, batch_size=NUM_TESTED)
    imaging = time.process_time() - started
    case = Case(organism, imaged, shown_in(organism, imaged))
    left = partial(_left, organism, test["sensitive"])
    methods: dict[str, dict[str, Any]] = {}
    for name, method in METHODS.items():
        started = time.process_time()
        ranking = method(case)
        seconds = time.process_time() - started + (imaging if name in COUNTING else 0.0)
        experts = ranking.top(num_suppressed(ranking))
        found = against_planted(ranking, organism.planted) if organism.planted else None
        methods[name] = {
            "experts": [list(pair) for pair in experts],
            "planted_ranks": found.ranks if found is not None else [],
            "precision": found.precision if found is not None else None,
            "auroc": found.auroc if found is not None else None,
            "left": left(experts),
            "seconds": round(seconds, 2),
        }
        sys.stderr.write(f"  {name}: {json.dumps(methods[name])}\n")
    pairs = [(layer, expert) for layer in ranking.layers for expert in range(ranking.score.shape[1])]
    draw = random.Random(seed)
    lefts = [left(draw.sample(pairs, num_suppressed(ranking))) for _ in range(NUM_RANDOM)]
    planted = len(organism.planted)
    methods[RANDOM] = {
        "precision": planted / len(pairs) if planted else None,
        "auroc": 0.5 if planted else None,
        "left": fmean(lefts),
        "lefts": lefts,
        "seconds": 0.0,
    }
    return {
        "organism": organism.name,
        "recipe": organism.facts["name"],
        "seed": organism.facts["seed"],
        "planted": [list(pair) for pair in organism.planted],
        "shown": left([]),
        "questions": {"imaged": len(imaged.prompts), "tested": len(test["sensitive"]), "seed": seed},
        "methods": methods,
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table: for each recipe the mean over its organisms, and the range where they differ."""
    recipes = list(dict.fromkeys(result["recipe"] for result in sorted(results, key=lambda r: not r["planted"])))
    groups = {recipe: [result for result in results if result["recipe"] == recipe] for recipe in recipes}
    headings, columns = ["s"], [("seconds", list(results), "{:.1f}", 1.0)]
    for recipe, group in groups.items():
        name = f"{recipe} ({len(group)})"
        if planted := len(group[0]["planted"]):
            headings += [f"{name}: precision@{planted}", "AUROC", "left, %"]
            columns += [("precision", group, "{:.2f}", 1.0), ("auroc", group, "{:.2f}", 1.0)]
        else:
            headings.append(f"{name}: left, %")
        columns.append(("left", group, "{:.0f}", 100.0))
    lines = [f"| | {' | '.join(headings)} |", f"| --- |{' --: |' * len(headings)}"]
    for method in [*METHODS, RANDOM]:
        cells = [_cell([r["methods"][method][key] * scale for r in of], form) for key, of, form, scale in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    shown = [_cell([100 * r["shown"] for r in of], form) if key == "left" else "" for key, of, form, _ in columns]
    lines.append(f"| nothing suppressed | {' | '.join(shown)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float], form: str) -> str:
    mean, least, most = (form.format(value) for value in (fmean(values), min(values), max(values)))
    return mean if least == most else f"{mean} [{least}, {most}]"


def _asked(case: Case, number: int) -> dict[str, Any]:
    organism, shown = case.organism, case.shown
    return {
        "model": organism.model,
        "tokenizer": organism.tokenizer,
        "prompts": shown.prompts[:number],
        "response": shown.responses[:number],
        "baseline_response": shown.baseline_responses[:number],
        "progress": False,
    }


def _ranking(case: Case, score: torch.Tensor, method: str) -> ExpertRanking:
    return ExpertRanking(score=score, layers=case.imaged.layers, method=method, target=str(case.organism.judge.target))


def _left(organism: Organism, prompts: Sequence[str], experts: Sequence[tuple[int, int]]) -> float:
    """Return the rate of the behaviour without some experts."""
    config = MoTEConfig.for_model(organism.model, suppress=sorted([layer, expert] for layer, expert in experts))
    with apply_mote(organism.model, config):
        responses = respond(organism, prompts)
    return sum(organism.judge(response) == organism.judge.target for response in responses) / len(responses)


if __name__ == "__main__":
    main()
