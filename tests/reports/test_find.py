"""The page of `hf-mote find`: what was tried and read, whether something was found or not, with hostile texts."""

from dataclasses import replace

import torch
from evaluation_reports import report_of
from html_pages import check_page

from hf_mote import ExpertRanking, FTRIResult, MoTEConfig
from hf_mote.evaluation.records import SideBySide
from hf_mote.reports.find import MOST_LISTED, find_page
from hf_mote.statistics.predictability import Predictability
from hf_mote.statistics.rates import Rate
from hf_mote.workflow.candidates import Candidate
from hf_mote.workflow.find import Found

ATTACK = "</p></style><script>document.title = 'taken'</script><img src=x onerror=alert(1)>\x1b[31m"
SEEN = ATTACK.replace("\x1b", "␛")
HOW, FILES = {"command": ATTACK}, {"report.json": ATTACK}


def candidate(name, experts, *, left, broken, effect, mode="drop"):
    config = MoTEConfig(suppress=experts, suppress_mode=mode)
    answers = SideBySide([ATTACK, "q"], [ATTACK, "no"], ["JJ", ATTACK], [ATTACK] * 2, ["answer"] * 2)
    return Candidate(name, config, left, broken, effect, 0.1, answers, [True, False], [False, True], False)


def imaged():
    counts = torch.ones(4, 2, 3)
    return FTRIResult(
        prompts=[ATTACK] * 4, responses=[ATTACK, "b"] * 2, classes=[ATTACK, "answer"] * 2, counts=counts,
        weights=counts / 2, num_tokens=torch.full((4,), 5.0), layers=(1, 2), scope="all", fingerprint=None,
    )  # fmt: skip


def ranking():
    score = torch.tensor([[3.0, 1.0, -2.0]], dtype=torch.float64)
    return ExpertRanking(score=score, layers=(4,), method="ftri", target=ATTACK)


def nothing_found():
    best = candidate(ATTACK, [[4, 1], [4, 0]], left=0.5, broken=0.5, effect=-0.25, mode="reroute")
    worse = candidate("gates", [[4, expert] for expert in range(30)], left=1.0, broken=0.0, effect=0.0)
    predicted = Predictability(0.9, 0.8, 1.0, None, 12, 0.95)
    reason = f"no set removes {ATTACK}"
    return Found(ATTACK, predicted, [worse, best], best, None, reason, [ATTACK], {"contrast": ranking()}, imaged())


def page_of(found):
    places = {name: f"rankings/{name}" for name in found.rankings}
    return check_page(find_page(found, model=ATTACK, places=places, provenance=HOW, files=FILES))


def rows_of(page, section):
    return [[cell.text for cell in row.children] for row in page.one(section).all("tr")]


def test_page_without_a_finding_shows_what_was_tried_and_said():
    page = page_of(nothing_found())
    assert page.one("verdict").text == f"No config is written: no set removes {SEEN}"
    assert "found" not in page.one("verdict").attributes["class"].split()
    head, worse, best = rows_of(page, "tried")
    assert head == ["found by", "experts", "mode", "left", "incoherent", "coherent effect, points", "best"]
    assert worse[:1] + worse[2:] == ["gates", "drop", "100%", "0%", "0", ""]
    assert worse[1].endswith(f"4.{MOST_LISTED - 1}  and 6 more")
    assert best == [SEEN, "4.0  4.1", "reroute", "50%", "50%", "−25", "yes"]
    (first, second) = page.one("responses").all("ul", "pairs")[0].children
    assert [part.text for part in first.all("dt")] == [f"untouched {SEEN}", "with the config answer incoherent"]
    assert [part.text for part in second.all("dd")] == ["no", SEEN]
    assert "on prompts that it was found with" in page.one("responses").text
    assert [item.text for item in page.one("notes").all("li")] == [
        "routing tells the classes of held-out prompts: AUROC 0.90 [0.80, 1.00].",
        f"{SEEN}.",
    ]
    _, ranked = rows_of(page, "rankings")
    assert [ranked[0], ranked[1], ranked[3]] == ["contrast", "4.0  4.1  4.2", "rankings/contrast"]
    assert "it is not proven, so it is in no file" in page.one("config").text
    assert [heading.text for heading in page.one("classes").all("h3")] == [f"{SEEN} 2 prompts", "answer 2 prompts"]


def test_page_of_a_finding_shows_it_on_prompts_held_out():
    found = nothing_found()
    n = 20
    report = report_of(
        ATTACK, Rate.of(n, n), Rate.of(0, n), [1.0] * 19, config=found.best.config.to_dict(), prompts=[ATTACK] * n,
        responses_before=[ATTACK] * n, responses_after=["held out"] * n, labels_before=[ATTACK] * n,
        labels_after=["answer"] * n,
    )  # fmt: skip
    page = page_of(replace(found, report=report, reason=""))
    assert page.one("verdict").text.startswith("2 experts carry ")
    assert "found" in page.one("verdict").attributes["class"].split()
    assert rows_of(page, "effect")[2][:3] == ["with the config", "0 of 20", "0%"]
    assert "held out" in page.one("responses").text
    assert "JJ" not in page.one("responses").text
    assert "Proven: it beats its controls" in page.one("config").text


def test_page_of_too_few_prompts_shows_their_responses():
    found = Found(ATTACK, None, [], None, None, "16 of each are needed.", [], {}, imaged())
    page = page_of(found)
    assert page.one("verdict").text == "No config is written: 16 of each are needed."
    assert page.one("tried").text.endswith("No set of experts was tried.")
    identities = [section.attributes["id"] for section in page.all("section")]
    assert identities == ["tried", "classes", "notes", "provenance"]
    assert SEEN in page.one("classes").text


def test_figures_have_the_responses_of_every_set():
    figures = nothing_found().to_dict()
    worse, best = figures["candidates"]
    assert (worse["mode"], best["mode"]) == ("drop", "reroute")
    assert best["responses"] == ["JJ", ATTACK]
    assert (best["classes"], best["incoherent"]) == (["answer"] * 2, [True, False])
    assert figures["tried_on"] == {"prompts": [ATTACK, "q"], "responses": [ATTACK, "no"], "classes": [ATTACK] * 2}
    assert figures["imaged"]["classes"] == [ATTACK, "answer"] * 2
