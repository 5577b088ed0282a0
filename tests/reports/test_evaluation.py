"""The evaluation page's conversations: a section of their own, and their share among the side effects."""

from __future__ import annotations

from html_pages import Element, check_page

from hf_mote import EvaluationReport, MoTEConfig
from hf_mote.evaluation.conversations import Conversation
from hf_mote.reports.evaluation import Evaluation, evaluation_page
from hf_mote.statistics.rates import Rate

ATTACK = "</p></style><script>document.title = 'taken'</script><img src=x onerror=alert(1)>\x1b[31m"


def page_with(conversations: list[Conversation], unchanged: Rate | None) -> Element:
    report = EvaluationReport(
        target="yes", before=Rate.of(2, 2), after=Rate.of(0, 2), controls=[1.0], unrelated_unchanged=None,
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
