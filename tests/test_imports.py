"""The rules of structure, read from the source: who may import whom, who may attach hooks, what is never called."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
import transformers

import hf_mote

PACKAGE = Path(hf_mote.__file__).parent
ROOT = Path(__file__).parents[1]
SOURCES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted(path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)

# What each part may import beside itself and ALWAYS. Parts are the folders and files of the package, in
# reading order; of routing each storey is one. The root only gathers names, so nothing imports it.
ALWAYS = {"errors", "version", "deprecation"}
_STOREYS = {"routing/rules", "routing/sites", "routing/router_hook", "routing/recording"}
_BASE = {
    *(
        "hooks",
        "files",
        "hub",
        "sharing",
        "processes",
        "progress",
        "passes",
        "maps",
        "statistics",
        "generation",
        "judges",
        "runs",
    ),
}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "deprecation": set(),
    "version": set(),
    "hooks": set(),
    "files": set(),
    "documents": {"files"},
    "messages": set(),
    "folders": {"files"},
    "web": set(),
    "processes": set(),
    "progress": set(),
    "drawing": set(),
    "printing": set(),
    "plots": {"drawing", "files"},
    "sharing": {"files", "plots"},
    "hub": {"files", "folders", "sharing"},
    "passes": {"hooks"},
    "maps": {"files", "hub", "sharing", "printing", "plots"},
    "statistics": set(),
    "generation": {"progress", "messages"},
    "judges": {"generation", "files", "web"},
    "routing": set(),
    "routing/rules": set(),
    "routing/sites": {"routing/rules", "printing"},
    "routing/detour": {"routing/rules", "routing/sites", "hooks"},
    "routing/router_hook": {"routing/rules", "routing/sites", "routing/detour", "passes", "hooks"},
    "routing/recording": {"routing/rules", "routing/sites", "routing/router_hook", "passes", "hooks", "maps"},
    "routing/unlisted": {"routing/rules", "routing/sites"},
    "runs": {"hooks", "passes", "routing/router_hook", "files"},
    "mote": _STOREYS | {"passes", "hooks", "hub", "sharing", "files", "folders", "printing"},
    "ranking": _BASE | _STOREYS | {"mote", "printing", "plots"},
    "evaluation": _STOREYS
    | {
        "hooks",
        "passes",
        "mote",
        "statistics",
        "generation",
        "judges",
        "runs",
        "hub",
        "sharing",
        "files",
        "progress",
        "printing",
        "plots",
    },
    "workflow": _STOREYS | {"mote", "ranking", "evaluation", "statistics", "generation", "judges"},
    "sae": {"hooks", "passes", "files", "documents", "messages", "folders", "hub", "sharing", "plots", "runs"},
    "links": _STOREYS | {"hooks", "passes", "maps", "mote", "sae", "runs", "hub", "sharing", "files"},
    "serving": {"routing/rules", "routing/sites", "mote", "maps", "files", "web"},
    "organisms": _BASE | {"folders"} | _STOREYS | {"mote", "ranking", "evaluation"},
    "reports": {"ranking", "evaluation", "workflow", "statistics", "maps", "sae", "links", "drawing", "files"},
}
ANYTHING = {"__init__", "__main__", "cli", "commands"}
# But by the root and the command line.
NEVER_IMPORTED = {"the root", "routing/unlisted", "__main__", "cli", "commands"}
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


def module_of(path: Path) -> str:
    """The dotted path of a file of the package."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def part_of(module: str) -> str:
    """The part that a module of the package belongs to."""
    _, *rest = module.split(".")
    if not rest:
        return "the root"
    return "/".join(rest[:2]) if rest[0] == "routing" else rest[0]


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


