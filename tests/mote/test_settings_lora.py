"""PEFT on the routers themselves: LoRA by `all-linear`, which wraps them or what is inside them, DoRA, trained copies.

What a router decides is then the sum of its weights and an adapter's. The plain model with merged weights says what
must come out.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
from router_oracle import replace_routers
from tiny_families import TINY_FAMILIES
from tiny_models import TINY_MODELS, tiny_model
from transformers import PreTrainedModel
from ways_of_loading import WAYS, missing

from hf_mote import MoTEConfig, apply_mote, find_routers, record_routing
from hf_mote.errors import ModelMismatchError, UnsupportedError
from hf_mote.routing.sites.packed import packed_parts

TOKENS = torch.randint(5, 85, (3, 9), generator=torch.Generator().manual_seed(5))
# PEFT wraps the router itself, or (hunyuan, jetmoe) a linear layer inside it; minimax_m2 has a bias in its block.
FAMILIES = ["mixtral", "deepseek_v3", "hunyuan_v1_moe", "jetmoe", "minimax_m2"]


def build(name: str) -> PreTrainedModel:
    return tiny_model(name) if name in TINY_MODELS else TINY_FAMILIES[name]()


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def adapted(model: PreTrainedModel, *, trained: bool = True, **how: Any) -> peft.PeftModel:
    """The model with adapters: random ones, or as they are before any training."""
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, init_lora_weights=not trained, **{"target_modules": "all-linear", **how})
    with warnings.catch_warnings():
        # PEFT asks the model for `is_gradient_checkpointing`, which transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        # It writes `all-linear` out into names of its own, and then complains about some of them.
        warnings.filterwarnings("ignore", message=r"The following (rank|alpha)_pattern keys did not")
        return peft.get_peft_model(model, config).eval()


def merged(model: peft.PeftModel) -> PreTrainedModel:
    return copy.deepcopy(model).merge_and_unload()


def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


def targets(model: torch.nn.Module) -> dict[str, Any]:
    return {"suppress": [[site.layer, expert] for site in find_routers(model) for expert in (0, 3)]}


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    # Sums of weights and adapters are rounded before or after the product.
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", ["drop", "reroute"])
@pytest.mark.parametrize("attach_first", [True, False], ids=["patched before", "patched after"])
def test_apply_mote_lora_on_every_linear_is_patched_like_its_merged_self(
    model: PreTrainedModel, attach_first: bool, mode: str
) -> None:
    fields = {**targets(model), "suppress_mode": mode}
    untrained = [found.counts for found in counted(model)]
    handle = apply_mote(model, MoTEConfig(**fields)) if attach_first else None
    wrapped = adapted(model)
    handle = handle or apply_mote(wrapped, MoTEConfig.for_model(wrapped, **fields))
    patched = logits(wrapped)
    for found in counted(wrapped):
        assert all(found.counts[found.layers.index(layer), expert] == 0 for layer, expert in fields["suppress"])
    handle.remove()
    plain = merged(wrapped)
    native = logits(wrapped)
    assert close(native, logits(plain))
    with apply_mote(plain, MoTEConfig.for_model(plain, **fields)):
        assert close(patched, logits(plain))
    assert not close(patched, native)
    assert not all(map(torch.equal, untrained, (found.counts for found in counted(wrapped))))


def counted(model: torch.nn.Module) -> list[Any]:
    with record_routing(model) as record:
        logits(model)
    return record.maps()


def test_apply_mote_configs_attached_before_and_after_wrapping_are_merged(model: PreTrainedModel) -> None:
    first, second = targets(model), {"bias": [[find_routers(model)[-1].layer, 5, 3.0]]}
    outer = apply_mote(model, MoTEConfig(**first))
    wrapped = adapted(model)
    with apply_mote(wrapped, MoTEConfig(**second)):
        both = logits(wrapped)
    outer.remove()
    with apply_mote(wrapped, MoTEConfig(**first, **second)):
        assert torch.equal(logits(wrapped), both)


def test_fingerprint_adapters_before_any_training_are_the_plain_model(model: PreTrainedModel) -> None:
    config = MoTEConfig.for_model(model, **targets(model))
    with apply_mote(model, config):
        wanted = logits(model)
    with apply_mote(adapted(model, trained=False), config):
        assert close(logits(model), wanted)


def test_fingerprint_trained_adapters_are_the_merged_model(model: PreTrainedModel) -> None:
    fields = targets(model)
    base = MoTEConfig.for_model(model, **fields)
    wrapped = adapted(model)
    with pytest.raises(ModelMismatchError, match=r"make the config anew with MoTEConfig\.for_model"):
        apply_mote(wrapped, base)
    config = MoTEConfig.for_model(wrapped, **fields)
    with apply_mote(wrapped, config):
        patched = logits(wrapped)
    assert MoTEConfig.for_model(merged(wrapped), **fields).fingerprint == config.fingerprint
    with wrapped.disable_adapter():
        assert MoTEConfig.for_model(wrapped, **fields).fingerprint == base.fingerprint
    wrapped.merge_adapter()
    assert MoTEConfig.for_model(wrapped, **fields).fingerprint == config.fingerprint
    with apply_mote(wrapped, config):
        assert close(logits(wrapped), patched)


def test_fingerprint_dora_on_a_router_is_refused_and_the_remedy_works() -> None:
    model = build("hunyuan_v1_moe")
    fields = targets(model)
    config = MoTEConfig.for_model(model, **fields)
    wrapped = adapted(model, trained=False, target_modules=["wg"], use_dora=True)
    for name, parameter in wrapped.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter *= torch.linspace(0.5, 1.5, len(parameter))
    with pytest.raises(ModelMismatchError, match=r"make the config anew with MoTEConfig\.for_model"):
        apply_mote(wrapped, config)
    plain = merged(wrapped)
    with apply_mote(wrapped, MoTEConfig.for_model(wrapped, **fields)), apply_mote(plain, MoTEConfig(**fields)):
        assert close(logits(wrapped), logits(plain))


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_find_routers_trained_copy_of_the_router_is_refused_and_the_remedies_work(name: str) -> None:
    fields = targets(build(name))
    wrapped = adapted(build(name), target_modules=["o_proj"], modules_to_save=["gate"])
    for _, copied in wrapped.named_parameters():
        copied += 0.01 if copied.requires_grad else 0.0
    with pytest.raises(UnsupportedError, match=r"Call merge_and_unload\(\) before; or .*target_parameters"):
        apply_mote(wrapped, MoTEConfig(**fields))
    plain = wrapped.merge_and_unload()
    native = logits(plain)
    with apply_mote(plain, MoTEConfig.for_model(plain, **fields)):
        assert not torch.equal(logits(plain), native)
    by_lora = adapted(build(name), target_modules=["o_proj"], target_parameters=["mlp.gate.weight"])
    with apply_mote(by_lora, MoTEConfig.for_model(by_lora, **fields)):
        patched = logits(by_lora)
    plain = merged(by_lora)
    with apply_mote(plain, MoTEConfig(**fields)):
        assert close(logits(plain), patched)


@pytest.mark.parametrize("mode", ["drop", "reroute"])
@pytest.mark.parametrize("family", ["afmoe", "jetmoe"])
@pytest.mark.parametrize("name", ["bitsandbytes 8 bit", "bitsandbytes 4 bit, fp4", "torchao int8 weight-only"])
def test_apply_mote_lora_on_quantised_routers_is_what_the_reference_makes_of_their_logits(
    name: str, family: str, mode: str
) -> None:
    (way,) = [way for way in WAYS if way.name == name]
    if missing(way):
        pytest.skip(f"{', '.join(missing(way))} is not installed")
    model, other = (adapted(way.load(family)) for _ in range(2))
    sites = find_routers(model)
    assert any("lora" in name for site in sites for name, _ in site.module.named_parameters())
    assert any(packed_parts(site.module) for site in sites)
    native = logits(model)
    fields = {"suppress": [[site.layer, expert] for site in sites for expert in (1, 6)], "suppress_mode": mode}
    with apply_mote(model, MoTEConfig(**fields)):
        patched = logits(model)
    assert torch.equal(logits(model), native)
    inside = "base_model.model."
    paths = {site.layer: site.path.removeprefix(inside) for site in find_routers(other)}
    replace_routers(other.base_model.model, family, paths, fields, {})
    torch.testing.assert_close(patched, logits(other), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(patched, native, atol=1e-3)
