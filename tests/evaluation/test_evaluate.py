"""`evaluate_mote`: rates are counted, controls are matched, the verdict follows from the numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from evaluation_reports import report_of, with_parts
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import (
    ChoiceJudge,
    EvaluationReport,
    MoTEConfig,
    RefusalJudge,
    RegexJudge,
    apply_mote,
    evaluate_mote,
    find_routers,
)
from hf_mote.errors import (
    ConfigError,
    DataError,
    FileFormatError,
    HFMoTEError,
    ModelMismatchError,
    UnknownNameError,
)
from hf_mote.evaluation.controls import random_controls
from hf_mote.evaluation.evaluate import evaluate_settings
from hf_mote.evaluation.rates import RateMeasurement
from hf_mote.evaluation.side_effects import SideEffects
from hf_mote.files import read_json, write_json
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.responses import generate_responses
from hf_mote.reports.evaluation import Evaluation, evaluation_page
from hf_mote.statistics.rates import Rate, wilson

PROMPTS = ["a", "what is b?", "cc", "tell me of d"]
OPTIONS = {"max_new_tokens": 4, "progress": False}


def has_vowel(response: str) -> bool:
    return any(letter in "aeiouAEIOU" for letter in response)


def respond(model: object, prompts: list[str]) -> list[str]:
    found = {}
    for positions, answers in generate_responses(model, Chat(tiny_tokenizer()), prompts, Decoding(max_new_tokens=4)):  # type: ignore[arg-type]
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


def refusals(before: int, after: int, controls: list[float]) -> EvaluationReport:
    return report_of("refusal", Rate.of(before, 50), Rate.of(after, 50), controls)


def test_unrelated_prompts_are_answered_once_by_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    native = RateMeasurement.respond

    def counted(self: RateMeasurement, prompts: Any, config: Any, **options: Any) -> Any:
        asked.append(prompts)
        return native(self, prompts, config, **options)

    monkeypatch.setattr(RateMeasurement, "respond", counted)
    model, config = tiny_model("mixtral"), MoTEConfig(suppress=[[0, 1]])
    report = evaluate_mote(
        model, tiny_tokenizer(), config, PROMPTS, has_vowel, target=True, unrelated=["x", "yy"], num_controls=2,
        **OPTIONS,
    )  # fmt: skip
    assert asked.count(["x", "yy"]) == 1 + 1 + len(report.controls)
    assert report.unrelated_before == respond(model, ["x", "yy"])
    with apply_mote(model, config):
        assert report.unrelated_after == respond(model, ["x", "yy"])


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
    assert refusals(before, after, controls).beats_controls() == beats
    assert refusals(before, after, controls).verdict.startswith("The config beats") == beats


def test_report_survives_saving_and_refuses_an_edited_file(tmp_path: Path) -> None:
    report = refusals(50, 2, [1.0, 0.98])
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


class Answers:
    """A judge that tells its labels, and gives one of them."""

    labels = ("A", "B", "unclear")
    unclear = "unclear"

    def __init__(self, label: str = "B") -> None:
        self.label = label
        self.asked = 0

    def __call__(self, response: str) -> str:
        self.asked += 1
        return self.label


def test_evaluate_mote_label_that_no_response_gets_has_rate_zero_if_the_judge_can_give_it() -> None:
    model, config = tiny_model("mixtral"), MoTEConfig(suppress=[[0, 1]])
    report = evaluate_mote(model, tiny_tokenizer(), config, PROMPTS, Answers(), target="A", num_controls=2, **OPTIONS)
    assert (report.before.rate, report.after.rate, report.controls) == (0.0, 0.0, [0.0, 0.0])
    assert report.labels_before == report.labels_after == ["B"] * 4
    judge = ChoiceJudge("AB")
    report = evaluate_mote(model, tiny_tokenizer(), config, PROMPTS, judge, target="A", num_controls=0, **OPTIONS)
    assert report.target == "A"
    for judge in (Answers(), ChoiceJudge("AB"), RefusalJudge(["en"]), RegexJudge({"A": "a"})):
        with pytest.raises(UnknownNameError, match=r"evaluate_mote\.target"):
            evaluate_mote(model, tiny_tokenizer(), config, PROMPTS, judge, target="D", **OPTIONS)


def test_evaluate_mote_responses_that_the_judge_could_not_label_are_counted(tmp_path: Path) -> None:
    report = evaluate_mote(
        tiny_model("mixtral"),
        tiny_tokenizer(),
        MoTEConfig(suppress=[[0, 1]]),
        PROMPTS,
        Answers("unclear"),
        target="A",
        num_controls=3,
        strengths=[0.5, 1.0],
        **OPTIONS,
    )
    assert report.unclear == 4 * (2 + 3 + 1)  # the dose 1.0 is the config itself, which does not run again
    assert "24 responses of all runs could not be judged." in report.verdict
    report.save_pretrained(tmp_path)
    assert EvaluationReport.from_pretrained(tmp_path) == report
    page = str(evaluation_page(Evaluation("m", report), provenance={}, files={}))
    assert "24 responses of all runs could not be judged, and count as not “A”" in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": ["long enough", "a"]}, r"texts\[1\]: too short"),
        ({"texts": [3]}, r"texts\[0\]: not a text"),
        ({"unrelated": [""]}, r"unrelated\[0\]"),
        ({"conversations": ["a"]}, r"conversations\[0\]"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": "0.95"}, "confidence"),
        ({"strengths": 0.5}, "strengths"),
        ({"strengths": [0.5, 2.0]}, "strength"),
        ({"strengths": ["0.5"]}, "strength"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"control_kind": "rank"}, "control_kind"),
        ({"num_controls": 1.5}, "num_controls"),
        ({"config": MoTEConfig(suppress=[[1, e] for e in range(8)])}, "layer 1"),
        ({"generate_kwargs": {"num_beams": 3}}, "num_beams"),
        ({"target": "C"}, "target"),
    ],
)
def test_evaluate_mote_what_is_wrong_is_said_before_anything_is_generated(
    options: dict[str, Any], message: str
) -> None:
    judge, model = Answers(), tiny_model("mixtral")
    given: dict[str, Any] = {"config": MoTEConfig(suppress=[[0, 1]]), "target": "A", **OPTIONS, **options}
    config = given.pop("config")

    def forward(*_: object) -> None:
        raise AssertionError("the model ran")

    with model.register_forward_pre_hook(forward), pytest.raises(HFMoTEError, match=message):
        evaluate_mote(model, tiny_tokenizer(), config, PROMPTS, judge, **given)
    assert judge.asked == 0


def test_evaluate_settings_share_the_untouched_run_and_the_controls() -> None:
    model = tiny_model("deepseek_v3")
    order = [[1, 0], [2, 5], [1, 2]]
    configs = [MoTEConfig(suppress=order[:n]) for n in (1, 3)]
    chat, decoding = Chat(tiny_tokenizer()), Decoding(max_new_tokens=4, seed=3)
    reports = evaluate_settings(
        model, chat, configs, PROMPTS, has_vowel, decoding, target=True, num_controls=5, progress=False
    )
    drawn = random_controls(configs, find_routers(model), 5, 3)
    for place, report in enumerate(reports):
        assert report.responses_before == respond(model, PROMPTS)
        assert report.config == configs[place].to_dict()
        for rate, control in zip(report.controls, drawn, strict=True):
            with apply_mote(model, control[place]):
                assert rate == sum(map(has_vowel, respond(model, PROMPTS))) / len(PROMPTS)
        with apply_mote(model, configs[place]):
            assert report.responses_after == respond(model, PROMPTS)
    with pytest.raises(ConfigError, match="no configs"):
        evaluate_settings(model, chat, [], PROMPTS, has_vowel, decoding, target=True)
    unfit = [configs[0], MoTEConfig(suppress=[[7, 0]])]
    with pytest.raises(ModelMismatchError, match="layer 7"):
        evaluate_settings(model, chat, unfit, PROMPTS, Answers(), decoding, target="A", progress=False)


def test_report_verdict_of_too_few_controls_says_that_they_cannot_do() -> None:
    assert refusals(50, 2, [1.0] * 18).verdict.endswith("(p = 0.0526); with 18 controls p cannot be below 0.0526.")
    assert refusals(50, 2, [1.0]).verdict.endswith("; with 1 control p cannot be below 0.5.")
    assert "cannot" not in refusals(50, 2, [1.0] * 19).verdict


EARLIER_LACK = ("disjoint_chances", "coherence", "selectivity", "not_worse", "preregistration")


def test_report_of_an_earlier_version_can_be_read(tmp_path: Path) -> None:
    config = MoTEConfig(suppress=[[0, 1]], scope="generation")
    report = with_parts(
        refusals(50, 2, [1.0]), config=config.to_dict(), side_effects=SideEffects(0.0, 2.0, 2.0, 9, "generation")
    )
    report.save_pretrained(tmp_path)
    file = tmp_path / "evaluation_report.json"
    data = read_json(file)
    of_version_0_1 = dict(data)
    for later in (("controls_exhausted", "notes"), tuple(EARLIER_LACK)):
        for name in later:
            del of_version_0_1[name]
        write_json(file, of_version_0_1)
        assert EvaluationReport.from_pretrained(tmp_path) == report
    for wrong in ({"unclear": -1}, {"labels_before": ["a"]}, {"side_effects": {**data["side_effects"], "scope": "x"}}):
        write_json(file, {**data, **wrong})
        with pytest.raises(FileFormatError):
            EvaluationReport.from_pretrained(tmp_path)


def test_report_from_before_the_mean_surprise_can_be_read(tmp_path: Path) -> None:
    known = json.loads((Path(__file__).parent / "data" / "flat_report.json").read_text(encoding="utf-8"))
    del known["coherence"]["surprise"]  # as in the reports that organisms were first shipped with
    write_json(tmp_path / EvaluationReport.file_name, known)
    assert EvaluationReport.from_pretrained(tmp_path).coherence.surprise is None
    del known["coherence"]["unsure_low"]
    write_json(tmp_path / EvaluationReport.file_name, known)
    with pytest.raises(FileFormatError, match="coherence.unsure_low: is missing"):
        EvaluationReport.from_pretrained(tmp_path)


def test_report_that_an_earlier_version_wrote_has_every_part_by_name(tmp_path: Path) -> None:
    """`data/flat_report.json` was written when a report had these names as fields of its own."""
    written = (Path(__file__).parent / "data" / "flat_report.json").read_text(encoding="utf-8")
    (tmp_path / EvaluationReport.file_name).write_text(written, encoding="utf-8")
    report = EvaluationReport.from_pretrained(tmp_path)
    known = json.loads(written)
    known["not_worse"] = [{**test, "share": False} for test in known["not_worse"]]  # added by a later version
    for name, value in known.items():
        got = getattr(report, name)
        assert json.loads(json.dumps(got() if callable(got) else got, default=dataclasses.asdict)) == value, name
    assert all(report.labels_before + report.unrelated + report.dose + report.conversations + report.not_worse)
    assert report.behaviour.answers.after == report.responses_after != report.responses_before
    assert report.elsewhere.answers.after == report.unrelated_after != report.unrelated_before
    assert report.control_runs.rates == report.controls
    report.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / EvaluationReport.file_name).read_text(encoding="utf-8"))
    assert again == {**known, "notes": [], "controls_exhausted": False}
    shared = report._public(with_texts=False)
    assert shared.prompts == shared.responses_after == shared.unrelated == []
    assert (shared.labels_after, shared.controls, shared.verdict) == (
        report.labels_after, report.controls, report.verdict,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["layer", "usage"])
@pytest.mark.parametrize(("asked", "drawn", "exhausted"), [(0, 0, False), (6, 6, False), (7, 7, True), (20, 7, True)])
def test_report_says_whether_more_controls_exist(
    asked: int, drawn: int, exhausted: bool, kind: Any, tmp_path: Path
) -> None:
    model = tiny_model("deepseek_v3")
    (router, *_) = find_routers(model)
    assert router.num_experts == 8
    config = MoTEConfig(suppress=[[router.layer, 0]])
    report = evaluate_mote(
        model, tiny_tokenizer(), config, PROMPTS, has_vowel, target=True, num_controls=asked, control_kind=kind,
        **OPTIONS,
    )  # fmt: skip
    assert (len(report.controls), report.controls_exhausted) == (drawn, exhausted)
    report.save_pretrained(tmp_path)
    assert EvaluationReport.from_pretrained(tmp_path) == report


def test_flips_count_labels_that_come_and_go_and_controls_keep_theirs(tmp_path: Path) -> None:
    report = with_parts(
        refusals(2, 1, [0.5, 0.5]),
        before=Rate.of(2, 4),
        after=Rate.of(1, 4),
        prompts=list("abcd"),
        responses_before=list("efgh"),
        responses_after=list("ijkl"),
        labels_before=["refusal", "refusal", "x", "y"],
        labels_after=["x", "y", "refusal", "x"],
        control_labels=[["refusal", "refusal", "x", "y"], ["refusal", "x", "refusal", "x"]],
        controls_sharing=[False, True],
        sharing=1,
    )
    assert report.flips == (2, 1, 1)
    assert report.control_flips == [(0, 0, 0), (1, 1, 1)]
    report.save_pretrained(tmp_path)
    assert EvaluationReport.from_pretrained(tmp_path) == report
    for wrong in ({"sharing": 2}, {"controls_sharing": [1, 0]}, {"control_labels": [["a"]]}, {"controls": [0.5]}):
        write_json(tmp_path / EvaluationReport.file_name, {**report.to_dict(), **wrong})
        with pytest.raises(FileFormatError):
            EvaluationReport.from_pretrained(tmp_path)


def test_p_of_disjoint_controls_leaves_out_those_that_do_it_by_the_configs_own_experts() -> None:
    report = with_parts(refusals(50, 0, [0.0] * 9 + [1.0] * 11), controls_sharing=[True] * 9 + [False] * 11, sharing=9)
    assert report.p_value == pytest.approx(10 / 21)
    assert report.disjoint_p == pytest.approx(1 / 12)
    assert "against the other 11 alone p = 0.0833" in report.verdict
    assert with_parts(report, controls_sharing=[True] * 20, sharing=20).disjoint_p is None
    assert refusals(50, 0, [1.0]).disjoint_p is None


def test_evaluate_mote_keeps_the_labels_of_every_control() -> None:
    report = evaluate_mote(
        tiny_model("mixtral"), tiny_tokenizer(), MoTEConfig(suppress=[[0, 1]]), PROMPTS, has_vowel, target=True,
        num_controls=3, **OPTIONS,
    )  # fmt: skip
    shares = [labels.count("True") / len(PROMPTS) for labels in report.control_labels]
    assert shares == report.controls
    assert len(report.controls_sharing) == 3
    assert sum(report.controls_sharing) == report.sharing


def test_evaluate_mote_by_groups_widens_intervals_and_refuses_a_single_group() -> None:
    model, config = tiny_model("mixtral"), MoTEConfig(suppress=[[0, 1]])
    asked = {"target": True, "num_controls": 0, **OPTIONS}
    plain = evaluate_mote(model, tiny_tokenizer(), config, PROMPTS, has_vowel, **asked)
    grouped = evaluate_mote(model, tiny_tokenizer(), config, PROMPTS, has_vowel, groups=[0, 0, 1, 1], **asked)
    assert grouped.before.rate == plain.before.rate
    assert grouped.before.high - grouped.before.low > plain.before.high - plain.before.low
    with pytest.raises(DataError, match=r"groups.*one group"):
        evaluate_mote(model, tiny_tokenizer(), config, PROMPTS, has_vowel, groups=[0] * 4, **asked)


def test_evaluate_mote_counts_the_controls_that_hold_its_own_experts() -> None:
    model = tiny_model("deepseek_v3")
    num = find_routers(model)[0].num_experts
    config = MoTEConfig.for_model(model, suppress=[[1, 0], [1, 1], [1, 2]])
    assert 3 < num // 3 + 3 <= 20  # too few experts for 20 controls of 3 that share none
    report = evaluate_mote(
        model, tiny_tokenizer(), config, PROMPTS, has_vowel, target=True, num_controls=20, **OPTIONS
    )
    assert 0 < report.sharing <= 20
    assert f"{report.sharing} of them hold some of its own experts" in report.verdict
    few = evaluate_mote(model, tiny_tokenizer(), config, PROMPTS, has_vowel, target=True, num_controls=1, **OPTIONS)
    assert few.sharing == 0
    assert "own experts" not in few.verdict
