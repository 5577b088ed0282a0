"""Losses and gradients of a training step, against the naive dense reference in float64 and finite differences."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from naive_saes import naive_loss
from tiny_saes import ALL_SAES, TinySAE
from torch import Tensor

SELECTIVE = [sae for sae in ALL_SAES if hasattr(sae.config(), "k")]
ZIPFIAN = [sae for sae in SELECTIVE if hasattr(sae.config(), "zipf_exponent")]
UNIT = [sae for sae in ALL_SAES if sae.config().normalize_decoder]


def training(sae: TinySAE, **overrides: Any) -> Any:
    """The model in float64, ready for a step, its dictionary normalised as the step itself would."""
    model = sae.model(torch.float64, calibrated=False, **overrides).train()
    if model.config.normalize_decoder:
        model.normalize_decoder()
    return model


def compare(model: Any, batch: dict[str, Tensor], mask: Tensor | None = None, neglected: Tensor | None = None) -> Any:
    """Assert that a step equals the naive one: loss, its terms, output, latents and every gradient."""
    reference = copy.deepcopy(model)
    rows = {name: value.reshape(-1, value.shape[-1]) for name, value in batch.items()}
    if mask is not None:
        rows = {name: value[mask.reshape(-1).bool()] for name, value in rows.items()}
    expected = naive_loss(reference, **rows, neglected=neglected)
    expected["loss"].backward()
    output = model(**batch, attention_mask=mask, output_latents=True)
    output.loss.backward()
    for name, value in expected.items():
        got = output[name]
        if got.ndim:
            got = got.reshape(-1, got.shape[-1])
            got = got if mask is None else got[mask.reshape(-1).bool()]
        torch.testing.assert_close(got, value, rtol=1e-10, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
    for name, parameter in model.named_parameters():
        wanted = reference.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")
        assert bool(parameter.grad.any()), f"{name} gets no gradient"
    return output


@pytest.mark.parametrize("sae", ALL_SAES, ids=str)
def test_training_step_equals_naive_reference(sae: TinySAE) -> None:
    compare(training(sae), sae.batch(24, dtype=torch.float64))


@pytest.mark.parametrize("sae", ALL_SAES, ids=str)
def test_training_step_with_padding_equals_naive_reference_without_the_padding(sae: TinySAE) -> None:
    batch = sae.batch(3, 10, dtype=torch.float64)
    mask = torch.ones(3, 10, dtype=torch.long)
    mask[0, 7:] = mask[1, :2] = 0
    for value in batch.values():
        value[mask == 0] = torch.nan
    compare(training(sae), batch, mask)


@pytest.mark.parametrize("sae", SELECTIVE, ids=str)
def test_aux_loss_equals_naive_reference_and_reaches_neglected_rows(sae: TinySAE) -> None:
    model = training(sae, dead_after_tokens=100, aux_k=3)
    dead = torch.zeros(model.config.num_latents, dtype=torch.bool)
    dead[[3, 5, 11, 30]] = True
    # Too small to be selected by anything but Feature Choice.
    model.b_enc.data[dead] = 0.0
    model.W_enc.data[dead] *= 0.05
    model.tokens_since_fired[dead] = 100
    apart = copy.deepcopy(model)
    compare(model, sae.batch(24, dtype=torch.float64), neglected=dead)
    aux_loss = apart(**sae.batch(24, dtype=torch.float64)).aux_loss
    names = ("W_enc", "b_enc", "W_dec")
    for name, gradient in zip(
        names, torch.autograd.grad(aux_loss, [apart.get_parameter(n) for n in names]), strict=True
    ):
        reached = gradient.reshape(len(gradient), -1).any(1)
        assert torch.equal(reached, dead), f"{name}: the loss reaches {reached.nonzero().tolist()}"


@pytest.mark.parametrize("sae", ZIPFIAN, ids=str)
def test_aux_zipf_reaches_latents_that_are_rare_but_not_dead(sae: TinySAE) -> None:
    model = training(sae, aux_loss="aux_zipf", density_window=10)
    model.density.fill_(model.config.k / model.config.num_latents)
    model.density_tokens.fill_(10)
    rare = torch.zeros(model.config.num_latents, dtype=torch.bool)
    rare[[2, 17]] = True
    model.density[rare] = 0.0
    neglected = model.neglected_latents()
    assert bool(neglected[rare].all())
    assert not bool(model.dead_latents().any())
    compare(model, sae.batch(24, dtype=torch.float64), neglected=neglected)


@pytest.mark.parametrize("sae", SELECTIVE, ids=str)
def test_aux_loss_none_or_coefficient_has_its_effect(sae: TinySAE) -> None:
    losses = {}
    for overrides in ({}, {"aux_loss": None}, {"aux_coefficient": 1.0}):
        model = training(sae, dead_after_tokens=1, **overrides)
        model.tokens_since_fired.fill_(1)
        output = model(**sae.batch(24, dtype=torch.float64))
        losses[str(overrides)] = (output.loss, output.aux_loss)
    plain, none, whole = losses.values()
    assert none[1] is None
    assert plain[1] == whole[1] > 0
    torch.testing.assert_close(plain[0] - none[0], plain[1] / 32)
    torch.testing.assert_close(whole[0] - none[0], plain[1])


@pytest.mark.parametrize("sae", ALL_SAES, ids=str)
def test_input_gradient_outside_training_equals_finite_differences(sae: TinySAE) -> None:
    model = sae.model(torch.float64)
    batch = sae.batch(3, dtype=torch.float64)
    x = batch["activations"].requires_grad_()

    def outputs(x: Tensor) -> tuple[Tensor, ...]:
        output = model(x, batch.get("targets"), output_latents=True)
        return output.loss, output.reconstruction, output.latents

    assert torch.autograd.gradcheck(outputs, (x,), eps=1e-7, atol=1e-5, fast_mode=True)
    (from_encode,) = torch.autograd.grad(model.encode(x).sum(), x)
    assert torch.equal(from_encode, torch.autograd.grad(outputs(x)[2].sum(), x)[0])


@pytest.mark.parametrize("sae", ALL_SAES, ids=str)
def test_input_gradient_in_training_equals_naive_reference(sae: TinySAE) -> None:
    model = training(sae)
    batch = sae.batch(24, dtype=torch.float64)
    x = batch["activations"].requires_grad_()
    (got,) = torch.autograd.grad(model(**batch).loss, x)
    (expected,) = torch.autograd.grad(naive_loss(model, **batch)["loss"], x)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sae", ALL_SAES, ids=str)
def test_two_forwards_then_two_backwards_add_up_the_gradients_of_each(sae: TinySAE) -> None:
    together, apart = training(sae), training(sae)
    first, second = (sae.batch(24, dtype=torch.float64, seed=seed) for seed in (1, 9))
    losses = [together(**batch).loss for batch in (first, second)]
    for loss in losses:
        loss.backward()
    for batch in (first, second):
        apart(**batch).loss.backward()
    for name, parameter in together.named_parameters():
        assert torch.equal(parameter.grad, apart.get_parameter(name).grad), name


@pytest.mark.parametrize("sae", UNIT, ids=str)
def test_training_step_normalises_the_dictionary_once_and_only_with_gradients(sae: TinySAE) -> None:
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 8e-3)):
        model = sae.model(dtype, calibrated=False).train()
        model.W_dec.data.mul_(3)
        model.W_dec.data[0] = 0
        before = model.W_dec.clone()
        with torch.no_grad():
            model(**sae.batch(24, dtype=dtype))
        assert torch.equal(model.W_dec, before)
        model(**sae.batch(24, dtype=dtype))
        once = model.W_dec.detach().clone()
        norms = once.double().norm(dim=1)
        torch.testing.assert_close(norms[1:], torch.ones_like(norms[1:]), rtol=0, atol=tolerance)
        assert norms[0] == 0
        model(**sae.batch(24, dtype=dtype))
        assert torch.equal(model.W_dec, once)


def test_decoder_that_is_frozen_is_not_normalised() -> None:
    sae = TinySAE("topk", "autoencoder")
    model = sae.model().train()
    model.W_dec.data.mul_(3)
    model.W_dec.requires_grad_(False)
    before = model.W_dec.clone()
    model(**sae.batch(24)).loss.backward()
    assert torch.equal(model.W_dec, before)
    assert model.W_dec.grad is None


def test_normalize_decoder_false_leaves_the_dictionary() -> None:
    sae = TinySAE("topk_scaled", "autoencoder")
    model = sae.model().train()
    before = model.W_dec.clone()
    model(**sae.batch(24)).loss.backward()
    assert torch.equal(model.W_dec, before)


def test_jumprelu_folded_scale_keeps_the_estimator() -> None:
    sae = TinySAE("jumprelu", "autoencoder")
    trained, folded = sae.model(torch.float64).train(), sae.model(torch.float64).train().fold_scale(4)
    x = sae.batch(24, dtype=torch.float64)["activations"]
    trained(4 * x).loss.backward()
    folded(x).loss.backward()
    torch.testing.assert_close(folded.threshold.grad, 4 * trained.threshold.grad)
    torch.testing.assert_close(folded.b_enc.grad, 4 * trained.b_enc.grad)


@pytest.mark.parametrize("name", ["jumprelu", "jumprelu_target"])
def test_jumprelu_negative_threshold_counts_no_zero_as_active(name: str) -> None:
    sae = TinySAE(name, "autoencoder")
    model = sae.model().train()
    model.threshold.data[:5] = -1.0
    output = model(**sae.batch(24))
    l0 = output.l0 if name == "jumprelu" else (output.l0 / model.config.l0_target - 1) ** 2
    torch.testing.assert_close(output.sparsity_loss, l0)
