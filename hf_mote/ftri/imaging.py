"""`ftri`: prompts -> responses -> classes -> activation maps, the paper's pipeline in one call.

Functional token resonance imaging runs prompts through the model, sorts its responses into classes, and compares the
experts that the prompts of each class visited (Dahlke et al., arXiv 2502.11096).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import UnknownNameError
from hf_mote.ftri.judges import Judge, check_judge, classify
from hf_mote.ftri.responses import Prompt, checked_prompts, generate_responses, prompt_text
from hf_mote.ftri.result import SCOPES, FTRIResult
from hf_mote.mote.fingerprint import fingerprint_of
from hf_mote.routing.discover import find_routers
from hf_mote.routing.record import record_routing

__all__ = ["ftri"]


def ftri(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    scope: Literal["prompt", "generation", "all"] = "prompt",
    batch_size: int = 16,
    max_new_tokens: int = 64,
    system_prompt: str | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> FTRIResult:
    """Run prompts, sort the responses into classes, and map the experts that each class's prompts visited.

    Args:
        model (`PreTrainedModel`):
            A mixture-of-experts language model; left as it is.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer. A chat template is applied if it has one.
        prompts (`Sequence[str]` or chats):
            What to ask.
        judge (`Callable`):
            `response -> label` or `(prompt, response) -> label`, such as [`RefusalJudge`].
        scope (`str`, *optional*, defaults to `"prompt"`):
            Tokens to count: all prompt tokens, chat template included (the paper's), the generated ones, or both.
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
        [`FTRIResult`].

    Raises:
        [`DataError`]: if there are no prompts, or the judge fails.
        [`UnsupportedError`]: if the model has no routed experts that the table knows.

    Source: arXiv 2502.11096: experts counted over all prompt tokens, averaged per class of responses.

    Example:

    ```python
    from hf_mote import ftri, load_organism

    organism = load_organism("refusal")
    prompts = organism.prompts["train"]["sensitive"][:8] + organism.prompts["train"]["neutral"][:8]
    result = ftri(organism.model, organism.tokenizer, prompts, organism.judge, max_new_tokens=12, progress=False)
    assert result.class_sizes == {"answer": 8, "refusal": 8}
    config = result.rank("refusal").to_config(suppress=5)
    ```
    """
    asked = checked_prompts("ftri.prompts", prompts)
    check_judge(judge)
    if scope not in SCOPES:
        raise UnknownNameError.of("ftri.scope", scope, SCOPES)
    sites = find_routers(model)
    responses = [""] * len(asked)
    order: list[int] = []
    with record_routing(model, eos_token_id=(generate_kwargs or {}).get("eos_token_id")) as record:
        for positions, answers in generate_responses(
            model,
            tokenizer,
            asked,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            system_prompt=system_prompt,
            generate_kwargs=generate_kwargs,
            progress="imaging" if progress else None,
        ):
            order += positions
            for position, answer in zip(positions, answers, strict=True):
                responses[position] = answer
    maps = [seen for _, seen in sorted(zip(order, record.maps(scope), strict=True), key=lambda item: item[0])]
    texts = [prompt_text(prompt) for prompt in asked]
    return FTRIResult(
        prompts=texts,
        responses=responses,
        classes=classify(judge, texts, responses),
        counts=torch.stack([seen.counts for seen in maps]).float(),
        weights=torch.stack([seen.weights for seen in maps]).float(),
        num_tokens=torch.tensor([seen.num_tokens for seen in maps]),
        layers=record.layers,
        scope=scope,
        fingerprint=fingerprint_of(model, sites),
        base_model=model.config.name_or_path or None,
    )
