"""The sample of weights outside the routers: the same however a model was loaded, another after any fine-tuning."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from tiny_families import TINY_FAMILIES
from tiny_models import tiny_model
from torch import nn

from hf_mote import MoTEConfig, apply_mote, find_routers
from hf_mote.errors import ModelMismatchError
from hf_mote.routing.sites.sampled_weights import differing, sample_weights

# Experts in one tensor, a dense layer before the routers, attention of several kinds, linear maps in the router.
FAMILIES = ["mixtral", "deepseek_v3", "qwen3_next", "jetmoe"]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return TINY_FAMILIES[request.param]()


def sampled(model: nn.Module) -> dict[str, str]:
    found = sample_weights(model, find_routers(model))
    assert isinstance(found, dict), found
    return found


def wrapped(model: nn.Module, *, trained: bool, **how: Any) -> nn.Module:
    how = {"target_modules": ["o_proj", "v_proj"], **how}
    torch.manual_seed(0)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        return get_peft_model(model, LoraConfig(r=2, init_lora_weights=not trained, **how)).eval()


def test_sample_holds_weights_of_three_layers_and_both_ends_and_no_router(model: nn.Module) -> None:
    found, sites = sampled(model), find_routers(model)
    assert {"embeddings", "output"} <= set(found)
    layers = {int(name.split(".")[1]) for name in found if name.startswith("layers.")}
    assert layers == {sites[0].layer, sites[len(sites) // 2].layer, sites[-1].layer}
    for site in sites:
        for parameter in site.module.parameters():
            parameter.data = parameter + 1
    assert sampled(model) == found


def test_sample_is_that_of_the_same_model_in_bfloat16_or_without_its_head(model: nn.Module) -> None:
    whole = sampled(model)
    assert sampled(copy.deepcopy(model).to(torch.bfloat16)) == whole
    bare = sampled(model.base_model)
    assert bare.items() <= whole.items()
    assert differing(bare, whole) == ([], len(bare))


def test_sample_of_offloaded_weights_is_that_of_the_whole_model(model: nn.Module, tmp_path: Path) -> None:
    whole = sampled(model)
    accelerate.disk_offload(model, str(tmp_path), execution_device="cpu")
    assert sampled(model) == whole


def test_sample_every_weight_of_a_sampled_layer_counts() -> None:
    model = tiny_model("mixtral")
    whole = sampled(model)
    routers = {id(held) for site in find_routers(model) for held in site.module.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) in routers or name == "model.norm.weight":
            continue
        kept = parameter.data
        parameter.data = kept * 1.01
        assert len(differing(whole, sampled(model))[0]) == 1, name
        parameter.data = kept
    assert sampled(model) == whole


@pytest.mark.parametrize("how", [{}, {"modules_to_save": ["k_proj"]}])
def test_sample_of_lora_is_that_of_the_merged_model(how: dict[str, Any]) -> None:
    model = tiny_model("mixtral")
    whole = sampled(model)
    fresh = wrapped(copy.deepcopy(model), trained=False, **how)
    assert sampled(fresh) == whole
    config = MoTEConfig.for_model(model, suppress=[[0, 1]])
    apply_mote(fresh, config).remove()
    tuned = wrapped(copy.deepcopy(model), trained=True, **how)
    for name, parameter in tuned.named_parameters():
        if "modules_to_save" in name:
            parameter.data = parameter * 2
    changed, compared = differing(whole, sampled(tuned))
    assert compared == len(whole)
    kinds = {name.split(".")[-2] for name in changed}
    assert kinds == {"o_proj", "v_proj", *how.get("modules_to_save", ())}
    with pytest.raises(ModelMismatchError, match="sampled_weights"):
        apply_mote(tuned, config)
    with apply_mote(tuned, config, allow_other_weights=True) as handle:
        assert "on other weights" in repr(handle)
    with tuned.disable_adapter():
        assert sampled(tuned) == whole
    merged = copy.deepcopy(tuned).merge_and_unload()
    assert sampled(merged) == sampled(tuned)


def test_sample_of_offloaded_lora_is_that_of_the_whole_one(tmp_path: Path) -> None:
    tuned = wrapped(tiny_model("mixtral"), trained=True)
    whole = sampled(tuned)
    accelerate.disk_offload(tuned, str(tmp_path), execution_device="cpu")
    assert any(parameter.is_meta for name, parameter in tuned.named_parameters() if "lora_" in name)
    assert sampled(tuned) == whole


def test_sample_of_lora_on_experts_and_embeddings_is_that_of_the_merged_model() -> None:
    how = {"target_modules": ["embed_tokens"], "target_parameters": ["mlp.experts.down_proj"]}
    model = tiny_model("mixtral")
    whole = sampled(model)
    assert sampled(wrapped(copy.deepcopy(model), trained=False, **how)) == whole
    tuned = wrapped(model, trained=True, **how)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    changed, _ = differing(whole, sampled(tuned))
    assert changed == ["embeddings", *(f"layers.{layer}.mlp.experts.down_proj" for layer in range(3))]
    assert sampled(copy.deepcopy(tuned).merge_and_unload()) == sampled(tuned)


def test_sample_of_an_adapter_that_does_not_add_is_another() -> None:
    model = tiny_model("mixtral")
    whole = sampled(model)
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
        tuned = get_peft_model(model, IA3Config(target_modules=["k_proj"], feedforward_modules=[])).eval()
    one = sampled(tuned)
    assert {name.split(".")[-2] for name in differing(whole, one)[0]} == {"k_proj"}
    for name, parameter in tuned.named_parameters():
        if "ia3_" in name:
            parameter.data = parameter * 2
    assert {name.split(".")[-2] for name in differing(one, sampled(tuned))[0]} == {"k_proj"}


def test_sample_is_not_taken_where_it_would_say_nothing() -> None:
    model = tiny_model("mixtral")
    sites = find_routers(model)
    whole = sample_weights(model, sites)
    half = sample_weights(copy.deepcopy(model).half(), sites)
    assert isinstance(half, str)
    assert "float16" in half
    assert differing(whole, half) == ([], 0)
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert sample_weights(empty, find_routers(empty)) == "not sampled: the weights are not there"
    assert "no model of transformers" in sample_weights(nn.Linear(2, 2), sites)
    model.config.quantization_config = SimpleNamespace(quant_method="any")
    assert sample_weights(model, sites) == "not sampled: quantised"
    config = MoTEConfig.for_model(model, suppress=[[0, 1]])
    assert config.fingerprint is not None
    assert config.fingerprint["sampled_weights"] == "not sampled: quantised"
    config.check(tiny_model("mixtral"))


def test_sample_of_packed_weights_is_not_taken() -> None:
    model = tiny_model("mixtral")
    model.model.layers[1].self_attn.o_proj.weight = nn.Parameter(
        torch.zeros(512, dtype=torch.uint8), requires_grad=False
    )
    assert "packed" in sample_weights(model, find_routers(model))
