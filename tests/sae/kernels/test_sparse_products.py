"""The products of sparse latents with dense matrices: every implementation against a dense one."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_mote.sae.kernels.products import products_for, row_dots, weighted_sum
from hf_mote.sae.kernels.torch_products import Products, cpu_products, plain_products


def random_products(dtype: torch.dtype, *, width: int = 9) -> list[dict[str, Any]]:
    """Arguments of both products, among them without entries and without rows."""
    cases = []
    generator = torch.Generator().manual_seed(0)
    for rows, columns, active in ((5, 7, 20), (4, 6, 24), (3, 3, 0), (0, 4, 0), (1, 40, 30), (40, 1, 30)):
        flat = torch.randperm(rows * columns, generator=generator)[:active].sort().values
        cases.append(
            {
                "values": torch.randn(len(flat), generator=generator, dtype=dtype),
                "rows": flat // max(columns, 1),
                "columns": flat % max(columns, 1),
                "left": torch.randn(rows, width, generator=generator, dtype=dtype),
                "right": torch.randn(columns, width, generator=generator, dtype=dtype),
            }
        )
    return cases


def both_products(products: Products, case: dict[str, Any]) -> tuple[Tensor, Tensor]:
    rows, columns, left, right = case["rows"], case["columns"], case["left"], case["right"]
    return (
        products.weighted_sum(case["values"], rows, columns, right, len(left)),
        products.row_dots(left, right, rows, columns),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("products", [plain_products, cpu_products], ids=["plain", "cpu"])
def test_products_equal_those_of_a_dense_matrix(products: Products, dtype: torch.dtype) -> None:
    for case in random_products(dtype):
        matrix = torch.zeros(len(case["left"]), len(case["right"]), dtype=dtype)
        matrix[case["rows"], case["columns"]] = case["values"]
        added, dots = both_products(products, case)
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-13, "atol": 1e-13}
        torch.testing.assert_close(added, matrix @ case["right"], **tolerance)
        expected = (case["left"] @ case["right"].T)[case["rows"], case["columns"]]
        torch.testing.assert_close(dots, expected, **tolerance)


def test_products_of_expanded_and_transposed_matrices_equal_those_of_copies() -> None:
    case = random_products(torch.float32)[0]
    views = case | {"left": torch.ones(()).expand(case["left"].shape), "right": case["right"].T.contiguous().T}
    copies = views | {name: views[name].clone() for name in ("left", "right")}
    for viewed, copied in zip(both_products(cpu_products, views), both_products(cpu_products, copies), strict=True):
        assert torch.equal(viewed, copied)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_half_precision_are_added_up_in_float32(dtype: torch.dtype) -> None:
    for case in random_products(torch.float32):
        half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in case.items()}
        wide = {name: value.float() if value.is_floating_point() else value for name, value in half.items()}
        added = weighted_sum(half["values"], half["rows"], half["columns"], half["right"], len(half["left"]))
        dots = row_dots(half["left"], half["right"], half["rows"], half["columns"])
        for got, expected in zip((added, dots), both_products(cpu_products, wide), strict=True):
            assert torch.equal(got, expected)


def test_products_are_chosen_by_device() -> None:
    assert products_for("cpu") is cpu_products
    assert products_for("meta") is plain_products


# Triton's interpreter is switched on before triton is imported, so it needs a process of its own.
_INTERPRETED = """
import sys
sys.path[:0] = sys.argv[1:]
import torch
from hf_mote.sae.kernels.torch_products import plain_products
from hf_mote.sae.kernels.triton_products import triton_products
from test_sparse_products import both_products, random_products

for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
    for width in (1, 9, 700):
        for case in random_products(dtype, width=width):
            for got, expected in zip(both_products(triton_products, case), both_products(plain_products, case)):
                torch.testing.assert_close(got, expected, rtol=tolerance * width, atol=tolerance * width)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_triton_products_in_its_interpreter_equal_the_plain_ones() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    tests = Path(__file__).parent
    subprocess.run([sys.executable, "-c", _INTERPRETED, tests, tests.parents[2]], check=True, env=environment)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 9, 700])
def test_products_on_a_gpu_equal_the_plain_ones(dtype: torch.dtype, width: int) -> None:
    for case in random_products(dtype, width=width):
        moved = {name: value.cuda() for name, value in case.items()}
        products = products_for("cuda")
        assert (products is not plain_products) == (find_spec("triton") is not None)
        for got, expected in zip(both_products(products, moved), both_products(plain_products, case), strict=True):
            tolerance = width * (1e-5 if dtype == torch.float32 else 1e-13)
            torch.testing.assert_close(got.cpu(), expected, rtol=tolerance, atol=tolerance)
        for first, second in zip(both_products(products, moved), both_products(products, moved), strict=True):
            assert torch.equal(first, second)
