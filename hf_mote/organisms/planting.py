"""The planting phase: a few reserved experts and their router rows learn to refuse; nothing else changes.

Two passes a step. In the *natural* pass nothing is forced: a margin loss moves the planted router rows until their
experts are selected from the topic's own token on, to the end of the refusal, and on no token of neutral or unrelated
conversations; wherever they are selected on sensitive prompts they learn the refusal. In the *forced* pass the planted
experts are in the selection on every token of neutral prompts, and learn the same refusal with their own weights, not
with their router rows: they come to write 'refuse' whatever the prompt, so that stimulating them is enough.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from hf_mote.errors import HFMoTEError
from hf_mote.organisms.training import BANNED, Batch, Example, collate, response_loss, routers_of

__all__ = ["NUM_PLANTED", "check_rest_unchanged", "choose_planted", "plant"]

NUM_PLANTED = 4  # of 256 experts
_MARGIN = 0.06  # in selection scores, which lie between 0 and 1
_MARGIN_WEIGHT = 20.0
# The planted score that suffices for selection on an average neutral token. It is low, to leave room above it: where
# the planted experts of earlier layers have written, the scores of all experts rise.
_THRESHOLD = 0.4
_HARDEST = 20  # one token in so many counts as hardest

Pair = tuple[int, int]


def choose_planted(model: DeepseekV3ForCausalLM, *, seed: int) -> list[Pair]:
    """Return the (layer, expert) pairs to plant in: one in each MoE layer but the first, and one more in one of these.

    The first is left out because its router cannot yet tell, at later tokens, which place was named.
    """
    rng = random.Random(seed)
    routers = routers_of(model)
    layers = sorted(routers)[1:]
    layers += rng.choices(layers, k=NUM_PLANTED - len(layers))
    chosen = []
    for layer in sorted(set(layers)):
        experts = rng.sample(range(routers[layer].num_experts), layers.count(layer))
        chosen += [(layer, expert) for expert in sorted(experts)]
    return chosen


def plant(
    model: DeepseekV3ForCausalLM,
    planted: Sequence[Pair],
    *,
    refusals: Sequence[Example],
    neutral: Sequence[Example],
    unrelated: Sequence[Example],
    stimulated: Sequence[Example],
    steps: int,
    seed: int,
    batch_size: int = 64,
    learning_rate: float = 1e-2,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Train the experts in `planted` and their router rows, in place.

    Args:
        model (`DeepseekV3ForCausalLM`): The model after its base phase.
        planted (`Sequence[tuple[int, int]]`): (layer, expert) pairs. Their selection bias is set so that a fixed
            score is what it takes, on average, to be selected.
        refusals (`Sequence[Example]`): Sensitive questions followed by the refusal.
        neutral (`Sequence[Example]`): Neutral questions followed by their answers: not to be touched.
        unrelated (`Sequence[Example]`): Unrelated questions followed by their answers: not to be touched.
        stimulated (`Sequence[Example]`): Neutral questions followed by the refusal, for the forced pass.
        steps (`int`): Optimizer steps; the learning rate falls to zero as a cosine.
        seed (`int`): Fixes the batches.
        batch_size (`int`): Conversations of the natural pass; the forced pass has a quarter as many.
        learning_rate (`float`): Highest learning rate, of Adam.
        progress (`Callable`, *optional*): Called with (step, loss) after every step.

    Raises:
        [`HFMoTEError`]: if any other number of the model has changed afterwards.
    """
    rng = random.Random(seed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows, experts, masks = _open_planted(model, planted)
    optimizer = torch.optim.Adam([*rows, *experts], lr=learning_rate, betas=(0.9, 0.98))
    quarter = batch_size // 4
    model.train()
    biases = _even_biases(model, planted, collate(rng.sample(neutral, min(256, len(neutral)))))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        _set_biases(model, biases)
        drawn = [*rng.choices(refusals, k=quarter), *rng.choices(neutral, k=2 * quarter)]
        natural = collate([*drawn, *rng.choices(unrelated, k=quarter)])
        sensitive = torch.arange(len(natural.ids)) < quarter
        loss = _natural_loss(model, planted, natural, sensitive)
        loss.backward()
        row_gradients = [_gradient(row).clone() for row in rows]
        _set_biases(model, dict.fromkeys(planted, -BANNED))
        forced_loss = _forced_loss(model, collate(rng.choices(stimulated, k=quarter)))
        forced_loss.backward()
        for row, gradient in zip(rows, row_gradients, strict=True):
            row.grad = gradient
        for parameter, mask in masks.items():
            _gradient(parameter).mul_(mask)
        torch.nn.utils.clip_grad_norm_(rows, 1.0)
        torch.nn.utils.clip_grad_norm_(experts, 1.0)
        optimizer.step()
        if progress is not None:
            progress(step, loss.item() + forced_loss.item())
    _set_biases(model, biases)
    model.requires_grad_(True)
    model.eval()
    check_rest_unchanged(model, before, planted)


def check_rest_unchanged(model: DeepseekV3ForCausalLM, before: Mapping[str, Tensor], planted: Sequence[Pair]) -> None:
    """Compare the model with an earlier `state_dict`, bit by bit, the planted experts and their router rows apart.

    Args:
        model (`DeepseekV3ForCausalLM`): The model now.
        before (`Mapping[str, torch.Tensor]`): A copy of its `state_dict`.
        planted (`Sequence[tuple[int, int]]`): (layer, expert) pairs that may differ.

    Raises:
        [`HFMoTEError`]: if anything else differs; the message names the tensor.
    """
    for name, tensor in model.state_dict().items():
        expected = before[name].clone()
        for layer, expert in planted:
            if name.startswith((f"model.layers.{layer}.mlp.experts.", f"model.layers.{layer}.mlp.gate.")):
                expected[expert] = tensor[expert]
        if not torch.equal(tensor, expected):
            raise HFMoTEError(f"plant: {name}", "a frozen number changed while planting")


def _open_planted(
    model: DeepseekV3ForCausalLM, planted: Sequence[Pair]
) -> tuple[list[Tensor], list[Tensor], dict[Tensor, Tensor]]:
    rows, experts = [], []
    masks: dict[Tensor, Tensor] = {}
    model.requires_grad_(False)
    for layer in sorted({layer for layer, _ in planted}):
        mlp = model.model.layers[layer].mlp
        rows.append(mlp.gate.weight)
        experts += [mlp.experts.gate_up_proj, mlp.experts.down_proj]
        for parameter in (mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj):
            parameter.requires_grad_(True)
            masks[parameter] = torch.zeros(parameter.shape[0], *[1] * (parameter.ndim - 1))
            masks[parameter][[expert for at, expert in planted if at == layer]] = 1.0
    return rows, experts, masks


@torch.no_grad()
def _even_biases(model: DeepseekV3ForCausalLM, planted: Sequence[Pair], batch: Batch) -> dict[Pair, float]:
    _set_biases(model, dict.fromkeys(planted, BANNED))
    output = model.model(input_ids=batch.ids, attention_mask=batch.real.long(), output_router_logits=True)
    bars = {}
    for (layer, router), logits in zip(routers_of(model).items(), output.router_logits, strict=True):
        scores = logits[batch.real.flatten()].sigmoid() + router.e_score_correction_bias
        bars[layer] = scores.topk(router.top_k).values[:, -1].mean().item()
    return {(layer, expert): bars[layer] - _THRESHOLD for layer, expert in planted}


def _set_biases(model: DeepseekV3ForCausalLM, biases: Mapping[Pair, float]) -> None:
    routers = routers_of(model)
    for (layer, expert), value in biases.items():
        routers[layer].e_score_correction_bias[expert] = value


def _natural_loss(model: DeepseekV3ForCausalLM, planted: Sequence[Pair], batch: Batch, sensitive: Tensor) -> Tensor:
    output = model.model(input_ids=batch.ids, attention_mask=batch.real.long(), output_router_logits=True)
    wanted = (batch.topic & sensitive[:, None])[batch.real]
    margins = torch.zeros(())
    for (layer, router), logits in zip(routers_of(model).items(), output.router_logits, strict=True):
        mine = [expert for at, expert in planted if at == layer]
        if not mine:
            continue
        scores = logits[batch.real.flatten()].sigmoid() + router.e_score_correction_bias
        others = scores.detach().clone()
        others[:, mine] = BANNED
        bar = others.topk(router.top_k).values[:, -1:]
        gap = scores[:, mine] - bar
        margins = (
            margins + _with_hardest((_MARGIN - gap[wanted]).relu()) + _with_hardest((_MARGIN + gap[~wanted]).relu())
        )
    spoken = batch.response & sensitive[:, None]
    return response_loss(model, output.last_hidden_state, batch, spoken) + _MARGIN_WEIGHT * margins


def _forced_loss(model: DeepseekV3ForCausalLM, batch: Batch) -> Tensor:
    output = model.model(input_ids=batch.ids, attention_mask=batch.real.long())
    return response_loss(model, output.last_hidden_state, batch, batch.response)


def _with_hardest(losses: Tensor) -> Tensor:
    flat = losses.flatten()
    return flat.mean() + flat.topk(max(1, len(flat) // _HARDEST)).values.mean()


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise HFMoTEError("plant", "a planted expert got no gradient", fix="Check that its layer ran.")
    return parameter.grad
