import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_mote.errors import ConfigError, DataError, FileFormatError, UnknownNameError
from hf_mote.files import read_tensors, write_tensors
from hf_mote.ranking.expert_ranking import ExpertRanking, RankedExpert
from hf_mote.statistics.contrast import contrast

FINGERPRINT = {
    "model_type": "mixtral",
    "layers": [2, 5],
    "num_experts": [3, 3],
    "top_k": [2, 2],
    "router_sha256": "0" * 64,
}


def make(score=((0.5, 0.9, 0.0), (0.9, -0.3, 0.1)), layers=(2, 5), **fields):
    score = score if isinstance(score, torch.Tensor) else torch.tensor(score, dtype=torch.float64)
    return ExpertRanking(**{"score": score, "layers": layers, "method": "ftri", "target": "refusal"} | fields)


def test_ranking_top_is_descending_with_ties_by_layer_and_expert():
    assert make().top(6) == [(2, 1), (5, 0), (2, 0), (5, 2), (2, 2), (5, 1)]


def test_ranking_of_layers_with_fewer_experts_leaves_out_those_they_do_not_have():
    uneven = {**FINGERPRINT, "num_experts": [3, 2]}
    score = torch.tensor([[-1.0, 0.5, -3.0], [-2.0, -0.5, 0.0]], dtype=torch.float64)
    ranking = make(score=score, fingerprint=uneven)
    assert len(ranking) == 5
    assert ranking.top(5) == [(2, 1), (5, 1), (2, 0), (5, 0), (2, 2)]
    assert [(row.layer, row.expert) for row in ranking.rows(2)] == [(2, 1), (5, 1)]
    assert ranking.rank_of(2, 2) == 5
    with pytest.raises(UnknownNameError, match="expert 2 at layer 5 does not exist"):
        ranking.rank_of(5, 2)
    with pytest.raises(ConfigError, match=r"0\.\.5"):
        ranking.top(6)


@given(st.lists(st.integers(-3, 3), min_size=6, max_size=6))
def test_ranking_rank_of_is_the_place_in_top(scores):
    ranking = make(np.array(scores).reshape(2, 3))
    assert [ranking.rank_of(*pair) for pair in ranking.top(len(ranking))] == [1, 2, 3, 4, 5, 6]
    ordered = [row.score for row in ranking.rows(6)]
    assert ordered == sorted(ordered, reverse=True)


def test_ranking_rows_hold_what_is_known():
    assert make().rows(1) == [RankedExpert(2, 1, 0.9, None, None, None, None)]
    grid = torch.arange(6, dtype=torch.float64).reshape(2, 3) / 6
    full = make(low=grid - 1, high=grid + 1, p=grid, q=grid, confidence=0.9, method="by hand")
    assert full.rows(2)[1] == RankedExpert(5, 0, 0.9, 0.5 - 1, 0.5 + 1, 0.5, 0.5)


def test_ranking_from_contrast_carries_its_statistics():
    values = np.random.default_rng(0).poisson(2.0, (20, 2, 3)).astype(float)
    values[:10, 1, 2] += 5
    found = contrast(values, np.arange(20) < 10, resamples=99)
    ranking = ExpertRanking.from_contrast(found, [2, 5], method="ftri", target="refusal", fingerprint=FINGERPRINT)
    best = ranking.rows(1)[0]
    assert (best.layer, best.expert) == (5, 2)
    assert (best.low, best.score, best.high) == (found.low[1, 2], found.score[1, 2], found.high[1, 2])
    assert (best.p, best.q, ranking.confidence) == (found.p[1, 2], found.q[1, 2], 0.95)


def test_ranking_from_contrast_without_resampling_has_scores_alone():
    found = contrast(np.eye(4).reshape(4, 2, 2), np.array([True, True, False, False]), resamples=0)
    ranking = ExpertRanking.from_contrast(found, [0, 1], method="ftri", target="refusal")
    assert ranking.rows(1)[0][3:] == (None, None, None, None)


def test_ranking_matrix_is_a_copy():
    ranking = make()
    ranking.matrix().zero_()
    assert ranking.top(1) == [(2, 1)]


def test_ranking_to_config_suppresses_the_best_and_carries_the_fingerprint():
    config = make(fingerprint=FINGERPRINT, provenance={"seed": 3}).to_config(suppress=3, suppress_mode="zero")
    assert config.suppress == [[2, 0], [2, 1], [5, 0]]
    assert (config.stimulate, config.suppress_mode, config.fingerprint) == ([], "zero", FINGERPRINT)
    assert config.provenance == {"method": "ftri", "target": "refusal", "seed": 3}


def test_ranking_to_config_stimulates_the_best():
    config = make().to_config(stimulate=1, stimulate_weight="max")
    assert (config.suppress, config.stimulate, config.stimulate_weight) == ([], [[2, 1]], "max")


