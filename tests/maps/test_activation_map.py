import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_mote.errors import ConfigError, DataError, FileFormatError, ModelMismatchError, UnknownNameError
from hf_mote.files import write_tensors
from hf_mote.maps.activation_map import ActivationMap

LAYERS = (1, 3)
EXPERTS = 4

grids = st.lists(st.integers(0, 10**9), min_size=8, max_size=8).map(
    lambda numbers: torch.tensor(numbers, dtype=torch.float64).reshape(2, EXPERTS)
)
maps = st.builds(
    lambda counts, weights, tokens: ActivationMap(counts, weights / 8, LAYERS, tokens, {"model": "m"}),
    grids,
    grids,
    st.integers(1, 10**6),
)


def make(counts, **fields):
    counts = torch.tensor(counts, dtype=torch.float64)
    layers = tuple(range(len(counts)))
    return ActivationMap(**{"counts": counts, "weights": counts / 2, "layers": layers, "num_tokens": 4} | fields)


def assert_same(first, second):
    assert torch.equal(first.counts, second.counts)
    assert torch.equal(first.weights, second.weights)
    assert (first.layers, first.num_tokens) == (second.layers, second.num_tokens)


@given(maps, maps)
def test_activation_map_arithmetic_of_counts_is_exact(first, second):
    assert_same(first + second - second, first)
    assert_same(first + second, second + first)
    assert_same(first - second, -(second - first))
    assert_same(2 * first, first + first)
    assert_same((first * 4) / 4, first)
    assert_same(ActivationMap.mean([first, first]), first)


@given(maps, maps)
def test_activation_map_mean_is_the_mean_of_every_field(first, second):
    mean = ActivationMap.mean(iter([first, second]))
    assert torch.equal(mean.counts, (first.counts + second.counts) / 2)
    assert torch.equal(mean.weights, (first.weights + second.weights) / 2)
    assert mean.num_tokens == (first.num_tokens + second.num_tokens) / 2


def test_activation_map_arithmetic_leaves_its_operands_alone():
    first, second = make([[1, 2]]), make([[3, 4]])
    _ = first + second, first - second, -first, first / 2, first.per_token()
    assert first.counts.tolist() == [[1, 2]]
    assert second.counts.tolist() == [[3, 4]]


def test_activation_map_arithmetic_keeps_the_provenance_both_share():
    first = make([[1, 2]], provenance={"model": "m", "prompt": 1})
    second = make([[1, 2]], provenance={"model": "m", "prompt": 2})
    assert (first - second).provenance == {"model": "m"}
    assert (first / 3).provenance == first.provenance


@pytest.mark.parametrize(
    ("other", "shape"), [(make([[1, 2], [3, 4]]), "(2, 2)"), (make([[1, 2, 3]]), "(1, 3)"), (make([[1, 2]]), "(1, 2)")]
)
def test_activation_map_combined_with_other_experts_names_both_shapes(other, shape):
    with pytest.raises(ModelMismatchError) as error:
        make([[1, 2]], layers=(5,)) + other
    assert shape in str(error.value)
    assert "(1, 2) on layers 5" in str(error.value)


@pytest.mark.parametrize("other", [1, "a", None])
def test_activation_map_plus_something_else_is_a_type_error(other):
    with pytest.raises(TypeError):
        make([[1, 2]]) + other
    with pytest.raises(TypeError):
        make([[1, 2]]) - other
    with pytest.raises(TypeError):
        make([[1, 2]]) * "a"
    with pytest.raises(TypeError):
        make([[1, 2]]) / "a"


def test_activation_map_per_token_divides_by_the_tokens():
    assert make([[1, 2]], num_tokens=8).per_token().counts.tolist() == [[0.125, 0.25]]
    assert make([[1, 2]], num_tokens=8).per_token().num_tokens == 1


def test_activation_map_per_token_of_no_tokens_says_so():
    with pytest.raises(DataError, match="no tokens to divide by"):
        (make([[1, 2]]) - make([[2, 1]])).per_token()


def test_activation_map_divided_by_zero_is_refused():
    with pytest.raises(DataError, match="division by zero"):
        make([[1, 2]]) / 0


def test_activation_map_mean_of_none_is_refused():
    with pytest.raises(DataError, match="nothing to average"):
        ActivationMap.mean([])


