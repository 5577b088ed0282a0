"""Architectures that select across a batch: thresholds followed in training, calibrated exactly, required outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_saes import HIDDEN, LATENTS, THRESHOLDED, TinySAE, activations
from torch import Tensor

from hf_mote.errors import ConfigError, DataError, UnsupportedError

SAES = [TinySAE(name, "autoencoder") for name in THRESHOLDED]
every_sae = pytest.mark.parametrize("sae", SAES, ids=str)
K = 4


def affinities(model: Any, x: Tensor) -> Tensor:
    """ReLU(W_enc (x - b_dec) + b_enc), times the length of the dictionary's rows where the model has it so."""
    pre = (x - model.b_dec) @ model.W_enc.T + model.b_enc
    scale = model.W_dec.norm(dim=1) if model.config.scale_latents_by_decoder_norm else 1.0
    return (pre * scale).relu().detach()


@every_sae
def test_uncalibrated_model_is_refused_outside_training_and_the_remedies_work(sae: TinySAE) -> None:
    model = sae.model(calibrated=False)
    x = activations(60, HIDDEN)
    assert not model.is_calibrated
    for use in (model, model.encode):
        with pytest.raises(UnsupportedError, match=r"no threshold yet.*Train it, or call calibrate_threshold"):
            use(x)
    model.calibrate_threshold(x)
    assert model.is_calibrated
    assert model(x).l0 == K
    trained = sae.model(calibrated=False).train()
    trained(x).loss.backward()
    assert trained.is_calibrated
    assert trained.eval()(x).l0 > 0


@every_sae
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_calibrate_threshold_spends_exactly_the_budget(sae: TinySAE, dtype: torch.dtype) -> None:
    for num_tokens in (11, 57, 1500):
        x = activations(num_tokens, HIDDEN, dtype=dtype)
        model = sae.model(dtype, calibrated=False)
        # Everything is positive, so that nothing but the budget limits.
        model.b_enc.data += 20
        assert model.calibrate_threshold(x) is model
        active = model.encode(x) > 0
        assert int(active.sum()) == K * num_tokens
        budgets = model._budgets(num_tokens)
        assert int(budgets.sum()) == K * num_tokens
        if len(budgets) > 1:
            assert torch.equal(active.sum(0), budgets)


@every_sae
def test_calibrate_threshold_equals_brute_force(sae: TinySAE) -> None:
    x = activations(83, HIDDEN)
    model = sae.model(calibrated=False).calibrate_threshold(x)
    affinity = affinities(model, x)
    budgets = model._budgets(len(x))
    columns = affinity.T if len(budgets) > 1 else affinity.reshape(1, -1)
    expected = []
    for column, budget in zip(columns.tolist(), budgets.tolist(), strict=True):
        positive = sorted((value for value in column if value > 0), reverse=True)
        expected.append(positive[budget] if len(positive) > budget else 0.0)
    torch.testing.assert_close(model.threshold.reshape(-1), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@every_sae
def test_calibrate_threshold_of_a_stream_equals_that_of_its_tokens(sae: TinySAE) -> None:
    x = activations(90, HIDDEN)
    expected = sae.model(calibrated=False).calibrate_threshold(x).threshold
    mask = activations(6, 20) < 0
    assert 0 < int(mask.sum()) < 70
    padded = torch.full((6, 20, HIDDEN), torch.nan)
    padded[mask] = x[20 : 20 + int(mask.sum())]
    batches = [x[:7], x[7:20].reshape(1, 13, HIDDEN), {"activations": padded, "attention_mask": mask}]
    batches += [{"activations": x[20 + int(mask.sum()) :], "labels": None}, x[:0]]

    def generated() -> Iterator[Any]:
        yield from batches

    for stream in (x.reshape(9, 10, HIDDEN), batches, tuple(batches), generated(), {"activations": x}):
        assert torch.equal(sae.model(calibrated=False).calibrate_threshold(stream).threshold, expected)
    # The state of the model plays no part.
    training = sae.model(calibrated=False).train()
    assert torch.equal(training.calibrate_threshold(x).threshold, expected)
    assert training.training


@every_sae
def test_calibrate_threshold_takes_no_more_than_max_tokens_from_a_stream(sae: TinySAE) -> None:
    x = activations(90, HIDDEN)
    taken = []

    def endless() -> Iterator[Tensor]:
        while True:
            taken.append(len(taken))
            yield x[(10 * len(taken) - 10) % 90 :][:10]

    expected = sae.model(calibrated=False).calibrate_threshold(x[:45]).threshold
    model = sae.model(calibrated=False)
    assert torch.equal(model.calibrate_threshold(endless(), max_tokens=45).threshold, expected)
    assert len(taken) == 5


@every_sae
def test_calibrate_threshold_failure_leaves_everything_as_it_was(sae: TinySAE) -> None:
    model = sae.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = activations(50, HIDDEN)
    broken = x.clone()
    broken[3, 2] = torch.nan
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (x[:0], {}, "no tokens"),
        ([], {}, "no tokens"),
        ([{"activations": x, "attention_mask": torch.zeros(50)}], {}, "no tokens"),
        (broken, {}, "token 3 holds NaN"),
        ([x, broken], {}, "token 3 holds NaN"),
        ([x, x[:, :5]], {}, "wrong width"),
        ([x, x.long()], {}, "must be a float tensor"),
        ([x, {"tokens": x}], {}, "no activations"),
        ([x, {"activations": x, "attention_mask": torch.ones(49)}], {}, "wrong shape"),
        (5, {}, "must be a stream"),
        (["text"], {}, "must be a float tensor"),
        *(([x], {"max_tokens": wrong}, "max_tokens: must be a number of tokens") for wrong in (0, -1, 2.5, True, "9")),
    ]
    for stream, settings, message in wrong:
        with pytest.raises(DataError, match=message):
            model.calibrate_threshold(stream, **settings)
    if sae.name.startswith("feature_choice"):
        with pytest.raises(ConfigError, match=r"36 matches for 40 latents in 9 tokens, expected 40\.\.360"):
            model.calibrate_threshold(x[:9])
        with pytest.raises(ConfigError, match="36 matches for 40 latents"):
            model.calibrate_threshold([x[:9]])
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@every_sae
def test_thresholds_compare_in_float32_whatever_the_dtype_of_the_model(sae: TinySAE) -> None:
    model = sae.model(torch.bfloat16)
    # In bfloat16 0.999 is 1, and 1 is not above it.
    model.threshold.fill_(0.999)
    pre = torch.ones(1, LATENTS, dtype=torch.bfloat16)
    assert bool((model._activate(pre) == 1).all())