def needed_modules(path: Path) -> set[str]:
    """What a file imports, at once, in a function or for its types, with the modules among the names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = imported_modules(tree)
    # `from hf_mote.commands import options` imports hf_mote.commands.options.
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def wrong_imports(part: str, source: str) -> list[str]:
    wrong = []
    for name in sorted(imported_modules(ast.parse(source))):
        top = name.split(".")[0]
        if name.startswith("."):
            wrong.append(f"{name}: imports are absolute")
        elif top in PICKLES:
            wrong.append(f"{name}: nothing is unpickled")
        elif name.startswith("transformers.models"):
            wrong.append(f"{name}: no model's own module")
        elif top == "hf_mote" and part not in ANYTHING:
            other = part_of(name)
            if other != part and other not in MAY_IMPORT[part] | ALWAYS:
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
    part = "__init__" if path == PACKAGE / "__init__.py" else part_of(module_of(path))
    assert part in MAY_IMPORT or part in ANYTHING, f"say in MAY_IMPORT what the new part {part} may import"
    assert wrong_imports(part, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_imports_by_its_dotted_path(path: Path) -> None:
    module = module_of(path)
    if module.endswith("triton_products"):
        pytest.importorskip("triton")
    if module in ("hf_mote.serving.cpu_worker", "hf_mote.serving.gpu_worker", "hf_mote.serving.routes"):
        pytest.importorskip("vllm")
    assert importlib.import_module(module).__name__ == module


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_folder_guide_names_its_files(path: Path) -> None:
    guide = ast.get_docstring(ast.parse((path / "__init__.py").read_text(encoding="utf-8"))) or ""
    inside = [one.name if one.is_file() else f"{one.name}/" for one in path.iterdir() if one.name != "__pycache__"]
    assert [name for name in inside if name != "__init__.py" and name not in guide] == []
    assert 5 <= len(guide.splitlines()) <= 17
    assert "ay import" in guide


def test_architecture_names_every_part_and_no_path_that_is_not_there() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`([\w/]+(?:/|\.py))`", text))
    assert [path for path in paths if not (PACKAGE / path).exists() and not (ROOT / path).exists()] == []
    assert [part for part in MAY_IMPORT if f"{part}/" not in paths | {"routing/"} and f"{part}.py" not in paths] == []


def test_no_public_name_is_a_folder_of_the_package() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert folders
    assert not set(hf_mote.__all__) & (folders | files)


def test_no_module_imports_itself_in_a_circle() -> None:
    modules = {module_of(path) for path in SOURCES}
    needs = {module_of(path): needed_modules(path) & modules - {module_of(path)} for path in SOURCES}
    while free := {module for module, others in needs.items() if not others}:
        needs = {module: others - free for module, others in needs.items() if module not in free}
    assert needs == {}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_calls_hooks_and_pickles_only_where_allowed(path: Path) -> None:
    place = path.relative_to(PACKAGE).as_posix()
    may = {"may_hook": place == "hooks.py", "may_trust": place.startswith("commands/")}
    assert wrong_calls(path.read_text(encoding="utf-8"), **may) == []


def test_every_folder_with_code_is_a_package() -> None:
    assert {path.parent for path in SOURCES if not (path.parent / "__init__.py").exists()} == set()


def test_dependency_table_points_upwards() -> None:
    order = list(MAY_IMPORT)
    for part, allowed in MAY_IMPORT.items():
        assert all(order.index(other) < order.index(part) for other in allowed)
        assert not allowed & NEVER_IMPORTED
    assert "sae" not in set().union(*(MAY_IMPORT[part] for part in ("mote", "ranking", "evaluation", *_STOREYS)))
    assert not MAY_IMPORT["sae"] & {"mote", "ranking", "evaluation", *_STOREYS}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("routing/sites", "from hf_mote.mote.config import MoTEConfig"),
        ("routing/rules", "from hf_mote.routing.sites.site import RouterSite"),
        ("routing/router_hook", "from hf_mote.routing.recording.record import record_routing"),
        ("mote", "from hf_mote.routing.unlisted.register import register_routers"),
        ("routing/recording", "def f():\n    from hf_mote import mote"),
        ("mote", "import hf_mote.ranking.imaging.pipeline"),
        ("evaluation", "from hf_mote.ranking.expert_ranking import ExpertRanking"),
        ("ranking", "from hf_mote.cli import app"),
        ("hub", "import hf_mote"),
        ("sae", "from hf_mote.routing.sites.discover import find_routers"),
        ("mote", "from .patch import apply_mote"),
        ("plots", "import pickle"),
        ("routing/rules", "from transformers.models.mixtral import modeling_mixtral"),
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
