"""Scopes "thinking" and "answer": per sequence, across padding, and step by step."""

from __future__ import annotations

import pytest
import torch
from caches import cache_of, taking
from tiny_models import tiny_model
from transformers import PreTrainedModel

from hf_mote import MoTEConfig, apply_mote, record_routing
from hf_mote.errors import ConfigError, UnsupportedError

OPENS, CLOSES = 90, 91
EXPERTS = [[layer, expert] for layer in (1, 2) for expert in (0, 3)]
TEXTS = [
    [5, 6, OPENS, 7, 8, 9, CLOSES, 10, 11],
    [12, OPENS, 13, 14, CLOSES, 15, 16],
    [17, 18, 19],
    [OPENS, 20, 21, 22],
]
PARTS = {
    "thinking": [[2, 3, 4, 5], [1, 2, 3], [], [0, 1, 2, 3]],
    "answer": [[6, 7, 8], [4, 5, 6], [], []],
}


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("deepseek_v3")


def config(scope: str) -> MoTEConfig:
    return MoTEConfig(suppress=EXPERTS, suppress_mode="reroute", scope=scope, thinking_tokens=[OPENS, CLOSES])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("scope", ["thinking", "answer"])
def test_apply_mote_by_part_edits_only_that_part_of_each_sequence(
    model: PreTrainedModel, scope: str, side: str
) -> None:
    longest = max(map(len, TEXTS))
    ids, mask = torch.zeros(len(TEXTS), longest, dtype=torch.long), torch.zeros(len(TEXTS), longest, dtype=torch.long)
    for row, text in enumerate(TEXTS):
        place = slice(longest - len(text), longest) if side == "left" else slice(0, len(text))
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    with apply_mote(model, config(scope)), record_routing(model, trace=True) as record:
        model(ids, attention_mask=mask)
    for row, text in enumerate(TEXTS):
        trace = record.traces()[row]
        assert len(trace.indices) == len(text)
        suppressed_left = torch.isin(trace.indices, torch.tensor([0, 3])).flatten(1).any(1)
        inside = torch.zeros(len(text), dtype=torch.bool)
        inside[PARTS[scope][row]] = True
        assert not suppressed_left[inside].any()
        if not inside.any():
            assert suppressed_left.any()


@pytest.mark.parametrize("scope", ["thinking", "answer"])
def test_apply_mote_by_part_step_by_step_equals_the_whole_text(model: PreTrainedModel, scope: str) -> None:
    ids = torch.tensor([TEXTS[0], [*TEXTS[1], 23, 24]])
    with apply_mote(model, config(scope)):
        whole = model(ids).logits
        out = model(ids[:, :2], use_cache=True)
        steps = [out.logits]
        for column in range(2, ids.shape[1]):
            out = model(ids[:, column : column + 1], **taking(model, cache_of(out)), use_cache=True)
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(whole, model(ids).logits, atol=1e-3)


def test_apply_mote_by_part_several_tokens_on_a_filled_cache_work(model: PreTrainedModel) -> None:
    """The part is known from the tokens alone, so that chunks of a prompt are no riddle."""
    ids = torch.tensor([TEXTS[0]])
    with apply_mote(model, config("answer")):
        whole = model(ids).logits
        out = model(ids[:, :4], use_cache=True)
        rest = model(ids[:, 4:], **taking(model, cache_of(out)), use_cache=True).logits
    torch.testing.assert_close(torch.cat([out.logits, rest], dim=1), whole, rtol=1e-4, atol=1e-4)


def test_apply_mote_by_part_generate_without_cache_equals_with_cache(model: PreTrainedModel) -> None:
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = torch.tensor([TEXTS[3]])
    with apply_mote(model, config("thinking")):
        cached = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        again = model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, **options)
    assert torch.equal(cached, again)


def test_apply_mote_two_interventions_by_part_and_by_phase_meet(model: PreTrainedModel) -> None:
    ids = torch.tensor([TEXTS[0]])
    with apply_mote(model, config("thinking")), apply_mote(model, config("answer")):
        both = model(ids).logits
    with apply_mote(model, MoTEConfig(suppress=EXPERTS, suppress_mode="reroute")):
        everywhere = model(ids).logits
    # The rows are native; the experts multiply them together with other rows, which rounds differently.
    torch.testing.assert_close(both[:, :2], model(ids).logits[:, :2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(both, everywhere, atol=1e-4)


def test_apply_mote_by_part_embeddings_are_refused(model: PreTrainedModel) -> None:
    embeddings = model.get_input_embeddings()(torch.tensor([TEXTS[0]]))
    with apply_mote(model, config("answer")), pytest.raises(UnsupportedError, match="input_ids"):
        model(inputs_embeds=embeddings)


@pytest.mark.parametrize(
    "fields",
    [
        {"scope": "thinking"},
        {"scope": "all", "thinking_tokens": [1, 2]},
        {"scope": "answer", "thinking_tokens": [1]},
        {"scope": "answer", "thinking_tokens": [1, 1]},
        {"scope": "answer", "thinking_tokens": [1, -2]},
        {"scope": "answer", "thinking_tokens": "ab"},
    ],
)
def test_mote_config_thinking_tokens_go_with_their_scopes(fields: dict) -> None:
    with pytest.raises(ConfigError, match="thinking_tokens"):
        MoTEConfig(suppress=EXPERTS, **fields)
