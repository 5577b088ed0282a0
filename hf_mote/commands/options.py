"""Arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from hf_mote.commands.subject import DTYPES
from hf_mote.errors import ConfigError

__all__ = [
    "BatchSize",
    "ClassField",
    "ControlKind",
    "Controls",
    "Device",
    "Dtype",
    "Force",
    "JudgeModel",
    "JudgeName",
    "JudgeURL",
    "Limit",
    "MaxNewTokens",
    "Mode",
    "Model",
    "PromptField",
    "Prompts",
    "Resamples",
    "Revision",
    "Seed",
    "Stimulate",
    "Suppress",
    "SystemPrompt",
    "Target",
    "Top",
    "Traced",
    "numbers_in",
]

_SOURCES = (
    "a .jsonl, .json, .csv or .tsv file with a field prompt (text, or messages) and perhaps class; a text file with "
    "one prompt a line; a data set as NAME, NAME:SPLIT or NAME:SUBSET:SPLIT; or organism:NAME/SPLIT"
)
_JUDGES = (
    "refusal or refusal:en,de; regex:PATTERN; language:en,de (and :thinking or :answer for a part); choice:ABCD; "
    "field (the prompt's class in the file); lm:QUESTION. An organism brings its own"
)
_DATA, _JUDGING, _MODEL, _OUT = "Prompts", "Judging", "Model", "Output"

Model: TypeAlias = Annotated[str, typer.Argument(help="Folder or Hub id of a model, or organism:NAME.")]
Prompts: TypeAlias = Annotated[str, typer.Argument(help=f"Prompts: {_SOURCES}.")]

PromptField: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Field that holds the prompt; prompt or messages by default.", rich_help_panel=_DATA),
]
ClassField: TypeAlias = Annotated[
    str | None, typer.Option(help="Field that holds the class; class or label by default.", rich_help_panel=_DATA)
]
Limit: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Most prompts of each class of the file, drawn at random.", rich_help_panel=_DATA),
]
SystemPrompt: TypeAlias = Annotated[
    str | None, typer.Option(help="First message of every prompt that is a text.", rich_help_panel=_DATA)
]

JudgeName: TypeAlias = Annotated[
    str | None, typer.Option("--judge", help=f"What labels a response: {_JUDGES}.", rich_help_panel=_JUDGING)
]
Target: TypeAlias = Annotated[
    str | None, typer.Option(help="Label of interest; the judge's own by default.", rich_help_panel=_JUDGING)
]
JudgeModel: TypeAlias = Annotated[
    str | None,
    typer.Option(help="For lm: folder or Hub id of the model, or its name on the server.", rich_help_panel=_JUDGING),
]
JudgeURL: TypeAlias = Annotated[
    str | None,
    typer.Option("--judge-url", help="For lm: an OpenAI-compatible server to ask.", rich_help_panel=_JUDGING),
]

Revision: TypeAlias = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the model on the Hub.", rich_help_panel=_MODEL)
]
Dtype: TypeAlias = Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.", rich_help_panel=_MODEL)]
Device: TypeAlias = Annotated[
    str | None,
    typer.Option(help="cpu, cuda:0, ..., or auto to spread it; by default the accelerator.", rich_help_panel=_MODEL),
]
BatchSize: TypeAlias = Annotated[int, typer.Option(min=1, help="Prompts that run together.", rich_help_panel=_MODEL)]
MaxNewTokens: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Longest response, in tokens.", rich_help_panel=_MODEL)
]

Force: TypeAlias = Annotated[
    bool, typer.Option("--force", help="Replace what an earlier run wrote to the folder.", rich_help_panel=_OUT)
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Seed of everything drawn at random.")]
Resamples: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Bootstrap resamples and permutations, for intervals and p values; 0 for none.")
]
Top: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="How many experts to look at closely; by default as many as the config, or 5."),
]
Traced: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Texts of each class whose tokens are shown by routing weight; 0 for none.")
]
Suppress: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Write the config that suppresses so many of the first experts.")
]
Stimulate: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Write the config that stimulates so many of the first experts.")
]
Mode: TypeAlias = Annotated[
    str, typer.Option(help="How to suppress: drop, reroute or zero; see the README.", show_default=True)
]
Controls: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Random configs to compare with; a verdict takes 19 or more.")
]
ControlKind: TypeAlias = Annotated[
    str, typer.Option(help="What controls are matched by: layer, or usage (in the layer, about as busy).")
]


def numbers_in(option: str, text: str, kind: type[int] | type[float]) -> list[float]:
    """Return the numbers of an option such as "1,2,5", each once, in order.

    Args:
        option (`str`): Its name, for the error.
        text (`str`): What was given.
        kind (`type`): `int` or `float`.

    Raises:
        [`ConfigError`]: if a part is no such number, or there is none.
    """
    try:
        return sorted({kind(part) for part in text.split(",")})
    except ValueError as error:
        expected = "whole numbers, as in 1,2,5" if kind is int else "numbers, as in 0.5,1"
        raise ConfigError(option, "no list of numbers", got=repr(text), expected=expected) from error
