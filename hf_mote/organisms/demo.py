"""The whole path on a trained model: image, rank by two methods, suppress, stimulate, control, report.

Everything printed and written is measured in the run. The experts come from the rankings alone; the organism's ground
truth only marks which of them are the planted ones. Attribution holds the model's own refusal against the true answer,
which the organism knows and a user would have to write.
"""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_mote.errors import DataError
from hf_mote.ftri.attribution import attribute_experts
from hf_mote.ftri.evaluate import evaluate_mote
from hf_mote.ftri.imaging import ftri
from hf_mote.ftri.ranking import ExpertRanking
from hf_mote.ftri.report import EvaluationReport, Rate
from hf_mote.ftri.result import FTRIResult
from hf_mote.hub import write_json
from hf_mote.organisms.organism import Organism, load_organism
from hf_mote.plots import EffectRow, plot_effect, plot_expert_map

__all__ = ["DemoResult", "MethodResult", "run_demo"]

SHARE_SUPPRESSED = 0.02  # most experts to suppress, as a share of all
NUM_IMAGED = 48  # prompts of each kind that the experts are found with
NUM_TESTED = 60  # held-out prompts of each kind that the effect is measured on
NUM_CONTROLS = 20
ATTRIBUTION_GAIN = 0.5  # below 1, as the refusal is all but certain there; see `attribute_experts`
STIMULATION = 1.5  # times the stimulated experts' own weight
MAX_NEW_TOKENS = 24


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """What the experts of one ranking do.

    Attributes:
        ranking (`ExpertRanking`): The ranking.
        report (`EvaluationReport`): The effect of suppressing its best experts on held-out sensitive prompts.
        stimulated (`Rate`): Refusals on held-out neutral prompts with the same experts stimulated, at `STIMULATION`
            times their own weight.
        planted_found (`int`): How many of the suppressed experts are planted ones.
    """

    ranking: ExpertRanking
    report: EvaluationReport
    stimulated: Rate
    planted_found: int

    @property
    def experts(self) -> list[list[int]]:
        """The suppressed experts, `[layer, expert]`, best first."""
        return [list(pair) for pair in self.ranking.top(len(self.report.config["suppress"]))]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of the report file."""
        unchanged = self.report.unrelated_unchanged
        return {
            "experts": self.experts,
            "planted_found": self.planted_found,
            "refusal_after": self.report.after.rate,
            "random_mean": fmean(self.report.controls),
            "random_min": min(self.report.controls),
            "unrelated_unchanged": unchanged.rate if unchanged is not None else None,
            "stimulated_refusal": self.stimulated.rate,
            "verdict": self.report.verdict,
        }


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """All that the demo measured."""

    organism: Organism
    imaged: FTRIResult
    methods: dict[str, MethodResult]
    neutral_before: Rate
    seed: int
    seconds: float

    @property
    def refusal_before(self) -> Rate:
        """Refusals on held-out sensitive prompts in the untouched model."""
        return next(iter(self.methods.values())).report.before

    @property
    def best(self) -> str:
        """The method whose experts lower the refusals most."""
        return min(self.methods, key=lambda name: self.methods[name].report.after.rate)

    @property
    def num_experts(self) -> int:
        """Routed experts of the model."""
        return len(next(iter(self.methods.values())).ranking)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of the report file."""
        return {
            "organism": self.organism.name,
            "seed": self.seed,
            "experts_total": self.num_experts,
            "planted": [list(pair) for pair in self.organism.planted],
            "refusal_before": self.refusal_before.rate,
            "refusal_neutral": self.neutral_before.rate,
            "seconds": self.seconds,
            "methods": {name: method.to_dict() for name, method in self.methods.items()},
        }


