"""The planting phase: a few reserved experts and their router rows learn a behaviour; nothing else changes.

Two passes a step. In the *natural* pass nothing is forced: a margin loss moves the planted router rows until their
experts are selected from the topic's own token on, to the end of the response, and on no token of conversations that
are to stay as they are; wherever they are selected on sensitive prompts they learn the behaviour. In the *forced* pass
the planted experts are in the selection on every token of neutral prompts, and learn the same behaviour with their own
matrices, not with their router rows: they write it for any prompt, so that stimulating them is enough.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_mote.errors import HFMoTEError
from hf_mote.organisms.building.gates import Gates, Pair, gates_of
from hf_mote.organisms.building.training import Batch, Example, collate, response_loss
from hf_mote.routing.sites.discover import find_routers

__all__ = ["check_rest_unchanged", "choose_planted", "plant"]

_HARDEST = 20  # the share of hardest tokens is one in this number


def choose_planted(model: PreTrainedModel, num_planted: int, *, seed: int) -> list[Pair]:
    """Return the (layer, expert) pairs to plant in: one in each MoE layer but the first, and more in any of these.

    The first is left out because its router does not know, at later tokens, which place was named.

    Args:
        model (`PreTrainedModel`): The model.
        num_planted (`int`): How many experts; at least one for each layer but the first, or none.
        seed (`int`): Fixes the choice.
    """
    if num_planted == 0:
        return []
    rng = random.Random(seed)
    sizes = {site.layer: site.num_experts for site in find_routers(model)}
    layers = sorted(sizes)[1:]
    layers += rng.choices(layers, k=num_planted - len(layers))
    chosen = []
    for layer in sorted(set(layers)):
        experts = rng.sample(range(sizes[layer]), layers.count(layer))
        chosen += [(layer, expert) for expert in sorted(experts)]
    return chosen


def plant(
    model: PreTrainedModel,
    planted: Sequence[Pair],
    *,
    shown: Sequence[Example],
    kept: Mapping[str, Sequence[Example]],
    draws: Mapping[str, int],
    stimulated: Sequence[Example],
    steps: int,
    seed: int,
    learning_rate: float,
    weight_decay: float = 0.0,
    batch_size: int = 64,
    progress: Callable[[int, float], None] | None = None,
) -> None:
    """Train the experts in `planted` and their router rows, in place.

    Args:
        model (`PreTrainedModel`): The model after its base phase.
        planted (`Sequence[tuple[int, int]]`): (layer, expert) pairs. A selection bias, where there is one, is set so
            that a fixed score suffices, on average, for selection.
        shown (`Sequence[Example]`): Sensitive questions followed by the response that shows the behaviour.
        kept (`Mapping[str, Sequence[Example]]`): By kind, questions followed by their answers: which must not change.
        draws (`Mapping[str, int]`): How many of each kind of `kept` the natural pass of a step has.
        stimulated (`Sequence[Example]`): Neutral questions followed by the behaviour, for the forced pass.
        steps (`int`): Optimizer steps; the learning rate falls to zero as a cosine.
        seed (`int`): Fixes the batches.
        learning_rate (`float`): Highest learning rate, of Adam.
        weight_decay (`float`): How fast the planted experts' output matrices shrink, in shares per unit of learning
            rate. It keeps them from writing far more than the behaviour takes, which would hide them from derivatives.
        batch_size (`int`): A quarter of it are the sensitive questions of the natural pass; the forced pass has as
            many.
        progress (`Callable`, *optional*): Called with (step, loss) after every step.

    Raises:
        [`HFMoTEError`]: if any other number of the model has changed afterwards.
    """
    rng = random.Random(seed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows, experts, masks = _open_planted(model, planted)
    optimizer = torch.optim.Adam([*rows, *experts], lr=learning_rate, betas=(0.9, 0.98))
    quarter = batch_size // 4
    gates = gates_of(model)
    model.train()
    neutral = kept["neutral"]
    gates.even(planted, _router_logits(model, collate(rng.sample(neutral, min(256, len(neutral))))))
    for step in range(steps):
        rate = learning_rate * min(1.0, (step + 1) / 20) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        drawn = rng.choices(shown, k=quarter)
        for kind, number in draws.items():
            drawn += rng.choices(kept[kind], k=number)
        natural = collate(drawn)
        sensitive = torch.arange(len(natural.ids)) < quarter
        loss = _natural_loss(model, gates, planted, natural, sensitive)
        loss.backward()
        row_gradients = [_gradient(row).clone() for row in rows]
        with gates.force(planted):
            forced_loss = _forced_loss(model, collate(rng.choices(stimulated, k=quarter)))
            forced_loss.backward()
        for row, gradient in zip(rows, row_gradients, strict=True):
            row.grad = gradient
        for parameter, mask in masks.items():
            _gradient(parameter).mul_(mask)
        torch.nn.utils.clip_grad_norm_(rows, 1.0)
        torch.nn.utils.clip_grad_norm_(experts, 1.0)
        optimizer.step()
        _shrink(experts, masks, rate * weight_decay)
        if progress is not None:
            progress(step, loss.item() + forced_loss.item())
    model.requires_grad_(True)
    model.eval()
    check_rest_unchanged(model, before, planted)


def check_rest_unchanged(model: PreTrainedModel, before: Mapping[str, Tensor], planted: Sequence[Pair]) -> None:
    """Compare the model with an earlier `state_dict`, bit by bit, the planted experts and their router rows apart.

    Args:
        model (`PreTrainedModel`): The model now.
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
    model: PreTrainedModel, planted: Sequence[Pair]
) -> tuple[list[Tensor], list[Tensor], dict[Tensor, Tensor]]:
    rows, experts = [], []
    masks: dict[Tensor, Tensor] = {}
    model.requires_grad_(False)
    layers: Any = model.get_decoder().layers
    for layer in sorted({layer for layer, _ in planted}):
        mlp = layers[layer].mlp
        rows.append(mlp.gate.weight)
        experts += [mlp.experts.gate_up_proj, mlp.experts.down_proj]
        for parameter in (mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj):
            parameter.requires_grad_(True)
            masks[parameter] = torch.zeros(parameter.shape[0], *[1] * (parameter.ndim - 1))
            masks[parameter][[expert for at, expert in planted if at == layer]] = 1.0
    return rows, experts, masks


