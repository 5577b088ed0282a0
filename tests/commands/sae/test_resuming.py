"""Commands for SAEs that were stopped go on from their run folder and write what they would have written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import contents, ran, run, said
from interruptions import passes_of
from tiny_models import tiny_model, tiny_tokenizer
from transformers import MixtralForCausalLM, Trainer

from hf_mote import TopKSAEConfig, TopKSAEModel
from hf_mote.runs import checkpoints

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away", "from", "it"]
READING = ["--tokens", 1000, "--context-length", 16]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, an SAE of it and another one, a text and another one."""
    root = tmp_path_factory.mktemp("given")
    tiny_model("mixtral").save_pretrained(root / "MODEL")
    tiny_tokenizer().save_pretrained(root / "MODEL")
    for name, k in (("SAE", 4), ("OTHER", 3)):
        made = TopKSAEConfig(hidden_size=32, num_latents=64, k=k, hookpoint="model.layers.0.output")
        TopKSAEModel(made).save_pretrained(root / name)
    for name, number in (("TEXT", 60), ("SHORTER", 50)):
        rows = [{"text": " ".join(WORDS[i % 9 :] + WORDS[: i % 4])} for i in range(number)]
        (root / name).with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = {"MODEL": "MODEL", "SAE": "SAE", "OTHER": "OTHER", "TEXT": "TEXT.jsonl", "SHORTER": "SHORTER.jsonl"}
    return {name: root / file for name, file in names.items()}


COMMANDS: dict[str, list[Any]] = {
    "evaluate": ["sae", "evaluate", "MODEL", "SAE", "TEXT", *READING],
    "top-tokens": ["sae", "top-tokens", "MODEL", "SAE", "TEXT", "--latent", 3, "--latent", 5, *READING],
    "top-tokens of the most active": ["sae", "top-tokens", "MODEL", "SAE", "TEXT", *READING],
    "experts": [
        *("sae", "experts", "MODEL", "SAE", "TEXT", "--method", "intervention", "--edit", "+5"),
        *("--latent", 3, "--latent", 5, "--tokens", 300, "--context-length", 16),
    ],
    "experts by two methods": [
        *("sae", "experts", "MODEL", "SAE", "TEXT", "--method", "prediction", "--method", "intervention"),
        *("--edit", "+5", "--top", 2, "--tokens", 300, "--context-length", 16),
    ],
}
TRAINING: dict[str, list[Any]] = {
    "adapt": ["sae", "adapt", "MODEL", "SAE", "TEXT", "--rank", 2, "--tokens", 1400],
    "train": [
        *("sae", "train", "MODEL", "TEXT", "--architecture", "batch_topk", "--latents", 48, "--tokens", 700),
        *("--batch", 64, "--k", 3),
    ],
}
MEASURED = ["--context-length", 16, "--evaluation-tokens", 300]


