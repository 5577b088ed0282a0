"""`evaluate_mote`: what a config does and what else it changes, against matched random controls.

A ranking is a hypothesis. The evidence is the rate of the target behaviour before and after, the same rate under
equally many random experts of the same layers, and the changes of answers that should stay.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import ConfigError
from hf_mote.evaluation.changes import Change, LatentChange, SteeringLike, read_change, with_fields
from hf_mote.evaluation.coherence import Coherence, Limits, incoherent, less_sure, limits_of
from hf_mote.evaluation.conversations import Conversation, answer_conversations, checked_conversations
from hf_mote.evaluation.engine import AnsweringEngine
from hf_mote.evaluation.rates import Measured, RateMeasurement, Rates
from hf_mote.evaluation.records import Behaviour, ControlRuns, Elsewhere, SideBySide
from hf_mote.evaluation.report import EvaluationReport
from hf_mote.evaluation.selectivity import (
    Quality,
    Selectivity,
    changed_class,
    judged_quality,
    margins,
    not_inferior,
    stays_the_same,
)
from hf_mote.evaluation.side_effects import measure_side_effects
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.certainty import Signs
from hf_mote.generation.chat import Prompt
from hf_mote.generation.prompts import checked_prompts, prompt_text
from hf_mote.judges.judge import Judge
from hf_mote.mote.config import MoTEConfig
from hf_mote.runs.folder import digest_of
from hf_mote.statistics.rates import Rate

__all__ = ["evaluate_mote", "evaluate_settings"]

OFF_TARGET = 40  # unrelated prompts that the controls are measured on, too


def evaluate_mote(
    model: PreTrainedModel | AnsweringEngine,
    tokenizer: PreTrainedTokenizerBase,
    config: MoTEConfig | SteeringLike | LatentChange | str | os.PathLike[str],
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    target: object = None,
    unrelated: Sequence[Prompt] = (),
    texts: Sequence[str] = (),
    conversations: Sequence[Conversation | Sequence[str]] = (),
    num_controls: int = 40,
    control_kind: Literal["layer", "usage"] | None = None,
    strengths: Sequence[float] = (),
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    groups: Sequence[Hashable] | None = None,
    allow_other_weights: bool = False,
    quality: Quality | None = None,
    margin: float | None = None,
    quality_margin: float | None = None,
    run_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> EvaluationReport:
    """Measure a config: the target behaviour before and after, random controls, dose-response, and what else changes.

    Args:
        model (`PreTrainedModel` or `AnsweringEngine`):
            A language model, of a mixture of experts unless latents are steered; left as it is. Or an engine that
            serves one, as [`ServerEngine`]: configs and controls are loaded into it while they are measured, and
            `EvaluationReport.notes` states what it cannot measure.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer. A chat template is applied if it has one.
        config (`MoTEConfig`, [`SteeringConfig`], `str` or `os.PathLike`):
            What to measure: a [`MoTEConfig`], its folder or Hub id, or a [`SteeringConfig`], which loads the SAE that
            it names; with a loaded SAE, give `config.bind(sae)`. Experts and latents are measured by the same rates,
            controls and side effects, and so can be compared on one behaviour.
        prompts (`Sequence[str]` or chats):
            Prompts on which the behaviour is to change; ideally ones that the experts were not found with.
        judge (`Callable`):
            `response -> label` or `(prompt, response) -> label`. The label "neither" is for responses that are not an
            answer at all; such a response counts as incoherent. One with an attribute `needs_special_tokens` that is
            true sees responses with their special tokens, as [`ftri`] says.
        target (`str`, *optional*, defaults to the judge's own `target`):
            The label whose rate is reported. For a judge that returns a `bool`, `True`. A label that is not among the
            judge's `labels` is refused; where the judge has no such attribute, one that no response gets before or
            after.
        unrelated (`Sequence[str]` or chats, *optional*):
            Prompts whose answers should stay; the share that does so word for word is counted, and the answers before
            and after are kept side by side. The untouched model's answers to them also show how sure it is of what it
            writes: give 40 or more, of many kinds, so that unusual answers do not count as incoherent; see
            `Coherence`.
        texts (`Sequence[str]`, *optional*):
            Plain texts on which the divergence of the predictions and the perplexity are measured; see
            [`side_effects`], also for configs that work on generated tokens alone.
        conversations (`Sequence[Sequence[str]]` or of [`Conversation`], *optional*):
            The user's turns of conversations, as MT-Bench has them, that the model answers before and after, each
            time going on from its own answers. They are kept side by side, and the share of answers that stay word
            for word is counted.
        num_controls (`int`, *optional*, defaults to 40):
            Random configs, each with as many experts in the same layers, or as many latents. While there are enough of
            them, none is the config's own or another control's; where there are few, controls are different sets out
            of all there are, and fewer than requested if no more exist: 7 for one of 8 experts, which leaves p at 1/8
            or above.
        control_kind (`str`, *optional*, defaults to `"layer"` for experts and to `"usage"` for latents):
            `"layer"` draws any experts of the layer; `"usage"` those of the same block of 20 or more experts that the
            untouched model uses about as often on these prompts, which is the stricter control; in a layer of fewer
            than 40 experts both are the same. See [`random_controls`]. Of latents `"layer"` draws any of the SAE, and
            `"usage"` those of similar density: active on about as many tokens of these prompts and their responses.
        strengths (`Sequence[float]`, *optional*):
            Doses for a dose-response curve, besides the config's own.
        seed (`int`, *optional*, defaults to 0):
            Seed of the controls, and of responses if they are sampled: the same random numbers for every config.
        confidence (`float`, *optional*, defaults to 0.95):
            Coverage of the Wilson intervals.
        batch_size (`int`, *optional*, defaults to 16):
            Prompts that run together.
        max_new_tokens (`int`, *optional*, defaults to 64):
            Longest response, in tokens.
        system_prompt (`str`, *optional*):
            First message of every prompt that is a text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of the chat template, as `{"enable_thinking": False}`; it must read each name.
        generate_kwargs (`Mapping`, *optional*):
            Further arguments of `generate`; decoding is greedy by default.
        groups (`Sequence`, *optional*):
            One key for each prompt, equal for those that are wordings of one subject: the
            intervals of the rates are then by group, wider where prompts of a group are correlated. By default every
            prompt counts as independent of the others.
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            As in [`apply_mote`]; the report states it.
        quality (`Callable`, *optional*):
            A judge of how good an unrelated answer is: `(prompt, response) -> score`, as MT-Bench's 1 to 10, or
            pairwise `(prompt, before, after) -> difference`. Answers are "not worse" if the mean surely falls by less
            than `quality_margin`.
        margin (`float`, *optional*):
            The largest share of unrelated answers that may change their words before they no longer count as
            unchanged, above 0; 0.1 by default. Only with `unrelated`.
        quality_margin (`float`, *optional*):
            The largest loss of quality that would not matter, in the unit of `quality`, above 0; 0.5 by default.
            Only with `quality`.
        run_folder (`str` or `os.PathLike`, *optional*):
            Where responses are kept as they come, as in [`ftri`]: a killed run continues from there, with the
            same result. A folder of other settings is refused: another model, config, judge or decoding,
            other prompts or controls. Labels of a judge whose attribute `costly` is true are kept, too, as those of
            [`LMJudge`] and [`ServerJudge`]; others judge again.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        [`EvaluationReport`].

    Raises:
        [`ModelMismatchError`]: if the config does not fit the model.
        [`DataError`]: if there are no prompts, a text is too short, a conversation is no list of turns, or the judge
            fails.
        [`UnknownNameError`]: if the target is not a label of the judge.
        [`UnsupportedError`]: if an engine does not take the config, as one of latents, or is gone.
        [`ConfigError`]: if the config has no targets, no target label is known, a layer has no other experts to draw
            controls from, a number is out of range, a margin is given without what it applies to, or a
            conversation of several turns meets a tokenizer without a
            chat template.

    With a run folder also what [`ftri`] raises of one. All but what the model and the judge themselves raise is
    raised before the first response.

    Example:

    ```python
    from hf_mote import MoTEConfig, evaluate_mote, load_organism

    organism = load_organism("refusal")
    config = MoTEConfig.for_model(organism.model, suppress=organism.planted)
    report = evaluate_mote(
        organism.model, organism.tokenizer, config, organism.prompts["heldout"]["sensitive"][:8], organism.judge,
        num_controls=2, max_new_tokens=12, progress=False,
    )
    assert report.after.rate < report.before.rate
    ```
    """
    where = "evaluate_mote"
    trial = RateMeasurement(
        where,
        model,
        Chat(tokenizer, system_prompt, chat_template_kwargs),
        prompts,
        judge,
        Decoding(max_new_tokens, generate_kwargs, batch_size, seed),
        target=target,
        confidence=confidence,
        groups=groups,
    )
    change = read_change(config)
    if allow_other_weights and isinstance(change, MoTEConfig):
        change = change.for_other_weights_of(trial.routed)
    if control_kind == "usage" and num_controls and trial.served is not None:
        trial.served.check_use()
    trial.plan([change], num_controls=num_controls, control_kind=control_kind)
    others = checked_prompts(f"{where}.unrelated", unrelated) if unrelated else []
    trial.check(others)
    talks = checked_conversations(f"{where}.conversations", conversations, tokenizer) if conversations else []
    doses = _doses(change, strengths)
    for dose in doses if trial.served is not None else ():
        trial.fit(dose)
    margin, quality_margin = margins(where, margin, quality_margin, quality, unrelated=bool(others))
    trial.keep(
        run_folder,
        strengths=[dose.strength for dose in doses],
        unrelated_sha256=digest_of(trial.chat.encode(others, f"{where}.unrelated")),
        texts_sha256=digest_of(list(texts)),
        conversations_sha256=digest_of([dataclasses.asdict(talk) for talk in talks]),
    )
    # First, because it is fast and can refuse the model or a text.
    effects = None
    if texts and trial.served is not None:
        effects = trial.served.side_effects(tokenizer, change, texts, batch_size=batch_size)
    elif texts:
        effects = measure_side_effects(
            trial.routed,
            tokenizer,
            change,
            texts,
            batch_size=batch_size,
            folder=trial.folder,
            progress=progress,
        )
    off_target = _spread(others, OFF_TARGET)
    found = trial.run(progress=progress, off_target=off_target)
    dose_rates = [(dose.strength, trial.measure(dose if dose.strength else None).rate.rate) for dose in doses]
    unchanged = None
    others_before: list[str] = []
    others_after: list[str] = []
    references: list[Signs] = []
    if others:
        if found.off_target and len(off_target) == len(others):  # all of them were answered already
            said = [(one.responses, one.signs) for one in found.off_target[:2]]
        else:
            said = [trial.respond(others, which) for which in (None, change)]
        (others_before, references), (others_after, _) = said
        same = [a == b for a, b in zip(others_before, others_after, strict=True)]
        unchanged = Rate.of(sum(same), len(same), confidence)
    turns_unchanged = None
    if talks:
        if trial.served is not None:
            talks = trial.served.converse(trial.chat, change, talks, trial.decoding)
        else:
            talks = answer_conversations(
                trial.routed, trial.chat, change, talks, trial.decoding, folder=trial.folder, progress=progress
            )
        kept = [same for talk in talks for same in talk.unchanged]
        turns_unchanged = Rate.of(sum(kept), len(kept), confidence)
    (report,) = _reports(trial, [change], found, references)
    tests = []
    if unchanged is not None:
        tests.append(stays_the_same("unrelated answers that stay word for word", unchanged, margin))
    if quality is not None and others:
        scores = judged_quality(quality, [prompt_text(prompt) for prompt in others], others_before, others_after)
        tests.append(not_inferior("quality of unrelated answers", *scores, quality_margin, confidence=confidence))
    elsewhere = Elsewhere(
        answers=SideBySide([prompt_text(prompt) for prompt in others], others_before, others_after),
        unchanged=unchanged,
        selectivity=_selectivity(trial, report, found.off_target),
        not_worse=tests,
        side_effects=effects,
        conversations=talks,
        turns_unchanged=turns_unchanged,
    )
    behaviour = dataclasses.replace(report.behaviour, dose=dose_rates)
    notes = [] if trial.served is None else trial.served.notes(trial.decoding, texts=bool(texts))
    return dataclasses.replace(report, behaviour=behaviour, elsewhere=elsewhere, notes=notes)


def evaluate_settings(
    model: PreTrainedModel,
    chat: Chat,
    configs: Sequence[MoTEConfig],
    prompts: Sequence[Prompt],
    judge: Judge,
    decoding: Decoding,
    *,
    target: object = None,
    num_controls: int = 40,
    control_kind: Literal["layer", "usage"] = "layer",
    confidence: float = 0.95,
    groups: Sequence[Hashable] | None = None,
    run_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[EvaluationReport]:
    """Measure several settings of one choice of experts: a report for each, with the same controls for all.

    Control `b` of every setting exchanges the same experts: if the first setting suppresses an expert and the second
    that one and another, the second one's control holds the first one's, as the settings hold each other. The reports
    can then be compared by the largest change that each control makes in any setting, as `hf-mote sweep` does. Where
    experts are few, controls differ as a whole and not in every setting.

    `configs` are the settings, one or more; `chat` and `decoding` state how the model is asked, and the seed of
    `decoding` is also that of the controls; the other arguments are those of [`evaluate_mote`].

    Returns:
        `list[EvaluationReport]`: one for each, in order. `unclear` counts the responses of all of them.

    Raises:
        [`ConfigError`]: as [`evaluate_mote`], before anything runs.
    """
    trial = RateMeasurement(
        "evaluate_settings",
        model,
        chat,
        prompts,
        judge,
        decoding,
        target=target,
        confidence=confidence,
        groups=groups,
    )
    trial.plan(configs, num_controls=num_controls, control_kind=control_kind)
    trial.keep(run_folder)
    return _reports(trial, configs, trial.run(progress=progress))


def _reports(
    trial: RateMeasurement, configs: Sequence[Change], found: Rates, references: Sequence[Signs] = ()
) -> list[EvaluationReport]:
    """Return the rates of each config, without the other measurements."""
    reports = []
    for index, (config, after) in enumerate(zip(configs, found.after, strict=True)):
        sharing = found.sharing[index]
        coherence = _coherence(trial, found, index, references)
        reports.append(
            EvaluationReport(
                target=trial.label,
                config=config.to_dict(),
                behaviour=Behaviour(
                    before=found.before.rate,
                    after=after.rate,
                    answers=SideBySide(
                        prompts=trial.texts,
                        before=found.before.responses,
                        after=after.responses,
                        labels_before=found.before.labels,
                        labels_after=after.labels,
                    ),
                    unclear=trial.unclear,
                    coherence=coherence,
                ),
                control_runs=ControlRuns(
                    rates=found.controls[index],
                    labels=found.control_labels[index],
                    kind=trial.control_kind,
                    seed=trial.seed,
                    sharing=sharing,
                    num_sharing=sum(sharing),
                    disjoint_chances=found.chances[index],
                    exhausted=found.exhausted,
                ),
            )
        )
    return reports


def _coherence(trial: RateMeasurement, found: Rates, index: int, references: Sequence[Signs]) -> Coherence:
    """Return which responses with a config are incoherent, compared with references."""
    limits = limits_of(found.before.signs, references)
    after = found.after[index]
    broken = trial.incoherent(after, limits)
    runs = zip(found.control_labels[index], found.control_signs[index], strict=True)
    falls = after.rate.rate <= found.before.rate.rate
    counted = [
        (label == trial.label or wrong) if falls else (label == trial.label and not wrong)
        for label, wrong in zip(after.labels, broken, strict=True)
    ]
    unsure = less_sure(after.signs, references)
    return Coherence(
        limit_surprise=limits.surprise,
        limit_repeated=limits.repeated,
        references=limits.references,
        before=trial.incoherent(found.before, limits),
        after=broken,
        controls=[incoherent(signs, labels, limits, trial.neither) for labels, signs in runs],
        counted=Rate.of_groups(counted, trial.groups, trial.confidence),
        unsure=None if unsure is None else unsure[0],
        unsure_low=None if unsure is None else unsure[1],
        surprise=fmean(signs.surprise for signs in after.signs) if after.signs else None,
    )


def _selectivity(
    trial: RateMeasurement, report: EvaluationReport, off_target: Sequence[Measured]
) -> Selectivity | None:
    """Return the changes on the prompts and on other prompts, for the config and its controls."""
    if not off_target or report.coherence is None:
        return None
    limits = Limits(report.coherence.limit_surprise, report.coherence.limit_repeated, report.coherence.references)
    changed = [
        changed_class(off_target[0].labels, one.labels, trial.incoherent(one, limits)) for one in off_target[1:]
    ]
    return Selectivity(
        on=abs(report.coherent_effect),
        off=Rate.of(sum(changed[0]), len(changed[0]), trial.confidence),
        controls_on=[abs(effect) for effect in report.control_effects],
        controls_off=[sum(one) / len(one) for one in changed[1:]],
    )


def _spread(prompts: Sequence[Prompt], most: int) -> list[Prompt]:
    """Return some of the prompts, from all over the list."""
    number = min(most, len(prompts))
    return [prompts[index * len(prompts) // number] for index in range(number)]


def _doses(config: Change, strengths: object) -> list[Change]:
    """Return the config at other strengths."""
    if isinstance(strengths, str) or not isinstance(strengths, Sequence):
        got = repr(strengths)[:60]
        raise ConfigError("evaluate_mote.strengths", "not a list of numbers", got=got, expected="as in [0.5, 0.75]")
    return [with_fields(config, strength=strength) for strength in strengths]
