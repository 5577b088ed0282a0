"""Files of settings, which replace options: each entry is checked like the option, before torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from hf_mote.commands.names import ARCHITECTURES, SAE_FIELDS
from hf_mote.errors import ConfigError, FileFormatError, HFMoTEError, UnknownNameError

__all__ = ["Settings", "read_settings", "wrong_architecture"]

# Fields of an architecture that have their own option.
_ELSEWHERE = {"k": "--k", "num_latents": "--latents", "hookpoint": "--hookpoint"}


def _settings(context: typer.Context, value: Path | None) -> Path | None:
    """Read the options' defaults from a YAML file."""
    if value is None:
        return None
    given, wrong = read_settings(value, context)
    if wrong:
        raise typer.BadParameter("\n".join(map(str, wrong)))
    context.default_map = {**(context.default_map or {}), **given}
    return value


Settings: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        help="YAML file of options by their names, none by default; options on the command line override it.",
        callback=_settings,
        is_eager=True,
    ),
]


def read_settings(
    path: Path, context: typer.Context, named: str | None = None
) -> tuple[dict[str, Any], list[HFMoTEError]]:
    """Return the contents of a file of settings by the names of the parameters, and all problems in it.

    Args:
        path (`Path`): The file, in YAML.
        context (`typer.Context`): The context of the command whose options these are.
        named (`str`, *optional*): The file's name in errors; by default its path.
    """
    from hf_mote.documents import read_yaml

    name = str(path) if named is None else named
    try:
        found = read_yaml(path)
    except FileFormatError as error:
        if "must hold an object" in str(error):
            expected = "lines such as tokens: 20000"
            return {}, [FileFormatError(name, "holds no options", expected=expected)]
        return {}, [FileFormatError(name, str(error)[len(error.where) + 2 :].rstrip("."))]
    known: dict[str, Any] = {
        parameter.name.replace("_", "-"): parameter
        for parameter in context.command.params
        if parameter.name is not None and parameter.name != "settings" and parameter.param_type_name == "option"
    }
    # Some options have another name on the command line than in the function, or several.
    spelled = {name.removeprefix("--"): one for one in known.values() for name in one.opts if name.startswith("--")}
    known = {**spelled, **known}
    given: dict[str, Any] = {}
    wrong: list[HFMoTEError] = []
    for key, entry in found.items():
        option = key.replace("_", "-")
        if option not in known:
            wrong.append(UnknownNameError.of(name, option, known))
        elif known[option].name in given:
            wrong.append(ConfigError(f"{name}: {option}", "is given twice", expected="once"))
        else:
            if known[option].multiple and isinstance(entry, str | int | float) and not isinstance(entry, bool):
                entry = [entry]  # one value of an option that may be given several times
            given[known[option].name] = entry
            problem = None if entry is None else _problem(f"{name}: {option}", known[option], entry, context)
            wrong += [] if problem is None else [problem]
    return given, wrong


def _problem(where: str, parameter: Any, entry: Any, context: typer.Context) -> ConfigError | None:
    """Return the problem with the value of an option, `None` if it is valid."""
    got = repr(entry) if len(repr(entry)) <= 60 else f"{repr(entry)[:60]} …"
    if isinstance(entry, list) != parameter.multiple or isinstance(entry, dict):
        return ConfigError(where, f"must be {'a list' if parameter.multiple else 'one value'}", got=got)
    if isinstance(entry, bool) != bool(parameter.is_flag):
        expected = "true or false" if parameter.is_flag else "a value that is neither true nor false"
        return ConfigError(where, f"must be {expected}", got=got)
    if parameter.callback is None:
        try:
            parameter.process_value(context, entry)
        except Exception as error:  # the library of the command line raises errors of several classes
            what = " ".join(str(getattr(error, "message", error)).split()).partition(", unable to ")[0].rstrip(".")
            return ConfigError(where, what.replace("Input should be", "must be"), got=got)
    return None


def wrong_architecture(architecture: object, k: object, fields: list[str]) -> list[HFMoTEError]:
    """Return the problems with the options of `hf-mote sae train` that choose an architecture.

    Args:
        architecture (`object`): `--architecture`, as it was given.
        k (`object`): `--k`, `None` if it was not given.
        fields (`list[str]`): The names of the fields that `--option` sets.
    """
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        return [UnknownNameError.of("--architecture", architecture, ARCHITECTURES)]
    own = ARCHITECTURES[architecture]
    wrong: list[HFMoTEError] = []
    if k is not None and "k" not in own:
        fix = "Leave it out; sparsity is set by a coefficient (--option)."
        wrong.append(ConfigError("--k", f"{architecture} has none", fix=fix))
    known = sorted({*own, *SAE_FIELDS} - {"k"})
    for name in fields:
        if name in _ELSEWHERE:
            wrong.append(ConfigError(f"--option {name}", "has an option of its own", expected=_ELSEWHERE[name]))
        elif name not in known:
            wrong.append(UnknownNameError.of("--option", name, known))
    return wrong