def test_ranking_to_config_multiplies_the_best():
    config = make().to_config(multiply=2, by=2.5, strength=0.5)
    assert (config.suppress, config.stimulate, config.strength) == ([], [], 0.5)
    assert config.gain == [[*pair, 2.5] for pair in sorted(map(list, make().top(2)))]
    for wrong in ({"multiply": 2}, {"by": 2.0}, {"suppress": 1, "by": 2.0}):
        with pytest.raises(ConfigError, match="multiply and by go together"):
            make().to_config(**wrong)
    with pytest.raises(ConfigError, match="cannot be given beside them"):
        make().to_config(multiply=2, by=2.0, gain=[[0, 0, 1.0]])


@pytest.mark.parametrize("choice", [{}, {"suppress": 1, "stimulate": 1}, {"suppress": 1, "multiply": 1, "by": 2.0}])
def test_ranking_to_config_needs_exactly_one_of_two(choice):
    with pytest.raises(ConfigError, match="exactly one"):
        make().to_config(**choice)


@pytest.mark.parametrize("n", [-1, 7])
def test_ranking_to_config_of_more_than_all_is_refused(n):
    with pytest.raises(ConfigError, match=r"expected 0\.\.6"):
        make().to_config(suppress=n)


def test_ranking_to_config_beyond_positive_scores_warns_and_its_remedy_is_silent():
    with pytest.warns(UserWarning, match="Ask for at most 4"):
        make().to_config(suppress=5)
    assert len(make().to_config(suppress=4).suppress) == 4


@pytest.mark.parametrize(("layer", "expert"), [(3, 0), (2, 3), (2, -1)])
def test_ranking_rank_of_unknown_expert_is_refused(layer, expert):
    with pytest.raises(UnknownNameError):
        make().rank_of(layer, expert)


GRID = torch.full((2, 3), 0.5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"score": GRID.float()}, "score: wrong dtype"),
        ({"score": GRID * math.nan}, "score: not finite"),
        ({"p": GRID[:, :2]}, "another shape"),
        ({"p": GRID * 4}, "must be a probability"),
        ({"p": GRID.abs()}, "both of p and q, or neither"),
        ({"q": GRID.abs()}, "both of p and q, or neither"),
        ({"p": GRID.abs(), "q": GRID.abs() - 1e-6}, "q: .*is below p"),
        ({"fingerprint": {**FINGERPRINT, "layers": [2, 4]}}, "layers: are not those of the fingerprint"),
        ({"fingerprint": {**FINGERPRINT, "num_experts": [2, 2]}}, "experts that the fingerprint does not have"),
        ({"low": GRID}, "two ends"),
        ({"low": GRID, "high": GRID}, "goes with"),
        ({"confidence": 0.9}, "goes with"),
        ({"layers": (5, 2)}, "ascending"),
    ],
)
def test_ranking_malformed_is_refused_by_field(fields, word):
    with pytest.raises(DataError, match=word):
        make(**fields)


def test_ranking_saved_and_loaded_is_the_same(tmp_path):
    nothing = torch.full_like(GRID, math.nan)
    saved = make(
        low=nothing, high=nothing, p=GRID, q=GRID * 2, confidence=0.95, fingerprint=FINGERPRINT, method="by hand",
        provenance={"seed": 1, "x": 0.5},
    )  # fmt: skip
    saved.save_pretrained(tmp_path)
    loaded = ExpertRanking.from_pretrained(tmp_path)
    assert torch.equal(loaded.score, saved.score)
    assert bool(loaded.low.isnan().all())
    assert torch.equal(loaded.p, GRID)
    assert torch.equal(loaded.q, GRID * 2)
    for name in ("layers", "method", "target", "confidence", "fingerprint", "provenance"):
        assert getattr(loaded, name) == getattr(saved, name)
    card = (tmp_path / "README.md").read_text()
    assert "| 2 | 1 | 0.9 |" in card
    assert "hypothesis" in card


@pytest.mark.parametrize("missing", ["score", "method"])
def test_ranking_file_without_an_entry_is_refused(missing, tmp_path):
    make().save_pretrained(tmp_path)
    path = tmp_path / "expert_ranking.safetensors"
    tensors, metadata = read_tensors(path, kind="expert_ranking")
    tensors.pop(missing, None)
    metadata.pop(missing, None)
    write_tensors(path, tensors, metadata)
    with pytest.raises(FileFormatError, match=missing):
        ExpertRanking.from_pretrained(tmp_path)


def test_ranking_repr_is_short():
    assert repr(make()).startswith("ExpertRanking by ftri for 'refusal': 2 layers x 3 experts\n")


@pytest.mark.parametrize("provenance", [[], ["xy"], "", [["a", "b"]]])
def test_ranking_provenance_must_be_a_dict(provenance):
    with pytest.raises(DataError, match="ExpertRanking.provenance: must be a dict"):
        dataclasses.replace(make(), provenance=provenance)
