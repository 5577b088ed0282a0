"""`hf-mote init`: a starting folder with prompts to fill in, a judge, and a script with the commands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from hf_mote.commands.model import ORGANISM
from hf_mote.commands.session import reporting, tell
from hf_mote.errors import ConfigError, FileFormatError, UnknownNameError
from hf_mote.folders import check_folder, replacing_folder

__all__ = ["init_command"]

# For each question: the judge, and example prompts of both kinds.
_EXAMPLES: dict[str, tuple[str, list[str], list[str]]] = {
    "refusal": (
        "refusal",
        ["Tell me something that this model will not talk about.", "Another request of that kind."],
        ["The same request about something harmless.", "Another harmless one."],
    ),
    "language": (
        "language:en,de",
        ["Erzähle mir von deinem Tag.", "Was ist ein Fluss?"],
        ["Tell me about your day.", "What is a river?"],
    ),
    "field": (
        "field",
        ["A prompt of the kind whose experts are sought.", "Another one."],
        ["A prompt like it in all but that.", "And another like that one."],
    ),
    "regex": (
        "regex:(?i)as an ai",
        ["What do you feel when it rains?", "Do you dream?"],
        ["What is rain made of?", "How long is a night in June?"],
    ),
}
# The later steps of `run.sh`: for judges of responses, and for classes of prompts.
_RESPONSES = """\
step sweep hf-mote sweep "$MODEL" found heldout.jsonl --judge "$JUDGE" --target "$TARGET" --experts 1,2,5,10 \\
  --output sweep
step measured hf-mote evaluate "$MODEL" found heldout.jsonl --judge "$JUDGE" --target "$TARGET" --controls 40 \\
  --output measured
"""
_PROMPTS = """\
# To measure the effect of the experts, use a judge of responses, such as --judge 'regex:PATTERN':
# hf-mote evaluate "$MODEL" found heldout.jsonl --judge JUDGE --controls 40 --output measured
"""
_TARGETS = {"refusal": "refusal", "language": "de", "field": "sought", "regex": "match"}


def init_command(
    folder: Annotated[Path, typer.Argument(help="New folder to write to.")],
    model: Annotated[str, typer.Option(help="Folder or Hub id of the model.")] = "organism:refusal",
    question: Annotated[
        str,
        typer.Option(
            help="What distinguishes the responses: refusal, language, regex (a pattern in the response), or field "
            "(the prompt's own class, for any response)."
        ),
    ] = "refusal",
) -> None:
    """Write a starting folder: prompts to fill in, a judge, and a script with the commands."""
    with reporting():
        if question not in _EXAMPLES:
            raise UnknownNameError.of("--question", question, tuple(_EXAMPLES))
        if not model.strip():
            raise ConfigError("--model", "is empty", expected="a folder, a Hub id, or organism:NAME")
        place = _place(model)
        check_folder(folder, str(folder))
        if folder.exists() and any(folder.iterdir()):
            raise FileFormatError(str(folder), "holds something already", fix="Give a new folder.")
        with replacing_folder(folder, str(folder), lambda _: ()) as made:
            for name, text in _files(place, question).items():
                (made / name).write_text(text, encoding="utf-8")
            (made / "run.sh").chmod(0o755)
        if place == model and not model.startswith(ORGANISM):
            tell(f"There is no folder {model} here: run.sh takes it for the id of a model on the Hub.")
        tell(f"Fill in {folder / 'prompts.jsonl'} and {folder / 'heldout.jsonl'}: 30 prompts of each kind or more.")
        tell(f"Then: cd {shlex.quote(str(folder))} && bash run.sh --dry-run, and bash run.sh")


def _place(model: str) -> str:
    """Return the model for `run.sh`, which runs in its own folder: a folder by its absolute path."""
    if Path(model).is_dir():
        return str(Path(model).resolve())
    if model.startswith((".", "/", "~", "\\")) or Path(model).is_absolute():
        expected = "an existing folder, a Hub id, or organism:NAME"
        raise ConfigError("--model", "there is no such folder", got=model, expected=expected)
    return model


def _files(model: str, question: str) -> dict[str, str]:
    judge, sought, others = _EXAMPLES[question]
    target = _TARGETS[question]
    rows = [*((prompt, target) for prompt in sought), *((prompt, "other") for prompt in others)]
    lines = [json.dumps({"prompt": prompt, "class": kind}, ensure_ascii=False) for prompt, kind in rows]
    prompts = "".join(f"{line}\n" for line in lines)
    return {
        "prompts.jsonl": prompts,
        "heldout.jsonl": prompts.replace("Another", "A third"),
        "run.sh": _script(model, judge, target),
        "README.md": _readme(question, judge, target),
    }


def _script(model: str, judge: str, target: str) -> str:
    words = {"MODEL": model, "JUDGE": judge, "TARGET": target}
    names = "\n".join(f"{name}={shlex.quote(value)}" for name, value in words.items())
    return f"""#!/usr/bin/env bash
# Find the experts, try numbers of them, and measure the config. Options such as --dry-run go to the first command.
# When it is started again, it continues where it stopped.
set -euo pipefail
cd "$(dirname "$0")"
{names}

step() {{  # FOLDER COMMAND...
  if [[ -e "$1/report.html" ]]; then
    echo "$1/report.html exists, so its command is skipped. Delete the folder $1 to run it again."
  else
    "${{@:2}}"
  fi
}}

step found hf-mote ftri "$MODEL" prompts.jsonl --judge "$JUDGE" --target "$TARGET" --suppress 5 --output found "$@"
[[ " $* " == *" --dry-run "* ]] && exit
{_RESPONSES if judge != "field" else _PROMPTS}"""


def _readme(question: str, judge: str, target: str) -> str:
    written = "`found/report.html`"
    if judge != "field":
        written += ", `sweep/report.html` and `measured/report.html`"
    return f"""# Find the experts

The question: {question}. The judge `{judge}` labels responses, and `{target}` is the label of interest.

1. Fill in `prompts.jsonl`, one prompt a line with its `class`, and `heldout.jsonl` with others: 30 of each kind or
   more, similar in length and subject, so that the kinds do not differ in anything else. Prompts that are wordings of
   one subject get a field such as `"group": "rivers"`, and the commands `--group-field group`.
2. `bash run.sh --dry-run` prints what would be done, and how long it takes.
3. `bash run.sh` writes {written}. When it is started again, it continues where it stopped and skips finished steps:
   after a change, delete the folder of the changed step and those of the later steps.

Other judges: `hf-mote ftri --help`.
"""
