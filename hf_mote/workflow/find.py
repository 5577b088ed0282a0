"""`find_experts`: from prompts to a proven config, or to the reason why there is none.

This is the default workflow. First it tests whether routing separates the classes. Half of the prompts then give
candidates: the first experts of the contrast of the classes, and those that the model needs when gates on all experts
are learnt together. Every candidate is tried on that half. Where none brings coherent responses of another class, they
are tried in another mode of suppression, and the set that was learnt grows until such responses come. The one that
changes most and leaves the text whole is measured on the other half, against random experts and on prompts of other
classes. Only a config that beats its controls, coherently and selectively, is proven.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import DataError
from hf_mote.evaluation.coherence import NEITHER
from hf_mote.evaluation.evaluate import evaluate_mote
from hf_mote.evaluation.report import EvaluationReport
from hf_mote.generation.chat import Prompt
from hf_mote.judges.judge import Judge
from hf_mote.mote.config import MoTEConfig
from hf_mote.ranking.causal.optimized import OptimizedRanking
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.ranking.imaging.pipeline import ftri
from hf_mote.ranking.imaging.result import FTRIResult
from hf_mote.statistics.predictability import Predictability, predictability
from hf_mote.workflow.candidates import Candidate, Trial, candidate_configs, fewest, pruned
from hf_mote.workflow.completed import completed_configs, needs_completion, rerouted
from hf_mote.workflow.halves import halves, numbered

__all__ = ["Found", "find_experts"]

LEAST_PROMPTS = 8  # of the class, in each half
_SHOWN = 100  # characters of the response that an error quotes
MOST_TRIED = 16  # prompts that a candidate is tried on
MOST_UNRELATED = 40  # other prompts that it is tried on
MORE_CONTROLS = (3, 6)  # times as many, one after the other while they do not decide
LEAST_EFFECT = 0.5  # of the rate, that a candidate must take away to be worth measuring


@dataclasses.dataclass(frozen=True)
class Found:
    """The result, or the reason why there is none.

    Attributes:
        target (`str`): The class.
        predicted (`Predictability`, *optional*): Whether routing separates the classes.
        candidates (`list[Candidate]`): What was tried.
        best (`Candidate`, *optional*): The one that was measured, or would have been: the largest coherent effect, by
            the fewest experts, without unnecessary ones.
        report (`EvaluationReport`, *optional*): It, measured on the other half of the prompts.
        reason (`str`): Why no config may be written; empty if one may.
        notes (`list[str]`): What went wrong on the way.
        rankings (`dict[str, ExpertRanking]`): By method.
        imaged (`FTRIResult`, *optional*): The prompts with the untouched model's responses and their classes.
    """

    target: str
    predicted: Predictability | None
    candidates: list[Candidate]
    best: Candidate | None
    report: EvaluationReport | None
    reason: str
    notes: list[str]
    rankings: dict[str, ExpertRanking]
    imaged: FTRIResult | None = None

    @property
    def config(self) -> MoTEConfig | None:
        """The proven config."""
        return None if self.reason or self.best is None else self.best.config

    @property
    def verdict(self) -> str:
        """The result in one or two sentences."""
        if self.config is not None and self.report is not None and self.best is not None:
            number = len(self.config.suppress)
            return f"{number} experts carry {self.target!r} (found by {self.best.method}). {self.report.verdict}"
        return f"No config is written: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, and all responses that are not in the report, JSON-native."""
        imaged = self.imaged
        tried = self.candidates[0].answers if self.candidates else None
        return {
            "kind": "find",
            "target": self.target,
            "found": self.config is not None,
            "verdict": self.verdict,
            "reason": self.reason,
            "notes": self.notes,
            "predictability": None if self.predicted is None else self.predicted._asdict(),
            "candidates": [
                {
                    "method": one.method,
                    "experts": one.config.suppress,
                    "mode": one.config.suppress_mode,
                    "left": one.left,
                    "no_coherent_text": one.broken,
                    "coherent_effect": one.effect,
                    "responses": one.responses,
                    "classes": one.answers.labels_after,
                    "incoherent": one.incoherent,
                }
                for one in self.candidates
            ],
            "tried_on": None
            if tried is None
            else {"prompts": tried.prompts, "responses": tried.before, "classes": tried.labels_before},
            "imaged": None
            if imaged is None
            else {"prompts": imaged.prompts, "responses": imaged.responses, "classes": imaged.classes},
        }


