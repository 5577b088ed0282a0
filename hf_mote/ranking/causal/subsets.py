"""Removes random subsets of experts and regresses the score on them: a cheap second opinion.

Removing experts one at a time misses those that replace each other. In random subsets they are sometimes removed
together, and each one's share of the fall is estimated. It takes only forward passes, one for each subset, for any
number of experts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import real, whole
from hf_mote.generation.asking import Chat
from hf_mote.generation.chat import Prompt
from hf_mote.mote.gains import attach_gains
from hf_mote.progress import progress_bar
from hf_mote.ranking.causal.knockout import Knockout, Pair
from hf_mote.ranking.causal.preference import LogitScore, Preference
from hf_mote.ranking.expert_ranking import ExpertRanking

__all__ = ["random_subsets"]

_RIDGE = 0.1  # of the mean squared length of a subset, as a row of zeros and ones


def random_subsets(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    response: str | Sequence[str] | None = None,
    baseline_response: str | Sequence[str] | None = None,
    *,
    logit_score: LogitScore | None = None,
    num_subsets: int = 256,
    share: float = 0.1,
    batch_size: int = 8,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    run_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> ExpertRanking:
    """Rank experts by how much lower the score of a response is when they are among the removed ones.

    In each run a random share of every layer's experts is out (their weight is 0, nothing is scaled). The mean score
    is then regressed on which experts were out; an expert's score is what being out takes away, in the mean over what
    else is.

    Args:
        model (`PreTrainedModel`): A mixture-of-experts language model in evaluation mode; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        prompts (`Sequence[str]` or chats): Prompts to which the model gives the response, say.
        response (`str` or `Sequence[str]`, *optional*): As in [`attribute_experts`]; so are the arguments not listed.
        baseline_response (`str` or `Sequence[str]`, *optional*): See there.
        logit_score (`Callable`, *optional*): See there; need not be differentiable.
        num_subsets (`int`, *optional*, defaults to 256): Runs over all prompts.
        share (`float`, *optional*, defaults to 0.1): Of each layer's experts that are out, one at least; above 0 and
            at most 0.5. A larger share removes more replacements at once, and breaks more.
        batch_size (`int`, *optional*, defaults to 8): Prompts that run together.
        system_prompt (`str`, *optional*): First message of every prompt that is a text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): See [`attribute_experts`].
        seed (`int`, *optional*, defaults to 0): Of the subsets.
        run_folder (`str` or `os.PathLike`, *optional*): See [`attribute_experts`].
        progress (`bool`, *optional*, defaults to `True`): Show a progress bar.

    Returns:
        [`ExpertRanking`] with method `"random subsets"`; scores are in nats, without p values.

    Raises:
        [`ConfigError`]: if a number is out of range, or neither both responses nor a score are given.
        [`DataError`]: if prompts or responses are malformed, or a score is not finite.

    Example:

    ```python
    from hf_mote import load_organism
    from hf_mote.ranking.causal.subsets import random_subsets

    organism = load_organism("refusal")
    prompts = organism.prompts["train"]["sensitive"][:2]
    ranking = random_subsets(
        organism.model, organism.tokenizer, prompts, "I am sorry, but I cannot talk about that.",
        [organism.answers[prompt] for prompt in prompts], num_subsets=8, progress=False,
    )
    assert len(ranking) == 256
    ```

    Source: regression on random ablations as in Ilyas et al. (2022), "Datamodels" (arXiv 2202.00622), there of
    training examples.
    """
    where = "random_subsets"
    whole(f"{where}.num_subsets", num_subsets, least=2)
    real(f"{where}.share", share, above=0, most=0.5)
    whole(f"{where}.seed", seed)
    preference = Preference(
        where,
        model,
        Chat(tokenizer, system_prompt, chat_template_kwargs),
        prompts,
        response=response,
        baseline_response=baseline_response,
        logit_score=logit_score,
        batch_size=batch_size,
    )
    knockout = Knockout(preference, preference.folder(run_folder, share=share, seed=seed))
    rng = np.random.default_rng(seed)
    out = np.zeros((num_subsets, *knockout.shape), dtype=bool)
    for row, site in enumerate(knockout.sites):
        number = max(1, round(share * site.num_experts))
        for subset in range(num_subsets):
            out[subset, row, rng.choice(site.num_experts, number, replace=False)] = True
    scores = np.zeros(num_subsets)
    with (
        attach_gains(knockout.routed, knockout.gains),
        progress_bar(total=num_subsets, desc="random subsets", disable=not progress) as bar,
    ):
        for subset in range(num_subsets):
            without: list[Pair] = [(int(row), int(expert)) for row, expert in np.argwhere(out[subset])]
            scores[subset] = float(knockout.values(without).mean())
            bar.update()
    columns = out.reshape(num_subsets, -1).astype(np.float64)
    columns -= columns.mean(axis=0)
    kernel = columns @ columns.T
    kernel[np.diag_indices_from(kernel)] += _RIDGE * float((columns**2).sum()) / num_subsets
    effect = -(columns.T @ np.linalg.solve(kernel, scores - scores.mean()))
    return ExpertRanking(
        score=torch.from_numpy(effect.reshape(knockout.shape)),
        layers=knockout.routed.layers,
        method="random subsets",
        target=preference.name,
        fingerprint=knockout.routed.fingerprint,
        provenance={
            "prompts": preference.num_prompts,
            "unit": preference.unit,
            "subsets": num_subsets,
            "share": share,
        },
    )
