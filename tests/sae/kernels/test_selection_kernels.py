"""Selection, block by block, against plain definitions: ties, zeros, negatives, large budgets, padding, any dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae.allocation_reference import feature_choice, mask_of, mutual_choice, token_choice
from torch import Tensor

from hf_mote.errors import ConfigError
from hf_mote.sae.kernels import blocks, by_batch, largest
from hf_mote.sae.kernels.blocks import encode_and_choose
from hf_mote.sae.kernels.by_batch import SelectMutual
from hf_mote.sae.kernels.by_latent import SelectByLatent
from hf_mote.sae.kernels.by_token import SelectByToken
from hf_mote.sae.kernels.largest import largest_in_rows, positive_in_rows
from hf_mote.sae.kernels.pattern import Pattern

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
# Widths on both sides of the length of a group, and of what makes groups worth while.
WIDTHS = [1, 3, 63, 64, 65, 128, 200, 512]


def by_token(affinity: Tensor, k: int, tokens: list[int], latents: list[int]) -> set[tuple[int, int]]:
    among = torch.zeros_like(affinity)
    among[:, latents] = affinity[:, latents]
    return chosen(token_choice(among, min(k, affinity.shape[1]), valid=valid_of(affinity, tokens)))


def by_latent(affinity: Tensor, budgets: list[int], tokens: list[int]) -> set[tuple[int, int]]:
    most = torch.tensor(budgets, dtype=torch.long).clamp(max=len(affinity))
    return chosen(feature_choice(affinity, most, valid=valid_of(affinity, tokens)))


def mutually(affinity: Tensor, total: int, tokens: list[int]) -> set[tuple[int, int]]:
    return chosen(mutual_choice(affinity, min(total, affinity.numel()), valid=valid_of(affinity, tokens)))


def valid_of(affinity: Tensor, tokens: list[int]) -> Tensor:
    return torch.zeros(len(affinity), dtype=torch.bool).index_fill(0, torch.tensor(tokens, dtype=torch.long), True)


def chosen(mask: Tensor) -> set[tuple[int, int]]:
    return {(token, latent) for token, latent in mask.nonzero().tolist()}


def places(pattern: Pattern) -> set[tuple[int, int]]:
    """The pairs of a pattern, after checking its order."""
    flat = pattern.rows * pattern.num_columns + pattern.columns
    assert bool((flat.diff() > 0).all())
    assert pattern.rows.dtype == pattern.columns.dtype == torch.long
    return set(zip(pattern.rows.tolist(), pattern.columns.tolist(), strict=True))


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Pre-activations: continuous, tied, rarely positive, never positive, or of very different size per token."""
    tokens, latents = draw(st.integers(1, 12)), draw(st.sampled_from(WIDTHS))
    if draw(st.booleans()):
        tokens, latents = latents, tokens
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(tokens, latents, generator=generator)
    kind = draw(st.sampled_from(["continuous", "tied", "constant", "rare", "negative", "uneven"]))
    if kind == "tied":
        values = (2 * values).round()
    elif kind == "constant":
        values = torch.ones_like(values)
    elif kind == "rare":
        values = values * (torch.rand(values.shape, generator=generator) < 0.05)
    elif kind == "negative":
        values = -values.abs()
    elif kind == "uneven":
        values = values * 100 * torch.rand(tokens, 1, generator=generator) ** 8
    return values.to(draw(st.sampled_from(DTYPES)))


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A matrix, with a scale, padding and a block size."""
    pre = draw(matrices())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = torch.rand(pre.shape[1], generator=generator).to(pre.dtype) if draw(st.booleans()) else None
    valid = torch.rand(len(pre), generator=generator) < 0.7 if draw(st.booleans()) else None
    return {
        "pre": pre,
        "scale": scale,
        "valid": valid,
        "affinity": pre if scale is None else pre * scale,
        "tokens": list(range(len(pre))) if valid is None else valid.nonzero().squeeze(1).tolist(),
        "block": draw(st.sampled_from([1, 100, 700, 2**24])),
        "generator": generator,
    }


def choose(pre: Tensor, rules: list[Any], valid: Tensor | None = None) -> list[Pattern]:
    """What each rule chooses from these very pre-activations: the product of the identity with them."""
    tokens = torch.eye(len(pre), dtype=pre.dtype, device=pre.device)
    bias = pre.new_zeros(pre.shape[1])
    return [chosen.pattern for chosen in encode_and_choose(tokens, pre.T, bias, rules, valid)]


def selected(case: dict[str, Any], *selectors: Any) -> list[set[tuple[int, int]]]:
    with mock.patch.dict(blocks._BLOCK_ENTRIES, {"cpu": case["block"]}):
        return [places(pattern) for pattern in choose(case["pre"], list(selectors), case["valid"])]


@given(cases(), st.integers(0, 40))
@settings(deadline=None)
def test_select_by_token_equals_the_definition(case: dict[str, Any], k: int) -> None:
    (found,) = selected(case, SelectByToken(k, scale=case["scale"]))
    assert found == by_token(case["affinity"], k, case["tokens"], list(range(case["pre"].shape[1])))


@given(cases(), st.integers(0, 40), st.floats(0, 1), st.booleans())
@settings(deadline=None)
def test_select_by_token_among_some_equals_the_definition_over_these(
    case: dict[str, Any], k: int, share: float, beside_all: bool
) -> None:
    among = torch.rand(case["pre"].shape[1], generator=case["generator"]) < share
    rules = [SelectByToken(k, scale=case["scale"], among=among), SelectByToken(1, among=~among)]
    found = selected(case, *rules, *([SelectByToken(2)] if beside_all else []))
    inside, outside = among.nonzero().squeeze(1).tolist(), (~among).nonzero().squeeze(1).tolist()
    assert found[0] == by_token(case["affinity"], k, case["tokens"], inside)
    assert found[1] == by_token(case["pre"], 1, case["tokens"], outside)
    if beside_all:
        assert found[2] == by_token(case["pre"], 2, case["tokens"], list(range(case["pre"].shape[1])))


@given(cases(), st.floats(0, 1.2), st.sampled_from([-1, 0, 5]), st.sampled_from([1, 4]))
@settings(deadline=None)
def test_select_mutual_equals_the_definition(case: dict[str, Any], share: float, deviations: int, most: int) -> None:
    total = int(share**3 * case["pre"].numel())
    # A bound that is often too high makes second searches common; a small surplus makes thinning out common.
    with mock.patch.multiple(by_batch, _DEVIATIONS=deviations, _MOST=most):
        (found,) = selected(case, SelectMutual(total, scale=case["scale"]))
    assert found == mutually(case["affinity"], total, case["tokens"])


@given(cases(), st.sampled_from([1, 3, 20, 600]))
@settings(deadline=None)
def test_select_by_latent_equals_the_definition(case: dict[str, Any], largest: int) -> None:
    # From none to more than there are tokens, most of them small.
    uniform = torch.rand(case["pre"].shape[1], generator=case["generator"])
    budgets = (uniform**4 * (largest + 1)).long()
    (found,) = selected(case, SelectByLatent(budgets, scale=case["scale"]))
    assert found == by_latent(case["affinity"], budgets.tolist(), case["tokens"])


@given(matrices(), st.integers(0, 600))
@settings(deadline=None)
def test_largest_in_rows_is_in_order(values: Tensor, count: int) -> None:
    count = min(count, values.shape[1])
    found = largest_in_rows(values, count)
    assert found.shape == (len(values), count)
    for row, positions in zip(values.tolist(), found.tolist(), strict=True):
        expected = sorted(range(len(row)), key=lambda index: -max(row[index], 0.0))[:count]
        positive = [index for index in expected if row[index] > 0]
        assert positions[: len(positive)] == positive
        assert len(set(positions)) == count


@given(matrices(), st.integers(0, 600))
@settings(deadline=None)
def test_positive_in_rows_are_the_positive_ones_of_the_largest(values: Tensor, count: int) -> None:
    count = min(count, values.shape[1])
    expected = [
        (row, index, rank)
        for row, entries in enumerate(values.tolist())
        for rank, index in enumerate(sorted(range(len(entries)), key=lambda index: -entries[index])[:count])
        if entries[index] > 0
    ]
    rows, positions, ranks = positive_in_rows(values, count)
    assert list(zip(rows.tolist(), positions.tolist(), ranks.tolist(), strict=True)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_positive_in_rows_takes_the_smallest_positive_numbers(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    values = torch.zeros(2, 256, dtype=dtype)
    values[0, 70] = values[0, 5] = info.smallest_normal * info.eps
    values[0, 200] = info.max
    values[1] = -1
    assert [found.tolist() for found in positive_in_rows(values, 4)] == [[0, 0, 0], [200, 5, 70], [0, 1, 2]]


@pytest.mark.parametrize("rows", [0, 3])
def test_the_largest_of_no_rows_or_none_of_them_are_none(rows: int) -> None:
    values = torch.ones(rows, 256)
    for count in (0, 2):
        assert largest_in_rows(values, count).shape == (rows, count)
        assert all(found.shape == (rows * count,) for found in positive_in_rows(values, count))


@pytest.mark.parametrize(("width", "count"), [(4608, 32), (24_576, 32), (1024, 8), (512, 16)])
def test_positive_in_rows_sorts_few_entries_beyond_those_wanted(width: int, count: int) -> None:
    values = torch.randn(50, width, generator=torch.Generator().manual_seed(0))
    sorted_ones, compared = [], []
    keys, maxima = largest._keys, largest.group_maxima

    def spy(entries: Tensor, positions: Tensor) -> Tensor:
        sorted_ones.append(entries.numel())
        return keys(entries, positions)

    def spy_on_groups(affinity: Tensor, size: int) -> Tensor:
        found = maxima(affinity, size)
        compared.append(found.shape[1] + count * size)
        return found

    with mock.patch.multiple(largest, _keys=spy, group_maxima=spy_on_groups):
        positive_in_rows(values, count)
    assert sorted_ones[0] < 1.5 * 50 * count
    # Fewer entries are looked into than there are.
    assert compared[0] < 0.65 * width


def test_select_mutual_when_the_first_block_misleads_searches_again() -> None:
    pre = torch.rand(64, 4096, generator=torch.Generator().manual_seed(0))
    # The first block is every 8th token: where the last chosen entry lies, it cannot tell from these.
    pre[::8] += 100
    searched = []
    finish = by_batch._Search.finish

    def spy(self: Any) -> Any:
        searched.append(finish(self))
        return searched[-1]

    with mock.patch.dict(blocks._BLOCK_ENTRIES, {"cpu": 8 * 4096}), mock.patch.object(by_batch._Search, "finish", spy):
        (pattern,) = choose(pre, [SelectMutual(1074)])
    assert [result is None for result in searched] == [True, False]
    assert places(pattern) == mutually(pre, 1074, list(range(64)))


def test_select_mutual_of_rising_blocks_holds_a_bounded_number_of_entries() -> None:
    pre = torch.rand(64, 1024) + torch.arange(8).repeat(8)[:, None]
    held = []
    add = by_batch._Search.add

    def spy(self: Any, block: Any) -> None:
        add(self, block)
        held.append(sum(map(len, self.affinities)))

    with mock.patch.dict(blocks._BLOCK_ENTRIES, {"cpu": 8 * 1024}), mock.patch.object(by_batch._Search, "add", spy):
        (pattern,) = choose(pre, [SelectMutual(500)])
    assert len(held) == 8
    assert max(held) <= by_batch._MOST * 500
    assert len(pattern.rows) == 500
    assert set((pattern.rows % 8).tolist()) == {7}


def test_select_by_latent_with_zipf_budgets_searches_each_block_for_about_its_budgets() -> None:
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(256, 300, generator=generator)
    budgets = (256 / torch.arange(1, 301)).long().clamp(min=1)[torch.randperm(300, generator=generator)]
    looked_for = []

    def spy(affinity: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        looked_for.append(len(affinity) * count)
        return positive_in_rows(affinity, count)

    with mock.patch("hf_mote.sae.kernels.by_latent.positive_in_rows", spy):
        (pattern,) = choose(pre, [SelectByLatent(budgets)])
    assert places(pattern) == by_latent(pre, budgets.tolist(), list(range(256)))
    assert sum(looked_for) <= 2 * int(budgets.sum())


def test_encode_and_choose_holds_one_block_and_encodes_each_token_once() -> None:
    x, weight, bias = torch.randn(50, 8), torch.randn(300, 8), torch.randn(300)
    pre = torch.nn.functional.linear(x, weight, bias)
    seen: dict[str, list[tuple[int, int]]] = {"tokens": [], "latents": []}

    def spying(made: Callable[..., Iterator[Any]], layout: str) -> Callable[..., Iterator[Any]]:
        def shown(*arguments: Any) -> Iterator[Any]:
            for block in made(*arguments):
                seen[layout].append((len(block.lines), block.values.data_ptr()))
                yield block

        return shown

    rules = [SelectByToken(4), SelectMutual(200), SelectByLatent(torch.full((300,), 2))]
    with (
        mock.patch.dict(blocks._BLOCK_ENTRIES, {"cpu": 3000}),
        mock.patch.object(blocks._Encoded, "by_token", spying(blocks._Encoded.by_token, "tokens")),
        mock.patch.object(blocks._Encoded, "by_latent", spying(blocks._Encoded.by_latent, "latents")),
    ):
        chosen = encode_and_choose(x, weight, bias, rules)
    assert sum(lines for lines, _ in seen["tokens"]) == 50
    assert sum(lines for lines, _ in seen["latents"]) == 300
    for shown in seen.values():
        assert len(shown) > 4
        assert len({memory for _, memory in shown}) == 1
    for values, pattern in chosen:
        torch.testing.assert_close(values, pre[pattern.rows, pattern.columns])
    # Which entries are chosen must not hang on rounding for this to be exact, and on random numbers it does not.
    assert [places(pattern) for _, pattern in chosen] == [
        by_token(pre, 4, list(range(50)), list(range(300))),
        mutually(pre, 200, list(range(50))),
        by_latent(pre, [2] * 300, list(range(50))),
    ]


@pytest.mark.parametrize("layout", ["by_token", "by_latent"])
def test_blocks_on_a_cpu_stay_in_the_cache_and_are_padded_by_zeros(layout: str) -> None:
    x, weight, bias = torch.randn(1100, 4), torch.randn(1030, 4), torch.randn(1030)
    encoded = torch.nn.functional.linear(x, weight, bias)
    lines = 0
    # What a block's memory held before is not zero.
    with mock.patch.object(Tensor, "new_empty", lambda self, *shape: torch.full(shape, torch.nan)):
        for block in getattr(blocks._Encoded(x, weight, bias), layout)(None):
            columns = len(block.columns)
            wanted = encoded if layout == "by_token" else encoded.T
            assert len(block.lines) <= 512
            assert block.values.shape[1] % largest.GROUP == 0
            assert not bool(block.values[:, columns:].any())
            torch.testing.assert_close(block.values[:, :columns], wanted[block.lines])
            lines += len(block.lines)
    assert lines == len(encoded if layout == "by_token" else encoded.T)


def test_encode_and_choose_among_few_latents_encodes_only_these() -> None:
    x, weight, bias = torch.randn(20, 8), torch.randn(300, 8), torch.zeros(300)
    among = torch.zeros(300, dtype=torch.bool)
    among[[3, 77, 200]] = True
    widths = []
    by_token = blocks._Encoded.by_token

    def spy(self: Any, latents: Tensor | None) -> Iterator[Any]:
        for block in by_token(self, latents):
            widths.append(len(block.columns))
            yield block

    with mock.patch.object(blocks._Encoded, "by_token", spy):
        ((values, pattern),) = encode_and_choose(x, weight, bias, [SelectByToken(2, among=among)])
    assert widths == [3]
    assert set(pattern.columns.tolist()) == {3, 77, 200}
    assert bool((values > 0).all())


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_choose_of_nothing_is_empty(shape: tuple[int, int]) -> None:
    rules = [SelectByToken(2), SelectMutual(2), SelectByLatent(torch.ones(shape[1], dtype=torch.long))]
    for pattern in choose(torch.zeros(shape), rules):
        assert places(pattern) == set()
        assert (pattern.num_rows, pattern.num_columns) == shape


def test_choose_of_padding_alone_is_empty() -> None:
    rules = [SelectByToken(2), SelectMutual(2), SelectByLatent(torch.ones(5, dtype=torch.long))]
    for pattern in choose(torch.ones(4, 5), rules, torch.zeros(4, dtype=torch.bool)):
        assert places(pattern) == set()
        assert (pattern.num_rows, pattern.num_columns) == (4, 5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SelectByToken(-1), "SelectByToken: k"),
        (lambda: SelectByToken(1.5), "SelectByToken: k"),
        (lambda: SelectMutual(-1), "SelectMutual: total"),
        (lambda: SelectByLatent(torch.tensor([1, -1])), "SelectByLatent: budgets"),
        (lambda: SelectByLatent(torch.tensor([1.0])), "SelectByLatent: budgets"),
        (lambda: choose(torch.ones(2, 3), [SelectByLatent(torch.ones(2, dtype=torch.long))]), "budgets: wrong shape"),
        (lambda: choose(torch.ones(2, 3), [SelectByToken(1, among=torch.ones(2) > 0)]), "among: wrong shape"),
        (lambda: choose(torch.ones(2, 3), [SelectMutual(1, scale=torch.ones(3, 1))]), "scale: wrong shape"),
    ],
)
def test_selector_that_fits_nothing_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_pattern_counts_and_mask_agree() -> None:
    mask = torch.rand(6, 9, generator=torch.Generator().manual_seed(0)) < 0.3
    pattern = Pattern.from_mask(mask)
    assert torch.equal(mask_of(pattern), mask)
    assert torch.equal(pattern.counts(), mask.sum(1))
    assert torch.equal(pattern.latent_counts(), mask.sum(0))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_choose_on_a_gpu_equals_the_cpu(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for pre in (torch.randn(200, 700, generator=generator), torch.randn(200, 700, generator=generator).round()):
        pre = pre.to(dtype)
        budgets = torch.randint(0, 200, (700,), generator=generator)
        among = torch.rand(700, generator=generator) < 0.3
        valid = torch.rand(200, generator=generator) < 0.8
        rules = [SelectByToken(5), SelectMutual(900), SelectByLatent(budgets), SelectByToken(7, among=among)]
        moved = [*rules[:2], SelectByLatent(budgets.cuda()), SelectByToken(7, among=among.cuda())]
        for here, there in zip(choose(pre, rules, valid), choose(pre.cuda(), moved, valid.cuda()), strict=True):
            assert places(here) == places(there)
