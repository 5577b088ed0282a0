"""Routers that a quantisation, a kernel, a pruning or a patch has changed: seen through, closed, or named."""

from __future__ import annotations

import copy
import logging
from types import MethodType
from typing import Any

import loading_stubs as stubs
import pytest
import torch
from loading_stubs import Fp8Linear, PackedLinear
from routing_cases import no_gradients, num_hooks  # noqa: F401
from tiny_families import TINY_FAMILIES
from tiny_models import tiny_model
from torch import nn
from transformers import PreTrainedModel

from hf_mote import MoTEConfig, apply_mote, find_routers, record_routing
from hf_mote.errors import LivenessError, ModelMismatchError, RouterContractError, UnsupportedError
from hf_mote.routing.sites.packed import feed_of, num_outputs, packed_parts, unpacked
from hf_mote.routing.sites.replaced import missing_routers, replaced_forward, say_once

PROMPT = torch.randint(5, 85, (2, 8), generator=torch.Generator().manual_seed(1))
LINEAR = ["afmoe", "jetmoe", "dbrx"]


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    """What is said once is said again in each test."""
    say_once.cache_clear()


def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(input_ids=PROMPT).logits


def rerouted(model: PreTrainedModel, **fields: Any) -> MoTEConfig:
    targets = [[site.layer, expert] for site in find_routers(model) for expert in (1, 6)]
    return MoTEConfig.for_model(model, suppress=targets, suppress_mode="reroute", **fields)


@pytest.mark.parametrize("kind", [PackedLinear, Fp8Linear])
def test_packed_parts_sees_what_is_packed_and_unpacked_gives_its_matrix(kind: type[nn.Module]) -> None:
    linear = nn.Linear(8, 4, bias=False)
    packed = kind(linear)
    assert packed_parts(linear) == {}
    assert packed_parts(packed) == {"": kind.__name__}
    assert packed_parts(nn.Sequential(linear, packed)) == {"1": kind.__name__}
    assert feed_of(packed)[0] == 8
    assert 4 in num_outputs(packed)
    torch.testing.assert_close(unpacked(packed, torch.float32), linear.weight, rtol=0.2, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_feed_of_packed_router_takes_its_dtype_from_what_holds_it(dtype: torch.dtype) -> None:
    block = nn.Sequential(PackedLinear(nn.Linear(8, 4)), nn.Linear(8, 8).to(dtype))
    del block[0].scales
    assert feed_of(block[0], block) == (8, dtype, torch.device("cpu"))


def test_packed_parts_router_of_its_own_integers_is_not_packed() -> None:
    router = nn.Module()
    router.weight = nn.Parameter(torch.zeros(4, 8))
    router.register_buffer("tid2eid", torch.zeros(10, 2, dtype=torch.long))
    assert packed_parts(router) == {}


@pytest.mark.parametrize("convert", [stubs.packed_linears, stubs.fp8_linears])
def test_fingerprint_router_left_in_full_precision_matches_the_config_of_the_whole_model(convert: Any) -> None:
    config = rerouted(TINY_FAMILIES["qwen3_moe"]())
    with apply_mote(convert("qwen3_moe"), config) as handle:
        assert handle.active


@pytest.mark.parametrize("family", LINEAR)
def test_fingerprint_quantised_router_is_told_apart_from_another_model(family: str) -> None:
    whole, packed = TINY_FAMILIES[family](), stubs.packed_linears(family)
    made, remade = rerouted(whole), rerouted(packed)
    with pytest.raises(ModelMismatchError, match=r"full precision, and those of this model are quantised.*PackedLin"):
        apply_mote(packed, made)
    with pytest.raises(ModelMismatchError, match=r"made for quantised routers, and those .* in full precision"):
        apply_mote(whole, remade)
    with pytest.raises(ModelMismatchError, match="unpack to other weights"):
        apply_mote(stubs.fp8_linears(family), remade)
    assert num_hooks(whole) == num_hooks(packed) == 0
    with apply_mote(packed, remade):
        logits(packed)
    assert rerouted(packed).fingerprint == remade.fingerprint


def test_fingerprint_float16_loses_small_weights_and_the_error_says_so() -> None:
    model = tiny_model("mixtral")
    model.model.layers[0].mlp.gate.weight[0, 0] = 1e-7
    config = rerouted(model)
    with pytest.raises(ModelMismatchError, match=r"loaded in float16.*load the model in bfloat16 or float32"):
        apply_mote(model.half(), config)


def test_apply_mote_quantised_router_is_named_once_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = stubs.packed_linears("afmoe")
    config = rerouted(model)
    with caplog.at_level(logging.WARNING, logger="hf_mote"):
        apply_mote(model, config).remove()
        apply_mote(model, config).remove()
    (said,) = (record.getMessage() for record in caplog.records if record.name.startswith("hf_mote"))
    assert "quantised themselves (PackedLinear)" in said
    assert "router.gate" in said


def test_apply_mote_router_left_in_full_precision_is_no_reason_to_warn(caplog: pytest.LogCaptureFixture) -> None:
    model = stubs.packed_linears("qwen3_moe")
    with caplog.at_level(logging.WARNING, logger="hf_mote"):
        apply_mote(model, rerouted(model)).remove()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("hf_mote")] == []


