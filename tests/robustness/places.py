"""Where the package reads what lies somewhere, and where it writes: by its own source, so that no place is forgotten.

A place is a function in which one of a few names is called. `reached` says which of them a piece of work goes through;
`test_places.py` holds readers and writers against all there are.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import hf_mote

__all__ = ["READS", "WRITES", "places", "reached"]

ROOT = Path(hf_mote.__file__).parent

READS = frozenset(
    (
        "read_json",
        "parse_json",
        "parse_json_object",
        "read_tensors",
        "read_safetensors",
        "read_document",
        "read_torch",
        "read_npz",
        "read_records",
    )
    + ("safe_open", "memory_map", "open_stream", "read_text", "read_bytes", "open", "ask", "csv.reader", "json.load")
    + ("json.loads", "yaml.load", "yaml.safe_load", "torch.load", "np.load", "np.memmap", "mmap.mmap", "ModelCard")
    + ("AutoConfig.from_pretrained", "AutoTokenizer.from_pretrained", "PreTrainedTokenizerFast.from_pretrained")
    + ("AutoModelForCausalLM.from_pretrained", "PeftModel.from_pretrained", "model_class.from_pretrained")
)
"""What is called to read: the last part of a name, or the last two."""

WRITES = frozenset(
    ("write_json", "write_tensors", "write_safetensors", "write_text", "write_bytes", "replacing", "replacing_folder")
    + ("writing_to", "OSFile", "savefig", "save_file", "torch.save", "json.dump", "yaml.dump", "os.replace")
    + ("os.rename", "os.link", "os.symlink", "mkstemp", "save_pretrained", "copytree", "copy2", "shutil.move", "touch")
)
"""What is called to write."""

_OUTPUTS = frozenset(("writing_to", "replacing_folder", "staging"))
_DRAFTS = _OUTPUTS | {"replacing", "TemporaryDirectory", "writing.folder"}  # the last returns `writing_to`


def places(names: frozenset[str], *, but_in_drafts: bool = False) -> dict[str, int]:
    """Return the functions in which something is called, as "module.function", with their first lines.

    Args:
        names (`frozenset[str]`): What is called: the last part of the name.
        but_in_drafts (`bool`, *optional*, defaults to `False`):
            Leave out calls within the block of something that makes a draft; the call that makes it counts.
    """
    found: dict[str, int] = {}
    called_in: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function, line, name, drafted in _calls(tree, "", 0, False):
            called = {name, name.rpartition(".")[2]} & names
            if called and function and not (drafted and but_in_drafts):
                found[f"{module}.{function}"] = line
                called_in.setdefault(f"{module}.{function}", set()).update(called)
    if but_in_drafts:
        # A command that makes a draft and writes to nothing else: what makes the draft has a case.
        found = {
            place: line
            for place, line in found.items()
            if not (place.startswith("commands.") and called_in[place] <= _OUTPUTS)
        }
    return found


def reached(work: Callable[[], Any]) -> set[str]:
    """Do something, and return the functions of the package that ran, as "module.function"."""
    seen: set[Any] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen.add(frame.f_code)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    found = set()
    for code in seen:
        path = Path(code.co_filename)
        if path.is_relative_to(ROOT):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found.add(f"{module}.{code.co_qualname.replace('.<locals>', '')}")
    return found


def _calls(node: ast.AST, function: str, line: int, drafted: bool) -> Iterator[tuple[str, int, str, bool]]:
    """Yield the function, its line, the name, and whether it is within the block of a draft, of every call."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        function, line, drafted = f"{function}.{node.name}".lstrip("."), node.lineno, False
    if isinstance(node, ast.Call):
        yield function, line, _name(node.func), drafted
    if isinstance(node, ast.With):
        makes = False
        for item in node.items:
            yield from _calls(item, function, line, drafted or makes)
            makes |= any(
                {name, name.rpartition(".")[2]} & _DRAFTS
                for *_, name, _ in _calls(item.context_expr, function, line, False)
            )
        for one in node.body:
            yield from _calls(one, function, line, drafted or makes)
        return
    for child in ast.iter_child_nodes(node):
        yield from _calls(child, function, line, drafted)


def _name(called: ast.expr) -> str:
    """Return the last two parts of a name, as far as they are names."""
    if isinstance(called, ast.Attribute):
        return f"{called.value.id}.{called.attr}" if isinstance(called.value, ast.Name) else f"?.{called.attr}"
    return called.id if isinstance(called, ast.Name) else ""