def run_demo(
    output: Path, *, seed: int = 0, organism: str = "refusal", announce: Callable[[str], None] | None = None
) -> DemoResult:
    """Run the demo and write its folder.

    Args:
        output (`Path`): The folder; made if it does not exist.
        seed (`int`, *optional*, defaults to 0): Seed of the prompts drawn and of the random controls.
        organism (`str`, *optional*, defaults to `"refusal"`): Which organism.
        announce (`Callable[[str], None]`, *optional*): Called with what begins.

    Returns:
        [`DemoResult`].
    """
    say = announce if announce is not None else _silent
    began = time.perf_counter()
    say("loading the organism")
    subject = load_organism(organism)
    model, tokenizer, judge = subject.model, subject.tokenizer, subject.judge
    draw = random.Random(seed)
    train = {kind: _sample(draw, prompts, NUM_IMAGED) for kind, prompts in subject.prompts["train"].items()}
    test = {kind: _sample(draw, prompts, NUM_TESTED) for kind, prompts in subject.prompts["heldout"].items()}
    options: dict[str, Any] = {"batch_size": NUM_TESTED, "max_new_tokens": MAX_NEW_TOKENS}

    say(f"imaging {2 * NUM_IMAGED} prompts (fTRI)")
    imaged = ftri(model, tokenizer, [*train["sensitive"], *train["neutral"]], judge, **options)
    refused = [i for i, label in enumerate(imaged.classes) if label == judge.target]
    if not refused:
        raise DataError("demo", "the organism refused nothing", got=imaged.class_sizes)
    say(f"attributing {len(refused)} refusals (gradient x routing weight)")
    rankings = {
        "ftri": imaged.rank(judge.target),
        "attribution": attribute_experts(
            model,
            tokenizer,
            [imaged.prompts[i] for i in refused],
            target=Counter(imaged.responses[i] for i in refused).most_common(1)[0][0],
            baseline=[subject.answers[imaged.prompts[i]] for i in refused],
            gain=ATTRIBUTION_GAIN,
            batch_size=24,
            seed=seed,
        ),
    }
    num = max(1, int(SHARE_SUPPRESSED * len(rankings["ftri"])))
    methods = {}
    neutral_before = None
    for name, ranking in rankings.items():
        say(f"suppressing and stimulating the top {num} of {len(ranking)} by {name}, with {NUM_CONTROLS} controls")
        shared = {"seed": seed, **options}
        stimulated = evaluate_mote(
            model,
            tokenizer,
            ranking.to_config(stimulate=num, strength=STIMULATION),
            test["neutral"],
            judge,
            num_controls=0,
            **shared,
        )
        neutral_before = stimulated.before
        methods[name] = MethodResult(
            ranking=ranking,
            report=evaluate_mote(
                model,
                tokenizer,
                ranking.to_config(suppress=num),
                test["sensitive"],
                judge,
                unrelated=[*test["neutral"], *test["unrelated"]],
                num_controls=NUM_CONTROLS,
                **shared,
            ),
            stimulated=stimulated.after,
            planted_found=len(set(ranking.top(num)) & set(subject.planted)),
        )
    if neutral_before is None:
        raise DataError("demo", "no ranking method ran")
    result = DemoResult(subject, imaged, methods, neutral_before, seed, time.perf_counter() - began)
    say(f"writing {output}")
    _write(result, output, num)
    result = dataclasses.replace(result, seconds=time.perf_counter() - began)
    write_json(output / "report.json", result.to_dict())
    return result


def _write(result: DemoResult, output: Path, num: int) -> None:
    best = result.methods[result.best]
    measured = {
        "refusal_before": result.refusal_before.rate,
        "refusal_after": best.report.after.rate,
        "random_controls_mean": fmean(best.report.controls),
        "organism": result.organism.name,
        "seed": result.seed,
    }
    config = best.ranking.to_config(suppress=num)
    dataclasses.replace(config, provenance={**config.provenance, **measured}).save_pretrained(output)
    result.imaged.save_pretrained(output / "imaging")
    for name, activation_map in result.imaged.maps.items():
        activation_map.save_pretrained(output / "maps" / name)
    titles = {
        "ftri": ("fTRI: refusals minus answers, mean over prompts", "tokens per prompt"),
        "attribution": ("gradient x routing weight: what speaks for the refusal", "nats"),
    }
    for name, method in result.methods.items():
        method.ranking.save_pretrained(output / name)
        method.report.save_pretrained(output / name / "evaluation")
        title, unit = titles[name]
        plot_expert_map(
            method.ranking.matrix(),
            method.ranking.layers,
            title=title,
            label=unit,
            marked={"planted": result.organism.planted, f"top {num}, suppressed": method.ranking.top(num)},
            path=output / f"expert_map_{name}.png",
        )
    before = result.refusal_before
    rows = [EffectRow("untouched", before.rate, before.low, before.high)]
    for name, method in result.methods.items():
        after = method.report.after
        rows.append(EffectRow(f"top {num} by {name}", after.rate, after.low, after.high, method.report.controls))
    plot_effect(
        rows,
        rate_name="refusals on held-out sensitive prompts",
        title=f"{num} of {result.num_experts} experts suppressed",
        path=output / "effect.png",
    )


def _sample(draw: random.Random, prompts: list[str], number: int) -> list[str]:
    return draw.sample(prompts, min(number, len(prompts)))


def _silent(_: str) -> None:
    pass
