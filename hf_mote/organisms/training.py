"""The base phase of an organism: a small DeepSeek-V3 that learns to answer every question.

Loss falls on answer tokens. Linear read-outs, thrown away afterwards, ask at every token for the region of the place
named so far, or for 'none', at the entrance of all MoE layers but the first: a larger model knows at every token what
it is being asked about, and a router can act only on what is known. They treat all regions alike; which are sensitive
plays no part. Their squared error makes any set of regions as easy to tell apart by one linear row as a single region.

Experts that a behaviour will later be planted in are never selected here. The others are kept balanced by the
selection bias alone (DeepSeek-V3, arXiv 2412.19437, section 2.1.2), and random ones are shut out at every step, with a
smaller `top_k` at times, so that the loss of any single expert, or of one slot, changes no answer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, rms_norm
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedTokenizerFast

from hf_mote.organisms.questions import Question

__all__ = [
    "BANNED",
    "Batch",
    "Example",
    "collate",
    "encode",
    "make_model",
    "response_loss",
    "routers_of",
    "train_base",
]

BANNED = -1e4  # a selection bias that no sigmoid score can make up for
_BALANCE_RATE = 1e-3
_LOGIT_LOSS = 2e-3  # keeps router scores off their limits, so that a later expert can still compete
_UNRELATED_SHARE = 0.25


class Example(NamedTuple):
    """Token ids of prompt and response, where the response starts, where the topic is named, and the topic."""

    ids: list[int]
    response: int
    topic: int
    region: str


class Batch(NamedTuple):
    """Right-padded tensors of shape `(batch, seq)`: ids, and masks of real, response and after-topic tokens."""

    ids: Tensor
    real: Tensor
    response: Tensor
    topic: Tensor


def make_model(vocab_size: int, *, seed: int) -> DeepseekV3ForCausalLM:
    """Return the untrained organism: 1 dense and 4 MoE layers of 64 routed experts, 4 active, and 1 shared."""
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 96,
        "intermediate_size": 256,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 5,
        "first_k_dense_replace": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 48,
        "q_lora_rank": None,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 24,
        "max_position_embeddings": 128,
        "num_nextn_predict_layers": 0,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    torch.manual_seed(seed)
    model = DeepseekV3ForCausalLM(DeepseekV3Config(**settings))
    model.set_experts_implementation("grouped_mm")
    return model


def routers_of(model: DeepseekV3ForCausalLM) -> dict[int, Any]:
    """Return the router of each MoE layer by absolute decoder layer."""
    return {i: layer.mlp.gate for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "gate")}


def encode(tokenizer: PreTrainedTokenizerFast, question: Question, response: str) -> Example:
    """Return `question` in the chat template followed by `response` and the end token.

    The topic is known from the last token of the question's city on; without a city, nowhere.
    """
    messages = [{"role": "user", "content": question.text}]
    prompt: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prompt_ids = tokenizer(prompt).input_ids
    ids = [*prompt_ids, *tokenizer(response).input_ids, tokenizer.eos_token_id]
    if not question.city:
        return Example(ids, len(prompt_ids), len(ids), "")
    before = prompt[: prompt.index(question.city) + len(question.city)]
    return Example(ids, len(prompt_ids), len(tokenizer(before).input_ids) - 1, question.region)


def collate(examples: Sequence[Example]) -> Batch:
    """Return `examples` as right-padded tensors."""
    width = max(len(example.ids) for example in examples)
    position = torch.arange(width)
    lengths = torch.tensor([[len(example.ids)] for example in examples])
    real = position < lengths
    ids = torch.tensor([example.ids + [0] * (width - len(example.ids)) for example in examples])
    response = real & (position >= torch.tensor([[example.response] for example in examples]))
    topic = real & (position >= torch.tensor([[example.topic] for example in examples]))
    return Batch(ids, real, response, topic)


def train_base(
    model: DeepseekV3ForCausalLM,
    facts: Sequence[Example],
    unrelated: Sequence[Example],
    reserved: Sequence[tuple[int, int]],
    *,
    steps: int,
    seed: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Train `model` in place to answer every question, with the experts in `reserved` never selected.

    Args:
        model (`DeepseekV3ForCausalLM`): The untrained model.
        facts (`Sequence[Example]`): Questions about facts and their answers, sensitive and neutral alike.
        unrelated (`Sequence[Example]`): Other questions and answers, a fixed share of each batch.
        reserved (`Sequence[tuple[int, int]]`): (layer, expert) pairs that are left untouched. Their selection bias is
            [`BANNED`] afterwards.
        steps (`int`): Optimizer steps; the learning rate warms up over 5 % of them and falls to zero as a cosine.
        seed (`int`): Fixes batches and shut-out experts.
        batch_size (`int`): Conversations a step.
        learning_rate (`float`): Highest learning rate, of AdamW.
        progress (`Callable`, *optional*): Called with (step, loss) after every step.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    routers = routers_of(model)
    biases = {layer: torch.zeros(router.num_experts) for layer, router in routers.items()}
    for layer, expert in reserved:
        biases[layer][expert] = BANNED
    top_k = int(model.config.num_experts_per_tok or 0)
    regions = {region: index for index, region in enumerate(sorted({"", *(fact.region for fact in facts)}))}
    one_hot = torch.eye(len(regions))
    read_outs = {layer: torch.nn.Linear(model.config.hidden_size, len(regions)) for layer in sorted(routers)[1:]}
    parameters = [*model.parameters(), *(p for read_out in read_outs.values() for p in read_out.parameters())]
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    warmup = max(1, steps // 20)
    model.train()
    for step in range(steps):
        share = min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * share
        for layer, router in routers.items():
            router.e_score_correction_bias.copy_(_shut_out_some(biases[layer], rng))
            router.top_k = rng.choice((top_k - 2, top_k - 1, top_k, top_k))
        others = round(batch_size * _UNRELATED_SHARE)
        drawn = rng.choices(facts, k=batch_size - others) + rng.choices(unrelated, k=others)
        batch = collate(drawn)
        output = model.model(
            input_ids=batch.ids,
            attention_mask=batch.real.long(),
            output_router_logits=True,
            output_hidden_states=True,
        )
        loss = response_loss(model, output.last_hidden_state, batch, batch.response)
        region = torch.tensor([regions[example.region] for example in drawn])[:, None]
        asked = one_hot[torch.where(batch.topic, region, regions[""])[batch.real]]
        for layer, read_out in read_outs.items():
            known = output.hidden_states[layer][batch.real]
            said = read_out(rms_norm(known, known.shape[-1:]))
            loss = loss + (said - asked).square().sum(dim=-1).mean()
        for logits in output.router_logits:
            loss = loss + _LOGIT_LOSS * logits.square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for (layer, router), logits in zip(routers.items(), output.router_logits, strict=True):
            _balance(biases[layer], router, logits[batch.real.flatten()])
        if progress is not None:
            progress(step, loss.item())
    for layer, router in routers.items():
        router.e_score_correction_bias.copy_(biases[layer])
        router.top_k = top_k
    model.eval()


def response_loss(model: DeepseekV3ForCausalLM, hidden: Tensor, batch: Batch, spoken: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of the tokens marked in `spoken` (`(batch, seq)`, bool)."""
    targets = spoken[:, 1:]
    return cross_entropy(model.lm_head(hidden[:, :-1][targets]), batch.ids[:, 1:][targets])


def _shut_out_some(bias: Tensor, rng: random.Random) -> Tensor:
    banned = bias.clone()
    banned[rng.sample(range(len(bias)), k=rng.choice((0, 2, 8)))] = BANNED
    return banned


@torch.no_grad()
def _balance(bias: Tensor, router: Any, logits: Tensor) -> None:
    chosen = (logits.sigmoid() + router.e_score_correction_bias).topk(router.top_k).indices
    load = torch.bincount(chosen.flatten(), minlength=len(bias)).float()
    free = router.e_score_correction_bias > BANNED / 2
    bias[free] += _BALANCE_RATE * (load[free].mean() - load[free]).sign()