def test_activation_map_top_breaks_ties_by_layer_and_expert():
    found = make([[1, 7, 7], [7, 0, 9]], layers=(2, 6))
    assert found.top(4) == [(6, 1 + 1), (2, 1), (2, 2), (6, 0)]
    assert found.top(0) == []
    assert len(found.top(6)) == 6


def test_activation_map_top_takes_any_whole_number():
    assert make([[1, 7], [8, 0]]).top(np.int64(2)) == [(1, 0), (0, 1)]


def test_activation_map_top_by_weight_ranks_weights():
    found = make([[1, 2]], weights=torch.tensor([[0.9, 0.1]], dtype=torch.float64))
    assert (found.top(1), found.top(1, "weight")) == ([(0, 1)], [(0, 0)])
    assert found.at(0, 1, "weight") == pytest.approx(0.1)


@pytest.mark.parametrize("n", [-1, 3, 1.0, True])
def test_activation_map_top_out_of_range_is_refused(n):
    with pytest.raises(ConfigError, match=r"expected 0\.\.2"):
        make([[1, 2]]).top(n)


@pytest.mark.parametrize(("layer", "expert", "word"), [(0, 0, "one of 5"), (5, 2, r"0\.\.1"), (5, -1, r"0\.\.1")])
def test_activation_map_at_unknown_expert_says_what_there_is(layer, expert, word):
    with pytest.raises(UnknownNameError, match=word):
        make([[1, 2]], layers=(5,)).at(layer, expert)


def test_activation_map_unknown_value_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'count'"):
        make([[1, 2]]).value("counts")


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"weights": torch.ones(1, 2)}, "weights: wrong dtype"),
        ({"weights": torch.ones(1, 3, dtype=torch.float64)}, "differ in shape"),
        ({"weights": torch.ones(2, 2, dtype=torch.float64)}, "weights: wrong shape"),
        ({"weights": [[1.0, 2.0]]}, "weights: must be a tensor"),
        ({"weights": torch.tensor([[1.0, float("nan")]], dtype=torch.float64)}, "nan in row 0, expert 1"),
        ({"layers": ()}, "layers"),
        ({"layers": (-1,)}, "layers"),
        ({"layers": (0, 1)}, "wrong shape"),
        ({"num_tokens": float("inf")}, "num_tokens"),
        ({"num_tokens": "4"}, "num_tokens"),
    ],
)
def test_activation_map_malformed_is_refused_by_field(fields, word):
    with pytest.raises(DataError, match=word):
        make([[1, 2]], **fields)


@pytest.mark.parametrize("layers", [(2, 1), (1, 1), (0.0, 1)])
def test_activation_map_layers_out_of_order_are_refused(layers):
    with pytest.raises(DataError, match="ascending"):
        make([[1], [2]], layers=layers)


@given(found=maps)
def test_activation_map_saved_and_loaded_is_the_same(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("map")
    found.save_pretrained(folder)
    loaded = ActivationMap.from_pretrained(folder)
    assert_same(loaded, found)
    assert loaded.provenance == found.provenance
    assert (folder / "activation_map.safetensors").is_file()


@pytest.mark.parametrize("missing", ["counts", "layers", "num_tokens"])
def test_activation_map_file_without_an_entry_is_refused(missing, tmp_path):
    tensors = {"counts": torch.ones(1, 2).double(), "weights": torch.ones(1, 2).double(), "layers": torch.tensor([3])}
    metadata = {"kind": "activation_map", "num_tokens": 2.0, "provenance": {}}
    tensors.pop(missing, None)
    metadata.pop(missing, None)
    write_tensors(tmp_path / "activation_map.safetensors", tensors, metadata)
    with pytest.raises(FileFormatError, match=missing):
        ActivationMap.from_pretrained(tmp_path)


def test_activation_map_edited_file_is_refused_with_its_path(tmp_path):
    tensors = {"counts": torch.ones(1, 2), "weights": torch.ones(1, 2), "layers": torch.tensor([3])}
    path = tmp_path / "activation_map.safetensors"
    write_tensors(path, tensors, {"kind": "activation_map", "num_tokens": 2.0, "provenance": {}})
    with pytest.raises(FileFormatError, match="float64") as error:
        ActivationMap.from_pretrained(tmp_path)
    assert str(path) in str(error.value)


def test_activation_map_repr_is_short():
    assert repr(make([[1, 2]])) == (
        "ActivationMap: 1 layers x 2 experts, 4 tokens\n"
        "  expert  tokens  routing weight\n"
        "     0.1       2               1\n"
        "     0.0       1             0.5"
    )
