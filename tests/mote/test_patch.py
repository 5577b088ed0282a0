"""`apply_mote` as a handle: nesting, removal, switching off, rows, copies, wrappers, and bypassed routers."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch
from caches import cache_of, taking
from routing_cases import GREEDY, no_gradients, num_hooks  # noqa: F401
from tiny_models import TINY_MODELS, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

import hf_mote.routing.sites.routed_model
from hf_mote import MoTEConfig, apply_mote, find_routers, record_routing
from hf_mote.errors import (
    ConfigError,
    FileFormatError,
    HFMoTEError,
    LivenessError,
    ModelMismatchError,
    UnknownNameError,
    UnsupportedError,
)

TOKENS = torch.randint(5, 95, (3, 9), generator=torch.Generator().manual_seed(5))
DROP = MoTEConfig(suppress=[[1, 0], [1, 3], [2, 5], [2, 1]])
MAX = MoTEConfig(stimulate=[[1, 2], [2, 7]], stimulate_weight="max")
BIAS = MoTEConfig(bias=[[1, 4, 2.0], [2, 6, -1.0]])
REROUTE = MoTEConfig(suppress=[[1, 6], [2, 2]], suppress_mode="reroute")


@pytest.fixture(params=TINY_MODELS)
def every_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture(params=["deepseek_v3", "mixtral"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


def logits(model: torch.nn.Module, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return model(input_ids=tokens).logits


def logits_under(model: torch.nn.Module, config: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    with apply_mote(model, config):
        return logits(model, tokens)


def test_apply_mote_handle_reports_its_state(model: PreTrainedModel) -> None:
    handle = apply_mote(model, DROP)
    assert handle.active
    assert not handle.removed
    handle.remove()
    assert not handle.active
    assert handle.removed
    assert num_hooks(model) == 0


def test_apply_mote_removed_twice_does_nothing_more(model: PreTrainedModel) -> None:
    native = logits(model)
    other = apply_mote(model, BIAS)
    wanted = logits(model)
    handle = apply_mote(model, DROP)
    handle.remove()
    handle.remove()
    with handle:
        pass
    assert torch.equal(logits(model), wanted)
    other.remove()
    assert torch.equal(logits(model), native)
    assert num_hooks(model) == 0


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_apply_mote_removal_in_any_order_leaves_the_rest_in_place(
    model: PreTrainedModel, order: tuple[int, ...]
) -> None:
    configs = [DROP, MAX, BIAS]
    native = logits(model)
    handles = [apply_mote(model, config) for config in configs]
    left = [0, 1, 2]
    for which in order:
        handles[which].remove()
        left.remove(which)
        fresh = tiny_model(model.config.model_type)
        for i in left:
            apply_mote(fresh, configs[i])
        assert torch.equal(logits(model), logits(fresh))
    assert torch.equal(logits(model), native)
    assert num_hooks(model) == 0


def test_apply_mote_nested_blocks_restore_one_after_the_other(every_model: PreTrainedModel) -> None:
    native = logits(every_model)
    with apply_mote(every_model, DROP):
        outer = logits(every_model)
        with apply_mote(every_model, BIAS):
            assert not torch.equal(logits(every_model), outer)
        assert torch.equal(logits(every_model), outer)
    assert torch.equal(logits(every_model), native)
    assert num_hooks(every_model) == 0


def test_apply_mote_exception_inside_the_block_leaves_zero_hooks(every_model: PreTrainedModel) -> None:
    native = logits(every_model)
    with pytest.raises(ZeroDivisionError), apply_mote(every_model, DROP), apply_mote(every_model, BIAS):  # noqa: PT012
        logits(every_model)
        raise ZeroDivisionError
    assert num_hooks(every_model) == 0
    assert torch.equal(logits(every_model), native)


def test_apply_mote_exception_inside_the_forward_leaves_zero_hooks(model: PreTrainedModel) -> None:
    native = logits(model)
    with pytest.raises(IndexError), apply_mote(model, DROP):
        model(input_ids=torch.tensor([[5, 10_000]]))
    assert num_hooks(model) == 0
    assert torch.equal(logits(model), native)


def _merged(*configs: MoTEConfig) -> MoTEConfig:
    fields: dict[str, Any] = {}
    for config in configs:
        for name in ("suppress", "stimulate", "bias", "gain"):
            fields[name] = fields.get(name, []) + getattr(config, name)
        for name in ("suppress_mode", "stimulate_weight", "bias_on"):
            if getattr(config, name) != getattr(MoTEConfig(), name):
                fields[name] = getattr(config, name)
    return MoTEConfig(**fields)


@pytest.mark.parametrize(
    "configs",
    [
        (DROP, MAX),
        (DROP, BIAS),
        (MAX, BIAS),
        (DROP, MAX, BIAS),
        (MoTEConfig(suppress=[[1, 0]]), MoTEConfig(suppress=[[1, 3], [2, 1]])),
        (MoTEConfig(bias=[[1, 0, 1.0]]), MoTEConfig(bias=[[1, 3, 1.0], [2, 1, 2.0]])),
        (MoTEConfig(suppress=[[1, 6]], suppress_mode="reroute"), MAX, BIAS),
        (MoTEConfig(suppress=[[1, 6]], suppress_mode="zero"), MAX),
        (MoTEConfig(gain=[[1, 6, 2.0]]), DROP),
        (MoTEConfig(gain=[[1, 0, 2.0], [2, 2, 0.0]]), MAX, BIAS),
        (MoTEConfig(gain=[[1, 6, 2.0]]), MoTEConfig(gain=[[1, 0, 0.5], [2, 1, 3.0]])),
    ],
    ids=str(list(range(11)))[1:-1].split(", "),
)
def test_apply_mote_several_interventions_equal_one_config_with_all(
    every_model: PreTrainedModel, configs: tuple[MoTEConfig, ...]
) -> None:
    wanted = logits_under(every_model, _merged(*configs))
    for sequence in (configs, configs[::-1]):
        handles = [apply_mote(every_model, config) for config in sequence]
        assert torch.equal(logits(every_model), wanted)
        for handle in handles:
            handle.remove()


def test_apply_mote_interventions_of_two_scopes_keep_to_their_tokens(model: PreTrainedModel) -> None:
    options = GREEDY | {"attention_mask": torch.ones_like(TOKENS), "max_new_tokens": 5}
    halves = [MoTEConfig(bias=BIAS.bias, scope=scope) for scope in ("prompt", "generation")]
    with apply_mote(model, BIAS):
        wanted = model.generate(TOKENS, **options)
    with apply_mote(model, halves[0]), apply_mote(model, halves[1]):
        assert torch.equal(model.generate(TOKENS, **options), wanted)


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        ({"suppress": [[2, 1]]}, {"stimulate": [[2, 1]]}, "both suppressed and stimulated"),
        (
            {"stimulate": [[2, 1]]},
            {"suppress": [[2, 1]], "suppress_mode": "reroute"},
            "both suppressed and stimulated",
        ),
        ({"suppress": [[2, e] for e in range(4)]}, {"suppress": [[2, e] for e in (4, 5, 6)]}, "too few experts"),
        ({"stimulate": [[2, 0], [2, 1]]}, {"stimulate": [[2, 2], [2, 3], [2, 4]]}, "more experts are stimulated"),
        ({"suppress": [[2, 1]]}, {"gain": [[2, 1, 2.0]]}, "has a gain and is suppressed"),
        ({"gain": [[2, 1, 2.0]]}, {"stimulate": [[2, 1]]}, "has a gain and is stimulated"),
    ],
)
def test_apply_mote_conflict_with_what_is_attached_is_refused_and_the_first_stays(
    model: PreTrainedModel, first: dict[str, Any], second: dict[str, Any], match: str
) -> None:
    if len(second.get("stimulate", [])) > model.config.num_experts_per_tok:
        second = {"stimulate": second["stimulate"][:2]}
    native = logits(model)
    handle = apply_mote(model, MoTEConfig(**first))
    patched, hooks = logits(model), num_hooks(model)
    with pytest.raises(ModelMismatchError, match=rf"layer 2\b.*{match}"):
        # The rest of the config is fine, and must not be attached either.
        apply_mote(model, MoTEConfig(**{"bias": [[1, 0, 3.0]], **second}))
    assert num_hooks(model) == hooks
    assert torch.equal(logits(model), patched)
    handle.remove()
    assert num_hooks(model) == 0
    assert torch.equal(logits(model), native)
    apply_mote(model, MoTEConfig(**second)).remove()


def test_apply_mote_group_conflict_of_two_interventions_is_refused() -> None:
    model = tiny_model("deepseek_v3_groups")
    with (
        apply_mote(model, MoTEConfig(suppress=[[1, 4], [1, 5]], suppress_mode="reroute")),
        pytest.raises(ModelMismatchError, match=r"layer 1\b.*group"),
    ):
        apply_mote(model, MoTEConfig(suppress=[[1, 6]], suppress_mode="reroute"))
    assert num_hooks(model) == 0


def test_active_off_is_bit_identical_and_on_again_patches(every_model: PreTrainedModel) -> None:
    native, patched = logits(every_model), logits_under(every_model, DROP)
    with apply_mote(every_model, DROP) as handle:
        handle.active = False
        assert not handle.active
        assert torch.equal(logits(every_model), native)
        handle.active = True
        assert torch.equal(logits(every_model), patched)


def test_active_off_of_one_leaves_the_other(model: PreTrainedModel) -> None:
    wanted = logits_under(model, BIAS)
    with apply_mote(model, DROP) as first, apply_mote(model, BIAS):
        first.active = False
        assert torch.equal(logits(model), wanted)


def _steps(model: PreTrainedModel, before_step: Callable[[int], None]) -> list[torch.Tensor]:
    out = model(TOKENS, use_cache=True)
    seen = [out.logits]
    for step in range(6):
        before_step(step)
        out = model(TOKENS[:, step : step + 1], **taking(model, cache_of(out)), use_cache=True)
        seen.append(out.logits)
    return seen


def test_active_switched_in_the_middle_of_a_generation_acts_at_once(every_model: PreTrainedModel) -> None:
    """Off from step 2 to step 4: exactly as if it had been removed there and attached again."""
    handle = apply_mote(every_model, DROP)
    switched = _steps(every_model, lambda step: setattr(handle, "active", step not in (2, 3)))
    handle.remove()

    holder = [apply_mote(every_model, DROP)]

    def detach(step: int) -> None:
        if step == 2:
            holder.pop().remove()
        elif step == 4:
            holder.append(apply_mote(every_model, DROP))

    replaced = _steps(every_model, detach)
    holder.pop().remove()
    for one, other in zip(switched, replaced, strict=True):
        assert torch.equal(one, other)
    assert num_hooks(every_model) == 0


def test_active_off_for_the_whole_generation_is_bit_identical(model: PreTrainedModel) -> None:
    native = _steps(model, lambda step: None)
    with apply_mote(model, MoTEConfig(suppress=DROP.suppress, scope="generation")) as handle:
        handle.active = False
        for one, other in zip(_steps(model, lambda step: None), native, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("scope", ["all", "prompt", "generation"])
def test_apply_mote_list_of_configs_equals_each_row_alone(every_model: PreTrainedModel, scope: str) -> None:
    fields = {"scope": scope}
    a = MoTEConfig(suppress=DROP.suppress, **fields)
    b = MoTEConfig(stimulate=MAX.stimulate, stimulate_weight="max", **fields)
    rows = [a, None, b]
    with apply_mote(every_model, rows):
        together = _steps(every_model, lambda step: None)
    native = _steps(every_model, lambda step: None)
    for row, config in enumerate(rows):
        if config is None:
            alone = native
        else:
            with apply_mote(every_model, config):
                alone = _steps(every_model, lambda step: None)
        for one, other in zip(together, alone, strict=True):
            # The same batch, so the same arithmetic for the row.
            torch.testing.assert_close(one[row], other[row], rtol=1e-4, atol=1e-5)


def test_apply_mote_list_row_without_config_keeps_its_routing_bit_for_bit(every_model: PreTrainedModel) -> None:
    with record_routing(every_model, trace=True) as native:
        logits(every_model)
    with apply_mote(every_model, [DROP, None, MAX]), record_routing(every_model, trace=True) as record:
        logits(every_model)
    assert torch.equal(record.traces()[1].indices, native.traces()[1].indices)
    first = record.layers.index(1) if 0 not in record.layers else 0
    assert torch.equal(record.traces()[1].weights[:, first], native.traces()[1].weights[:, first])


@pytest.mark.parametrize("length", [1, 2, 4])
def test_apply_mote_list_of_wrong_length_is_refused(model: PreTrainedModel, length: int) -> None:
    native = logits(model)
    with pytest.raises(ConfigError, match=rf"got 3, expected {length}"), apply_mote(model, [DROP] * length):
        logits(model)
    assert num_hooks(model) == 0
    assert torch.equal(logits(model), native)


def test_apply_mote_empty_list_and_foreign_objects_are_refused(model: PreTrainedModel) -> None:
    for config in ([], None, 5, {"suppress": [[1, 2]]}, [DROP, 5], [[DROP]]):
        with pytest.raises(ConfigError, match=r"apply_mote\.config"):
            apply_mote(model, config)  # type: ignore[arg-type]
    assert num_hooks(model) == 0


def test_apply_mote_model_that_is_none_is_refused(model: PreTrainedModel) -> None:
    for other in (None, "org/name", torch.nn.Linear(2, 2)):
        with pytest.raises(UnsupportedError):
            apply_mote(other, DROP)  # type: ignore[arg-type]


def test_apply_mote_config_for_another_model_is_refused_and_nothing_attached() -> None:
    config = MoTEConfig.for_model(tiny_model("deepseek_v3"), suppress=[[1, 2]])
    other = tiny_model("mixtral")
    for given in (config, [config, None]):
        with pytest.raises(ModelMismatchError, match="model_type"):
            apply_mote(other, given)
    assert num_hooks(other) == 0


def test_apply_mote_folder_and_file_give_what_the_config_gives(model: PreTrainedModel, tmp_path: Path) -> None:
    MoTEConfig.for_model(model, suppress=DROP.suppress).save_pretrained(tmp_path)
    wanted = logits_under(model, DROP)
    for given in (tmp_path, str(tmp_path), tmp_path / "mote_config.json", [tmp_path, str(tmp_path), tmp_path]):
        assert torch.allclose(logits_under(model, given), wanted, atol=1e-6)
    assert torch.equal(logits_under(model, tmp_path), wanted)


def test_apply_mote_missing_or_empty_folder_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"mote_config\.json"):
        apply_mote(model, tmp_path)
    with pytest.raises(UnknownNameError):
        apply_mote(model, str(tmp_path / "missing"))
    assert num_hooks(model) == 0


def test_deepcopy_of_a_patched_model_is_unpatched_and_free(every_model: PreTrainedModel) -> None:
    native = logits(every_model)
    handle = apply_mote(every_model, DROP)
    patched = logits(every_model)
    twin = copy.deepcopy(every_model)
    assert torch.equal(logits(twin), native)
    assert torch.equal(logits(every_model), patched)
    with apply_mote(twin, BIAS):
        assert torch.equal(logits(every_model), patched)
        once = logits(twin)
    assert torch.equal(logits(twin), native)
    assert torch.equal(once, logits_under(tiny_model_like(every_model), BIAS))
    handle.remove()
    assert num_hooks(every_model) == 0
    assert torch.equal(logits(every_model), native)
    assert torch.equal(logits(twin), native)


def tiny_model_like(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that nothing was ever attached to."""
    fresh = type(model)(model.config).eval()
    fresh.load_state_dict(model.state_dict())
    return fresh


