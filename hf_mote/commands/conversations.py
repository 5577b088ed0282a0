"""Conversations from a file: the user's turns of each, as in MT-Bench's `question.jsonl`.

A record's field `turns` holds the texts. `question_id` and `category` are optional; other fields are ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_mote.commands.prompts import drawn
from hf_mote.commands.record_files import Record, read_records
from hf_mote.errors import DataError
from hf_mote.files import local_path

if TYPE_CHECKING:
    from hf_mote.evaluation.conversations import Conversation

__all__ = ["read_conversations"]

_TURNS, _ID, _CATEGORY = "turns", "question_id", "category"


def read_conversations(source: str, *, limit: int | None = None, seed: int = 0) -> list[Conversation]:
    """Return the conversations of a file.

    Args:
        source (`str`): A `.jsonl`, `.ndjson` or `.json` file.
        limit (`int`, *optional*): Maximum number of conversations of each category, drawn at random; their order does
            not change.
        seed (`int`, *optional*, defaults to 0): Seed of the draw.

    Raises:
        [`FileFormatError`]: if the file cannot be read or is malformed; the line is named.
        [`DataError`]: if it holds no conversation, or an invalid one; its line is named.
    """
    records = read_records(local_path(source))
    if not records:
        raise DataError(source, "holds no conversations", expected="one or more")
    found = [_conversation(record) for record in records]
    return [found[index] for index in drawn([one.category or "" for one in found], limit, seed)]


def _conversation(record: Record) -> Conversation:
    where = f"{record.where}, field {_TURNS!r}"
    if _TURNS not in record.fields:
        raise DataError(
            record.where,
            f"has no field {_TURNS!r}",
            got=", ".join(map(str, record.fields)) or "no fields",
            expected=f'{{"{_TURNS}": ["…", "…"]}}, as in MT-Bench\'s question.jsonl',
        )
    turns = record.fields[_TURNS]
    good = isinstance(turns, list) and all(isinstance(turn, str) and turn.strip() for turn in turns)
    if not turns or not good:
        expected = "a list of texts, one or more, none empty"
        raise DataError(where, "must hold the turns of a conversation", got=repr(turns)[:80], expected=expected)
    from hf_mote.evaluation.conversations import Conversation

    return Conversation(turns, id=_name(record, _ID), category=_name(record, _CATEGORY))


def _name(record: Record, field: str) -> str | None:
    value = record.fields.get(field)
    if value is None:
        return None
    where = f"{record.where}, field {field!r}"
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise DataError(where, "must be a name", got=repr(value)[:80], expected="text or a whole number")
    return str(value).strip() or None
