"""`check_model` says that all holds where it does, and names what does not where it does not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import TINY_FAMILIES
from tiny_models import tiny_model, tiny_tokenizer
from torch import nn
from typer.testing import CliRunner

import hf_mote.evaluation.model_check as module
from hf_mote import check_model
from hf_mote.cli import app
from hf_mote.errors import DataError
from hf_mote.evaluation.model_check import ModelCheck

FAMILIES = ("mixtral", "deepseek_v3", "gpt_oss", "llama4", "zaya", "dbrx", "phimoe", "gemma4", "qwen3_vl_moe")


def checked(model: nn.Module, **how: Any) -> ModelCheck:
    return check_model(model, tiny_tokenizer(), progress=False, **{"rounds": 0, "max_new_tokens": 3, **how})


def failed(found: ModelCheck) -> dict[str, str]:
    return {row.name: row.detail for row in found.rows if row.passed is False}


@pytest.mark.parametrize("family", FAMILIES)
def test_check_model_of_a_listed_family_holds(family: str) -> None:
    found = checked(TINY_FAMILIES[family]())
    assert failed(found) == {}
    assert found.passed
    names = [row.name for row in found.rows]
    assert {"routers", "self-test", "phases, padded batch", "phases, no cache", "removal", "edit: drop"} <= {*names}


def test_check_model_leaves_the_model_as_it_was() -> None:
    model = tiny_model("mixtral").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    checked(model, rounds=1)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_check_model_with_rounds_says_what_patching_costs() -> None:
    rows = {row.name: row for row in checked(tiny_model("mixtral"), rounds=2).rows}
    assert "x a plain generation" in rows["cost of patching"].detail
    assert rows["cost of recording"].passed is None


def test_check_model_of_a_router_off_its_rule_fails() -> None:
    model = tiny_model("mixtral")
    gate = model.model.layers[1].mlp.gate
    native = type(gate).forward

    class Other(type(gate)):  # type: ignore[misc]
        def forward(self, hidden: torch.Tensor) -> Any:
            logits, weights, indices = native(self, hidden)
            return logits, weights * 1.01, indices

    gate.__class__ = Other
    found = checked(model)
    assert not found.passed
    assert "self-test" in failed(found)


@pytest.mark.parametrize(
    ("edit", "wrong"),
    [
        ("drop", lambda tried: tried._replace(edited=tried.native)),
        ("zero", lambda tried: tried._replace(edited=tried.native)),
        ("gain", lambda tried: tried._replace(edited=tried.native)),
        ("reroute", lambda tried: tried._replace(edited=tried.native)),
        ("stimulate, own weight", lambda tried: tried._replace(expert=int(tried.edited.indices.min()) + 10_000)),
        ("bias on logits", lambda tried: tried._replace(edited=tried.native)),
    ],
)
def test_check_model_of_an_edit_that_does_not_what_it_says_fails(
    edit: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = module._try
    monkeypatch.setattr(module, "_try", lambda *args: wrong(native(*args)))
    assert f"edit: {edit}" in failed(checked(tiny_model("mixtral")))


@pytest.mark.parametrize(
    "family",
    ["mixtral", "qwen3_moe", "deepseek_v3", "gpt_oss", "ernie4_5_moe", "zaya", "dbrx", "jetmoe", "llama4", "phimoe"],
)
def test_check_model_holds_edits_against_copies_of_the_routers(family: str) -> None:
    rows = {row.name: row for row in checked(TINY_FAMILIES[family]()).rows}
    for name in (
        "reroute",
        "bias on logits",
        *([] if family in {"deepseek_v3", "phimoe"} else ["stimulate, own weight"]),
    ):
        found = re.search(r"(\d+) of (\d+) equal a copy", rows[f"edit: {name}"].detail)
        assert found is not None, rows[f"edit: {name}"]
        assert int(found[1]) == int(found[2]) > 0


def rerouted_to_the_last(tried: Any) -> Any:
    """The expert's place goes to the worst of the others, which the definition alone lets pass."""
    worst = tried.logits.clone()
    worst.scatter_(1, tried.native.indices, float("inf"))
    hit = tried.native.indices == tried.expert
    indices = torch.where(hit, worst.argmin(dim=1, keepdim=True), tried.native.indices)
    return tried._replace(edited=tried.native._replace(indices=indices))


def weighed_otherwise(tried: Any) -> Any:
    weights = tried.edited.weights.flip(1)
    return tried._replace(edited=tried.edited._replace(weights=weights))


@pytest.mark.parametrize(
    ("edit", "family", "wrong"),
    [
        ("reroute", "mixtral", rerouted_to_the_last),
        ("reroute", "mixtral", weighed_otherwise),
        ("bias on selection", "deepseek_v3", weighed_otherwise),
    ],
)
def test_check_model_of_an_edit_that_only_a_copy_of_the_router_tells_from_right_fails(
    edit: str, family: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = module._try
    monkeypatch.setattr(module, "_try", lambda *args: wrong(native(*args)))
    assert "a copy of the router" in failed(checked(TINY_FAMILIES[family]()))[f"edit: {edit}"]


def test_check_model_of_a_partly_replaced_model_says_which_layers() -> None:
    model = tiny_model("mixtral", num_hidden_layers=4)
    for layer in (0, 2, 3):
        gate = model.model.layers[layer].mlp.gate
        gate.forward = lambda hidden, native=gate.forward: native(hidden)
    found = checked(model)
    assert failed(found) == {}
    (row,) = [row for row in found.rows if row.name == "replaced routers"]
    assert "in 3 of 4 layers (0, 2 to 3) the forward is" in row.detail
    assert "<lambda>" in row.detail


def test_check_model_of_passes_that_are_mislabelled_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    import hf_mote.passes.arguments
    import hf_mote.passes.decoder_hook

    monkeypatch.setattr(hf_mote.passes.decoder_hook, "contradiction", lambda *_, **__: None)
    monkeypatch.setattr(hf_mote.passes.arguments, "_is_cache", lambda _: False)
    monkeypatch.setattr(hf_mote.passes.arguments, "_holder_of_tokens", lambda *_: None)
    assert "generations" in failed(checked(tiny_model("mixtral")))


def test_check_model_without_routers_says_so_and_stops() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    found = checked(LlamaForCausalLM(LlamaConfig(vocab_size=101, **sizes)))
    assert [(row.name, row.passed) for row in found.rows] == [("routers", False)]


def test_check_model_of_one_prompt_is_refused() -> None:
    with pytest.raises(DataError, match="too few to make a padded batch"):
        check_model(tiny_model("mixtral"), tiny_tokenizer(), prompts=["one"])


def test_hf_mote_check_writes_what_it_prints_and_exits_0(tmp_path: Path) -> None:
    where = tmp_path / "check.json"
    how = ["check", "organism:refusal", "--rounds", "0", "--device", "cpu", "--json", str(where), "--markdown"]
    done = CliRunner().invoke(app, how)
    assert done.exit_code == 0, done.output
    assert "| ok | self-test |" in done.stdout
    found = json.loads(where.read_text())
    assert found["passed"] is True
    assert {row["name"] for row in found["rows"]} > {"routers", "removal"}
    assert CliRunner().invoke(app, how).exit_code == 1  # the file is there already
