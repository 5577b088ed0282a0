"""The ways in which transformers runs the experts: one by one, or all at once by a grouped product."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from routing_cases import no_gradients, suppressing  # noqa: F401
from tiny_families import TINY_FAMILIES
from tiny_models import TINY_MODELS, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_mote import apply_mote, record_routing
from hf_mote.routing.recording.record import RoutingTrace

TOKENS = torch.randint(5, 85, (3, 9), generator=torch.Generator().manual_seed(5))
FAMILIES = ["mixtral", "deepseek_v3", "qwen3_moe", "gpt_oss"]
MODES = ["drop", "reroute", "zero"]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    name = request.param
    return tiny_model(name) if name in TINY_MODELS else TINY_FAMILIES[name]()


def seen(model: PreTrainedModel) -> tuple[torch.Tensor, list[RoutingTrace]]:
    with record_routing(model, trace=True) as record:
        logits = model(input_ids=TOKENS).logits
    return logits, record.traces()


def assert_same(one: tuple[torch.Tensor, list[RoutingTrace]], other: tuple[torch.Tensor, list[RoutingTrace]]) -> None:
    # The experts' products are added up in another order.
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(one[1], other[1], strict=True):
        assert torch.equal(mine.indices, theirs.indices)
        torch.testing.assert_close(mine.weights, theirs.weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_apply_mote_patched_routing_is_the_same_whatever_runs_the_experts(model: PreTrainedModel, mode: str) -> None:
    found = {}
    for implementation in ("eager", "grouped_mm", "batched_mm"):
        model.set_experts_implementation(implementation)
        native = seen(model)[0]
        with apply_mote(model, suppressing(model, 0, 3, suppress_mode=mode)):
            found[implementation] = seen(model)
        assert torch.equal(model(input_ids=TOKENS).logits, native)
        assert not torch.allclose(found[implementation][0], native, atol=1e-2)
    assert_same(found["grouped_mm"], found["eager"])
    assert_same(found["batched_mm"], found["eager"])


@pytest.mark.parametrize("mode", MODES)
def test_apply_mote_implementation_switched_under_the_patch_keeps_it(model: PreTrainedModel, mode: str) -> None:
    config = suppressing(model, 0, 3, suppress_mode=mode)
    model.set_experts_implementation("eager")
    native = model(input_ids=TOKENS).logits
    with apply_mote(model, config):
        patched = seen(model)
    handle = apply_mote(model, config)
    model.set_experts_implementation("grouped_mm")
    assert_same(seen(model), patched)
    model.set_experts_implementation("eager")
    again = seen(model)
    assert torch.equal(again[0], patched[0])
    assert_same(again, patched)
    handle.remove()
    assert torch.equal(model(input_ids=TOKENS).logits, native)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_apply_mote_model_loaded_with_an_implementation_is_patched_alike(
    model: PreTrainedModel, tmp_path: Path, implementation: str
) -> None:
    config = suppressing(model, 0, 3)
    model.set_experts_implementation(implementation)
    with apply_mote(model, config):
        wanted = seen(model)
    model.save_pretrained(tmp_path)
    how = {"experts_implementation": implementation, "dtype": torch.float32}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, **how).eval()
    with apply_mote(loaded, config):
        patched = seen(loaded)
    assert torch.equal(patched[0], wanted[0])
    assert_same(patched, wanted)
