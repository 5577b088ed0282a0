"""Multi-token prediction: heads that guess, with layers and routers of their own, which no config speaks of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers.modeling_layers as layers
from tiny_families import TINY_FAMILIES
from transformers import GenerationConfig, PreTrainedModel

from hf_mote import MoTEConfig, apply_mote, find_routers, record_routing
from hf_mote.errors import UnsupportedError

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 8}
# bailing_hybrid has a state that assisted decoding does not take; mellum and step3p7 ask for their heads' layer types.
FAMILIES = ("deepseek_v3", "glm4_moe", "inkling", "sarvam_mla", "sarvam_moe")
SUPPRESS = [[layer, expert] for layer in (1, 2) for expert in range(3)]

pytestmark = pytest.mark.skipif(
    not hasattr(layers, "MtpModel") or not hasattr(GenerationConfig(), "use_mtp"),
    reason="this transformers generates without prediction heads",
)


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> list[PreTrainedModel]:
    """The heads that were made, of random weights in place of a checkpoint's."""
    made: list[PreTrainedModel] = []

    def from_pretrained(cls: type, main_model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made.append(cls(main_model, main_model.config.get_text_config().num_mtp_layers).eval())
        return made[-1]

    monkeypatch.setattr(layers.MtpModel, "from_pretrained", classmethod(from_pretrained))
    return made


def model_with_heads(family: str) -> PreTrainedModel:
    try:
        model = TINY_FAMILIES[family]()
    except ImportError as error:
        pytest.skip(f"this transformers has {error}")
    model.config.get_text_config().num_mtp_layers = 1
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_by_prediction_heads_writes_what_it_writes_without(family: str, heads: list[PreTrainedModel]) -> None:
    model = model_with_heads(family)
    native = model(IDS).logits
    for fields in (
        {"suppress_mode": "drop"},
        {"suppress_mode": "reroute"},
        {"scope": "thinking", "thinking_tokens": [7, 98]},
    ):
        with apply_mote(model, MoTEConfig(suppress=SUPPRESS, **fields)):
            plain = model.generate(IDS, **GREEDY)
            assert torch.equal(model.generate(IDS, use_mtp=True, **GREEDY), plain)
            assert len(plain[0]) == IDS.shape[1] + 8
            patched = model(IDS).logits
        assert fields.get("scope") or not torch.equal(patched, native)
    routers = {id(site.module) for site in find_routers(model)}
    own = [part for part in heads[-1].modules() if type(part).__name__ == type(find_routers(model)[0].module).__name__]
    assert bool(own) == (family != "inkling")  # the heads have routers, where they are not dense
    assert not {id(part) for part in own} & routers  # and they are none of the model's


@pytest.mark.parametrize("new", [2, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_prediction_heads_are_refused_where_phases_matter(family: str, heads: list[PreTrainedModel], new: int) -> None:
    model = model_with_heads(family)
    how = {**GREEDY, "max_new_tokens": new, "use_mtp": True}
    for attached in (
        lambda: record_routing(model),
        lambda: apply_mote(model, MoTEConfig(suppress=SUPPRESS, scope="prompt")),
        lambda: apply_mote(model, MoTEConfig(suppress=SUPPRESS, scope="generation")),
    ):
        with attached(), pytest.raises(UnsupportedError, match="guesses of assisted decoding"):
            model.generate(IDS, **how)
