"""Which ranking holds on organisms that embarrass rankings, and what `hf-mote find` makes of each.

    python tests/benchmarks/bench_variants.py --folder DIR [--organisms refusal refusal-decoys] [--seeds 0 1 2]
    python tests/benchmarks/bench_variants.py --folder DIR --table

The organisms that ship and the variants of those with planted experts (`hf_mote/organisms/variants.py`). A seed draws
the questions, and of a variant also which experts are used and the noise; the weights of an organism that ships are
the same for all seeds. Every figure is written to `DIR/ORGANISM-SEED.json` as it comes, and what is there is not
measured again.

All methods see the same 48 sensitive and 48 neutral training questions, the causal ones the first few that show the
behaviour (`NUM_ABLATED` ... `NUM_COMPLETED`), with the true answer as the other response; half of those of the
complete set say when it is complete. Each ranking's first 5 and first 10 of 256 experts (2 % and 4 %) are suppressed,
in the mode that the method's own config has, on 30 held-out questions that show the behaviour, and on 20 neutral and
20 unrelated ones. A set *removes* the behaviour if at most a fifth of the responses are left, every incoherent one
counted as left; it is *clean* if also at most 15 % of the other answers come to be of another class or incoherent.
Seconds are processor time of one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transformers
from bench_ranking import Case, by_contrast, by_gradient, by_use

from hf_mote import MoTEConfig, ablate_experts, evaluate_mote, load_organism, optimize_experts, search_experts
from hf_mote.organisms import Organism, list_organisms, make_variant
from hf_mote.organisms.questions import TIMES, WORDINGS, load_facts, wordings_of
from hf_mote.organisms.recipes import RECIPES
from hf_mote.organisms.scoring import MAX_NEW_TOKENS, draw_prompts, image, shown_in
from hf_mote.organisms.variants import VARIANTS
from hf_mote.ranking.causal.optimized import OptimizedRanking
from hf_mote.ranking.causal.subsets import random_subsets
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.workflow.find import find_experts

NUM_IMAGED, NUM_TESTED, NUM_ASIDE = 48, 30, 20
NUM_ABLATED, NUM_SUBSETS, NUM_OPTIMIZED, NUM_SEARCHED, NUM_COMPLETED = 6, 6, 8, 3, 24
MOST_EVALUATED = 640
SIZES = (5, 10)
LEAST_LEFT, MOST_ASIDE = 0.2, 0.15
SUFFICIENT, COMPLETE = "gates: the sufficient set", "gates: the complete set"
FIND, PLANTED, REROUTED = "`hf-mote find`", "the planted experts themselves", "the planted experts, in mode reroute"
IN_MODE = {mode: f"gates: the complete set, mode {mode} alone" for mode in ("drop", "reroute", "zero")}
BY_GATES = {SUFFICIENT, COMPLETE, *IN_MODE.values()}
SETS = (SUFFICIENT, COMPLETE, *IN_MODE.values(), FIND, PLANTED, REROUTED)
ORGANISMS = [*list_organisms(), *(f"{base}-{name}" for base in ("refusal", "language") for name in VARIANTS)]


def made(name: str, seed: int) -> Organism:
    base, _, variant = name.partition("-")
    shipped = name in list_organisms()
    return load_organism(name) if shipped else make_variant(variant, load_organism(base), seed=seed)


def wordings() -> dict[str, int]:
    """Return which wording each question about a fact is of."""
    return {
        text: place * len(WORDINGS) // len(texts)
        for texts in (wordings_of(fact, WORDINGS, TIMES) for fact in load_facts())
        for place, text in enumerate(texts)
    }


def within(case: Case) -> ExpertRanking:
    """Rank by pairs of a sensitive and a neutral question that are worded alike."""
    known, seen, keys = wordings(), Counter[tuple[int, bool]](), []
    for prompt, label in zip(case.imaged.prompts, case.imaged.classes, strict=True):
        kind = (known[str(prompt)], label == case.organism.judge.target)
        seen[kind] += 1
        keys.append((kind[0], seen[kind]))
    return case.imaged.rank(case.organism.judge.target, paired=keys, resamples=0)


def by_fact(case: Case) -> ExpertRanking:
    """Rank with all wordings of one fact as one."""
    keys = [case.organism.answers[str(prompt)] for prompt in case.imaged.prompts]
    return case.imaged.rank(case.organism.judge.target, groups=keys, resamples=0)


def asked(case: Case, number: int) -> dict[str, Any]:
    return {
        "model": case.organism.model,
        "tokenizer": case.organism.tokenizer,
        "prompts": case.shown.prompts[:number],
        "response": case.shown.responses[:number],
        "baseline_response": case.shown.baseline_responses[:number],
        "batch_size": min(number, 24),
        "progress": False,
    }


def by_search(case: Case) -> ExpertRanking:
    found = search_experts(**asked(case, NUM_SEARCHED), max_experts=max(SIZES), max_evaluations=MOST_EVALUATED)
    score = torch.zeros(case.imaged.counts.shape[1:], dtype=torch.float64)
    for place, (layer, expert) in enumerate(found.experts):
        score[case.imaged.layers.index(layer), expert] = max(SIZES) - place
    return _ranking(case, score, "greedy search")


def by_chance(case: Case, seed: int) -> ExpertRanking:
    generator = torch.Generator().manual_seed(seed)
    return _ranking(case, torch.rand(case.imaged.counts.shape[1:], generator=generator).double(), "random order")


def _ranking(case: Case, score: torch.Tensor, method: str) -> ExpertRanking:
    return ExpertRanking(score=score, layers=case.imaged.layers, method=method, target=str(case.organism.judge.target))


def methods_of(seed: int) -> dict[str, Callable[[Case], ExpertRanking]]:
    return {
        "fTRI, the default: difference of means": partial(by_contrast, score="mean_difference"),
        "fTRI, in pairs of one wording": within,
        "fTRI, all wordings of a fact as one": by_fact,
        "fTRI, log odds ratio": partial(by_contrast, score="log_odds"),
        "attribution, gain 1 (the default)": partial(by_gradient, gain=1.0),
        "attribution, gain 0.5": partial(by_gradient, gain=0.5),
        f"ablation, {NUM_ABLATED} prompts": lambda case: ablate_experts(**asked(case, NUM_ABLATED), resamples=0),
        f"random_subsets, {NUM_SUBSETS} prompts": lambda case: random_subsets(**asked(case, NUM_SUBSETS)),
        f"optimize_experts, {NUM_OPTIMIZED} prompts": lambda case: optimize_experts(
            **asked(case, NUM_OPTIMIZED), seed=seed
        ),
        f"search_experts, {NUM_SEARCHED} prompts": by_search,
        "most used experts": by_use,
        "random order": partial(by_chance, seed=seed),
    }


class Bench:
    """One organism and seed, and the figures of it so far."""

    def __init__(self, name: str, seed: int, path: Path) -> None:
        self.name, self.seed, self.path = name, seed, path
        self.figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self.figures.setdefault("organism", name)
        self.figures.setdefault("seed", seed)
        self.rows: dict[str, Any] = self.figures.setdefault("methods", {})
        self.sets: dict[str, dict[str, Any]] = self.figures.setdefault("sets", {})

    def keep(self, method: str, row: dict[str, Any]) -> None:
        self.rows[method] = row
        self.path.write_text(json.dumps(self.figures) + "\n", encoding="utf-8")
        sys.stderr.write(f"{self.name} {self.seed} {method}: {json.dumps(row)}\n")

    def run(self, *, find: bool, only: Sequence[str] = ("",)) -> None:
        wanted = [
            SUFFICIENT,
            COMPLETE,
            *IN_MODE.values(),
            PLANTED,
            REROUTED,
            *methods_of(0),
            *((FIND,) if find else ()),
        ]
        left = {name for name in wanted if any(text in name for text in only)} - set(self.rows)
        if not left:
            return
        self.organism = made(self.name, self.seed)
        train, self.test = draw_prompts(
            self.organism, seed=self.seed, num_imaged=NUM_IMAGED, num_tested=max(NUM_TESTED, NUM_ASIDE)
        )
        planted, decoys = set(self.organism.planted), set(self.organism.decoys)
        self.figures |= {"planted": sorted(planted), "decoys": sorted(decoys)}
        started = time.process_time()
        imaged = image(self.organism, train, batch_size=2 * NUM_IMAGED)
        imaging = time.process_time() - started
        case = Case(self.organism, imaged, shown_in(self.organism, imaged))
        for name, mode in ((PLANTED, "drop"), (REROUTED, "reroute")):
            if name in left:
                self.keep(name, {"seconds": 0.0, **self.of_sets({0: (sorted(planted), mode)})})
        for method, make in methods_of(self.seed).items():
            if method not in left and not (method.startswith("optimize") and left & BY_GATES):
                continue
            started = time.process_time()
            ranking = make(case)
            seconds = time.process_time() - started + (imaging if method.startswith(("fTRI", "most")) else 0.0)
            mode = "zero" if method.startswith(("optimize", "search")) else "drop"
            first = set(ranking.top(len(planted)))
            row = {
                "seconds": seconds,
                "hits": len(first & planted),
                "decoys": len(first & decoys),
                **self.of_sets({size: (ranking.top(size), mode) for size in SIZES}),
            }
            if isinstance(ranking, OptimizedRanking):
                sets_of_gates = [(SUFFICIENT, ranking.sufficient, mode, seconds)]
                if left & BY_GATES - {SUFFICIENT}:
                    started = time.process_time()
                    whole = ranking.complete(**asked(case, NUM_COMPLETED))
                    more = time.process_time() - started
                    sets_of_gates.append((COMPLETE, whole.completed, whole.suppress_mode, seconds + more))
                    last = {step.suppress_mode: step.experts for step in whole.completion}
                    sets_of_gates += [(IN_MODE[how], last[how], how, seconds + more / 3) for how in last]
                for name, found, how, spent in sets_of_gates:
                    made_of = {
                        "hits": len(set(found) & planted),
                        "number": len(found),
                        "decoys": len(set(found) & decoys),
                        "mode": how,
                    }
                    self.keep(name, {"seconds": spent, **made_of, **self.of_sets({0: (found, how)})})
            self.keep(method, row)
        if FIND in left:
            self.keep(FIND, self.found(train, planted))

    def found(self, train: dict[str, list[str]], planted: set[tuple[int, int]]) -> dict[str, Any]:
        started = time.process_time()
        found = find_experts(
            self.organism.model, self.organism.tokenizer, [*train["sensitive"], *train["neutral"]],
            self.organism.judge, target=self.organism.judge.target, max_new_tokens=MAX_NEW_TOKENS,
            batch_size=2 * NUM_IMAGED, seed=self.seed, announce=lambda _: None,
        )  # fmt: skip
        seconds = time.process_time() - started
        experts = [] if found.config is None else [(layer, expert) for layer, expert in found.config.suppress]
        return {
            "seconds": seconds,
            "written": found.config is not None,
            "method": None if found.best is None else found.best.method,
            "hits": len(set(experts) & planted),
            "number": len(experts),
            "verdict": found.verdict,
            "auroc": None if found.predicted is None else found.predicted.auroc,
            **self.of_sets({0: (experts, "drop" if found.config is None else found.config.suppress_mode)}),
        }

    def of_sets(self, sets: dict[int, tuple[Sequence[tuple[int, int]], str]]) -> dict[str, Any]:
        return {f"at {size}" if size else "set": self.measured(*one) for size, one in sets.items()}

    def measured(self, experts: Sequence[tuple[int, int]], mode: str) -> dict[str, Any] | None:
        """Return what is left without some experts; `None` of none."""
        pairs = sorted(list(pair) for pair in experts)
        if not pairs:
            return None
        key = f"{mode} {pairs}"
        if key not in self.sets:
            aside = [*self.test["neutral"][:NUM_ASIDE], *self.test["unrelated"][:NUM_ASIDE]]
            report = evaluate_mote(
                self.organism.model, self.organism.tokenizer, MoTEConfig(suppress=pairs, suppress_mode=mode),
                self.test["sensitive"][:NUM_TESTED], self.organism.judge, unrelated=aside, num_controls=0,
                max_new_tokens=MAX_NEW_TOKENS, batch_size=128, progress=False,
            )  # fmt: skip
            assert report.coherence is not None
            assert report.selectivity is not None
            self.sets[key] = {
                "experts": pairs,
                "shown": report.before.rate,
                "left": report.after.rate,
                "counted": report.coherence.counted.rate,
                "junk": report.coherence.share_after.rate,
                "broken": report.coherence.broken,
                "aside": report.selectivity.off.rate,
            }
        return self.sets[key]


def removes(one: dict[str, Any] | None) -> bool:
    return one is not None and not one["broken"] and one["counted"] <= LEAST_LEFT


def clean(one: dict[str, Any] | None) -> bool:
    return one is not None and removes(one) and one["aside"] <= MOST_ASIDE


def tables(results: list[dict[str, Any]]) -> str:
    """Return the Markdown tables: one over all organisms, one for each base."""
    names = [name for name in ORGANISMS if any(r["organism"] == name for r in results)]
    parts = [_over_all(results)]
    for base in ("refusal", "language", "diffuse-refusal"):
        mine = [name for name in names if name == base or (name.startswith(f"{base}-") and base in RECIPES)]
        if mine:
            parts.append(_by_organism(results, mine))
    return "\n\n".join(parts)


def _methods(results: list[dict[str, Any]]) -> list[str]:
    return [*methods_of(0), *SETS]


def _over_all(results: list[dict[str, Any]]) -> str:
    planted = [r for r in results if r["planted"]]
    lines = [
        f"| {len({r['organism'] for r in planted})} organisms with planted experts, {len(planted)} runs | s | "
        "planted experts among the first | decoys among these | first 5 remove it | cleanly | first 10 | cleanly |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for method in _methods(results):
        rows = [(r, r["methods"][method]) for r in planted if method in r["methods"]]
        if not rows:
            continue
        one_set = method in SETS
        number = sum(row.get("number", len(r["planted"])) for r, row in rows)
        hits = "–" if method in (PLANTED, REROUTED) else f"{sum(row['hits'] for _, row in rows)} of {number}"
        decoys = sum(row.get("decoys", 0) for _, row in rows)
        cells = [f"{fmean(row['seconds'] for _, row in rows):.1f}", hits, "–" if method == FIND else str(decoys)]
        for key in ("set",) if one_set else tuple(f"at {size}" for size in SIZES):
            for test in (removes, clean):
                cells.append(f"{sum(test(row[key]) for _, row in rows)} of {len(rows)}")
        cells += [""] * (7 - len(cells))
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _by_organism(results: list[dict[str, Any]], names: list[str]) -> str:
    seeds = [sum(r["organism"] == name for r in results) for name in names]
    lines = [f"| | {' | '.join(f'{n} ({s})' for n, s in zip(names, seeds, strict=True))} |"]
    lines.append(f"| --- |{' --: |' * len(names)}")
    for method in _methods(results):
        cells = []
        for name in names:
            rows = [r for r in results if r["organism"] == name and method in r["methods"]]
            cells.append(_cell(method, rows) if rows else "–")
        if set(cells) == {"–"}:  # was left out by --only
            continue
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(method: str, results: list[dict[str, Any]]) -> str:
    rows = [r["methods"][method] for r in results]
    if method == FIND and not any(row["written"] for row in rows):
        return f"none in {len(rows)}"
    keys = ["set"] if method in SETS else [f"at {size}" for size in SIZES]
    parts = []
    if results[0]["planted"] and method not in (PLANTED, REROUTED):
        parts.append(_range([row["hits"] for row in rows]) + f" of {_range([_sought(r, method) for r in results])}")
    for key in keys:
        known = [row[key] for row in rows if row[key] is not None]
        if known:
            text = _range([round(100 * one["counted"]) for one in known]) + " %"
            aside = max(one["aside"] for one in known)
            parts.append(text + (f", {100 * aside:.0f} % aside" if aside > MOST_ASIDE else ""))
        else:
            parts.append("no set")
    if method == FIND:
        parts.append(f"written {sum(row['written'] for row in rows)} of {len(rows)}")
    return " · ".join(parts)


def _sought(result: dict[str, Any], method: str) -> int:
    return int(result["methods"][method].get("number", len(result["planted"])))


def _range(values: Sequence[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)}–{max(values)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the figures, a file for each organism and seed")
    parser.add_argument("--organisms", nargs="*", default=ORGANISMS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--no-find", action="store_true", help="leave `hf-mote find` out for now")
    parser.add_argument("--only", nargs="*", default=[""], help="make the rows whose name holds one of these")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options.folder.mkdir(parents=True, exist_ok=True)
    if not options.table:
        for seed in options.seeds:
            for name in options.organisms:
                Bench(name, seed, options.folder / f"{name}-{seed}.json").run(
                    find=not options.no_find, only=options.only
                )
    paths = sorted(options.folder.glob("*.json"))
    sys.stdout.write(f"{tables([json.loads(path.read_text(encoding='utf-8')) for path in paths])}\n")


if __name__ == "__main__":
    main()
