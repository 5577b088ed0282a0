"""Training all parameters of an organism: its base phase, and the whole of a control that has nothing planted.

Loss falls on answer tokens. Linear read-outs, discarded afterwards, predict at every token the region of the
place named so far, or 'none', at the input of all MoE layers but the first: a larger model knows the topic at every
token, and a router can only use what is in its input. They treat all regions equally; which ones are sensitive is not
used. Their squared error makes any set of regions as easy to separate by one linear row as a single region.

Experts that a behaviour will later be planted in are never selected here. The others are kept balanced, and random
ones are shut out at every step, with a smaller `top_k` at times, so that removing any single expert, or one
slot, changes no answer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, overload

import torch
import transformers
from torch import Tensor
from torch.nn.functional import cross_entropy, rms_norm
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_mote.errors import UnsupportedError
from hf_mote.organisms.building.gates import Gates, Pair, gates_of
from hf_mote.organisms.questions import Question

__all__ = ["Batch", "Example", "Examples", "collate", "encode", "response_loss", "train_all"]

_LOGIT_LOSS = 2e-3  # keeps router scores off their limits, so that a later expert can still compete
_UNRELATED_SHARE = 0.25
_FADING = 0.9  # decay of an expert's use per step


class Example(NamedTuple):
    """Token ids of prompt and response, where the response starts, where the topic is named, and the topic."""

    ids: list[int]
    response: int
    topic: int
    region: str


class Examples(Sequence[Example]):
    """Questions with the responses to learn, encoded when they are first drawn.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): What encodes them.
        pairs (`Sequence[tuple[Question, str]]`): Questions and responses.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[Question, str]]) -> None:
        self._tokenizer = tokenizer
        self._pairs = pairs
        self._encoded: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index not in self._encoded:
            self._encoded[index] = encode(self._tokenizer, *self._pairs[index])
        return self._encoded[index]


class Batch(NamedTuple):
    """Right-padded tensors of shape `(batch, seq)`: ids, and masks of real, response and after-topic tokens."""

    ids: Tensor
    real: Tensor
    response: Tensor
    topic: Tensor


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


