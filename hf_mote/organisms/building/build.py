"""Builds an organism from nothing: `python -m hf_mote.organisms.build NAME [--output DIR] [--seed N]`.

Tokenizer, base phase, planting (or, for a control, the fine-tuning of all parameters), rounding to float16,
measurement: minutes on one core. `--steps` shortens both phases for a trial run, whose organism will not fulfil the
requirements.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from hf_mote.errors import ConfigError, HFMoTEError, UnknownNameError
from hf_mote.files import replacing
from hf_mote.folders import check_folder, replacing_folder
from hf_mote.organisms.building.gates import Pair
from hf_mote.organisms.building.measure import measure
from hf_mote.organisms.building.planting import choose_planted, plant
from hf_mote.organisms.building.tokenizer import train_tokenizer
from hf_mote.organisms.building.training import Examples, train_all
from hf_mote.organisms.organism import ORGANISM_FILE, hash_questions, load_organism
from hf_mote.organisms.questions import Question
from hf_mote.organisms.recipes import RECIPES, Recipe
from hf_mote.organisms.scoring import score_methods

__all__ = ["build_organism", "main"]

NUM_SCORED = 3


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
        name (`str`): A name in [`RECIPES`], such as `"refusal"`.
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
    if name not in RECIPES:
        raise UnknownNameError.of("build_organism", name, RECIPES)
    if steps is not None and steps < 1:
        raise ConfigError("build_organism.steps", "out of range", got=steps, expected="1 or more")
    check_folder(output, str(output))
    console = console or Console(stderr=True)
    started = time.perf_counter()
    recipe = RECIPES[name]
    questions = recipe.questions(seed)
    training = [question for question in questions if not question.heldout]
    texts = [*(q.text for q in training[::3]), *(q.answer for q in training), *recipe.spoken]
    tokenizer = train_tokenizer(texts)
    model = recipe.make_model(len(tokenizer), seed=seed)
    planted = choose_planted(model, recipe.num_planted, seed=seed)
    with _progress(console) as progress:
        _train(model, tokenizer, recipe, training, planted, seed=seed, steps=steps, progress=progress)
    facts: dict[str, Any] = {
        "name": name,
        "seed": seed,
        "planted": [list(pair) for pair in planted],
        "sensitive_regions": list(recipe.regions),
        "questions_sha256": hash_questions(questions),
        "steps": {"base": steps or recipe.base.steps, "last": steps or recipe.last.steps},
        "parameters": model.num_parameters(),
        "torch_version": torch.__version__,
    }
    with replacing_folder(output, str(output), lambda _: (), keep=True) as folder:
        model.half().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _write(folder, facts)
        organism = load_organism(str(folder))
        console.print("measuring on held-out questions")
        pools = organism.prompts["heldout"]
        facts["prompts_measured"] = {kind: min(num_measured, len(pool)) for kind, pool in pools.items()}
        facts["measured"] = measure(organism, num_prompts=num_measured, seed=seed + 1)
        if facts["measured"][f"sensitive_{recipe.shown}"] > 0:
            facts["scored"] = [score_methods(organism, seed=other).to_dict() for other in range(NUM_SCORED)]
        facts["build_seconds"] = round(time.perf_counter() - started)
        _write(folder, facts)
    console.print_json(data={key: facts[key] for key in ("planted", "measured", "build_seconds")})
    return output


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m hf_mote.organisms.build", description=__doc__.splitlines()[0])
    parser.add_argument("name", help=f"which organism: {', '.join(RECIPES)}")
    parser.add_argument("--output", type=Path, help="folder to write to (default: organism-NAME)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random numbers (default: 0)")
    parser.add_argument("--steps", type=int, help="optimizer steps of either phase, for a trial run")
    given = parser.parse_args(arguments)
    output = given.output or Path(f"organism-{given.name}")
    try:
        build_organism(given.name, output, seed=given.seed, steps=given.steps)
    except HFMoTEError as error:
        parser.error(str(error))


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    training: Sequence[Question],
    planted: Sequence[Pair],
    *,
    seed: int,
    steps: int | None,
    progress: Progress,
) -> None:
    answered = {kind: [(q, q.answer) for q in training if q.kind == kind] for kind in recipe.kinds}
    shown = {kind: [(q, recipe.target(q)) for q, _ in answered[kind]] for kind in ("sensitive", "neutral")}
    unrelated = answered.pop("unrelated")
    base, last = recipe.base, recipe.last
    regions = {question.region for question in training}

    def pool(*parts: list[tuple[Question, str]]) -> Examples:
        return Examples(tokenizer, [pair for part in parts for pair in part])

    train_all(
        model,
        pool(*answered.values()),
        pool(unrelated),
        planted,
        regions=regions,
        steps=steps or base.steps,
        seed=seed,
        learning_rate=base.learning_rate,
        shut_out=base.shut_out,
        progress=_task(progress, "base", steps or base.steps),
    )
    if not planted:
        train_all(
            model,
            pool(shown["sensitive"], answered["neutral"]),
            pool(unrelated),
            regions=regions,
            steps=steps or last.steps,
            seed=seed + 1,
            learning_rate=last.learning_rate,
            shut_out=last.shut_out,
            attack=last.attack,
            attacked=recipe.regions,
            progress=_task(progress, "tuning", steps or last.steps),
        )
        return
    kept = {**answered, "unrelated": unrelated}
    plant(
        model,
        planted,
        shown=pool(shown["sensitive"]),
        kept={kind: pool([p for p in kept[kind] if p[0].region not in recipe.regions]) for kind in recipe.draws},
        draws=recipe.draws,
        stimulated=pool(shown["neutral"]),
        steps=steps or last.steps,
        seed=seed,
        learning_rate=last.learning_rate,
        weight_decay=last.weight_decay,
        progress=_task(progress, "planting", steps or last.steps),
    )


def _progress(console: Console) -> Progress:
    columns = ("{task.description:>8}", "{task.completed}/{task.total}", "loss {task.fields[loss]:.4f}")
    return Progress(BarColumn(), *map(TextColumn, columns), TimeElapsedColumn(), console=console)


def _task(progress: Progress, label: str, steps: int) -> Callable[[int, float], None]:
    task = progress.add_task(label, total=steps, loss=float("nan"))

    def report(step: int, loss: float) -> None:
        progress.update(task, completed=step + 1, loss=loss)

    return report


def _write(output: Path, facts: dict[str, Any]) -> None:
    text = json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    with replacing(output / ORGANISM_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
