"""What else a config changes, and controls that are used as often as the targets."""

import math
import random

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import EvaluationReport, MoTEConfig, apply_mote, evaluate_mote, find_routers, record_routing
from hf_mote.errors import DataError, FileFormatError, UnknownNameError
from hf_mote.files import read_json, write_json
from hf_mote.ftri.controls import random_control
from hf_mote.ftri.responses import generate_responses
from hf_mote.ftri.side_effects import SideEffects, side_effects

TEXTS = ["a short text", "and another one, somewhat longer than that", "third"]
SUPPRESS = [[1, 0], [1, 2], [2, 5]]


@pytest.fixture
def model():
    return tiny_model("deepseek_v3")


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3])
def test_side_effects_are_those_of_the_texts_one_by_one(model, batch_size):
    config = MoTEConfig.for_model(model, suppress=SUPPRESS)
    found = side_effects(model, tiny_tokenizer(), config, TEXTS, batch_size=batch_size, progress=False)
    divergence, losses, changed_losses, tokens = 0.0, 0.0, 0.0, 0
    for text in TEXTS:
        ids = tiny_tokenizer()(text, return_tensors="pt")["input_ids"]
        plain = model(ids, labels=ids)
        with apply_mote(model, config):
            changed = model(ids, labels=ids)
        n = ids.shape[1] - 1
        divergence += float(
            torch.nn.functional.kl_div(
                changed.logits[0, :-1].log_softmax(-1),
                plain.logits[0, :-1].log_softmax(-1),
                log_target=True,
                reduction="sum",
            )
        )
        losses, changed_losses, tokens = (
            losses + n * float(plain.loss),
            changed_losses + n * float(changed.loss),
            tokens + n,
        )
    assert found.num_tokens == tokens
    assert found.kl == pytest.approx(divergence / tokens, rel=1e-3)
    assert found.perplexity_before == pytest.approx(math.exp(losses / tokens), rel=1e-5)
    assert found.perplexity_after == pytest.approx(math.exp(changed_losses / tokens), rel=1e-5)
    assert found.kl > 1e-6


def test_side_effects_of_a_config_that_does_nothing_are_none(model):
    found = side_effects(model, tiny_tokenizer(), MoTEConfig(), TEXTS, progress=False)
    assert found.kl == 0
    assert found.perplexity_before == found.perplexity_after


def test_side_effects_cut_texts_and_refuse_what_cannot_be_measured(model):
    config = MoTEConfig.for_model(model, suppress=SUPPRESS)
    cut = side_effects(model, tiny_tokenizer(), config, TEXTS, max_tokens=4, progress=False)
    assert cut.num_tokens == 3 * len(TEXTS)
    with pytest.raises(DataError, match=r"texts\[1\]"):
        side_effects(model, tiny_tokenizer(), config, ["long enough", "a"], progress=False)
    with pytest.raises(DataError, match="no texts"):
        side_effects(model, tiny_tokenizer(), config, "a text", progress=False)
    assert not any(module._forward_hooks for module in model.modules())


def test_side_effects_numbers_that_cannot_be_are_refused():
    with pytest.raises(DataError):
        SideEffects(kl=-1.0, perplexity_before=2.0, perplexity_after=2.0, num_tokens=3)


def test_random_control_by_usage_takes_experts_that_are_used_about_as_often(model):
    config = MoTEConfig.for_model(model, suppress=[[1, 0], [2, 5]])
    sites = find_routers(model)
    experts = sites[0].num_experts
    # Expert e is used e times; experts 0 and 5 are the targets.
    usage = {site.layer: torch.arange(experts, dtype=torch.float64) for site in sites}
    draws = [random_control(config, sites, random.Random(seed), usage=usage) for seed in range(200)]
    for layer, target in ((1, 0), (2, 5)):
        drawn = {expert for draw in draws for where, expert in draw.suppress if where == layer}
        nearest = sorted((e for e in range(experts) if e != target), key=lambda e: (abs(e - target), e))[:8]
        assert drawn == set(nearest)


def test_random_control_by_usage_never_takes_an_expert_twice_or_a_target(model):
    config = MoTEConfig.for_model(model, suppress=[[1, e] for e in range(3)])
    sites = find_routers(model)
    usage = {site.layer: torch.rand(site.num_experts) for site in sites}
    for seed in range(50):
        control = random_control(config, sites, random.Random(seed), usage=usage)
        assert len({tuple(pair) for pair in control.suppress}) == 3
        assert not {expert for _, expert in control.suppress} & {0, 1, 2}


def test_evaluate_mote_keeps_unrelated_answers_side_effects_and_control_kind(model, tmp_path):
    config = MoTEConfig.for_model(model, suppress=SUPPRESS)

    def judge(response):
        return len(set(response)) % 2 == 0

    arguments = (model, tiny_tokenizer(), config, ["a", "bb", "ccc"], judge)
    report = evaluate_mote(
        *arguments,
        target=True,
        unrelated=["x", "yy"],
        texts=TEXTS,
        num_controls=3,
        control_kind="usage",
        max_new_tokens=4,
        progress=False,
    )
    expected = side_effects(model, tiny_tokenizer(), config, TEXTS, batch_size=16, progress=False)
    assert report.side_effects == expected
    assert report.unrelated == ["x", "yy"]
    same = [a == b for a, b in zip(report.unrelated_before, report.unrelated_after, strict=True)]
    assert report.unrelated_unchanged.successes == sum(same)
    report.save_pretrained(tmp_path)
    assert EvaluationReport.from_pretrained(tmp_path) == report
    data = read_json(tmp_path / "evaluation_report.json")
    data["unrelated_after"].append("one more")
    write_json(tmp_path / "evaluation_report.json", data)
    with pytest.raises(FileFormatError, match="differ in number"):
        EvaluationReport.from_pretrained(tmp_path)
    with pytest.raises(UnknownNameError, match="control_kind"):
        evaluate_mote(*arguments, target=True, control_kind="rank", progress=False)


def test_evaluate_mote_controls_by_usage_follow_the_routing_of_the_untouched_model(model):
    config = MoTEConfig.for_model(model, suppress=[[1, 0]])
    prompts = ["a", "bb", "ccc"]

    def judge(response):
        return len(set(response)) % 2 == 0

    report = evaluate_mote(
        model,
        tiny_tokenizer(),
        config,
        prompts,
        judge,
        target=True,
        num_controls=2,
        control_kind="usage",
        max_new_tokens=3,
        progress=False,
    )
    with record_routing(model) as record:
        list(generate_responses(model, tiny_tokenizer(), prompts, max_new_tokens=3))
    usage = dict(zip(record.layers, record.total().counts, strict=True))
    draw = random.Random(0)
    for rate in report.controls:
        control = random_control(config, find_routers(model), draw, usage=usage)
        with apply_mote(model, control):
            answers = generate_responses(model, tiny_tokenizer(), prompts, max_new_tokens=3)
            hits = sum(judge(answer) for _, batch in answers for answer in batch)
        assert rate == hits / 3
