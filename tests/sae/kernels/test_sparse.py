"""Sparse encoding and decoding: values and gradients against dense autograd, and that nothing dense is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from sae.allocation_reference import mask_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hf_mote.sae.kernels import blocks
from hf_mote.sae.kernels.sparse import (
    Pattern,
    SelectByLatent,
    SelectByToken,
    SelectMutual,
    SparseLatents,
    sparse_decode,
    sparse_encode,
)

TOKENS, HIDDEN, LATENTS, OUTPUT = 12, 5, 20, 7
AMONG = torch.arange(LATENTS) % 3 == 0
VALID = torch.arange(TOKENS) % 4 != 1
RULES: dict[str, list[Any]] = {
    "by token": [SelectByToken(3)],
    "mutual": [SelectMutual(30)],
    "by latent": [SelectByLatent(torch.arange(LATENTS) % 5)],
    "by token and auxiliary": [SelectByToken(3), SelectByToken(4, among=AMONG)],
    "by latent and auxiliary": [SelectByLatent(torch.arange(LATENTS) % 5), SelectByToken(4, among=AMONG)],
    "none": [SelectByToken(0)],
}
every_rule = pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())


def tensors(dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    """Activations and parameters, all of which take gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "x": (TOKENS, HIDDEN),
        "W_enc": (LATENTS, HIDDEN),
        "b_enc": (LATENTS,),
        "pre_bias": (HIDDEN,),
        "W_dec": (LATENTS, OUTPUT),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def sparse(rules: list[Any], valid: Tensor | None = None, **parts: Tensor) -> tuple[list[SparseLatents], list[Tensor]]:
    W_dec = parts.pop("W_dec")
    found = sparse_encode(selectors=rules, valid=valid, **parts)
    return found, [sparse_decode(latents, W_dec) for latents in found]


