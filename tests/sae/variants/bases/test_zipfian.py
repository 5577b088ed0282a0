"""What Feature and Mutual Choice know of Zipf's law: densities, neglected latents, and `aux_zipf` against `aux_k`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_saes import HIDDEN, LATENTS, TinySAE, activations

from hf_mote.errors import ConfigError

NAMES = ("feature_choice", "mutual_choice")
every_sae = pytest.mark.parametrize("sae", [TinySAE(name, "autoencoder") for name in NAMES], ids=str)


def step(model: Any, seed: int = 1, tokens: int = 30) -> Any:
    """A forward and backward in training."""
    model.zero_grad()
    output = model.train()(activations(tokens, HIDDEN, seed=seed, dtype=model.W_enc.dtype), output_latents=True)
    output.loss.backward()
    return output


@every_sae
def test_density_is_the_share_of_tokens_decayed_by_tokens(sae: TinySAE) -> None:
    model = sae.model(density_window=200)
    expected = torch.zeros(LATENTS)
    total = 0
    for seed, tokens in enumerate([20, 40, 30, 60, 100, 50, 30, 30]):
        latents = step(model, seed, tokens).latents
        total += tokens
        share = (latents > 0).float().mean(0)
        rate = max(tokens / total, 1 - math.exp(-tokens / 200))
        expected += rate * (share - expected)
        torch.testing.assert_close(model.density, expected)
        assert model.density_tokens == total
    assert float(model.density.sum()) == pytest.approx(model.config.k, rel=1e-2)


@every_sae
def test_density_does_not_depend_on_how_tokens_are_cut_into_steps(sae: TinySAE) -> None:
    """Within the window a plain mean over tokens; a step of twice the tokens weighs as much as two."""
    model = sae.model(density_window=10**9)
    counts = torch.zeros(LATENTS)
    for seed, tokens in enumerate([15, 60, 25]):
        counts += (step(model, seed, tokens).latents > 0).sum(0)
    torch.testing.assert_close(model.density, counts / 100)


@every_sae
def test_padding_and_evaluation_leave_densities_alone(sae: TinySAE) -> None:
    model = sae.model().train()
    model(torch.zeros(2, 3, HIDDEN), attention_mask=torch.zeros(2, 3))
    model.eval()(activations(30, HIDDEN))
    assert model.density_tokens == 0
    assert not bool(model.density.any())


@every_sae
def test_neglected_latents_are_those_below_their_share_of_the_law(sae: TinySAE) -> None:
    model = sae.model(density_window=50, zipf_exponent=1.0, zipf_offset=2.0, aux_zipf_share=0.5)
    weights = torch.tensor([1 / (rank + 2) for rank in range(1, LATENTS + 1)]).double()
    law = (weights / weights.sum() * model.config.k).float()
    assert float(law.max()) < 1  # no cap is met, so that this is the law
    ranks = torch.randperm(LATENTS, generator=torch.Generator().manual_seed(0))
    model.density_tokens.fill_(50)
    model.density.copy_(law[ranks])
    assert not bool(model.neglected_latents().any())
    # The three rarest fall below half of what the law has for their rank, one of them just so.
    rarest = (ranks >= LATENTS - 3).nonzero().squeeze(1)
    model.density[rarest] = law[-3:].sort(descending=True).values * torch.tensor([0.49, 0.4, 0.0])
    assert torch.equal(model.neglected_latents().nonzero().squeeze(1).sort().values, rarest.sort().values)
    model.density[rarest[0]] = law[-3] * 0.51
    assert int(model.neglected_latents().sum()) == 2
    model.config.aux_zipf_share = 0.05
    assert int(model.neglected_latents().sum()) == 1
    model.density_tokens.fill_(49)
    assert not bool(model.neglected_latents().any())


@every_sae
def test_dead_latents_are_neglected_whatever_the_law_says(sae: TinySAE) -> None:
    # So steep a law has nothing for the last ranks.
    model = sae.model(zipf_exponent=8.0, dead_after_tokens=100, density_window=50)
    model.density_tokens.fill_(50)
    model.tokens_since_fired[[3, 30]] = 100
    assert bool(model.neglected_latents()[[3, 30]].all())


@every_sae
@pytest.mark.parametrize("limit", ["share", "window"])
def test_aux_zipf_is_aux_k_in_its_limit(sae: TinySAE, limit: str) -> None:
    """No share of the law, or no densities yet: what is left of `aux_zipf` is `aux_k`, to the last bit."""
    settings = {"share": {"aux_zipf_share": 0.0, "density_window": 1}, "window": {"density_window": 10**9}}[limit]
    zipf = sae.model(torch.float64, aux_loss="aux_zipf", dead_after_tokens=60, **settings)
    plain = sae.model(torch.float64, aux_loss="aux_k", dead_after_tokens=60)
    for model in (zipf, plain):
        model.W_enc.data[:8] *= 0.05
        model.b_enc.data[:8] = 0.0
        model.tokens_since_fired[:8] = 60
    for seed in range(3):
        ours, theirs = step(zipf, seed), step(plain, seed)
        # Later Feature Choice has none dead: it gives every latent a token.
        assert theirs.aux_loss is not None or (seed and sae.name == "feature_choice")
        assert list(ours) == list(theirs)
        assert theirs.aux_loss is None or torch.equal(ours.aux_loss, theirs.aux_loss)
        assert torch.equal(ours.loss, theirs.loss)
        for name, parameter in zipf.named_parameters():
            assert torch.equal(parameter.grad, plain.get_parameter(name).grad), name


@every_sae
def test_aux_zipf_share_draws_in_latents_that_aux_k_leaves(sae: TinySAE) -> None:
    settings = {"aux_loss": "aux_zipf", "density_window": 30, "dead_after_tokens": 10**6}
    few = sae.model(torch.float64, aux_zipf_share=0.1, **settings)
    many = sae.model(torch.float64, aux_zipf_share=1.0, **settings)
    for model in (few, many):
        step(model)
        assert not bool(model.dead_latents().any())
    assert int(few.neglected_latents().sum()) < int(many.neglected_latents().sum())
    assert step(many).aux_loss is not None


@pytest.mark.parametrize("name", ["topk", "batch_topk", "matryoshka"])
def test_aux_zipf_of_an_architecture_without_densities_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"aux_loss: is not one of this architecture .*got 'aux_zipf'.*'aux_k'"):
        TinySAE(name, "autoencoder").config(aux_loss="aux_zipf")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("zipf_exponent", -1.0),
        ("zipf_exponent", 21),
        ("zipf_offset", -0.5),
        ("aux_zipf_share", 1.5),
        ("density_window", 0),
    ],
)
def test_zipfian_config_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: out of range \(got {value}"):
        TinySAE("mutual_choice", "autoencoder").config(**{name: value})
