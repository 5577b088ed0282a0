"""`SAETrainer`: a step is the same however it is cut up; unit rows, weight decay, schedules, evaluation, resuming."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from tiny_saes import HIDDEN, SETTINGS, THRESHOLDED, TinySAE, activations, planted
from torch import Tensor
from transformers import TrainerCallback

from hf_mote import SAEModel, SAETrainer, SAETrainingArguments, TopKSAEConfig, TopKSAEModel
from hf_mote.errors import ConfigError, DataError, FileFormatError, UnsupportedError
from hf_mote.sae.losses import fvu
from hf_mote.sae.training.group import record_for
from hf_mote.sae.training.last_checkpoint import last_complete
from hf_mote.sae.training.step_parts import drop_parallel

EVERY = pytest.mark.parametrize("name", SETTINGS)
# One of each kind of loss and choice, for what takes longer.
SOME = pytest.mark.parametrize("name", ["gated", "topk", "jumprelu_target", "matryoshka", "feature_choice"])


class Kept(TrainerCallback):
    """Keeps what the Trainer logs."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.logs.append(dict(logs))


def fresh(name: str, **overrides: Any) -> SAEModel:
    sae = TinySAE(name, "autoencoder")
    torch.manual_seed(0)
    config = sae.config(**{"dead_after_tokens": 64, **overrides})
    if hasattr(config, "density_window"):
        config.density_window = 50
    return type(sae.model(calibrated=False))(config)


def tokens(count: int = 256) -> list[dict[str, torch.Tensor]]:
    return [{"activations": row} for row in planted(count) + 3 * activations(HIDDEN, seed=9)]


def run(
    model: Any, folder: Path, *, batch: int = 64, accumulate: int = 1, steps: int = 4, resume: Any = None, **more: Any
) -> tuple[SAETrainer, Kept]:
    arguments = {
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        **more,
    }
    data = {key: arguments.pop(key, tokens()) for key in ("train_dataset", "eval_dataset")}
    trainer = SAETrainer(model, SAETrainingArguments(str(folder), **arguments), **data)
    trainer.add_callback(kept := Kept())
    trainer.train(resume_from_checkpoint=resume)
    return trainer, kept


@SOME
def test_steps_are_the_same_whatever_the_micro_batch(name: str, tmp_path: Path) -> None:
    whole, logged = fresh(name), {}
    _, logged[64] = run(whole, tmp_path, batch=64)
    for batch in (16, 4):
        parts = fresh(name)
        _, logged[batch] = run(parts, tmp_path, batch=batch, accumulate=64 // batch)
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-3, atol=1e-4, msg=f"{batch}: {key}")
        for one, other in zip(logged[64].logs, logged[batch].logs, strict=True):
            assert one.keys() == other.keys()
            for key in one:
                assert other[key] == pytest.approx(one[key], rel=1e-3, abs=1e-5), (batch, key)


@EVERY
def test_the_loss_of_one_token_at_a_time_is_that_of_all(name: str, tmp_path: Path) -> None:
    _, whole = run(fresh(name), tmp_path, batch=64, steps=1)
    _, single = run(fresh(name), tmp_path, batch=1, accumulate=64, steps=1)
    assert single.logs[0]["loss"] == pytest.approx(whole.logs[0]["loss"], rel=1e-4)


def test_first_means_after_a_checkpoint_are_over_the_steps_since(tmp_path: Path) -> None:
    run(fresh("topk"), tmp_path, steps=3, save_strategy="steps", save_steps=3)
    _, kept = run(fresh("topk"), tmp_path, steps=6, resume=str(tmp_path / "checkpoint-3"), logging_steps=2)
    first = kept.logs[0]
    assert first["l0"] == pytest.approx(fresh("topk").config.k)
    assert first["loss"] == pytest.approx(first["fvu"], rel=0.5)


@SOME
def test_rows_are_of_unit_length_when_saved(name: str, tmp_path: Path) -> None:
    model = fresh(name)
    trainer, _ = run(model, tmp_path, steps=5)
    trainer.save_model(str(tmp_path / "saved"))
    loaded = SAEModel.from_pretrained(tmp_path / "saved")
    if model.config.normalize_decoder:
        assert (loaded.W_dec.norm(dim=1) - 1).abs().max() < 1e-5


