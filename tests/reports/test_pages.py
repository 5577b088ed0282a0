"""The four pages: what they conclude from given numbers, and that they are whatever a page must be."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from evaluation_reports import report_of
from html_pages import Element, check_page

from hf_mote import EvaluationReport, ExpertRanking, FTRIResult, LatentExpertMap, MoTEConfig
from hf_mote.evaluation.side_effects import SideEffects
from hf_mote.evaluation.sweep import Setting, Sweep
from hf_mote.reports.attribution import Attribution, attribution_page, attribution_verdict
from hf_mote.reports.evaluation import Evaluation, evaluation_page
from hf_mote.reports.explorer import expert_panel
from hf_mote.reports.imaging import MOST_CLASSES, Imaging, imaging_page, imaging_verdict
from hf_mote.reports.markup import join
from hf_mote.reports.page import Section, make_page
from hf_mote.reports.rankings import expert_table, ranking_verdict
from hf_mote.reports.sweep import sweep_page
from hf_mote.reports.tokens import RoutedText
from hf_mote.statistics.rates import Rate
from hf_mote.statistics.stability import Stability

ATTACK = "</p></style><script>document.title = 'taken'</script><img src=x onerror=alert(1)>\x1b[31m"
HOW = {"model": ATTACK, "command": f"hf-mote {ATTACK}"}
FILES = {"report.json": ATTACK}


def ranking(q: list[float] | None = None, p: list[float] | None = None, **fields: Any) -> ExpertRanking:
    def grid(values: list[float] | None) -> torch.Tensor | None:
        return None if values is None else torch.tensor([values], dtype=torch.float64)

    score = grid([3.0, 1.0, -2.0])
    assert score is not None
    known = {"q": grid(q), "p": grid(p if p is not None else q), **fields}
    return ExpertRanking(score=score, layers=(4,), method="by hand", target=ATTACK, **known)


def report(before: int, after: int, controls: list[float], n: int = 20, **fields: Any) -> EvaluationReport:
    config = MoTEConfig(suppress=[[4, 1], [4, 0]]).to_dict()
    texts = [ATTACK] * n
    return report_of(
        target=ATTACK,
        before=Rate.of(before, n),
        after=Rate.of(after, n),
        controls=controls,
        config=config,
        prompts=texts,
        responses_before=texts,
        responses_after=["other"] * n,
        labels_before=["yes"] * n,
        labels_after=["no"] * n,
        **fields,
    )


def imaging(classes: list[str], target: str = ATTACK, **fields: Any) -> Imaging:
    n = len(classes)
    values = torch.arange(n * 6.0).view(n, 2, 3)
    result = FTRIResult(
        prompts=[ATTACK] * n,
        responses=[ATTACK] * n,
        classes=classes,
        counts=values,
        weights=values / 2,
        num_tokens=torch.full((n,), 5.0),
        layers=(1, 2),
        scope="prompt",
        fingerprint=None,
    )
    rankings = {}
    if target in classes and len(set(classes)) > 1:
        rankings = {name: result.rank(target, score=name, resamples=19) for name in ("risk_difference", "npmi")}
    texts = [RoutedText(target, [ATTACK, "b"], 1, [[0.5, 0.0], [0.0, 0.25]])]
    traced = next(iter(rankings.values())).top(2) if rankings else []
    known: dict[str, Any] = {"top": 2, "stability": None, "texts": texts, "traced": traced, **fields}
    return Imaging(model=ATTACK, result=result, target=target, rankings=rankings, **known)


def tables(page: Element, section: str) -> list[list[list[str]]]:
    rows = [table.all("tr") for table in page.one(section).all("table")]
    return [[[cell.text for cell in row.children] for row in table] for table in rows]


def test_make_page_puts_the_verdict_before_everything() -> None:
    page = check_page(
        make_page(
            "T",
            subject="s",
            verdict="None.",
            found=False,
            sections=[Section("a", "A", join([expert_table(ranking(), ranking().rows(3), "All"), expert_panel()]))],
        )
    )
    assert page.one("verdict").text == "None."
    assert [link.text for link in page.all("nav")[0].all("a")] == ["A"]
    policy = next(m for m in page.all("meta") if m.attributes.get("http-equiv") == "Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'")


def test_ranking_verdict_counts_significant_experts_above_zero() -> None:
    found = ranking_verdict(ranking([0.01, 0.2, 0.01]), relation="are used more")
    assert found.significant == 1
    assert found.text == "1 of 3 experts are used more (q ≤ 0.05). First comes layer 4, expert 0: +3.00."


def test_ranking_verdict_nothing_significant_says_nothing_here() -> None:
    found = ranking_verdict(ranking([0.4, 0.5, 0.01], p=[0.3, 0.4, 0.004], least_p=0.001), relation="are used more")
    assert found.significant == 0
    assert found.text.startswith("Nothing here: of 3 experts none are used more with q ≤ 0.05.")


def test_ranking_verdict_of_too_few_prompts_is_that_nothing_could_be_found() -> None:
    few = ranking([0.1, 0.5, 0.5], least_p=0.1, provenance={"compared": "3 against 3 prompts", "permutations": 20})
    found = ranking_verdict(few, relation="x")
    assert found.significant == 0
    assert found.text.startswith("Nothing could be found with 3 against 3 prompts: p cannot be below 0.1,")


def test_ranking_verdict_without_p_values_claims_nothing() -> None:
    found = ranking_verdict(ranking(), relation="are used more")
    assert found.significant is None
    assert "cannot separate chance from effect" in found.text


@pytest.mark.parametrize(
    ("provenance", "unit"),
    [
        ({"unit": "nats"}, "nats"),
        ({"score": "mean_difference"}, "tokens per prompt"),
        ({"score": "mean_difference", "normalize": True}, "of the tokens"),
        ({"score": "mean_difference", "value": "weight"}, "routing weight per prompt"),
        ({"score": "npmi"}, "npmi"),
        ({}, ""),
    ],
)
def test_expert_ranking_unit_says_what_scores_are(provenance: dict[str, Any], unit: str) -> None:
    assert ranking(provenance=provenance).unit == unit


def test_imaging_page_shows_the_ranking_and_leaves_attacks_text() -> None:
    held = Stability(2, 0.875, 0.5, 1 / 3, np.zeros((2, 3)))
    found = imaging([ATTACK, "other"] * 4, stability=held)
    page = check_page(imaging_page(found, provenance=HOW, files=FILES))
    assert "88% of the first 2 stay among the first 2 (by chance 33%)" in page.one("verdict").text
    experts, *against, side_by_side = tables(page, "experts")
    assert len(against) == 1
    first = found.rankings["risk_difference"].rows(1)[0]
    assert experts[1][:2] == [f"{first.layer}.{first.expert}", "1"]
    assert [row[0] for row in side_by_side[1:]] == ["risk_difference", "npmi"]
    classes = tables(page, "classes")[0]
    assert [row[1:3] for row in classes[1:]] == [["4", "50%"], ["4", "50%"]]
    assert classes[1][0] == ATTACK.replace("\x1b", "␛")
    assert len(page.one("maps").all("figure")) == 3
    assert page.one("tokens").all("span", "t")[0].text.startswith("</p></style><script>")


def test_page_leaves_what_a_map_of_latents_says_text_and_short() -> None:
    links = LatentExpertMap(
        torch.tensor([[[0.5, -2.0, 0.0]] * 2], dtype=torch.float64),
        (2**62,),
        (1, 2),
        "intervention",
        torch.tensor([3]),
        {"hookpoint": ATTACK, "edit": f"\u202e{ATTACK}{'x' * 10_000_000}"},
    )
    found = imaging([ATTACK, "other"] * 4, latents=[links], top=6)
    text = imaging_page(found, provenance=HOW, files=FILES)
    assert len(text) < 200_000
    page = check_page(text)
    for part in page.one("latents").all("details"):
        expert = int(part.all("h3")[0].text[-1])
        rows = [[cell.text for cell in row.children] for row in part.all("tr")[1:]]
        assert rows == ([] if expert == 2 else [[f"latent {2**62}", ["+0.5", "−2"][expert]]])
    assert "SAE at </p></style><script>" in page.one("latents").text


@pytest.mark.parametrize("classes", [["other"] * 3, [ATTACK] * 3])
def test_imaging_page_of_one_class_says_that_there_is_nothing_to_compare(classes: list[str]) -> None:
    found = imaging(classes)
    verdict, anything = imaging_verdict(found)
    assert verdict.startswith("Nothing to compare:")
    assert not anything
    page = check_page(imaging_page(found, provenance=HOW, files=FILES))
    assert [section.attributes["id"] for section in page.all("section")] == [
        "classes",
        "maps",
        "responses",
        "provenance",
    ]


def test_imaging_page_of_many_classes_draws_the_largest() -> None:
    classes = [f"class {index}" for index in range(MOST_CLASSES + 3)] * 2
    page = check_page(imaging_page(imaging(classes, "class 5"), provenance=HOW, files=FILES))
    titles = [title.text for title in page.one("maps").all("figcaption")]
    assert len(titles) == 1 + MOST_CLASSES
    assert titles[:2] == ["Class class 5 against all others", "Class class 5 2 prompts"]
    assert "3 smaller classes are left out." in page.one("maps").text


def test_attribution_page_shows_preference_and_experts() -> None:
    found = Attribution(
        model=ATTACK,
        ranking=ranking([0.01, 0.2, 0.5], provenance={"unit": "nats", "gain": 0.5}),
        prompts=[ATTACK] * 3,
        targets=["no"] * 3,
        baselines=[ATTACK] * 3,
        preference=[2.0, 4.0, -3.0],
        top=2,
        texts=[RoutedText("target", ["a"], 1, [[0.3], [0.0]])],
        traced=[(4, 0), (4, 1)],
    )
    verdict, anything = attribution_verdict(found)
    assert anything
    assert "likelier than the baseline on 67% of the prompts (+1.0 nats on average)" in verdict
    page = check_page(attribution_page(found, provenance=HOW, files=FILES))
    assert tables(page, "responses")[0][1] == ["−3.00", "2.00", "4.00"]
    assert "taken with all routing weights times 0.5" in page.one("experts").text
    assert "No token of these texts" in page.one("tokens").text


def test_evaluation_page_shows_controls_doses_side_effects_and_unrelated_answers() -> None:
    measured = report(
        20,
        2,
        [1.0, 0.5] * 10,
        dose=[(0.5, 0.75)],
        control_kind="usage",
        side_effects=SideEffects(0.125, 8.0, 9.0, 1234),
        unrelated=[ATTACK],
        unrelated_before=["same"],
        unrelated_after=[ATTACK],
    )
    found = Evaluation(ATTACK, measured)
    page = check_page(evaluation_page(found, provenance=HOW, files=FILES))
    assert page.one("verdict").text == measured.verdict.replace("\x1b", "␛")
    assert [row[2] for row in tables(page, "effect")[0][1:]] == ["100%", "10%", "75%"]
    assert len(page.one("effect").all("circle", "control")) == 20
    assert "by how often the model uses them" in page.one("effect").text
    assert tables(page, "dose")[0][1:] == [["0", "100%", "–"], ["0.5", "75%", "–"], ["1", "10%", "75%"]]
    assert [row[1] for row in tables(page, "sides")[0][1:]] == ["0.125 nats", "8 to 9", "1,234", "all"]
    assert "1 of 1 responses change." in page.one("unrelated").text
    assert ["suppress", "4.0  4.1"] in tables(page, "config")[0]
    assert not {"bias_on", "stimulate_weight"} & {row[0] for row in tables(page, "config")[0]}


def test_evaluation_page_without_controls_or_side_effects_says_so() -> None:
    found = Evaluation("m", report(20, 2, []))
    page = check_page(evaluation_page(found, provenance=HOW, files=FILES))
    assert "Not measured: give --unrelated prompts, --texts or --conversations." in page.one("sides").text
    assert "found" not in page.one("verdict").attributes["class"]
    assert page.all("circle", "control") == []


@pytest.mark.parametrize("after", [0, 10, 18, 20])
@pytest.mark.parametrize("controls", [[], [1.0] * 18, [1.0] * 19, [0.0, *[1.0] * 18]])
def test_beats_controls_takes_intervals_apart_and_19_controls_that_do_less(after: int, controls: list[float]) -> None:
    measured = report(20, after, controls)
    beats = after <= 10 and controls == [1.0] * 19
    assert measured.beats_controls() == beats
    assert measured.verdict.startswith("The config beats") == beats
    assert not measured.beats_controls(0.051)


def sweep(*settings: tuple[int, float, EvaluationReport]) -> Sweep:
    return Sweep(ATTACK, ATTACK, "suppress", [Setting(*setting) for setting in settings])


def test_sweep_adjusted_p_compares_with_the_largest_change_of_each_control() -> None:
    # Changes of the controls over both settings: at most 0.5, 0.0 and 0.5.
    found = sweep((1, 1.0, report(20, 15, [0.5, 1.0, 1.0])), (2, 1.0, report(20, 0, [1.0, 1.0, 0.5])))
    assert found.adjusted_p == [3 / 4, 1 / 4]
    assert sweep((1, 1.0, report(20, 10, [0.5, 1.0, 1.0]))).adjusted_p == [2 / 4]


def test_sweep_names_the_smallest_setting_that_beats_its_controls() -> None:
    quiet = [1.0] * 19
    found = sweep((1, 1.0, report(20, 19, quiet)), (2, 1.0, report(20, 6, quiet)), (5, 1.0, report(20, 0, quiet)))
    assert [setting.num_experts for setting in found.beating] == [2, 5]
    assert "The smallest is the first 2 experts at strength 1" in found.verdict
    assert "Most is changed by the first 5 experts at strength 1: to 0.0%" in found.verdict
    assert found.to_dict()["settings"][0]["beats_controls"] is False


def test_sweep_that_controls_reach_says_that_nothing_beats_them() -> None:
    found = sweep((1, 1.0, report(20, 0, [0.0, *[1.0] * 18])), (2, 1.0, report(20, 19, [1.0] * 19)))
    assert found.beating == []
    assert found.verdict.startswith("No setting of 2 beats its 19 random controls.")


def test_sweep_without_controls_claims_nothing() -> None:
    found = sweep((1, 1.0, report(20, 0, [])))
    assert found.adjusted_p == [None]
    assert "without random controls that says nothing" in found.verdict


def test_sweep_of_random_experts_rarely_beats_its_controls() -> None:
    draw = random.Random(0)
    positives = 0
    for _ in range(400):
        settings = []
        for number in (1, 2, 5, 10):
            rates = [draw.randint(0, 20) for _ in range(20)]
            settings.append((number, 1.0, report(20, rates[0], [rate / 20 for rate in rates[1:]])))
        positives += bool(sweep(*settings).beating)
    # 400 x 0.05 = 20; 32 would come up in one of 200 runs if the level were 0.05.
    assert positives <= 32


def test_sweep_page_has_a_chart_for_each_strength_and_a_row_for_each_setting() -> None:
    settings = [(n, s, report(20, 20 - n, [1.0] * 19)) for n in (1, 10) for s in (0.5, 1.0)]
    page = check_page(sweep_page(sweep(*settings), provenance=HOW, files=FILES))
    assert [title.text for title in page.one("curves").all("figcaption")] == ["Strength 0.5", "Strength 1"]
    assert [row[:3] for row in tables(page, "settings")[0][1:]] == [
        ["1", "0.5", "95%"],
        ["1", "1", "95%"],
        ["10", "0.5", "50%"],
        ["10", "1", "50%"],
    ]


def test_sweep_page_of_one_number_runs_along_the_strength() -> None:
    settings = [(3, s, report(20, 20 - int(10 * s), [])) for s in (1.0, 0.5)]
    page = check_page(sweep_page(sweep(*settings), provenance=HOW, files=FILES))
    (title,) = page.one("curves").all("figcaption")
    assert title.text == "The first 3 experts suppressed"
    assert "0.5: 75%" in page.one("curves").all("svg")[0].attributes["aria-label"]
