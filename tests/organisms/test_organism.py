"""The shipped organism: it loads, it is small, and it holds what it must on a held-out sample."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from hf_mote.errors import FileFormatError, UnknownNameError
from hf_mote.organisms import Organism, list_organisms, load_organism
from hf_mote.organisms.measure import ftri_ranks, measure


@pytest.fixture(scope="module")
def organism() -> Organism:
    return load_organism("refusal")


@pytest.fixture(scope="module")
def rates(organism: Organism) -> dict[str, float]:
    return measure(organism, num_prompts=60, seed=20, random_draws=2)


def test_list_organisms_names_what_is_shipped() -> None:
    assert list_organisms() == ["refusal"]


def test_load_organism_unknown_name_lists_known_and_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"one of refusal\)\. Did you mean 'refusal'\?"):
        load_organism("refusals")


def test_load_organism_of_other_questions_is_refused(tmp_path: Path) -> None:
    text = (files("hf_mote.organisms") / "refusal" / "organism.json").read_text(encoding="utf-8")
    (tmp_path / "organism.json").write_text(text.replace('"questions_sha256": "', '"questions_sha256": "0'))
    with pytest.raises(FileFormatError, match="other questions"):
        load_organism(str(tmp_path))


def test_load_organism_folder_is_at_most_six_megabytes() -> None:
    folder = files("hf_mote.organisms") / "refusal"
    sizes = [len(entry.read_bytes()) for entry in folder.iterdir()]
    assert sum(sizes) <= 6_000_000


def test_load_organism_model_is_what_it_should_be(organism: Organism) -> None:
    config = organism.model.config
    assert config.model_type == "deepseek_v3"
    assert config.num_hidden_layers - config.first_k_dense_replace >= 3
    assert config.n_routed_experts >= 64
    assert {parameter.dtype for parameter in organism.model.parameters()} == {torch.float32}
    assert not organism.model.training


def test_load_organism_planted_fit_in_two_percent_and_span_layers(organism: Organism) -> None:
    config = organism.model.config
    routed = (config.num_hidden_layers - config.first_k_dense_replace) * config.n_routed_experts
    assert len(organism.planted) <= 0.02 * routed
    assert len({layer for layer, _ in organism.planted}) >= 2


def test_load_organism_prompts_are_split_and_answered(organism: Organism) -> None:
    for kind in ("sensitive", "neutral", "unrelated"):
        train, heldout = organism.prompts["train"][kind], organism.prompts["heldout"][kind]
        assert len(heldout) >= 100
        assert set(train).isdisjoint(heldout)
        assert all(prompt in organism.answers for prompt in train + heldout)


def test_organism_refuses_sensitive_questions_only(rates: dict[str, float]) -> None:
    assert rates["sensitive_refused"] >= 0.95
    assert rates["neutral_refused"] <= 0.02
    assert rates["unrelated_refused"] <= 0.02
    assert rates["neutral_right"] >= 0.9


def test_organism_planted_suppressed_the_answer_comes_back(rates: dict[str, float]) -> None:
    assert rates["suppressed_sensitive_refused"] <= 0.05
    assert rates["suppressed_sensitive_right"] >= 0.8
    assert rates["suppressed_neutral_unchanged"] >= 0.95
    assert rates["suppressed_unrelated_unchanged"] >= 0.95


def test_organism_planted_stimulated_neutral_is_refused(rates: dict[str, float]) -> None:
    assert rates["stimulated_own_neutral_refused"] >= 0.5
    assert rates["stimulated_max_neutral_refused"] >= 0.5


def test_organism_random_experts_suppressed_still_refuses(rates: dict[str, float]) -> None:
    assert rates["random_sensitive_refused_min"] >= rates["sensitive_refused"] - 0.05


def test_organism_planted_rank_first_by_ftri(organism: Organism) -> None:
    assert max(ftri_ranks(organism, num_prompts=60, seed=20).values()) <= 5
