"""Which ranking holds on organisms that embarrass rankings, and what `hf-mote find` makes of each.

    python tests/benchmarks/bench_variants.py --output FILE [--base refusal] [--variants twins decoys] [--seeds 0 1]
    python tests/benchmarks/bench_variants.py --table FILE ...

The variants of the shipped organisms (see `hf_mote/organisms/variants.py`), with as many seeds: other experts, noise
and prompts. All methods see the same 48 sensitive and 48 neutral training questions. A cell reads: precision at the
number of planted experts; what is left of the behaviour on 40 held-out questions with the first 5 (2 %) suppressed,
mode "drop", in %; and how many of these responses are no coherent text, in %. Means over the seeds, with the range
where it differs. For `find` it reads how often a config was written, and what that leaves.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transformers
from bench_ranking import COUNTING, METHODS, Case

from hf_mote import MoTEConfig, evaluate_mote, load_organism
from hf_mote.organisms import Organism, make_variant
from hf_mote.organisms.scoring import MAX_NEW_TOKENS, draw_prompts, image, num_suppressed, shown_in
from hf_mote.organisms.variants import VARIANTS
from hf_mote.ranking.causal.optimized import OptimizedRanking
from hf_mote.workflow.find import find_experts

NUM_IMAGED = 48
NUM_TESTED = 40
SUFFICIENT = "the sufficient set of the gates"
FIND = "`hf-mote find`"
SKIPPED = ("fTRI: difference of means, routing weights", "fTRI: risk difference, routing weights")


def made(base: str, variant: str, seed: int) -> Organism:
    organism = load_organism(base)
    return organism if variant == "-" else make_variant(variant, organism, seed=seed)


def measured(organism: Organism, test: dict[str, list[str]], experts: list[Any]) -> dict[str, float]:
    """Return what is left without some experts, and how much of the rest is no text."""
    report = evaluate_mote(
        organism.model, organism.tokenizer, MoTEConfig(suppress=sorted(list(pair) for pair in experts)),
        test["sensitive"], organism.judge, unrelated=[*test["neutral"], *test["unrelated"]], num_controls=0,
        max_new_tokens=MAX_NEW_TOKENS, batch_size=128, progress=False,
    )  # fmt: skip
    return {"left": report.after.rate, "junk": report.coherence.share_after.rate, "shown": report.before.rate}


def scored(base: str, variant: str, seed: int, skipped: tuple[str, ...] = ()) -> dict[str, Any]:
    organism = made(base, variant, seed)
    train, test = draw_prompts(organism, seed=seed, num_imaged=NUM_IMAGED, num_tested=NUM_TESTED)
    started = time.process_time()
    imaged = image(organism, train, batch_size=2 * NUM_IMAGED)
    imaging = time.process_time() - started
    case = Case(organism, imaged, shown_in(organism, imaged))
    planted = set(organism.planted)
    rows: dict[str, Any] = {}
    for name, method in METHODS.items():
        if name in SKIPPED or any(part in name for part in skipped):
            continue
        started = time.process_time()
        ranking = method(case)
        seconds = time.process_time() - started + (imaging if name in COUNTING else 0.0)
        experts = ranking.top(num_suppressed(ranking))
        rows[name] = {
            "precision": len(set(ranking.top(len(planted))) & planted) / len(planted) if planted else None,
            "decoys": len(set(ranking.top(len(planted))) & set(organism.decoys)),
            "seconds": seconds,
            **measured(organism, test, experts),
        }
        if isinstance(ranking, OptimizedRanking):
            found = list(ranking.sufficient)
            rows[SUFFICIENT] = {
                "precision": len(set(found) & planted) / len(found) if found else None,
                "number": len(found),
                "seconds": seconds,
                **(measured(organism, test, found) if found else {"left": rows[name]["shown"], "junk": 0.0}),
            }
        sys.stderr.write(f"  {name}: {json.dumps(rows.get(name))}\n")
    started = time.process_time()
    found = find_experts(
        organism.model, organism.tokenizer, [*train["sensitive"], *train["neutral"]], organism.judge,
        target=organism.judge.target, max_new_tokens=MAX_NEW_TOKENS, batch_size=2 * NUM_IMAGED, seed=seed,
        announce=lambda _: None,
    )  # fmt: skip
    seconds = time.process_time() - started
    suppress = [] if found.config is None else found.config.suppress
    rows[FIND] = {
        "written": found.config is not None,
        "method": None if found.best is None else found.best.method,
        "precision": len({tuple(pair) for pair in suppress} & planted) / len(suppress) if suppress else None,
        "verdict": found.verdict,
        "auroc": None if found.predicted is None else found.predicted.auroc,
        "seconds": seconds,
        **(measured(organism, test, suppress) if suppress else {"left": None, "junk": None}),
    }
    sys.stderr.write(f"  {FIND}: {json.dumps(rows[FIND])}\n")
    return {"base": base, "variant": variant, "seed": seed, "planted": sorted(planted), "methods": rows}


def table(results: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys((r["base"], r["variant"]) for r in results))
    heads = ["", "s", *(base if variant == "-" else f"{base}-{variant}" for base, variant in names)]
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' --: |' * (len(heads) - 1)}"]
    for method in results[0]["methods"]:
        cells = [f"{fmean(r['methods'][method]['seconds'] for r in results):.0f}"]
        for name in names:
            rows = [r["methods"][method] for r in results if (r["base"], r["variant"]) == name]
            cells.append(_find_cell(rows) if method == FIND else _cell(rows))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(rows: list[dict[str, Any]]) -> str:
    hits = [row["precision"] for row in rows if row["precision"] is not None]
    precision = f"{fmean(hits):.2f}" if hits else "–"
    return f"{precision} · {_percent([row['left'] for row in rows])} · {_percent([row['junk'] for row in rows])}"


def _find_cell(rows: list[dict[str, Any]]) -> str:
    written = [row for row in rows if row["written"]]
    text = f"{len(written)} of {len(rows)}"
    if not written:
        return text
    return f"{text} · {_percent([row['left'] for row in written])} · {_percent([row['junk'] for row in written])}"


def _percent(values: list[float]) -> str:
    mean, least, most = (f"{100 * value:.0f}" for value in (fmean(values), min(values), max(values)))
    return mean if least == most else f"{mean} [{least}, {most}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="refusal")
    parser.add_argument("--variants", nargs="*", default=["-", *VARIANTS], help="'-' is the base itself")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--skip", nargs="*", default=[], help="methods to leave out, by a part of their names")
    parser.add_argument("--output", type=Path, help="write the figures there, as JSON")
    parser.add_argument("--table", type=Path, nargs="*", help="print the table of figures that were written")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.table:
        results = [one for path in options.table for one in json.loads(path.read_text(encoding="utf-8"))]
    else:
        results = []
        for variant in options.variants:
            for seed in options.seeds:
                sys.stderr.write(f"{options.base} {variant} {seed}\n")
                results.append(scored(options.base, variant, seed, tuple(options.skip)))
                if options.output is not None:
                    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{table(results)}\n")


if __name__ == "__main__":
    main()
