"""Checkpoints of a Trainer in a run folder: whole, the last one alone, checked when they are read."""

from __future__ import annotations

import errno
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from hf_mote.errors import FileFormatError
from hf_mote.runs import checkpoints
from hf_mote.runs.checkpoints import Checkpoints
from hf_mote.runs.folder import RunFolder, remove_run

STEPS = 6


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 1)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": (self.line(x).squeeze(1) - labels).pow(2).mean()}


class Stop(TrainerCallback):
    """Ends a training after a step, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.after:
            raise KeyboardInterrupt


class CtrlC(TrainerCallback):
    """Sends the signal of Ctrl-C, some times, in the middle of a step: gradients are there, the optimizer waits."""

    def __init__(self, within: int, times: int = 1) -> None:
        self.within, self.times = within, times

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.within - 1:
            for _time in range(self.times):
                signal.raise_signal(signal.SIGINT)


class Noting(TrainerCallback):
    """Notes how many steps there were at the beginning of each."""

    def __init__(self, begun: list[int]) -> None:
        self.begun = begun

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.begun.append(state.global_step)


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch, _after_every_step: None) -> None:
    """No checkpoint but one that is asked for."""
    monkeypatch.setattr(checkpoints, "EVERY", 3600.0)


@pytest.fixture(autouse=True)
def _after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)


def train(folder: Path, *others: TrainerCallback) -> tuple[RunFolder, Line]:
    run = RunFolder(folder, {"kind": "test"})
    trainer = trainer_of(folder, *others)
    kept = Checkpoints(run)
    with kept.training():
        kept.train(trainer)
    model: Any = trainer.model
    return run, model


def trainer_of(folder: Path, *others: TrainerCallback) -> Trainer:
    torch.manual_seed(0)
    model = Line()
    rows = [{"x": row, "labels": row.sum()} for row in torch.randn(32, 4)]
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, per_device_train_batch_size=4, save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True, seed=0,
    )  # fmt: skip
    return Trainer(model, arguments, train_dataset=rows, callbacks=[*others])  # type: ignore[arg-type]


def kept_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_training_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    _, whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", Stop(4))
    assert kept_in(tmp_path / "run") == ["checkpoint-3"]
    # What a kill leaves of a checkpoint that was being written.
    (tmp_path / "run" / "checkpoint-4").mkdir()
    (tmp_path / "run" / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    run, again = train(tmp_path / "run")
    assert torch.equal(again.line.weight, whole.line.weight)
    assert kept_in(tmp_path / "run") == [f"checkpoint-{STEPS - 1}"]
    Checkpoints(run).remove()
    assert kept_in(tmp_path / "run") == []
    assert Checkpoints(run).last() is None


@pytest.mark.parametrize("within", [2, STEPS - 1])
def test_ctrl_c_keeps_the_step_it_came_in_and_training_goes_on_to_the_same_weights(
    within: int, seldom: None, tmp_path: Path
) -> None:
    _, whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", CtrlC(within))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert kept_in(tmp_path / "run") == [f"checkpoint-{within}"]
    begun: list[int] = []
    _, again = train(tmp_path / "run", Noting(begun))
    assert begun == list(range(within, STEPS))
    assert torch.equal(again.line.weight, whole.line.weight)


def test_ctrl_c_in_the_last_step_comes_after_what_the_block_keeps(seldom: None, tmp_path: Path) -> None:
    run = RunFolder(tmp_path, {"kind": "test"})
    kept = Checkpoints(run)
    trainer = trainer_of(tmp_path, CtrlC(STEPS))

    def trained() -> None:
        with kept.training():
            kept.train(trainer)
            run.write("trained", {"weight": torch.ones(1)})

    with pytest.raises(KeyboardInterrupt):
        trained()
    assert run.read("trained") is not None
    assert kept_in(tmp_path) == []


def test_ctrl_c_before_the_end_of_the_first_step_stops_at_once(seldom: None, tmp_path: Path) -> None:
    begun: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, CtrlC(1), Noting(begun))
    assert begun == [0]
    assert kept_in(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_ctrl_c_stops_at_once_and_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", Stop(3))
    monkeypatch.setattr(checkpoints, "EVERY", 3600.0)
    begun: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", CtrlC(5, times=2), Noting(begun))
    assert begun == [2, 3, 4]
    assert kept_in(tmp_path / "run") == ["checkpoint-2"]
    _, again = train(tmp_path / "run")
    assert torch.equal(again.line.weight, whole.line.weight)


def test_second_ctrl_c_while_the_checkpoint_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", Stop(3))
    usual = Trainer._save_optimizer_and_scheduler

    def slow(self: Trainer, output_dir: str) -> None:
        (Path(output_dir) / "optimizer.pt").write_bytes(b"half")
        signal.raise_signal(signal.SIGINT)
        usual(self, output_dir)

    monkeypatch.setattr(checkpoints, "EVERY", 3600.0)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", slow)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", CtrlC(4))
    assert (tmp_path / "run" / "checkpoint-4" / "optimizer.pt").read_bytes() == b"half"
    begun: list[int] = []
    _, again = train(tmp_path / "run", Noting(begun))
    assert begun[0] == 2
    assert torch.equal(again.line.weight, whole.line.weight)


def test_ctrl_c_while_a_checkpoint_is_written_stops_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Trainer._save_optimizer_and_scheduler

    def interrupted(self: Trainer, output_dir: str) -> None:
        signal.raise_signal(signal.SIGINT)
        usual(self, output_dir)

    monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", interrupted)
    begun: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Noting(begun))
    assert begun == [0]
    assert kept_in(tmp_path) == ["checkpoint-1"]
    assert Checkpoints(RunFolder(tmp_path, {"kind": "test"})).last() == str(tmp_path / "checkpoint-1")


def test_what_ctrl_c_does_otherwise_is_left_as_it_is(seldom: None, tmp_path: Path) -> None:
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(tmp_path / "ignored", CtrlC(2))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, usual)
    assert kept_in(tmp_path / "ignored") == []
    found: list[Any] = []
    # Signals can be handled in the main thread alone.
    other = threading.Thread(target=lambda: found.append(train(tmp_path / "thread")))
    other.start()
    other.join()
    assert len(found) == 1


@pytest.mark.parametrize(("damage", "said"), [("changed", "is not what the run wrote there"), ("gone", "is missing")])
def test_damaged_checkpoint_is_refused_by_its_file(tmp_path: Path, damage: str, said: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, Stop(4))
    path = tmp_path / "checkpoint-3" / "model.safetensors"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(FileFormatError, match=rf"model\.safetensors: {said}.*Delete .*checkpoint\.safetensors"):
        train(tmp_path)


def test_full_disk_is_our_error_and_the_checkpoint_before_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = train(tmp_path / "whole")
    usual = Trainer._save_optimizer_and_scheduler

    def full(self: Trainer, output_dir: str) -> None:
        if self.state.global_step == 3:
            (Path(output_dir) / "optimizer.pt").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        usual(self, output_dir)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", full)
        with pytest.raises(FileFormatError, match="cannot hold a checkpoint .got .*No space left.*Make room"):
            train(tmp_path / "run")
    assert Checkpoints(RunFolder(tmp_path / "run", {"kind": "test"})).last() == str(tmp_path / "run" / "checkpoint-2")
    _, again = train(tmp_path / "run")
    assert torch.equal(again.line.weight, whole.line.weight)


def test_error_of_the_training_itself_is_not_called_one_of_the_disk(tmp_path: Path) -> None:
    class Fails(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing"):
        train(tmp_path, Fails())


def test_checkpoint_is_asked_for_no_more_often_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "EVERY", 3600.0)
    train(tmp_path)
    assert kept_in(tmp_path) == []


def test_run_folder_is_removed_with_its_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", Stop(4))
    (tmp_path / "run" / "mine.txt").write_text("mine")
    remove_run(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]