@pytest.mark.parametrize("family", ["llama4", "phimoe"])
def test_find_routers_router_taken_for_a_linear_layer_is_named_with_what_took_its_place(family: str) -> None:
    model = TINY_FAMILIES[family]()
    name = type(find_routers(model)[0].module).__name__
    for path, part in list(model.named_modules()):
        if isinstance(part, nn.Linear) and path.endswith("router"):
            model.set_submodule(path, PackedLinear(part))
    missing = missing_routers(model)
    assert {(one.router, one.found, one.place == one.path) for one in missing} == {(name, "PackedLinear", True)}
    with pytest.raises(UnsupportedError, match=rf"were replaced \(got PackedLinear at .*router, expected {name}\)"):
        find_routers(model)


def test_find_routers_replaced_block_is_named_with_what_took_its_place() -> None:
    model = tiny_model("mixtral")
    for layer in model.model.layers:
        layer.mlp = nn.Identity()
    with pytest.raises(UnsupportedError, match=r"with what holds them \(got Identity at model\.layers\.0\.mlp"):
        find_routers(model)


def test_find_routers_dense_model_has_none_missing() -> None:
    assert missing_routers(nn.Linear(2, 2)) == []


def test_find_routers_pipeline_is_told_to_give_its_model() -> None:
    holder = stubs.in_a_pipeline()
    for ask in (find_routers, record_routing, lambda model: MoTEConfig.for_model(model)):
        with pytest.raises(UnsupportedError, match=r"holds one as \.model .*TextGenerationPipeline.*Give its \.model"):
            ask(holder)


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        ("mixtral", "top_k", 1),
        ("mixtral", "top_k", 3),
        ("deepseek_v3", "routed_scaling_factor", 9.0),
        ("deepseek_v3", "norm_topk_prob", False),
        ("deepseek_v3_groups", "topk_group", 2),
    ],
)
@pytest.mark.parametrize("record", [False, True])
def test_apply_mote_number_changed_under_the_patch_is_refused_in_the_next_pass(
    family: str, name: str, value: Any, record: bool
) -> None:
    model = tiny_model(family)
    router = find_routers(model)[0].module
    before = getattr(router, name)
    assert before != value
    handle = record_routing(model).__enter__() if record else apply_mote(model, rerouted(model))
    logits(model)
    setattr(router, name, value)
    with pytest.raises(UnsupportedError, match=rf"{name} was changed after .*got {value}, expected {before}"):
        logits(model)
    if not record:
        handle.active = False
        logits(model)
        handle.remove()
        setattr(router, name, before)
        with apply_mote(model, rerouted(model)):
            logits(model)


def test_apply_mote_dbrx_top_k_of_the_block_changed_is_refused() -> None:
    model = TINY_FAMILIES["dbrx"]()
    with apply_mote(model, rerouted(model)):
        model.transformer.blocks[0].ffn.top_k = 2
        with pytest.raises(UnsupportedError, match="top_k was changed"):
            logits(model)


