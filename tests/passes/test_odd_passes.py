"""Passes that look like others: counted as what they are, or refused with the true reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from caches import cache_of, taking
from tiny_families import TINY_FAMILIES
from tiny_models import tiny_model
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from hf_mote import MoTEConfig, apply_mote, record_routing
from hf_mote.errors import RouterContractError, UnsupportedError

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 5}


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("mixtral")


def tokens(record: Any) -> tuple[list[float], list[float]]:
    return tuple([found.num_tokens for found in record.maps(phase)] for phase in ("prompt", "generation"))  # type: ignore[return-value]


@pytest.mark.parametrize("part", ["model", "decoder"])
def test_record_routing_without_a_cache_of_a_model_that_embeds_before_its_decoder(part: str) -> None:
    model = TINY_FAMILIES["qwen3_vl_moe"]()
    with record_routing(model if part == "model" else model.model.language_model, eos_token_id=[]) as record:
        model.generate(IDS, use_cache=False, **GREEDY)
    assert tokens(record) == ([6], [4])


def test_generate_on_a_cache_with_one_token_of_the_prompt_left_is_refused(model: PreTrainedModel) -> None:
    for attached in (record_routing, lambda m: apply_mote(m, MoTEConfig(suppress=[[1, 0]], scope="prompt"))):
        with attached(model):
            cache = cache_of(model(IDS[:, :5], use_cache=True))
            with pytest.raises(UnsupportedError, match="generate began on a cache that held 5 tokens"):
                model.generate(IDS, **taking(model, cache), **GREEDY)


def test_generate_in_chunks_is_refused_in_whatever_order_arguments_are_given(model: PreTrainedModel) -> None:
    with (
        apply_mote(model, MoTEConfig(suppress=[[1, 0]], scope="prompt")),
        pytest.raises(RouterContractError, match="got 5 prompt and 5 generated tokens, expected 6 and 4"),
    ):
        model.generate(attention_mask=torch.ones_like(IDS), input_ids=IDS, prefill_chunk_size=5, **GREEDY)


def test_copy_of_a_recorded_model_and_a_replaced_generate_are_watched_as_well(model: PreTrainedModel) -> None:
    with record_routing(model):
        other = copy.deepcopy(model)
    calls = []
    native = model.generate
    model.generate = lambda *args, **kwargs: calls.append(1) or native(*args, **kwargs)
    replaced = model.generate
    for one in (other, model):
        with record_routing(one, eos_token_id=[]) as record:
            one.generate(IDS, **GREEDY)
            with pytest.raises(RouterContractError, match="expected 6 and 4"):
                one.generate(IDS, prefill_chunk_size=5, **GREEDY)
        assert record.maps("prompt")[0].num_tokens == 6
    assert len(calls) == 2
    assert model.generate is replaced


def test_plain_forwards_without_a_cache_that_extend_each_other_are_refused_if_they_may_be_a_generation(
    model: PreTrainedModel,
) -> None:
    positions = torch.arange(6)[None]
    with record_routing(model) as record:
        model(IDS[:, :5], use_cache=False)
        model(IDS, use_cache=False)
        model(IDS[:, :5], position_ids=positions[:, :5], use_cache=False)
        with pytest.raises(UnsupportedError, match="can be a prompt or a generation"):
            model(IDS, position_ids=positions, use_cache=False)
    assert tokens(record) == ([5, 6, 5], [0, 0, 0])


@pytest.mark.parametrize(
    "more",
    [
        {"position_ids": torch.tensor([[0, 0, 1, 2, 3, 4]])},
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])},
        {"cu_seq_lens_q": torch.tensor([0, 3, 6]), "cu_seq_lens_k": torch.tensor([0, 3, 6])},
    ],
    ids=["one token and five", "two of three", "lengths"],
)
def test_record_routing_of_packed_rows_is_refused(model: PreTrainedModel, more: dict[str, Any]) -> None:
    with record_routing(model), pytest.raises(UnsupportedError, match="position ids start anew|packed"):
        model(IDS, use_cache=False, **more)


@pytest.mark.parametrize("fill", [0, 1])
def test_record_routing_padding_on_the_left_is_not_packing(model: PreTrainedModel, fill: int) -> None:
    ids, mask = torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1], [1] * 4])
    positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, fill)
    with record_routing(model) as record:
        model(ids, attention_mask=mask, position_ids=positions)
    assert [found.num_tokens for found in record.maps("prompt")] == [2, 4]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("window", [None, 4])
def test_record_routing_static_cache_past_a_window_and_padded_on_either_side(side: str, window: int | None) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MixtralConfig(
        vocab_size=50,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=window,
        **sizes,
    )
    model = MixtralForCausalLM(config).eval()
    rows = torch.tensor([[0, 0, 5, 6, 7, 8], [5, 6, 7, 8, 9, 10]])
    rows = rows if side == "left" else torch.stack([rows[0].roll(-2), rows[1]])
    how = {**GREEDY, "attention_mask": (rows != 0).long()}
    found = []
    for kind in ("static", None):
        with record_routing(model, eos_token_id=[]) as record:
            model.generate(rows, cache_implementation=kind, **how)
        found.append(tokens(record))
    assert found[0] == found[1] == ([4, 6], [4, 4])


def test_record_routing_padding_after_a_stopping_criterion_is_not_counted(model: PreTrainedModel) -> None:
    def stop(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.tensor([row[0] == 5 and len(row) >= 8 for row in ids.tolist()])

    rows = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])
    model.generation_config.pad_token_id = 0
    how = {**GREEDY, "stopping_criteria": [stop], "eos_token_id": 98}  # which the rows do not reach
    with record_routing(model) as alone:
        model.generate(rows[:1], **how)
    with record_routing(model) as together:
        model.generate(rows, **how)
    assert [found.num_tokens for found in alone.maps("generation")] == [1]
    # In a batch its last token is read, too; the padding that follows is not counted.
    assert [found.num_tokens for found in together.maps("generation")] == [2, 4]


@pytest.mark.parametrize("scope", ["prompt", "generation"])
def test_scopes_of_a_model_compiled_without_a_cache_are_refused(model: PreTrainedModel, scope: str) -> None:
    torch.compiler.reset()
    model.compile(backend="eager")
    with apply_mote(model, MoTEConfig(suppress=[[1, 0], [1, 1]], scope=scope)):
        for _ in range(2):  # the second time nothing is compiled
            with pytest.raises(UnsupportedError, match="compiled without a cache every step looks like a prompt"):
                model.generate(IDS, use_cache=False, **GREEDY)
    with apply_mote(model, MoTEConfig(suppress=[[1, 0], [1, 1]])):
        model.generate(IDS, use_cache=False, **GREEDY)


def test_different_configs_by_row_of_a_compiled_model_are_refused(model: PreTrainedModel) -> None:
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager")
    rows = IDS.repeat(2, 1)
    with apply_mote(model, [None, MoTEConfig(suppress=[[1, 0]])]):
        with pytest.raises(UnsupportedError, match="cannot see whether sequences stay in their rows"):
            compiled(rows, use_cache=False)
        patched = model(rows).logits
    assert torch.equal(patched[0], model(rows).logits[0])
