"""Texts to sequences of tokens for a language model: packed into contexts, or one text after the other, padded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from hf_mote.errors import DataError, first_line
from hf_mote.messages import check_message, reads_calls

__all__ = ["NoTokenizer", "Sequences", "batch_of"]

_MOST_TOKENS = 2**31


class Sequences:
    """The sequences of a data set, the same at every pass.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Encodes texts.
        dataset (`Iterable`): Texts, or rows with a text, messages or token ids; it can be gone through again.
        text_column (`str`): Where a row has its text.
        context_length (`int`): Most tokens of a sequence.
        packed (`bool`):
            Whether texts follow each other in sequences of one length, the tokenizer's end-of-text token between them;
            otherwise each begins a sequence of its own.
    """

    def __init__(
        self, tokenizer: Any, dataset: Iterable[Any], *, text_column: str, context_length: int, packed: bool
    ) -> None:
        self.tokenizer = tokenizer
        self.dataset = dataset
        self.text_column = text_column
        self.context_length = context_length
        self.packed = packed

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the token ids of each sequence."""
        held: list[int] = []
        last: int | None = None
        end = self.tokenizer.eos_token_id
        for place, row in enumerate(self.dataset):
            ids = self._ids(row, place)
            if not self.packed:
                for start in range(0, len(ids), self.context_length):
                    yield ids[start : start + self.context_length]
                continue
            if last is not None and end is not None and last != end:
                held.append(end)
            held += ids
            last = ids[-1] if ids else last
            whole = len(held) // self.context_length * self.context_length
            for start in range(0, whole, self.context_length):
                yield held[start : start + self.context_length]
            held = held[whole:]
        if held:
            yield held

    def forwards(self, size: int, max_tokens: int | None = None) -> Iterator[list[list[int]]]:
        """Yield the sequences that run together in one forward.

        Args:
            size (`int`): How many.
            max_tokens (`int`, *optional*): Tokens that are read, in whole forwards; by default all.
        """
        read, stream = 0, iter(self)
        while taken := list(islice(stream, size)):
            yield taken
            read += sum(map(len, taken))
            if max_tokens is not None and read >= max_tokens:
                return

    def _ids(self, row: Any, place: int) -> list[int]:
        where = f"dataset, row {place}"
        if isinstance(row, str):
            return self._encoded(row, where)
        if not isinstance(row, Mapping):
            raise DataError(where, "must be a text or a row of columns", got=type(row).__name__)
        if "input_ids" in row:
            given = row["input_ids"]
            ids = given.tolist() if hasattr(given, "tolist") else given
            right = isinstance(ids, Sequence) and not isinstance(ids, str)
            if not right or not all(_is_token(token) for token in ids):
                expected = "whole numbers, 0 or more"
                raise DataError(
                    f"{where}, column 'input_ids'", "must hold tokens", got=repr(given)[:80], expected=expected
                )
            return [int(token) for token in ids]
        if "messages" in row:
            if getattr(self.tokenizer, "chat_template", None) is None:
                raise DataError(where, "holds messages, and the tokenizer has no chat template")
            given = row["messages"]
            chat = given.tolist() if hasattr(given, "tolist") else given  # an array, as of a table of pandas
            _check_chat(f"{where}, column 'messages'", chat, self.tokenizer.chat_template)
            try:
                found = self.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
            except Exception as error:  # a template is a program of the model's author, and can raise any error
                got = f"{type(error).__name__}: {first_line(error)}"
                raise DataError(
                    f"{where}, column 'messages'", "the tokenizer's template does not take the chat", got=got
                ) from error
            return list(found)
        text = row.get(self.text_column)
        if not isinstance(text, str):
            columns = ", ".join(map(repr, sorted(map(str, row))))
            raise DataError(
                where,
                f"has no text in column {self.text_column!r}",
                got=f"columns {columns}",
                expected=f"{self.text_column!r}, 'messages' or 'input_ids'",
                fix="Name the column by text_column.",
            )
        return self._encoded(text, f"{where}, column {self.text_column!r}")

    def _encoded(self, text: str, where: str) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a character, as JSON can have it
            got = ascii(text[error.start])
            raise DataError(where, "holds text that is not Unicode", got=got) from error
        # A text longer than the model's context is cut up.
        return list(self.tokenizer(text, verbose=False)["input_ids"])


def _check_chat(where: str, messages: object, template: object) -> None:
    """Refuse what is no chat, such as several in one row, and messages without a role or a text."""
    chat = messages if isinstance(messages, Sequence) and not isinstance(messages, str) else ()
    if not chat or not all(isinstance(message, Mapping) for message in chat):
        what, expected = "must be one chat", "a list of messages, each with role and content"
        raise DataError(where, what, got=repr(messages)[:80], expected=expected)
    for place, message in enumerate(chat):
        check_message(f"{where}, message {place}", message, calls=reads_calls(template))


def _is_token(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) < _MOST_TOKENS


class NoTokenizer:
    """Replaces a missing tokenizer, for rows that hold `"input_ids"`.

    Args:
        where (`str`): The place in the error if a row holds a text.
    """

    eos_token_id = None
    chat_template = None

    def __init__(self, where: str) -> None:
        self.where = where

    def __call__(self, text: str, **kwargs: Any) -> Any:
        """Raise [`DataError`]."""
        fix = "Give the tokenizer."
        raise DataError(f"{self.where}: dataset", "holds texts, and there is no tokenizer", fix=fix)


def batch_of(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask of sequences, int64 `(batch, longest)`, padded on the right by 0."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids, mask
