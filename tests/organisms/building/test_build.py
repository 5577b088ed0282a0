"""The build: a trial run goes from nothing to a folder that loads, and planting touches what it may."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from hf_mote.errors import ConfigError, HFMoTEError, UnknownNameError, UnsupportedError
from hf_mote.organisms import load_organism
from hf_mote.organisms.building import measure
from hf_mote.organisms.building.build import build_organism, main
from hf_mote.organisms.building.planting import check_rest_unchanged, choose_planted
from hf_mote.organisms.recipes import RECIPES


@pytest.mark.parametrize(("name", "shown"), [(name, recipe.shown) for name, recipe in RECIPES.items()])
def test_build_organism_trial_run_writes_a_folder_that_loads(
    name: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "MAX_NEW_TOKENS", 2)  # it has learnt nothing to say, nor to stop
    console = Console(file=io.StringIO())
    try:
        folder = build_organism(name, tmp_path / "trial", seed=3, steps=2, console=console, num_measured=2)
    except UnsupportedError as error:
        pytest.skip(str(error))
    organism = load_organism(str(folder))
    assert organism.facts["seed"] == 3
    assert 0.0 <= organism.facts["measured"][f"sensitive_{shown}"] <= 1.0
    assert organism.planted == choose_planted(organism.model, RECIPES[name].num_planted, seed=3)
    with torch.no_grad():
        assert organism.model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def test_build_organism_unknown_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="refusal"):
        build_organism("sycophancy", tmp_path)


@pytest.mark.parametrize(("name", "layers"), [("refusal", {2, 3, 4}), ("language", {1, 2, 3})])
def test_choose_planted_spares_the_first_moe_layer_and_never_repeats(name: str, layers: set[int]) -> None:
    model = RECIPES[name].make_model(300, seed=0)
    for seed in range(20):
        planted = choose_planted(model, 4, seed=seed)
        assert len(set(planted)) == 4
        assert {layer for layer, _ in planted} == layers


def test_choose_planted_none_wanted_gives_none() -> None:
    assert choose_planted(RECIPES["diffuse-refusal"].make_model(300, seed=0), 0, seed=0) == []


def test_build_organism_without_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        build_organism("refusal", tmp_path, steps=0)


def test_main_unknown_name_is_said_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sycophancy"])
    assert "one of diffuse-refusal, language, refusal" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["refusal", "language"])
def test_plant_that_changes_the_rest_is_caught(name: str) -> None:
    model = RECIPES[name].make_model(300, seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.model.layers[3].mlp.experts.down_proj[5, 0, 0] += 1
    check_rest_unchanged(model, before, [(3, 5)])
    with pytest.raises(HFMoTEError, match=r"layers\.3\.mlp\.experts\.down_proj"):
        check_rest_unchanged(model, before, [(3, 6)])
