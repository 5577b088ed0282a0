"""`ftri`: prompts -> responses -> classes -> activation maps, the paper's pipeline in one call.

Functional token resonance imaging runs prompts through the model, sorts its responses into classes, and compares the
experts that the prompts of each class visited (Dahlke et al., arXiv 2502.11096).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import ConfigError, DataError, UnsupportedError, whole
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.chat import Prompt
from hf_mote.generation.decoding import answer_text, check_seed, seeded
from hf_mote.generation.prompts import checked_prompts, prompt_text
from hf_mote.generation.recording_engine import RecordingEngine
from hf_mote.generation.responses import batches_of, respond
from hf_mote.hub import public_name
from hf_mote.judges.judge import Judge, check_judge, classify
from hf_mote.processes import gathered, place_among_processes
from hf_mote.progress import progress_bar
from hf_mote.ranking.imaging.collected import Collected
from hf_mote.ranking.imaging.engine import image_with_engine
from hf_mote.ranking.imaging.result import FTRIResult
from hf_mote.ranking.imaging.run_folder import ExpectedBatch, ImagedBatch, read_batch, write_batch
from hf_mote.ranking.imaging.scopes import ImagingScope
from hf_mote.routing.recording.record import RoutingRecord
from hf_mote.routing.sites.fingerprint import SAMPLED
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.runs.folder import RunFolder, digest_of
from hf_mote.runs.identity import model_settings, plain

__all__ = ["ftri"]


def ftri(
    model: PreTrainedModel | RecordingEngine,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    scope: str = "prompt",
    thinking_tokens: tuple[int, int] | None = None,
    repeats: int = 1,
    seed: int = 0,
    run_folder: str | os.PathLike[str] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> FTRIResult:
    """Run prompts, sort the responses into classes, and map the experts that each class's prompts visited.

    Args:
        model (`PreTrainedModel` or `RecordingEngine`):
            A mixture-of-experts language model; left as it is. Or an engine that serves one and records its routing,
            such as [`VLLMEngine`]: scopes are then `"prompt"`, `"generation"` and `"all"`, there is no run folder,
            and of `generate_kwargs` it takes `do_sample`, `temperature`, `top_p` and `top_k`.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer. A chat template is applied if it has one.
        prompts (`Sequence[str]` or chats):
            The prompts.
        judge (`Callable`):
            `response -> label` or `(prompt, response) -> label`, such as [`RefusalJudge`]. One with an attribute
            `needs_special_tokens` that is true sees responses with their special tokens, such as the marks of
            thinking, which the result then contains; otherwise they are left out.
        scope (`str`, *optional*, defaults to `"prompt"`):
            Tokens to count: `"prompt"`, all prompt tokens, chat template included (the paper's); `"last"`, the last of
            them; `"first:8"`, the first 8, or as many as the number says; `"user"`, those of the user's own text;
            `"generation"`; `"all"`; `"thinking"` or `"answer"`.
        thinking_tokens (`tuple[int, int]`, *optional*):
            Ids of the tokens that open and close the thinking, for the last two scopes.
        repeats (`int`, *optional*, defaults to 1):
            How often each prompt is run, if responses are sampled. Rankings average over the runs of a prompt that
            fall into the same class, so that a prompt counts once; one that is given twice does, too.
        seed (`int`, *optional*, defaults to 0):
            Seed of sampled responses, batch by batch; the caller's random state does not change.
        run_folder (`str` or `os.PathLike`, *optional*):
            Where results are kept as they come. A killed run continues from there, with the same result. A folder of
            other settings is refused: other prompts, another dtype, other weights (see [`weights_digest`] for how they
            are compared), another generation config, other interventions attached.
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
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        [`FTRIResult`].

    Raises:
        [`DataError`]: if there are no prompts, one has no token, the judge fails, or routing weights are not finite.
        [`UnknownNameError`]: if there is no such scope, or the chat template does not read a name that it is given.
        [`ConfigError`]: if a number is out of range, a scope lacks its tokens, or the chat template fails.
        [`ModelMismatchError`]: if `run_folder` is that of a run with other settings.
        [`UnsupportedError`]: if the model has no routed experts that the table knows, or, with a run folder, something
            is attached to it or given to `generate` that cannot be compared with a later run's, such as a function.

    Under `accelerate launch` the batches are distributed among the processes, and all get the same result.

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
    decoding = Decoding(max_new_tokens, generate_kwargs, batch_size, seed)
    check_seed("ftri.seed", seed)
    whole("ftri.repeats", repeats, least=1)
    imaged_scope = ImagingScope(scope, thinking_tokens)
    settings = decoding.settings(tokenizer)
    if repeats > 1 and not settings["do_sample"]:
        raise ConfigError(
            "ftri.repeats",
            "greedy decoding gives the same response every time",
            got=repeats,
            fix='Sample, with generate_kwargs={"do_sample": True}, or leave repeats out.',
        )
    chat = Chat(tokenizer, system_prompt, chat_template_kwargs)
    encoded = chat.encode(asked, "ftri.prompts")
    marks = chat.user_text(asked) if imaged_scope.needs_user_text else None
    rows = [index for index in range(len(asked)) for _ in range(repeats)]
    if not isinstance(model, torch.nn.Module) and isinstance(model, RecordingEngine):
        if run_folder is not None:
            raise UnsupportedError("ftri.run_folder", "an engine's weights cannot be compared with a later run's")
        return image_with_engine(
            model,
            tokenizer,
            asked,
            encoded,
            rows,
            judge,
            scope=scope,
            seed=seed,
            batch_size=batch_size,
            settings=settings,
            prompt_index=_prompt_index(encoded, rows),
            progress=progress,
        )
    routed = RoutedModel(model)
    batches = batches_of([encoded[index] for index in rows], batch_size)
    folder = None
    if run_folder is not None:
        identity = {
            # Without its sample of weights, which depends on their device; all are digested below.
            "fingerprint": {key: value for key, value in routed.fingerprint.items() if key != SAMPLED},
            "scope": scope,
            "seed": seed,
            "batch_size": batch_size,
            "repeats": repeats,
        }
        identity |= {
            "prompts_sha256": digest_of([encoded, marks]),
            **model_settings("ftri.run_folder", model, settings),
        }
        identity |= {"chat_template_kwargs": plain("chat_template_kwargs", dict(chat.template_kwargs or {}))}
        folder = RunFolder(
            run_folder, {**identity, "thinking_tokens": None if thinking_tokens is None else [*thinking_tokens]}
        )
    process, num_processes = place_among_processes(model.device)
    mine = range(process, len(batches), num_processes)
    done: dict[int, ImagedBatch] = {}  # by several processes; a single one stores batches directly
    found = Collected(len(rows), run_folder)
    with (
        RoutingRecord(
            routed,
            phase=imaged_scope.phase,
            eos_token_id=settings.get("eos_token_id"),
            thinking_tokens=imaged_scope.thinking_tokens,
        ) as record,
        progress_bar(
            total=sum(len(batches[number]) for number in mine), desc="imaging", disable=not progress or process > 0
        ) as bar,
    ):
        record.token_filter = imaged_scope.only
        for number in mine:
            indices = [rows[position] for position in batches[number]]
            prompts_here = [encoded[index] for index in indices]
            batch = None
            if folder is not None:
                expected = ExpectedBatch(
                    prompt_lengths=[len(tokens) for tokens in prompts_here],
                    counts_prompts=scope in ("all", "prompt"),
                    top_k=[site.top_k for site in routed.sites],
                    num_experts=routed.shape[1],
                    vocab_size=getattr(model.config.get_text_config(), "vocab_size", None),
                    max_new_tokens=int(settings["max_new_tokens"]),
                )
                batch = read_batch(folder, number, expected)
            if batch is None:
                imaged_scope.begin(prompts_here, None if marks is None else [marks[index] for index in indices])
                with seeded(seed, number, settings["do_sample"], model.device):
                    answers = respond(model, prompts_here, settings, record.check_generated)
                counts, weights, num_tokens = record.stacked()
                record.forget()
                if not bool(weights.isfinite().all()):
                    raise DataError(
                        "ftri",
                        "a router returned weights that are not finite",
                        got=f"prompts {sorted(indices)}",
                        fix="Load the model in bfloat16 or float32: float16 can overflow.",
                    )
                batch = ImagedBatch(answers, counts.float(), weights.float(), num_tokens.float())
                if folder is not None:
                    write_batch(folder, number, batch)
            if num_processes == 1:
                found.put(batches[number], batch)
            else:
                done[number] = batch
            bar.update(len(indices))
    for number, batch in gathered(done, num_processes).items():
        found.put(batches[number], batch)
    texts = [prompt_text(asked[index]) for index in rows]
    special_tokens = bool(getattr(judge, "needs_special_tokens", False))
    responses = answer_text(tokenizer, found.tokens, special_tokens=special_tokens)
    return FTRIResult(
        prompts=texts,
        responses=responses,
        classes=classify(judge, [asked[index] for index in rows], responses),
        counts=found.counts,
        weights=found.weights,
        num_tokens=found.num_tokens,
        layers=routed.layers,
        scope=scope,
        fingerprint=routed.fingerprint,
        base_model=public_name(model.config.name_or_path),
        prompt_index=_prompt_index(encoded, rows),
        response_tokens=found.tokens,
    )


def _prompt_index(encoded: Sequence[Sequence[int]], rows: Sequence[int]) -> torch.Tensor | None:
    """Return for each run the first prompt that is the same, token for token; `None` where every prompt runs once."""
    first: dict[tuple[int, ...], int] = {}
    index = [first.setdefault(tuple(encoded[row]), row) for row in rows]
    return torch.tensor(index) if len(set(index)) < len(index) else None
