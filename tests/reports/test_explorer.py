"""The data of a page: rounded as it is written, in the ranking's order, inert, and small for the largest models."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from html_pages import check_page, parse_page

from hf_mote import ActivationMap, ExpertRanking, FTRIResult, LatentExpertMap
from hf_mote.reports.explorer import MOST_WEIGHTS, Explored, expert_part, explorer_data, traced_experts
from hf_mote.reports.imaging import Imaging, imaging_page
from hf_mote.reports.links import MOST_LINKS, SHOWN
from hf_mote.reports.markup import data_block
from hf_mote.reports.tokens import MOST_TOKENS, RoutedText


def ranking(score: torch.Tensor, **fields: Any) -> ExpertRanking:
    layers = tuple(range(3, 3 + len(score)))
    return ExpertRanking(score=score.double(), layers=layers, method="ftri", target="yes", **fields)


def explored(found: ExpertRanking, **fields: Any) -> Explored:
    return Explored({"ftri": found}, "yes", ("For", "Against"), {"first": found.top(1)}, **fields)


def data_of(found: Explored) -> dict[str, Any]:
    (script,) = parse_page(explorer_data(found)).all("script")
    loaded: dict[str, Any] = json.loads(script.text)
    return loaded


def test_explorer_data_holds_every_expert_in_the_rankings_order() -> None:
    score = torch.tensor([[0.5, -1.25, 0.0], [2.0, 0.5, 0.125]])
    grid = {"low": score.double() - 0.2, "high": score.double() + 0.2, "confidence": 0.9}
    untested = torch.full((2, 3), torch.nan, dtype=torch.float64)
    found = ranking(score, **grid, p=untested, q=untested)
    counts = torch.tensor([[1.0, 2.5, 0.0], [0.0, 0.04, 3.0]], dtype=torch.float64)
    seen = ActivationMap(counts=counts, weights=counts / 2, layers=(3, 4), num_tokens=4.0)
    data = data_of(explored(found, maps={"yes": (25, seen)}))
    assert data["order"] == [3, 0, 4, 5, 2, 1]
    assert data["rankings"][0]["decimals"] == 2
    assert data["rankings"][0]["score"] == [0.5, -1.25, 0, 2, 0.5, 0.12]
    assert data["rankings"][0]["q"] == [None] * 6
    assert data["classes"] == [{"name": "yes", "prompts": 25, "decimals": 2, "counts": [1, 2.5, 0, 0, 0.04, 3]}]
    assert data["marked"] == [{"name": "first", "experts": ["4.0"]}]


def test_explorer_data_has_the_tokens_of_as_many_experts_as_there_is_room_for() -> None:
    found = ranking(torch.rand(2, 300))
    pieces = ["x"] * (MOST_TOKENS + 50)
    text = RoutedText("yes", pieces, 5, [[0.123] * len(pieces)] * 128)
    data = data_of(explored(found, texts=[text], traced=traced_experts(found)))
    (shown,) = data["texts"]
    assert len(shown["pieces"]) == MOST_TOKENS + 1
    assert shown["pieces"][-1] == 50
    assert shown["asked"] == 5
    weights = shown["weights"]
    assert list(weights) == [f"{layer}.{expert}" for layer, expert in traced_experts(found)][: len(weights)]
    assert len(weights) == MOST_WEIGHTS // MOST_TOKENS + 1
    assert weights[list(weights)[0]][:4] == [0, 0.12, 1, 0.12]


def predicted(latents: int, layers: tuple[int, ...], experts: int) -> LatentExpertMap:
    values = torch.rand(latents, len(layers), experts, generator=torch.Generator().manual_seed(0)).double() - 0.5
    return LatentExpertMap(
        values,
        tuple(range(100_000, 100_000 + latents)),
        layers,
        "prediction",
        torch.full((latents,), 70),
        {"hookpoint": "model.layers.3.output"},
        together=torch.full(values.shape, 30),
        chosen=torch.full(values.shape[1:], 90),
        num_tokens=123_456,
    )


def test_explorer_data_has_the_latents_of_as_many_experts_as_there_is_room_for() -> None:
    found, links = ranking(torch.rand(2, 1500)), predicted(8, (3, 4), 1500)
    data = data_of(explored(found, latents=[links]))["latents"]
    (one,) = data["maps"]
    assert data["experts"] == len(one["experts"]) == MOST_LINKS // SHOWN < 3000
    assert not data["all"]
    first = [f"{layer}.{expert}" for layer, expert in traced_experts(found)]
    assert list(one["experts"])[: len(first)] == first
    layer, expert = found.top(1)[0]
    best = links.for_expert(layer, expert, 1)[0]
    latent, value, *counted = one["experts"][f"{layer}.{expert}"][0]
    assert (latent, float(value.replace("−", "-"))) == (best.latent, pytest.approx(best.value, rel=1e-3))
    assert counted == ["42.9%", "33.3%", "587.9"]
    # Of a layer that the map does not hold there is nothing to say.
    only = data_of(explored(ranking(torch.rand(2, 20)), latents=[predicted(8, (4,), 20)]))["latents"]
    assert (only["all"], only["experts"], len(only["maps"][0]["experts"])) == (True, 40, 20)
    assert "latents" not in data_of(explored(found))


def test_traced_experts_are_the_first_and_those_that_speak_most_against_the_target() -> None:
    score = torch.linspace(1, -1, 600).view(2, 300)
    found = traced_experts(ranking(score))
    assert found[:96] == [(3, expert) for expert in range(96)]
    assert found[96:] == [(4, expert) for expert in range(299, 267, -1)]
    assert len(traced_experts(ranking(score[:, :20]))) == 40


def test_expert_part_has_those_against_the_target_where_there_are_some() -> None:
    root = parse_page(expert_part(explored(ranking(torch.tensor([[2.0, -3.0, -1.0]])))))
    first, against = root.all("table")
    assert [row.children[0].text for row in first.all("tr")[1:]] == ["3.0", "3.2", "3.1"]
    assert [row.children[0].text for row in against.all("tr")[1:]] == ["3.1", "3.2"]
    assert {link.attributes["data-expert"] for link in root.all("a", "expert")} == {"3.0", "3.1", "3.2"}
    assert len(parse_page(expert_part(explored(ranking(torch.ones(1, 3))))).all("table")) == 1


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", "<!--", "]]>", "\u2028\ud800\x00", "&lt;"])
def test_data_block_stays_data_whatever_it_holds(text: str) -> None:
    made = data_block("data", {text: [text]})
    made.encode("utf-8")
    (script,) = parse_page(made).children
    assert script.children == []
    assert not set("<>&") & set(script.text)
    ((key, value),) = json.loads(script.text).items()
    assert [key] == value


def test_page_of_the_largest_models_is_below_two_megabytes() -> None:
    prompts, layers, experts = 18, 61, 256
    draw = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((prompts, layers, experts), 1.3), generator=draw)
    result = FTRIResult(
        prompts=["What happened then? " * 20] * prompts,
        responses=["It is not known what happened. " * 200] * prompts,
        classes=[f"class {index % 9}" for index in range(prompts)],
        counts=counts,
        weights=counts / 8,
        num_tokens=torch.full((prompts,), 60.0),
        layers=tuple(range(3, 3 + layers)),
        scope="prompt",
        fingerprint=None,
    )
    found = result.rank("class 1", resamples=19)
    traced = traced_experts(found)
    texts = [RoutedText("class 1", ["word "] * 900, 60, [[0.125] * 900] * len(traced))] * 6
    maps = [predicted(60, result.layers, experts)] * 3
    page = imaging_page(
        Imaging(
            "m",
            result,
            "class 1",
            {"mean_difference": found},
            8,
            None,
            texts,
            None,
            traced,
            result.alike(traced),
            latents=maps,
        ),
        provenance={},
        files={},
    )
    check_page(page)
    assert len(page.encode("utf-8")) < 2_000_000
