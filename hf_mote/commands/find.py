"""`hf-mote find`: from prompts to a config that is proven, or to the reason why there is none.

The default workflow. Can routing tell the classes apart at all? Half of the prompts then show where to look: which
experts does the contrast of the classes put first; which does the model need when gates on all of them are learnt
together.
Every candidate is then tried on the same half, and the one that changes most and leaves the text whole is measured on
the other half, against random experts and on prompts of the other class. Only what beats its controls, coherently and
selectively, is written as a config.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.judge_specs import make_judge, response_judge, target_of
from hf_mote.commands.model import Organisms, load_subject
from hf_mote.commands.prompts import read_prompts
from hf_mote.commands.run_files import Work, check_output, finish, writing_to
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import DataError, HFMoTEError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_mote.evaluation.report import EvaluationReport
    from hf_mote.generation.chat import Prompt
    from hf_mote.judges.judge import Judge
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.ranking.expert_ranking import ExpertRanking
    from hf_mote.ranking.imaging.result import FTRIResult
    from hf_mote.statistics.predictability import Predictability

__all__ = ["Candidate", "Found", "find_command", "find_experts"]

SHARES = (0.005, 0.01, 0.02, 0.04)  # of all experts, that the first of a ranking are tried
PENALTIES = (0.1, 0.03, 0.01, 0.003, 0.001)
LEAST_PROMPTS = 8  # of the class, in each half
MOST_OPTIMIZED = 12
MOST_TRIED = 16  # prompts that a candidate is tried on
LEAST_SAME = 0.9  # of the responses, that stay word for word without an expert that is not needed
SPARED = 0.02  # of the rate: what the loss of an expert that is not needed may cost
MORE_CONTROLS = 3
STEPPING_IN = (2, 4)  # experts that are tried beside those that they step in for
LEAST_RISE = 0.05  # of the tokens
LEAST_EFFECT = 0.5  # of the rate, that a candidate must take away to be worth measuring


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Experts that might carry the behaviour, and what became of it without them on the prompts they were found with.

    Attributes:
        method (`str`): How they were found.
        config (`MoTEConfig`): That suppresses them.
        left (`float`): The rate of the behaviour that is left.
        broken (`float`): Share of responses that are no coherent text.
        effect (`float`): Coherent change of the rate; 0 if the text breaks.
        surprise (`float`): How little sure the model is of its responses without them, in nats per token.
        responses (`list[str]`): These responses.
    """

    method: str
    config: MoTEConfig
    left: float
    broken: float
    effect: float
    surprise: float
    responses: list[str]

    def __str__(self) -> str:
        experts = " ".join(f"{layer}.{expert}" for layer, expert in self.config.suppress)
        return f"{self.method}: {experts}; {self.left:.0%} left, {self.broken:.0%} no coherent text"


