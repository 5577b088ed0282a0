"""Which configs are measured: of experts, of latents, of a server."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hf_mote import MoTEConfig, SteeringConfig, load_organism
from hf_mote.commands.bundles.loading import Serving
from hf_mote.commands.evaluation.configs import (
    config_and_prompts,
    fitted,
    of_experts,
    read_changes,
    read_config,
    stimulated,
)
from hf_mote.errors import ConfigError, FileFormatError, ModelMismatchError, UnknownNameError
from hf_mote.organisms.organism import Organism
from hf_mote.routing.sites.routed_model import RoutedModel

SERVED = Serving("http://127.0.0.1:9", "ban")


@pytest.fixture(scope="module")
def organism() -> Organism:
    return load_organism("refusal")


@pytest.fixture
def config(organism: Organism) -> MoTEConfig:
    return MoTEConfig.for_model(organism.model, suppress=organism.planted)


def test_config_and_prompts_with_a_profile_are_one_argument_less() -> None:
    assert config_and_prompts("CONFIG", "PROMPTS", Serving()) == ("CONFIG", "PROMPTS")
    assert config_and_prompts("PROMPTS", None, SERVED) == ("ban", "PROMPTS")
    with pytest.raises(ConfigError, match="replaces CONFIG"):
        config_and_prompts("CONFIG", "PROMPTS", SERVED)
    with pytest.raises(ConfigError, match="PROMPTS: is missing"):
        config_and_prompts("CONFIG", None, Serving())
    with pytest.raises(ConfigError, match="names a profile of a server"):
        config_and_prompts("PROMPTS", None, Serving(profile="ban"))


def test_read_config_takes_a_folder_or_a_file_and_says_what_is_wrong_with_it(
    config: MoTEConfig, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path / "experts")
    assert read_config(str(tmp_path / "experts")) == config
    assert read_config(str(tmp_path / "experts" / config.file_name)) == config
    (tmp_path / "experts" / config.file_name).write_text("{")
    with pytest.raises(FileFormatError, match=config.file_name):
        read_config(str(tmp_path / "experts"))
    SteeringConfig({0: "ablate"}, hookpoint="model.layers.0.output").save_pretrained(tmp_path / "latents")
    with pytest.raises(ConfigError, match="does not say where its SAE is"):
        read_config(str(tmp_path / "latents"))


def test_read_changes_takes_a_profile_of_the_server(config: MoTEConfig, tmp_path: Path) -> None:
    engine: Any = SimpleNamespace(profiles={"ban": config})
    config.save_pretrained(tmp_path)
    nothing: dict[str, Any] = {"sae": None, "engine": engine}
    assert read_changes("ban", None, profile="ban", **nothing) == [config]
    assert read_changes("ban", str(tmp_path), profile="ban", **nothing) == [config, config]
    assert read_changes(str(tmp_path), None, profile=None, **nothing) == [config]
    with pytest.raises(UnknownNameError, match=r"--profile.*ban"):
        read_changes("bann", None, profile="bann", **nothing)


def test_read_changes_of_experts_alone_refuse_an_sae(config: MoTEConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="--sae: belongs to a steering config"):
        read_changes(str(tmp_path), str(tmp_path), sae="some/sae", engine=None, profile=None)


def test_fitted_holds_each_config_against_the_model(organism: Organism, config: MoTEConfig) -> None:
    routed = RoutedModel(organism.model)
    assert fitted([config, config], routed, allow_other_weights=False) == [config, config]
    other = dataclasses.replace(config, fingerprint={**config.fingerprint, "router_sha256": "0" * 64})
    with pytest.raises(ModelMismatchError, match="other router weights"):
        fitted([config, other], routed, allow_other_weights=False)
    plain, allowed = of_experts(fitted([config, other], routed, allow_other_weights=True))
    assert plain.on_other_weights is None
    assert allowed.on_other_weights is not None


def test_stimulated_turns_experts_and_refuses_latents(organism: Organism, config: MoTEConfig) -> None:
    routed = RoutedModel(organism.model)
    turned = stimulated(config, routed)
    assert (turned.suppress, turned.stimulate_weight) == ([], "max")
    assert turned.stimulate == config.suppress
    with pytest.raises(ConfigError, match="--opposite: stimulates experts"):
        stimulated(object(), routed)  # type: ignore[arg-type]
