"""Recording: what is counted, whatever the batching, padding, caching and patching; in memory that does not grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caches import cache_of, taking
from routing_cases import GREEDY, dense, no_gradients, num_hooks, observe_experts  # noqa: F401
from tiny_models import TINY_MODELS, tiny_model
from transformers import PreTrainedModel

from hf_mote import ActivationMap, Intervention, MoTEConfig, apply_mote, find_routers, record_routing
from hf_mote.errors import ConfigError, DataError, HFMoTEError, RouterContractError, UnsupportedError
from hf_mote.hooks import SharedHook, stack_on
from hf_mote.passes.decoder_hook import DecoderHook
from hf_mote.passes.forward import Forward


@pytest.fixture(params=TINY_MODELS)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture(params=["deepseek_v3", "mixtral"])
def one_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


def prompts(*lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(5, 95, (length,), generator=generator) for length in lengths]


def padded(texts: list[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    width = max(map(len, texts))
    rows, masks = [], []
    for text in texts:
        pad, ones = torch.zeros(width - len(text), dtype=torch.long), torch.ones_like(text)
        parts = ((pad, text), (pad, ones)) if side == "left" else ((text, pad), (ones, pad))
        rows.append(torch.cat(parts[0]))
        masks.append(torch.cat(parts[1]))
    return {"input_ids": torch.stack(rows), "attention_mask": torch.stack(masks)}


def alone(text: torch.Tensor) -> dict[str, torch.Tensor]:
    return padded([text], "left")


def assert_same(found: list[ActivationMap], wanted: list[ActivationMap]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.num_tokens == other.num_tokens
        assert torch.equal(one.counts, other.counts)
        # Rows of another batch add up in another order.
        torch.testing.assert_close(one.weights, other.weights, rtol=1e-4, atol=1e-4)


def size_of(record: Any) -> int:
    """Numbers in all tensors that a record holds, the model and its hooks aside."""
    seen: set[int] = set()

    def walk(item: Any) -> int:
        if id(item) in seen or isinstance(item, torch.nn.Module | SharedHook):
            return 0
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            return item.numel()
        if isinstance(item, dict):
            return sum(walk(value) for value in item.values())
        if isinstance(item, list | tuple):
            return sum(walk(value) for value in item)
        return walk(vars(item)) if type(item).__module__.startswith("hf_mote.") and hasattr(item, "__dict__") else 0

    return walk(vars(record))


def checkpoint(model: PreTrainedModel, reentrant: bool) -> None:
    # The name that 5.23 deprecates is the only one that 5.16 has.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})


def test_record_routing_plain_forward_counts_tokens_times_top_k(model: PreTrainedModel) -> None:
    sites = find_routers(model)
    tokens = torch.stack(prompts(7, 7, 7))
    native = model(tokens).logits
    with record_routing(model) as record:
        assert torch.equal(model(tokens).logits, native)
    assert record.layers == tuple(site.layer for site in sites)
    assert record.num_sequences == 3
    for found in record.maps():
        assert found.num_tokens == 7
        assert (found.counts.sum(dim=1) == 7 * sites[0].top_k).all()
    assert all(found.counts.sum() == 0 and found.num_tokens == 0 for found in record.maps("generation"))
    assert_same(record.maps("prompt"), record.maps("all"))
    assert record.total().counts.sum() == 3 * 7 * sites[0].top_k * len(sites)
    assert num_hooks(model) == 0


def test_record_routing_maps_are_what_the_experts_got(model: PreTrainedModel) -> None:
    tokens = torch.stack(prompts(6, 6))
    with record_routing(model) as record, observe_experts(model) as seen:
        model(tokens)
    for position, layer in enumerate(record.layers):
        weights, chosen = dense(*seen[layer][0], 8)
        for row, found in enumerate(record.maps()):
            mine = slice(row * 6, row * 6 + 6)
            assert torch.equal(found.counts[position], torch.tensor(chosen[mine].sum(axis=0), dtype=torch.float64))
            torch.testing.assert_close(
                found.weights[position], torch.tensor(weights[mine].sum(axis=0)), rtol=1e-6, atol=1e-6
            )


def test_record_routing_generate_last_sampled_token_has_no_routing(model: PreTrainedModel) -> None:
    top_k = find_routers(model)[0].top_k
    with record_routing(model) as record:
        model.generate(**alone(prompts(5)[0]), max_new_tokens=6, **GREEDY)
        model.generate(**alone(prompts(5)[0]), max_new_tokens=1, **GREEDY)
    assert [found.num_tokens for found in record.maps("prompt")] == [5, 5]
    assert [found.num_tokens for found in record.maps("generation")] == [5, 0]
    assert (record.maps("generation")[0].counts.sum(dim=1) == 5 * top_k).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_record_routing_padded_forward_equals_prompts_one_by_one(model: PreTrainedModel, side: str) -> None:
    texts = prompts(3, 9, 1, 6)
    with record_routing(model) as batched:
        batch = padded(texts, side)
        positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        model(**batch, position_ids=positions)
    with record_routing(model) as single:
        for text in texts:
            model(text[None])
    for phase in ("prompt", "generation", "all"):
        assert_same(batched.maps(phase), single.maps(phase))


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_record_routing_left_padded_generate_equals_prompts_one_by_one(
    model: PreTrainedModel, how: dict[str, Any]
) -> None:
    texts = prompts(3, 9, 1, 6)
    with record_routing(model, eos_token_id=[]) as batched:
        model.generate(**padded(texts, "left"), max_new_tokens=5, **GREEDY, **how)
    with record_routing(model, eos_token_id=[]) as single:
        for text in texts:
            model.generate(**alone(text), max_new_tokens=5, **GREEDY)
    assert [found.num_tokens for found in batched.maps("prompt")] == [3, 9, 1, 6]
    assert [found.num_tokens for found in batched.maps("generation")] == [4, 4, 4, 4]
    for phase in ("prompt", "generation", "all"):
        assert_same(batched.maps(phase), single.maps(phase))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_record_routing_padding_is_told_apart_under_any_attention(attention: str, cache: str) -> None:
    model = tiny_model("mixtral")
    model.set_attn_implementation(attention)
    with record_routing(model, eos_token_id=[]) as record:
        model.generate(**padded(prompts(2, 8), "left"), max_new_tokens=3, cache_implementation=cache, **GREEDY)
    assert [found.num_tokens for found in record.maps("prompt")] == [2, 8]
    assert [found.num_tokens for found in record.maps("generation")] == [2, 2]


def _ending_at_different_steps(model: PreTrainedModel, texts: list[torch.Tensor]) -> tuple[int, list[int]]:
    """A token that one row writes early and another later or never, and how many tokens each row writes until then."""
    batch = padded(texts, "left")
    written = model.generate(**batch, max_new_tokens=10, **GREEDY)[:, batch["input_ids"].shape[1] :]
    for token in written.flatten().tolist():
        lengths = [row.index(token) + 1 if token in row else 10 for row in written.tolist()]
        if len(set(lengths)) > 1 and min(lengths) < 6:
            return token, lengths
    pytest.fail("no such token; take other prompts")


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_record_routing_rows_that_end_at_different_steps_equal_prompts_one_by_one(
    model: PreTrainedModel, how: dict[str, Any]
) -> None:
    texts = prompts(4, 7, 2)
    eos, lengths = _ending_at_different_steps(model, texts)
    options = GREEDY | {"eos_token_id": eos, "max_new_tokens": 10} | how
    with record_routing(model, trace=True, eos_token_id=eos) as batched:
        model.generate(**padded(texts, "left"), **options)
    with record_routing(model, trace=True, eos_token_id=[eos]) as single:
        for text in texts:
            model.generate(**alone(text), **options)
    assert [found.num_tokens for found in batched.maps("generation")] == [length - 1 for length in lengths]
    for phase in ("prompt", "generation", "all"):
        assert_same(batched.maps(phase), single.maps(phase))
    for one, other in zip(batched.traces(), single.traces(), strict=True):
        assert torch.equal(one.generated, other.generated)
        assert one.indices.shape == other.indices.shape


def test_record_routing_end_token_of_the_generation_config_is_the_default(one_model: PreTrainedModel) -> None:
    texts = prompts(4, 7, 2)
    eos, lengths = _ending_at_different_steps(one_model, texts)
    one_model.generation_config.eos_token_id = eos
    with record_routing(one_model) as record:
        one_model.generate(**padded(texts, "left"), max_new_tokens=10, do_sample=False, pad_token_id=0)
    assert [found.num_tokens for found in record.maps("generation")] == [length - 1 for length in lengths]


def test_record_routing_end_token_within_the_prompt_ends_nothing(one_model: PreTrainedModel) -> None:
    text = torch.tensor([7, 1, 8, 1])
    with record_routing(one_model, eos_token_id=1) as record:
        one_model.generate(**alone(text), max_new_tokens=3, **GREEDY)
    assert record.maps("prompt")[0].num_tokens == 4
    assert record.maps("generation")[0].num_tokens == 2


def test_record_routing_accumulators_do_not_grow_with_generated_tokens(model: PreTrainedModel) -> None:
    sizes = []
    for length in (4, 40):
        with record_routing(model, eos_token_id=[]) as record:
            model.generate(**padded(prompts(5, 5), "left"), max_new_tokens=length, **GREEDY)
        assert record.maps("generation")[0].num_tokens == length - 1
        sizes.append(size_of(record))
    assert sizes[0] == sizes[1] > 0


@pytest.mark.parametrize("plain", [False, True])
def test_record_routing_accumulators_do_not_grow_with_prompt_tokens(one_model: PreTrainedModel, plain: bool) -> None:
    sizes = []
    for length in (4, 64):
        text = alone(prompts(length)[0])
        with record_routing(one_model, eos_token_id=[]) as record:
            if plain:
                one_model(**text)
            else:
                one_model.generate(**text, max_new_tokens=3, **GREEDY)
        sizes.append(size_of(record))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
def test_record_routing_trace_sums_equal_the_maps(model: PreTrainedModel, how: dict[str, Any]) -> None:
    texts = prompts(3, 6)
    with (
        apply_mote(model, MoTEConfig(suppress=[[1, 2], [2, 0]], scope="generation")),
        record_routing(model, trace=True, eos_token_id=[]) as record,
    ):
        model.generate(**padded(texts, "left"), max_new_tokens=6, **GREEDY, **how)
    for phase, generated in (("prompt", False), ("generation", True)):
        for found, trace in zip(record.maps(phase), record.traces(), strict=True):
            mine = trace.generated == generated
            assert int(mine.sum()) == found.num_tokens
            for position in range(len(record.layers)):
                weights, _ = dense(trace.weights[mine, position], trace.indices[mine, position].long(), 8)
                torch.testing.assert_close(
                    found.weights[position], torch.tensor(weights.sum(axis=0)), rtol=1e-5, atol=1e-5
                )
                counts = torch.tensor((weights != 0).sum(axis=0), dtype=torch.float64)
                assert torch.equal(found.counts[position], counts)


def test_record_routing_under_a_patch_keeps_native_and_applied_apart(model: PreTrainedModel) -> None:
    first, tokens = find_routers(model)[0], torch.stack(prompts(9))
    with record_routing(model) as before:
        model(tokens)
    target = int(before.maps()[0].counts[0].argmax())
    config = MoTEConfig(suppress=[[first.layer, target]])
    with apply_mote(model, config), record_routing(model) as after:
        model(tokens)
    native, applied = after.maps(routing="native")[0], after.maps()[0]
    # The first router's input is untouched, so what it decides by itself is what it decided before.
    assert torch.equal(native.counts[0], before.maps()[0].counts[0])
    assert torch.equal(native.weights[0], before.maps()[0].weights[0])
    assert native.counts[0, target] > 0
    assert applied.counts[0, target] == 0
    assert applied.weights[0, target] == 0
    others = torch.arange(8) != target
    assert torch.equal(applied.counts[0, others], native.counts[0, others])
    torch.testing.assert_close(applied.weights[0].sum(), native.weights[0].sum(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("patch_first", [True, False])
def test_record_routing_order_of_patch_and_record_does_not_matter(
    one_model: PreTrainedModel, patch_first: bool
) -> None:
    config, tokens = MoTEConfig(stimulate=[[2, 3]], stimulate_weight="max"), torch.stack(prompts(9))
    if patch_first:
        handle, record = apply_mote(one_model, config), record_routing(one_model)
    else:
        record, handle = record_routing(one_model), apply_mote(one_model, config)
    one_model(tokens)
    handle.remove()
    record.remove()
    row = record.layers.index(2)
    assert record.maps()[0].counts[row, 3] == 9
    assert record.maps(routing="native")[0].counts[row, 3] < 9
    assert num_hooks(one_model) == 0


def test_record_routing_patch_switched_during_generation_is_followed(one_model: PreTrainedModel) -> None:
    config = MoTEConfig(stimulate=[[2, 3]])
    with record_routing(one_model, eos_token_id=[]) as record, apply_mote(one_model, config) as handle:
        out = one_model(prompts(5)[0][None], use_cache=True)
        handle.active = False
        for _ in range(4):
            one_model(torch.tensor([[9]]), **taking(one_model, cache_of(out)), use_cache=True)
    row = record.layers.index(2)
    assert record.maps("prompt")[0].counts[row, 3] == 5
    assert torch.equal(record.maps("generation")[0].counts, record.maps("generation", routing="native")[0].counts)
    assert record.maps()[0].num_tokens == 9


def test_record_routing_several_runs_come_one_after_the_other(model: PreTrainedModel) -> None:
    texts = prompts(4, 6, 2, 5)
    with record_routing(model, eos_token_id=[]) as record:
        model.generate(**padded(texts[:2], "left"), max_new_tokens=3, **GREEDY)
        model(texts[2][None])
        model.generate(**alone(texts[3]), max_new_tokens=4, use_cache=False, **GREEDY)
        model.generate(**alone(texts[3]), max_new_tokens=4, use_cache=False, **GREEDY)
    assert record.num_sequences == 5
    assert [found.num_tokens for found in record.maps("prompt")] == [4, 6, 2, 5, 5]
    assert [found.num_tokens for found in record.maps("generation")] == [2, 2, 0, 3, 3]
    assert_same(record.maps()[3:4], record.maps()[4:5])


def test_record_routing_plain_forwards_of_growing_texts_are_sequences_of_their_own(one_model: PreTrainedModel) -> None:
    text = prompts(6)[0]
    with record_routing(one_model) as record:
        for length in (4, 5, 6):
            one_model(text[None, :length])
    assert [found.num_tokens for found in record.maps("prompt")] == [4, 5, 6]
    assert [found.num_tokens for found in record.maps("generation")] == [0, 0, 0]


def test_record_routing_sampled_sequences_of_one_prompt_are_sequences_of_their_own(one_model: PreTrainedModel) -> None:
    with record_routing(one_model, eos_token_id=[]) as record:
        torch.manual_seed(0)
        one_model.generate(
            **alone(prompts(5)[0]), max_new_tokens=4, num_return_sequences=3, **GREEDY | {"do_sample": True}
        )
    assert [found.num_tokens for found in record.maps()] == [8, 8, 8]


def test_record_routing_embeddings_in_place_of_tokens_are_counted_alike(one_model: PreTrainedModel) -> None:
    batch = padded(prompts(4, 7), "left")
    embeddings = one_model.get_input_embeddings()(batch["input_ids"])
    with record_routing(one_model, eos_token_id=[]) as record:
        one_model.generate(**batch, max_new_tokens=4, **GREEDY)
        one_model.generate(
            inputs_embeds=embeddings, attention_mask=batch["attention_mask"], max_new_tokens=4, **GREEDY
        )
    for phase in ("prompt", "generation"):
        assert_same(record.maps(phase)[:2], record.maps(phase)[2:])


def test_record_routing_beams_are_refused_or_right(one_model: PreTrainedModel) -> None:
    text = alone(prompts(6)[0])
    options = GREEDY | {"max_new_tokens": 8}
    with record_routing(one_model, eos_token_id=[]) as record:
        try:
            beam = one_model.generate(**text, num_beams=4, **options)
        except UnsupportedError:
            assert record.num_sequences in (0, 4)
            return
    with record_routing(one_model, eos_token_id=[]) as single:
        one_model(beam[:, :-1])
    assert_same(record.maps(), single.maps())


def test_record_routing_prompt_lookup_is_refused_or_right(one_model: PreTrainedModel) -> None:
    """Tokens that speculation takes back were never part of the text."""
    ids = torch.tensor([[10, 11, 12, 13] * 4])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, **GREEDY}
    with record_routing(one_model, eos_token_id=[]) as plain:
        one_model.generate(ids, **options)
    with record_routing(one_model, eos_token_id=[]) as record:
        try:
            one_model.generate(ids, prompt_lookup_num_tokens=3, **options)
        except UnsupportedError:
            return
    for phase in ("prompt", "generation"):
        assert_same(record.maps(phase), plain.maps(phase))


def test_record_routing_chunked_prefill_is_refused(one_model: PreTrainedModel) -> None:
    text = alone(prompts(11)[0])
    with (
        record_routing(one_model, eos_token_id=[]),
        pytest.raises(UnsupportedError, match="prefill_chunk_size"),
    ):
        one_model.generate(**text, max_new_tokens=3, prefill_chunk_size=5, **GREEDY)


@pytest.mark.parametrize("reentrant", [True, False])
def test_record_routing_gradient_checkpointing_counts_tokens_once(one_model: PreTrainedModel, reentrant: bool) -> None:
    top_k = find_routers(one_model)[0].top_k
    one_model.train()
    checkpoint(one_model, reentrant)
    one_model.enable_input_require_grads()
    calls = []
    handle = find_routers(one_model)[-1].module.register_forward_hook(lambda *_: calls.append(1))
    tokens = torch.stack(prompts(6, 6))
    with torch.enable_grad(), record_routing(one_model, trace=True) as record:
        for _ in range(2):
            one_model(tokens, labels=tokens, use_cache=False).loss.backward()
    handle.remove()
    assert len(calls) == 4  # the model really did run its layers again
    assert [found.num_tokens for found in record.maps()] == [6] * 4
    assert all((found.counts.sum(dim=1) == 6 * top_k).all() for found in record.maps())
    assert all(len(trace.indices) == 6 for trace in record.traces())


@pytest.mark.parametrize("fields", [{}, {"scope": "prompt"}], ids=["all", "prompt"])
def test_apply_mote_gradient_checkpointing_gives_the_same_gradients(
    one_model: PreTrainedModel, fields: dict[str, Any]
) -> None:
    """Two texts of different length run before one backward pass, as in preference training."""
    texts = prompts(6, 9)

    def gradients() -> list[torch.Tensor]:
        one_model.zero_grad()
        with torch.enable_grad():
            losses = [one_model(text[None], labels=text[None], use_cache=False).loss for text in texts]
            (losses[0] - losses[1]).backward()
        return [p.grad.clone() for p in one_model.parameters() if p.grad is not None]

    one_model.train()
    with apply_mote(one_model, MoTEConfig(suppress=[[1, 2], [2, 3]], suppress_mode="reroute", **fields)):
        plain = gradients()
        checkpoint(one_model, reentrant=False)
        again = gradients()
    assert len(plain) == len(again) > 0
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_record_routing_exception_inside_the_block_leaves_zero_hooks(model: PreTrainedModel) -> None:
    native = model(torch.tensor([[5, 6]])).logits
    with pytest.raises(ZeroDivisionError), record_routing(model) as record:  # noqa: PT012
        model(torch.tensor([[5, 6, 7]]))
        raise ZeroDivisionError
    assert num_hooks(model) == 0
    model(torch.tensor([[5, 6, 7]]))
    assert record.num_sequences == 1
    assert torch.equal(model(torch.tensor([[5, 6]])).logits, native)


def test_record_routing_forward_that_fails_leaves_the_next_one_right(one_model: PreTrainedModel) -> None:
    with record_routing(one_model) as record:
        with pytest.raises(IndexError):
            one_model(torch.tensor([[5, 600]]))
        one_model(torch.tensor([[5, 6, 7]]))
    assert record.maps()[-1].num_tokens == 3
    assert record.maps()[-1].counts.sum() == 3 * find_routers(one_model)[0].top_k * len(record.layers)


@pytest.mark.parametrize("where", ["embedding", "deepest layer", "watcher"])
def test_record_routing_routers_run_after_a_forward_that_failed_are_not_part_of_it(
    one_model: PreTrainedModel, where: str
) -> None:
    deepest = one_model.model.layers[-1]
    block = one_model.get_submodule(find_routers(one_model)[0].path.rpartition(".")[0])
    with record_routing(one_model) as record:
        one_model(torch.tensor([[5, 6, 7]]))
        if where == "watcher":
            record.token_filter = lambda forward: 1 / 0
        failing = deepest.register_forward_pre_hook(lambda *_: 1 / 0) if where == "deepest layer" else None
        with pytest.raises(IndexError if where == "embedding" else ZeroDivisionError):
            one_model(torch.tensor([[5, 600 if where == "embedding" else 6, 7]]))
        if failing is not None:
            failing.remove()
        tracker = stack_on(one_model.model, DecoderHook)
        for _ in range(3):
            with pytest.raises(RouterContractError, match="cannot be matched to tokens"):
                block(torch.randn(1, 3, 32))
        assert tracker is not None
        assert tracker.under_way() is None
        record.token_filter = None
        one_model(torch.tensor([[5, 6, 7]]))
    first, *_, last = record.maps()
    assert torch.equal(first.counts, last.counts)
    assert num_hooks(one_model) == 0


def test_record_routing_block_run_by_itself_is_not_counted_silently(one_model: PreTrainedModel) -> None:
    """Rows that reach a router outside the model's own forward belong to no token."""
    path = find_routers(one_model)[-1].path.rpartition(".")[0]
    with record_routing(one_model) as record:
        one_model(torch.tensor([[5, 6, 7]]))
        counts = record.maps()[0].counts
        try:
            one_model.get_submodule(path)(torch.randn(1, 3, 32))
        except HFMoTEError:
            return
        assert torch.equal(record.maps()[0].counts, counts)


