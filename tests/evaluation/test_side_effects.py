"""What else a config changes, and controls that are used as often as the targets."""

import dataclasses
import math

import pytest
import torch
from evaluation_reports import report_of
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import EvaluationReport, MoTEConfig, apply_mote, evaluate_mote, find_routers, record_routing
from hf_mote.errors import ConfigError, DataError, FileFormatError, UnknownNameError
from hf_mote.evaluation.controls import random_controls
from hf_mote.evaluation.side_effects import SideEffects, perplexity_of, side_effects
from hf_mote.files import read_json, write_json
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.responses import generate_responses
from hf_mote.reports.evaluation import Evaluation, evaluation_page
from hf_mote.statistics.rates import Rate

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
    with pytest.raises(DataError, match="must hold texts"):
        side_effects(model, tiny_tokenizer(), config, "a text", progress=False)
    assert not any(module._forward_hooks for module in model.modules())


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
        list(generate_responses(model, Chat(tiny_tokenizer()), prompts, Decoding(max_new_tokens=3)))
    usage = dict(zip(record.layers, record.total().counts, strict=True))
    drawn = random_controls([config], find_routers(model), 2, 0, usage=usage)
    for rate, (control,) in zip(report.controls, drawn, strict=True):
        with apply_mote(model, control):
            answers = generate_responses(model, Chat(tiny_tokenizer()), prompts, Decoding(max_new_tokens=3))
            hits = sum(judge(answer) for _, batch in answers for answer in batch)
        assert rate == hits / 3


def _loud(model, factor):
    """A model whose logits are so many times as large, given back as it was by the hook's handle."""
    return model.lm_head.register_forward_hook(lambda module, args, output: output * factor)


def test_side_effects_perplexity_beyond_floats_is_none_and_saved_so(model, tmp_path):
    config = MoTEConfig.for_model(model, suppress=SUPPRESS)
    with _loud(model, 1e5):
        found = side_effects(model, tiny_tokenizer(), config, TEXTS, progress=False)
    assert found.perplexity_before is None
    assert found.perplexity_after is None
    assert 0 < found.kl < math.inf
    assert "perplexity above 1.8e308 to above 1.8e308" in str(found)
    report = report_of(
        "a",
        Rate.of(1, 2),
        Rate.of(0, 2),
        [0.5],
        config=config.to_dict(),
        side_effects=dataclasses.replace(found, perplexity_before=4.0),
    )
    report.save_pretrained(tmp_path)
    assert read_json(tmp_path / "evaluation_report.json")["side_effects"]["perplexity_after"] is None
    assert EvaluationReport.from_pretrained(tmp_path) == report
    page = str(evaluation_page(Evaluation("a model", report), provenance={}, files={}))
    assert "4 to above 1.8e308" in page


def test_side_effects_perplexity_just_within_floats_is_a_number():
    assert perplexity_of(709.78) == math.exp(709.78)
    assert perplexity_of(709.79) is None
    assert perplexity_of(math.inf) is None


def test_side_effects_tokens_that_are_impossible_with_and_without_the_config_add_nothing(model):
    config = MoTEConfig.for_model(model, suppress=SUPPRESS)
    plain = side_effects(model, tiny_tokenizer(), config, TEXTS, progress=False)
    used = {token for text in TEXTS for token in tiny_tokenizer()(text)["input_ids"]}
    unused = next(token for token in range(model.config.vocab_size) if token not in used)

    def without_one(module, args, output):
        return output.index_fill(-1, torch.tensor([unused]), -math.inf)

    with model.lm_head.register_forward_hook(without_one):
        found = side_effects(model, tiny_tokenizer(), config, TEXTS, progress=False)
    assert found.perplexity_before < plain.perplexity_before
    assert 0 < found.kl < 2 * plain.kl


def test_side_effects_predictions_that_are_no_numbers_are_refused(model):
    config = MoTEConfig.for_model(model, suppress=SUPPRESS)
    with _loud(model, math.nan), pytest.raises(DataError, match="cannot be compared .got nan nats"):
        side_effects(model, tiny_tokenizer(), config, TEXTS, progress=False)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("max_tokens", [-1, 0, 1, 2.0, True, None])
def test_side_effects_max_tokens_out_of_range_is_refused(model, max_tokens):
    with pytest.raises(ConfigError, match="max_tokens"):
        side_effects(model, tiny_tokenizer(), MoTEConfig(), TEXTS, max_tokens=max_tokens)
    with pytest.raises(DataError, match=r"texts\[1\]: not a text"):
        side_effects(model, tiny_tokenizer(), MoTEConfig(), ["a text", 3])


@pytest.mark.parametrize(
    "numbers",
    [
        (-1.0, 2.0, 2.0, 3),
        (math.inf, 2.0, 2.0, 3),
        (0.0, 0.5, 2.0, 3),
        (0.0, 2.0, math.inf, 3),
        (0.0, math.nan, 2.0, 3),
        (0.0, "2", 2.0, 3),
        (0.0, 2.0, 2.0, 0),
        (0.0, 2.0, 2.0, None),
    ],
)
def test_side_effects_that_cannot_be_are_refused(numbers):
    with pytest.raises(DataError, match="must hold finite numbers"):
        SideEffects(*numbers)


@pytest.mark.parametrize("scope", ["generation", "thinking", "answer"])
def test_side_effects_of_a_config_for_generated_tokens_are_measured_on_all(model, scope):
    marks = {"thinking_tokens": [1, 2]} if scope != "generation" else {}
    config = MoTEConfig.for_model(model, suppress=SUPPRESS, scope=scope, **marks)
    found = side_effects(model, tiny_tokenizer(), config, TEXTS, progress=False)
    everywhere = MoTEConfig.for_model(model, suppress=SUPPRESS)
    assert found == side_effects(model, tiny_tokenizer(), everywhere, TEXTS, progress=False)
    assert found.scope == "all"
    assert found.kl > 0
    report = report_of("a", Rate.of(1, 2), Rate.of(0, 2), [0.5], config=config.to_dict(), side_effects=found)
    page = str(evaluation_page(Evaluation("a model", report), provenance={}, files={}))
    assert f"own, {scope}, would do nothing to it" in page


@pytest.mark.parametrize("positions", [[0, 2], [0, -1]])
def test_side_effects_at_positions_are_measured_there_unless_they_are_counted_from_the_prompts_end(model, positions):
    config = MoTEConfig.for_model(model, suppress=SUPPRESS, positions=positions)
    found = side_effects(model, tiny_tokenizer(), config, TEXTS, progress=False)
    everywhere = side_effects(
        model, tiny_tokenizer(), MoTEConfig.for_model(model, suppress=SUPPRESS), TEXTS, progress=False
    )
    assert found.kl > 0
    assert (found == everywhere) == (-1 in positions)
    report = report_of("a", Rate.of(1, 2), Rate.of(0, 2), [0.5], config=config.to_dict(), side_effects=found)
    page = str(evaluation_page(Evaluation("a model", report), provenance={}, files={}))
    assert ("all tokens, as no prompt ends in plain text" if -1 in positions else "0, 2") in page
    assert "positions of the config on these texts" in page


def test_side_effects_of_a_config_for_the_prompt_are_measured_on_it(model):
    config = MoTEConfig.for_model(model, suppress=SUPPRESS, scope="prompt")
    found = side_effects(model, tiny_tokenizer(), config, TEXTS, progress=False)
    assert found.scope == "prompt"
    assert found.kl > 0
    assert "scope prompt" in str(found)
