"""Where a new SAE starts: at the centre of the first batch, and with no more error than the batch's mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_saes import ALL_SAES, HIDDEN, THRESHOLDED, TinySAE, activations

from hf_mote import SAEModel, TopKSAEConfig, TopKSAEModel
from hf_mote.errors import ConfigError
from hf_mote.sae.training.start import fit_start, geometric_median, is_new


def new(sae: TinySAE, **overrides: Any) -> SAEModel:
    torch.manual_seed(0)
    return type(sae.model())(sae.config(**overrides))


def shifted(sae: TinySAE) -> dict[str, torch.Tensor]:
    """A batch far from the origin; targets that follow from it."""
    x = activations(128, HIDDEN) + 20 * activations(HIDDEN, seed=7)
    batch = {"activations": x}
    if sae.kind != "autoencoder":
        batch["targets"] = x @ activations(HIDDEN, sae.config().decoder_size, seed=3) / 3 + 5
    return batch


@pytest.mark.parametrize("width", [40, 400])
@pytest.mark.parametrize("sae", ALL_SAES, ids=str)
def test_fit_start_fvu_is_at_most_that_of_the_mean_for_every_architecture(sae: TinySAE, width: int) -> None:
    groups = {"group_sizes": [width // 4, width - width // 4]} if sae.name == "matryoshka" else {}
    model = new(sae, num_latents=width, **groups)
    batch = shifted(sae)
    before = model.train()(**batch).fvu
    fit_start(model, **batch)
    output = model.train()(**batch)
    assert before > 5
    assert output.fvu <= 1
    assert output.l0 > 0


@pytest.mark.parametrize("name", THRESHOLDED)
def test_fit_start_calibrates_so_that_evaluation_works_before_the_first_step(name: str) -> None:
    sae = TinySAE(name, "autoencoder")
    model = new(sae)
    x = shifted(sae)["activations"]
    fit_start(model, x)
    assert model.is_calibrated
    assert float((model.eval().encode(x) > 0).sum()) / len(x) == pytest.approx(4, rel=0.05)
    # What training observes first takes the place of it.
    assert model.threshold_steps == 0


def test_fit_start_at_the_mean_leaves_latents_alive_beside_an_outlier_direction() -> None:
    torch.manual_seed(0)
    x = torch.randn(2048, 64) + 20 * torch.nn.functional.normalize(torch.randn(64), dim=0)
    dead = {}
    for fitted in (False, True):
        torch.manual_seed(1)
        model = TopKSAEModel(TopKSAEConfig(hidden_size=64, num_latents=512, k=16)).train()
        if fitted:
            fit_start(model, x)
        output = model(x)
        dead[fitted] = float((model.tokens_since_fired > 0).float().mean())
    assert dead[False] > 0.3
    assert dead[True] == 0
    assert output.fvu < 0.7
    torch.testing.assert_close(model.b_dec, x.mean(0))


def test_fit_start_leaves_padding_out() -> None:
    sae = TinySAE("topk", "autoencoder")
    x = shifted(sae)["activations"]
    padded = torch.cat([x, torch.full((20, HIDDEN), 1e6)])
    mask = torch.tensor([1] * len(x) + [0] * 20)
    plain, masked = new(sae), new(sae)
    fit_start(plain, x)
    fit_start(masked, padded, attention_mask=mask)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, masked.state_dict()[key]), key


def test_geometric_median_is_not_moved_by_outliers_and_is_the_least_summed_distance() -> None:
    points = torch.randn(200, 5)
    points[:20] += 1000
    median = geometric_median(points)
    assert median.norm() < 1
    assert points.mean(0).norm() > 100

    def distance(point: torch.Tensor) -> float:
        return float((points - point).norm(dim=1).sum())

    for _ in range(20):
        assert distance(median) <= distance(median + 0.05 * torch.randn(5))


def test_fit_start_inits_give_their_centres() -> None:
    x = activations(64, HIDDEN) + 3
    for init, centre in (
        ("mean", x.mean(0)),
        ("geometric_median", geometric_median(x)),
        ("zero", torch.zeros(HIDDEN)),
    ):
        model = new(TinySAE("relu", "autoencoder"))
        fit_start(model, x, init=init)  # type: ignore[arg-type]
        torch.testing.assert_close(model.b_dec, centre)
    with pytest.raises(ConfigError, match="init: unknown name"):
        fit_start(model, x, init="median")  # type: ignore[arg-type]


def test_is_new_until_biases_move() -> None:
    model = new(TinySAE("relu", "autoencoder"))
    assert is_new(model)
    fit_start(model, activations(64, HIDDEN) + 3)
    assert not is_new(model)
