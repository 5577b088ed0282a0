"""`attribute_experts` is the derivative it says it is, leaves nothing behind, and refuses what it cannot score."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from torch.utils.hooks import RemovableHandle

from hf_mote import (
    ExpertRanking,
    MoTEConfig,
    RouterSite,
    ablate_experts,
    apply_mote,
    attribute_experts,
    find_routers,
    search_experts,
)
from hf_mote.errors import ConfigError, DataError
from hf_mote.generation.asking import Chat

PROMPTS = ["hello", "what is it?", "go"]
TARGET, BASELINE = "yes", "nope!"


def score(model: torch.nn.Module, prompt: str) -> float:
    """log p(target) - log p(baseline), token by token, without batching or padding."""
    tokenizer = tiny_tokenizer()
    question = Chat(tokenizer).encode([prompt])[0]
    total = 0.0
    for sign, text in ((1, TARGET), (-1, BASELINE)):
        answer = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([question + answer])).logits[0].double().log_softmax(-1)
        total += sign * sum(float(logits[len(question) - 1 + i, token]) for i, token in enumerate(answer))
    return total


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v2_groups", "deepseek_v3"])
def test_attribute_experts_score_is_the_derivative_by_the_routing_weight(name: str) -> None:
    model = tiny_model(name)
    ranking = attribute_experts(model, tiny_tokenizer(), PROMPTS, TARGET, BASELINE, batch_size=2, progress=False)
    step = 1e-2
    for layer, expert in [*ranking.top(3), *ranking.top(len(ranking))[-3:]]:
        smaller = MoTEConfig(suppress=[[layer, expert]], suppress_mode="zero", strength=step)
        before = sum(score(model, prompt) for prompt in PROMPTS)
        with apply_mote(model, smaller):
            after = sum(score(model, prompt) for prompt in PROMPTS)
        measured = (before - after) / step / len(PROMPTS)
        expected = ranking.matrix()[ranking.layers.index(layer), expert].item()
        # A one-sided difference of a curved function in float32: 5 % and a floor.
        assert measured == pytest.approx(expected, rel=0.05, abs=5e-3)


def test_attribute_experts_result_does_not_depend_on_batching_and_frozen_weights() -> None:
    model = tiny_model("deepseek_v3")

    def ranked(**options: int) -> ExpertRanking:
        return attribute_experts(model, tiny_tokenizer(), PROMPTS, TARGET, BASELINE, progress=False, **options)

    together, alone = ranked(batch_size=8), ranked(batch_size=1)
    assert torch.allclose(together.matrix(), alone.matrix(), atol=1e-4)
    model.requires_grad_(False)
    with torch.no_grad():
        frozen = ranked(batch_size=8)
    assert torch.equal(frozen.matrix(), together.matrix())


def test_attribute_experts_swapped_responses_flip_the_sign() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    one = attribute_experts(model, tokenizer, PROMPTS, TARGET, [BASELINE] * 3, resamples=0, progress=False)
    other = attribute_experts(model, tokenizer, PROMPTS, BASELINE, [TARGET] * 3, resamples=0, progress=False)
    assert torch.allclose(one.matrix(), -other.matrix(), atol=1e-6)


def test_attribute_experts_leaves_nothing_behind() -> None:
    model = tiny_model("deepseek_v3")
    tokens = torch.tensor([[5, 6, 7]])
    before = model(tokens).logits
    attribute_experts(model, tiny_tokenizer(), PROMPTS, TARGET, BASELINE, progress=False)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(tokens).logits, before)


def test_attribute_experts_bfloat16_ranks_as_float32() -> None:
    tops = []
    for dtype in (torch.float32, torch.bfloat16):
        ranking = attribute_experts(
            tiny_model("deepseek_v3", dtype), tiny_tokenizer(), PROMPTS, TARGET, BASELINE, resamples=0, progress=False
        )
        tops.append(ranking.matrix().flatten())
    assert torch.corrcoef(torch.stack(tops))[0, 1] > 0.95


@pytest.mark.parametrize(
    ("response", "baseline", "place"),
    [
        ("", "b", r"response\[0\]"),
        ("a", ["b"], "baseline_response"),
        (["a", "b", " "], "b", r"response\[2\]"),
        ("a", [], "baseline_response"),
    ],
)
def test_attribute_experts_bad_responses_are_refused_with_their_place(
    response: object, baseline: object, place: str
) -> None:
    model = tiny_model("mixtral")
    with pytest.raises(DataError, match=place):
        attribute_experts(model, tiny_tokenizer(), PROMPTS, response, baseline, progress=False)  # type: ignore[arg-type]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "options", [{"gain": 0}, {"gain": 1.5}, {"gain": "1"}, {"batch_size": 0}, {"batch_size": -3}, {"seed": -1}]
)
def test_attribute_experts_bad_settings_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        attribute_experts(
            tiny_model("mixtral"), tiny_tokenizer(), PROMPTS, TARGET, BASELINE, progress=False, **options
        )


def test_attribute_experts_at_half_gain_is_the_derivative_there() -> None:
    model = tiny_model("deepseek_v3")
    ranking = attribute_experts(
        model, tiny_tokenizer(), PROMPTS, TARGET, BASELINE, gain=0.5, resamples=0, progress=False
    )
    pair = ranking.top(1)[0]
    halves = [halved(model, pair, gain) for gain in (0.51, 0.49)]
    expected = ranking.matrix()[ranking.layers.index(pair[0]), pair[1]].item()
    assert (halves[0] - halves[1]) / 0.02 == pytest.approx(expected, rel=0.05, abs=5e-3)


def halved(model: torch.nn.Module, pair: tuple[int, int], gain: float) -> float:
    """Mean score with every routing weight at one half, and one expert's at `gain`."""

    def scale(site: RouterSite) -> RemovableHandle:
        def hook(module: torch.nn.Module, args: object, output: tuple) -> tuple:
            factors = torch.full((site.num_experts,), 0.5)
            if site.layer == pair[0]:
                factors[pair[1]] = gain
            return (output[0], output[1] * factors[output[2]], output[2])

        return site.module.register_forward_hook(hook)

    handles = [scale(site) for site in find_routers(model)]
    total = sum(score(model, prompt) for prompt in PROMPTS) / len(PROMPTS)
    for handle in handles:
        handle.remove()
    return total