@pytest.mark.parametrize("name", COMMANDS)
def test_command_goes_on_where_ctrl_c_stopped_it(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    words = [places.get(word, word) for word in COMMANDS[name]]
    out = tmp_path / "out"
    with passes_of(MixtralForCausalLM) as passes:
        whole = ran(*words, "--output", out)
    expected = contents(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    _removed(out)
    with passes_of(MixtralForCausalLM, stop_at=1):
        assert "Stopped. Nothing was written." in said(run(*words, "--output", out))
    assert list(tmp_path.iterdir()) == []
    for stop in (passes.made // 3, passes.made // 3, max(passes.made // 4, 2)):
        with passes_of(MixtralForCausalLM, stop_at=stop):
            stopped = run(*words, "--output", out)
        assert stopped.exit_code == 130
        assert "the same command goes on from it" in said(stopped)
        assert [path.name for path in tmp_path.iterdir()] == ["out.run"]
    ran(*words, "--output", tmp_path / "other", "--dry-run")
    assert [path.name for path in tmp_path.iterdir()] == ["out.run"]
    with passes_of(MixtralForCausalLM) as fewer:
        found = ran(*words, "--output", out)
    assert fewer.made < passes.made
    assert contents(out) == expected
    assert found.stdout == whole.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", COMMANDS)
def test_other_settings_are_refused_and_damage_with_the_way_out(
    name: str, places: dict[str, Path], tmp_path: Path
) -> None:
    words = [places.get(word, word) for word in COMMANDS[name]]
    out = tmp_path / "out"
    with passes_of(MixtralForCausalLM) as passes:
        ran(*words, "--output", tmp_path / "whole")
    with passes_of(MixtralForCausalLM, stop_at=3 * passes.made // 4):
        run(*words, "--output", out)
    others = {"sae": ("SAE", "OTHER"), "text_sha256": ("TEXT", "SHORTER")}
    for what, (one, other) in others.items():
        refused = run(*[places[other] if word == places[one] else word for word in words], "--output", out)
        assert refused.exit_code == 1
        assert "holds a run with other settings" in said(refused)
        assert what in said(refused)
        assert "delete it to begin anew" in said(refused)
    assert run(*words, "--output", out, "--context-length", 8).exit_code == 1
    record = min((tmp_path / "out.run").rglob("*.safetensors"))
    record.write_bytes(record.read_bytes()[:-1] + b"x")
    refused = run(*words, "--output", out)
    assert refused.exit_code == 1
    assert "Delete it; it will be made again." in said(refused)
    record.unlink()
    ran(*words, "--output", out)
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_run_folder_that_was_asked_for_stays_and_serves_without_an_output(
    places: dict[str, Path], tmp_path: Path
) -> None:
    words = [places.get(word, word) for word in COMMANDS["top-tokens"]]
    given = ["--run-folder", tmp_path / "kept"]
    ran(*words, *given)
    with passes_of(MixtralForCausalLM) as passes:
        ran(*words, *given, "--output", tmp_path / "out", "--top", 2)
    assert passes.made == 0
    ran(*words, "--output", tmp_path / "plain", "--top", 2)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
    ran(*words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "out", "plain"]


@contextmanager
def steps_of_training(*, stop_at: int | None = None, ctrl_c_at: int | None = None) -> Iterator[list[int]]:
    """Note the number of each step of a Trainer; one raises KeyboardInterrupt, or gets the signal of Ctrl-C within."""
    native, noted = Trainer.training_step, []

    def step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if len(noted) + 1 == stop_at:
            raise KeyboardInterrupt
        noted.append(self.state.global_step)
        if len(noted) == ctrl_c_at:
            signal.raise_signal(signal.SIGINT)
        return native(self, *args, **kwargs)

    Trainer.training_step = step
    try:
        yield noted
    finally:
        Trainer.training_step = native


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after each step."""
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", 0)


@pytest.mark.parametrize("name", TRAINING)
def test_training_goes_on_where_it_was_stopped(
    name: str, places: dict[str, Path], tmp_path: Path, often: None
) -> None:
    words = [*(places.get(word, word) for word in TRAINING[name]), *MEASURED]
    out = tmp_path / "out"
    with steps_of_training() as steps, passes_of(MixtralForCausalLM) as passes:
        ran(*words, "--output", out)
    assert steps == list(range(len(steps)))
    assert len(steps) > 9
    expected = _files(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    _removed(out)
    for stop, begins in ((5, 0), (4, 4)):
        with steps_of_training(stop_at=stop) as some:
            stopped = run(*words, "--output", out)
        assert stopped.exit_code == 130
        assert "the same command goes on from it" in said(stopped)
        assert some[0] == begins
    kept = [path.name for path in (tmp_path / "out.run" / "training").iterdir() if path.is_dir()]
    assert kept == ["checkpoint-7"]
    # What a kill left of the next one is not gone on from.
    (tmp_path / "out.run" / "training" / "checkpoint-8").mkdir()
    refused = run(*words, "--output", out, "--learning-rate", 0.01)
    assert refused.exit_code == 1
    assert "learning_rate: 0.01" in said(refused)
    assert "delete it to begin anew" in said(refused)
    with steps_of_training() as rest, passes_of(MixtralForCausalLM) as fewer:
        ran(*words, "--output", tmp_path / "other", "--run-folder", tmp_path / "out.run")
    assert rest == steps[7:]
    assert _files(tmp_path / "other") == expected
    assert fewer.made < passes.made
    with steps_of_training() as none, passes_of(MixtralForCausalLM) as measured:
        ran(*words, "--output", out, "--run-folder", tmp_path / "out.run")
    assert none == []
    assert measured.made <= 1  # which shows the width of a new SAE
    assert _files(out) == expected
    _removed(out)
    ran(*words, "--output", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


@pytest.mark.parametrize("name", TRAINING)
def test_ctrl_c_loses_no_step_of_a_training(name: str, places: dict[str, Path], tmp_path: Path) -> None:
    words = [*(places.get(word, word) for word in TRAINING[name]), *MEASURED]
    out = tmp_path / "out"
    with steps_of_training() as steps:
        ran(*words, "--output", tmp_path / "whole")
    # Within the first step nothing is there to be kept; of `adapt` there is the report without the adapter.
    with steps_of_training(ctrl_c_at=1):
        stopped = run(*words, "--output", out)
    assert stopped.exit_code == 130
    assert ("Nothing was written." in said(stopped)) is (name == "train")
    with steps_of_training(ctrl_c_at=4) as some:
        stopped = run(*words, "--output", out)
    assert some == [0, 1, 2, 3]
    assert stopped.exit_code == 130
    assert "Stopping when this step is done and kept." in said(stopped)
    assert "the same command goes on from it" in said(stopped)
    assert not out.exists()
    with steps_of_training(ctrl_c_at=len(steps) - 4) as last:
        stopped = run(*words, "--output", out)
    assert last == steps[4:]
    assert stopped.exit_code == 130
    assert not out.exists()
    with steps_of_training() as none:
        ran(*words, "--output", out)
    assert none == []
    assert _files(out) == _files(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_damaged_checkpoint_is_refused_with_the_way_out(places: dict[str, Path], tmp_path: Path, often: None) -> None:
    words = [*(places.get(word, word) for word in TRAINING["train"]), *MEASURED]
    with steps_of_training(stop_at=5):
        run(*words, "--output", tmp_path / "out")
    file = tmp_path / "out.run" / "training" / "checkpoint-4" / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refused = run(*words, "--output", tmp_path / "out")
    assert refused.exit_code == 1
    assert "is not what the run wrote there" in said(refused)
    assert "and training begins anew" in said(refused)
    (tmp_path / "out.run" / "training" / "checkpoint.safetensors").unlink()
    with steps_of_training() as steps:
        ran(*words, "--output", tmp_path / "out")
    assert steps[0] == 0
    ran(*words, "--output", tmp_path / "whole")
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


# A command that kills itself by what nothing can catch after so many records, with a checkpoint after each step.
_KILLED = """
import os, signal, sys
from hf_mote.cli import app
from hf_mote.runs import checkpoints
from hf_mote.runs.folder import RunFolder

checkpoints.EVERY, checkpoints.SHARE = 0.0, 0
native, left = RunFolder.write, int(sys.argv.pop(1))

def write(self, *arguments):
    global left
    native(self, *arguments)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

RunFolder.write = write
app()
"""


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        ("train", (3,)),
        pytest.param("train", (3, 9), marks=pytest.mark.slow),
        pytest.param("adapt", (9,), marks=pytest.mark.slow),
    ],
)
def test_training_that_was_killed_and_typed_again_writes_what_it_would_have_written(
    name: str, kills: tuple[int, ...], places: dict[str, Path], tmp_path: Path
) -> None:
    words = [*(str(places.get(word, word)) for word in TRAINING[name]), *map(str, MEASURED)]
    paths = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    for kill_at in kills:
        command = [sys.executable, "-c", _KILLED, str(kill_at), *words, "--output", str(tmp_path / "out")]
        killed = subprocess.run(command, env=environment, capture_output=True, timeout=300, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert (tmp_path / "out.run").exists()
        assert not (tmp_path / "out").exists()
    with steps_of_training() as rest:
        ran(*words, "--output", tmp_path / "out")
    with steps_of_training() as steps:
        ran(*words, "--output", tmp_path / "whole")
    assert len(rest) < len(steps)
    assert _files(tmp_path / "out") == _files(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def _files(folder: Path) -> dict[str, bytes]:
    """All files, without when the run was and how it was started."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    lines = found.pop("README.md").decode().splitlines()
    told = [line for line in lines if not line.startswith(("- written: ", "- command: "))]
    assert len(told) == len(lines) - 2
    return {**found, "README.md": "\n".join(told).encode()}


def _removed(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
