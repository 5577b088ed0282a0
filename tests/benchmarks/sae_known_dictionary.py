"""SAEs on activations whose dictionary is known: which find it, with as many latents as it has rows and with far more.

    python tests/benchmarks/sae_known_dictionary.py [--latents 256 2048] [--seeds 0 1 2]

A token is a sum of unit directions out of 256 in 128 dimensions, drawn once for each seed. The j-th most frequent is
there with a probability in proportion to 1 / j, at most 1/2, independent of the others, so that 6 are there on
average; its amount is 1 plus an exponential one of mean 0.5; noise of 0.01 in each dimension is added. All SAEs of a
size are trained by one `SAETrainer` on the same 400 batches of 1,024 tokens, k = 6, and measured on 20,480 others.

FVU and L0 on these; dead: active on none of them. A direction counts as found if a row of the decoder has a cosine of
0.9 with it or more; a row that is alive and has less with every direction counts as spurious. Mean and standard
deviation over seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
import transformers
from sae_real_activations import show, spread
from torch import Tensor

import hf_mote
from hf_mote import SAEModel, SAETrainer, SAETrainingArguments

WIDTH, FEATURES, ACTIVE, K = 128, 256, 6.0, 6
STEPS, BATCH, TESTED = 400, 1024, 20_480
FOUND = 0.9
SHARED = {"hidden_size": WIDTH, "k": K, "dead_after_tokens": 65_536}
WINDOW = {"density_window": 65_536}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "TopK": ("TopKSAE", {"aux_loss": None}),
    "TopK, aux_k": ("TopKSAE", {}),
    "Mutual Choice (BatchTopK)": ("MutualChoiceSAE", {**WINDOW, "aux_loss": None}),
    "Mutual Choice (BatchTopK), aux_k": ("MutualChoiceSAE", WINDOW),
    "Mutual Choice, aux_zipf": ("MutualChoiceSAE", {**WINDOW, "aux_loss": "aux_zipf"}),
    "Feature Choice, Zipf": ("FeatureChoiceSAE", {**WINDOW, "aux_loss": None}),
    "Feature Choice, Zipf, aux_zipf": ("FeatureChoiceSAE", {**WINDOW, "aux_loss": "aux_zipf"}),
}
COLUMNS = {"fvu": ".4f", "l0": ".2f", "dead": ".1%", "found": ".1%", "spurious": ".0f"}


class World:
    """Directions, and how often each is there."""

    def __init__(self, seed: int) -> None:
        # Other numbers than those that an SAE of this seed begins with: otherwise it begins with the directions.
        self.generator = torch.Generator().manual_seed(10_000 + seed)
        rows = torch.randn(FEATURES, WIDTH, generator=self.generator)
        self.directions = rows / rows.norm(dim=1, keepdim=True)
        weights = 1 / torch.arange(1, FEATURES + 1)
        scale = ACTIVE / weights.sum()
        for _ in range(100):  # what is cut off at 1/2 goes to the others
            scale = scale * ACTIVE / (scale * weights).clamp(max=0.5).sum()
        self.probabilities = (scale * weights).clamp(max=0.5)

    def tokens(self, number: int) -> Tensor:
        there = torch.rand(number, FEATURES, generator=self.generator) < self.probabilities
        amounts = 1 + torch.empty(number, FEATURES).exponential_(2.0, generator=self.generator)
        noise = 0.01 * torch.randn(number, WIDTH, generator=self.generator)
        return (there * amounts) @ self.directions + noise


def trained(world: World, num_latents: int, seed: int) -> dict[str, SAEModel]:
    """Train all on the same batches."""
    transformers.set_seed(seed)
    saes = {}
    for name, (kind, fields) in ROWS.items():
        config = getattr(hf_mote, f"{kind}Config")(num_latents=num_latents, **SHARED, **fields)
        saes[name] = getattr(hf_mote, f"{kind}Model")(config)
    tokens = world.tokens(STEPS * BATCH)
    with tempfile.TemporaryDirectory() as scratch:
        settings = SAETrainingArguments(
            scratch,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=2e-3,
            warmup_steps=50,
            save_strategy="no",
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to=[],
            use_cpu=True,
            seed=seed,
        )
        SAETrainer(saes, settings, train_dataset=[{"activations": row} for row in tokens]).train()
    for sae in saes.values():
        sae.eval()
        if hasattr(sae, "threshold_steps"):
            sae.calibrate_threshold(iter(tokens.split(BATCH)))
    return saes


@torch.no_grad()
def measured(sae: SAEModel, world: World, tokens: Tensor) -> dict[str, float]:
    """Measure one on tokens that it was not trained on."""
    output = sae(tokens, output_latents=True)
    alive = (output.latents > 0).any(0)
    rows = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)
    cosines = rows @ world.directions.T
    return {
        "fvu": float((tokens - output.reconstruction).square().sum() / (tokens - tokens.mean(0)).square().sum()),
        "l0": float((output.latents > 0).sum(1).float().mean()),
        "dead": float((~alive).float().mean()),
        "found": float((cosines[alive].max(0).values >= FOUND).float().mean()),
        "spurious": float((cosines[alive].max(1).values < FOUND).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, nargs="+", default=[256, 2048])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for num_latents in options.latents:
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
        for seed in options.seeds:
            world = World(seed)
            saes = trained(world, num_latents, seed)
            tokens = world.tokens(TESTED)
            for name, sae in saes.items():
                found[name].append(measured(sae, world, tokens))
        show(f"\n| {num_latents:,} latents, {len(options.seeds)} seeds | {' | '.join(COLUMNS)} |")
        show(f"| --- |{' --: |' * len(COLUMNS)}")
        for name, rows in found.items():
            cells = (spread([row[key] for row in rows], form) for key, form in COLUMNS.items())
            show(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
