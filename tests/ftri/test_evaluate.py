"""`evaluate_mote`: rates are counted, controls are matched, the verdict follows from the numbers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import EvaluationReport, MoTEConfig, apply_mote, evaluate_mote, find_routers
from hf_mote.errors import ConfigError, DataError, FileFormatError, ModelMismatchError, UnknownNameError
from hf_mote.ftri.contrast import wilson
from hf_mote.ftri.controls import random_control
from hf_mote.ftri.report import Rate
from hf_mote.ftri.responses import generate_responses

PROMPTS = ["a", "what is b?", "cc", "tell me of d"]
OPTIONS = {"max_new_tokens": 4, "progress": False}


def has_vowel(response: str) -> bool:
    return any(letter in "aeiouAEIOU" for letter in response)


def respond(model: object, prompts: list[str]) -> list[str]:
    found = {}
    for positions, answers in generate_responses(model, tiny_tokenizer(), prompts, max_new_tokens=4):  # type: ignore[arg-type]
        found.update(zip(positions, answers, strict=True))
    return [found[index] for index in range(len(prompts))]


def test_evaluate_mote_rates_are_those_of_the_responses() -> None:
    model = tiny_model("deepseek_v3")
    config = MoTEConfig.for_model(model, suppress=[[1, 0], [1, 2], [2, 5]])
    report = evaluate_mote(
        model,
        tiny_tokenizer(),
        config,
        PROMPTS,
        has_vowel,
        target=True,
        unrelated=["x", "yy"],
        num_controls=4,
        strengths=[0.0, 1.0],
        **OPTIONS,
    )
    plain, plain_others = respond(model, PROMPTS), respond(model, ["x", "yy"])
    with apply_mote(model, config):
        patched, patched_others = respond(model, PROMPTS), respond(model, ["x", "yy"])
    assert report.responses_before == plain
    assert report.responses_after == patched
    assert report.before.successes == sum(map(has_vowel, plain))
    assert report.after.successes == sum(map(has_vowel, patched))
    assert (report.after.low, report.after.high) == tuple(wilson(report.after.successes, len(PROMPTS)))
    assert report.unrelated_unchanged is not None
    assert report.unrelated_unchanged.successes == sum(
        a == b for a, b in zip(plain_others, patched_others, strict=True)
    )
    assert len(report.controls) == 4
    assert report.dose == [(0.0, report.before.rate), (1.0, report.after.rate)]
    assert not any(module._forward_hooks for module in model.modules())


def test_random_control_matches_layers_and_avoids_the_targets() -> None:
    sites = find_routers(tiny_model("deepseek_v3"))
    config = MoTEConfig(suppress=[[1, 0], [1, 2], [2, 5]], bias=[[2, 1, 0.5]], suppress_mode="zero", strength=0.5)
    draws = [random_control(config, sites, random.Random(seed)) for seed in range(20)]
    for control in draws:
        assert [layer for layer, _ in control.suppress] == [1, 1, 2]
        assert not {tuple(p) for p in control.suppress} & {(1, 0), (1, 2), (2, 5), (2, 1)}
        assert control.bias[0][0] == 2
        assert control.bias[0][2] == 0.5
        assert (control.suppress_mode, control.strength) == ("zero", 0.5)
    assert len({str(control.suppress) for control in draws}) > 5
    with pytest.raises(ConfigError, match="layer 1"):
        random_control(MoTEConfig(suppress=[[1, e] for e in range(5)]), sites, random.Random(0))


def report_of(before: int, after: int, controls: list[float]) -> EvaluationReport:
    return EvaluationReport(
        target="refusal", before=Rate.of(before, 50), after=Rate.of(after, 50), controls=controls,
        unrelated_unchanged=None, config={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "controls", "beats"),
    [
        (50, 2, [1.0] * 20, True),
        (50, 2, [1.0] * 19 + [0.0], False),
        (50, 49, [1.0] * 20, False),
        (2, 45, [0.04] * 20, True),
        (50, 2, [1.0] * 5, False),
    ],
)
def test_report_verdict_beats_only_with_a_gap_that_no_control_reaches(
    before: int, after: int, controls: list[float], beats: bool
) -> None:
    assert report_of(before, after, controls).verdict.startswith(
        "The config beats" if beats else "The config does not beat"
    )


def test_report_survives_saving_and_refuses_an_edited_file(tmp_path: Path) -> None:
    report = report_of(50, 2, [1.0, 0.98])
    report.save_pretrained(tmp_path)
    assert EvaluationReport.from_pretrained(tmp_path) == report
    file = tmp_path / "evaluation_report.json"
    written = file.read_text()
    for old, new in [
        ('"successes"', '"succeses"'),
        ('"rate": 1.0', '"rate": 7.0'),
        ('"seed"', '"sed"'),
        ('"prompts": []', '"prompts": ["one"]'),
        ("0.98", "9.8"),
    ]:
        assert old in written
        file.write_text(written.replace(old, new))
        with pytest.raises(FileFormatError, match="evaluation_report"):
            EvaluationReport.from_pretrained(tmp_path)


def test_evaluate_mote_bad_input_is_refused_and_leaves_the_model() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    config = MoTEConfig(suppress=[[0, 1]])
    with pytest.raises(DataError, match=r"evaluate_mote\.prompts"):
        evaluate_mote(model, tokenizer, config, [], has_vowel, target=True, **OPTIONS)
    with pytest.raises(ConfigError, match="target"):
        evaluate_mote(model, tokenizer, config, PROMPTS, has_vowel, **OPTIONS)
    with pytest.raises(ConfigError, match="nothing to measure"):
        evaluate_mote(model, tokenizer, MoTEConfig(), PROMPTS, has_vowel, target=True, **OPTIONS)
    with pytest.raises(ModelMismatchError, match="layer 7"):
        evaluate_mote(model, tokenizer, MoTEConfig(suppress=[[7, 1]]), PROMPTS, has_vowel, target=True, **OPTIONS)
    assert not any(module._forward_hooks for module in model.modules())


def test_evaluate_mote_mistyped_target_is_refused_with_the_labels_seen() -> None:
    with pytest.raises(UnknownNameError, match="False"):
        evaluate_mote(
            tiny_model("mixtral"),
            tiny_tokenizer(),
            MoTEConfig(suppress=[[0, 1]]),
            PROMPTS,
            has_vowel,
            target="Treu",
            num_controls=0,
            **OPTIONS,
        )
    with pytest.raises(ConfigError, match="num_controls"):
        evaluate_mote(
            tiny_model("mixtral"),
            tiny_tokenizer(),
            MoTEConfig(suppress=[[0, 1]]),
            PROMPTS,
            has_vowel,
            target=True,
            num_controls=-2,
            **OPTIONS,
        )