def test_causal_rankings_take_the_earlier_names_of_their_arguments() -> None:
    model, prompts = tiny_model("mixtral"), PROMPTS[:1]
    for rank, options in (
        (attribute_experts, {"resamples": 0}),
        (ablate_experts, {"resamples": 0, "experts": [(0, 1)]}),
        (search_experts, {"max_experts": 1, "experts": [(0, 1)]}),
    ):
        given = (model, tiny_tokenizer(), prompts)
        now: Any = rank(*given, response=TARGET, baseline_response=BASELINE, progress=False, **options)
        with pytest.warns(DeprecationWarning, match="is deprecated: use") as warned:
            then: Any = rank(*given, target=TARGET, baseline=BASELINE, progress=False, **options)
        where = rank.__name__
        assert {str(warning.message) for warning in warned} == {
            f"{where}.target is deprecated: use response.",
            f"{where}.baseline is deprecated: use baseline_response.",
        }
        assert {warning.filename for warning in warned} == {__file__}
        for name in ("score", "scores"):
            if hasattr(now, name):
                assert torch.equal(torch.as_tensor(getattr(now, name)), torch.as_tensor(getattr(then, name)))
        with pytest.warns(DeprecationWarning, match="score is deprecated: use logit_score"):
            rank(*given, score=lambda logits, batch: logits.float().mean((1, 2)), progress=False, **options)
        with pytest.raises(ConfigError, match=f"{where}.target.*response, which is given too"):
            rank(*given, response=TARGET, target=TARGET, baseline_response=BASELINE, **options)
