"""The text of a prompt for the tokenizer: unchanged, or through the tokenizer's chat template."""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from hf_mote.errors import ConfigError, DataError, UnknownNameError
from hf_mote.messages import check_message, reads_calls

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Prompt", "check_template_kwargs", "rendered"]

# Arguments of `apply_chat_template` that this package sets, or that must keep their defaults.
_FIXED = (
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "max_length", "padding",
    "return_assistant_tokens_mask", "return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "truncation",
)  # fmt: skip
TEMPLATE_SECONDS = 10.0
MOST_CHARACTERS = 2**24
Prompt: TypeAlias = str | Sequence[Mapping[str, str]]


def check_template_kwargs(tokenizer: PreTrainedTokenizerBase, given: object) -> dict[str, Any]:
    """Return the arguments of a chat template; refuses those that would have no effect.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer whose template gets them.
        given (`Mapping[str, Any]`, *optional*): As in `{"enable_thinking": False}`.

    Raises:
        [`ConfigError`]: if it is not a mapping of names, there is no template, or this package sets a name.
        [`UnknownNameError`]: if the template does not read a name.
    """
    where = "chat_template_kwargs"
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        got = repr(given)[:60]
        raise ConfigError(
            where, "must be a mapping of names to values", got=got, expected='as in {"enable_thinking": False}'
        )
    if not given:
        return {}
    if tokenizer.chat_template is None:
        got = f"a tokenizer without one, and {', '.join(given)}"
        raise ConfigError(
            where, "need a chat template", got=got, fix="Set tokenizer.chat_template, or leave them out."
        )
    template = str(tokenizer.get_chat_template(tools=given.get("tools")))
    for name in given:
        if name in _FIXED:
            fix = "Set tokenizer.chat_template." if name == "chat_template" else "Leave it out."
            raise ConfigError(f"{where}[{name!r}]", "is not for the template: this package sets it", fix=fix)
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise UnknownNameError(
                f"{where}[{name!r}]",
                "the chat template does not read it, so it would have no effect",
                got=name,
                expected="a name that occurs in tokenizer.chat_template",
            )
    return dict(given)


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    system_prompt: str | None,
    template_kwargs: Mapping[str, Any],
    where: str,
) -> str:
    """Return the text that is tokenised for a prompt, with the generation prompt of the chat template if there is one.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        prompt (`str` or a chat): The prompt.
        system_prompt (`str`, *optional*): First message, if the prompt is a text.
        template_kwargs (`Mapping[str, Any]`): What [`check_template_kwargs`] returned.
        where (`str`): The prompt's place, for the error.

    Raises:
        [`ConfigError`]: if a chat or a system prompt meets a tokenizer without a template, or the template fails,
            takes longer than 10 s or gives more than 16 Mi characters.
        [`DataError`]: if a message is none, as [`check_message`] says, the text is not Unicode, or the template
            returns no text.
    """
    if tokenizer.chat_template is None:
        if system_prompt is not None or not isinstance(prompt, str):
            raise ConfigError(
                "tokenizer.chat_template",
                "chats and system prompts need one",
                got=None,
                fix="Set tokenizer.chat_template, or give plain text prompts.",
            )
        text = prompt
    else:
        system = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
        if isinstance(prompt, str):
            messages = [*system, {"role": "user", "content": prompt}]
        else:
            calls = reads_calls(tokenizer.chat_template)
            for place, message in enumerate(prompt):
                check_message(f"{where}, message {place}", message, calls=calls)
            messages = [dict(message) for message in prompt]
        try:
            text = _in_time(
                lambda: str(
                    tokenizer.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=True, **template_kwargs
                    )
                )
            )
        except _Stopped as error:
            fix = "Look at tokenizer.chat_template."
            what = f"the tokenizer's chat template takes longer than {TEMPLATE_SECONDS:g} s"
            raise ConfigError(where, what, fix=fix) from error
        except Exception as error:  # a template is a program of the model's author, and can raise any error
            roles = ", ".join(str(message["role"]) for message in messages)
            raise ConfigError(
                where,
                f"the tokenizer's chat template fails: {type(error).__name__}: {_first_line(error)}",
                got=f"messages of {roles}",
                fix="Leave the system prompt out." if system else "Look at tokenizer.chat_template.",
            ) from error
        if len(text) > MOST_CHARACTERS:
            what, expected = "the tokenizer's chat template gives too long a text", f"at most {MOST_CHARACTERS}"
            raise ConfigError(where, what, got=f"{len(text)} characters", expected=expected)
        if not text.strip():
            what, fix = "has no token: the tokenizer's chat template gives no text", "Look at tokenizer.chat_template."
            raise DataError(where, what, got=repr(text[:40]), fix=fix)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        got = repr(text[error.start])
        raise DataError(
            where, "is not Unicode: it holds half of a surrogate pair", got=got, expected="text that UTF-8 can hold",
            fix='Replace it: text.encode("utf-8", "replace").decode().',
        ) from error  # fmt: skip
    return text


class _Stopped(BaseException):
    """Raised in a thread from outside; not an `Exception`, so that code in the thread does not catch it."""


def _in_time(render: Callable[[], str]) -> str:
    """Return what a function returns, or raise if it takes too long: a template is a program, which may loop."""
    found: list[str | BaseException] = []

    def run() -> None:
        try:
            found.append(render())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, name="chat template", daemon=True)
    thread.start()
    thread.join(TEMPLATE_SECONDS)
    if thread.is_alive() and thread.ident is not None:
        # A thread cannot be killed; it gets an exception before its next step.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Stopped))
        raise _Stopped
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
