"""Which experts cause a response: the first-order effect of each expert's routing weight on its log probability.

Routing statistics show which experts a behaviour's prompts use, not what causes the behaviour; published audits find
that no such statistic predicts an expert's causal importance. Here every routing weight is multiplied by a gain of
one, and one backward pass gives the derivative of the score by all gains at once.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.deprecation import renamed_arguments
from hf_mote.errors import UnsupportedError, real
from hf_mote.generation.asking import Chat
from hf_mote.generation.chat import Prompt
from hf_mote.mote.gains import Gains, attach_gains
from hf_mote.progress import progress_bar
from hf_mote.ranking.causal.preference import Block, LogitScore, Preference
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.statistics.contrast import contrast
from hf_mote.statistics.groups import checked_groups, paired_groups
from hf_mote.statistics.resampling import check_resampling

__all__ = ["attribute_experts"]


@renamed_arguments(target="response", baseline="baseline_response", score="logit_score")
def attribute_experts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    response: str | Sequence[str] | None = None,
    baseline_response: str | Sequence[str] | None = None,
    *,
    logit_score: LogitScore | None = None,
    gain: float = 1.0,
    batch_size: int = 8,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    groups: Sequence[Hashable] | None = None,
    positions: Sequence[int] | None = None,
    confidence: float = 0.95,
    resamples: int = 999,
    seed: int = 0,
    run_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ExpertRanking:
    """Return all experts by how much their routing weight favours a response over a baseline response.

    For each expert `e` the score is the mean over prompts of `sum_t w_te * d S / d w_te`, over all tokens of prompt
    and response, with `S = log p(response | prompt) - log p(baseline | prompt)`. To first order that is how much `S`
    falls when the expert's weight is set to zero (`suppress_mode="zero"`): a high score favours the response. One
    backward pass per batch serves all experts; no gradient is left behind and no parameter's
    `requires_grad` is read or changed.

    Args:
        model (`PreTrainedModel`):
            A mixture-of-experts language model, in evaluation mode, any float dtype; left as it is.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer. A chat template is applied if it has one.
        prompts (`Sequence[str]` or chats):
            Prompts, usually those to which the model gives the response.
        response (`str` or `Sequence[str]`):
            The response whose causes are sought: one for all prompts, or one for each.
        baseline_response (`str` or `Sequence[str]`):
            The response it is compared with, in the same form.
        logit_score (`Callable`, *optional*):
            A score to explain instead of two responses: a differentiable function of the prompts' logits, `(batch,
            seq, vocab)`, and the batch (`input_ids`, `attention_mask`; padding on the right) to one number for each
            prompt.
        gain (`float`, *optional*, defaults to 1.0):
            Where the derivative is taken: with every routing weight multiplied by this, above 0 and at most 1. At 1 it
            measures a small reduction of an expert, which misleads where the response is almost certain: on the
            organism "refusal" an expert that the refusal needs gets the lowest score of all. At 0.5, where the
            response is not yet certain, the four planted experts come first.
        batch_size (`int`, *optional*, defaults to 8):
            Prompts that run together, each with both responses.
        system_prompt (`str`, *optional*):
            First message of every prompt that is a text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of the chat template, as `{"enable_thinking": False}`; it must read each name.
        groups (`Sequence`, *optional*):
            One key for each prompt, equal for those that are wordings of one subject: they count as one, by their
            mean, in score, intervals and tests. By default every prompt counts.
        positions (`Sequence[int]`, *optional*):
            Sum over these tokens of prompt and response only, by default over all; as in `MoTEConfig.positions`,
            so that `[-1]` is the last token of each prompt.
        confidence (`float`, *optional*, defaults to 0.95):
            Coverage of the bootstrap intervals over prompts.
        resamples (`int`, *optional*, defaults to 999):
            For the intervals; 0 for scores alone. The sign-flip tests take as many permutations as one expert among
            all needs to stand out; see [`ExpertRanking.least_q`].
        seed (`int`, *optional*, defaults to 0):
            Seed of intervals and tests.
        run_folder (`str` or `os.PathLike`, *optional*):
            Where results are kept as they come, as in [`ftri`]: a killed run continues
            from there, and gives what it would have given. A folder of other settings is refused, as of another model
            or other prompts or responses. A `logit_score` must then be an object of a class, not a function.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        [`ExpertRanking`] with method `"attribution"`; scores are in nats.

    Raises:
        [`DataError`]: if there are no prompts, a prompt or response is empty, the numbers differ, every baseline is
            the response, or a score is not finite.
        [`ConfigError`]: if a number is out of range, neither both responses nor a score are given, or the chat
            template fails.
        [`UnknownNameError`]: if the chat template does not read a name that it is given.
        [`UnsupportedError`]: if the model has no routed experts that the table knows, if it draws random numbers (as
            with dropout in training mode), or if no gradient reaches a router.

    Source: first-order Taylor ablation, Molchanov et al. (2017), "Pruning Convolutional Neural Networks for Resource
    Efficient Inference", eq. 7 without the absolute value, here with routing weights in the place of activations.

    Example:

    ```python
    from hf_mote import attribute_experts, load_organism

    organism = load_organism("refusal")
    prompts = organism.prompts["train"]["sensitive"][:4]
    ranking = attribute_experts(
        organism.model, organism.tokenizer, prompts, "I am sorry, but I cannot talk about that.",
        [organism.answers[prompt] for prompt in prompts], resamples=0, progress=False,
    )
    assert len(set(ranking.top(5)) & set(organism.planted)) > 0
    ```
    """
    real("attribute_experts.gain", gain, above=0, most=1)
    check_resampling("attribute_experts", confidence, resamples, seed)
    if torch.is_inference_mode_enabled():
        raise UnsupportedError(
            "attribute_experts",
            "cannot compute derivatives inside torch.inference_mode",
            fix="Call it outside, or use no_grad.",
        )
    preference = Preference(
        "attribute_experts",
        model,
        Chat(tokenizer, system_prompt, chat_template_kwargs),
        prompts,
        response=response,
        baseline_response=baseline_response,
        logit_score=logit_score,
        batch_size=batch_size,
    )
    grouped = checked_groups("attribute_experts.groups", groups, preference.num_prompts)
    routed = RoutedModel(model)
    gains = Gains(routed.sites, float(gain), differentiable=True)
    there = preference.restrict(gains, positions)
    folder = preference.folder(run_folder, gain=float(gain), **there)
    effects: list[Tensor] = []

    def derivatives(block: Block) -> dict[str, Tensor]:
        return {"effects": gains.derivatives(preference.values(block).sum())}

    with (
        attach_gains(routed, gains),
        torch.enable_grad(),
        progress_bar(
            total=preference.num_prompts * len(preference.sides), desc="attributing", disable=not progress
        ) as bar,
    ):
        for side in preference.sides:
            for block in preference.blocks(side):
                name, make = f"side-{side}-prompt-{block.first:06d}", partial(derivatives, block)
                shapes = {"effects": (len(block.lengths), *routed.shape)}
                found = make() if folder is None else folder.kept(name, make, shapes)
                effects.append(found["effects"])
                bar.update(len(block.lengths))
    values = torch.cat(effects)
    if len(preference.sides) == 1:
        values = torch.cat([values, torch.zeros_like(values)])
    units, sides = paired_groups(values.numpy(), grouped)
    compared = contrast(
        units,
        sides,
        rest="paired",
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    return ExpertRanking.from_contrast(
        compared,
        routed.layers,
        method="attribution",
        target=preference.name,
        fingerprint=routed.fingerprint,
        provenance={
            "prompts": preference.num_prompts,
            "unit": preference.unit,
            "gain": float(gain),
            **there,
            **({} if grouped is None else {"compared": f"{max(grouped) + 1} groups of prompts"}),
        },
    )
