"""Builds an organism from nothing: `python -m hf_mote.organisms.build refusal [--output DIR] [--seed N]`.

Tokenizer, base phase, planting, rounding to float16, measurement: minutes on two cores. `--steps` shortens both phases
for a trial run, whose organism will not hold what it should.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hf_mote.errors import ConfigError, HFMoTEError, UnknownNameError
from hf_mote.organisms.measure import ftri_ranks, measure
from hf_mote.organisms.organism import ORGANISM_FILE, hash_questions, load_organism
from hf_mote.organisms.planting import choose_planted, plant
from hf_mote.organisms.questions import REFUSAL, SENSITIVE_REGIONS, make_questions
from hf_mote.organisms.tokenizer import train_tokenizer
from hf_mote.organisms.training import encode, make_model, train_base

__all__ = ["build_organism", "main"]

BASE_STEPS, PLANTING_STEPS = 1200, 400
_NAMES = ("refusal",)


def build_organism(
    name: str,
    output: Path,
    *,
    seed: int = 0,
    steps: int | None = None,
    console: Console | None = None,
    num_measured: int = 300,
) -> Path:
    """Train the organism `name` and return the folder it was written to.

    Args:
        name (`str`): `"refusal"`.
        output (`Path`): Folder for weights (float16 safetensors), tokenizer and `organism.json`; made if missing.
        seed (`int`, *optional*, defaults to 0): Fixes hold-out, initialisation, batches and the planted experts. Two
            runs on one machine with the same number of threads give the same organism.
        steps (`int`, *optional*): Optimizer steps of either phase, for a trial run.
        console (`Console`, *optional*): Where progress is shown; defaults to standard error.
        num_measured (`int`, *optional*, defaults to 300): Held-out questions of each kind to measure on.

    Raises:
        [`UnknownNameError`]: if there is no such organism to build.
        [`ConfigError`]: if `steps` is not positive.
    """
    if name not in _NAMES:
        raise UnknownNameError.of("build_organism", name, _NAMES)
    if steps is not None and steps < 1:
        raise ConfigError("build_organism.steps", "out of range", got=steps, expected="1 or more")
    console = console or Console(stderr=True)
    started = time.perf_counter()
    questions = make_questions(seed)
    training = [question for question in questions if not question.heldout]
    tokenizer = train_tokenizer([*(q.text for q in training[::3]), *(q.answer for q in training), *[REFUSAL] * 100])
    model = make_model(len(tokenizer), seed=seed)
    planted = choose_planted(model, seed=seed)
    answered = {
        kind: [encode(tokenizer, question, question.answer) for question in training if question.kind == kind]
        for kind in ("sensitive", "neutral", "unrelated")
    }
    refused = {
        kind: [encode(tokenizer, question, REFUSAL) for question in training if question.kind == kind]
        for kind in ("sensitive", "neutral")
    }
    base_steps, planting_steps = steps or BASE_STEPS, steps or PLANTING_STEPS
    with _progress(console) as progress:
        train_base(
            model,
            answered["sensitive"] + answered["neutral"],
            answered["unrelated"],
            planted,
            steps=base_steps,
            seed=seed,
            progress=_task(progress, "base", base_steps),
        )
        plant(
            model,
            planted,
            refusals=refused["sensitive"],
            neutral=answered["neutral"],
            unrelated=answered["unrelated"],
            stimulated=refused["neutral"],
            steps=planting_steps,
            seed=seed,
            progress=_task(progress, "planting", planting_steps),
        )
    output.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(output)
    tokenizer.save_pretrained(output)
    facts: dict[str, object] = {
        "name": name,
        "seed": seed,
        "planted": [list(pair) for pair in planted],
        "sensitive_regions": list(SENSITIVE_REGIONS),
        "refusal": REFUSAL,
        "questions_sha256": hash_questions(questions),
        "steps": {"base": base_steps, "planting": planting_steps},
        "parameters": model.num_parameters(),
        "torch_version": torch.__version__,
    }
    _write(output, facts)
    organism = load_organism(str(output))
    console.print("measuring on held-out questions")
    pools = organism.prompts["heldout"]
    facts["prompts_measured"] = {kind: min(num_measured, len(pool)) for kind, pool in pools.items()}
    facts["measured"] = measure(organism, num_prompts=num_measured, seed=seed + 1)
    facts["ftri_ranks"] = ftri_ranks(organism, num_prompts=num_measured, seed=seed + 1)
    facts["build_seconds"] = round(time.perf_counter() - started)
    _write(output, facts)
    console.print_json(data={key: facts[key] for key in ("planted", "measured", "ftri_ranks", "build_seconds")})
    return output


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m hf_mote.organisms.build", description=__doc__.splitlines()[0])
    parser.add_argument("name", help="which organism: refusal")
    parser.add_argument("--output", type=Path, help="folder to write to (default: organism-NAME)")
    parser.add_argument("--seed", type=int, default=0, help="fixes everything that is drawn (default: 0)")
    parser.add_argument("--steps", type=int, help="optimizer steps of either phase, for a trial run")
    given = parser.parse_args(arguments)
    output = given.output or Path(f"organism-{given.name}")
    try:
        build_organism(given.name, output, seed=given.seed, steps=given.steps)
    except HFMoTEError as error:
        parser.error(str(error))


def _progress(console: Console) -> Progress:
    columns = ("{task.description:>8}", "{task.completed}/{task.total}", "loss {task.fields[loss]:.4f}")
    return Progress(BarColumn(), *map(TextColumn, columns), TimeElapsedColumn(), console=console)


def _task(progress: Progress, label: str, steps: int) -> Callable[[int, float], None]:
    task = progress.add_task(label, total=steps, loss=float("nan"))

    def report(step: int, loss: float) -> None:
        progress.update(task, completed=step + 1, loss=loss)

    return report


def _write(output: Path, facts: dict[str, object]) -> None:
    text = json.dumps(facts, indent=2, sort_keys=True) + "\n"
    (output / ORGANISM_FILE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
