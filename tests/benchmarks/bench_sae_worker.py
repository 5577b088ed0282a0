"""One process of `bench_sae.py`: makes one autoencoder, then takes a training step for every line it reads.

It needs torch and the one library it measures, so that each library can have its own environment. A step is the
forward with its loss, backward, fused Adam, and what the library's own trainer does about the decoder's norm.
Clipping, logging and counting of what fired are left out where the model itself does not do them.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[torch.Tensor], None]


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    make = LIBRARIES[task["library"]]
    build = make(task)
    batches = [activations(task, seed) for seed in range(4)]
    idle = peak_bytes()
    torch.manual_seed(0)
    step = build()
    answer({"torch": torch.__version__})
    for number, line in enumerate(sys.stdin):
        if line.strip() == "stop":
            break
        began, worked = time.perf_counter(), time.process_time()
        step(batches[number % len(batches)])
        answer({"wall": time.perf_counter() - began, "cpu": time.process_time() - worked})
    answer({"bytes": peak_bytes() - idle})


def activations(task: dict[str, Any], seed: int) -> torch.Tensor:
    """Tokens of different lengths, so that selection across the batch gives them different numbers of latents."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(task["batch"], task["hidden"], generator=generator)
    return directions * torch.exp(0.3 * torch.randn(task["batch"], 1, generator=generator))


def encoder(task: dict[str, Any]) -> Callable[[], Step]:
    """The encoder's matrix product alone, into memory that is there already."""

    def build() -> Step:
        weight = torch.randn(task["latents"], task["hidden"]) / task["hidden"] ** 0.5
        product = torch.zeros(task["batch"], task["latents"])

        def step(batch: torch.Tensor) -> None:
            torch.mm(batch, weight.t(), out=product)

        return step

    return build


def hf_mote(task: dict[str, Any]) -> Callable[[], Step]:
    import hf_mote as library

    sizes = {"hidden_size": task["hidden"], "num_latents": task["latents"], "k": task["k"]}
    config, model = {
        "TopK": ("TopKSAEConfig", "TopKSAEModel"),
        "Mutual Choice": ("MutualChoiceSAEConfig", "MutualChoiceSAEModel"),
        "Feature Choice, uniform": ("FeatureChoiceSAEConfig", "FeatureChoiceSAEModel"),
        "Feature Choice, Zipf": ("FeatureChoiceSAEConfig", "FeatureChoiceSAEModel"),
    }[task["kind"]]
    if "Feature" in task["kind"]:
        sizes["budget"] = "zipf" if "Zipf" in task["kind"] else "uniform"
    # Names are imported when they are asked for first.
    make_config, make_model = getattr(library, config), getattr(library, model)

    def build() -> Step:
        sae = make_model(make_config(**sizes)).train()
        optimizer = adam(sae)

        def step(batch: torch.Tensor) -> None:
            sae(batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return build


def saelens(task: dict[str, Any]) -> Callable[[], Step]:
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

    sizes = {"d_in": task["hidden"], "d_sae": task["latents"], "k": task["k"]}

    def build() -> Step:
        if task["kind"] == "BatchTopK":
            sae: Any = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**sizes))
        else:
            # Its sparse activations have no backward on the CPU if they are scaled by the decoder's norm.
            sparse = "sparse" in task["kind"]
            config = TopKTrainingSAEConfig(
                **sizes, use_sparse_activations=sparse, rescale_acts_by_decoder_norm=not sparse
            )
            sae = TopKTrainingSAE(config)
        optimizer = adam(sae.train())

        def step(batch: torch.Tensor) -> None:
            inputs = TrainStepInput(
                sae_in=batch, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
            )
            sae.training_forward_pass(inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return build


def sparsify(task: dict[str, Any]) -> Callable[[], Step]:
    from sparsify import SparseCoder, SparseCoderConfig

    def build() -> Step:
        sae = SparseCoder(task["hidden"], SparseCoderConfig(num_latents=task["latents"], k=task["k"]))
        optimizer = adam(sae)

        def step(batch: torch.Tensor) -> None:
            sae.set_decoder_norm_to_unit_norm()
            sae(batch).fvu.backward()
            sae.remove_gradient_parallel_to_decoder_directions()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return build


LIBRARIES = {"encoder": encoder, "hf_mote": hf_mote, "saelens": saelens, "sparsify": sparsify}


def adam(module: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)


def peak_bytes() -> int:
    """Most memory that the process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def answer(fields: dict[str, Any]) -> None:
    print(json.dumps(fields), file=ANSWERS, flush=True)  # noqa: T201


if __name__ == "__main__":
    # Whatever a library prints goes elsewhere.
    ANSWERS, sys.stdout = sys.stdout, sys.stderr
    main()
