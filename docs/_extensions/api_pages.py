"""The pages of the API reference, made from the docstrings of the public names.

`write_api_pages` writes one MyST page for each group of [`GROUPS`]; a public name that no group lists stands at the
end of the page of its module, see [`PARTS`]. Docstrings are Markdown with Google's sections, as transformers writes
them; Sphinx's own autodoc takes reStructuredText. A public name or method without a docstring ends the build.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import hf_mote
from hf_mote import errors

__all__ = ["GROUPS", "PARTS", "Group", "docstring_as_markdown", "groups", "public_targets", "write_api_pages"]


class Group(NamedTuple):
    """A page of the reference.

    Attributes:
        title (`str`): Its heading.
        names (`tuple[str, ...]`): Public names of `hf_mote`, in the order in which they are read.
    """

    title: str
    names: tuple[str, ...]


GROUPS = {
    "patching": Group(
        "Patching: configs and interventions",
        (
            "MoTEConfig",
            "apply_mote",
            "Intervention",
            "find_routers",
            "RouterSite",
            "register_routers",
            "bake_mote",
            "BakedModel",
            "tunable_mote",
            "TunableMoTE",
            "check_model",
            "ModelCheck",
        ),
    ),
    "finding": Group(
        "Finding experts: imaging, maps and rankings",
        (
            "ftri",
            "FTRIResult",
            "record_routing",
            "RoutingRecord",
            "ActivationMap",
            "ExpertRanking",
            "attribute_experts",
            "ablate_experts",
            "patch_experts",
            "patch_layers",
            "PatchedLayers",
            "counterfactual_routes",
            "CounterfactualRoutes",
            "search_experts",
            "ExpertSearch",
            "optimize_experts",
            "OptimizedRanking",
            "prompt_grid",
            "PromptGrid",
            "load_organism",
            "Organism",
        ),
    ),
    "measuring": Group("Measuring: evaluation and sweeps", ("evaluate_mote", "EvaluationReport", "sweep_mote")),
    "judges": Group(
        "Judges",
        ("RefusalJudge", "RegexJudge", "ChoiceJudge", "LanguageJudge", "LMJudge", "ServerJudge"),
    ),
    "saes": Group(
        "Sparse autoencoders",
        (
            "SAEConfig",
            "SAEModel",
            "SAEOutput",
            "ReLUSAEConfig",
            "ReLUSAEModel",
            "GatedSAEConfig",
            "GatedSAEModel",
            "JumpReLUSAEConfig",
            "JumpReLUSAEModel",
            "TopKSAEConfig",
            "TopKSAEModel",
            "BatchTopKSAEConfig",
            "BatchTopKSAEModel",
            "MatryoshkaSAEConfig",
            "MatryoshkaSAEModel",
            "FeatureChoiceSAEConfig",
            "FeatureChoiceSAEModel",
            "MutualChoiceSAEConfig",
            "MutualChoiceSAEModel",
            "register_sae",
        ),
    ),
    "sae_use": Group(
        "Training, measuring and using autoencoders",
        (
            "collect_activations",
            "SAETrainer",
            "SAETrainingArguments",
            "evaluate_sae",
            "SAEReport",
            "adapt_to_sae",
            "splice_sae",
            "steer",
            "SteeringConfig",
            "link_latents",
            "LatentExpertMap",
            "load_sae",
            "export_sae",
            "list_saes",
            "SAELayout",
        ),
    ),
    "serving": Group("Inference engines", ("ServerEngine", "VLLMEngine")),
}

# Part of the package -> page of its public names, the longest name first.
PARTS = {
    "hf_mote.sae.variants": "saes",
    "hf_mote.generation": "finding",
    "hf_mote.evaluation": "measuring",
    "hf_mote.organisms": "finding",
    "hf_mote.statistics": "finding",
    "hf_mote.serving": "serving",
    "hf_mote.routing": "patching",
    "hf_mote.ranking": "finding",
    "hf_mote.judges": "judges",
    "hf_mote.maps": "finding",
    "hf_mote.mote": "patching",
    "hf_mote.sae": "sae_use",
    "hf_mote": "sae_use",  # what joins latents and experts
}

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Examples", "Source")
_SECTION = re.compile(rf"^({'|'.join(SECTIONS)}):[ \t]*(.*)$")
_ENTRY = re.compile(r"^(?P<name>[*\w][\w.*, /]*?)(?: \((?P<kind>.*)\))?:(?:[ \t]+(?P<rest>.*))?$")
_RAISED = re.compile(r"^(?P<name>.*?\]?):(?:[ \t]+(?P<rest>.*))?$")
_REFERENCE = re.compile(r"\[`(~?[\w.]+)`\](?!\()")
_FENCE = re.compile(r"^ *```")


def public_targets() -> dict[str, str]:
    """Return what can be linked to: a name as docstrings write it -> its full name in the reference."""
    placed = [name for group in groups().values() for name in group.names]
    targets = {name: f"hf_mote.{name}" for name in placed}
    targets |= {name: f"hf_mote.errors.{name}" for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    for name in placed:
        value = getattr(hf_mote, name)
        if isinstance(value, type):
            targets |= {f"{name}.{member}": f"hf_mote.{name}.{member}" for member in _members(value)}
    return targets


def groups() -> dict[str, Group]:
    """Return [`GROUPS`] with the public names that none of them lists."""
    listed = {name for group in GROUPS.values() for name in group.names}
    more: dict[str, list[str]] = {page: [] for page in GROUPS}
    for name in hf_mote.__all__:
        if name not in listed and name not in ("__version__", "HFMoTEError"):
            module = str(getattr(getattr(hf_mote, name), "__module__", "hf_mote"))
            part = next(part for part in PARTS if f"{module}.".startswith(f"{part}."))
            more[PARTS[part]].append(name)
    return {page: Group(group.title, (*group.names, *more[page])) for page, group in GROUPS.items()}


def write_api_pages(folder: Path) -> None:
    """Write the pages of the reference, and their list, into a folder.

    Args:
        folder (`Path`):
            Made if it does not exist. A page that is as it should be is left alone: Sphinx does not read it again.

    Raises:
        `ValueError`: if a public name is on two pages, or it, or one of its methods, has no docstring.
    """
    folder.mkdir(parents=True, exist_ok=True)
    faults = _faults()
    if faults:
        raise ValueError("the reference is not whole:\n" + "\n".join(faults))
    targets = public_targets()
    pages = {name: _page(group, targets) for name, group in groups().items()}
    pages["errors"] = _errors_page(targets)
    listed = "\n".join(pages)
    pages["index"] = (
        "# API reference\n\nEvery public name of `hf_mote`, from its docstring. The examples are run by the tests.\n\n"
        f"```{{toctree}}\n:maxdepth: 2\n\n{listed}\ncommands\n```\n"
    )
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def docstring_as_markdown(docstring: str, targets: dict[str, str], owner: str = "") -> str:
    """Return a docstring as MyST: its sections as lists, what it refers to as links.

    Args:
        docstring (`str`): A docstring, indented as it stands or not.
        targets (`dict[str, str]`): See [`public_targets`].
        owner (`str`, *optional*): Class whose methods may be named alone.
    """
    written: list[str] = []
    section, body = "", list[str]()
    fenced = False
    for line in [*inspect.cleandoc(docstring).splitlines(), None]:
        heading = None if line is None or fenced else _SECTION.match(line)
        ends = line is None or heading is not None
        # A section's lines are indented; what follows it at the margin is text again.
        if section and section not in ("Example", "Examples", "Source") and line and not line.startswith(" "):
            ends = True
        if ends:
            written += _section(section, body, targets)
            section, body = "", []
        if line is None:
            break
        if heading:
            section = heading[1]
            if heading[2]:
                body.append(heading[2])
            continue
        if _FENCE.match(line):
            fenced = not fenced
        body.append(line)
    return _linked("\n".join(written).strip(), targets, owner) + "\n"


def _section(name: str, body: list[str], targets: dict[str, str]) -> list[str]:
    text = textwrap.dedent("\n".join(body)).strip("\n")
    if not text:
        return []
    if name in ("Args", "Attributes", "Raises"):
        title = {"Args": "Arguments"}.get(name, name)
        pattern = _RAISED if name == "Raises" else _ENTRY
        return ["", f"**{title}**", "", *_entries(text, pattern), ""]
    if name in ("Example", "Examples"):
        return ["", "**Example**", "", text, ""]
    if name:
        return ["", f"**{name}:** {text}", ""]
    return [*body]


def _entries(text: str, pattern: re.Pattern[str]) -> list[str]:
    """Return `name (type): text` entries, whose continuation lines are indented, as a list."""
    lines: list[str] = []
    for line in text.splitlines():
        entry = None if line.startswith(" ") else pattern.match(line)
        if entry:
            found = entry.groupdict()
            name = found["name"] if pattern is _RAISED else f"**`{found['name']}`**"
            kind = f" ({found['kind']})" if found.get("kind") else ""
            lines.append(f"- {name}{kind}: {found['rest'] or ''}".rstrip())
        else:
            lines.append(f"  {line.strip()}" if line.strip() and not line.startswith("    " * 2) else f"  {line}")
    return lines


def _linked(text: str, targets: dict[str, str], owner: str) -> str:
    def link(match: re.Match[str]) -> str:
        name = match[1].lstrip("~")
        target = targets.get(name) or targets.get(f"{owner}.{name}")
        return f"{{py:obj}}`{name} <{target}>`" if target else f"`{name}`"

    return _REFERENCE.sub(link, text)


def _page(group: Group, targets: dict[str, str]) -> str:
    parts = [f"# {group.title}\n\n```{{py:currentmodule}} hf_mote\n```\n"]
    parts += [_described(name, getattr(hf_mote, name), targets) for name in group.names]
    return "\n".join(parts)


def _errors_page(targets: dict[str, str]) -> str:
    parts = [
        "# Errors\n\n```{py:currentmodule} hf_mote.errors\n```\n",
        (errors.__doc__ or "").strip() + "\n",
    ]
    for name in errors.__all__:
        value = getattr(errors, name)
        if isinstance(value, type):
            bases = ", ".join(base.__name__ for base in value.__bases__)
            text = docstring_as_markdown(value.__doc__ or "", targets, name)
            parts.append(f"## {name}\n\n::::{{py:exception}} {name}\nIs a {bases}.\n\n{text}::::\n")
    return "\n".join(parts)


def _described(name: str, value: Any, targets: dict[str, str]) -> str:
    kind = "class" if isinstance(value, type) else "function"
    inside = docstring_as_markdown(value.__doc__ or "", targets, name)
    if kind == "class":
        bases = [base.__name__ for base in value.__bases__ if base is not object]
        if bases:
            inside = f"Is a {', '.join(f'`{base}`' for base in bases)}.\n\n{inside}"
        for member, found in _members(value).items():
            inside += f"\n{_described_member(name, member, found, targets)}"
    return f"## {name}\n\n:::::{{py:{kind}}} {name}{_signature(value)}\n{inside}:::::\n"


def _described_member(owner: str, name: str, found: Any, targets: dict[str, str]) -> str:
    text = docstring_as_markdown(inspect.getdoc(found) or "", targets, owner)
    if isinstance(found, property) or not callable(getattr(found, "__func__", found)):
        return f"::::{{py:property}} {owner}.{name}\n{text}::::\n"
    options = ":classmethod:\n" if isinstance(found, classmethod) else ""
    options += ":staticmethod:\n" if isinstance(found, staticmethod) else ""
    function = found.__func__ if isinstance(found, classmethod | staticmethod) else found
    signature = _signature(function, bound=not isinstance(found, staticmethod))
    return f"::::{{py:method}} {owner}.{name}{signature}\n{options}\n{text}::::\n"


def _signature(value: Any, *, bound: bool = False) -> str:
    """Return the signature as text on one line, without `self`."""
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parameters = list(signature.parameters.values())
    parameters = parameters[1:] if bound else parameters
    written = []
    for parameter in parameters:
        annotation, default = parameter.annotation, parameter.default
        if isinstance(annotation, str):
            parameter = parameter.replace(annotation=_Printed(annotation))
        if default is not parameter.empty and not isinstance(default, str | int | float | bool | tuple | type(None)):
            # An object prints with its address, which differs from run to run.
            parameter = parameter.replace(default=_Printed("..."))
        written.append(parameter)
    returns = signature.return_annotation
    returns = _Printed(returns) if isinstance(returns, str) else returns
    returns = signature.empty if isinstance(value, type) else returns
    return re.sub(r"\s+", " ", str(signature.replace(parameters=written, return_annotation=returns)))


class _Printed:
    """An annotation or a default that prints as it is written."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _members(value: type) -> dict[str, Any]:
    """Return the public methods and properties that the package itself gives a class, but those of a public base."""
    members: dict[str, Any] = {}
    described = {getattr(hf_mote, name) for group in groups().values() for name in group.names} - {value}
    for base in value.__mro__:
        if base in described:
            break
        if not base.__module__.startswith("hf_mote"):
            continue
        for name, found in vars(base).items():
            method = isinstance(found, property | classmethod | staticmethod) or inspect.isfunction(found)
            if not name.startswith("_") and method and name not in members:
                members[name] = found
    return dict(sorted(members.items()))


def _faults() -> list[str]:
    placed = [name for group in groups().values() for name in group.names]
    public = {name for name in hf_mote.__all__ if name not in ("__version__", "HFMoTEError")}
    faults = [f"{name}: is not public" for name in sorted({*placed} - public)]
    faults += [f"{name}: on two pages" for name in sorted({name for name in placed if placed.count(name) > 1})]
    for name in sorted(public & {*placed}):
        value = getattr(hf_mote, name)
        if not (value.__doc__ or "").strip():
            faults.append(f"{name}: no docstring")
        if isinstance(value, type):
            faults += [
                f"{name}.{member}: no docstring"
                for member, found in _members(value).items()
                if not (inspect.getdoc(found) or "").strip()
            ]
    return faults
