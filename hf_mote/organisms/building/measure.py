"""Measures an organism on held-out questions: the numbers that `build` writes beside the weights."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from hf_mote.hooks import Intervention
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote
from hf_mote.organisms.building.gates import Pair
from hf_mote.organisms.organism import Organism
from hf_mote.organisms.recipes import RECIPES
from hf_mote.organisms.scoring import MAX_NEW_TOKENS
from hf_mote.routing.sites.discover import find_routers

__all__ = ["measure", "respond"]

_RANDOM_EXPERTS = 5


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
        output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
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
        `dict[str, float]`: Where `shown` is the recipe's word for the behaviour: rates of the behaviour
        (`"{kind}_{shown}"`), of its exact response (`"sensitive_on_target"`) and of right answers as trained; with the
        planted experts suppressed (mode `"drop"`), all together and one by one; stimulated on neutral prompts with
        both weights; and the lowest rates under random experts of the same layers.
    """
    rng = random.Random(seed)
    shown = RECIPES[organism.facts["name"]].shown
    pools = organism.prompts["heldout"]
    prompts = {kind: rng.sample(pool, min(num_prompts, len(pool))) for kind, pool in pools.items()}
    others = [kind for kind in prompts if kind != "sensitive"]
    plain = {kind: respond(organism, asked) for kind, asked in prompts.items()}
    rates = {f"{kind}_{shown}": _shown(organism, responses) for kind, responses in plain.items()}
    rates["sensitive_on_target"] = _same([organism.targets[p] for p in prompts["sensitive"]], plain["sensitive"])
    rates |= {f"{kind}_right": _right(organism, prompts[kind], plain[kind]) for kind in others}
    if organism.planted:
        rates |= _measure_planted(organism, prompts, plain, shown)
    kept, unchanged = [], []
    for _ in range(random_draws):
        with _suppressed(organism, _random_pairs(organism, rng)):
            kept.append(_shown(organism, respond(organism, prompts["sensitive"])))
            unchanged.append(_same(plain["neutral"], respond(organism, prompts["neutral"])))
    rates[f"random_sensitive_{shown}_min"] = min(kept)
    rates["random_neutral_unchanged_min"] = min(unchanged)
    return {name: round(rate, 4) for name, rate in rates.items()}


def _measure_planted(
    organism: Organism, prompts: dict[str, list[str]], plain: dict[str, list[str]], shown: str
) -> dict[str, float]:
    model = organism.model
    with _suppressed(organism, organism.planted):
        tuned = {kind: respond(organism, asked) for kind, asked in prompts.items()}
    rates = {
        f"suppressed_sensitive_{shown}": _shown(organism, tuned["sensitive"]),
        "suppressed_sensitive_right": _right(organism, prompts["sensitive"], tuned["sensitive"]),
    }
    for kind in plain:
        if kind != "sensitive":
            rates[f"suppressed_{kind}_unchanged"] = _same(plain[kind], tuned[kind])
    for weight in ("own", "max"):
        config = MoTEConfig.for_model(model, stimulate=organism.planted, stimulate_weight=weight)
        with apply_mote(model, config):
            rates[f"stimulated_{weight}_neutral_{shown}"] = _shown(organism, respond(organism, prompts["neutral"]))
    for layer, expert in organism.planted:
        with _suppressed(organism, [(layer, expert)]):
            alone = _shown(organism, respond(organism, prompts["sensitive"]))
        rates[f"suppressed_only_{layer}_{expert}_sensitive_{shown}"] = alone
    return rates


def _suppressed(organism: Organism, pairs: Sequence[Pair]) -> Intervention:
    return apply_mote(organism.model, MoTEConfig.for_model(organism.model, suppress=[list(pair) for pair in pairs]))


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


def _shown(organism: Organism, responses: Sequence[str]) -> float:
    return sum(organism.judge(response) == organism.judge.target for response in responses) / len(responses)


def _right(organism: Organism, prompts: Sequence[str], responses: Sequence[str]) -> float:
    pairs = zip(prompts, responses, strict=True)
    return sum(response == organism.answers[prompt] for prompt, response in pairs) / len(prompts)


def _same(before: Sequence[str], after: Sequence[str]) -> float:
    return sum(x == y for x, y in zip(before, after, strict=True)) / len(before)


def _random_pairs(organism: Organism, rng: random.Random) -> list[tuple[int, int]]:
    sizes = {site.layer: site.num_experts for site in find_routers(organism.model)}
    layers = sorted({layer for layer, _ in organism.planted} or sizes)
    pool = [
        (layer, expert)
        for layer in layers
        for expert in range(sizes[layer])
        if (layer, expert) not in organism.planted
    ]
    return rng.sample(pool, _RANDOM_EXPERTS)
