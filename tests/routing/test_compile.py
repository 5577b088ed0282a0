"""Patching and `torch.compile`: in one graph, before and after compiling, without compiling anew at every call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_families import TINY_FAMILIES
from transformers import PreTrainedModel

from hf_mote import MoTEConfig, apply_mote, find_routers, record_routing
from hf_mote.errors import UnsupportedError

TEXT = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 16, 17, 18]])
FAMILIES = ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss"]


class Counted:
    """A backend that runs the graph as it is and counts how often it is asked to compile."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        self.graphs += 1
        return graph


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    torch._dynamo.reset()
    yield TINY_FAMILIES[request.param]().requires_grad_(False)
    torch._dynamo.reset()


def config_for(model: PreTrainedModel, **fields: object) -> MoTEConfig:
    layer = find_routers(model)[-1].layer
    return MoTEConfig.for_model(model, suppress=[[layer, expert] for expert in range(4)], **fields)


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    # The graph fuses nothing, but views and sums may round in another order.
    return torch.allclose(one, other, atol=1e-5)


def test_compile_whole_graph_follows_patching_before_and_after(model: PreTrainedModel) -> None:
    native = model(TEXT, use_cache=False).logits
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert close(compiled(TEXT, use_cache=False).logits, native)
    with apply_mote(model, config_for(model)) as handle:
        patched = model(TEXT, use_cache=False).logits
        assert not torch.allclose(patched, native, atol=1e-3)
        assert close(compiled(TEXT, use_cache=False).logits, patched)
        handle.active = False
        assert close(compiled(TEXT, use_cache=False).logits, native)
        handle.active = True
        assert close(torch.compile(model, fullgraph=True, backend="eager")(TEXT, use_cache=False).logits, patched)
    assert close(compiled(TEXT, use_cache=False).logits, native)


@pytest.mark.parametrize("scope", ["all", "prompt"])
def test_compile_patched_model_does_not_compile_at_every_call(model: PreTrainedModel, scope: str) -> None:
    counted = Counted()
    compiled = torch.compile(model, fullgraph=True, backend=counted)
    with apply_mote(model, config_for(model, suppress_mode="reroute", scope=scope)):
        wanted = model(TEXT, use_cache=False).logits
        for _ in range(12):
            assert close(compiled(TEXT, use_cache=False).logits, wanted)
    assert counted.graphs <= 2


def test_compile_recording_is_refused_and_the_remedy_works(model: PreTrainedModel) -> None:
    compiled = torch.compile(model, backend="eager")
    with record_routing(model, eos_token_id=[]) as record:
        with pytest.raises(UnsupportedError, match="Record the model itself"):
            compiled(TEXT, use_cache=False)
        model(TEXT, use_cache=False)
    assert [found.num_tokens for found in record.maps()] == [7.0, 7.0]
