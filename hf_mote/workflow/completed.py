"""Candidates that bring another response, where the first only take away the one that is not wanted.

Without its experts a model may write junk: a suppressed expert leaves a gap, or what is left of the carriers goes on.
The same sets are tried with the next best experts in the place of those suppressed (`suppress_mode="reroute"`); then
the set that was learnt grows until another response comes.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from hf_mote.errors import HFMoTEError, ModelMismatchError, UnsupportedError
from hf_mote.mote.config import MoTEConfig
from hf_mote.ranking.causal.optimized import OptimizedRanking
from hf_mote.workflow.candidates import SPARED, Candidate, Trial, config_of, fewest

__all__ = ["completed_configs", "needs_completion", "rerouted"]

LEAST_ANSWERED = 4  # prompts with another response of the model's own, to take these alone
MOST_TOGETHER = 12


def needs_completion(candidates: Sequence[Candidate]) -> bool:
    """Return whether no candidate takes the behaviour away from all prompts and leaves what is surely text.

    Args:
        candidates (`Sequence[Candidate]`): What was tried, on prompts that all show the behaviour; one or more.
    """
    best = fewest(candidates)
    return best.doubtful or best.effect > SPARED - 1


def rerouted(trial: Trial, candidates: Sequence[Candidate], notes: list[str]) -> list[Candidate]:
    """Return what becomes of the behaviour where other experts take the place of each candidate's.

    Args:
        trial (`Trial`): What the candidates were tried with.
        candidates (`Sequence[Candidate]`): What was tried.
        notes (`list[str]`): Gets why the model does not have this mode, or too few experts for one of the sets.
    """
    found = []
    for one in candidates:
        name = f"{one.method}, in mode 'reroute'"
        provenance = {**one.config.provenance, "method": name}
        try:
            found.append(
                trial.of(name, dataclasses.replace(one.config, suppress_mode="reroute", provenance=provenance))
            )
        except (ModelMismatchError, UnsupportedError) as error:
            notes.append(f"{name}, cannot be tried: {error}")
    return found


def completed_configs(
    trial: Trial,
    candidates: Sequence[Candidate],
    ranking: OptimizedRanking,
    responses: Sequence[str],
    others: Sequence[str],
    seed: int,
    notes: list[str],
) -> tuple[OptimizedRanking, dict[str, MoTEConfig]]:
    """Return the ranking with its complete set, and a config of the set that grew in each mode of suppression.

    What the model should say instead is what it says itself without one of the candidates, if that is coherent text
    of another class: its surest such response to each prompt. Where it has fewer than 4, it is responses to prompts of
    other classes, drawn at random.

    Args:
        trial (`Trial`): What the candidates were tried with.
        candidates (`Sequence[Candidate]`): What was tried.
        ranking (`OptimizedRanking`): Whose sufficient set grows.
        responses (`Sequence[str]`): The untouched model's response to each prompt of the trial.
        others (`Sequence[str]`): Its responses to prompts of other classes.
        seed (`int`): Of the draw.
        notes (`list[str]`): Gets why there is no complete set.

    Returns:
        `tuple[OptimizedRanking, dict[str, MoTEConfig]]`: the ranking, as it was if no set could be found, and the
        configs by how their experts were found.
    """
    by_surprise = sorted(candidates, key=lambda one: one.surprise)
    known: dict[int, str] = {}
    for place in range(len(trial.prompts)):
        own = [one.responses[place] for one in by_surprise if one.others[place]]
        if own:
            known[place] = own[0]
    if len(known) < LEAST_ANSWERED:
        draw = random.Random(seed)
        known |= {place: draw.choice(others) for place in range(len(trial.prompts)) if place not in known}
    places = sorted(known)
    try:
        ranking = ranking.complete(
            trial.model,
            trial.tokenizer,
            [trial.prompts[place] for place in places],
            [responses[place] for place in places],
            [known[place] for place in places],
            batch_size=min(MOST_TOGETHER, max(1, trial.chat["batch_size"])),
            system_prompt=trial.chat["system_prompt"],
            chat_template_kwargs=trial.chat["chat_template_kwargs"],
            run_folder=trial.part_of("completion"),
            progress=False,
        )
    except HFMoTEError as error:
        notes.append(f"the complete set could not be found: {error}")
        return ranking, {}
    configs = {}
    for mode, experts in {step.suppress_mode: step.experts for step in ranking.completion}.items():
        if experts:
            name = f"gates learnt together, completed in mode {mode!r}"
            configs[name] = config_of(name, trial.target, experts, ranking.fingerprint, mode)
    return ranking, configs
