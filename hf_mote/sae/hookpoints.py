"""Where in a model activations are read and changed: a module's path, and its input or output.

`"model.layers.3.output"` is what a decoder layer returns (`"model.layers.3"` means the same),
`"model.layers.3.self_attn.o_proj.input"` the input of a projection, `"model.layers.*.mlp.gate.input"` the input of
every router. Of several outputs the first is used, or the one that is named: `"model.layers.3.mlp.gate.output[1]"`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from hf_mote.errors import DataError, UnknownNameError, UnsupportedError
from hf_mote.hooks import Attachment, Participant, SharedHook, stack_on

__all__ = ["AtHookpoint", "Hookpoint", "HookpointStack", "attachments_at", "canonical", "resolve_hookpoints"]

Side = Literal["input", "output"]
_FORM = re.compile(r"(?P<path>.+?)(?:\.(?P<side>input|output)(?:\[(?P<index>\d+)\])?)?")


class Hookpoint(NamedTuple):
    """One place in a model.

    Attributes:
        name (`str`): What it is called, canonically: the path, with `.input` or `.output[1]` where that is meant.
        path (`str`): Path of the module.
        side (`"input"` or `"output"`): Which of both.
        place (`int`): Which of the module's inputs or outputs.
        module (`nn.Module`): The module.
    """

    name: str
    path: str
    side: Side
    place: int
    module: nn.Module


def canonical(name: str) -> str:
    """Return a hookpoint's name without the defaults `.output` and `[0]`."""
    return name.removesuffix("[0]").removesuffix(".output")


def resolve_hookpoints(model: nn.Module, names: str | Iterable[str], *, where: str = "hookpoints") -> list[Hookpoint]:
    """Return the hookpoints of a model that match names or patterns, in the order of the model's modules.

    In a PEFT model the names of the model inside it stand for the same modules, adapters and all.

    Args:
        model (`nn.Module`): The model.
        names (`str` or `Iterable[str]`): Names; `*` stands for one part of a path.
        where (`str`, *optional*, defaults to `"hookpoints"`): What an error names.

    Raises:
        [`UnknownNameError`]: if a name or pattern matches no module, with the nearest.
    """
    modules = {path: module for path, module in model.named_modules() if path}
    inner: Any = getattr(model, "get_base_model", None)
    if inner is not None:
        modules = {**{path: module for path, module in inner().named_modules() if path}, **modules}
    order = {path: place for place, path in enumerate(modules)}
    found: dict[str, Hookpoint] = {}
    for name in [names] if isinstance(names, str) else list(names):
        matches = _matches(name, modules)
        if not matches:
            _check_number(where, name, modules)
            # Nearest among paths of like depth, so that a list of thousands stays readable.
            depth = name.count(".") + 1
            near = [path for path in modules if path.count(".") + 1 in (depth, depth - 1)]
            raise UnknownNameError.of(where, name, _nearest(name, near))
        for path, side, index in matches:
            full = f"{path}.{side}" + (f"[{index}]" if index else "")
            found[canonical(full)] = Hookpoint(canonical(full), path, side, index, modules[path])
    return sorted(found.values(), key=lambda point: (order[point.path], point.side))


class AtHookpoint(Participant):
    """A participant that reads or changes the activations at a hookpoint."""

    side: Side = "output"
    place: int = 0

    @abstractmethod
    def apply(self, activations: Tensor) -> Tensor | None:
        """Called with the activations, `(..., width)`; returns their replacement, or `None`."""


