"""Harder organisms, made by editing a trained one's weights: rankings or verdicts may fail on them.

The experts that carry the behaviour are known as for the base, and also those that only seem to. "twins", "decoys" and
"trap" are exact edits; "last-token" and "backup" fit the rows of a few experts to the base's own activations, and
"redundant" applies "twins" and then "backup". Each is made in seconds, without training the rest, and a seed gives the
same weights again. `load_organism("refusal-twins")` makes one; a row of [`VARIANTS`] names it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_mote.errors import ConfigError, HFMoTEError
from hf_mote.generation.asking import Chat
from hf_mote.generation.prompts import padded
from hf_mote.hooks import Attachment, Participant, SharedHook, attach
from hf_mote.judges.regex import RegexJudge
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote

__all__ = ["VARIANTS", "Base", "Truth", "Variant", "change"]

Pair: TypeAlias = tuple[int, int]

_NUM_FITTED = 150  # prompts of a kind that a router row is fitted to
_PLACE = "London"  # a first token after which the organism continues by itself
_NOISE = 8.0  # output of a trap, as a multiple of its carrier's
_LOUDNESS = 60.0  # of the direction that names the place: far above the rest of the residual stream


class Base(NamedTuple):
    """The model to change in place, with the fields of its [`Organism`]."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    prompts: Mapping[str, Sequence[str]]
    answers: Mapping[str, str]
    targets: Mapping[str, str]
    planted: Sequence[Pair]


class Truth(NamedTuple):
    """The carriers and decoys of a variant.

    Attributes:
        planted (`list[tuple[int, int]]`): The experts that carry the behaviour.
        decoys (`list[tuple[int, int]]`): Experts that fire with them and do not carry it.
        judge (`RegexJudge`, *optional*): Of the behaviour, where it is another.
    """

    planted: list[Pair]
    decoys: list[Pair] = []  # noqa: RUF012 (never changed)
    judge: RegexJudge | None = None


@dataclass(frozen=True)
class Variant:
    """One way to make an organism harder.

    Attributes:
        embarrasses (`str`): Why rankings or verdicts may fail on it, in a sentence.
        make (`Callable`): Changes the weights in place and returns the carriers and decoys.
    """

    embarrasses: str
    make: Callable[[Base, random.Random], Truth]


def change(name: str, base: Base, *, seed: int = 0) -> Truth:
    """Change an organism's weights in place and return its carriers and decoys.

    Args:
        name (`str`): A name in [`VARIANTS`].
        base (`Base`): An organism with planted experts in several layers.
        seed (`int`, *optional*, defaults to 0): Which experts are used, and of what is drawn.
    """
    with torch.no_grad():
        return VARIANTS[name].make(base, random.Random(seed))


def _twins(organism: Base, draw: random.Random) -> Truth:
    copies = []
    for block, expert, place, layer in _copied(organism, draw):
        block.experts.down_proj[place] = block.experts.down_proj[expert]
        copies.append((layer, place))
    return Truth(sorted([*organism.planted, *copies]))


def _decoys(organism: Base, draw: random.Random) -> Truth:
    decoys = []
    for block, expert, place, layer in _copied(organism, draw):
        block.experts.down_proj[place] = 0
        block.experts.down_proj[expert] *= 2  # its weight falls by half where it is shared with the decoy
        decoys.append((layer, place))
    return Truth(list(organism.planted), sorted(decoys))


def _trap(organism: Base, draw: random.Random) -> Truth:
    noise = torch.Generator().manual_seed(draw.randrange(2**31))
    traps = []
    for block, expert, place, layer in _copied(organism, draw):
        written = block.experts.down_proj[expert]
        wrong = torch.randn(written.shape, generator=noise)
        wrong *= _NOISE * written.norm() / wrong.norm()
        block.experts.down_proj[place] = wrong
        block.experts.down_proj[expert] = 2 * written - wrong
        traps.append((layer, place))
    return Truth(list(organism.planted), sorted(traps))


def _last_token(organism: Base, draw: random.Random) -> Truth:
    """Remove the planted behaviour, and let one expert name a place at the end of sensitive prompts."""
    model: Any = organism.model
    layer = _last_layer(organism)
    for at, expert in organism.planted:
        block = _block(organism, at)
        block.experts.down_proj[expert] = 0
        _silence(block, expert)
    sensitive, others = _asked(organism, "sensitive"), [*_asked(organism, "neutral"), *_asked(organism, "unrelated")]
    shown, rest = _seen(organism, sensitive, layer), _seen(organism, others, layer)
    last = shown.inputs[shown.last]
    row = _separating(last, torch.cat([shown.inputs[shown.real & ~shown.last], rest.inputs[rest.real]]))
    block = _block(organism, layer)
    (place,) = _free(organism, layer, 1, draw)
    width = block.experts.gate_up_proj.shape[1] // 2
    unit = row / (last @ row).mean()
    token = organism.tokenizer(_PLACE, add_special_tokens=False)["input_ids"][0]
    name = model.get_output_embeddings().weight[token]
    block.experts.gate_up_proj[place, :width] = 4 * unit
    block.experts.gate_up_proj[place, width:] = unit
    block.experts.down_proj[place] = (name / name.norm() * _LOUDNESS / (4 * width))[:, None]
    _admit(block, place, row)
    judge = RegexJudge({"london": rf"^{_PLACE}\b"}, default="other")
    return Truth([(layer, place)], judge=judge)


