"""The page of `hf-mote routes`, with hostile texts, and the sentence it begins with."""

from __future__ import annotations

import pytest
from html_pages import check_page

from hf_mote import CounterfactualRoutes
from hf_mote.ranking.causal.counterfactual import Route
from hf_mote.reports.routes import Rerouted, RoutedPrompt, first_rows, routes_page, routes_verdict

ATTACK = "</p></style><script>document.title = 'taken'</script><img src=x onerror=alert(1)>\x1b[31m"
SEEN = ATTACK.replace("\x1b", "␛")
HOW, FILES = {"command": ATTACK}, {"report.json": ATTACK}
FINGERPRINT = {"layers": [0, 1], "model_type": "m", "num_experts": [8, 8], "router_sha256": None, "top_k": [2, 2]}


def routed(score: float, *effects: float, token: str = "?") -> RoutedPrompt:
    routes = [Route(1, (0,), (1 + place,), 0.25, effect) for place, effect in enumerate(effects)]
    found = CounterfactualRoutes(routes, 1, score, "yes", "nats", FINGERPRINT)
    return RoutedPrompt(ATTACK, ATTACK, "no", ["a", token, ATTACK], found)


@pytest.mark.parametrize(
    ("prompts", "told", "anything"),
    [
        (
            [routed(2.0, -0.5, -2.5, 9.0)],
            "The model finds the target likelier than the baseline, by 2 nats. 1 of 3 other routes of token 1 ('?') "
            "turns that; the largest change is +9 nats, in layer 1 with 3 in the place of 0.",
            True,
        ),
        (
            [routed(-2.0, -0.5, 2.5, 3.0)],
            "The model finds the baseline likelier than the target, by 2 nats. 2 of 3 other routes of token 1 ('?') "
            "turn that; the largest change is +3 nats, in layer 1 with 3 in the place of 0.",
            True,
        ),
        (
            [routed(2.0, -0.5)],
            "The model finds the target likelier than the baseline, by 2 nats. The only other route of token 1 "
            "('?') does not turn that; the largest change is −0.5 nats, in layer 1 with 1 in the place of 0.",
            False,
        ),
        (
            [routed(2.0, -2.5)],
            "The model finds the target likelier than the baseline, by 2 nats. The only other route of token 1 "
            "('?') turns that; the largest change is −2.5 nats, in layer 1 with 1 in the place of 0.",
            True,
        ),
        (
            [routed(0.0, 0.0, 0.0)],
            "The model finds both responses equally likely. None of 2 other routes of token 1 ('?') changes that at "
            "all.",
            False,
        ),
        (
            [routed(2.0, -0.5), routed(1.0, -3.0), routed(1.0, 0.25)],
            "On 1 of 3 prompts another route of the token turns the preference between the two responses; the largest "
            "change is −3 nats, in layer 1 with 1 in the place of 0 of prompt 2.",
            True,
        ),
        (
            [routed(2.0, 0.0), routed(1.0, 0.0)],
            "On none of 2 prompts another route of the token turns the preference between the two responses, or "
            "changes it at all.",
            False,
        ),
    ],
)
def test_verdict_says_what_the_routes_turn(prompts: list[RoutedPrompt], told: str, anything: bool) -> None:
    assert routes_verdict(Rerouted("m", prompts, 10)) == (told, anything)


def test_rows_are_the_largest_changes_of_all_prompts() -> None:
    headings, rows = first_rows(Rerouted("m", [routed(2.0, -0.5, 0.1), routed(-1.0, 3.25)], 2))
    assert headings == ["prompt", "layer", "expert out", "expert in", "weight", "change", "preference", "turns it"]
    assert rows == [
        ["2", "1", "0", "1", "0.250", "+3.250", "+2.250", "yes"],
        ["1", "1", "0", "1", "0.250", "−0.500", "+1.500", "no"],
    ]
    headings, rows = first_rows(Rerouted("m", [routed(2.0, -0.5)], 2))
    assert headings[0] == "layer"
    assert rows == [["1", "0", "1", "0.250", "−0.5000", "+1.500", "no"]]


@pytest.mark.parametrize("number", [1, 8])
def test_page_shows_routes_prompts_and_the_token(number: int) -> None:
    found = Rerouted(ATTACK, [routed(2.0, -0.5, -2.5, token=ATTACK)] * number, 3)
    page = check_page(routes_page(found, provenance=HOW, files=FILES))
    assert page.one("verdict").text == routes_verdict(found)[0].replace("\x1b", "␛")
    rows = page.one("routes").all("tr")
    assert len(rows) == 1 + min(3, 2 * number)
    prompts = page.one("prompts")
    assert SEEN in prompts.text
    (marked, *_) = prompts.all("span", class_="t")
    assert marked.text == SEEN
    assert len(prompts.all("span", class_="t")) == number
    assert "1 of 2 routes" in prompts.text
