"""`--dry-run` says what would be done, by one batch, and writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_runs import REFUSAL, ran, run, said

from hf_mote.commands.plan import amount, duration

TRAIN, HELD = "organism:refusal/train", "organism:refusal/heldout/sensitive"
PAIR = ["--target", REFUSAL, "--baseline-field", "answer"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def plan(out: Path, *words: object) -> str:
    text = said(ran(*words, "--dry-run", "--output", out))
    assert not out.exists()
    assert list(out.parent.iterdir()) == []
    assert text.endswith("Nothing was written. The same command without --dry-run does it.")
    assert "This would be done:" in text
    return text


def test_dry_run_of_ftri_says_prompts_tokens_memory_and_time(out: Path) -> None:
    text = plan(out, "ftri", "organism:refusal", TRAIN, "--limit", 4, "--max-new-tokens", 5, "--batch-size", 4)
    assert "12 from organism:refusal/train" in text
    assert "1 over all prompts: 1 to image" in text
    assert "responses 12, at most 60 tokens" in text
    assert f"result {amount(8 * 12 * 256)} of memory" in text
    assert "4 responses took" in text


def test_dry_run_of_evaluate_counts_its_runs(out: Path, attribute_run: Path) -> None:
    text = plan(
        out, "evaluate", "organism:refusal", attribute_run, HELD, "--limit", 4, "--controls", 7, "--strengths", "0.5",
        "--unrelated", "organism:refusal/heldout/neutral", "--max-new-tokens", 5,
    )  # fmt: skip
    assert "1 untouched, 1 with the config, 7 with random controls, 1 at other strengths" in text
    assert "and 44 responses to other prompts" in text
    assert "responses 84, at most 420 tokens" in text


def test_dry_run_of_evaluate_counts_what_opposite_and_against_add(out: Path, attribute_run: Path) -> None:
    words = ["evaluate", "organism:refusal", attribute_run, HELD, "--limit", 4, "--controls", 7, "--max-new-tokens", 5]
    opposite = ["--opposite", "organism:refusal/heldout/neutral"]
    # Untouched, stimulated, and 7 controls, on 4 prompts.
    assert "and 36 responses to other prompts" in plan(out, *words, *opposite)
    text = plan(out, *words, *opposite, "--against", attribute_run)
    assert "2 untouched, 2 with the config, 14 with random controls; and 36 responses to other prompts" in text


def test_dry_run_of_sweep_counts_its_settings(out: Path, attribute_run: Path) -> None:
    words = ["sweep", "organism:refusal", attribute_run, HELD, "--limit", 4, "--experts", "1,2", "--controls", 3]
    assert "1 untouched, 2 with a setting, 6 with random controls" in plan(out, *words, "--max-new-tokens", 5)


@pytest.mark.parametrize(
    ("method", "runs"),
    [
        ("attribution", "one forward and backward"),
        ("ablation", "257 forwards"),
        ("optimize", "up to 480 forwards and backwards"),
    ],
)
def test_dry_run_of_attribute_says_its_passes(out: Path, method: str, runs: str) -> None:
    text = plan(out, "attribute", "organism:refusal", HELD, "--limit", 3, *PAIR, "--method", method)
    assert runs in text
    assert f"method {method}" in text


def test_dry_run_of_sae_training_says_steps_and_size(out: Path) -> None:
    words = ["sae", "train", "organism:refusal", "organism:refusal", "--tokens", 5000, "--batch", 100]
    text = plan(out, *words, "--architecture", "topk", "--latents", 64)
    assert "steps 50 " in text
    assert "64 latents" in text
    assert "4 steps took" in text


def test_dry_run_against_a_server_is_refused(out: Path) -> None:
    words = ["ftri", "organism:refusal", TRAIN, "--limit", 2, "--server", "http://127.0.0.1:9", "--dry-run"]
    result = run(*words, "--output", out)
    assert result.exit_code == 1
    assert "--dry-run" in said(result)


@pytest.mark.parametrize(("seconds", "text"), [(0.5, "0.5 s"), (119.0, "1.2e+02 s"), (600, "10 min"), (36e4, "100 h")])
def test_duration_has_a_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text.replace("1.2e+02", "119")
