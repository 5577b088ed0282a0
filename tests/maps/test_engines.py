"""Routing from an inference engine, against what `record_routing` counts on the same tokens."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from hf_mote import ActivationMap, find_routers, record_routing
from hf_mote.errors import DataError


@pytest.fixture(scope="module")
def recorded():
    """A generation, its map, and its routing as an engine returns it: all decoder layers, dense ones as zeros."""
    model = tiny_model("deepseek_v3")
    sites = find_routers(model)
    with record_routing(model, trace=True, eos_token_id=[]) as record:
        output = model.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=5, do_sample=False, eos_token_id=None)
    trace = record.traces()[0]
    table = np.zeros((len(trace.indices), model.config.num_hidden_layers, trace.indices.shape[2]), dtype=np.int16)
    table[:, list(trace.layers)] = trace.indices.numpy()
    weights = np.zeros(table.shape, dtype=np.float32)
    weights[:, list(trace.layers)] = trace.weights.numpy()
    assert model.config.num_hidden_layers > len(trace.layers)
    return table, weights, record.maps()[0], sites[0].num_experts, output.shape[1]


@pytest.mark.parametrize("form", [np.asarray, torch.tensor, np.ndarray.tolist])
def test_from_routed_experts_counts_as_record_routing_does(recorded, form):
    table, weights, expected, num_experts, num_tokens = recorded
    found = ActivationMap.from_routed_experts(
        form(table), num_experts=num_experts, layers=expected.layers, num_tokens=num_tokens, weights=weights
    )
    assert torch.equal(found.counts, expected.counts)
    assert torch.allclose(found.weights, expected.weights, rtol=0, atol=1e-6)
    assert found.layers == expected.layers
    assert found.num_tokens == expected.num_tokens == num_tokens - 1


def test_from_routed_experts_takes_tensors_with_gradients_and_in_bfloat16(recorded):
    table, weights, expected, num_experts, _ = recorded
    given = torch.tensor(weights, dtype=torch.bfloat16, requires_grad=True)
    found = ActivationMap.from_routed_experts(
        torch.tensor(table), num_experts=np.int64(num_experts), layers=expected.layers, weights=given
    )
    assert torch.equal(found.counts, expected.counts)
    assert torch.allclose(found.weights, expected.weights, rtol=0.01, atol=1e-6)


def test_from_routed_experts_of_the_expert_layers_alone_is_the_same(recorded):
    table, _, expected, num_experts, _ = recorded
    found = ActivationMap.from_routed_experts(
        table[:, list(expected.layers)], num_experts=num_experts, layers=expected.layers
    )
    assert torch.equal(found.counts, expected.counts)
    assert not found.weights.any()
    assert found.provenance["weights"] == "not recorded"


def test_from_routed_experts_leaves_out_tokens_that_were_not_recorded(recorded):
    table, _, expected, num_experts, num_tokens = recorded
    longer = np.concatenate([table, np.full_like(table[:1], -1)])
    found = ActivationMap.from_routed_experts(
        longer, num_experts=num_experts, layers=expected.layers, num_tokens=num_tokens
    )
    assert torch.equal(found.counts, expected.counts)
    assert found.num_tokens == expected.num_tokens


def test_from_routed_experts_of_a_dense_layer_is_refused_and_not_expert_0(recorded):
    table, _, expected, num_experts, _ = recorded
    dense = next(layer for layer in range(table.shape[1]) if layer not in expected.layers)
    layers = tuple(sorted((dense, *expected.layers)))
    with pytest.raises(DataError, match=f"layer {dense}.*without experts.*Leave it out of `layers`"):
        ActivationMap.from_routed_experts(table, num_experts=num_experts, layers=layers)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda t: t[..., 0], "not a table"),
        (lambda t: t.astype(float), "not a table"),
        (lambda t: np.where(t == t.max(), 99, t), "no such expert"),
        (lambda t: np.where(t == t.max(), -2, t), "no such expert"),
        (lambda t: t[:, :1], "lacks some of the layers"),
        (lambda t: [[[0, 1], [2]]], "not a table"),
        (lambda t: torch.tensor(t, device="meta"), "not a table"),
        (lambda t: None, "not a table"),
    ],
)
def test_from_routed_experts_of_what_is_none_is_refused(recorded, change, word):
    table, _, expected, num_experts, _ = recorded
    with pytest.raises(DataError, match=word):
        ActivationMap.from_routed_experts(change(table), num_experts=num_experts, layers=expected.layers)


def test_from_routed_experts_with_the_wrong_number_of_tokens_is_refused(recorded):
    table, weights, expected, num_experts, num_tokens = recorded
    with pytest.raises(DataError, match="num_tokens"):
        ActivationMap.from_routed_experts(
            table, num_experts=num_experts, layers=expected.layers, num_tokens=num_tokens + 1
        )
    for name, number in (("num_experts", 2.5), ("num_experts", 0), ("num_experts", "8"), ("num_tokens", "3")):
        with pytest.raises(DataError, match=f"{name}: must be a number"):
            ActivationMap.from_routed_experts(
                table, **{"num_experts": num_experts, "layers": expected.layers, name: number}
            )
    with pytest.raises(DataError, match="weights: not one finite number .*got <U1 of shape"):
        ActivationMap.from_routed_experts(table, num_experts=num_experts, layers=expected.layers, weights="x")
    with pytest.raises(DataError, match="weights"):
        ActivationMap.from_routed_experts(table, num_experts=num_experts, layers=expected.layers, weights=weights[:-1])


def test_from_routed_experts_leaves_out_a_last_token_of_zeros(recorded):
    table, weights, expected, num_experts, num_tokens = recorded
    longer = np.concatenate([table, np.zeros_like(table[:1])])
    more = np.concatenate([weights, np.zeros_like(weights[:1])])
    for number in (None, num_tokens):
        found = ActivationMap.from_routed_experts(
            longer, num_experts=num_experts, layers=expected.layers, num_tokens=number, weights=more
        )
        assert torch.equal(found.counts, expected.counts)
        assert torch.allclose(found.weights, expected.weights, rtol=0, atol=1e-6)
        assert found.num_tokens == expected.num_tokens


def test_from_routed_experts_of_zeros_that_are_no_last_token_is_refused(recorded):
    table, _, expected, num_experts, num_tokens = recorded
    fixed = {"num_experts": num_experts, "layers": expected.layers}
    two = np.concatenate([table, np.zeros_like(table[:2])])
    short = np.concatenate([table[:-1], np.zeros_like(table[:1])])
    for given, number in ((two, None), (short, num_tokens)):
        with pytest.raises(DataError, match="not recorded may come back.*such tokens of"):
            ActivationMap.from_routed_experts(given, num_tokens=number, **fixed)


@pytest.mark.parametrize("shape", [(1, 2, 2), (20, 3, 2), (20, 3, 1)])
def test_from_routed_experts_of_a_buffer_that_was_never_filled_is_refused(shape):
    with pytest.raises(DataError, match="holds zeros alone .*never filled"):
        ActivationMap.from_routed_experts(np.zeros(shape, dtype=np.int16), num_experts=8, layers=range(shape[1]))


@pytest.mark.parametrize("prefix", [1, 3])
def test_from_routed_experts_without_a_cached_prefix_is_refused(recorded, prefix):
    table, _, expected, num_experts, num_tokens = recorded
    fixed = {"num_experts": num_experts, "layers": expected.layers}
    # Left out, as vLLM does, or filled with zeros.
    with pytest.raises(DataError, match=f"first {prefix} tokens may be missing.*enable_prefix_caching=False"):
        ActivationMap.from_routed_experts(table[prefix:], num_tokens=num_tokens, **fixed)
    zeros = np.concatenate([np.zeros_like(table[:prefix]), table[prefix:]])
    with pytest.raises(DataError, match=f"first {prefix} tokens hold zeros alone.*enable_prefix_caching=False"):
        ActivationMap.from_routed_experts(zeros, num_tokens=num_tokens, **fixed)


def test_from_routed_experts_of_places_of_copies_is_refused_or_named_by_their_expert(recorded):
    table, _, expected, num_experts, num_tokens = recorded
    rng = np.random.default_rng(0)
    # Each layer has its own order of places, and four more of them than experts.
    more = rng.integers(0, num_experts, (table.shape[1], 4))
    places = np.concatenate([np.tile(np.arange(num_experts), (table.shape[1], 1)), more], axis=1)
    places = rng.permuted(places, axis=1)
    physical = np.zeros_like(table)
    for token, layer, slot in np.ndindex(table.shape):
        physical[token, layer, slot] = rng.choice(np.flatnonzero(places[layer] == table[token, layer, slot]))
    fixed = {"num_experts": num_experts, "layers": expected.layers, "num_tokens": num_tokens}
    with pytest.raises(DataError, match="no such expert.*give physical_to_logical"):
        ActivationMap.from_routed_experts(physical, **fixed)
    named = ActivationMap.from_routed_experts(physical, **fixed, physical_to_logical=places)
    assert torch.equal(named.counts, expected.counts)
    there = list(expected.layers)
    named = ActivationMap.from_routed_experts(physical[:, there], **fixed, physical_to_logical=places[there].tolist())
    assert torch.equal(named.counts, expected.counts)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: m[:, 1:], "not each expert has a place"),
        (lambda m: m + 1, "not each expert has a place"),
        (lambda m: m.astype(float), "not a table of experts"),
        (lambda m: m[0], "not a table of experts"),
        (lambda m: m[:1], "lacks some of the layers"),
    ],
)
def test_from_routed_experts_with_a_wrong_table_of_places_is_refused(recorded, change, word):
    table, _, expected, num_experts, _ = recorded
    places = np.tile(np.arange(num_experts), (table.shape[1], 1))
    with pytest.raises(DataError, match=word):
        ActivationMap.from_routed_experts(
            table, num_experts=num_experts, layers=expected.layers, physical_to_logical=change(places)
        )


def test_from_routed_experts_in_too_few_bits_is_refused():
    table = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
    with pytest.raises(DataError, match="cannot hold the numbers of all experts.*uint8"):
        ActivationMap.from_routed_experts(table, num_experts=384, layers=[0, 1])
    not_recorded = np.concatenate([table, np.full_like(table[:1], 255)])
    with pytest.raises(DataError, match="no such expert.*-1 is the largest one"):
        ActivationMap.from_routed_experts(not_recorded, num_experts=128, layers=[0, 1])


def test_from_routed_experts_with_one_expert_per_token_counts_a_last_row_of_zeros():
    table = np.array([[[3]], [[2]], [[0]]])
    found = ActivationMap.from_routed_experts(table, num_experts=4, layers=[0])
    assert found.counts.tolist() == [[1.0, 0.0, 1.0, 1.0]]
