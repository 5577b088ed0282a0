"""What importing the package and asking the command line for help may load; what is loaded on demand is the same."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hf_mote
from hf_mote.cli import COMMANDS, SAE_COMMANDS, function_at
from hf_mote.commands import names
from hf_mote.errors import ConfigError, UnknownNameError
from hf_mote.evaluation.controls import CONTROL_KINDS
from hf_mote.links.latent_expert_map import METHODS
from hf_mote.mote.config import MoTEConfig
from hf_mote.sae.announced import ANNOUNCED
from hf_mote.sae.configuration import SAEConfig
from hf_mote.sae.convert.registry import FORMATS
from hf_mote.sae.register import registered_saes
from hf_mote.statistics.scores import SCORES

PACKAGE = Path(hf_mote.__file__).parent
# Each takes longer to import than an answer to --help may.
SLOW = {"accelerate", "datasets", "matplotlib", "numpy", "pandas", "peft", "scipy", "torch"}
SLOW |= {"safetensors", "transformers"}
LOADED = "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"


def modules_after(code: str) -> set[str]:
    """The names of what is imported after some code in a new interpreter."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code + LOADED], capture_output=True, text=True, check=True, env=environment
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def slow_after(code: str) -> set[str]:
    return {name.partition(".")[0] for name in modules_after(code)} & SLOW


@pytest.fixture(scope="module")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What is imported to answer: the slow modules for each of several command lines, in one new interpreter each."""
    settings = tmp_path_factory.mktemp("settings") / "recipe.yaml"
    settings.write_text("tokenz: 3\ntokens: many\n", encoding="utf-8")
    train = "'sae', 'train', 'model', 'text.txt', '--output', 'out'"
    typed = {
        "nothing but the package": "import hf_mote",
        "--version": "run('--version')",
        "--help": "run('--help')",
        "no such command": "run('fitr')",
        "no such option": "run('ftri', '--bogus')",
        "no such scope": "run('ftri', 'model', 'prompts', '--scope', 'bogus')",
        "no such file": "run('ftri', 'model', 'missing.jsonl', '--judge', 'refusal')",
        "no such text": "run('sae', 'train', 'model', 'missing.txt', '--output', 'out')",
        "no such text to measure on": "run('sae', 'evaluate', 'model', 'sae', 'missing.txt')",
        "no such setting": f"run({train}, '--settings', {str(settings)!r})",
        "no such architecture": f"run({train}, '--architecture', 'topc')",
        "no such field": f"run({train}, '--option', 'l2_coefficient=1')",
        "recipe": f"run('validate', {str(settings.parent)!r})",
        "no such format": "run('sae', 'convert', 'a', 'b', '--to', 'bogus')",
    }
    start = "from typer.testing import CliRunner\nfrom hf_mote.cli import app\n"
    start += "def run(*words): print(CliRunner().invoke(app, words).output)\n"
    return {name: slow_after(f"{start}{code}") for name, code in typed.items()}


def test_door_and_wrong_arguments_load_nothing_slow(command_line: dict[str, set[str]]) -> None:
    assert command_line == {name: set() for name in command_line}


def test_every_command_module_loads_nothing_slow() -> None:
    modules = [place.partition(":")[0] for place in (*COMMANDS.values(), *SAE_COMMANDS.values())]
    code = f"import importlib\nfor name in {modules}: importlib.import_module(name)"
    assert slow_after(code) == set()


@pytest.mark.parametrize("place", [*COMMANDS.values(), *SAE_COMMANDS.values()])
def test_every_command_is_where_the_table_says_and_is_described(place: str) -> None:
    assert (function_at(place).__doc__ or "").strip()


def test_import_adds_few_modules_to_torch_and_transformers() -> None:
    before = modules_after("import torch, transformers")
    added = modules_after("import torch, transformers\nimport hf_mote") - before
    assert {name for name in added if not name.startswith("hf_mote")} <= {"difflib"}
    assert len(added) < 12


@pytest.mark.parametrize(
    "order",
    ["import hf_mote\nfrom transformers import AutoModel", "from transformers import AutoModel\nimport hf_mote"],
    ids=["before transformers", "after transformers"],
)
def test_auto_classes_know_the_saes_once_the_package_is_imported(order: str, tmp_path: Path) -> None:
    hf_mote.TopKSAEModel(hf_mote.TopKSAEConfig(hidden_size=4, num_latents=8, k=2)).save_pretrained(tmp_path)
    code = f"""{order}
