"""Several processes share the imaging out: their report is that of one, and what goes wrong in one ends all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import contents, ran, run, said

ARGUMENTS = [
    "ftri", "organism:refusal", "organism:refusal/train", "--limit", "4", "--batch-size", "2",
    "--max-new-tokens", "12", "--resamples", "19", "--traced", "1",
]  # fmt: skip
ACCELERATE = [
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--dynamo_backend", "no", "--mixed_precision", "no",
    "--main_process_port", str(20_000 + os.getpid() % 20_000), "-m", "hf_mote",
]  # fmt: skip
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "hf_mote"]


def launched(launcher: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    package = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-m", *launcher, *(str(argument) for argument in arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def test_ftri_of_accelerate_launch_gives_the_report_of_one_process_and_goes_on_from_its_batches(
    tmp_path: Path,
) -> None:
    batches = tmp_path / "run"
    ran(*ARGUMENTS, "--output", tmp_path / "one", "--run-folder", batches)
    assert len(list(batches.glob("batch-*"))) == 6
    for number in (1, 2, 5):
        (batches / f"batch-{number:06d}.safetensors").unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in batches.glob("batch-*")}
    result = launched(ACCELERATE, *ARGUMENTS, "--output", tmp_path / "two", "--run-folder", batches)
    assert result.returncode == 0, result.stderr[-2000:]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert {name: (batches / name).stat().st_mtime_ns for name in kept} == kept
    assert len(list(batches.glob("batch-*"))) == 6
    # One of them speaks.
    assert result.stdout.count("Report:") == 1
    assert result.stderr.count("imaging 12 prompts") == result.stderr.count("ranking the experts") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "run", "two"]


@pytest.mark.slow
def test_ftri_error_in_one_process_ends_all_and_writes_nothing(tmp_path: Path) -> None:
    batches, target = tmp_path / "run", tmp_path / "out"
    ran(*ARGUMENTS, "--output", tmp_path / "one", "--run-folder", batches)
    (batches / "batch-000001.safetensors").write_bytes(b"damaged")  # the second process's share
    result = launched(TORCHRUN, *ARGUMENTS, "--output", target, "--run-folder", batches)
    assert result.returncode != 0
    assert not target.exists()
    assert re.findall(r"(process \d: )?\S*batch-000001\.safetensors: cannot be read", result.stderr) == ["process 1: "]
    assert "Report:" not in result.stdout
    (batches / "batch-000001.safetensors").unlink()
    ran(*ARGUMENTS, "--output", target, "--run-folder", batches)
    assert contents(target) == contents(tmp_path / "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "out", "run"]


def test_commands_that_do_not_share_their_work_are_refused_under_a_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    result = run(
        "attribute", "organism:refusal", "organism:refusal/train/sensitive", "--limit", 2, "--target", "No.",
        "--baseline-field", "answer", "--output", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "was launched as 2 processes" in said(result)
    assert list(tmp_path.iterdir()) == []


def test_module_is_the_command() -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "hf_mote", "--version"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert re.fullmatch(r"\d+\.\d+\S*\n", result.stdout)