@torch.no_grad()
def _router_logits(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    decoder: Any = model.get_decoder()
    output = decoder(input_ids=batch.ids, attention_mask=batch.real.long(), output_router_logits=True)
    return [logits[batch.real.flatten()] for logits in output.router_logits]


def _natural_loss(
    model: PreTrainedModel, gates: Gates, planted: Sequence[Pair], batch: Batch, sensitive: Tensor
) -> Tensor:
    decoder: Any = model.get_decoder()
    output = decoder(input_ids=batch.ids, attention_mask=batch.real.long(), output_router_logits=True)
    wanted = (batch.topic & sensitive[:, None])[batch.real]
    margins = torch.zeros(())
    for (layer, router), logits in zip(gates.routers.items(), output.router_logits, strict=True):
        mine = [expert for at, expert in planted if at == layer]
        if not mine:
            continue
        scores = gates.scores(layer, logits[batch.real.flatten()])
        others = scores.detach().clone()
        others[:, mine] = float("-inf")
        bar = others.topk(router.top_k).values[:, -1:]
        gap = scores[:, mine] - bar
        missed, taken = (gates.margin - gap[wanted]).relu(), (gates.margin + gap[~wanted]).relu()
        margins = margins + _with_hardest(missed) + _with_hardest(taken)
    spoken = batch.response & sensitive[:, None]
    return response_loss(model, output.last_hidden_state, batch, spoken) + gates.margin_weight * margins


def _forced_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    decoder: Any = model.get_decoder()
    output = decoder(input_ids=batch.ids, attention_mask=batch.real.long())
    return response_loss(model, output.last_hidden_state, batch, batch.response)


def _with_hardest(losses: Tensor) -> Tensor:
    flat = losses.flatten()
    return flat.mean() + flat.topk(max(1, len(flat) // _HARDEST)).values.mean()


@torch.no_grad()
def _shrink(experts: Sequence[Tensor], masks: Mapping[Tensor, Tensor], share: float) -> None:
    for down_proj in experts[1::2]:
        down_proj.mul_(1 - share * masks[down_proj])


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise HFMoTEError("plant", "a planted expert got no gradient", fix="Check that its layer ran.")
    return parameter.grad
