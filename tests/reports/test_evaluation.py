"""The evaluation page's conversations: a section of their own, and their share among the side effects."""

from __future__ import annotations

from evaluation_reports import report_of
from html_pages import Element, check_page

from hf_mote import EvaluationReport, MoTEConfig
from hf_mote.evaluation.both_ways import BothWays
from hf_mote.evaluation.coherence import Coherence
from hf_mote.evaluation.conversations import Conversation
from hf_mote.evaluation.selectivity import Selectivity, stays_the_same
from hf_mote.reports.evaluation import Evaluation, evaluation_page
from hf_mote.statistics.rates import Rate

ATTACK = "</p></style><script>document.title = 'taken'</script><img src=x onerror=alert(1)>\x1b[31m"


def page_with(conversations: list[Conversation], unchanged: Rate | None) -> Element:
    report = report_of(
        target="yes", before=Rate.of(2, 2), after=Rate.of(0, 2), controls=[1.0],
        config=MoTEConfig(suppress=[[4, 1]]).to_dict(), prompts=["p", "q"], responses_before=["a", "b"],
        responses_after=["c", "d"], labels_before=["yes"] * 2, labels_after=["no"] * 2,
        conversations=conversations, turns_unchanged=unchanged,
    )  # fmt: skip
    found = Evaluation("m", report)
    return check_page(evaluation_page(found, provenance={"model": "m"}, files={}))


def test_evaluation_page_shows_conversations_as_text_and_the_share_that_stays() -> None:
    talk = Conversation(["x", ATTACK], ["a", "b"], ["a", ATTACK], id=ATTACK, category=ATTACK)
    page = page_with([talk], Rate.of(1, 2))
    ((row,),) = [table.all("tr")[1:] for table in page.one("sides").all("table")]
    assert [cell.text for cell in row.children] == [
        "answers in conversations that stay word for word",
        "50% [9% to 91%], 1 of 2",
    ]
    section = page.one("conversations")
    assert section.all("h2")[0].text == "Conversations before and after"
    shown = ATTACK.replace("\x1b", "␛")
    assert [asked.text for asked in section.all("p", "asked")] == ["x", shown]
    assert [side.text for side in section.all("dd")] == ["a", "a", "b", shown]
    assert section.all("span", "chip")[0].text == shown
    assert len(page.all("script")) == 1  # the page's own
    assert page.all("img") == []


def test_evaluation_page_without_conversations_has_no_section_for_them() -> None:
    page = page_with([], None)
    assert "conversations" not in {section.attributes["id"] for section in page.all("section")}
    assert "give --unrelated prompts, --texts or --conversations." in page.one("sides").text


def test_evaluation_page_says_what_is_no_text_and_what_changes_elsewhere() -> None:
    report = report_of(
        target="yes", before=Rate.of(20, 20), after=Rate.of(0, 20), controls=[1.0] * 19,
        config=MoTEConfig(suppress=[[4, 1]]).to_dict(), prompts=["p"] * 20, responses_before=["a"] * 20,
        responses_after=["c"] * 20, labels_before=["yes"] * 20, labels_after=["no"] * 20,
        control_labels=[["yes"] * 20] * 19,
        coherence=Coherence(
            0.3, 0.5, 40, [False] * 20, [True] * 15 + [False] * 5, [[False] * 20] * 19, Rate.of(15, 20)
        ),
        selectivity=Selectivity(0.25, Rate.of(1, 40), [0.0] * 19, [0.0] * 19),
        not_worse=[stays_the_same("unrelated answers that stay word for word", Rate.of(40, 40), 0.1)],
    )  # fmt: skip
    page = check_page(evaluation_page(Evaluation("m", report), provenance={"model": "m"}, files={}))
    assert page.one("verdict").text.startswith(
        "The config breaks the text, which is not an effect on the behaviour: 75.0%"
    )
    assert "Incoherent: 0.0% [0.0%, 16.1%] of the untouched model's responses and 75.0%" in page.one("effect").text
    sides = page.one("sides").text
    assert "unrelated answers that stay word for word, held against a margin" in sides
    assert "100% of 40, at least 91.2% of all such; so fewer than 10% change" in sides
    assert "selective: 25.0% on target, 2.5%" in sides


def test_evaluation_page_shows_the_same_experts_both_ways_with_their_controls() -> None:
    def measured(before: int, after: int, control: float) -> EvaluationReport:
        return report_of(
            target="yes", before=Rate.of(before, 20), after=Rate.of(after, 20), controls=[control] * 40,
            config=MoTEConfig(suppress=[[4, 1]]).to_dict(), prompts=["p"] * 20,
            responses_before=["a"] * 20, responses_after=["c"] * 20, labels_before=["yes"] * 20,
            labels_after=["no"] * 20,
        )  # fmt: skip

    both = BothWays(measured(20, 0, 0.95), measured(0, 16, 0.05))
    found = Evaluation("m", both.suppressed, both=both)
    section = check_page(evaluation_page(found, provenance={"model": "m"}, files={})).one("both")
    for row in both.rows:
        assert all(cell in section.text for cell in row)
    assert [row[0] for row in both.rows] == ["suppressed", "stimulated"]
    assert "random experts, mean" in section.text
    assert f"Stimulated: {both.stimulated.verdict}" in section.text
    alone = check_page(evaluation_page(Evaluation("m", both.suppressed), provenance={"model": "m"}, files={}))
    assert "both" not in {part.attributes["id"] for part in alone.all("section")}
