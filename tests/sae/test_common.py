"""What every architecture does with its inputs: shapes, masks, empty batches, determinism, independence of tokens."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from naive_saes import naive_encode
from tiny_saes import ALL_SAES, HIDDEN, LATENTS, TinySAE, activations
from torch import Tensor

from hf_mote import SAEModel, SAEOutput
from hf_mote.errors import UnsupportedError
from hf_mote.sae.register import registered_saes

every_sae = pytest.mark.parametrize("sae", ALL_SAES, ids=str)
in_both_modes = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
MASKS = {
    "right": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 0]],
    "left": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [0, 1, 1, 1, 1]],
    "holes": [[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 1, 1]],
}


def tensors_of(output: SAEOutput) -> dict[str, Tensor]:
    """The fields that are set."""
    return dict(output.items())


def state(model: SAEModel) -> dict[str, Tensor]:
    """A copy of parameters and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Assert that two groups of tensors are equal bit for bit; NaN equals NaN."""
    assert list(first) == list(second)
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert torch.equal(value.nan_to_num(nan=7e7), second[name].nan_to_num(nan=7e7)), name


def test_every_registered_architecture_is_in_the_suite() -> None:
    assert {sae.config().model_type for sae in ALL_SAES} == {
        name for name, model in registered_saes().items() if model.__module__.startswith("hf_mote.")
    }
    assert len(registered_saes()) >= 8


@every_sae
@in_both_modes
def test_forward_of_three_dimensions_equals_two(sae: TinySAE, training: bool) -> None:
    flat, deep = sae.model().train(training), sae.model().train(training)
    batch = sae.batch(20)
    first = flat(**batch, output_latents=True)
    second = deep(**{name: value.reshape(4, 5, -1) for name, value in batch.items()}, output_latents=True)
    assert second.latents.shape == (4, 5, LATENTS)
    assert second.reconstruction.shape == (4, 5, sae.config().decoder_size)
    assert_same(
        tensors_of(first), {name: v.reshape(20, -1) if v.ndim else v for name, v in tensors_of(second).items()}
    )
    assert_same(state(flat), state(deep))
    one = flat.eval()(**{name: value[0] for name, value in batch.items()}, output_latents=True)
    assert one.latents.shape == (LATENTS,)


@every_sae
@in_both_modes
def test_forward_with_mask_equals_leaving_padding_out(sae: TinySAE, training: bool) -> None:
    for side in MASKS.values():
        mask = torch.tensor(side)
        kept = mask.bool()
        batch = sae.batch(4, 5)
        without = {name: value[kept] for name, value in batch.items()}
        for value in batch.values():
            value[~kept] = torch.tensor([torch.nan, torch.inf, 1e30])[torch.arange(value.shape[-1]) % 3]
        masked, short = sae.model().train(training), sae.model().train(training)
        first = masked(**batch, attention_mask=mask, output_latents=True)
        second = short(**without, output_latents=True)
        assert not bool(first.latents[~kept].any())
        assert bool(first.reconstruction.isfinite().all())
        for name, value in tensors_of(first).items():
            value = value[kept] if value.ndim else value
            torch.testing.assert_close(value, second[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        for name, value in state(masked).items():
            torch.testing.assert_close(value, state(short)[name], rtol=1e-5, atol=1e-6, equal_nan=True)


@every_sae
def test_forward_takes_a_mask_of_any_dtype(sae: TinySAE) -> None:
    mask = torch.tensor(MASKS["right"])
    outputs = [
        tensors_of(sae.model()(**sae.batch(4, 5), attention_mask=mask.to(dtype), output_latents=True))
        for dtype in (torch.long, torch.bool, torch.float32)
    ]
    assert_same(outputs[0], outputs[1])
    assert_same(outputs[0], outputs[2])


@every_sae
@in_both_modes
def test_forward_of_nothing_gives_zero_losses_and_changes_nothing(sae: TinySAE, training: bool) -> None:
    model = sae.model().train(training)
    if training and model.config.normalize_decoder:
        model.normalize_decoder()
    before = state(model)
    for leading in ((0,), (0, 7), (3, 0), (2, 3)):
        # Leading (2, 3) has tokens, all of them padding.
        mask = torch.zeros(leading, dtype=torch.long) if leading == (2, 3) else None
        output = model(**sae.batch(*leading), attention_mask=mask, output_latents=True)
        assert output.loss == output.l0 == 0
        assert output.latents.shape == (*leading, LATENTS)
        assert not bool(output.latents.any())
        output.loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or not bool(parameter.grad.any()), name
        assert_same(before, state(model))


@every_sae
def test_encode_outside_training_equals_its_definition(sae: TinySAE) -> None:
    model = sae.model(torch.float64)
    batch = sae.batch(70, dtype=torch.float64)
    expected = naive_encode(model, batch["activations"])
    output = model(**batch, output_latents=True)
    torch.testing.assert_close(output.latents, expected, rtol=1e-10, atol=1e-12)
    assert 0 < int((expected > 0).sum()) < expected.numel()
    norms = model.W_dec.norm(dim=1) if getattr(model.config, "scale_latents_by_decoder_norm", False) else 1.0
    skip = batch["activations"] @ model.W_skip.T if model.config.skip_connection else 0.0
    rebuilt = expected / norms @ model.W_dec + model.b_dec + skip
    torch.testing.assert_close(output.reconstruction, rebuilt, rtol=1e-10, atol=1e-12)


@every_sae
def test_encode_of_a_token_alone_equals_the_token_in_a_batch(sae: TinySAE) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = sae.model(dtype)
        batch = sae.batch(70, dtype=dtype)
        together = model(**batch, output_latents=True)
        x = batch["activations"]
        assert torch.equal(model.encode(x), together.latents)
        for i in (0, 31, 32, 69):
            alone = model(x[i : i + 1], output_latents=True)
            assert torch.equal(alone.latents[0], together.latents[i])
            assert torch.equal(alone.reconstruction[0], together.reconstruction[i])
        assert torch.equal(model.encode(x.flip(0)).flip(0), together.latents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_encode_of_a_token_alone_equals_the_token_in_a_batch_at_real_widths(dtype: torch.dtype) -> None:
    model = TinySAE("topk", "autoencoder").model(dtype, hidden_size=384, num_latents=1536)
    x = activations(80, 384, dtype=dtype)
    together = model.encode(x)
    for i in (0, 5, 33, 63, 79):
        assert torch.equal(model.encode(x[i : i + 1])[0], together[i])
        assert torch.equal(model.encode(x[i:])[0], together[i])


@every_sae
@in_both_modes
def test_forward_is_deterministic_and_leaves_its_arguments(sae: TinySAE, training: bool) -> None:
    batch = sae.batch(20)
    given = {name: value.clone() for name, value in batch.items()}
    first, second = sae.model().train(training), sae.model().train(training)
    assert_same(tensors_of(first(**batch)), tensors_of(second(**batch)))
    assert_same(state(first), state(second))
    assert_same(given, batch)


@every_sae
def test_forward_outside_training_changes_nothing(sae: TinySAE) -> None:
    model = sae.model()
    before = state(model)
    model(**sae.batch(20)).loss.backward()
    model.encode(activations(20, HIDDEN))
    assert_same(before, state(model))


@every_sae
def test_return_loss_false_and_output_latents_choose_the_fields(sae: TinySAE) -> None:
    model = sae.model()
    batch = sae.batch(6)
    assert list(model(batch["activations"], return_loss=False)) == ["reconstruction"]
    fields = list(model(**batch))
    assert fields[0] == "loss"
    assert fields[1:] == ["reconstruction", "fvu", "mse", "l0", "dead_fraction"]
    assert model(**batch).to_tuple()[0] == model(**batch).loss
    if sae.kind != "autoencoder":
        assert list(model(batch["activations"])) == ["reconstruction"]


@every_sae
def test_output_reports_what_its_fields_say(sae: TinySAE) -> None:
    model = sae.model()
    batch = sae.batch(30)
    output = model(**batch, output_latents=True)
    target = batch.get("targets", batch["activations"])
    error = (target - output.reconstruction).pow(2)
    torch.testing.assert_close(output.mse, error.mean())
    torch.testing.assert_close(output.fvu, error.sum() / (target - target.mean(0)).pow(2).sum())
    torch.testing.assert_close(output.l0, (output.latents > 0).sum(1).float().mean())
    assert bool((output.latents >= 0).all())
    # Outside training every architecture reports its reconstruction alone, so that they compare.
    if model.config.model_type != "matryoshka_sae":
        torch.testing.assert_close(output.loss, output[model.config.reconstruction_loss])
    assert output.dead_fraction == 0
    model.tokens_since_fired[:10] = model.config.dead_after_tokens
    assert model(**batch).dead_fraction == 0.25


@every_sae
def test_dead_latents_are_counted_in_training_tokens(sae: TinySAE) -> None:
    model = sae.model(dead_after_tokens=40).train()
    mask = torch.ones(4, 5, dtype=torch.long)
    mask[:, :2] = 0
    fired = torch.zeros(LATENTS, dtype=torch.bool)
    since = torch.zeros(LATENTS, dtype=torch.long)
    for step in range(4):
        batch = sae.batch(4, 5, seed=step)
        active = (model(**batch, attention_mask=mask, output_latents=True).latents > 0).flatten(0, 1).any(0)
        since = torch.where(active, 0, since + 12)
        fired |= active
        assert torch.equal(model.tokens_since_fired, since)
    assert torch.equal(model.dead_latents(), since >= 40)
    assert not bool((model.dead_latents() & fired).any())


@every_sae
def test_deepcopy_and_pickle_give_an_equal_model_of_its_own(sae: TinySAE) -> None:
    model = sae.model()
    batch = sae.batch(20)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.config == model.config
        assert_same(state(model), state(twin))
        assert_same(tensors_of(model(**batch)), tensors_of(twin(**batch)))
        before = state(model)
        twin.train()(**batch).loss.backward()
        assert_same(before, state(model))
    with torch.no_grad():
        output = model(**batch)
    for again in (copy.deepcopy(output.to_tuple()), pickle.loads(pickle.dumps(output)).to_tuple()):
        assert all(torch.equal(a, b) for a, b in zip(again, output.to_tuple(), strict=True))


@every_sae
def test_decode_of_one_latent_is_its_dictionary_row(sae: TinySAE) -> None:
    model = sae.model()
    latents = torch.zeros(2, 1, LATENTS)
    latents[1, 0, 7] = 2.0
    x = activations(2, 1, HIDDEN) if model.config.skip_connection else None
    skip = 0 if x is None else x @ model.W_skip.T
    scale = model.W_dec[7].norm() if getattr(model.config, "scale_latents_by_decoder_norm", False) else 1.0
    expected = model.b_dec + skip + latents[..., 7:8] / scale * model.W_dec[7]
    torch.testing.assert_close(model.decode(latents, x), expected)


@every_sae
def test_decode_of_encoded_activations_is_the_reconstruction_and_reaches_every_latent(sae: TinySAE) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        model = sae.model(dtype)
        batch = sae.batch(20, dtype=dtype)
        x = batch["activations"] if model.config.skip_connection else None
        latents = model.encode(batch["activations"]).detach().requires_grad_()
        decoded = model.decode(latents, x)
        assert decoded.dtype == dtype
        expected = model(**batch).reconstruction
        torch.testing.assert_close(decoded, expected, rtol=tolerance, atol=tolerance)
        (gradient,) = torch.autograd.grad(decoded[:, 0].sum(), latents)
        assert bool((gradient != 0).all())  # where no latent is active, too


@every_sae
def test_fold_scale_gives_the_model_of_unscaled_activations(sae: TinySAE) -> None:
    trained, folded = sae.model(), sae.model()
    batch = sae.batch(30)
    if sae.kind != "autoencoder":
        batch["targets"] *= 4
    # By a power of 2, so that nothing rounds.
    output = trained(batch["activations"] * 4, batch.get("targets"), output_latents=True)
    assert folded.fold_scale(4) is folded
    unscaled = folded(batch["activations"], batch["targets"] / 4 if "targets" in batch else None, output_latents=True)
    assert torch.equal(unscaled.latents * 4, output.latents)
    assert torch.equal(unscaled.reconstruction * 4, output.reconstruction)
    torch.testing.assert_close(unscaled.fvu, output.fvu)


@pytest.mark.parametrize("name", ["relu", "gated", "topk", "jumprelu"])
def test_calibrate_threshold_of_an_architecture_without_one_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedError, match="no threshold to calibrate"):
        TinySAE(name, "autoencoder").model().calibrate_threshold(activations(9, HIDDEN))