@dataclasses.dataclass(frozen=True)
class Found:
    """What was found, or why nothing was.

    Attributes:
        target (`str`): The class.
        predicted (`Predictability`, *optional*): Whether routing tells the classes apart.
        candidates (`list[Candidate]`): What was tried.
        best (`Candidate`, *optional*): The one that was measured, or would have been: the largest coherent effect, by
            the fewest experts, without those that it can do without.
        report (`EvaluationReport`, *optional*): It, measured on the other half of the prompts.
        reason (`str`): Why no config may be written; empty if one may.
        notes (`list[str]`): What went wrong on the way.
        rankings (`dict[str, ExpertRanking]`): By method.
    """

    target: str
    predicted: Predictability | None
    candidates: list[Candidate]
    best: Candidate | None
    report: EvaluationReport | None
    reason: str
    notes: list[str]
    rankings: dict[str, ExpertRanking]

    @property
    def config(self) -> MoTEConfig | None:
        """The proven config."""
        return None if self.reason or self.best is None else self.best.config

    @property
    def verdict(self) -> str:
        """What may be said, in a sentence or two."""
        if self.config is not None and self.report is not None and self.best is not None:
            number = len(self.config.suppress)
            return f"{number} experts carry {self.target!r} (found by {self.best.method}). {self.report.verdict}"
        return f"No config is written: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, JSON-native."""
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
                    "left": one.left,
                    "no_coherent_text": one.broken,
                    "coherent_effect": one.effect,
                }
                for one in self.candidates
            ],
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
    announce: Callable[[str], None] = say,
) -> Found:
    """Find the experts behind a class of responses and prove it, or say why that cannot be done.

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
        chat_template_kwargs (`dict`, *optional*): What the chat template is told besides.
        run_folder (`str` or `os.PathLike`, *optional*):
            Where the work of each step is kept as it comes, in a run folder of its own; see [`ftri`].
        announce (`Callable[[str], None]`, *optional*): Called with what begins.
    """
    from hf_mote.evaluation.coherence import NEITHER
    from hf_mote.evaluation.evaluate import evaluate_mote
    from hf_mote.ranking.imaging.pipeline import ftri

    chat: dict[str, Any] = {
        "system_prompt": system_prompt,
        "chat_template_kwargs": chat_template_kwargs,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
    }

    def part_of(name: str) -> Path | None:
        return None if run_folder is None else Path(run_folder) / name

    announce(f"imaging {len(prompts)} prompts")
    imaged = ftri(model, tokenizer, prompts, judge, run_folder=part_of("imaging"), progress=False, **chat)
    label = str(target)
    shown = [place for place, name in enumerate(imaged.classes) if name == label]
    # What is no answer at all is no example of another class.
    neither = str(getattr(judge, "neither", NEITHER))
    others = [place for place, name in enumerate(imaged.classes) if name not in (label, neither)]
    nothing = partial(Found, label, None, [], None, None)
    if min(len(shown), len(others)) < 2 * LEAST_PROMPTS:
        sizes = f"of {len(prompts)} responses {len(shown)} are of class {label!r} and {len(others)} of another"
        return nothing(f"{sizes}; {2 * LEAST_PROMPTS} of each are needed.", [], {})
    keys = list(range(len(prompts))) if groups is None else _numbers(groups)
    look, prove, look_others, prove_others = _halves(shown, others, keys, seed)
    if min(len(look), len(prove)) < LEAST_PROMPTS:
        return nothing("the groups cannot be split into halves with 8 prompts of the class each.", [], {})
    if min(len(look_others), len(prove_others)) < 4:
        return nothing("the groups cannot be split into halves with 4 prompts of the other classes each.", [], {})
    announce("asking whether routing tells the classes apart")
    notes: list[str] = []
    known = sorted([*shown, *others])
    numbers = None if groups is None else [keys[place] for place in known]
    predicted = _predicted(_rows_of(imaged, known), label, numbers, seed, notes)
    part = _rows_of(imaged, sorted([*look, *look_others]))
    rankings, ways = _candidates(model, tokenizer, part, label, chat, seed, notes, part_of, announce)
    announce(f"trying {len(ways)} sets of experts")
    tried = [prompts[place] for place in random.Random(seed).sample(look, min(MOST_TRIED, len(look)))]
    aside = [prompts[place] for place in look_others[:40]]
    trial = partial(_tried, model, tokenizer, judge, tried, aside, label, chat, part_of)
    candidates = [trial(name, config) for name, config in ways.items()]
    if not candidates:
        return Found(label, predicted, [], None, None, "no ranking could be made.", notes, rankings)
    most = _best(candidates)
    best = _pruned(most, trial)
    if best is not most:
        candidates.append(best)
    found = Found(label, predicted, candidates, best, None, "", notes, rankings)
    if best.effect > -LEAST_EFFECT:
        worst = f"the best candidate, by {best.method}, leaves {best.left:.0%} of it"
        junk = f" and breaks {best.broken:.0%} of the responses" if best.broken > 0.1 else ""
        why = "It may not be in few experts: in attention, in all of them, or in some that stand in for others."
        reason = f"no set of experts that was tried removes {label!r}: {worst}{junk}. {why}"
        return dataclasses.replace(found, reason=reason)
    announce(f"measuring {best.method} on {len(prove)} other prompts, against {num_controls} random controls")
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
    if report.outcome() == "undecided" and not report.doubt:
        announce(f"measuring it against {MORE_CONTROLS * num_controls} controls, as {num_controls} do not decide")
        report = measured(num_controls=MORE_CONTROLS * num_controls, run_folder=part_of("proof-with-more"))
    reason = ""
    if report.coherent_effect > -LEAST_EFFECT:
        reason = f"on prompts that it was not found with, the best candidate does too little. {report.verdict}"
    elif not report.beats_controls():
        reason = f"on prompts that it was not found with, the best candidate does not hold. {report.verdict}"
    elif report.selectivity is not None and report.selectivity.outcome != "beats":
        reason = f"the best candidate is {report.selectivity}. {report.verdict}"
    return dataclasses.replace(found, report=report, reason=reason)