def test_record_routing_paused_record_does_not_add_to_the_sequence_before(one_model: PreTrainedModel) -> None:
    """Switched off while a second prompt is read, and on for its generation."""
    with record_routing(one_model, eos_token_id=[]) as record:
        one_model(torch.tensor([[5, 6, 7]]))
        record.active = False
        out = one_model(torch.tensor([[9, 8, 7]]), use_cache=True)
        record.active = True
        one_model(torch.tensor([[4]]), **taking(one_model, cache_of(out)), use_cache=True)
    assert record.maps()[0].num_tokens == 3
    assert sum(found.num_tokens for found in record.maps("generation")) == 1


def test_record_routing_two_records_at_once_see_the_same(one_model: PreTrainedModel) -> None:
    with record_routing(one_model) as outer:
        one_model(torch.tensor([[5, 6, 7]]))
        with record_routing(one_model) as inner:
            one_model(torch.tensor([[9, 8, 7, 6]]))
        one_model(torch.tensor([[5, 6]]))
    assert [found.num_tokens for found in outer.maps()] == [3, 4, 2]
    assert_same(inner.maps(), outer.maps()[1:2])


def test_record_routing_unknown_phase_or_routing_is_refused(one_model: PreTrainedModel) -> None:
    with record_routing(one_model) as record:
        pass
    with pytest.raises(ConfigError, match="phase"):
        record.maps("thinking")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="routing"):
        record.maps(routing="raw")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="trace"):
        record.traces()
    with pytest.raises(DataError, match="nothing was recorded"):
        record.total()
    assert record.maps() == []


