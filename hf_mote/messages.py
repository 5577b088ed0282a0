"""What a message of a chat must be, wherever chats come from: prompts, texts of a data set, files.

A chat template writes whatever it is given: of a message without content it makes the word "None", and of a list its
brackets. So it gets only messages that mean what is written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hf_mote.errors import DataError

__all__ = ["check_message", "reads_calls"]

_ROLE = re.compile(r"\w[\w.-]*")


def check_message(where: str, message: object, *, calls: bool) -> None:
    """Refuse what is no message with a role and a text.

    Args:
        where (`str`): The place, for the error.
        message (`Mapping`): As in `{"role": "user", "content": "Hello"}`. Other keys are for the template.
        calls (`bool`): Whether a message with `tool_calls` may be without content.

    Raises:
        [`DataError`]: if the role is no word, or the content is not one text.
    """
    if not isinstance(message, Mapping):
        expected = "an object with role and content"
        raise DataError(where, "must be a message", got=repr(message)[:80], expected=expected)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        expected = "'system', 'user', 'assistant' or another word"
        raise DataError(where, "must have a role that is a word", got=repr(role)[:80], expected=expected)
    asked = message.get("tool_calls")
    if content is None and calls and isinstance(asked, Sequence) and asked and not isinstance(asked, str):
        return
    if not isinstance(content, str):
        got = "no content" if "content" not in message else repr(content)[:80]
        fix = "Join the texts of its parts; pictures and sounds are not read." if isinstance(content, list) else None
        raise DataError(where, "must have content that is a text", got=got, expected="one text", fix=fix)


def reads_calls(template: object) -> bool:
    """Whether a chat template writes the calls of tools in a message.

    Args:
        template (`str` or `dict`): Of a tokenizer.
    """
    return "tool_calls" in str(template)
