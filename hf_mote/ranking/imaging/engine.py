"""`image_with_engine`: imaging through an inference engine, which counts experts where the routers run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from hf_mote.errors import DataError, UnsupportedError
from hf_mote.generation.chat import Prompt
from hf_mote.generation.decoding import answer_text, engine_sampling
from hf_mote.generation.prompts import prompt_text
from hf_mote.generation.recording_engine import RecordingEngine
from hf_mote.hub import public_name
from hf_mote.judges.judge import Judge, classify
from hf_mote.progress import progress_bar
from hf_mote.ranking.imaging.collected import Collected
from hf_mote.ranking.imaging.result import FTRIResult

__all__ = ["image_with_engine"]


def image_with_engine(
    engine: RecordingEngine,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Prompt],
    encoded: Sequence[Sequence[int]],
    rows: Sequence[int],
    judge: Judge,
    *,
    scope: str,
    seed: int,
    batch_size: int,
    settings: Mapping[str, Any],
    prompt_index: Tensor | None,
    progress: bool,
) -> FTRIResult:
    """Return what [`ftri`] returns, through an engine.

    Args:
        engine (`RecordingEngine`): The engine.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        asked (`Sequence[Prompt]`): The prompts.
        encoded (`Sequence[Sequence[int]]`): Their tokens.
        rows (`Sequence[int]`): The prompt of each run.
        judge (`Judge`): Labels the responses.
        scope (`str`): What to count.
        seed (`int`): Of sampled responses.
        batch_size (`int`): Prompts that are handed over together.
        settings (`Mapping`): The arguments of `generate`.
        prompt_index (`torch.Tensor`, *optional*): For each run the first prompt that is the same.
        progress (`bool`): Whether to show a progress bar.

    Raises:
        [`UnsupportedError`]: if an engine cannot tell the scope's tokens apart.
        [`ConfigError`]: if `generate` is asked for what engines call otherwise.
    """
    if scope not in ("prompt", "generation", "all"):
        fix = "Use one of these, or image in transformers."
        raise UnsupportedError(
            "ftri.scope", "an engine counts whole phases", got=scope, expected="prompt, generation or all", fix=fix
        )
    sampling = engine_sampling(settings)
    found = Collected(len(rows))
    with progress_bar(total=len(rows), desc="imaging", disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            here = [encoded[index] for index in rows[start : start + batch_size]]
            batch = engine.image(
                here,
                phase=scope,
                max_new_tokens=settings["max_new_tokens"],
                seed=seed + start if sampling is not None else None,
                sampling=sampling,
            )
            if not bool(batch.weights.isfinite().all()):
                raise DataError("ftri", "a router returned weights that are not finite", got=f"prompts from {start}")
            found.put(range(start, start + len(here)), batch)
            bar.update(len(here))
    special_tokens = bool(getattr(judge, "needs_special_tokens", False))
    responses = answer_text(tokenizer, found.tokens, special_tokens=special_tokens)
    return FTRIResult(
        prompts=[prompt_text(asked[index]) for index in rows],
        responses=responses,
        classes=classify(judge, [asked[index] for index in rows], responses),
        counts=found.counts,
        weights=found.weights,
        num_tokens=found.num_tokens,
        layers=tuple(engine.fingerprint["layers"]),
        scope=scope,
        fingerprint=engine.fingerprint,
        base_model=public_name(engine.base_model),
        prompt_index=prompt_index,
        response_tokens=found.tokens,
    )
