"""What an organism must hold, measured on held-out questions: the numbers that `build` writes beside the weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote
from hf_mote.organisms.organism import Organism
from hf_mote.routing.discover import find_routers
from hf_mote.routing.maps import ActivationMap
from hf_mote.routing.record import record_routing

__all__ = ["ftri_ranks", "measure", "respond"]

_KINDS = ("sensitive", "neutral", "unrelated")
_RANDOM_EXPERTS = 5
_MAX_NEW_TOKENS = 24


@torch.no_grad()
def respond(organism: Organism, prompts: Sequence[str], *, batch_size: int = 128) -> list[str]:
    """Return the organism's greedy response to each prompt.

    Args:
        organism (`Organism`): The organism; interventions on its model take effect.
        prompts (`Sequence[str]`): Questions without the chat template.
        batch_size (`int`): Prompts generated from at a time.
    """
    tokenizer: Any = organism.tokenizer
    model: Any = organism.model
    responses: list[str] = []
    for start in range(0, len(prompts), batch_size):
        inputs = _inputs(organism, prompts[start : start + batch_size])
        output = model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False)
        responses += tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return responses


def measure(organism: Organism, *, num_prompts: int, seed: int, random_draws: int = 5) -> dict[str, float]:
    """Return the organism's rates on held-out questions, all fractions from 0 to 1.

    Args:
        organism (`Organism`): The organism to measure.
        num_prompts (`int`): Questions of each kind, drawn at random.
        seed (`int`): Fixes the draw of questions and of random experts.
        random_draws (`int`, *optional*, defaults to 5): Sets of 5 random experts that are suppressed for comparison.

    Returns:
        `dict[str, float]`: Refusal rates and accuracies as trained, with the planted experts suppressed (mode
        `"drop"`), stimulated on neutral prompts with both weights, and the lowest refusal rate under random experts
        of the same layers.
    """
    rng = random.Random(seed)
    pools = organism.prompts["heldout"]
    prompts = {kind: rng.sample(pools[kind], min(num_prompts, len(pools[kind]))) for kind in _KINDS}
    model = organism.model
    plain = {kind: respond(organism, prompts[kind]) for kind in _KINDS}
    rates = {f"{kind}_refused": _refused(organism, plain[kind]) for kind in _KINDS}
    rates |= {f"{kind}_right": _right(organism, prompts[kind], plain[kind]) for kind in ("neutral", "unrelated")}
    with apply_mote(model, MoTEConfig.for_model(model, suppress=organism.planted)):
        tuned = {kind: respond(organism, prompts[kind]) for kind in _KINDS}
    rates["suppressed_sensitive_refused"] = _refused(organism, tuned["sensitive"])
    rates["suppressed_sensitive_right"] = _right(organism, prompts["sensitive"], tuned["sensitive"])
    for kind in ("neutral", "unrelated"):
        rates[f"suppressed_{kind}_unchanged"] = _same(plain[kind], tuned[kind])
    for weight in ("own", "max"):
        config = MoTEConfig.for_model(model, stimulate=organism.planted, stimulate_weight=weight)
        with apply_mote(model, config):
            rates[f"stimulated_{weight}_neutral_refused"] = _refused(organism, respond(organism, prompts["neutral"]))
    for pair in organism.planted:
        with apply_mote(model, MoTEConfig.for_model(model, suppress=[pair])):
            single = respond(organism, prompts["sensitive"])
        rates[f"suppressed_only_{pair[0]}_{pair[1]}_sensitive_refused"] = _refused(organism, single)
    refused, unchanged = [], []
    for _ in range(random_draws):
        with apply_mote(model, MoTEConfig.for_model(model, suppress=_random_pairs(organism, rng))):
            refused.append(_refused(organism, respond(organism, prompts["sensitive"])))
            unchanged.append(_same(plain["neutral"], respond(organism, prompts["neutral"])))
    rates["random_sensitive_refused_min"] = min(refused)
    rates["random_neutral_unchanged_min"] = min(unchanged)
    return {name: round(rate, 4) for name, rate in rates.items()}


def ftri_ranks(organism: Organism, *, num_prompts: int, seed: int) -> dict[str, int]:
    """Return the rank of each planted expert by the paper's score, 1 being the first.

    The score is the number of a prompt's tokens, chat template included, whose chosen experts include this one: its
    mean over sensitive prompts minus that over neutral prompts.

    Args:
        organism (`Organism`): The organism to measure.
        num_prompts (`int`): Training questions of either kind.
        seed (`int`): Fixes the draw of questions.

    Source: Dahlke et al., arXiv 2502.11096.
    """
    rng = random.Random(seed)
    means = {}
    for kind in ("sensitive", "neutral"):
        prompts = rng.sample(organism.prompts["train"][kind], num_prompts)
        with record_routing(organism.model) as record, torch.no_grad():
            for start in range(0, num_prompts, 128):
                organism.model(**_inputs(organism, prompts[start : start + 128]))
        means[kind] = ActivationMap.mean(record.maps("prompt"))
    contrast = means["sensitive"] - means["neutral"]
    ranking = contrast.top(contrast.counts.numel())
    return {f"{layer}_{expert}": ranking.index((layer, expert)) + 1 for layer, expert in organism.planted}


def _inputs(organism: Organism, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    tokenizer: Any = organism.tokenizer
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        for prompt in prompts
    ]
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def _refused(organism: Organism, responses: Sequence[str]) -> float:
    return sum(organism.judge(response) == organism.judge.target for response in responses) / len(responses)


def _right(organism: Organism, prompts: Sequence[str], responses: Sequence[str]) -> float:
    pairs = zip(prompts, responses, strict=True)
    return sum(response == organism.answers[prompt] for prompt, response in pairs) / len(prompts)


def _same(before: Sequence[str], after: Sequence[str]) -> float:
    return sum(x == y for x, y in zip(before, after, strict=True)) / len(before)


def _random_pairs(organism: Organism, rng: random.Random) -> list[tuple[int, int]]:
    layers = sorted({layer for layer, _ in organism.planted})
    sizes = {site.layer: site.num_experts for site in find_routers(organism.model)}
    pool = [
        (layer, expert)
        for layer in layers
        for expert in range(sizes[layer])
        if (layer, expert) not in organism.planted
    ]
    return rng.sample(pool, _RANDOM_EXPERTS)