def test_self_test_stale_number_of_experts_is_named_and_nothing_is_attached() -> None:
    model = stubs.pruned_stale()
    with pytest.raises(
        RouterContractError, match=r"num_experts is not .*got 8, and logits of 7 columns.*mlp\.gate\.num_ex"
    ):
        apply_mote(model, MoTEConfig(suppress=[[0, 1], [1, 1]]))
    assert num_hooks(model) == 0


def test_record_routing_pruned_model_counts_in_each_layer_what_it_has() -> None:
    model = stubs.pruned()
    assert [site.num_experts for site in find_routers(model)] == list(stubs.PRUNED.values())
    with record_routing(model) as record:
        logits(model)
    assert sum(one.counts.sum() for one in record.maps("prompt")) == PROMPT.numel() * 3 * 2


def test_apply_mote_block_that_goes_by_the_logits_is_called_patched_and_nothing_is_attached() -> None:
    model = stubs.patched_unfaithful()
    with pytest.raises(
        UnsupportedError, match=r"loading_stubs\._unfaithful has replaced the forward of Mixtral\w+.*weights"
    ):
        apply_mote(model, MoTEConfig(suppress=[[0, 1]]))
    assert num_hooks(model) == 0


def test_apply_mote_class_patched_in_place_is_called_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mixtral")
    block = type(model.model.layers[0].mlp)
    monkeypatch.setattr(block, "forward", stubs._unfaithful)
    with pytest.raises(UnsupportedError, match="_unfaithful has replaced the forward"):
        record_routing(model).__enter__()
    assert num_hooks(model) == 0


def test_apply_mote_faithful_patch_is_taken_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = stubs.patched_faithful()
    with caplog.at_level(logging.WARNING, logger="hf_mote"), apply_mote(model, rerouted(model)):
        logits(model)
    assert "_faithful has replaced the forward of MixtralSparseMoeBlock; tried on a copy, it follows" in caplog.text


def test_replaced_forward_is_none_for_plain_offloaded_and_compiled_modules() -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module

    layer = nn.Linear(2, 2)
    assert replaced_forward(layer) is None
    add_hook_to_module(layer, ModelHook())
    assert replaced_forward(layer) is None
    other = nn.Linear(2, 2)
    other.forward = MethodType(nn.Linear.forward, other)
    assert replaced_forward(other) is None


def test_check_identity_fused_router_within_rounding_is_taken_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = stubs.fused_router("qwen3_5_moe")
    with caplog.at_level(logging.WARNING, logger="hf_mote"), apply_mote(model, rerouted(model)):
        logits(model)
    assert "_fused_softmax_top_k has replaced the forward of Qwen3_5MoeTopKRouter; it chooses the same" in caplog.text


def test_check_identity_router_replaced_by_other_arithmetic_is_refused_by_name() -> None:
    model = TINY_FAMILIES["qwen3_5_moe"]()
    router = find_routers(model)[0].module

    def forward(self: Any, hidden: torch.Tensor) -> Any:
        routed, weights, indices = type(self).forward(self, hidden)
        return routed, weights * 1.001, indices

    router.forward = MethodType(forward, router)
    with pytest.raises(RouterContractError, match=r"forward has replaced the router's forward, and does not follow"):
        apply_mote(model, rerouted(model))


def test_check_alive_router_that_never_runs_names_who_replaced_what_is_around_it() -> None:
    model = tiny_model("mixtral")
    layer = model.model.layers[1]
    layer.forward = MethodType(lambda self, hidden, *args, **kwargs: hidden, layer)
    with apply_mote(model, rerouted(model)), pytest.raises(LivenessError, match=r"forward of model\.layers\.1: load"):
        logits(model)