def test_pickle_of_a_patched_model_is_unpatched(model: PreTrainedModel) -> None:
    native = logits(model)
    with apply_mote(model, DROP), record_routing(model) as record:
        patched = logits(model)
        twin = pickle.loads(pickle.dumps(model))
        assert torch.equal(logits(twin), native)
        assert torch.equal(logits(model), patched)
    assert record.num_sequences == 2 * len(TOKENS)
    assert num_hooks(model) == 0


def test_save_pretrained_of_a_patched_model_saves_the_plain_one(model: PreTrainedModel, tmp_path: Path) -> None:
    native, keys, config = logits(model), list(model.state_dict()), model.config.to_dict()
    with apply_mote(model, DROP):
        assert list(model.state_dict()) == keys
        assert model.config.to_dict() == config
        model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert num_hooks(loaded) == 0
    assert torch.equal(logits(loaded), native)


@pytest.mark.parametrize("captured_before", [True, False])
def test_output_router_logits_stay_native_whatever_the_order(captured_before: bool) -> None:
    model = tiny_model("mixtral")
    wanted = tiny_model("mixtral")(TOKENS, output_router_logits=True)
    if captured_before:
        model(TOKENS, output_router_logits=True)
    patched = logits_under(tiny_model("mixtral"), MAX)
    with apply_mote(model, MAX):
        out = model(TOKENS, output_router_logits=True)
        assert torch.equal(out.logits, patched)
        assert len(out.router_logits) == 3
        assert torch.equal(out.router_logits[0], wanted.router_logits[0])
        assert torch.equal(out.router_logits[1], wanted.router_logits[1])  # the first layer that is edited
        assert out.aux_loss.isfinite()
    after = model(TOKENS, output_router_logits=True)
    assert torch.equal(after.logits, wanted.logits)
    assert all(torch.equal(a, b) for a, b in zip(after.router_logits, wanted.router_logits, strict=True))