class HookpointStack(SharedHook):
    """The one hook on a module whose input or output is read or changed; participants act in order."""

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pass the module's arguments to the participants."""
        changed = False
        for participant in self.participants:
            if isinstance(participant, AtHookpoint) and participant.side == "input" and participant.active:
                participant.ran = True
                if participant.place < len(args):
                    given = args[participant.place]
                    new = participant.apply(_tensor(given, module))
                    if new is not None:
                        args = (*args[: participant.place], new, *args[participant.place + 1 :])
                        changed = True
                    continue
                names = [key for key, value in kwargs.items() if isinstance(value, Tensor)]
                behind = participant.place - len(args)
                if behind >= len(names):
                    raise DataError(type(module).__name__, "has no such input", got=f"input[{participant.place}]")
                new = participant.apply(kwargs[names[behind]])
                if new is not None:
                    kwargs = {**kwargs, names[behind]: new}
                    changed = True
        return (args, kwargs) if changed else None

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any | None:
        """Pass the module's output to the participants."""
        changed = False
        for participant in self.participants:
            if isinstance(participant, AtHookpoint) and participant.side == "output" and participant.active:
                participant.ran = True
                new = participant.apply(_output(output, participant.place, module))
                if new is not None:
                    output = _with_output(output, participant.place, new)
                    changed = True
        return output if changed else None


def attachments_at(points: Iterable[tuple[Hookpoint, AtHookpoint]]) -> list[Attachment]:
    """Return the attachments by which each participant acts at its hookpoint, in order."""
    stacks: dict[int, HookpointStack] = {}
    attachments = []
    for point, participant in points:
        participant.side, participant.place = point.side, point.place
        stack = stacks.get(id(point.module)) or stack_on(point.module, HookpointStack) or HookpointStack()
        stacks[id(point.module)] = stack
        attachments.append(Attachment(point.module, stack, participant))
    return attachments


def _matches(name: str, modules: dict[str, nn.Module]) -> list[tuple[str, Side, int]]:
    # A module may itself be called "output".
    whole = _like(name, modules)
    if whole:
        return [(path, "output", 0) for path in whole]
    form = _FORM.fullmatch(name)
    if form is None or form["side"] is None:
        return []
    side: Side = "input" if form["side"] == "input" else "output"
    return [(path, side, int(form["index"] or 0)) for path in _like(form["path"], modules)]


def _like(pattern: str, modules: dict[str, nn.Module]) -> list[str]:
    if "*" not in pattern:
        return [pattern] if pattern in modules else []
    form = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
    return [path for path in modules if form.fullmatch(path)]


def _check_number(where: str, name: str, modules: dict[str, nn.Module]) -> None:
    """Raise for a number in a name that a list of modules, as that of the layers, does not have."""
    parts = name.split(".")
    for place, part in enumerate(parts):
        above = ".".join(parts[:place])
        if not part.isdigit() or above not in modules or f"{above}.{part}" in modules:
            continue
        numbers = [int(child) for child, _ in modules[above].named_children() if child.isdigit()]
        if numbers:
            expected = f"{above}.{min(numbers)} to {above}.{max(numbers)}"
            raise UnknownNameError(where, "unknown name", got=repr(name), expected=expected)


def _nearest(name: str, paths: list[str]) -> list[str]:
    """Paths similar to a name, each number once."""
    stem = re.sub(r"\.(input|output)(\[\d+\])?$", "", name)
    shapes: dict[str, str] = {}
    for path in paths:
        shapes.setdefault(re.sub(r"\d+", "*", path), path)
    ranked = sorted(shapes, key=lambda shape: -len(set(shape.split(".")) & set(stem.split("."))))
    return ranked[:12]


def _tensor(value: Any, module: nn.Module) -> Tensor:
    if not isinstance(value, Tensor):
        raise UnsupportedError(
            type(module).__name__, "is given no tensor there", got=type(value).__name__, expected="a tensor"
        )
    return value


def _output(output: Any, index: int, module: nn.Module) -> Tensor:
    if isinstance(output, Tensor):
        if index:
            raise DataError(type(module).__name__, "has one output", got=f"output[{index}]", expected="output")
        return output
    values = list(output.values()) if isinstance(output, dict) else list(output)
    if index >= len(values):
        raise DataError(type(module).__name__, "has fewer outputs", got=f"output[{index}]", expected=len(values))
    return _tensor(values[index], module)


def _with_output(output: Any, index: int, new: Tensor) -> Any:
    if isinstance(output, Tensor):
        return new
    if isinstance(output, dict):
        copied = type(output)(**output)
        copied[list(output)[index]] = new
        return copied
    values = [*output[:index], new, *output[index + 1 :]]
    return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