def _tried(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    judge: Judge,
    prompts: Sequence[Prompt],
    aside: Sequence[Prompt],
    label: str,
    chat: dict[str, Any],
    part_of: Callable[[str], Path | None],
    name: str,
    config: MoTEConfig,
) -> Candidate:
    """Return what becomes of the behaviour with a config, without controls."""
    from hf_mote.evaluation.evaluate import evaluate_mote

    experts = "-".join(f"{layer}.{expert}" for layer, expert in config.suppress)
    # Named by the experts, as a set that was pruned comes by another name; shortened, as there may be many.
    folder = part_of(f"tried-{hashlib.sha256(experts.encode()).hexdigest()[:16]}")
    asked: dict[str, Any] = {"target": label, "unrelated": aside, "num_controls": 0, "progress": False, **chat}
    asked["run_folder"] = folder
    report = evaluate_mote(model, tokenizer, config, prompts, judge, **asked)
    seen = report.coherence
    if seen is None or seen.surprise is None:
        raise DataError("hf-mote find", "nothing is known of how sure the model is of its responses")
    effect = 0.0 if seen.broken else report.coherent_effect
    return Candidate(
        name, config, report.after.rate, seen.share_after.rate, effect, seen.surprise, report.responses_after
    )


def _best(candidates: Sequence[Candidate]) -> Candidate:
    """Return the fewest experts among those without which the behaviour goes and the model is as sure as it can be.

    Where the untouched model is unsure of its answers to other prompts, no response alone is told to be junk. Of two
    sets on the same prompts the one that leaves the model less sure is the one that leaves a part of a carrier.
    """
    from hf_mote.evaluation.coherence import LEAST_SURPRISE

    most = min(one.effect for one in candidates)
    able = [one for one in candidates if one.effect <= most + SPARED]
    surest = min(one.surprise for one in able)
    sure = [one for one in able if one.surprise <= surest + LEAST_SURPRISE]
    return min(sure, key=lambda one: len(one.config.suppress))


def _pruned(best: Candidate, trial: Callable[[str, MoTEConfig], Candidate]) -> Candidate:
    """Return a candidate without the experts that it can do without, one after another.

    It can do without one if the behaviour stays away and nearly all answers stay as they were, word for word: what is
    left of a carrier may break them without bringing the behaviour back.
    """
    kept = best
    for pair in best.config.suppress:
        fewer = [other for other in kept.config.suppress if other != pair]
        if not fewer:
            break
        smaller = trial(f"{best.method}, pruned", dataclasses.replace(kept.config, suppress=fewer))
        same = fmean(now == before for now, before in zip(smaller.responses, best.responses, strict=True))
        if smaller.effect <= best.effect + SPARED and same >= LEAST_SAME:
            kept = smaller
    return kept


def _numbers(groups: Sequence[Hashable]) -> list[int]:
    known: dict[Hashable, int] = {}
    return [known.setdefault(key, len(known)) for key in groups]


def _halves(shown: list[int], others: list[int], keys: Sequence[int], seed: int) -> list[list[int]]:
    """Return the prompts to look at and those to prove by, of the class and of others; no group is in both halves."""
    first = _half(shown, keys, seed)
    sides = {keys[place]: place in first for place in shown}
    alone = _half([place for place in others if keys[place] not in sides], keys, seed + 1)
    first |= {place for place in others if sides.get(keys[place], place in alone)}
    return [
        [place for place in part if (place in first) == side] for part in (shown, others) for side in (True, False)
    ]


def _half(places: Sequence[int], keys: Sequence[int], seed: int) -> set[int]:
    """Return about half of some prompts, whole groups of them."""
    groups = sorted({keys[place] for place in places})
    random.Random(seed).shuffle(groups)
    chosen: set[int] = set()
    for key in groups:
        members = {place for place in places if keys[place] == key}
        if len(chosen) + len(members) / 2 <= len(places) / 2:
            chosen |= members
    return chosen


def _rows_of(imaged: FTRIResult, places: list[int]) -> FTRIResult:
    """Return the part of an imaging that some prompts make up."""
    rows: dict[str, Any] = {
        name: [getattr(imaged, name)[place] for place in places] for name in ("prompts", "responses", "classes")
    }
    rows |= {name: getattr(imaged, name)[places] for name in ("counts", "weights", "num_tokens")}
    return dataclasses.replace(imaged, **rows, prompt_index=None, response_tokens=None)


def _predicted(
    imaged: FTRIResult, label: str, groups: Sequence[int] | None, seed: int, notes: list[str]
) -> Predictability | None:
    from hf_mote.statistics.predictability import predictability

    try:
        found = predictability(
            imaged.counts.numpy(), [name == label for name in imaged.classes], groups=groups, seed=seed
        )
    except DataError as error:
        notes.append(f"whether routing tells the classes apart cannot be asked: {error}")
        return None
    if groups is not None and found.within is None:
        notes.append("no topic has prompts of both classes: what the contrast finds may be the topic alone")
    return found


