"""Errors that name the options of the running command, or lines of its file of settings.

An error of a function names an argument, such as "evaluate_sae.max_tokens". On the command line that is an option
(`--tokens`), or, if the value came from a file of settings, a line of the file (`settings.yaml: tokens`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from hf_mote.errors import HFMoTEError

__all__ = ["as_typed", "running", "takes", "without_method"]

_RUNNING: ContextVar[Any] = ContextVar("running command", default=None)

# Places that errors name in Python, and their options on the command line.
_PLACES = {
    "ChoiceJudge": "--judge choice",
    "LanguageJudge": "--judge language",
    "LMJudge": "--judge lm",
    "MoTEConfig.stimulate": "--stimulate",
    "MoTEConfig.strength": "--strengths",
    "MoTEConfig.suppress": "--suppress",
    "RefusalJudge": "--judge refusal",
    "RegexJudge": "--judge regex",
    "SAEConfig": "--option",
    "SAEConfig.k": "--k",
    "SAEConfig.num_latents": "--latents",
    "ServerJudge": "--judge lm",
    "ServerJudge.base_url": "--judge-url",
    "SteeringConfig.edits": "--edit",
    "SteeringConfig.scope": "--scope",
    "SteeringConfig.strength": "--strength",
    "chat_template_kwargs": "--template-arg",
    "hookpoints": "--hookpoint",
    "latents": "--latent",
    "prompts": "--prompt",
}
# Arguments of functions whose options have another name, in the commands that take the option.
_RENAMED = {
    "batch_size": "batch",
    "chat_template_kwargs": "template_arg",
    "dataset": "text",
    "edits": "edit",
    "hookpoints": "hookpoint",
    "latents": "latent",
    "max_tokens": "tokens",
    "num_controls": "controls",
    "prompts": "prompt",
}
# A function's argument, such as "ftri.repeats". After a class comes a field of an object, except for one method.
_ARGUMENT = re.compile(
    r"(?:(?:sae train|OptimizedRanking\.complete|[a-z]\w*)\.|[a-z]\w*: (?=dataset)|(?=dataset\b))(\w+)(.*)", re.DOTALL
)
_ARCHITECTURE = re.compile(r"[A-Z]\w*SAEConfig\b")
# Remedies in Python, and the same on the command line, for commands that take the option.
_REMEDIES = {
    "Give more text, exclude less, or take a smaller batch_size.": "Give more text, or a smaller --batch.",
    "Look at tokenizer.chat_template.": "Look at the tokenizer's, or at the file of --chat-template.",
    "Name the column by text_column.": "Name the column by --text-column.",
    "Set config.hookpoint, such as 'model.layers.10.output'.": "Give --hookpoint, such as model.layers.10.output.",
}


@contextmanager
def running(context: Any) -> Iterator[None]:
    """Make errors within the block name a command's options.

    Args:
        context (`typer.Context`): The command's context.
    """
    token = _RUNNING.set(context)
    try:
        yield
    finally:
        _RUNNING.reset(token)


def without_method(text: str) -> str:
    """Return a message without the name of a method, or of an argument, that it begins with.

    Args:
        text (`str`): A message, such as "FTRIResult.rank: no token was counted.".
    """
    place, colon, rest = text.partition(": ")
    if not colon or not place.replace(".", "").isidentifier():
        return text
    return rest[:1].upper() + rest[1:]


def takes(option: str) -> bool:
    """Return whether the running command takes an option; `False` outside of a command.

    Args:
        option (`str`): The option, such as "--group-field".
    """
    context = _RUNNING.get()
    return context is not None and _has_option(option, {one.name: one for one in context.command.params})


def as_typed(error: HFMoTEError) -> str:
    """Return an error's message with the option, or the line of a file of settings, instead of Python's name.

    Args:
        error ([`HFMoTEError`]): The error.
    """
    context = _RUNNING.get()
    parameters = {} if context is None else {one.name: one for one in context.command.params}
    if {"prompts", "prompt"} <= parameters.keys():  # two ways to give prompts, of which one is at fault
        del parameters["prompt" if context.params.get("prompts") is not None else "prompts"]
    option, rest = _option(error.where, parameters)
    text = str(error)[len(error.where) :]
    for in_python, on_command_line in _REMEDIES.items():
        if all(_has_option(name, parameters) for name in re.findall(r"--[a-z-]*[a-z]", on_command_line)):
            text = text.replace(in_python, on_command_line)
    return f"{_as_given(option, parameters, context)}{rest}{text}"


def _option(where: str, parameters: dict[str, Any]) -> tuple[str, str]:
    """Return the option of a place and the rest of the place; the place and `""` if it is not an option."""
    place = _ARCHITECTURE.sub("SAEConfig", where, count=1)
    for known in sorted(_PLACES, key=len, reverse=True):
        rest = place.removeprefix(known)
        option = _PLACES[known]
        if place.startswith(known) and (not rest or rest[0] in ".[") and _has_option(option, parameters):
            if known == "SAEConfig" and rest.startswith("."):
                return f"{option} {rest[1:]}", ""
            key = re.fullmatch(r"\['([^']*)'\]", rest)
            if key is not None and _repeated(option, parameters):
                return f"{option} {key[1]}", ""
            is_index = re.fullmatch(r"\[\d+\]", rest) and _repeated(option, parameters)
            return option, "" if is_index else rest
    argument = _ARGUMENT.fullmatch(where)
    if argument is not None:
        name = argument[1] if argument[1] in parameters else _RENAMED.get(argument[1], argument[1])
        if name in parameters:
            parameter = parameters[name]
            shown = parameter.opts[0] if parameter.param_type_name == "option" else name.upper()
            return shown, argument[2]
    return where, ""


def _has_option(option: str, parameters: dict[str, Any]) -> bool:
    return any(option.split()[0] in parameter.opts for parameter in parameters.values())


def _repeated(option: str, parameters: dict[str, Any]) -> bool:
    """Whether an option is given once for each entry, so that an index in a list was not typed."""
    return any(option in parameter.opts and parameter.multiple for parameter in parameters.values())


def _as_given(option: str, parameters: dict[str, Any], context: Any) -> str:
    """Return an option as it was typed, or the line of the file of settings that it came from."""
    flag, _, value = option.partition(" ")
    for name, parameter in parameters.items():
        source = context.get_parameter_source(name) if flag in parameter.opts else None
        if source is not None and source.name == "DEFAULT_MAP" and context.params.get("settings") is not None:
            return f"{context.params['settings']}: {flag.removeprefix('--')}{f' {value}' if value else ''}"
    return option
