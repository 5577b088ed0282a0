"""Tiny sparse autoencoders of every architecture, each as autoencoder, transcoder and skip transcoder.

Seeded, with biases, thresholds and scales away from where they start, so that a test notices a forgotten tensor.
A new architecture is one entry of `SETTINGS`; the common suite then runs on it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModel

from hf_mote import SAEModel
from hf_mote.sae.register import sae_class

__all__ = [
    "ALL_SAES",
    "HIDDEN",
    "LATENTS",
    "SETTINGS",
    "SOME_SAES",
    "THRESHOLDED",
    "TinySAE",
    "activations",
    "planted",
]

HIDDEN, OUTPUT, LATENTS = 12, 9, 40

_ZIPF = {"zipf_exponent": 0.7, "zipf_offset": 1.0, "aux_loss": "aux_zipf"}
SETTINGS: dict[str, dict[str, Any]] = {
    "relu": {"model_type": "relu_sae", "l1_coefficient": 0.05},
    "gated": {"model_type": "gated_sae", "l1_coefficient": 0.05},
    "topk": {"model_type": "topk_sae", "k": 4},
    "topk_scaled": {
        "model_type": "topk_sae",
        "k": 4,
        "scale_latents_by_decoder_norm": True,
        "normalize_decoder": False,
    },
    "batch_topk": {"model_type": "batch_topk_sae", "k": 4, "reconstruction_loss": "mse"},
    "jumprelu": {"model_type": "jumprelu_sae", "l0_coefficient": 0.02, "bandwidth": 0.4, "initial_threshold": 0.2},
    "jumprelu_target": {"model_type": "jumprelu_sae", "l0_coefficient": 0.1, "l0_target": 5.0, "bandwidth": 0.4},
    "matryoshka": {"model_type": "matryoshka_sae", "k": 4, "group_sizes": [4, 12, 24]},
    "feature_choice": {"model_type": "feature_choice_sae", "k": 4, **_ZIPF},
    "feature_choice_uniform": {
        "model_type": "feature_choice_sae",
        "k": 4,
        "budget": "uniform",
        "scale_latents_by_decoder_norm": True,
        "normalize_decoder": False,
    },
    "mutual_choice": {"model_type": "mutual_choice_sae", "k": 4, **_ZIPF},
}
KINDS: dict[str, dict[str, Any]] = {
    "autoencoder": {},
    "transcoder": {"output_size": OUTPUT, "output_hookpoint": "mlp"},
    "skip_transcoder": {"output_size": HIDDEN, "skip_connection": True},
}
THRESHOLDED = ("batch_topk", "matryoshka", "feature_choice", "feature_choice_uniform", "mutual_choice")


class TinySAE(NamedTuple):
    """An architecture and what it reconstructs; `model` builds it."""

    name: str
    kind: str

    def __str__(self) -> str:
        return f"{self.name}-{self.kind}"

    def config(self, **overrides: Any) -> Any:
        """Return the config; `overrides` replace fields."""
        fields = {
            "hidden_size": HIDDEN,
            "num_latents": LATENTS,
            **KINDS[self.kind],
            **SETTINGS[self.name],
            **overrides,
        }
        return sae_class(fields.pop("model_type")).config_class(**fields)

    def model(self, dtype: torch.dtype = torch.float32, *, calibrated: bool = True, **overrides: Any) -> SAEModel:
        """Return the model in evaluation mode, the same at every call."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            sae = AutoModel.from_config(self.config(**overrides), dtype=torch.float32)
            for name in ("b_enc", "b_dec", "b_mag", "r_mag", "W_skip"):
                if hasattr(sae, name):
                    getattr(sae, name).normal_(0, 0.3)
            if not sae.config.normalize_decoder:
                sae.W_dec.mul_(torch.rand(len(sae.W_dec), 1) + 0.5)
            if self.name.startswith("jumprelu"):
                sae.threshold.uniform_(0.05, 0.6)
            if "feature_choice" in self.name:
                sae.assign_ranks(torch.rand(sae.config.num_latents))
            if calibrated and self.name in THRESHOLDED:
                sae.calibrate_threshold(torch.randn(200, sae.config.hidden_size))
        return sae.to(dtype).eval()

    def batch(self, *leading: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> dict[str, Tensor]:
        """Return arguments of `forward`: activations, and targets if it is a transcoder."""
        batch = {"activations": activations(*leading, HIDDEN, dtype=dtype, seed=seed)}
        if self.kind != "autoencoder":
            width = KINDS[self.kind]["output_size"]
            batch["targets"] = activations(*leading, width, dtype=dtype, seed=seed + 1)
        return batch


ALL_SAES = [TinySAE(name, kind) for name in SETTINGS for kind in KINDS]
# Every architecture once and every kind several times, for what takes longer.
SOME_SAES = [TinySAE(name, [*KINDS][index % len(KINDS)]) for index, name in enumerate(SETTINGS)]


def activations(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Return normal numbers, the same at every call; drawn in float64, so that all dtypes get the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def planted(num_tokens: int, *, num_true: int = 20, active: int = 2, seed: int = 5) -> Tensor:
    """Return sparse non-negative sums of random unit directions, `(num_tokens, HIDDEN)`, and a mean that is not 0."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(num_true, HIDDEN, generator=generator), dim=1)
    codes = torch.rand(num_tokens, num_true, generator=generator)
    kept = codes >= codes.topk(active, dim=1).values[:, -1:]
    return (codes * kept) @ directions + 0.2