@pytest.mark.parametrize("side", ["left", "right"])
def test_record_routing_traces_of_routers_that_choose_different_numbers_are_filled_up(
    one_model: PreTrainedModel, side: str
) -> None:
    first, *_, last = find_routers(one_model)
    last.module.top_k = first.top_k + 1
    texts = prompts(3, 6)
    with record_routing(one_model, trace=True) as record:
        one_model(**padded(texts, side))
    for text, trace, found in zip(texts, record.traces(), record.maps(), strict=True):
        assert trace.indices.shape == trace.weights.shape == (len(text), len(record.layers), first.top_k + 1)
        assert bool((trace.indices[:, :-1, -1] == -1).all())
        assert bool((trace.weights[:, :-1, -1] == 0).all())
        assert bool((trace.indices[:, -1] >= 0).all())
        for position in range(len(record.layers)):
            chosen = trace.indices[:, position].flatten()
            counts = torch.bincount(chosen[chosen >= 0], minlength=first.num_experts)
            assert torch.equal(found.counts[position], counts.double())
    assert record.traces()[0].indices.dtype == torch.int32
    # As without the wider router, where its choices are not looked at.
    last.module.top_k = first.top_k
    with record_routing(one_model, trace=True) as narrow:
        one_model(**padded(texts, side))
    for wide, plain in zip(record.traces(), narrow.traces(), strict=True):
        assert torch.equal(wide.indices[:, 0, :-1], plain.indices[:, 0])
        assert torch.equal(wide.weights[:, 0, :-1], plain.weights[:, 0])


def test_record_routing_only_is_the_earlier_name_of_token_filter(one_model: PreTrainedModel) -> None:
    def first_token(forward: Forward) -> torch.Tensor:
        return torch.arange(forward.batch * forward.length) % forward.length == 0

    with record_routing(one_model) as record:
        with pytest.warns(DeprecationWarning, match="use token_filter"):
            record.only = first_token
        with pytest.warns(DeprecationWarning, match="use token_filter"):
            assert record.only is record.token_filter is first_token
        one_model(torch.tensor([[5, 6, 7]]))
    assert record.maps()[0].num_tokens == 1


def test_record_routing_hands_out_an_intervention(one_model: PreTrainedModel) -> None:
    record = record_routing(one_model)
    assert isinstance(record, Intervention)
    record.active = False
    one_model(torch.tensor([[5, 6, 7]]))
    assert record.num_sequences == 0
    record.remove()
    assert (record.removed, record.active, num_hooks(one_model)) == (True, False, 0)
