"""Training by the plain transformers `Trainer`: it learns, evaluates, resumes bit for bit, runs in bfloat16."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_saes import SOME_SAES, TinySAE, activations, planted
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_mote import SAEModel

some_saes = pytest.mark.parametrize("sae", SOME_SAES, ids=str)
AUTOENCODERS = [TinySAE(sae.name, "autoencoder") for sae in SOME_SAES]


@pytest.fixture(autouse=True, scope="module")
def modules_left_out_of_garbage_collection() -> Iterator[None]:
    """Every `train()` collects garbage: what the imports made need not be gone through each time."""
    gc.freeze()
    yield
    gc.unfreeze()


def trainer(model: SAEModel, folder: Path, sae: TinySAE, **settings: Any) -> Trainer:
    """A Trainer on a planted dictionary, 32 tokens a step, 20 steps."""
    x = planted(320)
    columns = {"activations": x}
    if sae.kind != "autoencoder":
        width = model.config.decoder_size
        columns["targets"] = x @ activations(x.shape[1], width, seed=3) / 3 + 0.1
    data = [{name: value[i] for name, value in columns.items()} for i in range(len(x))]
    arguments = {
        "output_dir": str(folder),
        "max_steps": 20,
        "per_device_train_batch_size": 32,
        "per_device_eval_batch_size": 64,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        **settings,
    }
    return Trainer(model, TrainingArguments(**arguments), train_dataset=data, eval_dataset=data)


def fresh(sae: TinySAE, **overrides: Any) -> SAEModel:
    """A model at its start, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = sae.config(dead_after_tokens=100, **overrides)
        model = type(sae.model(calibrated=False))(config)
        if hasattr(config, "density_window"):
            config.density_window = 100
        return model


class Losses(TrainerCallback):
    """Keeps what the Trainer logs."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


@some_saes
def test_trainer_lowers_the_error_on_a_planted_dictionary_and_evaluates(sae: TinySAE, tmp_path: Path) -> None:
    # Without penalties, so that what falls is the reconstruction's error.
    quiet = {name: 0.0 for name in ("l1_coefficient", "l0_coefficient") if hasattr(sae.config(), name)}
    model = fresh(sae, **quiet)
    run = trainer(model, tmp_path, sae)
    batch = run.data_collator(run.train_dataset)
    before = copy.deepcopy(model).train()(**batch).fvu
    run.train()
    metrics = run.evaluate()
    with torch.no_grad():
        after = model.eval()(**batch).fvu
        chunks = [run.data_collator(run.train_dataset[start : start + 64]) for start in range(0, 320, 64)]
        expected = [model(**chunk).loss for chunk in chunks]
    assert after < 0.7 * before
    assert metrics["eval_loss"] == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)
    assert model.tokens_since_fired.max() <= 640
    if hasattr(model, "threshold_steps"):
        assert model.threshold_steps == 20


@some_saes
def test_trainer_resumed_from_a_checkpoint_equals_uninterrupted(sae: TinySAE, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 5, "logging_steps": 1}
    whole, resumed = fresh(sae), fresh(sae)
    first = trainer(whole, tmp_path / "run", sae, **settings)
    first.add_callback(kept := Losses())
    first.train()
    second = trainer(resumed, tmp_path / "run", sae, **settings)
    second.add_callback(again := Losses())
    second.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert again.losses == kept.losses[3:]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    moments, resumed_moments = first.optimizer.state_dict(), second.optimizer.state_dict()
    for index, state in moments["state"].items():
        for name, value in state.items():
            assert torch.equal(value, resumed_moments["state"][index][name]), (index, name)


@some_saes
def test_trainer_predict_returns_the_reconstruction(sae: TinySAE, tmp_path: Path) -> None:
    run = trainer(sae.model(), tmp_path, sae, label_names=["targets"] if sae.kind != "autoencoder" else None)
    predictions = run.predict(run.eval_dataset[:100])
    # The reconstruction, and none of the numbers that are of a whole batch.
    assert predictions.predictions.shape == (100, sae.config().decoder_size)
    assert predictions.metrics["test_loss"] > 0


@pytest.mark.parametrize("sae", AUTOENCODERS[::3], ids=str)
def test_trainer_in_bfloat16_autocast_learns_and_keeps_thresholds_in_float32(sae: TinySAE, tmp_path: Path) -> None:
    model = fresh(sae)
    run = trainer(model, tmp_path, sae, bf16=True, max_steps=10)
    run.add_callback(kept := Losses())
    run.args.logging_steps = 1
    run.train()
    assert len(kept.losses) == 10
    assert kept.losses[-1] < kept.losses[0]
    for name, value in model.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64), name
        assert bool(value.isfinite().all()), name


@pytest.mark.parametrize("sae", AUTOENCODERS, ids=str)
def test_training_step_in_bfloat16_autocast_is_near_the_one_in_float32(sae: TinySAE) -> None:
    exact, mixed = sae.model().train(), sae.model().train()
    batch = sae.batch(64)
    expected = exact(**batch, output_latents=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = mixed(**batch, output_latents=True)
    assert output.loss.dtype == output.fvu.dtype == torch.float32
    if hasattr(exact.config, "k"):
        assert output.l0 == expected.l0  # the budget, to the last entry
    assert abs(output.l0 - expected.l0) < 0.05 * expected.l0
    torch.testing.assert_close(output.fvu, expected.fvu, rtol=0.05, atol=0)
    if expected.sparsity_loss is not None:
        torch.testing.assert_close(output.sparsity_loss, expected.sparsity_loss, rtol=0.05, atol=0.01)
        if sae.name == "jumprelu":  # counted exactly, not in bfloat16
            assert output.sparsity_loss == output.l0
    expected.loss.backward()
    output.loss.backward()
    for name, parameter in mixed.named_parameters():
        assert parameter.grad.dtype == torch.float32
        reference = exact.get_parameter(name).grad
        assert (parameter.grad - reference).norm() < 0.3 * reference.norm(), name
    if hasattr(mixed, "threshold"):
        torch.testing.assert_close(mixed.threshold, exact.threshold, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("sae", AUTOENCODERS, ids=str)
def test_bfloat16_parameters_train(sae: TinySAE) -> None:
    model = sae.model(torch.bfloat16).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x = planted(256).bfloat16()
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        output = model(x)
        output.loss.backward()
        optimizer.step()
        losses.append(float(output.fvu))
        assert output.reconstruction.dtype == torch.bfloat16
        assert output.loss.dtype == torch.float32
    assert losses[-1] < losses[0]


def test_trainer_evaluates_between_steps_and_changes_nothing_by_it(tmp_path: Path) -> None:
    sae = TinySAE("mutual_choice", "autoencoder")
    model = fresh(sae)
    run = trainer(model, tmp_path, sae, eval_strategy="steps", eval_steps=2, max_steps=4)
    run.train()
    evaluated = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2
    twin = copy.deepcopy(model)
    run.evaluate()
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
