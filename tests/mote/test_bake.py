"""`bake_mote`: the baked checkpoint, loaded by stock transformers, is the live profile; whatever is not is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from routing_cases import no_gradients  # noqa: F401
from tiny_families import TINY_FAMILIES
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_mote import BakedModel, MoTEConfig, apply_mote, bake_mote, find_routers
from hf_mote.errors import (
    ConfigError,
    FileFormatError,
    HFMoTEError,
    ModelMismatchError,
    RouterContractError,
    UnsupportedError,
)

FAMILIES = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v3")
TOKENS = torch.randint(3, 95, (2, 16), generator=torch.Generator().manual_seed(5))


class Wrapped(torch.nn.Module):
    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.module = model


def build(family: str, **overrides: Any) -> PreTrainedModel:
    return TINY_FAMILIES[family](**overrides)


def config_of(model: PreTrainedModel, experts: tuple[int, ...] = (1, 4), **fields: Any) -> MoTEConfig:
    layers = [site.layer for site in find_routers(model)]
    if "suppress_mode" in fields:
        fields["suppress"] = [[layer, expert] for layer in layers for expert in experts]
    if "bias_on" in fields:
        fields["bias"] = [[layer, 2, 0.75] for layer in layers]
    if "gain" in fields:
        fields["gain"] = [[layer, expert, value] for layer in layers for expert, value in fields["gain"]]
    return MoTEConfig.for_model(model, **fields)


def live(model: PreTrainedModel, config: MoTEConfig) -> torch.Tensor:
    with apply_mote(model, config):
        return model(input_ids=TOKENS).logits


def reloaded(baked: BakedModel, folder: Path) -> PreTrainedModel:
    baked.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


EXACT = [
    *((family, {"suppress_mode": "zero"}) for family in FAMILIES),
    *((family, {"suppress_mode": "zero", "strength": 0.5}) for family in FAMILIES),
    ("deepseek_v3", {"suppress_mode": "reroute"}),
    ("deepseek_v3", {"bias_on": "selection"}),
    ("deepseek_v3", {"suppress_mode": "reroute", "bias_on": "selection"}),
    ("minimax_m2", {"suppress_mode": "reroute"}),
    ("gpt_oss", {"suppress_mode": "reroute"}),
    *((family, {"gain": [(1, 2.0), (4, 0.25), (6, 0.0)]}) for family in FAMILIES),
    *((family, {"suppress_mode": "zero", "gain": [(6, 4.0)]}) for family in FAMILIES),
    ("deepseek_v3", {"suppress_mode": "reroute", "bias_on": "selection", "gain": [(2, 4.0)]}),
]
CLOSE = [
    *((family, {"suppress_mode": "zero", "strength": 0.3}) for family in FAMILIES),
    ("gpt_oss", {"bias_on": "logits"}),
    ("mixtral", {"suppress_mode": "reroute"}),
    ("qwen3_moe", {"suppress_mode": "reroute"}),
    ("qwen3_moe", {"suppress_mode": "reroute", "gain": [(2, 1.3)]}),
    *((family, {"gain": [(1, 1.3), (4, 0.7)], "strength": 0.5}) for family in FAMILIES),
]


@pytest.mark.parametrize(("family", "fields"), EXACT, ids=str)
def test_baked_checkpoint_is_the_live_profile_bit_for_bit(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model = build(family)
    before = model(input_ids=TOKENS).logits
    config = config_of(model, **fields)
    baked = bake_mote(model, config)
    wanted = live(model, config)
    assert baked.proof.exact
    assert baked.proof.logit_difference == 0
    assert torch.equal(reloaded(baked, tmp_path)(input_ids=TOKENS).logits, wanted)
    assert not torch.equal(wanted, before)
    assert torch.equal(model(input_ids=TOKENS).logits, before), "the given model was changed"


@pytest.mark.parametrize(("family", "fields"), CLOSE, ids=str)
def test_baked_checkpoint_is_the_live_profile_but_for_rounding(
    family: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = build(family)
    before = model(input_ids=TOKENS).logits
    config = config_of(model, **fields)
    baked = bake_mote(model, config)
    wanted = live(model, config)
    assert 0 < baked.proof.block_difference < 1e-5
    torch.testing.assert_close(reloaded(baked, tmp_path)(input_ids=TOKENS).logits, wanted, atol=1e-5, rtol=0)
    assert float((wanted - before).abs().max()) > 1e-2
    assert torch.equal(model(input_ids=TOKENS).logits, before)


REFUSED = [
    ("mixtral", {"suppress_mode": "drop"}, "goes to the others"),
    ("deepseek_v3", {"suppress_mode": "drop", "strength": 0.5}, "goes to the others"),
    ("mixtral", {"suppress_mode": "zero", "scope": "generation"}, "the same for every token"),
    ("mixtral", {"suppress_mode": "zero", "positions": [-1]}, "the same for every token.*Leave positions out"),
    ("deepseek_v3", {"stimulate": [[1, 2]]}, "no bias lifts it"),
    ("mixtral", {"bias_on": "logits"}, "a matrix without a bias"),
    ("mixtral", {"bias_on": "selection"}, "no selection bias"),
    ("gpt_oss", {"bias_on": "selection"}, "no selection bias"),
    ("mixtral", {"suppress": [[0, 1]], "suppress_mode": "reroute"}, "one number of experts"),
    ("llama4", {"suppress_mode": "reroute"}, "more than its rule"),
    ("gemma4", {"suppress_mode": "zero"}, "cannot be run by itself"),
    ("gemma4", {"suppress_mode": "reroute"}, "not proved for the rule"),
    ("mixtral", {"suppress_mode": "drop", "gain": [(2, 2.0)]}, "goes to the others"),
]


@pytest.mark.parametrize(("family", "fields", "reason"), REFUSED, ids=str)
def test_bake_mote_what_was_not_proved_is_refused_with_the_reason(
    family: str, fields: dict[str, Any], reason: str
) -> None:
    model = build(family)
    given = dict(fields)
    config = MoTEConfig.for_model(model, **given) if "suppress" in given else config_of(model, **given)
    with pytest.raises(UnsupportedError, match=reason):
        bake_mote(model, config)


def test_bake_mote_removal_without_renormalisation_is_refused() -> None:
    model = build("olmoe", norm_topk_prob=False)
    with pytest.raises(UnsupportedError, match="not renormalised"):
        bake_mote(model, config_of(model, suppress_mode="reroute"))


def test_bake_mote_half_a_projection_that_scales_its_input_is_found_out() -> None:
    model = build("llama4")
    with pytest.raises(RouterContractError, match="does not do what the live one does"):
        bake_mote(model, config_of(model, suppress_mode="zero", strength=0.5))


def test_bake_mote_group_of_one_survivor_is_refused() -> None:
    model = build("deepseek_v3")
    # Groups of four; the live profile ranks the one that is left by itself.
    config = MoTEConfig.for_model(model, suppress=[[1, 0], [1, 1], [1, 2]], suppress_mode="reroute")
    with pytest.raises(UnsupportedError, match="left with one"):
        bake_mote(model, config)
    whole = MoTEConfig.for_model(model, suppress=[[1, e] for e in range(4)], suppress_mode="reroute")
    assert bake_mote(model, whole).proof.exact


@pytest.mark.parametrize(
    ("family", "fields", "reason"),
    [
        ("mixtral", {"suppress_mode": "zero", "strength": 0.3}, "rounded anew"),
        ("gpt_oss", {"bias_on": "logits"}, "close choices differ"),
        ("mixtral", {"gain": [(1, 1.3)]}, "rounded anew"),
    ],
)
def test_bake_mote_what_bfloat16_would_round_is_refused(family: str, fields: dict[str, Any], reason: str) -> None:
    model = build(family, dtype=torch.bfloat16)
    with pytest.raises(UnsupportedError, match=reason):
        bake_mote(model, config_of(model, **fields))
    assert bake_mote(model, config_of(model, suppress_mode="zero", strength=0.5)).proof.exact


def test_bake_mote_attached_empty_or_foreign_is_refused() -> None:
    model = build("mixtral")
    config = config_of(model, suppress_mode="zero")
    with apply_mote(model, config), pytest.raises(UnsupportedError, match="attached to a router"):
        bake_mote(model, config)
    with pytest.raises(ConfigError, match="changes nothing"):
        bake_mote(model, MoTEConfig())
    with pytest.raises(ModelMismatchError):
        bake_mote(build("mixtral", num_local_experts=6), config)
    with pytest.raises(UnsupportedError, match="must be a plain model"):
        bake_mote(Wrapped(model), config)
    with pytest.raises(UnsupportedError, match="not in memory"):
        bake_mote(build("mixtral").to("meta"), MoTEConfig(suppress=[[0, 1]], suppress_mode="zero"))


def test_bake_mote_unreachable_expert_is_refused() -> None:
    model = build("mixtral")
    # Whatever the input, three of the pairs (2, 3), (4, 5) and (6, 7) are above 0, and expert 1 is 0.
    router = find_routers(model)[0].module
    router.weight[1] = 0
    router.weight[[3, 5, 7]] = -router.weight[[2, 4, 6]]
    with pytest.raises(UnsupportedError, match="no input was found"):
        bake_mote(model, MoTEConfig(suppress=[[0, 1]], suppress_mode="zero"))


def test_bake_mote_removed_experts_leave_a_smaller_model(tmp_path: Path) -> None:
    model = build("qwen3_moe")
    baked = bake_mote(model, config_of(model, suppress_mode="reroute"))
    assert [site.num_experts for site in find_routers(baked.model)] == [6, 6]
    assert baked.model.config.num_experts == 6
    assert model.config.num_experts == 8
    card = baked.card()
    assert "numbered anew" in card
    shared = dict(model.named_parameters())
    assert baked.model.get_parameter("model.embed_tokens.weight") is not None
    assert (
        baked.model.get_parameter("model.embed_tokens.weight").data_ptr()
        == shared["model.embed_tokens.weight"].data_ptr()
    ), "tensors that do not change are not copied"


def test_baked_model_card_and_record_say_what_and_from_what(tmp_path: Path) -> None:
    model = build("deepseek_v3")
    config = config_of(model, suppress_mode="reroute", provenance={"found by": "imaging"})
    baked = bake_mote(model, config)
    baked.save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("reroute", "bit for bit", "minus infinity", "found by: imaging", "blk.1.exp_probs_b.bias", "baked"):
        assert text in card
    record = json.loads((tmp_path / "out" / "baked_mote.json").read_text())
    assert MoTEConfig.from_dict(record["config"]) == config
    assert record["proof"]["exact"] is True
    # The record is no config: what is in the weights must not be applied once more.
    with pytest.raises(HFMoTEError):
        MoTEConfig.from_pretrained(tmp_path / "out")
    with pytest.raises(FileFormatError, match="not empty"):
        baked.save_pretrained(tmp_path / "out")


GGUF_NAMES = {
    # How the converter of llama.cpp calls them on its way; the name map of the package knows the rest.
    "e_score_correction_bias": "e_score_correction.bias",
    "experts.down_proj_bias": "experts.down_proj.bias",
    "experts.down_proj": "experts.down_proj.weight",
}


@pytest.mark.parametrize(
    ("family", "arch", "fields"),
    [
        ("deepseek_v3", gguf.MODEL_ARCH.DEEPSEEK2, {"suppress_mode": "reroute"}),
        ("deepseek_v3", gguf.MODEL_ARCH.DEEPSEEK2, {"suppress_mode": "zero"}),
        ("gpt_oss", gguf.MODEL_ARCH.GPT_OSS, {"suppress_mode": "reroute"}),
        ("gpt_oss", gguf.MODEL_ARCH.GPT_OSS, {"suppress_mode": "zero"}),
        ("qwen3_moe", gguf.MODEL_ARCH.QWEN3MOE, {"suppress_mode": "zero"}),
        ("qwen3_moe", gguf.MODEL_ARCH.QWEN3MOE, {"suppress_mode": "reroute"}),
    ],
    ids=str,
)
def test_baked_tensors_stand_in_gguf_under_the_names_that_it_has(
    family: str, arch: Any, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = build(family)
    baked = bake_mote(model, config_of(model, **fields))
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    state = baked.model.state_dict()
    carried = [change for change in baked.changes if change.gguf is not None]
    assert carried
    writer = gguf.GGUFWriter(tmp_path / "baked.gguf", gguf.MODEL_ARCH_NAMES[arch])
    for change in carried:
        mapped = change.tensor
        for ours, theirs in GGUF_NAMES.items():
            if mapped.endswith(ours):
                mapped = mapped.removesuffix(ours) + theirs
                break
        assert names.get_name(mapped, (".weight", ".bias")) == change.gguf
        writer.add_tensor(change.gguf, state[change.tensor].numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "baked.gguf").tensors}
    for change in carried:
        assert np.array_equal(read[change.gguf], state[change.tensor].numpy())
