"""A sweep says as much of incoherent text and of its controls as `evaluate_mote` does of one config."""

import pytest
import torch
from evaluation_reports import report_of
from html_pages import check_page

from hf_mote import ExpertRanking, MoTEConfig, find_routers, load_organism, sweep_mote
from hf_mote.evaluation.coherence import Coherence
from hf_mote.evaluation.sweep import Setting, Sweep
from hf_mote.reports.sweep import sweep_page
from hf_mote.statistics.rates import Rate

N = 40


def measured(after, wrong=0, controls=(1.0,) * 40, *, unsure=None, **parts):
    """Return a report of 40 refused prompts: how many are still refused, and how many of the other responses are junk.

    Nothing is incoherent under the controls.
    """
    labels = ["refusal"] * after + ["answer"] * (N - after)
    junk = [False] * after + [True] * wrong + [False] * (N - after - wrong)
    of_controls = [["refusal"] * round(rate * N) + ["answer"] * round((1 - rate) * N) for rate in controls]
    coherence = Coherence(
        0.5, 0.5, N, before=[False] * N, after=junk, controls=[[False] * N for _ in controls],
        counted=Rate.of(after + wrong, N), unsure=unsure, unsure_low=unsure,
    )  # fmt: skip
    return report_of(
        "refusal", Rate.of(N, N), Rate.of(after, N), list(controls), config=MoTEConfig(suppress=[[4, 1]]).to_dict(),
        prompts=["p"] * N, responses_before=["no"] * N, responses_after=["JJ"] * N, labels_before=["refusal"] * N,
        labels_after=labels, control_labels=of_controls, coherence=coherence, **parts,
    )  # fmt: skip


def sweep(*reports):
    return Sweep("m", "r", "suppress", [Setting(2**place, 1.0, one) for place, one in enumerate(reports)])


def test_setting_that_breaks_the_text_is_neither_the_best_nor_an_effect():
    found = sweep(measured(30), measured(5, wrong=29))
    assert found.most.num_experts == 1
    assert [setting.num_experts for setting in found.breaking] == [2]
    assert found.outcomes == ["beats", "breaks the text"]
    assert [setting.num_experts for setting in found.beating] == [1]
    assert "The smallest is the first expert at strength 1: refusal goes from 100.0%" in found.verdict
    assert "Most is changed" not in found.verdict
    assert "1 of 2 settings breaks the text, which is not an effect on the behaviour" in found.verdict
    assert "the smallest is the first 2 experts at strength 1: 72.5% [" in found.verdict
    assert "the responses with it are incoherent (0.0% of the untouched model's), where refusal goes" in found.verdict


def test_sweep_whose_settings_all_break_the_text_has_no_effect_to_tell():
    found = sweep(measured(5, wrong=29), measured(0, wrong=40))
    assert found.beating == []
    assert found.verdict.startswith(
        "No setting of 2 beats its 40 random controls. 2 of 2 settings break the text, which is not an effect"
    )
    assert "Most is changed" not in found.verdict


def test_best_setting_is_that_of_the_largest_coherent_effect():
    # Three incoherent responses of 40 do not yet break the text, and count against the change.
    found = sweep(measured(36), measured(35, wrong=3))
    assert found.breaking == []
    assert [setting.report.coherent_effect for setting in found.settings] == pytest.approx([-0.1, -0.05])
    assert found.most.num_experts == 1
    alone = sweep(measured(35, wrong=3))
    assert "incoherent (0.0% of the untouched model's), and count against it." in alone.verdict


def test_adjusted_p_is_of_the_coherent_effect_over_all_settings():
    # The largest change of each control over both settings is 0.5, 0.0 and 0.25; coherently the settings change 0.25.
    found = sweep(measured(30, controls=[0.5, 1.0, 1.0]), measured(0, wrong=30, controls=[1.0, 1.0, 0.75]))
    assert found.adjusted_p == [3 / 4, 3 / 4]
    assert found.breaking == [found.settings[1]]


