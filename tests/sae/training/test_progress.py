"""How far a training is: one bar with the last losses, which does not outlive the training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from hf_mote import SAETrainer, SAETrainingArguments, TopKSAEConfig, TopKSAEModel
from hf_mote.sae.training.progress import TrainingProgress


def trainer_in(folder: Path) -> SAETrainer:
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=8, num_latents=16, k=2))
    rows = [{"activations": row} for row in torch.randn(64, 8)]
    arguments = SAETrainingArguments(
        str(folder), max_steps=4, per_device_train_batch_size=16, logging_steps=2, save_strategy="no", report_to=[],
        use_cpu=True,
    )  # fmt: skip
    return SAETrainer(sae, arguments, train_dataset=rows)


def test_bar_takes_the_place_of_what_the_trainer_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, said = trainer_in(tmp_path), []
    with TrainingProgress(said.append).of(trainer):
        trainer.train()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said == []
    assert "training: 100%" in captured.err
    assert "4/4" in captured.err
    assert "FVU 0." in captured.err
    assert "{" not in captured.err


def test_lines_where_bars_are_hidden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, said = trainer_in(tmp_path), []
    logging.disable_progress_bar()
    try:
        with TrainingProgress(said.append).of(trainer):
            trainer.train()
    finally:
        logging.enable_progress_bar()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    assert [line.partition(":")[0] for line in said] == ["step 2 of 4", "step 4 of 4"]
    assert all(", FVU 0." in line and line.endswith(", L0 2") for line in said)