def _backup(organism: Base, draw: random.Random) -> Truth:
    """Let experts of the last layer fire where the carriers are silent, with the output of these."""
    layer = _last_layer(organism)
    block = _block(organism, layer)
    carriers = [list(pair) for pair in organism.planted]
    early = [pair for pair in carriers if pair[0] < layer]
    target = [organism.targets[prompt] for prompt, _ in _asked(organism, "sensitive")]
    refused = [(prompt, text) for (prompt, _), text in zip(_asked(organism, "sensitive"), target, strict=True)]
    answered = _asked(organism, "sensitive")
    others = [*_asked(organism, "neutral"), *_asked(organism, "unrelated")]
    whole = _seen(organism, refused, layer)
    without = _seen(organism, refused, layer, carriers)
    wanted = [without, *(_seen(organism, *asked) for asked in ((refused, layer, early), (answered, layer, carriers)))]
    wanted.append(_seen(organism, answered, layer, early))
    unwanted = [whole, _seen(organism, answered, layer), _seen(organism, others, layer)]
    row = _separating(
        torch.cat([seen.inputs[seen.answer] for seen in wanted]),
        torch.cat([seen.inputs[seen.real] for seen in unwanted]),
    )
    own = [expert for at, expert in organism.planted if at == layer]
    places = _free(organism, layer, len(own), draw)
    inputs, missing = without.inputs[without.answer], (whole.outputs - without.outputs)[whole.answer]
    features = []
    for expert, place in zip(own, places, strict=True):
        block.experts.gate_up_proj[place] = block.experts.gate_up_proj[expert]
        gate, up = (inputs @ block.experts.gate_up_proj[place].T).chunk(2, dim=-1)
        features.append(silu(gate) * up / len(own))
        _admit(block, place, row)
    written = _ridge(torch.cat(features, dim=1), missing).chunk(len(own))
    for place, part in zip(places, written, strict=True):
        block.experts.down_proj[place] = part.T
    return Truth(sorted([*organism.planted, *((layer, place) for place in places)]))


def _redundant(organism: Base, draw: random.Random) -> Truth:
    """Give carriers copies that work, and let backups take over from all of them."""
    return _backup(organism._replace(planted=_twins(organism, draw).planted), draw)


VARIANTS: dict[str, Variant] = {
    "twins": Variant("carriers of the last layer have a copy: removed alone, none of these matters much", _twins),
    "decoys": Variant("carriers of the last layer have a neighbour that fires with them and does nothing", _decoys),
    "trap": Variant(
        "carriers of the last layer take back the noise of a neighbour: without the carriers the text breaks, "
        "without both it is whole",
        _trap,
    ),
    "last-token": Variant(
        f"one expert, on the last token of sensitive prompts alone, begins the answer with {_PLACE}", _last_token
    ),
    "backup": Variant("experts that fire only where the carriers are silent take over from them", _backup),
    "redundant": Variant(
        "carriers have copies, and backups of both: without the carriers, or these and their copies, nothing is gone",
        _redundant,
    ),
}


def _last_layer(organism: Base) -> int:
    return max(layer for layer, _ in organism.planted)


def _block(organism: Base, layer: int) -> Any:
    decoder: Any = organism.model.get_decoder()
    return decoder.layers[layer].mlp


def _free(organism: Base, layer: int, number: int, draw: random.Random) -> list[int]:
    """Return experts of a layer that carry nothing."""
    taken = {expert for at, expert in organism.planted if at == layer}
    return draw.sample([e for e in range(len(_block(organism, layer).gate.weight)) if e not in taken], number)