def dense(patterns: list[Pattern], **parts: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The same by ordinary autograd, given what was chosen."""
    pre = (parts["x"] - parts["pre_bias"]) @ parts["W_enc"].T + parts["b_enc"]
    latents = [pre.relu() * mask_of(pattern) for pattern in patterns]
    return latents, [each @ parts["W_dec"] for each in latents]


def backward(decoded: list[Tensor], latents: list[Tensor]) -> None:
    """Through reconstruction and values both."""
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros(())
    for each in (*decoded, *latents):
        weight = torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype)
        loss = loss + (each * weight).sum() + each.pow(2).sum()
    loss.backward()


@every_rule
@pytest.mark.parametrize("valid", [None, VALID], ids=["all", "padding"])
def test_sparse_step_equals_dense_autograd(rules: list[Any], valid: Tensor | None) -> None:
    ours, theirs = tensors(), tensors()
    latents, decoded = sparse(rules, valid, **ours)
    dense_latents, dense_decoded = dense([each.pattern for each in latents], **theirs)
    backward(decoded, [each.dense() for each in latents])
    backward(dense_decoded, dense_latents)
    for mine, other in zip(
        (*decoded, *(each.dense() for each in latents)), (*dense_decoded, *dense_latents), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor.grad, theirs[name].grad, rtol=1e-12, atol=1e-12, msg=name)
    for each in latents:
        assert bool((each.values > 0).all())
        assert valid is None or not bool(each.pattern.counts()[~valid].any())


@every_rule
def test_sparse_step_passes_gradcheck(rules: list[Any]) -> None:
    parts = tensors()

    def step(*values: Tensor) -> tuple[Tensor, ...]:
        latents, decoded = sparse(rules, **dict(zip(parts, values, strict=True)))
        return (*decoded, *(each.values for each in latents))

    assert torch.autograd.gradcheck(step, tuple(parts.values()))


def test_sparse_step_in_float32_is_close_to_float64() -> None:
    rules = RULES["by token and auxiliary"]
    single, double = tensors(torch.float32), {}
    for name, tensor in single.items():
        double[name] = tensor.detach().double().requires_grad_()
    (latents, decoded), (wide_latents, wide_decoded) = sparse(rules, **single), sparse(rules, **double)
    assert all(torch.equal(a.pattern.columns, b.pattern.columns) for a, b in zip(latents, wide_latents, strict=True))
    backward(decoded, [each.dense() for each in latents])
    backward(wide_decoded, [each.dense() for each in wide_latents])
    for name, tensor in single.items():
        assert tensor.grad is not None
        assert tensor.grad.dtype == torch.float32
        torch.testing.assert_close(tensor.grad.double(), double[name].grad, rtol=1e-4, atol=1e-4, msg=name)


@every_rule
def test_sparse_step_under_autocast_adds_up_in_float32(rules: list[Any]) -> None:
    parts = tensors(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        latents, decoded = sparse(rules, **parts)
    exact, exact_decoded = sparse(rules, **tensors(torch.float32))
    for each, plain, out in zip(latents, exact, decoded, strict=True):
        assert each.values.dtype == out.dtype == torch.float32
        # Chosen in bfloat16, whose 8 bits are what the values have.
        assert torch.equal(each.values, each.values.bfloat16().float())
        both = mask_of(each.pattern) & mask_of(plain.pattern)
        torch.testing.assert_close(each.dense()[both], plain.dense()[both], rtol=0.05, atol=0.05)
        torch.testing.assert_close(out, each.dense() @ parts["W_dec"], rtol=1e-5, atol=1e-5)
    torch.stack([out.pow(2).sum() for out in decoded]).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in parts.values())


def test_sparse_step_of_bfloat16_parameters_returns_bfloat16() -> None:
    parts = tensors(torch.bfloat16)
    (latents,), (decoded,) = sparse([SelectByToken(3)], **parts)
    assert latents.values.dtype == torch.float32
    assert decoded.dtype == torch.bfloat16
    wanted = latents.dense() @ parts["W_dec"].float()
    assert torch.equal(decoded, wanted.bfloat16()) or (decoded - wanted).abs().max() <= 2**-8 * wanted.abs().max()
    decoded.float().pow(2).sum().backward()
    assert all(tensor.grad is not None and tensor.grad.dtype == torch.bfloat16 for tensor in parts.values())


@pytest.mark.parametrize("wanted", ["x", "W_enc", "b_enc", "pre_bias", "W_dec"])
def test_sparse_step_gives_gradient_only_where_it_is_wanted(wanted: str) -> None:
    parts = {name: tensor.detach() for name, tensor in tensors().items()}
    parts[wanted].requires_grad_()
    latents, decoded = sparse(RULES["by token and auxiliary"], **parts)
    backward(decoded, [])
    assert {name for name, tensor in parts.items() if tensor.grad is not None} == {wanted}
    assert all(each.values.requires_grad == (wanted != "W_dec") for each in latents)


def test_sparse_encode_without_pre_bias_equals_one_of_zeros() -> None:
    parts = tensors()
    rules = RULES["by token and auxiliary"]
    with_zeros, _ = sparse(rules, **parts | {"pre_bias": torch.zeros(HIDDEN, dtype=torch.float64)})
    without = sparse_encode(parts["x"], parts["W_enc"], parts["b_enc"], rules)
    for first, second in zip(with_zeros, without, strict=True):
        assert torch.equal(first.values, second.values)
        assert torch.equal(first.pattern.columns, second.pattern.columns)


@pytest.mark.parametrize("unused", [0, 1])
def test_sparse_encode_whose_result_is_partly_unused_has_the_gradient_of_the_rest(unused: int) -> None:
    rules, alone, both = RULES["by token and auxiliary"], tensors(), tensors()
    _, (decoded,) = sparse([rules[1 - unused]], **alone)
    decoded.pow(2).sum().backward()
    sparse(rules, **both)[1][1 - unused].pow(2).sum().backward()
    for name, tensor in both.items():
        torch.testing.assert_close(tensor.grad, alone[name].grad, rtol=1e-12, atol=1e-12, msg=name)


@every_rule
def test_sparse_step_of_no_tokens_has_zero_gradients(rules: list[Any]) -> None:
    parts = tensors()
    parts["x"] = parts["x"].detach()[:0].requires_grad_()
    latents, decoded = sparse(rules, **parts)
    assert all(out.shape == (0, OUTPUT) for out in decoded)
    assert all(len(each.values) == 0 and each.dense().shape == (0, LATENTS) for each in latents)
    backward(decoded, [each.dense() for each in latents])
    assert all(tensor.grad is not None and not bool(tensor.grad.any()) for tensor in parts.values())


def test_sparse_step_twice_is_the_same_bit_for_bit() -> None:
    def run() -> list[Tensor]:
        parts = tensors(torch.float32)
        latents, decoded = sparse(RULES["by latent and auxiliary"], **parts)
        backward(decoded, [each.dense() for each in latents])
        return [*decoded, *(tensor.grad for tensor in parts.values() if tensor.grad is not None)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_sparse_step_does_not_change_what_it_is_given() -> None:
    parts, before = tensors(), tensors()
    latents, decoded = sparse(RULES["by token and auxiliary"], VALID, **parts)
    backward(decoded, [each.dense() for each in latents])
    assert all(torch.equal(tensor, before[name]) for name, tensor in parts.items())


def test_sparse_step_cannot_be_differentiated_twice() -> None:
    parts = tensors()
    _, (decoded,) = sparse([SelectByToken(3)], **parts)
    (grad,) = torch.autograd.grad(decoded.pow(2).sum(), parts["W_enc"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("name", ["by token", "mutual", "by latent", "by latent and auxiliary"])
def test_sparse_step_makes_nothing_dense(name: str) -> None:
    tokens, latents = 300, 500
    rules = {
        "by token": [SelectByToken(3)],
        "mutual": [SelectMutual(3 * tokens)],
        "by latent": [SelectByLatent(torch.full((latents,), 2))],
        "by latent and auxiliary": [
            SelectByLatent(torch.full((latents,), 2)),
            SelectByToken(2, among=torch.arange(latents) < 9),
        ],
    }[name]
    x, W_enc, W_dec = torch.randn(tokens, 8), torch.randn(latents, 8), torch.randn(latents, 8)
    with mock.patch.dict(blocks._BLOCK_ENTRIES, {"cpu": 5000}), _Watch() as watch:
        found = sparse_encode(x, W_enc.requires_grad_(), torch.zeros(latents, requires_grad=True), rules)
        for each in found:
            sparse_decode(each, W_dec.requires_grad_()).pow(2).sum().backward(retain_graph=True)
    # The dictionary has 4,000 numbers, a block 5,000 and some padding; the dense latents would have 150,000. Keys and
    # candidates of a block are no more than it.
    assert watch.largest <= 7000
    assert W_enc.grad is not None
    assert W_dec.grad is not None
    # One product with the encoder, in blocks, and one with the few latents of the auxiliary rule.
    assert watch.multiplied == tokens * 8 * (latents + (9 if len(rules) > 1 else 0))


class _Watch(TorchDispatchMode):
    """Notes the most elements of a result, and the multiplications of dense products."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0
        self.multiplied = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, Tensor) and each.layout == torch.strided:
                self.largest = max(self.largest, each.numel())
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            left, right = args[-2:]
            self.multiplied += left.numel() * right.shape[-1]
        return result