_OF_THE_PACKAGE = "reads what comes with the package"
_ITS_OWN = "reads what the same call has written"
NOT_FUZZED = {
    "commands.configs.configs_command": _OF_THE_PACKAGE,
    "commands.sae.train._trained": "reads the text of a config in memory",
    "sae.kept.run_of": "likewise",
    "organisms.german._words": _OF_THE_PACKAGE,
    "reports.page._own": _OF_THE_PACKAGE,
    "sae.convert.releases._table": _OF_THE_PACKAGE,
    "maps.storage._nameless": _ITS_OWN,
    "serving.routes._model.describe": _ITS_OWN,
    "evaluation.conversations.answer_conversations": "asks a model, not a server",
    "evaluation.conversations.converse": "likewise",
    "sae.sharing.push_sae": _ITS_OWN,
    "judges.server.ServerJudge._reply": "asks a server: tests/judges has one that says anything",
    "web.ask_in_parts.run": "likewise",
    "serving.routes._put": "the body of a request to a server of vLLM: tests/serving sends damaged ones",
    "sharing.transfer.text_there": "reads what the Hub sends: tests/sharing has a server that sends anything",
    "sharing.transfer._check_content": "likewise",
    "runs.checkpoints._digests": "takes the digest of whatever a file holds",
    "sae.training.trainer.SAETrainer._prepare_for_training": "the reader stream_state makes the same calls",
    "commands.push._contents": "shows the first lines of a card, whatever it holds",
    "commands.sae.evaluate.with_adapter": "an adapter, which peft reads",
}
"""Places that no reader of `readers.py` goes through, and why."""

_DRAFT = "writes to the folder of a draft"
NOT_KILLED = {
    **dict.fromkeys(
        (
            "commands.attribution._write",
            "commands.demo._write",
            "commands.evaluation.files.write_evaluation",
            "commands.find._write",
            "commands.imaging._write",
        )
        + (
            "commands.routes._write",
            "commands.sweep._write",
            "commands.run_files.finish",
            "commands.run_files.save_config",
        ),
        _DRAFT,
    ),
    "commands.bake.bake_command": "BakedModel.save_pretrained",
    "commands.sae.steer.steer_command": "SteeringConfig.save_pretrained",
    "folders._keep": "on a full disk, which is tried",
    "printing._picture": "to memory",
    "plots.Picture._repr_png_": "to memory",
    "sae.training.trainer.SAETrainer._save": "tests/sae/training/test_killed.py kills it",
    "sae.training.trainer.SAETrainer._save_rng_state": "likewise",
    "organisms.building.build.build_organism": "hours of training, in the block of `replacing_folder`",
    "serving.checkpoints.save_for_vllm": "into the folder of `staging`",
}
"""Places that no writer of `kill.py` goes through, and why."""


def main() -> int:
    """Print the places that no reader or writer goes through, and those that are excused without need; 1 if any."""
    import logging
    import tempfile

    import torch
    from kill import WRITERS
    from readers import READERS
    from transformers.utils.logging import disable_progress_bar

    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    disable_progress_bar()
    read: set[str] = set()
    for reader in READERS:
        with tempfile.TemporaryDirectory() as folder:
            reader.make(Path(folder))
            if reader.needs_no_seed:
                read |= reached(lambda reader=reader, folder=folder: reader.read(Path(folder)))
    written: set[str] = set()
    for writer in WRITERS:
        with tempfile.TemporaryDirectory() as folder:
            for state in (1, 2) if writer.replaces else (2,):
                written |= reached(lambda writer=writer, folder=folder, state=state: writer.write(Path(folder), state))
                writer.read(Path(folder))
    failed = 0
    for what, all_of, seen, excused in (
        ("reader in readers.py", places(READS), read, NOT_FUZZED),
        ("writer in kill.py", places(WRITES, but_in_drafts=True), written, NOT_KILLED),
    ):
        for place in sorted(set(all_of) - seen - set(excused)):
            failed += 1
            print(f"{place}, line {all_of[place]}: no {what} goes through it")  # noqa: T201
        for place in sorted(set(excused) & seen | set(excused) - set(all_of)):
            failed += 1
            print(f"{place}: is excused, and a {what} goes through it, or it is gone")  # noqa: T201
        print(f"{len(set(all_of) & seen)} of {len(all_of)} places: a {what} goes through them")  # noqa: T201
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
