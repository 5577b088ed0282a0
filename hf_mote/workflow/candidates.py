"""Sets of experts that might carry a behaviour, each tried on the prompts that it was found with."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import DataError, HFMoTEError
from hf_mote.evaluation.coherence import LEAST_SURPRISE
from hf_mote.evaluation.evaluate import evaluate_mote
from hf_mote.evaluation.records import SideBySide
from hf_mote.generation.chat import Prompt
from hf_mote.judges.judge import Judge
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote
from hf_mote.ranking.causal.optimization import optimize_experts
from hf_mote.ranking.causal.share import routed_share
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.ranking.imaging.pipeline import ftri
from hf_mote.ranking.imaging.result import FTRIResult

__all__ = ["Candidate", "Trial", "candidate_configs", "config_of", "fewest", "pruned"]

SHARES = (0.005, 0.01, 0.02, 0.04)  # of all experts, that the first of a ranking are tried
PENALTIES = (0.1, 0.03, 0.01, 0.003, 0.001)
MOST_OPTIMIZED = 12
LEAST_SAME = 0.9  # of the responses, that stay word for word without an expert that is not needed
SPARED = 0.02  # of the rate: what the loss of an expert that is not needed may cost
STEPPING_IN = (2, 4)  # replacement experts that are tried together with the first ones
LEAST_RISE = 0.05  # of the tokens


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Experts that might carry the behaviour, and its rate without them on the prompts they were found with.

    Attributes:
        method (`str`): How they were found.
        config (`MoTEConfig`): That suppresses them.
        left (`float`): The rate of the behaviour that is left.
        broken (`float`): Share of responses that are incoherent.
        effect (`float`): Coherent change of the rate; 0 if the text breaks.
        surprise (`float`): How unsure the model is of its responses without them, in nats per token.
        answers (`SideBySide`): The prompts, with the untouched model's responses and these.
        incoherent (`list[bool]`): Which of these are incoherent.
        others (`list[bool]`): Which of these are coherent and of another class.
        doubtful (`bool`): Whether it cannot be told whether they are coherent text.
    """

    method: str
    config: MoTEConfig
    left: float
    broken: float
    effect: float
    surprise: float
    answers: SideBySide
    incoherent: list[bool]
    others: list[bool]
    doubtful: bool

    @property
    def responses(self) -> list[str]:
        """The responses without them."""
        return self.answers.after

    def __str__(self) -> str:
        experts = " ".join(f"{layer}.{expert}" for layer, expert in self.config.suppress)
        return f"{self.method}: {experts}; {self.left:.0%} left, {self.broken:.0%} incoherent"


