"""What else is refused: the error says what to do instead, and doing it works."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_families import TINY_FAMILIES
from tiny_models import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel

from hf_mote import MoTEConfig, RegexJudge, apply_mote, attribute_experts, find_routers, ftri
from hf_mote.errors import UnsupportedError
from hf_mote.routing.sites.special_outputs import refusals_of

TOKENS = torch.tensor([[90, 11, 12, 13, 14, 15, 16], [40, 90, 42, 43, 91, 45, 46]])
FIELDS: dict[str, dict[str, Any]] = {
    "drop": {"suppress": [[1, 0], [1, 3]]},
    "reroute": {"suppress": [[1, 0], [1, 3]], "suppress_mode": "reroute"},
    "zero": {"suppress": [[1, 0], [1, 3]], "suppress_mode": "zero"},
    "stimulate": {"stimulate": [[1, 2]]},
    "bias_on_logits": {"bias": [[1, 4, 3.0]]},
    "bias_on_selection": {"bias": [[1, 4, 3.0]], "bias_on": "selection"},
    "gain": {"gain": [[1, 0, 3.0], [1, 3, 0.5]]},
}


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("name", ["dbrx", "phimoe", "deepseek_v4"])
def test_apply_mote_what_a_router_cannot_is_refused_and_what_it_can_is_named(name: str) -> None:
    model = TINY_FAMILIES[name]()
    # DeepSeek-V4 begins with layers whose experts a hash of the token picks.
    refusing = (site for site in find_routers(model) if "bias_on_selection" in refusals_of(site) or name == "dbrx")
    layer = next(site.layer for site in refusing)
    native, refused, worked, named = logits(model), set(), set(), set()
    for what, fields in FIELDS.items():
        config = MoTEConfig(**{key: _at(value, layer) for key, value in fields.items()})
        try:
            with apply_mote(model, config):
                changed = not torch.equal(logits(model), native)
        except UnsupportedError as error:
            refused.add(what)
            named = set(str(error).rpartition("What it can: ")[2].rstrip(".").split(", "))
        else:
            assert changed, what
            worked.add(what)
    assert refused
    assert named == worked
    assert torch.equal(logits(model), native)


def _at(value: Any, layer: int) -> Any:
    return [[layer, *entry[1:]] for entry in value] if isinstance(value, list) else value


def test_apply_mote_sparsemixer_in_training_mode_is_refused_and_the_remedy_works() -> None:
    model = TINY_FAMILIES["phimoe"]()
    native = logits(model)
    with apply_mote(model, MoTEConfig(**FIELDS["reroute"])):
        model.train()
        with pytest.raises(UnsupportedError, match=r"Call model\.eval\(\) before"):
            logits(model)
        model.eval()
        assert not torch.equal(logits(model), native)


@pytest.mark.parametrize("scope", ["thinking", "answer"])
def test_apply_mote_checkpointing_under_a_part_is_refused_and_the_remedy_works(scope: str) -> None:
    model = tiny_model("mixtral").train()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    with apply_mote(model, MoTEConfig(**FIELDS["reroute"], scope=scope, thinking_tokens=[90, 91])):
        enable({"use_reentrant": False})
        loss = model(TOKENS, labels=TOKENS, use_cache=False).loss
        with pytest.raises(UnsupportedError, match="train without gradient checkpointing under this scope"):
            loss.backward()
        disable()
        model.zero_grad()
        model(TOKENS, labels=TOKENS, use_cache=False).loss.backward()
    assert model.get_parameter("model.layers.1.mlp.gate.weight").grad.norm() > 0


def test_attribute_experts_in_inference_mode_is_refused_and_the_remedies_work() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    how: dict[str, Any] = {"response": "g", "baseline_response": "h", "resamples": 0, "progress": False}
    with torch.inference_mode(), pytest.raises(UnsupportedError, match="Call it outside, or use no_grad"):
        attribute_experts(model, tokenizer, ["abc", "def"], **how)
    outside = attribute_experts(model, tokenizer, ["abc", "def"], **how)
    with torch.no_grad():
        assert attribute_experts(model, tokenizer, ["abc", "def"], **how).top(5) == outside.top(5)


def test_attribute_experts_of_weights_out_of_reach_is_refused_and_the_remedy_works() -> None:
    model, tokenizer = TINY_FAMILIES["dbrx"](vocab_size=101), tiny_tokenizer()
    with pytest.raises(UnsupportedError, match=r"Use ftri\."):
        attribute_experts(model, tokenizer, ["abc", "def"], response="g", baseline_response="h", progress=False)
    judge = RegexJudge({"vowel": "[aeiou]"})
    result = ftri(model, tokenizer, ["abc", "def", "ghi", "xyz"], judge, max_new_tokens=4, progress=False)
    assert sum(result.class_sizes.values()) == 4


def test_attribute_experts_of_a_compiled_model_is_refused_and_the_remedy_works(compiler: None) -> None:
    model, tokenizer = tiny_model("mixtral", num_hidden_layers=1), tiny_tokenizer()
    how: dict[str, Any] = {"response": "g", "baseline_response": "h", "resamples": 0, "progress": False}
    with pytest.raises(UnsupportedError, match=r"Give the model itself, not the compiled one"):
        attribute_experts(torch.compile(model, backend="eager"), tokenizer, ["abc"], **how)
    assert len(attribute_experts(model, tokenizer, ["abc", "def"], **how).top(3)) == 3