def _lora(model: PreTrainedModel, **how: Any) -> Any:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        # PEFT asks the model for `is_gradient_checkpointing`, which transformers 5.23 deprecates.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **how)).eval()


ATTENTION = {
    "mixtral": ["q_proj", "v_proj"],
    "deepseek_v2": ["q_proj", "kv_b_proj"],
    "deepseek_v3": ["q_proj", "kv_b_proj"],
}


@pytest.mark.parametrize("name", ATTENTION)
def test_apply_mote_lora_model_is_patched_like_its_merged_self(name: str) -> None:
    base = tiny_model(name)
    config = MoTEConfig.for_model(base, suppress=DROP.suppress, scope="prompt")
    wrapped = _lora(base, target_modules=ATTENTION[name])
    native = logits(wrapped)
    with pytest.raises(ModelMismatchError, match=r"sampled_weights.*allow_other_weights"):
        config.check(wrapped)
    config = config.for_other_weights(wrapped)
    assert [site.layer for site in find_routers(wrapped)] == [site.layer for site in find_routers(tiny_model(name))]
    with apply_mote(wrapped, config), record_routing(wrapped) as record:
        patched = logits(wrapped)
    assert record.num_sequences == 3
    assert record.maps()[0].counts[record.layers.index(1), 0] == 0
    assert not torch.equal(patched, native)
    assert num_hooks(wrapped) == 0
    assert torch.equal(logits(wrapped), native)
    merged = wrapped.merge_and_unload()
    torch.testing.assert_close(logits_under(merged, config), patched, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_apply_mote_then_lora_keeps_the_patch(name: str) -> None:
    base = tiny_model(name)
    handle = apply_mote(base, DROP)
    wrapped = _lora(base, target_modules=ATTENTION[name])
    patched = logits(wrapped)
    handle.remove()
    assert torch.equal(logits_under(wrapped, DROP), patched)
    assert num_hooks(wrapped) == 0


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_apply_mote_lora_on_the_router_itself_is_patched_or_refused(name: str) -> None:
    """PEFT swaps the router's class while it runs; suppressed experts stay suppressed, or the model is refused."""
    wrapped = _lora(tiny_model(name), target_parameters=["mlp.gate.weight"], target_modules=ATTENTION[name])
    native = logits(wrapped)
    try:
        with apply_mote(wrapped, DROP), record_routing(wrapped) as record:
            logits(wrapped)
    except HFMoTEError:
        assert num_hooks(wrapped) == 0
        return
    for layer, expert in DROP.suppress:
        assert all(found.counts[record.layers.index(layer), expert] == 0 for found in record.maps())
    assert torch.equal(logits(wrapped), native)


@pytest.mark.parametrize("attach_first", [True, False])
@pytest.mark.parametrize("offload_buffers", [True, False])
def test_apply_mote_offloaded_model_is_patched_exactly(
    model: PreTrainedModel, attach_first: bool, offload_buffers: bool
) -> None:
    config = MoTEConfig.for_model(model, suppress=REROUTE.suppress, suppress_mode="reroute")
    native, wanted = logits(model), logits_under(model, config)
    handle = apply_mote(model, config) if attach_first else None
    accelerate.cpu_offload(model, execution_device="cpu", offload_buffers=offload_buffers)
    handle = handle or apply_mote(model, config)
    assert torch.equal(logits(model), wanted)
    handle.remove()
    assert torch.equal(logits(model), native)


def _bypass(model: PreTrainedModel, layer: int) -> None:
    block = model.get_submodule(f"model.layers.{layer}.mlp")
    # A class of its own: a block whose forward was replaced is tried, and refused, when something is attached.
    block.__class__ = type(
        "Bypassed", (type(block),), {"forward": lambda self, hidden: hidden, "__module__": __name__}
    )


@pytest.mark.parametrize("layer", [1, 2])
def test_liveness_bypassed_router_raises_in_the_first_forward(every_model: PreTrainedModel, layer: int) -> None:
    _bypass(every_model, layer)
    with pytest.raises(LivenessError, match=rf"layers\.{layer}\.mlp\.gate"), apply_mote(every_model, DROP):
        logits(every_model)
    assert num_hooks(every_model) == 0
    with pytest.raises(LivenessError, match=rf"layers\.{layer}\.mlp\.gate"), record_routing(every_model):
        logits(every_model)
    assert num_hooks(every_model) == 0
    with pytest.raises(LivenessError), apply_mote(every_model, DROP):
        every_model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), max_new_tokens=2, **GREEDY)


