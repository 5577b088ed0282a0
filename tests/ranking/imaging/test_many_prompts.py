"""Thousands of prompts: maps in a file, rankings in blocks of experts; the same results."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mote import FTRIResult, ftri, load_organism
from hf_mote.errors import FileFormatError
from hf_mote.maps.storage import empty_maps


def many(prompts: int = 2400) -> FTRIResult:
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((prompts, 3, 16), 2.0), generator=generator)
    counts[: prompts // 3, 1, 5] += 1
    return FTRIResult(
        prompts=[f"question {number}" for number in range(prompts)],
        responses=[""] * prompts,
        classes=["refusal"] * (prompts // 3) + ["answer"] * (prompts - prompts // 3),
        counts=counts,
        weights=counts / 2,
        num_tokens=torch.full((prompts,), 40.0),
        layers=(0, 1, 2),
        scope="prompt",
        fingerprint=None,
    )


def test_rank_many_prompts_goes_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    result = many()
    ranking = result.rank("refusal", score="log_odds")
    assert ranking.provenance["p_values"] == "of moments"
    assert ranking.top(1) == [(1, 5)]
    monkeypatch.setattr("hf_mote.ranking.imaging.result.MANY", 10**6)
    whole = result.rank("refusal", score="log_odds", permutations=999)
    assert torch.equal(ranking.score, whole.score)
    assert float(ranking.q[1, 5]) < 1e-6
    assert float(whole.q[1, 5]) < 0.1


def test_stability_in_blocks_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    result = many(300)
    whole = result.stability("refusal", 3, resamples=20)
    monkeypatch.setattr("hf_mote.statistics.stability.VALUES_PER_BLOCK", 7 * 300)
    parts = result.stability("refusal", 3, resamples=20)
    assert np.array_equal(whole.frequency, parts.frequency)
    assert whole.overlap == parts.overlap


def test_ftri_maps_in_a_file_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    organism = load_organism("refusal")
    prompts = organism.prompts["train"]["sensitive"][:4] + organism.prompts["train"]["neutral"][:4]

    def run(folder: Path | None) -> FTRIResult:
        return ftri(
            organism.model,
            organism.tokenizer,
            prompts,
            organism.judge,
            max_new_tokens=4,
            batch_size=3,
            run_folder=folder,
            progress=False,
        )

    held = run(None)
    monkeypatch.setattr("hf_mote.maps.storage.HELD", 0)
    filed = run(tmp_path / "run")
    assert torch.equal(held.counts, filed.counts)
    assert torch.equal(held.weights, filed.weights)
    assert held.responses == filed.responses
    assert not [name for name in os.listdir(tmp_path / "run") if name.startswith(".maps-")]
    filed.save_pretrained(tmp_path / "result")
    again = FTRIResult.from_pretrained(tmp_path / "result")
    assert torch.equal(held.counts, again.counts)
    assert again.classes == held.classes


def test_empty_maps_full_disk_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hf_mote.maps.storage.HELD", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FileFormatError, match=r"no room for the maps.*No space left.*TMPDIR"):
        empty_maps((4, 2, 3), tmp_path)
    assert not list(tmp_path.iterdir())


def test_maps_of_classes_are_means_of_their_prompts() -> None:
    result = many(60)
    expected = result.counts[:20].double().mean(0)
    torch.testing.assert_close(result.maps["refusal"].counts, expected)
    assert result.maps["refusal"].num_tokens == 40.0
