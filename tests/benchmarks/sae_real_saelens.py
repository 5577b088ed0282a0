"""SAELens' TopK for `sae_real_activations.py`: its trainer, in its environment, on batches that come by the pipe."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer


def main() -> None:
    task = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(task["seed"])
    sae = TopKTrainingSAE(TopKTrainingSAEConfig(**task["fields"]))
    config = SAETrainerConfig(
        total_training_samples=task["tokens"],
        train_batch_size_samples=task["batch"],
        lr=task["learning_rate"],
        lr_end=0.0,
        lr_warm_up_steps=task["warmup"],
        lr_decay_steps=task["tokens"] // task["batch"] - task["warmup"],
        dead_feature_window=task["dead_window"],
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(config, sae, batches(task))
    began = time.process_time()
    trainer.fit()
    seconds = time.process_time() - began
    sae.save_inference_model(task["folder"])
    print(seconds, file=ANSWERS, flush=True)  # noqa: T201


def batches(task: dict[str, Any]) -> Iterator[torch.Tensor]:
    size = 4 * task["batch"] * task["fields"]["d_in"]
    while data := sys.stdin.buffer.read(size):
        yield torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(task["batch"], -1)


if __name__ == "__main__":
    # Whatever the library prints goes elsewhere.
    ANSWERS, sys.stdout = sys.stdout, sys.stderr
    main()
