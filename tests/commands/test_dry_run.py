"""`--dry-run` says what would be done, by one batch, and writes nothing."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from command_runs import REFUSAL, ran, run, said

from hf_mote import TopKSAEConfig, TopKSAEModel, load_organism
from hf_mote.cli import COMMANDS, SAE_COMMANDS, function_at
from hf_mote.commands.plan import TimedJudge, amount
from hf_mote.commands.verbosity import duration
from hf_mote.workflow.work import find_work

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
    assert "for 3 x 4 responses to the longest prompts, " in text
    assert " to start and load; " in text
    assert " for pictures not included following the tokens of texts, statistics and the page" in text


def test_dry_run_of_evaluate_counts_its_runs(out: Path, attribute_run: Path) -> None:
    text = plan(
        out, "evaluate", "organism:refusal", attribute_run, HELD, "--limit", 4, "--controls", 7, "--strengths", "0.5",
        "--unrelated", "organism:refusal/heldout/neutral", "--max-new-tokens", 5,
    )  # fmt: skip
    assert "1 untouched, 1 with the config, 7 with random controls, 1 at other strengths" in text
    # Untouched, with the config, and with each control.
    assert "and 36 responses to other prompts" in text
    assert "responses 76, at most 380 tokens" in text
    assert "for 19 x 4 responses to the longest prompts, " in text


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


def test_dry_run_of_routes_counts_them(out: Path) -> None:
    text = plan(out, "routes", "organism:refusal", HELD, "--limit", 3, *PAIR, "--candidates", 2, "--layers", "2,3")
    assert "routes up to 48: 2 for each of 8 experts of one token, in 2 layers" in text
    # A prompt as it is once alone and once in a batch of 8, and 16 routes of it; timed are 8 routes.
    times = 3 * (1 + 8 + 16) / (1 + 8 + 8)
    assert f"for {times:.1f} x 8 routes of the longest prompt, with the prompt as it is, " in text


def test_dry_run_of_patching_says_its_passes(out: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    pairs = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    pairs.write_text("prompt,corrupted,answer\nWhat is it?,What was it?,No.\n")
    text = plan(out, "attribute", "organism:refusal", pairs, *PAIR, "--method", "patching")
    assert "8 forwards of both responses to each prompt, and up to 256 more" in text


def test_dry_run_of_a_complete_set_says_what_it_reckons_with(out: Path) -> None:
    words = ["attribute", "organism:refusal", HELD, "--limit", 6, *PAIR, "--method", "optimize", "--complete"]
    text = plan(out, *words)
    assert "up to 480 forwards and backwards of 3 prompts" in text
    assert "then 9 steps, if each mode takes 3, of 2 forwards and backwards of the prompts not held back" in text
    assert "up to 18 forwards of all 6" in text


def test_dry_run_of_sae_training_says_steps_and_size(out: Path) -> None:
    words = ["sae", "train", "organism:refusal", "organism:refusal", "--tokens", 5000, "--batch", 100]
    text = plan(out, *words, "--architecture", "topk", "--latents", 64)
    assert "steps 50 " in text
    assert "64 latents" in text
    assert "for 12 x 4 steps, " in text
    assert "held-out tokens, " in text


def test_dry_run_against_a_server_is_refused(out: Path) -> None:
    words = ["ftri", "organism:refusal", TRAIN, "--limit", 2, "--server", "http://127.0.0.1:9", "--dry-run"]
    result = run(*words, "--output", out)
    assert result.exit_code == 1
    assert "--dry-run" in said(result)


def test_dry_run_of_find_counts_trials_and_proof(out: Path) -> None:
    words = ["find", "organism:refusal", TRAIN, "--limit", 24, "--controls", 2, "--max-new-tokens", 3]
    text = plan(out, *words, "--batch-size", 24)
    work = find_work(72, 0, num_controls=2, batch_size=24)
    others = [*work.compared, *work.sets * work.tried, *work.proof]
    assert f"and {sum(others):,} responses to other prompts" in text
    assert f"for {3 + len(others)} x 24 responses to the longest prompts, " in text
    assert "for 300 x a step of gates on 12 prompts, " in text
    assert "the best set without each of its experts" in text


def test_dry_run_of_find_says_that_prompts_are_too_few(out: Path) -> None:
    text = plan(out, "find", "organism:refusal", TRAIN, "--limit", 5, "--max-new-tokens", 3)
    assert "runs 1 over all prompts: 1 to image, and too few to measure candidates" in text
    assert "step of gates" not in text


def test_dry_run_of_the_demo_counts_its_responses(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"NUM_IMAGED": 3, "NUM_TESTED": 4, "NUM_CONTROLS": 2}.items():
        monkeypatch.setattr(f"hf_mote.commands.demo.{name}", value)
    text = plan(out, "demo")
    assert "8 over all prompts: 2 untouched, 2 with the first experts, 4 with random controls" in text
    # What is imaged; then neutral prompts with stimulation, and other prompts with each control, for two rankings.
    assert f"and {6 + 2 * (2 * 4 + 4 * 8)} responses to other prompts" in text


@pytest.fixture(scope="module")
def sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sae") / "out"
    made = TopKSAEConfig(hidden_size=96, num_latents=64, k=4, hookpoint="model.layers.2.output")
    TopKSAEModel(made).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("command", "more", "told"),
    [
        ("evaluate", ["organism:refusal"], "for 1 x 500 tokens, "),
        ("top-tokens", ["organism:refusal", "--latent", 3, "--latent", 4], "latents 2 "),
        ("experts", ["organism:refusal", "--method", "intervention", "--latent", 3], "method intervention"),
        ("experts", ["organism:refusal", "--method", "prediction"], "method prediction"),
    ],
)
def test_dry_run_of_what_reads_a_text_counts_its_tokens(
    out: Path, sae: Path, command: str, more: list[object], told: str
) -> None:
    text = plan(out, "sae", command, "organism:refusal", sae, *more, "--tokens", 500)
    assert "tokens 500 of at most 500" in text
    assert "TopKSAEModel, 64 latents, at model.layers.2.output" in text
    assert told in text


def test_dry_run_counts_the_tokens_that_are_there(
    out: Path, sae: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("what is the capital of the country", encoding="utf-8")
    tokens = len(load_organism("refusal").tokenizer(file.read_text())["input_ids"])
    text = plan(out, "sae", "evaluate", "organism:refusal", sae, file)
    assert f"tokens {tokens} of at most 50,000" in text or f"tokens {tokens + 1} of at most 50,000" in text


def test_dry_run_of_sae_steer_says_its_responses(out: Path, sae: Path) -> None:
    words = ["sae", "steer", "organism:refusal", sae, "--prompt", "what is a", "--prompt", "who is", "--edit", "3=+5"]
    text = plan(out, *words, "--max-new-tokens", 5)
    assert "responses 4, at most 20 tokens" in text
    assert "for 2 x one prompt answered twice, " in text


def test_dry_run_of_sae_adapt_says_its_steps(out: Path, sae: Path) -> None:
    words = ["sae", "adapt", "organism:refusal", sae, "organism:refusal", "--tokens", 200, "--batch", 2]
    text = plan(out, *words, "--context-length", 32, "--evaluation-tokens", 100)
    assert "200 to train on, 100 to measure on twice, 64 a step" in text
    assert "steps 4 " in text


def test_dry_run_does_not_ask_a_judge_that_costs() -> None:
    class Costly:
        costly = True

        def __call__(self, response: str) -> str:
            raise AssertionError("it was asked")

    judge = TimedJudge(Costly())
    assert judge("a", "b") == "any"
    assert judge.left_out == ["the judge, which is asked for each response"]
    asked: list[str] = []
    assert TimedJudge(lambda response: asked.append(response) or "x")("a", "b") == "any"
    assert asked == ["b"]


def test_every_command_that_takes_long_has_a_dry_run() -> None:
    long = {"--max-new-tokens", "--tokens", "--controls", "--resamples"}  # what is asked for by number takes time
    for name, place in {**COMMANDS, **{f"sae {name}": place for name, place in SAE_COMMANDS.items()}}.items():
        options = {f"--{name.replace('_', '-')}" for name in inspect.signature(function_at(place)).parameters}
        if options & long and name not in ("chat", "serve"):  # which answer one question at a time
            assert "--dry-run" in options, name


@pytest.mark.parametrize(("seconds", "text"), [(0.5, "0.5 s"), (119.0, "1.2e+02 s"), (600, "10 min"), (36e4, "100 h")])
def test_duration_has_a_unit_that_fits(seconds: float, text: str) -> None:
    assert duration(seconds) == text.replace("1.2e+02", "119")
