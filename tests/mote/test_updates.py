"""The updates of experts: read in a pass, put into another, and refused where there are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_families import TINY_FAMILIES
from tiny_models import tiny_model

from hf_mote.errors import UnsupportedError
from hf_mote.mote.updates import Updates, attach_updates
from hf_mote.routing.sites.routed_model import RoutedModel

IDS = torch.tensor([[5, 6, 7, 8], [9, 8, 40, 6]])
ALL = torch.ones(IDS.numel(), dtype=torch.bool)
SOME = torch.tensor([False, True, False, True, True, False, False, False])
# Fused and single experts, latent ones, experts beside shared ones, zero experts, a skip class, a norm behind them.
FAMILIES = ("gpt_oss", "gemma4", "nemotron_h", "longcat_flash", "zaya", "dbrx", "deepseek_v4", "phimoe", "inkling")


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def read(model: Any, updates: Updates, row: int, where: torch.Tensor = ALL) -> Any:
    updates.wanted, updates.where = row, where
    logits_of(model)
    updates.wanted = None
    return updates.read()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_updates_sum_to_the_routed_output_and_reading_changes_nothing(family: str, dtype: torch.dtype) -> None:
    model = TINY_FAMILIES[family](dtype=dtype)
    routed = RoutedModel(model)
    whole, used = logits_of(model), 0
    with attach_updates(routed) as updates:
        for row, site in enumerate(routed.sites):
            updates.outputs = {}
            found = read(model, updates, row, SOME)
            assert torch.equal(logits_of(model), whole)
            experts = [found.of(expert) for expert in sorted(found.used)]
            assert found.used <= set(range(site.num_experts))
            assert found.experts.shape == (3, site.top_k)
            torch.testing.assert_close(
                sum(experts), updates.outputs[row].float(), rtol=0, atol=8 * torch.finfo(dtype).eps
            )
            used += sum(bool(update.any()) for update in experts)
    assert used > len(routed.sites)
    assert torch.equal(logits_of(model), whole)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_update_of_nothing_changes_no_bit_and_another_one_does(family: str) -> None:
    model = TINY_FAMILIES[family]()
    routed = RoutedModel(model)
    whole = logits_of(model)
    with attach_updates(routed) as updates:
        found, again = read(model, updates, 0), read(model, updates, 0)
        for expert in found.used:
            updates.added = {0: again.of(expert) - found.of(expert)}
            assert torch.equal(logits_of(model), whole)
        expert = next(expert for expert in found.used if found.of(expert).any())
        updates.added = {0: -found.of(expert)}
        assert not torch.equal(logits_of(model), whole)


def test_output_of_all_layers_put_back_is_the_run_it_is_from() -> None:
    model = tiny_model("mixtral")
    routed = RoutedModel(model)
    whole = logits_of(model)
    with attach_updates(routed) as updates:
        updates.where, updates.outputs = ALL, {}
        logits_of(model)
        outputs, updates.outputs = updates.outputs, None
        updates.instead = outputs
        assert torch.equal(logits_of(model), whole)
        updates.instead = {1: outputs[0]}
        assert not torch.equal(logits_of(model), whole)


@pytest.mark.parametrize(
    ("family", "word"),
    [("llama4", "no module of its block"), ("jetmoe", "no module of its block"), ("inkling2_loop", "several times")],
)
def test_blocks_whose_experts_are_out_of_reach_are_refused(family: str, word: str) -> None:
    model = TINY_FAMILIES[family]()
    with attach_updates(RoutedModel(model)) as updates, pytest.raises(UnsupportedError, match=word):
        read(model, updates, 0)
    assert not any(module._forward_hooks for module in model.modules())


def test_experts_that_return_no_rows_of_tokens_are_refused() -> None:
    model = tiny_model("mixtral")
    (experts,) = [module for name, module in model.named_modules() if name.endswith("layers.1.mlp.experts")]
    native = type(experts).forward

    class Paired(type(experts)):  # type: ignore[misc]
        def forward(self, *args: Any) -> Any:
            return native(self, *args), None

    experts.__class__ = Paired
    message = r"layers\.1.*Paired must return the routed output.*got tuple"
    with attach_updates(RoutedModel(model)) as updates, pytest.raises(UnsupportedError, match=message):
        read(model, updates, 1)


def test_experts_whose_updates_do_not_sum_to_their_output_are_refused() -> None:
    model = tiny_model("mixtral")
    (experts,) = [module for name, module in model.named_modules() if name.endswith("layers.1.mlp.experts")]
    native = type(experts).forward

    class Normed(type(experts)):  # type: ignore[misc]
        def forward(self, *args: Any) -> torch.Tensor:
            return torch.nn.functional.normalize(native(self, *args), dim=-1)

    experts.__class__ = Normed
    with attach_updates(RoutedModel(model)) as updates:
        read(model, updates, 0)
        with pytest.raises(UnsupportedError, match=r"layers\.1\.mlp\.gate: the updates of single experts do not sum"):
            read(model, updates, 1)