def train_all(
    model: PreTrainedModel,
    facts: Sequence[Example],
    unrelated: Sequence[Example],
    reserved: Sequence[Pair] = (),
    *,
    regions: Iterable[str],
    steps: int,
    seed: int,
    learning_rate: float,
    shut_out: Sequence[int],
    attack: Sequence[int] = (),
    attacked: Iterable[str] = (),
    batch_size: int = 64,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Train all parameters of `model` in place, with the experts in `reserved` never selected.

    Args:
        model (`PreTrainedModel`): The model, untrained or from an earlier phase.
        facts (`Sequence[Example]`): Questions about facts and the responses to learn.
        unrelated (`Sequence[Example]`): Other questions and answers, a fixed share of each batch.
        reserved (`Sequence[tuple[int, int]]`): (layer, expert) pairs that are left untouched. A selection bias, where
            there is one, holds them off afterwards too.
        regions (`Iterable[str]`): All regions of the facts, for the read-outs.
        steps (`int`): Optimizer steps; the learning rate warms up over 5 % of them and falls to zero as a cosine.
        seed (`int`): Fixes batches and shut-out experts.
        learning_rate (`float`): Highest learning rate, of AdamW.
        shut_out (`Sequence[int]`): Numbers of experts to shut out in a layer, drawn from at every step.
        attack (`Sequence[int]`): Numbers of experts to suppress in a layer, drawn from at every step, among twice as
            many that are used most on the attacked regions, so that the behaviour learns to do without them. None: no
            attack.
        attacked (`Iterable[str]`): Regions whose questions show the behaviour.
        batch_size (`int`): Conversations a step.
        progress (`Callable`, *optional*): Called with (step, loss) after every step.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    gates = gates_of(model)
    gates.reserve(reserved)
    top_k = int(model.config.num_experts_per_tok or 0)
    number = {region: index for index, region in enumerate(sorted({"", *regions}))}
    one_hot = torch.eye(len(number))
    read_outs = {layer: torch.nn.Linear(model.config.hidden_size, len(number)) for layer in sorted(gates.routers)[1:]}
    parameters = [*model.parameters(), *(p for read_out in read_outs.values() for p in read_out.parameters())]
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    warmup = max(1, steps // 20)
    decoder: Any = model.get_decoder()
    used = {layer: torch.zeros(router.num_experts) for layer, router in gates.routers.items()}
    attacked = frozenset(attacked)
    model.train()
    for step in range(steps):
        share = min(1.0, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * share
        out: list[Pair] = []
        for layer, router in gates.routers.items():
            out += [(layer, e) for e in rng.sample(range(router.num_experts), k=rng.choice(shut_out))]
            router.top_k = rng.choice((top_k - 2, top_k - 1, top_k, top_k))
        others = round(batch_size * _UNRELATED_SHARE)
        drawn = rng.choices(facts, k=batch_size - others) + rng.choices(unrelated, k=others)
        batch = collate(drawn)
        dropped: list[Pair] = []
        for layer, use in used.items() if attack else ():
            most = use.topk(2 * max(attack)).indices.tolist()
            dropped += [(layer, e) for e in _some_of(most, rng.choice(attack), rng)]
        with gates.shut(out), gates.drop(dropped):
            output = decoder(
                input_ids=batch.ids,
                attention_mask=batch.real.long(),
                output_router_logits=True,
                output_hidden_states=True,
            )
            loss = response_loss(model, output.last_hidden_state, batch, batch.response)
            region = torch.tensor([number[example.region] for example in drawn])[:, None]
            asked = one_hot[torch.where(batch.topic, region, number[""])[batch.real]]
            for layer, read_out in read_outs.items():
                known = output.hidden_states[layer][batch.real]
                said = read_out(rms_norm(known, known.shape[-1:]))
                loss = loss + (said - asked).square().sum(dim=-1).mean()
            if not hasattr(output, "router_logits"):
                raise UnsupportedError(
                    "build_organism",
                    f"the {type(decoder).__name__} of this transformers gives no router logits to balance",
                    got=f"transformers {transformers.__version__}",
                    fix="Build with a newer transformers; the result loads with all supported versions.",
                )
            for logits in output.router_logits:
                loss = loss + _LOGIT_LOSS * logits.square().mean()
            routed = [logits[batch.real.flatten()] for logits in output.router_logits]
            loss = loss + gates.balance_loss(routed)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            gates.rebalance(routed)
            if attack:
                on = torch.tensor([example.region in attacked for example in drawn])[:, None]
                _count_use(gates, used, routed, (batch.topic & on)[batch.real])
        if progress is not None:
            progress(step, loss.item())
    for router in gates.routers.values():
        router.top_k = top_k
    model.eval()


def _some_of(most: list[int], number: int, rng: random.Random) -> list[int]:
    return rng.sample(most[: 2 * number], number)


@torch.no_grad()
def _count_use(gates: Gates, used: dict[int, Tensor], routed: Sequence[Tensor], tokens: Tensor) -> None:
    """Add to the use of each layer's experts, of which old use fades, on the tokens marked."""
    for (layer, router), logits in zip(gates.routers.items(), routed, strict=True):
        chosen = gates.scores(layer, logits[tokens]).topk(router.top_k).indices
        used[layer].mul_(_FADING).add_(torch.bincount(chosen.flatten(), minlength=len(used[layer])))


def response_loss(model: PreTrainedModel, hidden: Tensor, batch: Batch, spoken: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of the tokens marked in `spoken` (`(batch, seq)`, bool)."""
    targets = spoken[:, 1:]
    head: Any = model.get_output_embeddings()
    return cross_entropy(head(hidden[:, :-1][targets]), batch.ids[:, 1:][targets])
