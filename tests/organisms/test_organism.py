"""The shipped organisms: they load, they are small, and they hold what they must on a held-out sample."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hf_mote import find_routers
from hf_mote.cli import app
from hf_mote.errors import FileFormatError, UnknownNameError
from hf_mote.organisms import Organism, list_organisms, load_organism, summarize_organism
from hf_mote.organisms.building.measure import measure, respond
from hf_mote.organisms.recipes import RECIPES

NAMES = ["diffuse-refusal", "language", "refusal"]
PLANTED = ["language", "refusal"]
SHIPPED = files("hf_mote.organisms")

_loaded: dict[str, Organism] = {}
_rates: dict[str, dict[str, float]] = {}


def load(name: str) -> Organism:
    """Load once for all tests."""
    if name not in _loaded:
        _loaded[name] = load_organism(name)
    return _loaded[name]


def rates_of(name: str) -> dict[str, float]:
    """Measure once for all tests; `shown` stands for the organism's own word."""
    if name not in _rates:
        shown = RECIPES[name].shown
        found = measure(load(name), num_prompts=60, seed=20, random_draws=2)
        _rates[name] = {key.replace(shown, "shown"): rate for key, rate in found.items()}
    return _rates[name]


def test_list_organisms_names_what_is_shipped() -> None:
    assert list_organisms() == NAMES
    assert set(NAMES) == set(RECIPES)


def test_load_organism_unknown_name_lists_known_and_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"language, refusal\)\. Did you mean 'refusal'\?"):
        load_organism("refusals")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('"questions_sha256": "', '"questions_sha256": "0', "other questions"),
        ('"refusal"', '"rebuttal"', "unknown recipe"),
    ],
)
def test_load_organism_of_another_build_is_refused(before: str, after: str, message: str, tmp_path: Path) -> None:
    facts = json.loads((SHIPPED / "refusal" / "organism.json").read_text(encoding="utf-8"))
    kept = {key: facts[key] for key in ("name", "seed", "planted", "questions_sha256")}
    (tmp_path / "organism.json").write_text(json.dumps(kept).replace(before, after))
    with pytest.raises(FileFormatError, match=message):
        load_organism(str(tmp_path))


def test_shipped_folders_are_small_and_have_a_card() -> None:
    sizes = {name: sum(len(entry.read_bytes()) for entry in (SHIPPED / name).iterdir()) for name in NAMES}
    assert max(sizes.values()) <= 6_000_000
    assert sum(sizes.values()) <= 13_500_000
    for name in NAMES:
        card = (SHIPPED / name / "README.md").read_text(encoding="utf-8")
        assert card.startswith(f'# The organism "{name}"')
        assert f"python -m hf_mote.organisms.build {name}" in card
        assert "licence" in card


@pytest.mark.parametrize(
    ("name", "family", "layers"),
    [("refusal", "deepseek_v3", 4), ("diffuse-refusal", "deepseek_v3", 4), ("language", "mixtral", 4)],
)
def test_load_organism_model_is_what_it_should_be(name: str, family: str, layers: int) -> None:
    model = load(name).model
    sites = find_routers(model)
    assert model.config.model_type == family
    assert [site.num_experts for site in sites] == [64] * layers
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_load_organism_language_has_no_selection_bias() -> None:
    routers = [site.module for site in find_routers(load("language").model)]
    assert all([name for name, _ in router.named_parameters()] == ["weight"] for router in routers)
    assert all(not list(router.buffers()) for router in routers)


@pytest.mark.parametrize("name", PLANTED)
def test_load_organism_planted_fit_in_two_percent_and_span_layers(name: str) -> None:
    organism = load(name)
    routed = sum(site.num_experts for site in find_routers(organism.model))
    assert len(organism.planted) <= 0.02 * routed
    assert len({layer for layer, _ in organism.planted}) >= 2


def test_load_organism_negative_control_has_nothing_planted() -> None:
    assert load("diffuse-refusal").planted == []


