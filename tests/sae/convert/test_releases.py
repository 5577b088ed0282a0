"""Every public release's layout, synthesised: found out, named, and what SAELens' own reader of it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from release_files import RELEASES
from tiny_saes import HIDDEN, activations

from hf_mote import SAEModel, load_sae


@pytest.fixture
def repository(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """A release and the root of its repository, in a folder that is named as on the Hub."""
    made = RELEASES[request.param](tmp_path / "made") if (tmp_path / "made").mkdir() is None else None
    assert made is not None
    root = tmp_path / made.repo_id
    root.parent.mkdir(parents=True)
    (tmp_path / "made").rename(root)
    return made, root


@pytest.mark.parametrize("repository", RELEASES, indirect=True)
def test_load_sae_release_is_found_out_and_says_what_it_is_of(repository: Any, tmp_path: Path) -> None:
    release, root = repository
    sae = load_sae(root, **release.place, **release.given)
    assert sae.config.origin["format"] == release.format
    assert (sae.config.base_model, sae.config.hookpoint) == (release.base_model, release.hookpoint)
    assert sae.config.output_hookpoint == release.output_hookpoint
    assert sae.config.layer is not None
    assert sae.dtype == torch.float32
    inputs = activations(20, HIDDEN)
    named = load_sae(root, release.format, **release.place, **release.given)
    assert torch.equal(named.encode(inputs), sae.encode(inputs))
    # And as a model of our own, with everything that it takes to encode.
    sae.save_pretrained(tmp_path / "ours")
    assert torch.equal(SAEModel.from_pretrained(tmp_path / "ours").encode(inputs), sae.encode(inputs))


@pytest.mark.oracle
@pytest.mark.parametrize("repository", [n for n in RELEASES if n != "dictionary_learning_misspelt"], indirect=True)
def test_load_sae_release_is_what_saelens_reads(oracle: Any, repository: Any) -> None:
    release, root = repository
    inputs = activations(50, HIDDEN, seed=11) + 0.5
    theirs = oracle.use(
        "release",
        root,
        inputs,
        reader=release.reader,
        repo_id=release.repo_id,
        folder_name=release.folder_name,
        **release.overrides,
    )
    theirs.assert_is_what(load_sae(root, **release.place, **release.given), inputs)


@pytest.mark.oracle
@pytest.mark.parametrize("repository", ["dictionary_learning_misspelt"], indirect=True)
def test_load_sae_class_by_its_old_spelling_is_what_it_is_by_its_new_one(oracle: Any, repository: Any) -> None:
    release, root = repository
    folder = root / release.place["subfolder"]
    sae = load_sae(folder)
    assert type(sae).__name__ == "MatryoshkaSAEModel"
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace("Matroyshka", "Matryoshka"))
    inputs = activations(50, HIDDEN, seed=11)
    oracle.use("dictionary_learning", folder, inputs).assert_is_what(sae, inputs)
