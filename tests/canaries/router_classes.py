"""The router classes of the installed transformers, read from its sources without importing a model."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["router_classes"]

_NAME = re.compile(r"(Router|Gate|Gating)$")  # what routers of experts are called


def router_classes() -> dict[str, str]:
    """Return every class that looks like a router of experts, with the family it is in.

    A class counts if it is called a router or a gate and calls `topk`, or if a model names it as the source of its
    `router_logits`, unless it is a block that has such a router in it.
    """
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.origin is not None
    found: dict[str, str] = {}
    for path in sorted(Path(spec.origin).parent.glob("models/*/modeling_*.py")):
        source = path.read_text(encoding="utf-8")
        if "router_logits" not in source and "topk(" not in source:
            continue
        tree = ast.parse(source)
        classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        named = {name for node in classes.values() for name in _named_routers(node)} & classes.keys()
        routers = {
            name
            for name, node in classes.items()
            if _NAME.search(name) and any(_calls_topk(part) for part in ast.walk(node))
        }
        routers |= {name for name in named if not _parts_of(name, classes) & (routers | named)}
        found.update(dict.fromkeys(routers, path.parent.name))
    return found


def _parts_of(name: str, classes: dict[str, ast.ClassDef]) -> set[str]:
    """The classes of a file that a class builds, and those that they build."""
    parts: set[str] = set()
    left = [name]
    while left:
        inside = {part.id for part in ast.walk(classes[left.pop()]) if isinstance(part, ast.Name)}
        new = (inside & classes.keys()) - parts - {name}
        parts |= new
        left += new
    return parts


def _named_routers(node: ast.ClassDef) -> Iterator[str]:
    """Classes that `_can_record_outputs` names as the source of router logits."""
    for statement in node.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        if not any(isinstance(target, ast.Name) and target.id == "_can_record_outputs" for target in targets):
            continue
        if not isinstance(statement.value, ast.Dict):  # type: ignore[attr-defined]
            continue
        for key, value in zip(statement.value.keys, statement.value.values, strict=True):  # type: ignore[attr-defined]
            if isinstance(key, ast.Constant) and key.value == "router_logits":
                yield from (part.id for part in ast.walk(value) if isinstance(part, ast.Name))


def _calls_topk(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "topk"