def test_mxfp4_mark_is_set_while_attached_and_gone_afterwards() -> None:
    model = stubs.mxfp4()
    blocks = [layer.mlp for layer in model.model.layers]
    native, config = logits(model), rerouted(model)
    one, other = apply_mote(model, config), record_routing(model)
    with other:
        assert all(block.experts._is_hooked for block in blocks)
        patched = logits(model)
        assert not torch.allclose(patched, native, atol=1e-2)
        copied = copy.deepcopy(model)
        assert not any(block.experts._is_hooked for block in (layer.mlp for layer in copied.model.layers))
        assert torch.equal(logits(copied), native)
        one.remove()
        torch.testing.assert_close(logits(model), native, rtol=1e-5, atol=1e-5)
    assert not any(hasattr(block.experts, "_is_hooked") for block in blocks)
    assert torch.equal(logits(model), native)
    assert num_hooks(model) == 0


def test_mxfp4_inactive_patch_leaves_the_fused_way_open() -> None:
    model = stubs.mxfp4()
    native = logits(model)
    handle = apply_mote(model, rerouted(model))
    handle.active = False
    assert torch.equal(logits(model), native)
    handle.active = True
    assert not torch.allclose(logits(model), native, atol=1e-2)
    handle.remove()


def test_mxfp4_mark_of_expert_parallelism_stays() -> None:
    model = stubs.mxfp4()
    experts = model.model.layers[0].mlp.experts
    experts._is_hooked = True
    with apply_mote(model, rerouted(model)):
        logits(model)
    assert experts._is_hooked is True


def test_block_without_a_shortcut_gets_no_mark() -> None:
    model = tiny_model("mixtral")
    with apply_mote(model, rerouted(model)):
        assert not any(hasattr(part, "_is_hooked") for part in model.modules())


def _with_images(model: PreTrainedModel) -> torch.Tensor:
    images = torch.zeros_like(PROMPT)
    images[:, 2:5] = 1
    return model(input_ids=PROMPT, moe_mm_token_type_ids=images).logits


def test_image_tokens_with_experts_of_their_own_are_left_to_them() -> None:
    model = TINY_FAMILIES["ernie4_5_vl_moe"]()
    native = _with_images(model)
    with apply_mote(model, rerouted(model)):
        assert not torch.allclose(_with_images(model), native, atol=1e-2)
    assert torch.equal(_with_images(model), native)


@pytest.mark.parametrize("how", ["phase", "rows", "record"])
def test_image_tokens_with_experts_of_their_own_are_named_where_rows_matter(how: str) -> None:
    model = TINY_FAMILIES["ernie4_5_vl_moe"]()
    if how == "record":
        attached: Any = record_routing(model)
    else:
        config = rerouted(model, scope="prompt" if how == "phase" else "all")
        attached = apply_mote(model, [config, None] if how == "rows" else config)
    with attached, pytest.raises(UnsupportedError, match="only some of the tokens.*got 10 of 16 tokens.*scope 'all'"):
        _with_images(model)
    assert num_hooks(model) == 0


def test_mxfp4_of_earlier_releases_whose_forward_reads_past_the_router_is_refused() -> None:
    """Before transformers 5.20 or so, blocks of MXFP4 multiply by their router's weights, and never call it."""
    model = TINY_FAMILIES["gpt_oss"]()

    def past_the_router(self: nn.Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = nn.functional.linear(hidden.reshape(-1, hidden.shape[-1]), self.router.weight, self.router.bias)
        weights, indices = logits.topk(self.router.top_k, dim=-1)
        output = self.experts(hidden.reshape(-1, hidden.shape[-1]), indices, weights.softmax(dim=-1))
        return output.reshape(hidden.shape), logits

    blocks = [block for path, block in model.named_modules() if path.endswith(".mlp")]
    native = model(PROMPT).logits
    for block in blocks:
        block.forward = MethodType(past_the_router, block)
    replaced = model(PROMPT).logits
    assert torch.allclose(replaced, native, atol=1e-5)
    for attached in (lambda: apply_mote(model, MoTEConfig(suppress=[[0, 1]])), lambda: record_routing(model)):
        with pytest.raises(UnsupportedError, match="does not run the router"):
            attached().__enter__()
    assert torch.equal(model(PROMPT).logits, replaced)