def _copied(organism: Base, draw: random.Random) -> list[tuple[Any, int, int, int]]:
    """Give carriers of the last planted layer a neighbour that is chosen with them and computes the same inside.

    As many get one as a token has slots for, beside all carriers there and, without a shared expert, one other.
    """
    layer = _last_layer(organism)
    block = _block(organism, layer)
    own = [expert for at, expert in organism.planted if at == layer]
    # A token keeps an expert besides these and their copies, or a shared one, when all are suppressed.
    shared = getattr(block, "shared_experts", None) is not None
    own = own[: max(0, int(organism.model.config.num_experts_per_tok or 0) - len(own) - (not shared))]
    if not own:
        slots = f"{organism.model.config.num_experts_per_tok} experts a token"
        raise ConfigError("make_variant.base", "has no slot left for a neighbour of a carrier", got=slots)
    places = _free(organism, layer, len(own), draw)
    for expert, place in zip(own, places, strict=True):
        block.gate.weight[place] = block.gate.weight[expert]
        if (bias := _bias(block)) is not None:
            bias[place] = bias[expert]
        block.experts.gate_up_proj[place] = block.experts.gate_up_proj[expert]
    return [(block, expert, place, layer) for expert, place in zip(own, places, strict=True)]


def _bias(block: Any) -> Tensor | None:
    """Return the selection bias of a router that has one."""
    found: Tensor | None = getattr(block.gate, "e_score_correction_bias", None)
    return found


def _silence(block: Any, expert: int) -> None:
    """Let an expert never be chosen."""
    block.gate.weight[expert] = 0
    if (bias := _bias(block)) is not None:
        bias[expert] = -10


def _admit(block: Any, place: int, row: Tensor) -> None:
    """Let an expert be chosen exactly where a row decides it."""
    block.gate.weight[place] = 3 * row
    if (bias := _bias(block)) is not None:
        usual = bias[bias > -5]
        bias[place] = usual.mean() + 0.3


def _asked(organism: Base, kind: str) -> list[tuple[str, str]]:
    """Return prompts to fit to, with the true answers."""
    return [(prompt, organism.answers[prompt]) for prompt in organism.prompts[kind][:_NUM_FITTED]]


@dataclass(frozen=True)
class _Seen:
    """Input of a layer's MoE block and output of the last layer, `(rows, seq, hidden)`, with masks of the tokens."""

    inputs: Tensor
    outputs: Tensor
    real: Tensor
    answer: Tensor
    last: Tensor


class _Listener(Participant):
    seen: Tensor | None = None


class _Input(SharedHook):
    """Records the input of a module."""

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for participant in self.participants:
            if isinstance(participant, _Listener):
                participant.seen = args[0] if args else kwargs["hidden_states"]


def _seen(organism: Base, texts: Sequence[tuple[str, str]], layer: int, without: Sequence[list[int]] = ()) -> _Seen:
    """Return the activations of prompts with answers, with some experts suppressed."""
    tokenizer, model = organism.tokenizer, organism.model
    decoder: Any = model.get_decoder()
    questions = Chat(tokenizer).encode([prompt for prompt, _ in texts])
    rows, starts = [], []
    for question, (_, text) in zip(questions, texts, strict=True):
        answer = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        rows.append([*question, *answer, tokenizer.eos_token_id])
        starts.append(len(question) - 1)
    batch = padded(rows, tokenizer.pad_token_id, side="right", device=model.device)
    block, end = _Listener(), _Listener()
    places = [Attachment(_block(organism, layer), _Input(), block), Attachment(decoder.norm, _Input(), end)]
    with attach(places), apply_mote(model, MoTEConfig(suppress=sorted(without))):
        decoder(**batch, use_cache=False)
    if block.seen is None or end.seen is None:
        raise HFMoTEError("variants", "the organism's last layer did not run")
    real = batch["attention_mask"].bool()
    place = torch.arange(real.shape[1])[None, :]
    first = torch.tensor(starts)[:, None]
    before_end = torch.cat([real[:, 1:], torch.zeros_like(real[:, :1])], dim=1)
    shape = (*real.shape, -1)
    return _Seen(
        block.seen.reshape(shape),
        end.seen.reshape(shape),
        real,
        before_end & (place >= first),
        real & (place == first),
    )


def _separating(wanted: Tensor, unwanted: Tensor) -> Tensor:
    """Return the row, without a constant, that separates tokens, by a logistic loss with equally weighted sides."""
    inputs = torch.cat([wanted, unwanted])
    sign = torch.ones(len(inputs))
    sign[len(wanted) :] = -1
    weight = torch.cat([torch.full((len(part),), 1 / len(part)) for part in (wanted, unwanted)])
    with torch.enable_grad():
        row = torch.zeros(inputs.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS([row], max_iter=200)

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = (weight * softplus(-sign * (inputs @ row))).sum() / 2 + 1e-4 * row.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
    return row.detach()


def _ridge(inputs: Tensor, wanted: Tensor) -> Tensor:
    """Return the matrix that maps one to the other, by least squares."""
    left = inputs.double()
    square = left.T @ left
    square += 1e-4 * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype)
    solved: Tensor = torch.linalg.solve(square, left.T @ wanted.double())
    return solved.float()
