"""Which experts cause a response, by removing them one at a time.

This is the exact counterpart of `attribution`: one forward for each expert instead of one backward for all.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.deprecation import renamed_arguments
from hf_mote.generation.asking import Chat
from hf_mote.generation.chat import Prompt
from hf_mote.mote.gains import attach_gains
from hf_mote.progress import progress_bar
from hf_mote.ranking.causal.knockout import Knockout, Pair, grids_of
from hf_mote.ranking.causal.preference import LogitScore, Preference
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.statistics.contrast import contrast
from hf_mote.statistics.groups import checked_groups, paired_groups
from hf_mote.statistics.resampling import check_resampling

__all__ = ["ablate_experts"]


@renamed_arguments(target="response", baseline="baseline_response", score="logit_score")
def ablate_experts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    response: str | Sequence[str] | None = None,
    baseline_response: str | Sequence[str] | None = None,
    *,
    logit_score: LogitScore | None = None,
    experts: Iterable[Pair] | None = None,
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
    """Return experts by how far the score falls without them, each removed alone (`suppress_mode="zero"`).

    The score of an expert is the mean over prompts of `S - S without the expert`, with `S = log p(response | prompt) -
    log p(baseline | prompt)`: what `attribute_experts` estimates to first order. It takes a forward for each expert
    and prompt, so give a shortlist on large models.

    Args:
        model (`PreTrainedModel`): A mixture-of-experts language model in evaluation mode; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`Sequence[str]` or chats): Prompts to which the model gives the response, say.
        response (`str` or `Sequence[str]`, *optional*): As in [`attribute_experts`]; so are the arguments not listed.
        baseline_response (`str` or `Sequence[str]`, *optional*): See there.
        logit_score (`Callable`, *optional*): See there; need not be differentiable.
        experts (`Iterable[tuple[int, int]]`, *optional*, defaults to all):
            (layer, expert) to try, such as `ranking.top(50)`. The others get score 0 and no interval, p or q value.
        batch_size (`int`, *optional*, defaults to 8): Prompts that run together.
        system_prompt (`str`, *optional*): First message of every prompt that is a text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): See [`attribute_experts`].
        groups (`Sequence`, *optional*): See [`attribute_experts`].
        positions (`Sequence[int]`, *optional*):
            Take experts out at these tokens of prompt and response alone, by default at all; as `MoTEConfig.positions`
            has them, so that `[-1]` is the last token of each prompt.
        confidence (`float`, *optional*, defaults to 0.95): Coverage of the bootstrap intervals over prompts.
        resamples (`int`, *optional*, defaults to 999): For intervals and sign-flip tests; 0 for scores alone.
        seed (`int`, *optional*, defaults to 0): Seed of both.
        run_folder (`str` or `os.PathLike`, *optional*): See [`attribute_experts`].
        progress (`bool`, *optional*, defaults to `True`): Show a progress bar.

    Returns:
        [`ExpertRanking`] with method `"ablation"`; scores are in nats. q values are over the experts tried.

    Raises:
        [`UnknownNameError`]: if an expert does not exist.
        [`ConfigError`]: if no expert is given, or neither both responses nor a score are, or a number is out of range.
        [`DataError`]: if prompts or responses are malformed, or a score is not finite.
        [`UnsupportedError`]: if the model draws random numbers, as with dropout in training mode.

    Example:

    ```python
    from hf_mote import ablate_experts, load_organism

    organism = load_organism("refusal")
    prompts = organism.prompts["train"]["sensitive"][:2]
    ranking = ablate_experts(
        organism.model, organism.tokenizer, prompts, "I am sorry, but I cannot talk about that.",
        [organism.answers[prompt] for prompt in prompts], experts=organism.planted, resamples=0,
        progress=False,
    )
    assert ranking.rows(1)[0].score > 0
    ```
    """
    check_resampling("ablate_experts", confidence, resamples, seed)
    preference = Preference(
        "ablate_experts",
        model,
        Chat(tokenizer, system_prompt, chat_template_kwargs),
        prompts,
        response=response,
        baseline_response=baseline_response,
        logit_score=logit_score,
        batch_size=batch_size,
    )
    grouped = checked_groups("ablate_experts.groups", groups, preference.num_prompts)
    knockout = Knockout(preference)
    tried = knockout.rows_of(experts)
    there = preference.restrict(knockout.gains, positions)
    knockout.folder = preference.folder(run_folder, **there)
    with (
        attach_gains(knockout.routed, knockout.gains),
        progress_bar(total=len(tried) + 1, desc="ablating", disable=not progress) as bar,
    ):
        whole = knockout.values([])
        bar.update()
        columns = []
        for pair in tried:
            columns.append(knockout.values([pair]))
            bar.update()
    # Pairs of "with" and "without" for each prompt; the tried experts form one layer.
    without = torch.stack(columns, dim=1)[:, None]
    units, sides = paired_groups(torch.cat([whole[:, None, None].expand_as(without), without]).numpy(), grouped)
    found = contrast(
        units,
        sides,
        rest="paired",
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    return ExpertRanking(
        layers=knockout.routed.layers,
        method="ablation",
        target=preference.name,
        confidence=found.confidence,
        fingerprint=knockout.routed.fingerprint,
        provenance={
            "prompts": len(whole),
            "unit": preference.unit,
            "experts": len(tried),
            **there,
            **({} if grouped is None else {"compared": f"{max(grouped) + 1} groups of prompts"}),
            **({} if found.permutations is None else {"permutations": found.permutations}),
        },
        least_p=found.least_p,
        **grids_of(found, tried, knockout.shape),
    )