def test_liveness_bypassed_layer_without_targets_is_no_matter(model: PreTrainedModel) -> None:
    _bypass(model, 1)
    with apply_mote(model, MoTEConfig(suppress=[[2, 1]])):
        assert logits(model).isfinite().all()


def test_liveness_is_checked_when_first_active(model: PreTrainedModel) -> None:
    with apply_mote(model, DROP) as handle:
        handle.active = False
        logits(model)
        _bypass(model, 2)
        handle.active = True
        with pytest.raises(LivenessError):
            logits(model)


def test_liveness_every_intervention_has_its_own_first_forward(model: PreTrainedModel) -> None:
    with apply_mote(model, MoTEConfig(suppress=[[1, 0]])):
        logits(model)
        _bypass(model, 2)
        with pytest.raises(LivenessError), apply_mote(model, MoTEConfig(suppress=[[2, 0]])):
            logits(model)


def test_apply_mote_from_two_threads_leaves_zero_hooks(model: PreTrainedModel) -> None:
    native, failures = logits(model), []

    def work(config: MoTEConfig) -> None:
        try:
            for _ in range(30):
                with apply_mote(model, config):
                    pass
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(config,)) for config in (DROP, BIAS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert num_hooks(model) == 0
    assert torch.equal(logits(model), native)


def test_apply_mote_attached_while_another_attaches_still_merges(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between looking for a router's stack and joining it, in which another thread attaches."""
    wanted = logits_under(model, _merged(DROP, MAX))
    native_test, others = hf_mote.routing.sites.routed_model.self_test, []

    def interrupted(site: Any) -> Any:
        monkeypatch.setattr(hf_mote.routing.sites.routed_model, "self_test", native_test)
        others.append(threading.Thread(target=lambda: handles.append(apply_mote(model, MAX))))
        others[0].start()
        others[0].join(timeout=0.5)  # a lock may well make it wait until the first is done
        return native_test(site)

    handles = []
    monkeypatch.setattr(hf_mote.routing.sites.routed_model, "self_test", interrupted)
    handles.append(apply_mote(model, DROP))
    others[0].join()
    assert all(len(site.module._forward_hooks) == 1 for site in find_routers(model) if site.layer > 0)
    assert torch.equal(logits(model), wanted)
    for handle in handles:
        handle.remove()
    assert num_hooks(model) == 0


def test_apply_mote_handle_dropped_without_removal_stays_in_place(model: PreTrainedModel) -> None:
    wanted = logits_under(model, DROP)
    apply_mote(model, DROP)
    assert torch.equal(logits(model), wanted)


def test_apply_mote_under_inference_mode_then_training_works(model: PreTrainedModel) -> None:
    with torch.inference_mode():
        handle = apply_mote(model, DROP)
        logits(model)
    with torch.enable_grad():
        model(TOKENS, labels=TOKENS).loss.backward()
    handle.remove()
    assert num_hooks(model) == 0


def test_apply_mote_suppressed_experts_get_no_gradient(model: PreTrainedModel) -> None:
    with torch.enable_grad(), apply_mote(model, DROP):
        model(TOKENS, labels=TOKENS).loss.backward()
    grads = model.get_submodule("model.layers.2.mlp.experts").down_proj.grad
    assert (grads[[1, 5]] == 0).all()
    assert (grads[[0, 2, 3, 4]] != 0).any()


def test_apply_mote_leaves_global_random_state_alone(model: PreTrainedModel) -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    apply_mote(model, DROP).remove()
    assert torch.equal(torch.rand(3), wanted)


def test_apply_mote_part_run_by_itself_under_a_scope_is_refused(model: PreTrainedModel) -> None:
    """Outside the model's own forward nobody can say which rows are generated."""
    block = model.get_submodule("model.layers.2.mlp")
    hidden = torch.randn(3, 9, 32)
    with apply_mote(model, MoTEConfig(suppress=DROP.suppress, scope="prompt")):
        with pytest.raises(UnsupportedError):
            block(hidden)
        logits(model)
        with pytest.raises(UnsupportedError):
            block(hidden)  # as many rows as the last forward had