def test_no_gradient_is_left_along_the_rows(tmp_path: Path) -> None:
    model, left = fresh("topk"), []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            along = (model.W_dec.grad * model.W_dec.detach()).sum(1).abs().max()
            left.append(float(along / model.W_dec.grad.norm()))

    arguments = SAETrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, disable_tqdm=True, save_strategy="no")
    SAETrainer(model, arguments, train_dataset=tokens(), callbacks=[Look()]).train()
    assert max(left) < 1e-6


@pytest.mark.parametrize("name", ["gated", "jumprelu", "relu"])
def test_weight_decay_is_for_matrices_only(name: str, tmp_path: Path) -> None:
    model = fresh(name)
    trainer = SAETrainer(model, SAETrainingArguments(str(tmp_path), weight_decay=1.0, use_cpu=True))
    assert set(trainer.get_decay_parameter_names(model)) == {"W_enc", "W_dec"}
    optimizer = trainer.create_optimizer()
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(model.W_enc), id(model.W_dec)}


@pytest.mark.parametrize("name", THRESHOLDED)
def test_thresholds_follow_a_schedule_of_k(name: str, tmp_path: Path) -> None:
    data = tokens(2048)
    model = fresh(name, k=4)
    trainer, _ = run(
        model, tmp_path, batch=128, steps=60, k_start=16, k_steps=20, train_dataset=data, learning_rate=1e-3
    )
    assert model.config.k == model.threshold_k == 4
    assert model.threshold_steps == 40
    x = torch.stack([row["activations"] for row in data])
    assert float((model.eval().encode(x) > 0).sum()) / len(x) == pytest.approx(4, rel=0.25)


def test_thresholds_of_another_k_are_refused_outside_training() -> None:
    model = TinySAE("batch_topk", "autoencoder").model()
    model.config.k = 8
    with pytest.raises(UnsupportedError, match="is another than the thresholds are for"):
        model.encode(activations(3, HIDDEN))


def test_sparsity_rises_with_its_schedule(tmp_path: Path) -> None:
    _, full = run(fresh("relu", l1_coefficient=10.0), tmp_path, steps=1)
    _, warm = run(fresh("relu", l1_coefficient=10.0), tmp_path, steps=1, sparsity_steps=4)
    first, second = full.logs[0], warm.logs[0]
    assert first["fvu"] == pytest.approx(second["fvu"])
    assert second["loss"] - second["fvu"] == pytest.approx((first["loss"] - first["fvu"]) / 4, rel=1e-4)


@pytest.mark.parametrize("name", [*THRESHOLDED, "topk"])
def test_evaluation_at_the_start_works_and_is_of_all_tokens_together(name: str, tmp_path: Path) -> None:
    data = tokens(100)
    model = fresh(name)
    trainer, _ = run(model, tmp_path, eval_on_start=True, eval_strategy="no", eval_dataset=data, steps=2)
    evaluated = [entry for entry in trainer.state.log_history if "eval_fvu" in entry]
    assert len(evaluated) == 1
    trainer.args.per_device_eval_batch_size = 7
    metrics = trainer.evaluate()
    x = torch.stack([row["activations"] for row in data])
    with torch.no_grad():
        output = model.eval()(x)
    assert metrics["eval_fvu"] == pytest.approx(float(fvu(x, output.reconstruction)), rel=1e-4)
    assert metrics["eval_l0"] == pytest.approx(float(output.l0), rel=1e-4)
    assert metrics["eval_mse"] == pytest.approx(float(output.mse), rel=1e-4)
    wanted = metrics["eval_mse"] if model.config.reconstruction_loss == "mse" else metrics["eval_fvu"]
    assert metrics["eval_loss"] == wanted


