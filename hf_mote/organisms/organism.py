"""`load_organism`: a small trained model with a planted behaviour, its questions, and the true answers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel, PreTrainedTokenizerFast

from hf_mote.errors import ConfigError, FileFormatError, UnknownNameError, first_line
from hf_mote.files import local_path, read_json, read_safetensors
from hf_mote.judges.refusal import RefusalJudge
from hf_mote.judges.regex import RegexJudge
from hf_mote.organisms.building.tokenizer import CHAT_TEMPLATE
from hf_mote.organisms.questions import Question
from hf_mote.organisms.recipes import RECIPES, TOKENS, Recipe
from hf_mote.organisms.variants import VARIANTS, Base, change

__all__ = [
    "ORGANISM_FILE",
    "Organism",
    "OrganismSummary",
    "hash_questions",
    "list_organisms",
    "load_organism",
    "make_variant",
    "summarize_organism",
]

ORGANISM_FILE = "organism.json"
_SHIPPED = files("hf_mote.organisms")
_MOST_TOKENS = 2**17
_MOST_BYTES = 2**24  # of a tokenizer's files
# What a build writes of a tokenizer: how texts are encoded, filled up and decoded.
_OF_TOKENIZER: dict[str, Any] = {
    "bos_token": None,
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|end|>",
    "model_max_length": int(1e30),  # which transformers writes where there is no limit
    "pad_token": "<|pad|>",
    "padding_side": "left",
}
_SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")


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
            `"unrelated"` (other short exercises) and further kinds: `"instructed"` questions ask for an
            answer in German.
        answers (`dict[str, str]`): The true answer to every question, without the behaviour; the sensitive ones
            included.
        targets (`dict[str, str]`): The response that shows the behaviour, to every sensitive and neutral question.
        planted (`list[tuple[int, int]]`): The (layer, expert) pairs that the behaviour was planted in; layers are
            absolute decoder layers. Empty where it was trained into all parameters.
        judge (`RefusalJudge` or `RegexJudge`): Labels a response; its `target` is the behaviour.
        facts (`dict`): What the build recorded: seeds, sizes, steps and the measured rates.
        decoys (`list[tuple[int, int]]`): Experts that fire with the planted ones and do not carry the behaviour; of
            organisms that [`make_variant`] makes.
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
    decoys: list[tuple[int, int]] = field(default_factory=list)


class OrganismSummary(NamedTuple):
    """The entry of an organism in a listing; `size` is that of its folder, in bytes."""

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
    """Return a one-line summary of a shipped organism, without loading its weights.

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
        facts, recipe = _read_facts(folder)
        family = recipe.settings["model_type"]
        size = sum(entry.stat().st_size for entry in folder.iterdir())
    return OrganismSummary(name, family, facts["parameters"], len(facts["planted"]), size, recipe.behaviour)


def load_organism(name: str) -> Organism:
    """Return the model organism `name`, from the files shipped with the package or from a folder that `build` wrote.

    Args:
        name (`str`): A name from [`list_organisms`], one of these with the name of a variant behind it, such as
            `"refusal-decoys"` (see [`make_variant`]), or the path of a folder written by
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
    base, _, variant = name.partition("-")
    if base in list_organisms() and variant in VARIANTS:
        return make_variant(variant, load_organism(base))
    folder = local_path(name)
    if os.path.isfile(folder / ORGANISM_FILE):
        return _load(folder.name, folder)
    raise UnknownNameError.of("load_organism", name, list_organisms(), fix="Or give the folder of one you built.")


def make_variant(name: str, base: Organism, *, seed: int = 0) -> Organism:
    """Return a harder organism, made by editing the weights of another: rankings or verdicts may fail on it.

    `"twins"`: carriers have copies that work. `"decoys"`: they have neighbours that fire with them and do nothing.
    `"trap"`: without them the text breaks. `"last-token"`: one expert, on the last token of the prompt alone.
    `"backup"`: experts that fire only where the carriers are silent take over from them. `"redundant"`: twins, and
    then backups of all carriers.

    Args:
        name (`str`): The variant.
        base (`Organism`): A freshly loaded organism with planted experts; its model is changed and becomes the new
            one's.
        seed (`int`, *optional*, defaults to 0): Which experts are used, and of what is drawn.

    Raises:
        [`UnknownNameError`]: if there is no such variant.
        [`ConfigError`]: if the base has no planted experts, or a token has no slot for a neighbour of one.

    Example:
        ```python
        from hf_mote.organisms import load_organism, make_variant

        organism = make_variant("decoys", load_organism("refusal"), seed=1)
        assert len(organism.decoys) == 2 and len(organism.planted) == 4
        ```
    """
    if name not in VARIANTS:
        raise UnknownNameError.of("make_variant", name, VARIANTS)
    if not base.planted:
        raise ConfigError("make_variant.base", "has no planted experts", got=base.name)
    given = Base(base.model, base.tokenizer, base.prompts["train"], base.answers, base.targets, base.planted)
    truth = change(name, given, seed=seed)
    return replace(
        base,
        name=f"{base.name}-{name}",
        planted=truth.planted,
        decoys=truth.decoys,
        judge=truth.judge or base.judge,
    )


def hash_questions(questions: Iterable[Question]) -> str:
    """Return the SHA-256 of texts, answers, kinds and splits, by which an organism identifies its own questions."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr(tuple(question)).encode())
    return digest.hexdigest()


