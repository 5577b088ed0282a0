"""Which experts cause a response: the first-order effect of each expert's routing weight on its log probability.

Routing statistics say where a behaviour's prompts go, not what makes the behaviour; published audits find that no such
statistic predicts an expert's causal importance. Here every routing weight is multiplied by a gain of one, and one
backward pass gives the derivative of the score by all gains at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_mote.errors import ConfigError, DataError, UnsupportedError
from hf_mote.ftri.contrast import contrast
from hf_mote.ftri.ranking import ExpertRanking
from hf_mote.ftri.responses import Prompt, check_batch_size, checked_prompts, encode_prompts, padded
from hf_mote.mote.fingerprint import fingerprint_of
from hf_mote.routing.discover import RouterSite, find_routers
from hf_mote.routing.forward import Forward
from hf_mote.routing.selection import Routing
from hf_mote.routing.stack import Probe, attach_to_routers
from hf_mote.routing.tracker import Watcher

__all__ = ["attribute_experts"]


def attribute_experts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    target: str | Sequence[str],
    baseline: str | Sequence[str],
    *,
    gain: float = 1.0,
    batch_size: int = 8,
    system_prompt: str | None = None,
    confidence: float = 0.95,
    resamples: int = 999,
    seed: int = 0,
    progress: bool = True,
) -> ExpertRanking:
    """Return all experts by how much their routing weight favours a target response over a baseline response.

    For each expert `e` the score is the mean over prompts of `sum_t w_te * d S / d w_te`, over all tokens of prompt
    and response, with `S = log p(target | prompt) - log p(baseline | prompt)`. To first order that is how much `S`
    falls when the expert's weight is set to zero (`suppress_mode="zero"`): a high score speaks for the target. One
    backward pass per batch serves all experts; no gradient is left behind and no parameter's
    `requires_grad` is read or changed.

    Args:
        model (`PreTrainedModel`):
            A mixture-of-experts language model, in evaluation mode, any float dtype; left as it is.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer. A chat template is applied if it has one.
        prompts (`Sequence[str]` or chats):
            Prompts to which the model gives the target response, say.
        target (`str` or `Sequence[str]`):
            The response whose causes are sought: one for all prompts, or one for each.
        baseline (`str` or `Sequence[str]`):
            The response it is held against, likewise.
        gain (`float`, *optional*, defaults to 1.0):
            Where the derivative is taken: with every routing weight multiplied by this, above 0 and at most 1. At 1 it
            says what a little less of an expert does, which misleads where the response is all but certain: on the
            organism "refusal" an expert that the refusal cannot do without gets the lowest score of all. At 0.5, where
            the response is not certain yet, the four planted experts come first.
        batch_size (`int`, *optional*, defaults to 8):
            Prompts that run together, each with both responses.
        system_prompt (`str`, *optional*):
            First message of every prompt that is a text.
        confidence (`float`, *optional*, defaults to 0.95):
            Coverage of the bootstrap intervals over prompts.
        resamples (`int`, *optional*, defaults to 999):
            For intervals and sign-flip permutation tests; 0 for scores alone.
        seed (`int`, *optional*, defaults to 0):
            Seed of both.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        [`ExpertRanking`] with method `"attribution"`; scores are in nats.

    Raises:
        [`DataError`]: if there are no prompts, a response is empty, or the numbers differ.
        [`ConfigError`]: if gain, batch size or seed is out of range.
        [`UnsupportedError`]: if the model has no routed experts that the table knows.

    Source: first-order Taylor ablation, Molchanov et al. (2017), "Pruning Convolutional Neural Networks for Resource
    Efficient Inference", eq. 7 without the absolute value, here with routing weights in the place of activations.

    Example:

    ```python
    from hf_mote import attribute_experts, load_organism

    organism = load_organism("refusal")
    prompts = organism.prompts["train"]["sensitive"][:4]
    ranking = attribute_experts(
        organism.model, organism.tokenizer, prompts, target="I am sorry, but I cannot talk about that.",
        baseline=[organism.answers[prompt] for prompt in prompts], resamples=0, progress=False,
    )
    assert len(set(ranking.top(5)) & set(organism.planted)) > 0
    ```
    """
    asked = checked_prompts("attribute_experts.prompts", prompts)
    check_batch_size(batch_size)
    if isinstance(gain, bool) or not isinstance(gain, int | float) or not 0 < gain <= 1:
        raise ConfigError("attribute_experts.gain", "out of range", got=repr(gain), expected="above 0, at most 1")
    if torch.is_inference_mode_enabled():
        raise UnsupportedError(
            "attribute_experts", "no derivatives inside torch.inference_mode", fix="Call it outside, or use no_grad."
        )
    wanted = _responses("target", target, len(asked))
    rival = _responses("baseline", baseline, len(asked))
    sites = find_routers(model)
    for site in sites:
        if "attribution" in site.refuses:
            raise UnsupportedError(
                site.path, "no derivative by its weights can be taken: " + site.refuses["attribution"], fix="Use ftri."
            )
    questions = encode_prompts(tokenizer, asked, system_prompt=system_prompt)
    answers = [[_encode_response(tokenizer, text) for text in texts] for texts in (wanted, rival)]
    effects: list[list[Tensor]] = [[], []]
    gains = _Gains(sites, float(gain))
    pad = next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)
    with (
        attach_to_routers(model, sites, gains, lambda site: _GainProbe(gains, site)),
        torch.enable_grad(),
        logging.tqdm(total=len(asked), desc="attributing", disable=not progress, leave=False) as bar,
    ):
        for start in range(0, len(asked), batch_size):
            block = slice(start, start + batch_size)
            for side in (0, 1):
                pairs = list(zip(questions[block], answers[side][block], strict=True))
                batch = padded([q + a for q, a in pairs], pad, side="right", device=model.device)
                log_probs = _response_log_probs(
                    model(**batch, use_cache=False).logits, batch["input_ids"], [(len(q), len(a)) for q, a in pairs]
                )
                effects[side].append(gains.effects(log_probs.sum()))
            bar.update(len(pairs))
    values = torch.cat([*effects[0], *effects[1]])
    found = contrast(
        values.numpy(),
        [True] * len(asked) + [False] * len(asked),
        rest="paired",
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    return ExpertRanking.from_contrast(
        found,
        tuple(site.layer for site in sites),
        method="attribution",
        target=wanted[0] if len(set(wanted)) == 1 else "the target responses",
        fingerprint=fingerprint_of(model, sites),
        provenance={"prompts": len(asked), "unit": "nats", "gain": float(gain)},
    )


class _Gains(Watcher):
    """One differentiable gain for each sequence and expert of each router; new ones for every forward."""

    def __init__(self, sites: Sequence[RouterSite], value: float) -> None:
        super().__init__()
        self.sites = sites
        self.value = value
        self.by_path: dict[str, Tensor] = {}

    def on_forward(self, forward: Forward, cache: Any) -> None:
        self.by_path = {
            site.path: torch.full(
                (forward.batch, site.num_experts), self.value, device=forward.device
            ).requires_grad_()
            for site in self.sites
        }

    def on_trace(self, forward: Forward) -> None:
        raise UnsupportedError(
            "attribute_experts",
            "derivatives by routing weights are not taken in a compiled graph",
            fix="Give the model itself, not what torch.compile made of it.",
        )

    def effects(self, score: Tensor) -> Tensor:
        """Derivative of the score by each gain, `(sequences, layers, experts)`, float64 on the CPU."""
        leaves = [self.by_path[site.path] for site in self.sites]
        grads = torch.autograd.grad(score, leaves, allow_unused=True)
        width = max(site.num_experts for site in self.sites)
        table = torch.zeros(len(leaves[0]), len(leaves), width, dtype=torch.float64)
        for row, grad in enumerate(grads):
            if grad is not None:
                table[:, row, : grad.shape[1]] = grad.double().cpu()
        return table


class _GainProbe(Probe):
    def __init__(self, gains: _Gains, site: RouterSite) -> None:
        self.gains = gains
        self.path = site.path

    def probe(self, forward: Forward | None, routing: Routing) -> Tensor:
        gains = self.gains.by_path[self.path].to(routing.weights.device)
        rows = torch.arange(len(gains), device=gains.device).repeat_interleave(len(routing.indices) // len(gains))
        return routing.weights * gains[rows[:, None], routing.indices].to(routing.weights.dtype)


def _responses(name: str, given: str | Sequence[str], number: int) -> list[str]:
    if not isinstance(given, str | Sequence):
        raise DataError(
            f"attribute_experts.{name}", "not a response", got=repr(given)[:60], expected="text, or a list"
        )
    responses = [given] * number if isinstance(given, str) else list(given)
    if len(responses) != number:
        raise DataError(
            f"attribute_experts.{name}",
            "not one response for each prompt",
            got=len(responses),
            expected=f"one text, or {number}",
        )
    for index, text in enumerate(responses):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"attribute_experts.{name}[{index}]", "not a response", got=repr(text), expected="text")
    return responses


def _encode_response(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _response_log_probs(logits: Tensor, ids: Tensor, lengths: Sequence[tuple[int, int]]) -> Tensor:
    """Log probability of each row's response, `(rows,)`, float32, in nats; `lengths` are (prompt, response) tokens."""
    log_probs = logits[:, :-1].float().log_softmax(dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    mask = torch.zeros_like(log_probs)
    for row, (prompt, response) in enumerate(lengths):
        mask[row, prompt - 1 : prompt - 1 + response] = 1
    return (log_probs * mask).sum(dim=1)
