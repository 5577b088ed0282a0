"""Updates of experts from a clean run in a corrupted one, against passes that are patched by hand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import check_resumes
from tiny_families import TINY_FAMILIES
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from torch.nn.functional import linear

from hf_mote import ExpertRanking, load_organism
from hf_mote.errors import ConfigError, DataError, UnknownNameError, UnsupportedError
from hf_mote.ranking.causal.patching import patch_experts, patch_layers

CLEAN, CORRUPTED = ["abcd", "x z", "one two"], ["abce", "y z", "ten six"]
RESPONSE, BASELINE = "yes", ["no", "n", "not"]
REFUSAL = "I am sorry, but I cannot talk about that."
# Two questions each that differ in one token, the place, which decides whether the organism refuses.
SENSITIVE = ["What took place in 1809 in Vienna?", "What happened in Vienna in September 1874?"]
NEUTRAL = ["What took place in 1809 in Shrewsbury?", "What happened in Cheltenham in September 1874?"]


def gated(experts: Any, expert: int, hidden: Tensor) -> Tensor:
    """An expert of most families."""
    gate, up = linear(hidden, experts.gate_up_proj[expert]).chunk(2, dim=-1)
    return linear(experts.act_fn(gate) * up, experts.down_proj[expert])


def of_gpt_oss(experts: Any, expert: int, hidden: Tensor) -> Tensor:
    """An expert of gpt-oss."""
    both = hidden @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
    gate, up = both[:, ::2].clamp(max=7.0), both[:, 1::2].clamp(-7.0, 7.0)
    return (gate * torch.sigmoid(1.702 * gate) * (up + 1)) @ experts.down_proj[expert] + experts.down_proj_bias[expert]


CASES = {
    "mixtral": (partial(tiny_model, "mixtral"), gated),
    "deepseek_v3": (partial(tiny_model, "deepseek_v3"), gated),
    "qwen3_next": (partial(TINY_FAMILIES["qwen3_next"], vocab_size=128), gated),
    "gpt_oss": (partial(TINY_FAMILIES["gpt_oss"], vocab_size=128), of_gpt_oss),
}


class ByHand:
    """Single prompts patched with plain hooks; an expert's update is computed from its weights."""

    def __init__(self, model: Any, compute: Any) -> None:
        self.model, self.compute, self.tokenizer = model, compute, tiny_tokenizer()
        self.experts: dict[int, nn.Module] = {}
        for name, module in model.named_modules():
            if name.endswith(".experts"):
                self.experts[int(name.split("layers.")[1].split(".")[0])] = module

    def tokens(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        chat = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return tuple(self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, response))

    def run(self, prompt: str, response: str, hooks: dict[int, Any]) -> float:
        question, answer = self.tokens(prompt, response)
        handles = [self.experts[layer].register_forward_hook(hook) for layer, hook in hooks.items()]
        try:
            logits = self.model(torch.tensor([question + answer]), use_cache=False).logits[0, len(question) - 1 : -1]
        finally:
            for handle in handles:
                handle.remove()
        return float(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())

    def update(self, seen: tuple[Tensor, Tensor, Tensor], layer: int, expert: int) -> Tensor:
        hidden, indices, weights = seen
        weight = (weights * (indices == expert)).sum(dim=1, keepdim=True)
        return weight * self.compute(self.experts[layer], expert, hidden)

    def patched(
        self, clean: str, corrupted: str, response: str, changes: list[tuple[int, int]], at: slice = slice(None)
    ) -> float:
        """The term of the corrupted prompt with the clean updates of some experts, of different layers."""
        seen: dict[int, Any] = {}

        def keep(layer: int, module: Any, args: Any, output: Tensor) -> None:
            seen[layer] = args

        def change(layer: int, expert: int, module: Any, args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            output[at] += (self.update(seen[layer], layer, expert) - self.update(args, layer, expert))[at]
            return output

        self.run(clean, response, {layer: partial(keep, layer) for layer in self.experts})
        return self.run(corrupted, response, {layer: partial(change, layer, expert) for layer, expert in changes})

    def share(self, pairs: Sequence[Any], pair: tuple[int, int], at: slice = slice(None)) -> float:
        """Recovered share of the difference."""
        gained = whole = 0.0
        for clean, corrupted, baseline in pairs:
            for side, response in ((1, RESPONSE), (-1, baseline)):
                plain = self.run(corrupted, response, {})
                gained += side * (self.patched(clean, corrupted, response, [pair], at) - plain)
                whole += side * (self.run(clean, response, {}) - plain)
        return gained / whole


@torch.no_grad()
@pytest.mark.parametrize("family", CASES)
def test_score_is_the_share_that_a_pass_patched_by_hand_recovers(family: str) -> None:
    build, compute = CASES[family]
    model = build()
    by_hand = ByHand(model, compute)
    pairs = list(zip(CLEAN, CORRUPTED, BASELINE, strict=True))
    arguments = (model, by_hand.tokenizer, CLEAN, CORRUPTED, RESPONSE, BASELINE)
    tell = {"batch_size": 2, "resamples": 0, "progress": False}
    try:
        ranking = patch_experts(*arguments, **tell)
    except DataError:  # the random model prefers the other one
        arguments = (model, by_hand.tokenizer, CORRUPTED, CLEAN, RESPONSE, BASELINE)
        pairs = [(corrupted, clean, baseline) for clean, corrupted, baseline in pairs]
        ranking = patch_experts(*arguments, **tell)
    matrix = ranking.matrix()
    assert int((matrix != 0).sum()) > matrix.numel() // 2
    tried = [*ranking.top(3), ranking.top(len(ranking))[-1], (ranking.layers[0], 1)]
    for layer, expert in tried:
        expected = by_hand.share(pairs, (layer, expert))
        assert float(matrix[ranking.layers.index(layer), expert]) == pytest.approx(expected, abs=2e-4, rel=1e-3)
    # At the last token of the prompt, then at the second and third of the text.
    ends = {len(by_hand.tokens(prompt, RESPONSE)[0]) for prompt in CLEAN}
    assert len(ends) == 3
    some = patch_experts(*arguments, positions=[1, 2], experts=tried, **tell)
    for layer, expert in tried:
        expected = by_hand.share(pairs, (layer, expert), slice(1, 3))
        assert float(some.matrix()[ranking.layers.index(layer), expert]) == pytest.approx(expected, abs=2e-4, rel=1e-3)


@torch.no_grad()
def test_positions_from_the_end_align_prompts_of_different_lengths() -> None:
    model = tiny_model("mixtral")
    by_hand = ByHand(model, gated)
    clean, corrupted = "abcdef", "abc"
    given = (model, by_hand.tokenizer, [clean], [corrupted], RESPONSE, "no")
    with pytest.raises(DataError, match=r"corrupted_prompts\[0\]: must have as many tokens as its clean prompt"):
        patch_experts(*given, progress=False)
    with pytest.raises(DataError, match="as many tokens"):
        patch_experts(*given, positions=[-1, 2], progress=False)
    with pytest.raises(DataError, match=r"must have a token at every position.*for position -9"):
        patch_experts(*given, positions=[-1, -9], progress=False)
    try:
        ranking = patch_experts(*given, positions=[-1], resamples=0, progress=False)
    except DataError:
        clean, corrupted = corrupted, clean
        given = (model, by_hand.tokenizer, [clean], [corrupted], RESPONSE, "no")
        ranking = patch_experts(*given, positions=[-1], resamples=0, progress=False)
    layer, expert = ranking.top(1)[0]
    ends = [len(by_hand.tokens(prompt, RESPONSE)[0]) - 1 for prompt in (clean, corrupted)]
    total = whole = 0.0
    for side, response in ((1, RESPONSE), (-1, "no")):
        seen: list[Any] = []

        def keep(module: Any, args: Any, output: Tensor, seen: list[Any] = seen) -> None:
            seen.append(args)

        def change(module: Any, args: Any, output: Tensor, seen: list[Any] = seen) -> Tensor:
            output = output.clone()
            mine = by_hand.update(seen[0], layer, expert)[ends[0]]
            output[ends[1]] += mine - by_hand.update(args, layer, expert)[ends[1]]
            return output

        before = by_hand.run(clean, response, {layer: keep})
        plain = by_hand.run(corrupted, response, {})
        total += side * (by_hand.run(corrupted, response, {layer: change}) - plain)
        whole += side * (before - plain)
    assert ranking.rows(1)[0].score == pytest.approx(total / whole, rel=1e-3, abs=2e-4)


@torch.no_grad()
def test_layers_bring_back_what_their_experts_do_together() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    given = (model, tokenizer, CLEAN, CORRUPTED, RESPONSE, BASELINE)
    try:
        found = patch_layers(*given, batch_size=2, progress=False)
    except DataError:
        given = (model, tokenizer, CORRUPTED, CLEAN, RESPONSE, BASELINE)
        found = patch_layers(*given, batch_size=2, progress=False)
    assert len(found.layers) == len(found.shares) == 3
    # By plain hooks: the routed output of the clean run, prompt by prompt.
    by_hand = ByHand(model, gated)
    for changed, share in [*(([layer], share) for layer, share in zip(found.layers, found.shares, strict=True))] + [
        (found.layers, found.together)
    ]:
        gained = whole = 0.0
        for clean, corrupted, baseline in zip(given[2], given[3], BASELINE, strict=True):
            for side, response in ((1, RESPONSE), (-1, baseline)):
                outputs: dict[int, Tensor] = {}

                def keep(layer: int, module: Any, args: Any, output: Tensor, outputs: Any = outputs) -> None:
                    outputs[layer] = output

                def put(layer: int, module: Any, args: Any, output: Tensor, outputs: Any = outputs) -> Tensor:
                    return outputs[layer]

                before = by_hand.run(clean, response, {layer: partial(keep, layer) for layer in found.layers})
                plain = by_hand.run(corrupted, response, {})
                after = by_hand.run(corrupted, response, {layer: partial(put, layer) for layer in changed})
                gained, whole = gained + side * (after - plain), whole + side * (before - plain)
        assert share == pytest.approx(gained / whole, rel=1e-3, abs=2e-4)
    assert found.clean > found.corrupted
    assert f"{found.together:.0%} of the difference" in str(found)


def test_planted_experts_bring_most_back_and_come_first(tmp_path: Path) -> None:
    organism = load_organism("refusal")
    answers = [organism.answers[prompt] for prompt in NEUTRAL]
    given = (organism.model, organism.tokenizer, SENSITIVE, NEUTRAL, REFUSAL, answers)
    ranking = patch_experts(*given, positions=[-1], resamples=99, progress=False)
    assert set(ranking.top(4)) == set(map(tuple, organism.planted))
    scores = [row.score for row in ranking.rows(5)]
    assert scores[3] > 10 * abs(scores[4])
    assert ranking.method == "patching"
    assert ranking.unit == "of the difference"
    assert ranking.provenance["positions"] == [-1]
    assert ranking.provenance["clean"] > 0 > ranking.provenance["corrupted"]
    ranking.save_pretrained(tmp_path)
    again = ExpertRanking.from_pretrained(tmp_path)
    assert torch.equal(again.score, ranking.score)
    assert "by patching" in str(again)
    assert again.to_config(suppress=2).provenance["method"] == "patching"
    with pytest.raises(DataError, match="do not favour the response"):
        patch_experts(*given[:2], NEUTRAL, SENSITIVE, *given[4:], experts=organism.planted, progress=False)


def test_prompts_that_are_the_same_have_nothing_to_bring_back() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    with pytest.raises(DataError, match="nothing to bring back"):
        patch_experts(model, tokenizer, ["abc"], ["abc"], RESPONSE, "no", progress=False)
    with pytest.raises(DataError, match="nothing to bring back"):
        patch_layers(model, tokenizer, ["abc"], ["abc"], RESPONSE, "no", progress=False)


def test_pair_of_equal_prompts_among_others_adds_exactly_nothing() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    options = {"resamples": 0, "progress": False, "batch_size": 1}
    pairs = sorted([("abcd", "abce"), ("abce", "abcd")])
    for clean, corrupted in pairs:
        try:
            one = patch_experts(model, tokenizer, [clean], [corrupted], RESPONSE, "no", **options)
        except DataError:
            continue
        two = patch_experts(model, tokenizer, [clean, "xyz"], [corrupted, "xyz"], RESPONSE, "no", **options)
        torch.testing.assert_close(one.score, two.score, rtol=1e-12, atol=0)
        return
    raise AssertionError


def test_experts_and_groups_and_scores_of_the_callers() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    options = {"logit_score": lambda logits, batch: logits[:, 2, 7], "progress": False}
    whole = {}
    for names in ((CLEAN, CORRUPTED), (CORRUPTED, CLEAN)):
        try:
            whole[0] = patch_experts(model, tokenizer, *names, **options, resamples=0)
        except DataError:
            continue
        some = patch_experts(
            model, tokenizer, *names, **options, experts=[(0, 1), (2, 3)], groups=["a", "b", "a"], resamples=99
        )
        assert some.provenance["compared"] == "2 groups of 3 pairs of prompts"
        assert int((~some.p.isnan()).sum()) == 2
        assert int((some.score != 0).sum()) <= 2
        ungrouped = patch_experts(model, tokenizer, *names, **options, experts=[(0, 1), (2, 3)], resamples=0)
        for row, expert in ((0, 1), (2, 3)):
            assert ungrouped.score[row, expert] == whole[0].score[row, expert]
    assert whole


def test_patching_leaves_the_model_as_it_was_and_refuses_what_it_cannot_take() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    given = (model, tokenizer, CLEAN, CORRUPTED, RESPONSE, BASELINE)
    for clean, corrupted in ((CLEAN, CORRUPTED), (CORRUPTED, CLEAN)):
        try:
            patch_experts(model, tokenizer, clean, corrupted, RESPONSE, BASELINE, experts=[(0, 0)], progress=False)
        except DataError as error:
            assert "do not favour" in str(error)  # noqa: PT017
    assert torch.equal(model(ids).logits, before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with pytest.raises(UnknownNameError, match="expert 8"):
        patch_experts(*given, experts=[(0, 8)], progress=False)
    with pytest.raises(DataError, match="corrupted_prompts: must be one for each clean prompt"):
        patch_experts(model, tokenizer, CLEAN, CORRUPTED[:2], RESPONSE, "no", progress=False)
    with pytest.raises(DataError, match=r"clean_prompts"):
        patch_experts(model, tokenizer, [], [], RESPONSE, "no", progress=False)
    with pytest.raises(ConfigError, match="response and baseline_response, or logit_score"):
        patch_experts(model, tokenizer, CLEAN, CORRUPTED, RESPONSE, progress=False)
    model = TINY_FAMILIES["llama4"](vocab_size=128)
    with pytest.raises(UnsupportedError, match="no module of its block"):
        patch_experts(model, tokenizer, CLEAN, CORRUPTED, RESPONSE, "no", progress=False)


def test_stopped_run_goes_on_to_what_one_that_nobody_stopped_gives(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    clean, corrupted = CLEAN, CORRUPTED
    try:
        patch_experts(model, tokenizer, clean, corrupted, RESPONSE, BASELINE, experts=[(0, 0)], progress=False)
    except DataError:
        clean, corrupted = corrupted, clean

    def run(folder: Path | None) -> ExpertRanking:
        return patch_experts(
            model, tokenizer, clean, corrupted, RESPONSE, BASELINE, batch_size=2, resamples=0, run_folder=folder,
            progress=False,
        )  # fmt: skip

    check_resumes(run, model, tmp_path, same=lambda one, other: torch.equal(one.score, other.score), points=3)
