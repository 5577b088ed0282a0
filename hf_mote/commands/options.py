"""Arguments and options that several commands share."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from hf_mote.commands.model import ATTENTIONS, DTYPES, QUANTIZATIONS
from hf_mote.commands.names import MODES
from hf_mote.errors import ConfigError, FileFormatError, HFMoTEError, UnknownNameError, real
from hf_mote.files import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "AllowOtherWeights",
    "AttnImplementation",
    "BaselineField",
    "BaselineResponse",
    "BatchSize",
    "ChatTemplate",
    "ClassField",
    "ControlKind",
    "Controls",
    "Device",
    "DryRun",
    "Dtype",
    "Force",
    "GroupField",
    "JudgeAllowHTTP",
    "JudgeModel",
    "JudgeName",
    "JudgeURL",
    "Latents",
    "Limit",
    "MaxNewTokens",
    "Mode",
    "Model",
    "Output",
    "PairField",
    "Profile",
    "Prompt",
    "PromptField",
    "Prompts",
    "PromptsIfAny",
    "Quantization",
    "Resamples",
    "Revision",
    "RunFolder",
    "Seed",
    "Server",
    "Stimulate",
    "Suppress",
    "SystemPrompt",
    "Target",
    "TargetField",
    "TargetResponse",
    "Temperature",
    "TemplateArgs",
    "Top",
    "TopP",
    "Traced",
    "TrustRemoteCode",
    "check_changes",
    "check_experts",
    "numbers_in",
    "sampling",
    "template_args",
]

_SOURCES = (
    "a .jsonl, .json, .csv or .tsv file with a field prompt (text, or messages) and optionally class; a text file "
    "with one prompt per line; a data set as NAME, NAME:SPLIT or NAME:SUBSET:SPLIT; or organism:NAME/SPLIT"
)
_JUDGES = (
    "refusal or refusal:en,de; regex:PATTERN; language:en,de (and :thinking or :answer for a part); choice:ABCD; "
    "field (the prompt's class in the file); lm:QUESTION. By default an organism's own"
)
_DATA, _JUDGING, _MODEL, _OUT = "Prompts", "Judging", "Model", "Output"

Model: TypeAlias = Annotated[str, typer.Argument(help="Folder or Hub id of a model, or organism:NAME.")]
Prompts: TypeAlias = Annotated[str, typer.Argument(help=f"Prompts: {_SOURCES}.")]
PromptsIfAny: TypeAlias = Annotated[
    str | None, typer.Argument(help=f"Prompts: {_SOURCES}. Or none, and --prompt.", show_default=False)
]
Prompt: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="A prompt, in the place of PROMPTS, by default none; may be given several times.", rich_help_panel=_DATA
    ),
]

PromptField: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Field that holds the prompt; prompt or messages by default.", rich_help_panel=_DATA),
]
ClassField: TypeAlias = Annotated[
    str | None, typer.Option(help="Field that holds the class; class or label by default.", rich_help_panel=_DATA)
]
GroupField: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Field that is equal for prompts that count as one, such as their subject: p, q and intervals are "
        "computed over these groups. By default each prompt counts.",
        rich_help_panel=_DATA,
    ),
]
PairField: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Field that is equal for the two prompts of a pair, which are then compared with each other; "
        "none by default.",
        rich_help_panel=_DATA,
    ),
]
Limit: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Maximum number of prompts of each class of the file, drawn at random; all by default.",
        rich_help_panel=_DATA,
    ),
]
TargetResponse: TypeAlias = Annotated[
    str | None, typer.Option(help="The response whose causes are sought; by default that of --target-field.")
]
BaselineResponse: TypeAlias = Annotated[
    str | None, typer.Option(help="The response it is held against; by default that of --baseline-field.")
]
TargetField: TypeAlias = Annotated[
    str, typer.Option(help="Field that holds the target response, where --target is not given.")
]
BaselineField: TypeAlias = Annotated[
    str, typer.Option(help="Field that holds the baseline response, where --baseline is not given.")
]
SystemPrompt: TypeAlias = Annotated[
    str | None,
    typer.Option(help="First message of every prompt that is a text; none by default.", rich_help_panel=_DATA),
]

ChatTemplate: TypeAlias = Annotated[
    Path | None, typer.Option(help="File of a chat template; by default the tokenizer's own.", rich_help_panel=_DATA)
]
TemplateArgs: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--template-arg",
        metavar="NAME=JSON",
        help="Further argument of the chat template, such as enable_thinking=false; may be given several times.",
        rich_help_panel=_DATA,
    ),
]

Server: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="A server that `hf-mote serve MODEL` runs, such as http://127.0.0.1:8000, instead of a model that is "
        "loaded here; its key, if it needs one, is read from the variable VLLM_API_KEY. By default the model is "
        "loaded here.",
        rich_help_panel=_MODEL,
    ),
]
Profile: TypeAlias = Annotated[
    str | None,
    typer.Option(help="With --server: a profile of the server, by its name; none by default.", rich_help_panel=_MODEL),
]

JudgeName: TypeAlias = Annotated[
    str | None, typer.Option("--judge", help=f"What labels a response: {_JUDGES}.", rich_help_panel=_JUDGING)
]
Target: TypeAlias = Annotated[
    str | None, typer.Option(help="Label of interest; the judge's own by default.", rich_help_panel=_JUDGING)
]
JudgeModel: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="For lm, which needs it: folder or Hub id of the model, or its name on the server; none by default.",
        rich_help_panel=_JUDGING,
    ),
]
JudgeURL: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--judge-url",
        help="For lm: an OpenAI-compatible server to ask; by default the model is loaded here.",
        rich_help_panel=_JUDGING,
    ),
]
JudgeAllowHTTP: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--judge-allow-http",
        help="Ask a server on another machine by http://, which others on the network can read.",
        rich_help_panel=_JUDGING,
    ),
]

Revision: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of the model on the Hub; main by default.", rich_help_panel=_MODEL),
]
Dtype: TypeAlias = Annotated[str, typer.Option(help=f"One of {', '.join(DTYPES)}.", rich_help_panel=_MODEL)]
Device: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--device",
        "--device-map",
        help="cpu, cuda:0, ..., or auto to spread the model over all devices; by default the accelerator.",
        rich_help_panel=_MODEL,
    ),
]
Quantization: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"Quantize while loading: one of {', '.join(QUANTIZATIONS)}; by default not.", rich_help_panel=_MODEL
    ),
]
AttnImplementation: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"How attention is computed: one of {', '.join(ATTENTIONS)}; by default as transformers chooses.",
        rich_help_panel=_MODEL,
    ),
]
TrustRemoteCode: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run code of the model's own repository; the report then says so.",
        rich_help_panel=_MODEL,
    ),
]
AllowOtherWeights: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--allow-other-weights",
        help="Apply the config to weights that it was not made for, such as a fine-tune's, or although it is "
        "unverified; the report then says so.",
        rich_help_panel=_MODEL,
    ),
]
BatchSize: TypeAlias = Annotated[int, typer.Option(min=1, help="Prompts that run together.", rich_help_panel=_MODEL)]
MaxNewTokens: TypeAlias = Annotated[
    int, typer.Option(min=1, help="Longest response, in tokens.", rich_help_panel=_MODEL)
]

Temperature: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Sample responses at this temperature; greedy by default.", rich_help_panel=_MODEL),
]
TopP: TypeAlias = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        help="Sample from the most likely tokens whose probabilities add up to this; from all by default.",
        rich_help_panel=_MODEL,
    ),
]

DryRun: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print what would be done, what it needs, and how long it takes, from one timed batch; write nothing.",
        rich_help_panel=_OUT,
    ),
]
Force: TypeAlias = Annotated[
    bool, typer.Option("--force", help="Replace what an earlier run wrote to the folder.", rich_help_panel=_OUT)
]
Output: TypeAlias = Annotated[Path, typer.Option(help="Folder to write to.")]
RunFolder: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps results as they come, and afterwards; the same command continues from them. By "
        "default they are kept beside the output, in OUTPUT.run, until the output is written.",
        rich_help_panel=_OUT,
    ),
]
Seed: TypeAlias = Annotated[int, typer.Option(min=0, help="Seed of everything drawn at random.")]
Resamples: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Bootstrap resamples for intervals; 0 for no intervals and no p values.")
]
Top: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Number of experts to examine closely; by default as many as in the config, or 5."),
]
Traced: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Texts of each class whose tokens are shown with routing weights; 0 for none.")
]
Latents: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="Folder of a map of latents and experts that `hf-mote sae experts` wrote for this model: the page then "
        "shows which latents predict or drive each expert. May be given several times.",
    ),
]
Suppress: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Write a config that suppresses this many of the first experts; none by default."),
]
Stimulate: TypeAlias = Annotated[
    int | None,
    typer.Option(min=1, help="Write a config that stimulates this many of the first experts; none by default."),
]
Multiply: TypeAlias = Annotated[
    int | None,
    typer.Option(
        min=1, help="Write a config that multiplies the weights of this many first experts by --by; none by default."
    ),
]
By: TypeAlias = Annotated[
    float | None,
    typer.Option(
        min=0, help="With --multiply: the factor; 0 removes the experts, 2 doubles their weights. It has no default."
    ),
]
Positions: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Limit that config to these tokens of each sequence, as in 0,1 or -1: counted from the first one, or "
        "back from the last of the prompt. By default it acts at all tokens of its scope. attribute --method patching "
        "also patches these tokens only."
    ),
]
Mode: TypeAlias = Annotated[
    str,
    typer.Option(
        help="How to suppress: drop, reroute or zero; bake accepts zero, and reroute for some models.",
        show_default=True,
    ),
]
Controls: TypeAlias = Annotated[
    int, typer.Option(min=0, help="Random configs to compare with, or as many as exist; a verdict needs 19.")
]
ControlKind: TypeAlias = Annotated[
    str, typer.Option(help="How controls are matched: layer, or usage (experts of the layer used about as often).")
]


def numbers_in(option: str, text: str, kind: type[int] | type[float]) -> list[float]:
    """Return the numbers of an option such as "1,2,5", sorted, each once.

    Args:
        option (`str`): Its name, for the error.
        text (`str`): What was given.
        kind (`type`): `int` or `float`.

    Raises:
        [`ConfigError`]: if a part is not such a number, or there is none.
    """
    expected = "whole numbers, as in 1,2,5" if kind is int else "numbers, as in 0.5,1"
    try:
        numbers = sorted({kind(part) for part in text.split(",")})
        if not all(map(math.isfinite, numbers)):
            raise ConfigError(option, "must hold finite numbers", got=repr(text), expected=expected)
        return numbers
    except HFMoTEError:
        raise
    except (ValueError, OverflowError) as error:
        raise ConfigError(option, "must be a list of numbers", got=repr(text), expected=expected) from error


def check_experts(model: PreTrainedModel, **numbers: int | None) -> None:
    """Refuse numbers above the number of experts of a model, before it runs.

    Args:
        model (`PreTrainedModel`): The model.
        **numbers (`int`, *optional*): The numbers, by the name of their option.

    Raises:
        [`ConfigError`]: if one is too large.
    """
    from hf_mote.routing.sites.discover import find_routers

    most = sum(site.num_experts for site in find_routers(model))
    for name, number in numbers.items():
        if number is not None and number > most:
            option = f"--{name.replace('_', '-')}"
            raise ConfigError(option, "asks for more experts than there are", got=number, expected=f"up to {most}")


def check_changes(
    suppress: int | None, stimulate: int | None, mode: str, multiply: int | None = None, by: float | None = None
) -> None:
    """Refuse options that do not make a config, before the model runs.

    Args:
        suppress (`int`, *optional*): How many of the first experts to suppress.
        stimulate (`int`, *optional*): How many to stimulate instead.
        mode (`str`): As `MoTEConfig.suppress_mode`.
        multiply (`int`, *optional*): How many to give a gain instead.
        by (`float`, *optional*): The gain.

    Raises:
        [`ConfigError`]: if more than one number is given, or one of `multiply` and `by` without the other.
        [`UnknownNameError`]: if there is no such mode.
    """
    counts = {"--suppress": suppress, "--stimulate": stimulate, "--multiply": multiply}
    given = [option for option, number in counts.items() if number is not None]
    if len(given) > 1:
        what = "are both given" if len(given) == 2 else "are all given"
        raise ConfigError(", ".join(given), what, expected="one of them, or none")
    if (multiply is None) != (by is None):
        missing = "--by" if by is None else "--multiply"
        raise ConfigError(missing, "is missing: --multiply and --by go together", fix="As in --multiply 8 --by 2.")
    if by is not None:
        from hf_mote.mote.fields import FLOAT32_MAX

        real("--by", by, least=0, most=FLOAT32_MAX)
    if mode not in MODES:
        raise UnknownNameError.of("--mode", mode, MODES)


def template_args(given: list[str] | None) -> dict[str, Any]:
    """Return the arguments of a chat template that options such as "enable_thinking=false" give.

    Args:
        given (`list[str]`, *optional*): The values of the option.

    Raises:
        [`ConfigError`]: if one is not a name and JSON, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for entry in given or ():
        name, equals, value = entry.partition("=")
        expected = """a name, =, and JSON: enable_thinking=false, or reasoning_effort='"low"'"""
        if not name.isidentifier() or not equals:
            raise ConfigError("--template-arg", "must be a name and a value", got=repr(entry), expected=expected)
        if name in found:
            raise ConfigError("--template-arg", "gives a name twice", got=repr(name), expected="each once")
        try:
            found[name] = parse_json(f"--template-arg {name}", value)
        except FileFormatError as error:
            what = str(error)[len(error.where) + 2 :].rstrip(".")
            raise ConfigError(error.where, what, fix=f"Give {expected}.") from error
    return found


def sampling(temperature: float | None, top_p: float | None) -> dict[str, Any]:
    """Return the arguments of `generate` for the sampling options: none for greedy decoding.

    Args:
        temperature (`float`, *optional*): Above 0.
        top_p (`float`, *optional*): Above 0, at most 1.

    Raises:
        [`ConfigError`]: if one is out of range.
    """
    for option, value, most in (("--temperature", temperature, math.inf), ("--top-p", top_p, 1.0)):
        if value is not None and not (0 < value <= most and math.isfinite(value)):
            expected = "above 0" + (", at most 1" if most == 1 else "")
            fix = "Leave it out for greedy decoding."
            raise ConfigError(option, "is out of range", got=value, expected=expected, fix=fix)
    given = {"temperature": temperature, "top_p": top_p}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return {"do_sample": True, **chosen} if chosen else {}