@SOME
def test_a_run_that_is_resumed_equals_one_that_was_not_stopped(name: str, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "steps": 5, "accumulate": 2, "batch": 16}
    whole, resumed = fresh(name), fresh(name)
    _, kept = run(whole, tmp_path / "run", **settings)
    # A checkpoint that was not finished is passed over.
    (tmp_path / "run" / "checkpoint-4" / "trainer_state.json").unlink()
    for path in (tmp_path / "run").glob("checkpoint-5"):
        path.rename(tmp_path / "later")
    _, again = run(resumed, tmp_path / "run", resume=True, **settings)
    assert [entry["loss"] for entry in again.logs] == [entry["loss"] for entry in kept.logs[2:]]
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_a_state_of_training_with_a_key_twice_is_refused(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "steps": 5, "batch": 16}
    run(fresh("topk"), tmp_path / "run", **settings)
    last, before = (tmp_path / "run" / f"checkpoint-{step}" for step in (4, 2))
    (tmp_path / "run" / "checkpoint-5").rename(tmp_path / "later")
    path = last / "trainer_state.json"
    path.write_text(path.read_text().replace("{", '{"global_step": 3, ', 1))
    assert last_complete(tmp_path / "run") == str(before)
    trainer, _ = run(fresh("topk"), tmp_path / "new", **settings)
    with pytest.raises(FileFormatError, match=r"checkpoint-4.trainer_state.json: holds a key twice .got 'global_s"):
        trainer.train(resume_from_checkpoint=str(last))
    path.write_text(path.read_text()[:40])
    with pytest.raises(FileFormatError, match=r"checkpoint-4.trainer_state.json: is not JSON"):
        trainer.train(resume_from_checkpoint=str(last))
    trainer.train(resume_from_checkpoint=str(before))
    assert trainer.state.global_step == 5


def test_several_saes_train_as_each_would_alone(tmp_path: Path) -> None:
    names = ("relu", "topk", "batch_topk")
    together = {name: fresh(name) for name in names}
    trainer, kept = run(together, tmp_path / "group", steps=3)
    for name in names:
        alone = fresh(name)
        _, single = run(alone, tmp_path / name, steps=3)
        for key, value in alone.state_dict().items():
            assert torch.equal(value, together[name].state_dict()[key]), (name, key)
        assert kept.logs[-1][f"{name}/fvu"] == pytest.approx(single.logs[-1]["fvu"])
    trainer.save_model(str(tmp_path / "saved"))
    assert type(SAEModel.from_pretrained(tmp_path / "saved" / "topk")) is type(together["topk"])
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] == pytest.approx(
        metrics["eval_relu/fvu"] + metrics["eval_topk/fvu"] + metrics["eval_batch_topk/mse"]
    )


def test_a_trained_sae_is_not_fitted_anew(tmp_path: Path) -> None:
    model = TinySAE("topk", "autoencoder").model()
    before = model.b_dec.clone()
    run(model, tmp_path, steps=1, learning_rate=0.0)
    assert torch.equal(model.b_dec, before)


