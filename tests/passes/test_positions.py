"""Edits at single positions: which tokens they reach, against masks made by hand, and where that is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from caches import cache_of, taking
from routing_cases import GREEDY, no_gradients, num_hooks, observe_experts  # noqa: F401
from tiny_models import tiny_model
from transformers import DynamicCache, PreTrainedModel, StaticCache

from hf_mote import MoTEConfig, apply_mote, find_routers
from hf_mote.errors import ConfigError, UnsupportedError

LENGTHS = (7, 4, 5)
WIDTH = max(LENGTHS)
EXPERTS = (0, 1, 3, 6)
POSITIONS = ([0], [-1], [2, -2], [0, 1, -1], [-7, 6], [3, 8, 9], [-1, 40])


@pytest.fixture(params=["mixtral", "deepseek_v3"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


def batch(side: str, lengths: Sequence[int] = LENGTHS) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, 95, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(3))
    real = torch.stack([torch.arange(max(lengths)) < length for length in lengths])
    real = real.flip(1) if side == "left" else real
    return {"input_ids": ids.masked_fill(~real, 0), "attention_mask": real.long()}


def fields_of(model: PreTrainedModel) -> dict[str, Any]:
    return {"gain": [[site.layer, expert, 0.25] for site in find_routers(model) for expert in EXPERTS]}


def config_of(model: PreTrainedModel, positions: list[int], **more: Any) -> MoTEConfig:
    return MoTEConfig(**fields_of(model), positions=positions, **more)


def place(index: int, prompt: int, positions: Sequence[int]) -> bool:
    """Whether a token is meant, by its index among the tokens of its sequence."""
    return index in positions or (index < prompt and index - prompt in positions)


def mask_of(side: str, positions: Sequence[int], generated: int = 0, beams: int = 1) -> torch.Tensor:
    """What is meant of a prompt with generated tokens behind it, (batch, columns), written down token by token."""
    rows = []
    for length in [length for length in LENGTHS for _ in range(beams)]:
        row = [place(index, length, positions) for index in range(length)]
        padding = [False] * (WIDTH - length)
        row = padding + row if side == "left" else row + padding
        rows.append(row + [place(length + step, length, positions) for step in range(generated)])
    return torch.tensor(rows)


@contextmanager
def by_hand(model: PreTrainedModel, masks: Sequence[torch.Tensor]) -> Iterator[None]:
    """Multiply the weights of the experts on the rows of a mask, one for each pass, by hooks of torch alone."""
    left = list(masks)
    now: list[torch.Tensor] = []

    def begin(module: Any, args: Any) -> None:
        now[:] = [left.pop(0).reshape(-1)]

    def edit(module: Any, args: Any, output: Any) -> Any:
        logits, weights, indices = output
        hit = torch.isin(indices, torch.tensor(EXPERTS)) & now[0][:, None]
        return logits, torch.where(hit, weights * 0.25, weights), indices

    handles = [model.register_forward_pre_hook(begin)]
    handles += [site.module.register_forward_hook(edit) for site in find_routers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    assert not left


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("scope", ["all", "prompt"])
def test_positions_of_a_padded_batch_are_those_of_a_mask_made_by_hand(
    model: PreTrainedModel, scope: Any, side: str, positions: list[int]
) -> None:
    given = batch(side)
    native = model(**given).logits
    mask = mask_of(side, positions)
    with by_hand(model, [mask]):
        wanted = model(**given).logits
    with apply_mote(model, config_of(model, positions, scope=scope)):
        assert torch.equal(model(**given).logits, wanted)
    assert torch.equal(wanted, native) == (not mask.any())
    assert num_hooks(model) == 0
    assert torch.equal(model(**given).logits, native)


@pytest.mark.parametrize(
    "fields",
    [
        {"suppress": [0, 1, 3]},
        {"suppress": [0, 1], "suppress_mode": "reroute"},
        {"stimulate": [2], "stimulate_weight": "max"},
        {"bias": [5]},
    ],
    ids=str,
)
def test_positions_hold_for_every_kind_of_edit(model: PreTrainedModel, fields: dict[str, Any]) -> None:
    layer = find_routers(model)[0].layer
    named = {
        name: [[layer, e, 2.0] if name == "bias" else [layer, e] for e in value] if isinstance(value, list) else value
        for name, value in fields.items()
    }
    given = batch("left")
    with observe_experts(model) as seen:
        model(**given)
        with apply_mote(model, MoTEConfig(**named)):
            model(**given)
        with apply_mote(model, MoTEConfig(**named, positions=[1, -1])):
            model(**given)
    native, everywhere, here = (
        torch.zeros(len(weights), 8).scatter(1, indices, weights) for weights, indices in seen[layer]
    )
    mask = mask_of("left", [1, -1]).reshape(-1)
    assert torch.equal(here[mask], everywhere[mask])
    assert torch.equal(here[~mask], native[~mask])
    assert not torch.equal(here[mask], native[mask])


def generated(model: PreTrainedModel, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    out = model.generate(
        **batch("left"), **GREEDY | {"max_new_tokens": 5}, return_dict_in_generate=True, output_logits=True, **options
    )
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("positions", POSITIONS, ids=str)
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "full"])
@pytest.mark.parametrize("scope", ["all", "prompt"])
def test_positions_in_generation_count_on_behind_the_prompt(
    model: PreTrainedModel, scope: Any, cached: bool, positions: list[int]
) -> None:
    whole = mask_of("left", positions, generated=4)
    if scope == "prompt":
        whole[:, WIDTH:] = False
    ends = range(WIDTH, WIDTH + 5)
    masks = [whole[:, :WIDTH], *whole[:, WIDTH:].split(1, dim=1)] if cached else [whole[:, :end] for end in ends]
    with by_hand(model, masks):
        wanted = generated(model, use_cache=cached)
    with apply_mote(model, config_of(model, positions, scope=scope)):
        found = generated(model, use_cache=cached)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])
    if whole.any():
        assert not torch.equal(found[1], generated(model, use_cache=cached)[1])


@pytest.mark.parametrize("positions", [[0, -1], [5, 6, 8, -2]], ids=str)
def test_positions_of_beams_are_followed(model: PreTrainedModel, positions: list[int]) -> None:
    whole = mask_of("left", positions, generated=4, beams=3)
    options = {"num_beams": 3, "num_return_sequences": 3, "output_scores": True}
    with by_hand(model, [whole[:, :WIDTH], *whole[:, WIDTH:].split(1, dim=1)]):
        wanted = generated(model, **options)
    with apply_mote(model, config_of(model, positions)):
        found = generated(model, **options)
    assert torch.equal(found[0], wanted[0])
    assert torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("kind", ["growing", "fixed"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_count_on_through_a_cache_that_is_filled_by_hand(
    model: PreTrainedModel, side: str, kind: str
) -> None:
    given, positions = batch(side), [1, 5, 7, 8, -1]
    whole = mask_of(side, positions, generated=3)
    steps = torch.randint(5, 95, (3, len(LENGTHS), 1), generator=torch.Generator().manual_seed(1))

    def run() -> list[torch.Tensor]:
        cache = DynamicCache(config=model.config) if kind == "growing" else StaticCache(model.config, max_cache_len=16)
        mask = given["attention_mask"]
        found = [model(**given, **taking(model, cache), use_cache=True).logits]
        for step, tokens in enumerate(steps):
            mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=torch.long)], dim=1)
            at = torch.tensor(LENGTHS)[:, None] + step
            found.append(
                model(tokens, attention_mask=mask, position_ids=at, **taking(model, cache), use_cache=True).logits
            )
        return found

    with by_hand(model, [whole[:, :WIDTH], *whole[:, WIDTH:].split(1, dim=1)]):
        wanted = run()
    with apply_mote(model, config_of(model, positions)):
        found = run()
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert [bool(part.any()) for part in whole[:, WIDTH:].split(1, dim=1)] == [True, True, True]


def test_positions_follow_sequences_that_move_to_another_row(model: PreTrainedModel) -> None:
    given, positions = batch("left"), [4, 7]
    rows, step = [2, 0, 1], torch.tensor([[11], [12], [13]])

    def run() -> torch.Tensor:
        cache = cache_of(model(**given, use_cache=True))
        cache.reorder_cache(torch.tensor(rows))
        mask = torch.cat([given["attention_mask"][rows], torch.ones(3, 1, dtype=torch.long)], dim=1)
        at = torch.tensor(LENGTHS)[rows, None]
        return model(step, attention_mask=mask, position_ids=at, **taking(model, cache), use_cache=True).logits

    whole = mask_of("left", positions, generated=1)
    with by_hand(model, [whole[:, :WIDTH], whole[rows, WIDTH:]]):
        wanted = run()
    with apply_mote(model, config_of(model, positions)):
        assert torch.equal(run(), wanted)
    assert whole[rows, WIDTH:].flatten().tolist() == [False, True, True]  # lengths 5, 7, 4


def test_positions_without_a_mask_count_every_token_and_embeddings_are_tokens(model: PreTrainedModel) -> None:
    ids = batch("left")["input_ids"]
    everywhere = torch.zeros(ids.shape, dtype=torch.bool)
    everywhere[:, [1, WIDTH - 1]] = True
    with by_hand(model, [everywhere]):
        wanted = model(ids).logits
    with apply_mote(model, config_of(model, [1, -1])):
        assert torch.equal(model(ids).logits, wanted)
        assert torch.equal(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, wanted)


def test_positions_of_configs_by_row_and_of_two_interventions_keep_to_their_own(model: PreTrainedModel) -> None:
    given = batch("left")
    own = [config_of(model, [-1]), None, MoTEConfig(**fields_of(model))]
    mask = mask_of("left", [-1])
    mask[1], mask[2] = False, given["attention_mask"][2].bool()
    mask[2] = True  # a config without positions edits padding, too, which nobody attends to
    with by_hand(model, [mask]):
        wanted = model(**given).logits
    with apply_mote(model, own):
        assert torch.equal(model(**given).logits, wanted)
    with by_hand(model, [mask_of("left", [0, -1])]):
        wanted = model(**given).logits
    with apply_mote(model, config_of(model, [0])), apply_mote(model, config_of(model, [-1])):
        assert torch.equal(model(**given).logits, wanted)


def test_positions_need_whole_passes_whose_phases_are_known(model: PreTrainedModel) -> None:
    given = batch("left", (8, 8))
    ids = given["input_ids"]
    filled = cache_of(model(ids, use_cache=True))
    with apply_mote(model, config_of(model, [1])):
        with pytest.raises(UnsupportedError, match="cannot tell which position.*not seen"):
            model(torch.tensor([[7], [8]]), **taking(model, filled), use_cache=True)
        cache = cache_of(model(ids, use_cache=True))
        with pytest.raises(UnsupportedError, match="cannot be distinguished.*no positions"):
            model(ids[:, :3], **taking(model, cache), use_cache=True)
        with pytest.raises(UnsupportedError, match="cannot be distinguished|cannot tell which position"):
            model.generate(**given, **GREEDY | {"max_new_tokens": 3}, prefill_chunk_size=4)
        with pytest.raises(UnsupportedError, match="cannot tell which position.*position ids start anew"):
            model(ids, position_ids=torch.arange(4).repeat(2)[None].expand(2, -1))
        with pytest.raises(UnsupportedError, match=r"outside the model's forward.*positions"):
            find_routers(model)[0].module(torch.randn(1, 3, model.config.hidden_size))
        model(ids)  # what was refused left nothing behind


def test_positions_in_a_compiled_graph_are_refused_and_the_remedy_works(model: PreTrainedModel) -> None:
    given = batch("left", (8, 8))
    torch._dynamo.reset()
    with apply_mote(model, config_of(model, [-1])):
        wanted = model(**given).logits
        compiled = torch.compile(model, backend="eager")
        with pytest.raises(UnsupportedError, match="compiled graph.*disable_compile"):
            compiled(**given)
        assert torch.equal(model(**given).logits, wanted)
    torch._dynamo.reset()


def test_positions_under_gradient_checkpointing_are_refused_and_the_remedy_works() -> None:
    model = tiny_model("mixtral").train()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    ids = batch("left", (8, 8))["input_ids"]
    with torch.enable_grad(), apply_mote(model, config_of(model, [-1])):
        enable({"use_reentrant": False})
        loss = model(ids, labels=ids, use_cache=False).loss
        with pytest.raises(
            UnsupportedError, match="Train without gradient checkpointing where tokens are named by their positions"
        ):
            loss.backward()
        disable()
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
    assert model.get_parameter("model.layers.1.mlp.gate.weight").grad.norm() > 0


@pytest.mark.parametrize("scope", ["generation", "thinking", "answer"])
def test_positions_with_scopes_that_begin_later_are_refused(scope: Any) -> None:
    marks = None if scope == "generation" else [6, 9]
    with pytest.raises(ConfigError, match=rf"MoTEConfig\.positions.*scope '{scope}'"):
        MoTEConfig(suppress=[[1, 0]], positions=[1], scope=scope, thinking_tokens=marks)