def _candidates(
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
    """Return rankings, and configs that suppress their first experts, each set once."""
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.ranking.causal.optimization import optimize_experts
    from hf_mote.ranking.causal.share import routed_share

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
    # The model's own words: what it says here, and what it says where it does not show the behaviour.
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
    configs = {}
    for pairs, name in sets.items():
        suppress = [[layer, expert] for layer, expert in pairs]
        provenance: dict[str, Any] = {"method": name, "target": label}
        configs[name] = MoTEConfig(suppress=suppress, fingerprint=fingerprint, provenance=provenance)
    return rankings, configs


def _stepping_in(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    config: MoTEConfig,
    chat: dict[str, Any],
    part_of: Callable[[str], Path | None],
) -> list[tuple[int, int]]:
    """Return experts by how much more of the tokens they take while a config is at work, those that take more."""
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.mote.patch import apply_mote
    from hf_mote.ranking.imaging.pipeline import ftri

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


def find_command(
    context: typer.Context,
    model: o.Model,
    prompts: o.Prompts,
    judge: o.JudgeName = None,
    target: o.Target = None,
    unrelated: Annotated[
        str | None, typer.Option(help="Prompts whose answers should stay; same sources as PROMPTS.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("hf-mote-find"),
    controls: o.Controls = 40,
    run_folder: o.RunFolder = None,
    seed: o.Seed = 0,
    limit: o.Limit = None,
    prompt_field: o.PromptField = None,
    group_field: o.GroupField = None,
    system_prompt: o.SystemPrompt = None,
    chat_template: o.ChatTemplate = None,
    template_arg: o.TemplateArgs = None,
    judge_model: o.JudgeModel = None,
    judge_url: o.JudgeURL = None,
    judge_allow_http: o.JudgeAllowHTTP = False,
    batch_size: o.BatchSize = 16,
    max_new_tokens: o.MaxNewTokens = 64,
    revision: o.Revision = None,
    dtype: o.Dtype = "auto",
    device: o.Device = None,
    trust_remote_code: o.TrustRemoteCode = False,
    force: o.Force = False,
) -> None:
    """Find the experts behind a class of responses and prove it on other prompts; write a config only then."""
    work = Work(output, run_folder)
    with reporting(kept=work.word):
        check_output(output, force=force)
        work.check()
        told = o.template_args(template_arg)
        organisms = Organisms()
        read = partial(read_prompts, organisms=organisms, prompt_field=prompt_field, limit=limit, seed=seed)
        asked = read(prompts)
        groups = None if group_field is None else asked.column(group_field)
        others = read(unrelated).prompts if unrelated is not None else []
        labels = response_judge(
            make_judge(
                judge,
                asked,
                organisms,
                model=model,
                judge_model=judge_model,
                judge_url=judge_url,
                allow_http=judge_allow_http,
            )
        )
        wanted = target_of(labels, target, asked)
        # From here on torch and transformers are needed.
        subject = load_subject(
            model,
            organisms,
            revision=revision,
            dtype=dtype,
            device=device,
            chat_template=chat_template,
            trust_remote_code=trust_remote_code,
        )
        with work.of(subject.model) as part_of, writing_to(output, force=force) as folder:
            found = find_experts(
                subject.model,
                subject.tokenizer,
                asked.prompts,
                labels,
                target=wanted,
                groups=groups,
                unrelated=others,
                num_controls=controls,
                seed=seed,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                system_prompt=system_prompt,
                chat_template_kwargs=told,
                run_folder=part_of(""),
            )
            holds = {}
            for name, ranking in found.rankings.items():
                ranking.save_pretrained(folder / "rankings" / name)
                holds[f"rankings/{name}/{ranking.file_name}"] = f"all experts, ranked by {name} (ExpertRanking)"
            if found.report is not None:
                found.report.save_pretrained(folder / "evaluation")
                holds[f"evaluation/{found.report.file_name}"] = "the best candidate, measured (EvaluationReport)"
            if found.config is not None:
                found.config.save_pretrained(folder / "config")
                holds[f"config/{found.config.file_name}"] = "the proven config, for apply_mote"
            more = {"prompts": f"{asked.source} ({len(asked.prompts)})", "judge": judge or "the organism's own"}
            finish(folder, found.to_dict(), provenance_of(context, subject, seed, **more), holds)
        for note in found.notes:
            tell(f"Note: {note}.")
        if found.predicted is not None:
            tell(f"Beforehand: {found.predicted}.")
        for candidate in found.candidates:
            tell(f"  {candidate}")
        tell(found.verdict)
        tell(f"Config: {output / 'config'}" if found.config is not None else f"Figures: {output}")