def test_feature_choice_under_accumulation_has_the_budget_of_the_step(tmp_path: Path) -> None:
    # 4 tokens have 16 matches for 40 latents, and 64 have 256.
    _, kept = run(fresh("feature_choice"), tmp_path, batch=4, accumulate=16, steps=2)
    assert kept.logs[0]["l0"] == pytest.approx(4, rel=0.1)
    with pytest.raises(ConfigError, match="cannot be met"):
        run(fresh("feature_choice"), tmp_path, batch=4, accumulate=1, steps=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init": "median"}, "init: unknown name"),
        ({"choice": "local"}, "choice: unknown name"),
        ({"k_start": 4}, "k_steps: and k_start are given together"),
        ({"k_start": 0, "k_steps": 4}, "k_start: out of range"),
        ({"sparsity_steps": -1}, "sparsity_steps: out of range"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SAETrainingArguments("folder", use_cpu=True, **arguments)


def test_data_parallel_in_one_process_is_refused(tmp_path: Path) -> None:
    arguments = SAETrainingArguments(str(tmp_path), use_cpu=True)
    arguments._n_gpu = 2
    with pytest.raises(UnsupportedError, match="2 devices in one process"):
        SAETrainer(fresh("relu"), arguments, train_dataset=tokens())


@pytest.mark.parametrize("plugin", ["fsdp_plugin", "deepspeed_plugin"])
def test_sharded_parameters_are_refused_with_the_way_out(
    plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `accelerate launch` has it: the Trainer asks the state that accelerate made from its environment."""
    ordinary = SAETrainer.create_accelerator_and_postprocess

    def sharded(self: Any) -> None:
        ordinary(self)
        self.is_fsdp_enabled = plugin == "fsdp_plugin"
        self.is_deepspeed_enabled = plugin == "deepspeed_plugin"

    monkeypatch.setattr(SAETrainer, "create_accelerator_and_postprocess", sharded)
    named = "FSDP" if plugin == "fsdp_plugin" else "DeepSpeed"
    with pytest.raises(UnsupportedError, match=rf"sharded parameters.*got {named}.*MULTI_GPU or MULTI_CPU"):
        SAETrainer(fresh("relu"), SAETrainingArguments(str(tmp_path), use_cpu=True), train_dataset=tokens())


def test_a_record_by_hookpoint_goes_to_the_sae_of_it_and_else_is_refused() -> None:
    sae = fresh("relu", hookpoint="model.layers.1.output")
    x = activations(5, HIDDEN)
    assert record_for(sae, {"model.layers.1": {"activations": x}, "model.layers.2": {}}) == {"activations": x}
    assert record_for(sae, {"activations": x}) == {"activations": x}
    with pytest.raises(DataError, match=r"got 'model.layers.1.output', expected 'model.layers.2'"):
        record_for(sae, {"model.layers.2": {"activations": x}})


_TWO = """
import sys, os
from pathlib import Path
import torch
folder = Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
sys.path.insert(0, sys.argv[2] + "/sae/training")
torch.set_num_threads(1)
from test_trainer import fresh, run
choice = sys.argv[3]
found = {}
for name in sys.argv[4].split(","):
    model = fresh(name)
    trainer, kept = run(model, folder / "out", batch=32, steps=3, choice=choice, ddp_backend="gloo")
    found[name] = (model.state_dict(), kept.logs, trainer.evaluate()["eval_fvu"])
torch.save(found, folder / f"{os.environ['RANK']}.pt")
"""


def two_processes(folder: Path, choice: str, names: list[str]) -> list[dict[str, Any]]:
    tests = Path(__file__).parents[2]
    paths = [str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(29500 + os.getpid() % 2000),
    }
    command = [sys.executable, "-c", _TWO, str(folder), str(tests), choice, ",".join(names)]
    ranks = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)
    ]
    assert [rank.wait(timeout=240) for rank in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_give_one_process_its_losses_counters_and_thresholds(tmp_path: Path) -> None:
    names = list(SETTINGS)
    first, second = two_processes(tmp_path, "global", names)
    for name in names:
        model = fresh(name)
        trainer, kept = run(model, tmp_path / "one", batch=64, steps=3)
        for found in (first, second):
            state, logs, evaluated = found[name]
            for key, value in model.state_dict().items():
                torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-4, msg=f"{name}: {key}")
            assert evaluated == pytest.approx(trainer.evaluate()["eval_fvu"], rel=1e-3)
        for one, other in zip(kept.logs, first[name][1], strict=True):
            for key in one:
                assert other[key] == pytest.approx(one[key], rel=2e-3, abs=1e-4), (name, key)


@pytest.mark.slow
def test_two_processes_that_choose_each_by_itself_still_count_together(tmp_path: Path) -> None:
    first, second = two_processes(tmp_path, "process", ["batch_topk", "feature_choice"])
    for name in first:
        for key, value in first[name][0].items():
            torch.testing.assert_close(second[name][0][key], value, rtol=0, atol=0, msg=f"{name}: {key}")
        fired = first[name][0]["tokens_since_fired"]
        assert bool((fired % 64 == 0).all())


def test_gradients_lose_what_would_change_the_lengths_of_rows_in_parts_of_a_dictionary() -> None:
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=4, num_latents=1100, k=2))
    gradient = torch.randn(1100, 4)
    sae.W_dec.grad = gradient.clone()
    shapes = []
    vecdot = torch.linalg.vecdot

    def spy(first: Tensor, second: Tensor) -> Tensor:
        shapes.append(tuple(first.shape))
        return vecdot(first, second)

    with mock.patch.object(torch.linalg, "vecdot", spy):
        drop_parallel(sae)
    assert shapes == [(512, 4), (512, 4), (76, 4)]
    rows = sae.W_dec.detach()
    torch.testing.assert_close(sae.W_dec.grad, gradient - (gradient * rows).sum(1, keepdim=True) * rows)
    assert bool(((sae.W_dec.grad * rows).sum(1).abs() < 1e-5).all())
