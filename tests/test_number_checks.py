"""The checks of numbers and names that all arguments go through."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_mote import ActivationMap, SteeringConfig
from hf_mote.errors import (
    ConfigError,
    DataError,
    FileFormatError,
    UnknownNameError,
    is_finite,
    one_of,
    real,
    whole,
)
from hf_mote.evaluation.coherence import Coherence
from hf_mote.evaluation.selectivity import NonInferiority
from hf_mote.evaluation.side_effects import SideEffects
from hf_mote.files import read_json
from hf_mote.sae.edits import read_edits
from hf_mote.sae.training.trainer import SAETrainingArguments
from hf_mote.statistics.rates import Rate


@pytest.mark.parametrize("value", [2, 3, 5])
def test_whole_returns_what_is_in_range(value: int) -> None:
    assert whole("f.n", value, least=2, most=5) == value
    assert whole("f.n", value) == value


@pytest.mark.parametrize("value", [1, 6, True, 2.0, "3", None, math.nan, np.int64(3)])
def test_whole_refuses_everything_else(value: object) -> None:
    with pytest.raises(ConfigError, match=r"^f\.n: must be a whole number \(got .*, expected 2 to 5\)\.$"):
        whole("f.n", value, least=2, most=5)


def test_whole_says_where_the_range_begins() -> None:
    with pytest.raises(ConfigError, match=r"^f\.n: must be a whole number \(got -1, expected 0 or more\)\.$"):
        whole("f.n", -1)


@pytest.mark.parametrize("value", [1e-9, 0.5, 1, 1.0, np.float64(0.5)])
def test_real_returns_what_is_in_range(value: float) -> None:
    assert real("f.x", value, above=0, most=1) == value


@pytest.mark.parametrize("value", [0, 0.0, -1, 1.0000001, True, "0.5", None, math.nan, math.inf, -math.inf, 1j])
def test_real_refuses_everything_else(value: object) -> None:
    message = r"^f\.x: must be a number \(got .*, expected above 0, at most 1\)\. Leave it\.$"
    with pytest.raises(ConfigError, match=message):
        real("f.x", value, above=0, most=1, fix="Leave it.")


@pytest.mark.parametrize(
    ("limits", "value", "expected"),
    [
        ({"least": 1}, 0.9, "at least 1"),
        ({"above": 1}, 1, "above 1"),
        ({"most": 1}, 1.1, "at most 1"),
        ({"below": 1}, 1, "below 1"),
        ({}, math.inf, "a finite one"),
        ({}, math.nan, "a finite one"),
    ],
)
def test_real_keeps_to_each_limit(limits: dict[str, float], value: float, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"must be a number \(got .*, expected {expected}\)"):
        real("f.x", value, **limits)


def test_one_of_returns_a_known_name_and_says_the_nearest_to_another() -> None:
    assert one_of("f.kind", "layer", ("layer", "usage")) == "layer"
    message = r"^f\.kind: unknown name .*one of layer, usage.* Did you mean 'layer'\?$"
    with pytest.raises(UnknownNameError, match=message):
        one_of("f.kind", "layers", ("layer", "usage"))
    for value in (None, 3, ["layer"]):
        with pytest.raises(UnknownNameError, match="unknown name"):
            one_of("f.kind", value, ("layer", "usage"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, 10**400])
def test_what_no_float_holds_is_no_finite_number(value: object) -> None:
    assert not is_finite(value)
    with pytest.raises(ConfigError):
        real("f.x", value)


def test_whole_numbers_beyond_all_floats_are_refused_wherever_numbers_are_read() -> None:
    huge = 10**400
    grid = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(DataError, match="num_tokens"):
        ActivationMap(grid, grid, (0,), huge)
    with pytest.raises(ConfigError, match="is not finite"):
        read_edits("steer.edits", {1: huge})
    with pytest.raises(DataError):
        SideEffects(huge, 1.0, 1.0, 3)
    with pytest.raises(DataError):
        NonInferiority("answers", 0.5, 0.5, huge, 0.1, 3)
    with pytest.raises(ConfigError, match="must be a finite number"):
        SteeringConfig({1: 1.0}, hookpoint="model.layers.0", strength=huge)
    with pytest.raises(DataError, match="must be a finite limit"):
        Coherence(huge, 1.0, 1, [True], [True], [], Rate.of(1, 1))
    with pytest.raises(ConfigError, match="ce_coefficient"):
        SAETrainingArguments(ce_coefficient=huge)


def test_no_file_holds_a_whole_number_beyond_all_floats(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1' + "0" * 400 + "]}")
    with pytest.raises(FileFormatError, match=r"a\[0\]: must be a finite number .* beyond all floats"):
        read_json(path)