@dataclasses.dataclass(frozen=True)
class Trial:
    """The model, prompts and judge that candidates are tried with.

    Attributes:
        model (`PreTrainedModel`): The model; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        judge (`Judge`): Labels the responses.
        prompts (`Sequence[Prompt]`): Prompts that show the class.
        unrelated (`Sequence[Prompt]`): Prompts of other classes, by which incoherent text is recognised.
        target (`str`): The class.
        chat (`dict`): How the model is asked, as arguments of [`evaluate_mote`].
        part_of (`Callable[[str], Path | None]`): The run folder of a step by its name, or `None` to keep nothing.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    judge: Judge
    prompts: Sequence[Prompt]
    unrelated: Sequence[Prompt]
    target: str
    chat: dict[str, Any]
    part_of: Callable[[str], Path | None]

    def of(self, name: str, config: MoTEConfig) -> Candidate:
        """Measure the behaviour with a config, without controls.

        Args:
            name (`str`): How its experts were found.
            config (`MoTEConfig`): The config.

        Raises:
            [`DataError`]: if it is unknown how sure the model is of its responses.
        """
        experts = "-".join([config.suppress_mode, *(f"{layer}.{expert}" for layer, expert in config.suppress)])
        # Named by the experts, as a set that was pruned comes by another name; shortened, as there may be many.
        folder = self.part_of(f"tried-{hashlib.sha256(experts.encode()).hexdigest()[:16]}")
        report = evaluate_mote(
            self.model,
            self.tokenizer,
            config,
            self.prompts,
            self.judge,
            target=self.target,
            unrelated=self.unrelated,
            num_controls=0,
            run_folder=folder,
            progress=False,
            **self.chat,
        )
        seen = report.coherence
        if seen is None or seen.surprise is None:
            raise DataError("find_experts", "it is unknown how sure the model is of its responses")
        effect = 0.0 if seen.broken else report.coherent_effect
        return Candidate(
            name,
            config,
            left=report.after.rate,
            broken=seen.share_after.rate,
            effect=effect,
            surprise=seen.surprise,
            answers=report.behaviour.answers,
            incoherent=seen.after,
            others=[
                label != self.target and not broken
                for label, broken in zip(report.labels_after, seen.after, strict=True)
            ],
            doubtful=seen.doubtful,
        )


def fewest(candidates: Sequence[Candidate]) -> Candidate:
    """Return the smallest set of experts without which the behaviour is gone and the model is as sure as possible.

    Where the untouched model is unsure of its answers to other prompts, no response alone can be called incoherent. Of
    two sets on the same prompts the one that leaves the model less sure is the one that leaves a part of a carrier.

    Args:
        candidates (`Sequence[Candidate]`): What was tried; one or more.
    """
    most = min(one.effect for one in candidates)
    able = [one for one in candidates if one.effect <= most + SPARED]
    surest = min(one.surprise for one in able)
    sure = [one for one in able if one.surprise <= surest + LEAST_SURPRISE]
    return min(sure, key=lambda one: len(one.config.suppress))


def pruned(best: Candidate, trial: Trial) -> Candidate:
    """Return a candidate without unnecessary experts, which are removed one after another.

    An expert is unnecessary if the behaviour stays away and nearly all answers stay the same, word for word: the rest
    of a carrier may break answers without restoring the behaviour.

    Args:
        best (`Candidate`): The candidate.
        trial (`Trial`): What it was tried with.
    """
    kept = best
    for pair in best.config.suppress:
        fewer = [other for other in kept.config.suppress if other != pair]
        if not fewer:
            break
        smaller = trial.of(f"{best.method}, pruned", dataclasses.replace(kept.config, suppress=fewer))
        same = fmean(now == before for now, before in zip(smaller.responses, best.responses, strict=True))
        if smaller.effect <= best.effect + SPARED and same >= LEAST_SAME:
            kept = smaller
    return kept


def candidate_configs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    part: FTRIResult,
    label: str,
    chat: dict[str, Any],
    seed: int,
    notes: list[str],
    part_of: Callable[[str], Path | None],
    announce: Callable[[str], None],
) -> tuple[dict[str, ExpertRanking], dict[str, MoTEConfig]]:
    """Return rankings, and configs that suppress their first experts, each set once.

    Args:
        model (`PreTrainedModel`): The model; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        part (`FTRIResult`): The imaging of the prompts to look at.
        label (`str`): The class.
        chat (`dict`): How the model is asked, as arguments of [`ftri`].
        seed (`int`): Of the prompts that gates are learnt on, and of the gates.
        notes (`list[str]`): Further measurements, or why they failed, are appended.
        part_of (`Callable[[str], Path | None]`): The run folder of a step by its name, or `None` to keep nothing.
        announce (`Callable[[str], None]`): Called with a description of each step.

    Returns:
        `tuple[dict[str, ExpertRanking], dict[str, MoTEConfig]]`: the rankings by method, and the configs by how their
        experts were found.
    """
    sets: dict[tuple[tuple[int, int], ...], str] = {}
    rankings: dict[str, ExpertRanking] = {}

    def add(name: str, pairs: Sequence[tuple[int, int]]) -> None:
        if pairs:
            sets.setdefault(tuple(sorted(pairs)), name)

    contrast = part.rank(label, resamples=0)
    rankings["contrast"] = contrast
    positive = int((contrast.score > 0).sum())
    for share in SHARES:
        number = min(max(1, round(share * len(contrast))), positive)
        if number:
            add(f"the contrast's first {number}", contrast.top(number))
    shown = [place for place, name in enumerate(part.classes) if name == label]
    others = [place for place, name in enumerate(part.classes) if name != label]
    draw = random.Random(seed)
    asked = draw.sample(shown, min(MOST_OPTIMIZED, len(shown)))
    # The model's own responses with the behaviour and without it.
    responses = [part.responses[place] for place in asked]
    baselines = [part.responses[draw.choice(others)] for _ in asked]
    try:
        routed = routed_share(
            model,
            tokenizer,
            [part.prompts[place] for place in asked],
            responses,
            baselines,
            batch_size=chat["batch_size"],
            gains=[0.0, 1.0],
            system_prompt=chat["system_prompt"],
            chat_template_kwargs=chat["chat_template_kwargs"],
        )
        notes.append(str(routed))
    except HFMoTEError as error:
        notes.append(f"how much is in routed experts cannot be measured: {error}")
    announce(f"learning gates on all experts together, on {len(asked)} prompts")
    try:
        optimized = optimize_experts(
            model,
            tokenizer,
            [part.prompts[place] for place in asked],
            responses,
            baselines,
            batch_size=min(MOST_OPTIMIZED, max(1, chat["batch_size"])),
            penalties=PENALTIES,
            num_seeds=1,
            seed=seed,
            system_prompt=chat["system_prompt"],
            chat_template_kwargs=chat["chat_template_kwargs"],
            run_folder=part_of("gates"),
            progress=False,
        )
    except HFMoTEError as error:
        notes.append(f"gates could not be learnt: {error}")
    else:
        rankings["optimization"] = optimized
        add("gates learnt together, a sufficient set", optimized.sufficient)
        add("gates learnt together, all carriers", optimized.carriers)
        for point in optimized.path:
            add(f"gates learnt together, at a price of {point.penalty:g}", point.experts)
    fingerprint = contrast.fingerprint
    announce("looking for experts that step in when the first are suppressed")
    prompts = [part.prompts[place] for place in asked]
    number = min(max(1, round(SHARES[-1] * len(contrast))), positive)
    if number:
        first = contrast.top(number)
        config = MoTEConfig(suppress=sorted(list(pair) for pair in first), fingerprint=fingerprint)
        stepping = _stepping_in(model, tokenizer, prompts, config, chat, part_of)
        for more in STEPPING_IN:
            name = f"the contrast's first {number} and the first {more} that step in for them"
            add(name, [*first, *[pair for pair in stepping if pair not in first][:more]])
    return rankings, {name: config_of(name, label, pairs, fingerprint) for pairs, name in sets.items()}


def config_of(
    name: str, label: str, pairs: Sequence[tuple[int, int]], fingerprint: dict[str, Any] | None, mode: str = "drop"
) -> MoTEConfig:
    """Return the config that suppresses a set of experts.

    Args:
        name (`str`): How they were found.
        label (`str`): The class whose experts they are.
        pairs (`Sequence[tuple[int, int]]`): (layer, expert).
        fingerprint (`dict`, *optional*): Of the model.
        mode (`str`, *optional*, defaults to `"drop"`): How they are suppressed; see [`MoTEConfig`].
    """
    fields: dict[str, Any] = {"suppress": [list(pair) for pair in sorted(pairs)], "suppress_mode": mode}
    return MoTEConfig(**fields, fingerprint=fingerprint, provenance={"method": name, "target": label})


def _stepping_in(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: MoTEConfig,
    chat: dict[str, Any],
    part_of: Callable[[str], Path | None],
) -> list[tuple[int, int]]:
    """Return the experts that take more of the tokens under a config, with the difference."""
    shares = []
    for name, one in (("untouched", MoTEConfig()), ("suppressed", config)):
        kept: dict[str, Any] = {"run_folder": part_of(f"stepping-in-{name}"), **chat}
        with apply_mote(model, one):
            seen = ftri(model, tokenizer, prompts, lambda _: "any", scope="all", progress=False, **kept)
        shares.append((seen.counts.double() / seen.num_tokens.double()[:, None, None]).mean(dim=0))
    rise = shares[1] - shares[0]
    order = rise.flatten().argsort(descending=True).tolist()
    width = rise.shape[1]
    return [(seen.layers[at // width], at % width) for at in order if float(rise.flatten()[at]) > LEAST_RISE]