# Dynamo's own: it looks at `.grad` of what is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_sparse_step_inside_a_compiled_function_equals_eager() -> None:
    def step(x: Tensor, W_enc: Tensor, b_enc: Tensor, pre_bias: Tensor, W_dec: Tensor) -> Tensor:
        (latents,) = sparse_encode(2 * x, W_enc, b_enc, [SelectByToken(3)], pre_bias=pre_bias)
        return sparse_decode(latents, W_dec).pow(2).sum()

    eager, compiled = tensors(), tensors()
    step(**eager).backward()
    torch.compile(step, backend="eager")(**compiled).backward()
    torch.compiler.reset()
    for name, tensor in compiled.items():
        assert torch.equal(tensor.grad, eager[name].grad), name


def test_sparse_latents_from_dense_and_back_is_differentiable() -> None:
    latents = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    assert torch.equal(SparseLatents.from_dense(latents).dense(), latents.relu())
    assert torch.autograd.gradcheck(lambda z: SparseLatents.from_dense(z).dense(), (latents,))


def test_sparse_latents_selected_by_groups_decode_to_the_sum_of_parts() -> None:
    parts = tensors()
    (latents,), (whole,) = sparse([SelectByToken(6)], **parts)
    first = latents.pattern.columns < 8
    halves = [sparse_decode(latents.select(mask), parts["W_dec"]) for mask in (first, ~first)]
    torch.testing.assert_close(halves[0] + halves[1], whole, rtol=1e-12, atol=1e-12)
    (grad,) = torch.autograd.grad(halves[0].sum(), latents.values)
    assert bool((grad[first] != 0).all())
    assert not bool(grad[~first].any())


@pytest.mark.gpu
@every_rule
def test_sparse_step_on_a_gpu_equals_the_cpu(rules: list[Any]) -> None:
    here, there = tensors(), {}
    for name, tensor in here.items():
        there[name] = tensor.detach().cuda().requires_grad_()
    latents, decoded = sparse(rules, VALID, **here)
    moved, moved_decoded = sparse(_on_gpu(rules), VALID.cuda(), **there)
    for first, second in zip(
        (*decoded, *(each.dense() for each in latents)),
        (*moved_decoded, *(each.dense() for each in moved)),
        strict=True,
    ):
        torch.testing.assert_close(first, second.cpu(), rtol=1e-11, atol=1e-11)
    torch.stack([out.pow(2).sum() for out in decoded]).sum().backward()
    torch.stack([out.pow(2).sum() for out in moved_decoded]).sum().backward()
    for name, tensor in here.items():
        torch.testing.assert_close(tensor.grad, there[name].grad.cpu(), rtol=1e-11, atol=1e-11, msg=name)


def _on_gpu(rules: list[Any]) -> list[Any]:
    made: dict[type, Callable[[Any], Any]] = {
        SelectByToken: lambda rule: SelectByToken(rule.k, among=None if rule.among is None else rule.among.cuda()),
        SelectMutual: lambda rule: rule,
        SelectByLatent: lambda rule: SelectByLatent(rule.budgets.cuda()),
    }
    return [made[type(rule)](rule) for rule in rules]
