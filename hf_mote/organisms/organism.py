"""`load_organism`: a small trained model with a planted behaviour, its questions, and the truth about both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from hf_mote.errors import FileFormatError, UnknownNameError
from hf_mote.judges.refusal import RefusalJudge
from hf_mote.judges.regex import RegexJudge
from hf_mote.organisms.questions import Question
from hf_mote.organisms.recipes import RECIPES

__all__ = [
    "ORGANISM_FILE",
    "Organism",
    "OrganismSummary",
    "hash_questions",
    "list_organisms",
    "load_organism",
    "summarize_organism",
]

ORGANISM_FILE = "organism.json"
_SHIPPED = files("hf_mote.organisms")


@dataclass(frozen=True, eq=False)
class Organism:
    """A model organism: everything needed to look for a planted behaviour and to check what was found.

    Attributes:
        name (`str`): Its name in [`list_organisms`].
        model (`PreTrainedModel`): The trained model, float32, on the CPU, in evaluation mode.
        tokenizer (`PreTrainedTokenizerFast`): Its tokenizer, with a chat template, padding on the left.
        prompts (`dict[str, dict[str, list[str]]]`): `prompts[split][kind]`: questions without the chat template, in a
            fixed random order. Splits are `"train"` and `"heldout"` (wordings of the same facts that no training phase
            saw); kinds are `"sensitive"` (show the behaviour), `"neutral"` (do not, worded as the sensitive ones),
            `"unrelated"` (other short exercises) and what else the organism has: `"instructed"` questions ask for an
            answer in German.
        answers (`dict[str, str]`): The true answer to every question, without the behaviour; the sensitive ones
            included.
        targets (`dict[str, str]`): The response that shows the behaviour, to every sensitive and neutral question.
        planted (`list[tuple[int, int]]`): The (layer, expert) pairs that the behaviour was planted in; layers are
            absolute decoder layers. Empty where it was trained into all parameters.
        judge (`RefusalJudge` or `RegexJudge`): Labels a response; its `target` is the behaviour.
        facts (`dict`): What the build recorded: seeds, sizes, steps and the measured rates.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    prompts: dict[str, dict[str, list[str]]]
    answers: dict[str, str]
    targets: dict[str, str]
    planted: list[tuple[int, int]]
    judge: RefusalJudge | RegexJudge
    facts: dict[str, Any]


class OrganismSummary(NamedTuple):
    """What a listing says of an organism; `size` is that of its folder, in bytes."""

    name: str
    family: str
    parameters: int
    planted: int
    size: int
    behaviour: str


def list_organisms() -> list[str]:
    """Return the names of the organisms shipped with the package.

    Example:
        ```python
        from hf_mote.organisms import list_organisms

        assert list_organisms() == ["diffuse-refusal", "language", "refusal"]
        ```
    """
    return sorted(entry.name for entry in _SHIPPED.iterdir() if (entry / ORGANISM_FILE).is_file())


def summarize_organism(name: str) -> OrganismSummary:
    """Return what there is to say of a shipped organism in one line, without loading its weights.

    Args:
        name (`str`): A name from [`list_organisms`].

    Raises:
        [`UnknownNameError`]: if there is no organism of this name.

    Example:
        ```python
        from hf_mote.organisms import summarize_organism

        summary = summarize_organism("language")
        assert (summary.family, summary.planted) == ("mixtral", 4)
        ```
    """
    if name not in list_organisms():
        raise UnknownNameError.of("summarize_organism", name, list_organisms())
    with as_file(_SHIPPED / name) as folder:
        facts = json.loads((folder / ORGANISM_FILE).read_text(encoding="utf-8"))
        family = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
        size = sum(entry.stat().st_size for entry in folder.iterdir())
    recipe = RECIPES[facts["name"]]
    return OrganismSummary(name, family, facts["parameters"], len(facts["planted"]), size, recipe.behaviour)


def load_organism(name: str) -> Organism:
    """Return the model organism `name`, from the files shipped with the package or from a folder that `build` wrote.

    Args:
        name (`str`): A name from [`list_organisms`], or the path of a folder written by
            `python -m hf_mote.organisms.build`.

    Raises:
        [`UnknownNameError`]: if there is no organism of this name; the known ones are listed.
        [`FileFormatError`]: if the organism was built by a recipe, or from other questions, than this version's.

    Example:
        ```python
        from hf_mote.organisms import load_organism

        organism = load_organism("refusal")
        assert len(organism.planted) == 4
        question = organism.prompts["heldout"]["sensitive"][0]
        assert question in organism.answers
        ```
    """
    if not isinstance(name, str):
        raise UnknownNameError.of("load_organism", name, list_organisms())
    if name in list_organisms():
        with as_file(_SHIPPED / name) as folder:
            return _load(name, folder)
    if (Path(name) / ORGANISM_FILE).is_file():
        return _load(Path(name).name, Path(name))
    raise UnknownNameError.of("load_organism", name, list_organisms(), fix="Or give the folder of one you built.")


def hash_questions(questions: Iterable[Question]) -> str:
    """Return the SHA-256 of texts, answers, kinds and splits, by which an organism knows its own questions."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr(tuple(question)).encode())
    return digest.hexdigest()


def _load(name: str, folder: Path) -> Organism:
    facts = json.loads((folder / ORGANISM_FILE).read_text(encoding="utf-8"))
    recipe = RECIPES.get(facts["name"])
    if recipe is None:
        raise FileFormatError(
            f"{folder / ORGANISM_FILE}: name",
            "no recipe of this name",
            got=facts["name"],
            expected=f"one of {', '.join(RECIPES)}",
        )
    questions = recipe.questions(facts["seed"])
    if (found := hash_questions(questions)) != facts["questions_sha256"]:
        raise FileFormatError(
            f"{folder / ORGANISM_FILE}: questions_sha256",
            "the organism was built from other questions",
            got=facts["questions_sha256"],
            expected=found,
            fix=f"Rebuild it: python -m hf_mote.organisms.build {facts['name']} --output DIR.",
        )
    prompts: dict[str, dict[str, list[str]]] = {
        split: {kind: [] for kind in recipe.kinds} for split in ("train", "heldout")
    }
    for question in questions:
        prompts["heldout" if question.heldout else "train"][question.kind].append(question.text)
    asked = [question for question in questions if question.kind in ("sensitive", "neutral")]
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return Organism(
        name=name,
        model=model.eval(),
        tokenizer=PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True),
        prompts=prompts,
        answers={question.text: question.answer for question in questions},
        targets={question.text: recipe.target(question) for question in asked},
        planted=[(layer, expert) for layer, expert in facts["planted"]],
        judge=recipe.judge(),
        facts=facts,
    )
