"""Prompts from a file, a data set, or an organism's own questions.

| source | what it is |
| --- | --- |
| `prompts.jsonl`, `.ndjson`, `.json` | objects, one per line or in a list; a string is a prompt without more fields |
| `prompts.csv`, `.tsv` | a line of column names, then one prompt in each row |
| any other file | one prompt in each line |
| `organism:NAME/SPLIT`, `…/SPLIT/KIND` | questions of a shipped organism; the kind is the class, `answer` a field |
| `NAME`, `NAME:SPLIT`, `NAME:SUBSET:SPLIT` | a data set of the `datasets` library, on the Hub or in a folder |

A record's field `prompt` (or `messages`) holds the prompt: a text, or a list of messages with `role` and `content`.
Its field `class` (or `label`), if there is one, holds the class known beforehand.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass

from hf_mote.commands.datasets import dataset_records
from hf_mote.commands.model import ORGANISM, Organisms
from hf_mote.commands.record_files import Record, check_unicode, read_records
from hf_mote.errors import DataError, HFMoTEError, UnknownNameError
from hf_mote.files import local_path
from hf_mote.generation.chat import Prompt
from hf_mote.generation.prompts import checked_prompts, prompt_text

__all__ = ["TYPED", "PromptSet", "drawn", "read_prompts", "typed_prompts"]

TYPED = "--prompt"  # the source of prompts that were typed

_PROMPT_FIELDS = ("prompt", "messages")
_CLASS_FIELDS = ("class", "label")


@dataclass(frozen=True)
class PromptSet:
    """Prompts and their records.

    Attributes:
        source (`str`): Where they come from.
        prompts (`list[Prompt]`): Texts, or chats.
        records (`list[Record]`): Their records.
        classes (`list[str]`, *optional*): The class of each, if every record names one.
        unclassed (`str`, *optional*): The place of the first record without a class, if others have one.
    """

    source: str
    prompts: list[Prompt]
    records: list[Record]
    classes: list[str] | None
    unclassed: str | None = None

    @property
    def texts(self) -> list[str]:
        """The text of each prompt; for a chat, that of the last message."""
        return [prompt_text(prompt) for prompt in self.prompts]

    def column(self, name: str) -> list[str]:
        """Return a field of every record, as text.

        Raises:
            [`UnknownNameError`]: if no record has it.
            [`DataError`]: if a record lacks it, or holds a truth value or something else that is neither text nor
                number; the record is named.
        """
        return _column(self.source, self.records, name)

    def others(self, name: str, option: str) -> list[Prompt]:
        """Return a further prompt of every record.

        Args:
            name (`str`): The field that holds it.
            option (`str`): The option that names the field, for the error.

        Raises:
            [`DataError`]: if a record lacks it, or holds something that is no prompt; it is named.
        """
        return [_prompt(record, name, option) for record in self.records]

    def has(self, name: str) -> bool:
        """Return whether every record has a field."""
        return all(name in record.fields for record in self.records)


def read_prompts(
    source: str,
    organisms: Organisms,
    *,
    prompt_field: str | None = None,
    class_field: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> PromptSet:
    """Return the prompts of a source.

    Args:
        source (`str`): See the head of this module.
        organisms (`Organisms`): Where organisms come from.
        prompt_field (`str`, *optional*): Where the prompt is; by default "prompt" or "messages".
        class_field (`str`, *optional*): Where the class is; by default "class" or "label", if there is one.
        limit (`int`, *optional*): Maximum number of prompts of each class, or of all prompts if no classes are known,
            drawn at random; their order does not change.
        seed (`int`, *optional*, defaults to 0): Seed of the draw.

    Raises:
        [`UnknownNameError`]: if there is no such source or field.
        [`FileFormatError`]: if a file is malformed.
        [`DataError`]: if it holds no prompt, or an invalid one; its place is named.
    """
    path = local_path(source)
    if source.startswith(ORGANISM):
        records = _organism_records(source, organisms)
    elif os.path.isfile(path):
        records = read_records(path)
    else:
        records = dataset_records(source)
    if not records:
        raise DataError(source, "holds no prompts", expected="one or more")
    field = prompt_field or next((name for name in _PROMPT_FIELDS if name in records[0].fields), _PROMPT_FIELDS[0])
    prompts = [_prompt(record, field) for record in records]
    known = class_field or next((name for name in _CLASS_FIELDS if all(_filled(r, name) for r in records)), None)
    classes = None if known is None else _column(source, records, known)
    chosen = drawn(classes or [""] * len(records), limit, seed)
    return PromptSet(
        source=source,
        prompts=[prompts[index] for index in chosen],
        records=[records[index] for index in chosen],
        classes=None if classes is None else [classes[index] for index in chosen],
        unclassed=_unclassed(records) if classes is None else None,
    )


def typed_prompts(texts: Sequence[str]) -> PromptSet:
    """Return prompts that were typed, each by `--prompt`.

    Args:
        texts (`Sequence[str]`): The prompts.

    Raises:
        [`DataError`]: if one is empty, or no valid text; it is named by its number.
    """
    several = len(texts) > 1
    records = [
        Record(f"{TYPED}, number {number}" if several else TYPED, {"prompt": text})
        for number, text in enumerate(texts, start=1)
    ]
    return PromptSet(TYPED, [_prompt(record, "prompt", TYPED) for record in records], records, None)


def drawn(classes: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """Return the positions of randomly drawn entries, in order.

    Args:
        classes (`Sequence[str]`): The class of each entry.
        limit (`int`, *optional*): Maximum number of entries of each class; all by default.
        seed (`int`): Seed of the draw.
    """
    if limit is None:
        return list(range(len(classes)))
    draw, chosen = random.Random(seed), []
    for name in dict.fromkeys(classes):
        members = [index for index, label in enumerate(classes) if label == name]
        chosen += draw.sample(members, min(limit, len(members)))
    return sorted(chosen)


def _organism_records(source: str, organisms: Organisms) -> list[Record]:
    name, *parts = source.removeprefix(ORGANISM).split("/")
    organism = organisms.get(name)
    if not 1 <= len(parts) <= 2:
        splits = ", ".join(f"{ORGANISM}{name}/{split}" for split in organism.prompts)
        what = "must name a split of the organism's questions"
        raise UnknownNameError(repr(source), what, expected=f"one of {splits}")
    if parts[0] not in organism.prompts:
        raise UnknownNameError.of(repr(source), parts[0], organism.prompts)
    kinds = organism.prompts[parts[0]]
    if parts[1:] and parts[1] not in kinds:
        raise UnknownNameError.of(repr(source), parts[1], kinds)
    return [
        Record(f"{source}: question {index}", {"prompt": text, "class": kind, "answer": organism.answers[text]})
        for kind in (parts[1:] or kinds)
        for index, text in enumerate(kinds[kind])
    ]


def _prompt(record: Record, field: str, option: str = "--prompt-field") -> Prompt:
    if field not in record.fields:
        names = ", ".join(map(str, record.fields))
        raise DataError(
            record.where,
            f"has no field {field!r}",
            got=names or "no fields",
            fix=f"Name the field that holds the prompt: {option}.",
        )
    value = record.fields[field]
    try:
        (prompt,) = checked_prompts("prompts", [value])
        text = prompt_text(prompt)
    except HFMoTEError as error:
        got, expected = repr(value)[:80], "text, or a list of messages with role and content"
        where, what = f"{record.where}, field {field!r}", "must be a prompt"
        raise DataError(where, what, got=got, expected=expected, fix=f"See {error}") from error
    messages = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    if not all(isinstance(message, str) for message in messages) or not text.strip():
        raise DataError(f"{record.where}, field {field!r}", "must hold text", got=repr(value)[:80])
    for message in messages:
        check_unicode(f"{record.where}, field {field!r}", message)
    return prompt


def _column(source: str, records: Sequence[Record], name: str) -> list[str]:
    if not any(name in record.fields for record in records):
        known = dict.fromkeys(str(key) for record in records for key in record.fields)
        raise UnknownNameError.of(f"{source}: field", name, known)
    values: list[str] = []
    for record in records:
        value = record.fields.get(name)
        where = f"{record.where}, field {name!r}"
        if not _filled(record, name):
            raise DataError(where, "must have a value", got=repr(value)[:80], expected="text")
        if isinstance(value, bool):
            fix = f'Write the word that is meant, such as "{str(value).lower()}", in quotes.'
            raise DataError(where, "must be a text, not a truth value", got=value, expected="text", fix=fix)
        check_unicode(where, str(value))
        values.append(str(value).strip())
    return values


def _unclassed(records: Sequence[Record]) -> str | None:
    """Return the place of the first record without a class, if any record has one."""
    for name in _CLASS_FIELDS:
        missing = [record for record in records if not _filled(record, name)]
        if 0 < len(missing) < len(records):
            return f"{missing[0].where}, field {name!r}"
    return None


def _filled(record: Record, name: str) -> bool:
    value = record.fields.get(name)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, str | int | float) and bool(str(value).strip())