def _load(name: str, folder: Path) -> Organism:
    facts, recipe = _read_facts(folder)
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
    model = _read_model(folder, recipe)
    return Organism(
        name=name,
        model=model,
        tokenizer=_read_tokenizer(folder, model.config.vocab_size),
        prompts=prompts,
        answers={question.text: question.answer for question in questions},
        targets={question.text: recipe.target(question) for question in asked},
        planted=[(layer, expert) for layer, expert in facts["planted"]],
        judge=recipe.judge(),
        facts=facts,
    )


def _read_facts(folder: Path) -> tuple[dict[str, Any], Recipe]:
    """Return the checked record of a build, and the recipe that it names."""
    path = folder / ORGANISM_FILE
    facts = read_json(path)
    name = facts.get("name")
    if not isinstance(name, str) or name not in RECIPES:
        raise FileFormatError(
            f"{path}: name", "unknown recipe", got=repr(name), expected=f"one of {', '.join(RECIPES)}"
        )
    recipe = RECIPES[name]
    layers, experts = recipe.grid
    planted, pairs = facts.get("planted"), f"[layer, expert] pairs of {layers} layers and {experts} experts"
    for key, right, expected in (
        ("seed", _whole(facts.get("seed"), 0, 2**63), "a whole number, 0 or more"),
        ("parameters", _whole(facts.get("parameters", 1), 1, 2**63), "a whole number above 0"),
        ("questions_sha256", isinstance(facts.get("questions_sha256"), str), "a text"),
        ("planted", isinstance(planted, list) and all(_pair(one, layers, experts) for one in planted), pairs),
    ):
        if not right:
            raise FileFormatError(f"{path}: {key}", "wrong type or value", got=repr(facts.get(key)), expected=expected)
    return facts, recipe


def _whole(value: object, least: int, end: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < end


def _pair(value: object, layers: int, experts: int) -> bool:
    return isinstance(value, list) and len(value) == 2 and _whole(value[0], 0, layers) and _whole(value[1], 0, experts)


def _read_model(folder: Path, recipe: Recipe) -> PreTrainedModel:
    """Return the model, float32: of the recipe's config, which the folder's must repeat, and of checked tensors."""
    path, weights = folder / "config.json", folder / "model.safetensors"
    found = read_json(path)
    vocab_size = found.get("vocab_size")
    if not _whole(vocab_size, 1, _MOST_TOKENS):
        expected = f"1..{_MOST_TOKENS - 1}"
        raise FileFormatError(f"{path}: vocab_size", "wrong type or value", got=repr(vocab_size), expected=expected)
    config = recipe.make_config(int(str(vocab_size)))
    for key, wanted in {**recipe.settings, **TOKENS}.items():
        if key not in found or found[key] != wanted or isinstance(found[key], bool) is not isinstance(wanted, bool):
            raise FileFormatError(
                f"{path}: {key}", "must be the recipe's", got=repr(found.get(key)), expected=repr(wanted)
            )
    # What the recipe leaves to transformers: the model is built with these, whatever the file says.
    rotary, said = getattr(config, "rope_parameters", None) or {}, found.get("rope_parameters")
    for key, wanted in rotary.items():
        if said is not None and (not isinstance(said, dict) or said.get(key, wanted) != wanted):
            where = f"{path}: rope_parameters"
            raise FileFormatError(where, "must be the recipe's", got=repr(said)[:80], expected=repr(rotary))
    tensors = read_safetensors(weights)
    for tensor_name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.itemsize < 2 or not bool(tensor.isfinite().all()):
            raise FileFormatError(f"{weights}: {tensor_name}", "must hold finite floats", got=tensor.dtype)
    # From a config and tensors, so that transformers reads no file of the folder.
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    try:
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
        )
    # transformers stacks the experts here, which raises various errors for tensors that do not fit.
    except Exception as error:
        raise FileFormatError(str(weights), "does not fit the recipe", got=first_line(error)) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            got = ", ".join(sorted(str(key) for key in info[kind])[:5])
            raise FileFormatError(f"{weights}", f"has {kind.replace('_', ' ')}", got=got, expected="the recipe's")
    model.config.name_or_path = str(folder)
    model.config.architectures = [model_class.__name__]
    checked: PreTrainedModel = model.eval()
    return checked


def _read_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer, with the chat template that all organisms have."""
    try:
        # Sizes are checked first: these files are small.
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (folder / name).stat().st_size > _MOST_BYTES:
                raise FileFormatError(str(folder / name), "is too large", expected=f"at most {_MOST_BYTES} bytes")
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except FileFormatError:
        raise
    # OSError for missing files, and various errors of the libraries for damaged ones.
    except Exception as error:
        raise FileFormatError(f"{folder}: tokenizer", "cannot be loaded", got=first_line(error)) from error
    if len(tokenizer) != vocab_size or tokenizer.chat_template != CHAT_TEMPLATE:
        got = f"{len(tokenizer)} tokens, chat template {tokenizer.chat_template!r}"
        expected = f"{vocab_size} tokens, as the model has, and {CHAT_TEMPLATE!r}"
        raise FileFormatError(f"{folder}: tokenizer", "is not an organism's", got=got, expected=expected)
    said = {key: getattr(tokenizer, key, None) for key in _OF_TOKENIZER}
    said["extra_special_tokens"] = sorted(set(tokenizer.all_special_tokens))
    for key, wanted in {**_OF_TOKENIZER, "extra_special_tokens": sorted(_SPECIAL)}.items():
        if said[key] != wanted or type(said[key]) is not type(wanted):
            where, got = f"{folder / 'tokenizer_config.json'}: {key}", repr(said[key])[:80]
            raise FileFormatError(where, "must be that of all organisms", got=got, expected=repr(wanted))
    checked: PreTrainedTokenizerFast = tokenizer
    return checked
