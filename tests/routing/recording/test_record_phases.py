"""Recording that waits and recording of one phase give, bit for bit, what recording at once of everything gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caches import cache_of, taking
from routing_cases import no_gradients  # noqa: F401
from tiny_models import tiny_model
from transformers import PreTrainedModel

import hf_mote.passes.decoder_hook
import hf_mote.routing.recording.tally
from hf_mote import MoTEConfig, RoutingRecord, apply_mote, record_routing
from hf_mote.errors import ConfigError, UnsupportedError

SAMPLED: dict[str, Any] = {"do_sample": True, "pad_token_id": 0, "max_new_tokens": 40}
IDS = torch.tensor([[0, 0, 11, 12, 13], [21, 22, 23, 24, 25], [0, 31, 32, 33, 34]])
CACHES = [{}, {"use_cache": False}, {"cache_implementation": "static"}]


@pytest.fixture(params=["deepseek_v3", "mixtral"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


def generate(model: PreTrainedModel, stops: list[int], **how: Any) -> None:
    """Sequences of different lengths that end at different steps."""
    torch.manual_seed(3)
    model.generate(IDS, attention_mask=(IDS > 0).long(), eos_token_id=stops, **SAMPLED, **how)


def everything(record: RoutingRecord) -> list[torch.Tensor]:
    return [
        tensor
        for phase in ("prompt", "generation")
        for routing in ("applied", "native")
        for tensor in record.stacked(phase, routing=routing)
    ]


@pytest.mark.parametrize("how", CACHES, ids=str)
@pytest.mark.parametrize("patch", [None, "all", "thinking"])
def test_record_routing_long_passes_add_up_to_what_short_ones_do(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], patch: str | None
) -> None:
    stops = list(range(60, 66))
    found = []
    # In the last, each decode step is long enough to be added up router by router.
    for tokens in (2048, 2):
        monkeypatch.setattr(hf_mote.routing.recording.tally, "TOKENS_AT_ONCE", tokens)
        with record_routing(model, eos_token_id=stops, thinking_tokens=(12, 40)) as record:
            if patch is None:
                generate(model, stops, **how)
            else:
                marks = None if patch == "all" else [12, 40]
                with apply_mote(model, MoTEConfig(suppress=[[1, 2]], scope=patch, thinking_tokens=marks)):
                    generate(model, stops, **how)
            found.append(everything(record))
    counted = found[0][3 * 2]  # generation, applied
    assert counted.sum() > 0
    assert len({float(tokens) for tokens in found[0][3 * 2 + 2]}) > 1, "no sequence ends before the others"
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@pytest.mark.parametrize("how", CACHES, ids=str)
@pytest.mark.parametrize("phase", ["prompt", "generation"])
def test_record_routing_of_one_phase_equals_that_phase_of_a_whole_record(
    model: PreTrainedModel, how: dict[str, Any], phase: str
) -> None:
    with record_routing(model) as whole, record_routing(model, phase=phase) as part:
        for _ in range(2):
            generate(model, [61], **how)
    assert all(torch.equal(one, two) for one, two in zip(whole.stacked(phase), part.stacked(), strict=True))
    assert part.stacked()[0].sum() > 0
    for other in {"prompt", "generation", "all"} - {phase}:
        with pytest.raises(ConfigError, match="was not recorded .*expected '" + phase):
            part.maps(other)
    assert part.total().num_tokens == whole.total(phase).num_tokens


def test_record_routing_of_prompts_alone_is_alive_where_the_first_pass_is_none(model: PreTrainedModel) -> None:
    with record_routing(model, phase="generation"):  # sees the generation begin
        cache = cache_of(model(IDS[:, 1:], use_cache=True))
        with record_routing(model, phase="prompt") as record:
            model(IDS[:, :1], **taking(model, cache), use_cache=True)
            assert record.stacked()[0].sum() == 0
            model(IDS)
    assert [found.num_tokens for found in record.maps()] == [0, 0, 0, 5, 5, 5]


def test_record_routing_of_a_generation_that_nobody_saw_begin_is_refused(model: PreTrainedModel) -> None:
    cache = cache_of(model(IDS[:, 1:], use_cache=True))
    with record_routing(model) as record:
        with pytest.raises(
            UnsupportedError, match="the forward passes that filled the cache with 4 tokens were not seen"
        ):
            model(IDS[:, :1], **taking(model, cache), use_cache=True)
        assert record.num_sequences == 0
        model(IDS)
    assert [found.num_tokens for found in record.maps()] == [5, 5, 5]


def test_record_routing_trace_of_prompts_alone_holds_no_generated_tokens(model: PreTrainedModel) -> None:
    with record_routing(model, phase="prompt", trace=True) as record:
        generate(model, [61])
    assert [len(trace.generated) for trace in record.traces()] == [3, 5, 4]
    assert not any(trace.generated.any() for trace in record.traces())


def test_record_routing_unknown_phase_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match="record_routing.phase: unknown phase"):
        record_routing(model, phase="answer")  # type: ignore[arg-type]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_stacked_is_what_the_maps_hold(model: PreTrainedModel) -> None:
    with record_routing(model) as record:
        assert [tuple(tensor.shape) for tensor in record.stacked()][2:] == [(0,)]
        generate(model, [61])
        generate(model, [62])
    counts, weights, tokens = record.stacked("generation")
    maps = record.maps("generation")
    assert torch.equal(counts, torch.stack([found.counts for found in maps]))
    assert torch.equal(weights, torch.stack([found.weights for found in maps]))
    assert tokens.tolist() == [found.num_tokens for found in maps]


def test_record_of_steps_in_one_reused_tensor_is_that_of_new_ones(model: PreTrainedModel) -> None:
    def counted(reuse: bool) -> list[torch.Tensor]:
        with record_routing(model, eos_token_id=[7]) as record:
            cache = cache_of(model(IDS[1:2], use_cache=True))
            one = torch.zeros(1, 1, dtype=torch.long)
            for token in (5, 6, 7, 8, 9):
                one = one.fill_(token) if reuse else torch.full((1, 1), token)
                model(one, **taking(model, cache))
        return everything(record)

    fresh, reused = counted(False), counted(True)
    assert all(torch.equal(a, b) for a, b in zip(fresh, reused, strict=True))


def test_traces_where_no_pass_had_anything_to_count_are_empty(model: PreTrainedModel) -> None:
    with record_routing(model, trace=True, phase="generation") as record:
        model(IDS)
    traces = record.traces()
    assert len(traces) == 3
    assert all(len(trace.indices) == len(trace.weights) == len(trace.generated) == 0 for trace in traces)
