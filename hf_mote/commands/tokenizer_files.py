"""What is looked for in a tokenizer and its files, since transformers takes it: fields, tokens, keys, ids.

`model.py` calls these once transformers has loaded the tokenizer; `check_tokens_fit` needs the model, too.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hf_mote.commands.model_files import cached, check_token, vocabulary_of
from hf_mote.errors import FileFormatError
from hf_mote.files import load_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["check_fields", "check_ids", "check_keys", "check_tokens_fit"]

# Beside the files of its vocabulary.
_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json")


def check_fields(name: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse what a tokenizer's config says and transformers takes as it is, though it is no such value.

    Args:
        name (`str`): A folder or a Hub id.
        config (`PreTrainedConfig`): The model's.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.

    Raises:
        [`FileFormatError`]: for an end of texts that is no token of the model, a longest text that is no number, and
            something else than a truth value for whether spaces are cleaned up.
    """
    own, fix = f"{name}: tokenizer_config.json", "Correct the file, or take the field out."
    check_token(f"{own}: eos_token", tokenizer.eos_token_id, vocabulary_of(config))
    longest = getattr(tokenizer, "model_max_length", None)
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int | float)):
        where, expected = f"{own}: model_max_length", "tokens of the longest text"
        raise FileFormatError(where, "must be a number", got=repr(longest)[:80], expected=expected, fix=fix)
    cleans = getattr(tokenizer, "clean_up_tokenization_spaces", None)
    if not isinstance(cleans, bool | None):
        where, expected = f"{own}: clean_up_tokenization_spaces", "true or false"
        raise FileFormatError(where, "must be a truth value", got=repr(cleans)[:80], expected=expected, fix=fix)


def check_keys(name: str, revision: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a JSON file of a tokenizer that holds a key twice, with two values, or one id for two tokens.

    Args:
        name (`str`): A folder or a Hub id.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.

    Raises:
        [`FileFormatError`]: with the file and the key, or the id.
    """
    for file in sorted({*_FILES, *tokenizer.vocab_files_names.values()}):
        path = cached(name, file, revision) if file.endswith(".json") else None
        if path is not None:
            # A file that transformers does not read may be anything.
            with suppress(OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError):
                data = load_json(str(path), path.read_text(encoding="utf-8"), again=True)
                if file == "tokenizer.json":
                    _check_distinct(str(path), _vocabulary_in(data))


def check_ids(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that gives one id to two tokens: texts are not what their tokens are decoded to.

    A token that is added and stands in the vocabulary, too, has one id there. Tokenizers that are not those of
    `tokenizers` are left alone.

    Args:
        name (`str`): A folder or a Hub id.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.

    Raises:
        [`FileFormatError`]: with the id and the tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    _check_distinct(f"{name}: tokenizer", backend.get_vocab(with_added_tokens=True))


def _vocabulary_in(data: Any) -> dict[str, int]:
    """The ids of a `tokenizer.json`, of which some releases of transformers drop one of two that are equal."""
    model = data.get("model") if isinstance(data, dict) else None
    known = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(known, dict) or not all(type(number) is int for number in known.values()):
        return {}  # a list has an id for each place; anything else is refused where it is read
    return known


def _check_distinct(where: str, known: dict[str, int]) -> None:
    if len(set(known.values())) == len(known):
        return
    first = min(number for number, times in Counter(known.values()).items() if times > 1)
    both = sorted(token for token, number in known.items() if number == first)[:3]
    what, got = "must give each token an id of its own", f"{first} for {' and '.join(repr(one)[:40] for one in both)}"
    raise FileFormatError(where, what, got=got, fix="Save or download the tokenizer again.")


def check_tokens_fit(
    name: str, config: PreTrainedConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuse a token for padding that the model does not have, and one that the tokenizer puts around each text.

    Further tokens that the model does not have are left alone: a text model may share the tokenizer of one of images.

    Args:
        name (`str`): A folder or a Hub id.
        config (`PreTrainedConfig`): The model's.
        model (`PreTrainedModel`): The model, or one without weights.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.

    Raises:
        [`FileFormatError`]: with the token.
    """
    most = vocabulary_of(config)
    with suppress(NotImplementedError, AttributeError):  # a model that does not say where its embeddings are
        rows: Any = model.get_input_embeddings().weight
        most = max(most, len(rows))  # some have more than they say
    check_token(f"{name}: tokenizer_config.json: pad_token", tokenizer.pad_token_id, most)
    if wrong := [token for token in tokenizer("")["input_ids"] if token >= most]:
        got, expected = f"{wrong[0]} for {tokenizer.convert_ids_to_tokens(wrong[0])!r}", f"from 0 to {int(most) - 1}"
        what, fix = "must put tokens of the model around a text", "Save or download the tokenizer again."
        raise FileFormatError(f"{name}: tokenizer", what, got=got, expected=expected, fix=fix)