@every_sae
def test_threshold_followed_in_training_is_the_mean_of_each_steps_smallest_selected(sae: TinySAE) -> None:
    model = sae.model(calibrated=False, threshold_decay=0.9, normalize_decoder=False).train()
    observed = []
    for seed in range(15):
        x = activations(40, HIDDEN, seed=seed)
        latents = model(x, output_latents=True).latents.detach()
        budgets = model._budgets(40)
        columns = latents.T if len(budgets) > 1 else latents.reshape(1, -1)
        smallest = [
            float(column[column > 0].min()) if int((column > 0).sum()) == budget else 0.0
            for column, budget in zip(columns, budgets.tolist(), strict=True)
        ]
        observed.append(torch.tensor(smallest))
    assert model.threshold_steps == 15
    # The plain mean of 10 steps, then 0.9 of the old and 0.1 of the new.
    expected = torch.stack(observed[:10]).mean(0)
    for step in observed[10:]:
        expected = 0.9 * expected + 0.1 * step
    torch.testing.assert_close(model.threshold.reshape(-1), expected, rtol=1e-5, atol=1e-6)


@every_sae
def test_threshold_goes_on_in_training_after_calibration(sae: TinySAE) -> None:
    model = sae.model(threshold_decay=0.5).train()
    x = activations(40, HIDDEN)
    model(x)
    first = model.threshold.clone()
    model(x * 2)
    assert model.threshold_steps == 2
    assert not torch.equal(model.threshold, first)


def test_latent_without_a_budget_is_never_active_outside_training() -> None:
    steep = {"zipf_exponent": 6.0, "min_budget": 0, "budget": "zipf"}
    model = TinySAE("feature_choice", "autoencoder").model(calibrated=False, **steep).train()
    model.b_enc.data += 20
    x = activations(40, HIDDEN)
    none = model._budgets(40) == 0
    assert 0 < int(none.sum()) < LATENTS
    model(x)
    assert model.is_calibrated
    assert not bool((model.eval().encode(x)[:, none] > 0).any())
    # A larger batch has some for more of them: these are followed from here on.
    model.train()(activations(4000, HIDDEN))
    still = model._budgets(4000) == 0
    assert int(still.sum()) < int(none.sum())
    assert bool((model.threshold[none & ~still] < 1e3).all())
    assert bool((model.threshold[still] > 1e30).all())
    model(x)
    assert bool((model.threshold[none & ~still] < 1e3).all())
    model.fold_scale(1e30)
    assert bool((model.threshold[still] > 1e38).all())


@every_sae
def test_threshold_outside_training_gives_about_the_budget_after_training(sae: TinySAE) -> None:
    model = sae.model(calibrated=False).train()
    model.b_enc.data += 5
    for seed in range(30):
        model(activations(100, HIDDEN, seed=seed))
    l0 = float(model.eval()(activations(400, HIDDEN, seed=99)).l0)
    assert l0 == pytest.approx(K, rel=0.1)


def test_mutual_choice_selects_as_batch_topk_does() -> None:
    x = activations(50, HIDDEN)
    settings = {"reconstruction_loss": "fvu", "aux_loss": None}
    mutual = TinySAE("mutual_choice", "autoencoder").model(**settings).train()
    batch = TinySAE("batch_topk", "autoencoder").model(**settings).train()
    ours, theirs = mutual(x, output_latents=True), batch(x, output_latents=True)
    assert torch.equal(ours.latents, theirs.latents)
    assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(mutual.threshold, batch.threshold)


def test_assign_ranks_gives_larger_budgets_to_denser_latents() -> None:
    model = TinySAE("feature_choice", "autoencoder").model()
    densities = activations(LATENTS).abs()
    densities[7] = densities[3]
    model.assign_ranks(densities)
    budgets = model._budgets(1000)
    order = densities.argsort(descending=True, stable=True)
    assert bool((budgets[order].diff() <= 0).all())
    assert model.latent_rank[3] + 1 == model.latent_rank[7]
    assert sorted(model.latent_rank.tolist()) == list(range(LATENTS))
    before = model.latent_rank.clone()
    for wrong in (densities[:5], torch.full((LATENTS,), torch.nan), torch.zeros(LATENTS, 1)):
        with pytest.raises(DataError, match="assign_ranks: densities"):
            model.assign_ranks(wrong)
    assert torch.equal(model.latent_rank, before)


def test_feature_choice_batch_too_small_for_its_floor_is_refused_with_the_numbers() -> None:
    model = TinySAE("feature_choice", "autoencoder").model(min_budget=3).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"80 matches for 40 latents in 20 tokens, expected 120\.\.800.*min_budget"):
        model(activations(20, HIDDEN))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.config.min_budget = 0  # the remedy
    model(activations(20, HIDDEN)).loss.backward()
