"""Does a config do what it is meant to, and nothing else? Rates before and after, against matched random controls.

A ranking is a hypothesis. The evidence is the rate of the target behaviour before and after, the same rate under as
many random experts of the same layers, and what happens to answers that should stay.
"""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_mote.errors import ConfigError, UnknownNameError
from hf_mote.ftri.controls import CONTROL_KINDS, random_control
from hf_mote.ftri.judges import Judge, check_judge, classify
from hf_mote.ftri.report import EvaluationReport, Rate
from hf_mote.ftri.responses import Prompt, checked_prompts, generate_responses, prompt_text
from hf_mote.ftri.side_effects import side_effects
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote, load_config
from hf_mote.routing.discover import find_routers
from hf_mote.routing.record import record_routing

__all__ = ["evaluate_mote"]


def evaluate_mote(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: MoTEConfig | str | os.PathLike[str],
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    target: object = None,
    unrelated: Sequence[Prompt] = (),
    texts: Sequence[str] = (),
    num_controls: int = 20,
    control_kind: Literal["layer", "usage"] = "layer",
    strengths: Sequence[float] = (),
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    system_prompt: str | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> EvaluationReport:
    """Measure a config: the target behaviour before and after, random controls, dose-response, and what else changes.

    Args:
        model (`PreTrainedModel`):
            A mixture-of-experts language model; left as it is.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer. A chat template is applied if it has one.
        config (`MoTEConfig`, `str` or `os.PathLike`):
            What to measure: a config, a folder or a Hub id.
        prompts (`Sequence[str]` or chats):
            Prompts on which the behaviour is to change; best ones that the experts were not found with.
        judge (`Callable`):
            `response -> label` or `(prompt, response) -> label`.
        target (`str`, *optional*, defaults to the judge's own `target`):
            The label whose rate is reported. For a judge that answers yes or no, `True`. A label that no response
            gets, in any run, is refused.
        unrelated (`Sequence[str]` or chats, *optional*):
            Prompts whose answers should stay; the share that does so word for word is counted, and the answers before
            and after are kept side by side.
        texts (`Sequence[str]`, *optional*):
            Plain texts on which the divergence of the predictions and the perplexity are measured.
        num_controls (`int`, *optional*, defaults to 20):
            Random configs, each with as many experts in the same layers, none of them the config's own.
        control_kind (`str`, *optional*, defaults to `"layer"`):
            `"layer"` draws any other experts of the layer; `"usage"` those that the untouched model uses about as
            often on these prompts, which is the stricter control.
        strengths (`Sequence[float]`, *optional*):
            Doses for a dose-response curve, besides the config's own.
        seed (`int`, *optional*, defaults to 0):
            Seed of the controls.
        confidence (`float`, *optional*, defaults to 0.95):
            Coverage of the Wilson intervals.
        batch_size (`int`, *optional*, defaults to 16):
            Prompts that run together.
        max_new_tokens (`int`, *optional*, defaults to 64):
            Longest response, in tokens.
        system_prompt (`str`, *optional*):
            First message of every prompt that is a text.
        generate_kwargs (`Mapping`, *optional*):
            Further arguments of `generate`; decoding is greedy by default.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        [`EvaluationReport`].

    Raises:
        [`ModelMismatchError`]: if the config does not fit the model.
        [`DataError`]: if there are no prompts, or the judge fails.
        [`ConfigError`]: if the config has no targets, no target label is known, or a layer has too few other experts
            to draw controls from.

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
    asked = checked_prompts("evaluate_mote.prompts", prompts)
    others = checked_prompts("evaluate_mote.unrelated", unrelated) if unrelated else []
    label = _target_label(judge, target)
    check_judge(judge)
    if isinstance(num_controls, bool) or not isinstance(num_controls, int) or num_controls < 0:
        raise ConfigError("evaluate_mote.num_controls", "not a number", got=repr(num_controls), expected="0 or more")
    if control_kind not in CONTROL_KINDS:
        raise UnknownNameError.of("evaluate_mote.control_kind", control_kind, CONTROL_KINDS)
    config = load_config(config)
    config.check(model)
    if config.is_empty:
        raise ConfigError("evaluate_mote.config", "nothing to measure", got="no targets, or strength 0")
    sites = find_routers(model)
    # Drawn once to see that they can be, before anything runs; those of kind "usage" again, once usage is known.
    draw = random.Random(seed)
    controls = [random_control(config, sites, draw) for _ in range(num_controls)]
    asked_texts = [prompt_text(prompt) for prompt in asked]
    doses = [dataclasses.replace(config, strength=float(strength)) for strength in strengths]

    def respond(which: Sequence[Prompt], chosen: MoTEConfig | None) -> list[str]:
        responses = [""] * len(which)
        with apply_mote(model, chosen if chosen is not None else MoTEConfig()):
            for positions, answers in generate_responses(
                model,
                tokenizer,
                which,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                system_prompt=system_prompt,
                generate_kwargs=generate_kwargs,
            ):
                for position, answer in zip(positions, answers, strict=True):
                    responses[position] = answer
        return responses

    seen: set[str] = set()

    def rate(responses: Sequence[str]) -> Rate:
        labels = classify(judge, asked_texts, responses)
        seen.update(labels)
        return Rate.of(labels.count(label), len(responses), confidence)

    runs = 2 + len(controls) + len(doses)
    with logging.tqdm(total=runs, desc="evaluating", disable=not progress, leave=False) as bar:
        if control_kind == "usage" and controls:
            with record_routing(model, eos_token_id=(generate_kwargs or {}).get("eos_token_id")) as record:
                before = respond(asked, None)
            counts = record.total().counts
            usage = dict(zip(record.layers, counts, strict=True))
            draw = random.Random(seed)
            controls = [random_control(config, sites, draw, usage=usage) for _ in range(num_controls)]
        else:
            before = respond(asked, None)
        after = respond(asked, config)
        rate_before, rate_after = rate(before), rate(after)
        bar.update(2)
        unchanged, others_before, others_after = None, [], []
        if others:
            others_before, others_after = respond(others, None), respond(others, config)
            same = [a == b for a, b in zip(others_before, others_after, strict=True)]
            unchanged = Rate.of(sum(same), len(same), confidence)
        control_rates = []
        for control in controls:
            control_rates.append(rate(respond(asked, control)).rate)
            bar.update()
        dose_rates = []
        for strength, dose in zip(strengths, doses, strict=True):
            dose_rates.append((float(strength), rate(respond(asked, dose)).rate))
            bar.update()
    if target is not None and label not in seen and label != getattr(judge, "target", None):
        raise UnknownNameError.of(
            "evaluate_mote.target", label, seen, fix="No response got this label; the judge gave the listed ones."
        )
    effects = None
    if texts:
        effects = side_effects(model, tokenizer, config, texts, batch_size=batch_size, progress=progress)
    return EvaluationReport(
        target=label,
        before=rate_before,
        after=rate_after,
        controls=control_rates,
        unrelated_unchanged=unchanged,
        dose=dose_rates,
        config=config.to_dict(),
        prompts=asked_texts,
        responses_before=before,
        responses_after=after,
        seed=seed,
        control_kind=control_kind,
        unrelated=[prompt_text(prompt) for prompt in others],
        unrelated_before=others_before,
        unrelated_after=others_after,
        side_effects=effects,
    )


def _target_label(judge: Judge, target: object) -> str:
    label = target if target is not None else getattr(judge, "target", None)
    if label is None:
        raise ConfigError(
            "evaluate_mote.target",
            "the judge does not say which of its labels is the behaviour",
            expected="one of the labels that it returns",
            fix="Pass target=..., or give the judge an attribute `target`.",
        )
    return str(label)