def find_experts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    target: object,
    groups: Sequence[Hashable] | None = None,
    unrelated: Sequence[Prompt] = (),
    num_controls: int = 40,
    seed: int = 0,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    system_prompt: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
    run_folder: str | os.PathLike[str] | None = None,
    announce: Callable[[str], None] | None = None,
) -> Found:
    """Find the experts behind a class of responses and prove it, or return the reason why this failed.

    Args:
        model (`PreTrainedModel`): A mixture-of-experts language model; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`Sequence[str]` or chats): Prompts of which some show the behaviour and others do not.
        judge (`Callable`): As in [`ftri`]; of responses.
        target (`str`): The class whose experts are sought.
        groups (`Sequence`, *optional*): One key for each prompt, such as its topic; whole groups are held out.
        unrelated (`Sequence[str]` or chats, *optional*): Further prompts whose answers should stay.
        num_controls (`int`, *optional*, defaults to 40): Random configs to measure against.
        seed (`int`, *optional*, defaults to 0): Of the halves, controls and gates.
        batch_size (`int`, *optional*, defaults to 16): Prompts that run together.
        max_new_tokens (`int`, *optional*, defaults to 64): Longest response, in tokens.
        system_prompt (`str`, *optional*): First message of every prompt that is a text.
        chat_template_kwargs (`dict`, *optional*): Further arguments of the chat template.
        run_folder (`str` or `os.PathLike`, *optional*):
            Where the work of each step is kept as it comes, in a run folder of its own; see [`ftri`].
        announce (`Callable[[str], None]`, *optional*): Called with a description of each step.

    Returns:
        [`Found`]: the proven config, or the reason why there is none, with all that was measured.

    Raises:
        [`DataError`]: if a prompt cannot be asked, or the judge fails.
        [`UnsupportedError`]: if the model has no routed experts in the table.

    Example:

    ```python
    from hf_mote import load_organism
    from hf_mote.workflow.find import find_experts

    organism = load_organism("refusal")
    prompts = [*organism.prompts["train"]["sensitive"][:4], *organism.prompts["train"]["neutral"][:4]]
    found = find_experts(
        organism.model, organism.tokenizer, prompts, organism.judge, target="refusal", max_new_tokens=12
    )
    assert found.config is None and "16 of each are needed" in found.reason
    ```
    """
    say = announce or (lambda text: None)
    chat: dict[str, Any] = {
        "system_prompt": system_prompt,
        "chat_template_kwargs": chat_template_kwargs,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
    }

    def part_of(name: str) -> Path | None:
        return None if run_folder is None else Path(run_folder) / name

    say(f"imaging {len(prompts)} prompts")
    imaged = ftri(model, tokenizer, prompts, judge, run_folder=part_of("imaging"), progress=False, **chat)
    label = str(target)
    shown = [place for place, name in enumerate(imaged.classes) if name == label]
    # A response that is not an answer at all is not an example of another class.
    neither = str(getattr(judge, "neither", NEITHER))
    others = [place for place, name in enumerate(imaged.classes) if name not in (label, neither)]
    nothing = partial(Found, label, None, [], None, None, imaged=imaged)
    if min(len(shown), len(others)) < 2 * LEAST_PROMPTS:
        sizes = f"of {len(prompts)} responses {len(shown)} are of class {label!r} and {len(others)} of another"
        # With only one class, the judge may misread the responses.
        first = "" if shown and others else f" The first response is {imaged.responses[0][:_SHOWN]!r}."
        return nothing(f"{sizes}; {2 * LEAST_PROMPTS} of each are needed.{first}", [], {})
    keys = list(range(len(prompts))) if groups is None else numbered(groups)
    look, prove, look_others, prove_others = halves(shown, others, keys, seed)
    if min(len(look), len(prove)) < LEAST_PROMPTS:
        return nothing("the groups cannot be split into halves with 8 prompts of the class each.", [], {})
    if min(len(look_others), len(prove_others)) < 4:
        return nothing("the groups cannot be split into halves with 4 prompts of the other classes each.", [], {})
    say("testing whether routing separates the classes")
    notes: list[str] = []
    known = sorted([*shown, *others])
    numbers = None if groups is None else [keys[place] for place in known]
    predicted = _predicted(_rows_of(imaged, known), label, numbers, seed, notes)
    part = _rows_of(imaged, sorted([*look, *look_others]))
    rankings, configs = candidate_configs(model, tokenizer, part, label, chat, seed, notes, part_of, say)
    say(f"trying {len(configs)} sets of experts")
    asked = random.Random(seed).sample(look, min(MOST_TRIED, len(look)))
    tried = [prompts[place] for place in asked]
    unrelated_tried = [prompts[place] for place in look_others[:MOST_UNRELATED]]
    trial = Trial(model, tokenizer, judge, tried, unrelated_tried, label, chat, part_of)
    candidates = [trial.of(name, config) for name, config in configs.items()]
    if not candidates:
        return Found(label, predicted, [], None, None, "no ranking could be made.", notes, rankings, imaged)
    if needs_completion(candidates):
        say(f"trying them with other experts in their place, as none of the {len(candidates)} is enough")
        candidates += rerouted(trial, candidates, notes)
    optimized = rankings.get("optimization")
    if isinstance(optimized, OptimizedRanking) and needs_completion(candidates):
        say("adding experts until another response comes")
        said, others_said = [imaged.responses[place] for place in asked], [imaged.responses[at] for at in look_others]
        completed = completed_configs(trial, candidates, optimized, said, others_said, seed, notes)
        rankings["optimization"] = completed[0]
        candidates += [trial.of(name, config) for name, config in completed[1].items()]
    most = fewest(candidates)
    best = pruned(most, trial)
    if best is not most:
        candidates.append(best)
    found = Found(label, predicted, candidates, best, None, "", notes, rankings, imaged)
    if best.effect > -LEAST_EFFECT:
        worst = f"the best candidate, by {best.method}, leaves {best.left:.0%} of it"
        broken = f" and breaks {best.broken:.0%} of the responses" if best.broken > 0.1 else ""
        why = "It may not be in few experts: in attention, in all of them, or in some that stand in for others."
        reason = f"no set of experts that was tried removes {label!r}: {worst}{broken}. {why}"
        return dataclasses.replace(found, reason=reason)
    say(f"measuring {best.method} on {len(prove)} other prompts, against {num_controls} random controls")
    measured = partial(
        evaluate_mote,
        model,
        tokenizer,
        best.config,
        [prompts[place] for place in prove],
        judge,
        target=label,
        unrelated=[*(prompts[place] for place in prove_others), *unrelated],
        groups=None if groups is None else [keys[place] for place in prove],
        seed=seed,
        progress=False,
        **chat,
    )
    report = measured(num_controls=num_controls, run_folder=part_of("proof"))
    for factor in MORE_CONTROLS:
        if report.outcome() != "undecided" or report.doubt or report.controls_exhausted:
            break
        say(f"measuring it against {factor * num_controls} controls, as {len(report.controls)} do not decide")
        report = measured(num_controls=factor * num_controls, run_folder=part_of(f"proof-{factor}-times"))
    reason = ""
    if report.coherent_effect > -LEAST_EFFECT:
        reason = f"on prompts that it was not found with, the best candidate does too little. {report.verdict}"
    elif not report.beats_controls():
        reason = f"on prompts that it was not found with, the best candidate does not hold. {report.verdict}"
    elif report.selectivity is not None and report.selectivity.outcome != "beats":
        reason = f"the best candidate is {report.selectivity}. {report.verdict}"
    return dataclasses.replace(found, report=report, reason=reason)


def _rows_of(imaged: FTRIResult, places: list[int]) -> FTRIResult:
    """Return the part of an imaging for some prompts."""
    rows: dict[str, Any] = {
        name: [getattr(imaged, name)[place] for place in places] for name in ("prompts", "responses", "classes")
    }
    rows |= {name: getattr(imaged, name)[places] for name in ("counts", "weights", "num_tokens")}
    return dataclasses.replace(imaged, **rows, prompt_index=None, response_tokens=None)


def _predicted(
    imaged: FTRIResult, label: str, groups: Sequence[int] | None, seed: int, notes: list[str]
) -> Predictability | None:
    try:
        found = predictability(
            imaged.counts.numpy(), [name == label for name in imaged.classes], groups=groups, seed=seed
        )
    except DataError as error:
        notes.append(f"whether routing separates the classes cannot be tested: {error}")
        return None
    if groups is not None and found.within is None:
        notes.append("no topic has prompts of both classes: what the contrast finds may be the topic alone")
    return found
