"""The table of public SAEs: names lead to files, and one SAE of every release loads and knows where it belongs."""

from __future__ import annotations

import os
from pathlib import Path

import listed_saes
import make_releases
import pytest

from hf_mote import list_saes, load_sae
from hf_mote.errors import ConfigError, FileFormatError, UnknownNameError, UnsupportedError
from hf_mote.sae.convert import releases

REFUSED = ("temporal",)
ENTRIES = {name: releases.entries(name)[0] for name in releases.releases()}


def test_table_says_where_it_is_from() -> None:
    source, date = releases.provenance()
    assert source.startswith("sae-lens ")
    assert date >= "2026-11-28"
    assert sum(len(releases.entries(name)) for name in releases.releases()) == 13_857


@pytest.mark.oracle
def test_table_is_that_of_the_list_inside_of_saelens() -> None:
    folder = os.environ.get("HF_MOTE_ORACLES")
    if not folder:
        pytest.skip("needs the real libraries")
    path, source = make_releases.list_in(Path(folder))
    assert releases.provenance().source == source
    assert make_releases.table(path, "", "")["releases"] == releases._table()["releases"]


@pytest.mark.parametrize("release", [name for name, entry in ENTRIES.items() if entry.loader not in REFUSED])
def test_load_sae_first_of_every_release_knows_where_it_belongs(release: str, tmp_path: Path) -> None:
    config = listed_saes.load(ENTRIES[release], tmp_path).config
    assert config.base_model is not None
    assert config.hookpoint is not None
    assert config.layer is not None or config.hookpoint == "model.embed_tokens"
    assert config.origin["source"]["release"] == release


@pytest.mark.parametrize("release", [name for name, entry in ENTRIES.items() if entry.loader in REFUSED])
def test_load_sae_release_of_another_kind_is_refused_with_what_is_missing(release: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="depend on the tokens before, and no architecture here"):
        listed_saes.load(ENTRIES[release], tmp_path)


@pytest.mark.parametrize("release", ["gpt2-small-res-jb", "gpt2-small-mlp-tm"])
def test_load_sae_of_a_centred_model_takes_activations_that_are_not(release: str, tmp_path: Path) -> None:
    assert listed_saes.load(ENTRIES[release], tmp_path).config.input_normalization == "center"


def test_list_saes_names_releases_and_their_ids() -> None:
    assert "gpt2-small-res-jb" in list_saes()
    assert list_saes("gpt2-small-res-jb")[8] == "blocks.8.hook_resid_pre"


def test_find_takes_release_and_id_or_an_id_of_neuronpedia() -> None:
    by_release = releases.find("gemma-scope-2b-pt-res-canonical", "layer_20/width_16k/canonical")
    assert by_release is not None
    assert (by_release.repo_id, by_release.path) == (
        "google/gemma-scope-2b-pt-res",
        "layer_20/width_16k/average_l0_71",
    )
    assert releases.find("gemma-2-2b/20-gemmascope-res-16k", None) == by_release
    assert releases.find("somebody/saes", None) is None


def test_of_path_knows_a_file_by_where_it_is() -> None:
    known = releases.of_path("tommmcgrath/gpt2-small-mlp-out-saes", "sae_group_gpt2_blocks.0.hook_mlp_out_24576:v1")
    assert known is not None
    assert known.norm_scaling_factor == 1.049317316132615
    assert releases.of_path("somebody/saes", "a") is None


def test_load_sae_release_without_an_id_lists_them() -> None:
    with pytest.raises(FileFormatError, match="several SAEs .got blocks.0.hook_resid_pre.* and 1 more.*by sae_id"):
        load_sae("gpt2-small-res-jb")


def test_load_sae_unknown_id_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="gpt2-small-res-jb: sae_id.*blocks.8.hook_resid_pre"):
        load_sae("gpt2-small-res-jb", sae_id="blocks.8.hook_resid_prr")
    with pytest.raises(UnknownNameError, match="release.*gpt2-small-res-jb"):
        load_sae("gpt2-small-res-jbb", sae_id="blocks.8.hook_resid_pre")


def test_load_sae_release_and_subfolder_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="said by the release already"):
        load_sae("gpt2-small-res-jb", sae_id="blocks.8.hook_resid_pre", subfolder="a")