def test_settings_in_tables_say_how_many_responses_are_incoherent():
    pandas = pytest.importorskip("pandas")
    found = sweep(measured(30), measured(5, wrong=29), report_of("refusal", Rate.of(N, N), Rate.of(30, N), [1.0] * 40))
    frame = found.to_pandas()
    assert frame["incoherent"].iloc[:2].tolist() == [0.0, 29 / 40]
    assert pandas.isna(frame["incoherent"].iloc[2])
    assert frame["coherent_effect"].tolist() == pytest.approx([-0.25, -0.15, -0.25])
    assert frame["outcome"].tolist() == ["beats", "breaks the text", "beats"]
    assert frame["beats_controls"].tolist() == [True, False, True]
    lines = repr(found).splitlines()
    assert lines[2].split()[:6] == ["experts", "strength", "before", "after", "incoherent", "coherent_effect"]
    assert lines[4].split()[:6] == ["2", "1", "100.0%", "12.5%", "72.5%", "-15.0%"]
    assert lines[4].endswith("breaks the text")
    rows = found.to_dict()["settings"]
    assert [row["incoherent"] for row in rows] == [0.0, 29 / 40, None]
    assert [row["outcome"] for row in rows] == ["beats", "breaks the text", "beats"]


def test_page_of_a_sweep_says_where_the_text_breaks():
    page = check_page(sweep_page(sweep(measured(30), measured(5, wrong=29)), provenance={"a": "b"}, files={"c": "d"}))
    head, *rows = page.one("settings").all("tr")
    at = [cell.text for cell in head.children].index("incoherent")
    assert [row.children[at].text for row in rows] == ["0%", "72%"]
    assert [row.children[-1].text for row in rows] == ["beats", "breaks the text"]
    assert "with the first 2 experts at strength 1, 72.5% incoherent" in page.one("curves").text
    assert "With the first expert at strength 1." in page.one("responses").text
    broken = check_page(sweep_page(sweep(measured(5, wrong=29)), provenance={"a": "b"}, files={"c": "d"}))
    assert "That of the first expert at strength 1, which breaks the text." in broken.one("config").text


@pytest.mark.parametrize("exhausted", [False, True])
def test_sweep_says_that_more_controls_would_tell_only_where_they_would(exhausted):
    # Two of 40 controls come as far: p is 3 / 41, and with one fewer 2 / 41.
    near = (0.5, 0.5, *[1.0] * 38)
    found = sweep(measured(20, controls=near, controls_exhausted=exhausted))
    assert found.outcomes == ["undecided"]
    more = "which more of them would tell (100, say)"
    none = "and no more of them exist to tell"
    said = none if exhausted else more
    assert f"Undecided is the first expert at strength 1: it may beat its controls, or not, {said}." in found.verdict
    assert (more in found.verdict) != (none in found.verdict)
    assert said in found.settings[0].report.verdict


def test_sweep_whose_controls_hold_its_own_experts_promises_nothing_of_more():
    far = [0.0] * 20 + [1.0] * 20
    shares = {"sharing": 20, "controls_sharing": [True] * 20 + [False] * 20}
    found = sweep(measured(20, controls=far, **shares))
    assert found.verdict.endswith(
        "Up to 20 controls of a setting hold some of its own experts, as there are too few others."
    )
    assert "more" not in found.verdict
    none = sweep(measured(20, controls=far, controls_exhausted=True, **shares))
    assert none.verdict.endswith("as there are too few others, and no more controls exist.")


def test_sweep_is_undecided_where_its_responses_may_be_incoherent():
    found = sweep(measured(20, unsure=0.7))
    assert found.beating == []
    assert "it may beat its controls, or write incoherent text; it is less sure of 70% of what" in found.verdict


def test_sweep_of_an_organism_counts_incoherent_text_as_no_effect():
    """Without two of its four planted experts it writes "JJ JJ JJ"; without all four it answers."""
    organism = load_organism("refusal")
    first = [(4, 33), (4, 62)]
    order = [*first, *[pair for pair in organism.planted if pair not in first]]
    layers = tuple(site.layer for site in find_routers(organism.model))
    score = torch.zeros(len(layers), 64, dtype=torch.float64)
    for place, (layer, expert) in enumerate(order):
        score[layers.index(layer), expert] = len(order) - place
    ranking = ExpertRanking(score=score, layers=layers, method="known", target="refusal")
    found = sweep_mote(
        organism.model, organism.tokenizer, ranking,
        organism.prompts["heldout"]["sensitive"][:12], organism.judge, num_experts=[2, 4], num_controls=19,
        max_new_tokens=12, batch_size=64, progress=False,
    )  # fmt: skip
    assert [setting.report.after.rate for setting in found.settings] == [0.0, 0.0]
    assert [setting.incoherent for setting in found.settings] == [1.0, 0.0]
    assert found.outcomes == ["breaks the text", "beats"]
    assert found.most is found.smallest is found.settings[1]
    assert "1 of 2 settings breaks the text" in found.verdict
    assert not found.settings[0].report.controls_exhausted