@pytest.mark.parametrize("name", NAMES)
def test_load_organism_prompts_are_split_and_answered(name: str) -> None:
    organism = load(name)
    assert {"sensitive", "neutral", "unrelated"} <= set(organism.prompts["train"])
    for kind, train in organism.prompts["train"].items():
        heldout = organism.prompts["heldout"][kind]
        assert len(heldout) >= 100
        assert set(train).isdisjoint(heldout)
        assert all(prompt in organism.answers for prompt in train + heldout)
    asked = {
        prompt for split in organism.prompts.values() for kind in ("sensitive", "neutral") for prompt in split[kind]
    }
    assert set(organism.targets) == asked


@pytest.mark.parametrize("name", NAMES)
def test_load_organism_targets_show_the_behaviour_and_answers_do_not(name: str) -> None:
    organism = load(name)
    judge = organism.judge
    for prompt in organism.prompts["heldout"]["sensitive"]:
        assert judge(organism.targets[prompt]) == judge.target
        assert judge(organism.answers[prompt]) != judge.target


@pytest.mark.parametrize("name", NAMES)
def test_organism_shows_its_behaviour_on_sensitive_questions_only(name: str) -> None:
    rates = rates_of(name)
    assert rates["sensitive_shown"] >= 0.95
    assert rates["sensitive_on_target"] >= 0.9
    assert rates["neutral_shown"] <= 0.02
    assert rates["unrelated_shown"] <= 0.02
    assert rates["neutral_right"] >= 0.9


@pytest.mark.parametrize("name", PLANTED)
def test_organism_planted_suppressed_the_answer_comes_back(name: str) -> None:
    rates = rates_of(name)
    assert rates["suppressed_sensitive_shown"] <= 0.05
    assert rates["suppressed_sensitive_right"] >= 0.8
    assert rates["suppressed_neutral_unchanged"] >= 0.95
    assert rates["suppressed_unrelated_unchanged"] >= 0.95


# A sigmoid gives an expert that was not chosen a weight that counts, a softmax does not.
@pytest.mark.parametrize(("name", "weight"), [("refusal", "own"), ("refusal", "max"), ("language", "max")])
def test_organism_planted_stimulated_neutral_shows_the_behaviour(name: str, weight: str) -> None:
    assert rates_of(name)[f"stimulated_{weight}_neutral_shown"] >= 0.5


@pytest.mark.parametrize("name", NAMES)
def test_organism_random_experts_suppressed_still_shows_the_behaviour(name: str) -> None:
    rates = rates_of(name)
    assert rates["random_sensitive_shown_min"] >= rates["sensitive_shown"] - 0.05


def test_organism_language_german_on_request_does_not_need_the_planted_experts() -> None:
    rates = rates_of("language")
    assert rates["instructed_shown"] >= 0.95
    assert rates["suppressed_instructed_unchanged"] >= 0.9  # 95 % of the 300 that the build measured


def test_organism_language_any_planted_expert_alone_can_be_missed() -> None:
    rates = rates_of("language")
    alone = [rate for key, rate in rates.items() if key.startswith("suppressed_only")]
    assert len(alone) == 4
    assert min(alone) >= 0.8


def test_respond_is_what_the_model_says_without_padding() -> None:
    organism = load("language")
    asked = organism.prompts["heldout"]["sensitive"][:3] + organism.prompts["heldout"]["unrelated"][:2]
    assert respond(organism, asked, batch_size=2) == [respond(organism, [prompt])[0] for prompt in asked]


def test_summarize_organism_says_what_is_in_the_folder() -> None:
    for name in NAMES:
        summary = summarize_organism(name)
        organism = load(name)
        assert summary.family == organism.model.config.model_type
        assert summary.parameters == organism.model.num_parameters()
        assert summary.planted == len(organism.planted)
        assert summary.size == sum(len(entry.read_bytes()) for entry in (SHIPPED / name).iterdir())


def test_summarize_organism_unknown_name_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="language"):
        summarize_organism("sycophancy")


def test_organisms_command_lists_every_organism(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["organisms"])
    assert result.exit_code == 0
    rows = [re.split(r"\s*│\s*", line.strip("│ \n")) for line in result.output.splitlines() if "│" in line]
    listed = {row[0]: row[1:] for row in rows if row[0] in NAMES}
    assert set(listed) == set(NAMES)
    for name, row in listed.items():
        summary = summarize_organism(name)
        assert row == [
            summary.family,
            f"{summary.parameters:,}",
            str(summary.planted),
            f"{summary.size / 1e6:.1f} MB",
            summary.behaviour,
        ]
