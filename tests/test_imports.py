"""The rules of structure, read from the source: who may import whom, who may attach hooks, what is never called."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import transformers

import hf_mote

PACKAGE = Path(hf_mote.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

# What each part may import, itself apart. The root only gathers names, so nothing but the command line imports it.
_BASE = {"errors", "version", "files", "hub", "hooks"}
MAY_IMPORT = {
    "errors": set(),
    "version": set(),
    "files": {"errors", "version"},
    "hub": {"errors", "version", "files"},
    "hooks": {"errors"},
    "routing": _BASE,
    "mote": _BASE | {"routing"},
    "ftri": _BASE | {"routing", "mote"},
    "sae": _BASE,
}
ANYTHING = {"__init__", "__main__", "organisms", "cli", "commands", "pages", "plots"}
IMPORTED_BY_NOTHING_BELOW = {"__main__", "organisms", "cli", "commands", "pages", "plots"}
HOOK_CALLS = {
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_module_forward_hook",
    "register_module_forward_pre_hook",
    "register_module_full_backward_hook",
}
# What runs code of a repository if it is told to, or if it is told nothing and somebody types "y".
LOADERS = {
    *(name for name in dir(transformers) if name.startswith("Auto")),
    *("PreTrainedTokenizerBase", "PreTrainedTokenizerFast"),
}
PICKLES = {"cloudpickle", "dill", "joblib", "pickle", "shelve"}


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_modules(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            # `from hf_mote import hub` imports hf_mote.hub.
            names |= {f"{module}.{alias.name}" for alias in node.names} if module == "hf_mote" else {module}
    return names


def wrong_imports(part: str, source: str) -> list[str]:
    wrong = []
    for name in sorted(imported_modules(ast.parse(source))):
        top, *rest = name.split(".")
        if name.startswith("."):
            wrong.append(f"{name}: imports are absolute")
        elif top in PICKLES:
            wrong.append(f"{name}: nothing is unpickled")
        elif name.startswith("transformers.models"):
            wrong.append(f"{name}: no model's own module")
        elif top == "hf_mote" and part not in ANYTHING:
            other = rest[0] if rest else "the root"
            if other != part and other not in MAY_IMPORT[part]:
                wrong.append(f"{name}: {part} may import {sorted(MAY_IMPORT[part])}")
    return wrong


def wrong_calls(source: str, *, may_hook: bool = False, may_trust: bool = False) -> list[str]:
    wrong = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr in HOOK_CALLS and not may_hook:
            wrong.append(f"line {node.lineno}: {node.attr}; only hooks.py attaches hooks")
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Attribute) and target.attr == "forward" for target in targets):
                wrong.append(f"line {node.lineno}: a replaced forward")
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        called = ast.unparse(node.func)
        loads = called.endswith(".from_pretrained") and called.split(".")[0] in LOADERS
        if loads or "trust_remote_code" in keywords:
            trusts = keywords.get("trust_remote_code")
            # The user's own flag, for the user's own model.
            if trusts != "False" and not (may_trust and trusts == "trust_remote_code"):
                wrong.append(f"line {node.lineno}: {called} without trust_remote_code=False")
        if ast.unparse(node.func) == "torch.load" and keywords.get("weights_only") != "True":
            wrong.append(f"line {node.lineno}: torch.load without weights_only=True")
        if keywords.get("allow_pickle", "False") != "False":
            wrong.append(f"line {node.lineno}: allow_pickle")
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    assert part in MAY_IMPORT or part in ANYTHING, f"say in MAY_IMPORT what the new part {part} may import"
    assert wrong_imports(part, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_calls_hooks_and_pickles_only_where_allowed(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    may = {"may_hook": place == "hooks.py", "may_trust": place.startswith("commands/")}
    assert wrong_calls(path.read_text(encoding="utf-8"), **may) == []


def test_every_folder_with_code_is_a_package() -> None:
    assert {path.parent for path in SOURCES if not (path.parent / "__init__.py").exists()} == set()


def test_dependency_table_has_no_cycle_and_nothing_above() -> None:
    order = list(MAY_IMPORT)
    for part, allowed in MAY_IMPORT.items():
        if part in _BASE:
            assert all(order.index(other) < order.index(part) for other in allowed)
        assert not allowed & IMPORTED_BY_NOTHING_BELOW
    assert "sae" not in MAY_IMPORT["routing"] | MAY_IMPORT["mote"] | MAY_IMPORT["ftri"]
    assert not MAY_IMPORT["sae"] & {"routing", "mote", "ftri"}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("routing", "from hf_mote.mote.config import MoTEConfig"),
        ("routing", "def f():\n    from hf_mote import mote"),
        ("mote", "import hf_mote.ftri.imaging"),
        ("ftri", "from hf_mote.cli import app"),
        ("hub", "import hf_mote"),
        ("sae", "from hf_mote.routing.discover import find_routers"),
        ("mote", "from .patch import apply_mote"),
        ("plots", "import pickle"),
        ("routing", "from transformers.models.mixtral import modeling_mixtral"),
    ],
)
def test_wrong_imports_forbidden_import_is_found(part: str, source: str) -> None:
    assert len(wrong_imports(part, source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "module.register_forward_hook(f)",
        "attach = module.register_forward_pre_hook",
        "module.forward = f",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "AutoModel.from_pretrained(name, trust_remote_code=trust_remote_code)",
        "AutoTokenizer.from_pretrained(name)",
        "load(name, trust_remote_code=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_wrong_calls_forbidden_call_is_found(source: str) -> None:
    assert len(wrong_calls(source)) == 1


def test_wrong_calls_a_command_passes_on_its_flag_and_nothing_else() -> None:
    for value, found in (("trust_remote_code", 0), ("False", 0), ("True", 1), ("other", 1)):
        assert len(wrong_calls(f"AutoModel.from_pretrained(x, trust_remote_code={value})", may_trust=True)) == found