import pickle, sys
from transformers import CONFIG_MAPPING, AutoConfig
assert "torch" not in sys.modules or "hf_mote.sae.variants" not in sys.modules
assert "feature_choice_sae" in CONFIG_MAPPING
assert not any(type(finder).__module__.startswith("hf_mote") for finder in sys.meta_path)
registry = sys.modules["transformers.models.auto.configuration_auto"]
assert not type(registry.__spec__.loader).__module__.startswith("hf_mote")
model = AutoModel.from_pretrained({str(tmp_path)!r})
assert type(model).__name__ == "TopKSAEModel" and type(AutoConfig.for_model("relu_sae")).__name__ == "ReLUSAEConfig"
from hf_mote import TopKSAEModel
from hf_mote.sae.register import registered_saes
assert type(model) is TopKSAEModel
for model_type, architecture in registered_saes().items():
    assert CONFIG_MAPPING[model_type] is architecture.config_class
"""
    assert "hf_mote.sae.variants.topk" in modules_after(code)


def test_announced_saes_are_those_that_the_package_registers() -> None:
    ours = {name: one for name, one in registered_saes().items() if one.__module__.startswith("hf_mote.")}
    assert {name: one.config_class.__name__ for name, one in ours.items()} == ANNOUNCED


def test_announced_model_type_is_taken_before_it_is_loaded() -> None:
    code = """
import hf_mote
from hf_mote.errors import ConfigError
class MineConfig(hf_mote.SAEConfig):
    model_type = "topk_sae"
class MineModel(hf_mote.SAEModel):
    config_class = MineConfig
import sys
assert "hf_mote.sae.variants" not in sys.modules
try:
    hf_mote.register_sae(MineModel)
except ConfigError as error:
    assert "model_type is taken" in str(error)
else:
    raise SystemExit("taken twice")
"""
    assert "hf_mote.sae.variants" not in modules_after(code)


def test_table_of_the_door_is_all_and_what_type_checkers_see() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (checked,) = (node.body for node in tree.body if isinstance(node, ast.If) and "not" not in ast.unparse(node.test))
    imports = [node for node in checked if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert seen == hf_mote._PLACES
    assert {*seen, "HFMoTEError", "__version__"} == set(hf_mote.__all__)
    for name in hf_mote.__all__:
        assert getattr(hf_mote, name) is not None
        assert name in dir(hf_mote)


def test_unknown_name_of_the_package_is_an_attribute_error_that_knows_the_module() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'find_router'") as caught:
        hf_mote.find_router  # type: ignore[attr-defined]  # noqa: B018
    assert caught.value.name == "find_router"
    assert caught.value.obj is hf_mote


def test_part_of_the_package_is_imported_when_asked_for() -> None:
    assert "hf_mote.statistics" in modules_after("import hf_mote\nassert hf_mote.statistics.__doc__")


def test_names_that_the_command_line_shows_are_those_that_exist() -> None:
    assert tuple(SCORES) == names.SCORES
    assert tuple(FORMATS) == names.FORMATS
    assert tuple(name for name, format in FORMATS.items() if format.write) == names.WRITTEN_FORMATS
    assert CONTROL_KINDS == names.CONTROL_KINDS
    fields = {name: architecture.config_class._own_fields() for name, architecture in registered_saes().items()}
    assert {name.removesuffix("_sae") for name in ANNOUNCED} == set(names.ARCHITECTURES)
    for name, own in names.ARCHITECTURES.items():
        assert set(own) == set(fields[f"{name}_sae"]) - set(SAEConfig._own_fields())
    assert set(names.SAE_FIELDS) <= set(SAEConfig._own_fields())
    assert METHODS == names.LINK_METHODS
    for mode in names.MODES:
        MoTEConfig(suppress_mode=mode)
    with pytest.raises((ConfigError, UnknownNameError), match="drop"):
        MoTEConfig(suppress_mode="bogus")  # type: ignore[arg-type]
