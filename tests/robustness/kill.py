"""The kill harness: every writer killed at every step, and in the middle of every file; then its folder is read.

    PYTHONPATH=tests:tests/robustness python tests/robustness/kill.py

A step is whatever the interpreter reports to its audit hooks of files and folders: opening one to write, renaming,
linking, deleting. In the middle of a file the kernel kills by the limit of a file's size. After each kill the folder
must hold the old state or the new one, whole; another run must then give the new one and leave nothing of the killed
one behind. With the limit as an error in the place of a signal, which is what a full disk is, the writer must raise an
error of this package and leave the old state.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402
import torch  # noqa: E402 (after what it reads is set)
from further_writers import FURTHER  # noqa: E402
from sae_writers import SAE_WRITERS  # noqa: E402
from tiny_models import tiny_model, tiny_tokenizer  # noqa: E402
from tiny_saes import TinySAE  # noqa: E402
from transformers.utils.logging import disable_progress_bar  # noqa: E402
from writer import Writer  # noqa: E402

from hf_mote import (  # noqa: E402
    ActivationMap,
    EvaluationReport,
    MoTEConfig,
    SAEModel,
    evaluate_mote,
    export_sae,
    load_sae,
)
from hf_mote.commands.run_files import REPORT, writing_to  # noqa: E402
from hf_mote.errors import HFMoTEError  # noqa: E402
from hf_mote.files import read_json, read_tensors, write_json, write_tensors  # noqa: E402
from hf_mote.mote.tuned_values import TunedValues  # noqa: E402
from hf_mote.plots import plot_expert_map  # noqa: E402
from hf_mote.ranking.imaging.run_folder import ExpectedBatch, ImagedBatch, read_batch, write_batch  # noqa: E402
from hf_mote.reports.markup import Html  # noqa: E402
from hf_mote.reports.page import write_page  # noqa: E402
from hf_mote.runs.folder import RunFolder  # noqa: E402
from hf_mote.sharing.cards import CardNotes  # noqa: E402

__all__ = ["WRITERS", "Tried", "Writer", "tried"]


def _only(path: Path) -> int:
    """0 if a file is not there."""
    return 0 if not path.exists() else -1


def _read_json(folder: Path) -> int:
    return _only(folder / "a.json") and int(read_json(folder / "a.json")["state"])


def _write_json(folder: Path, state: int) -> None:
    write_json(folder / "a.json", {"state": state, "more": ["x" * 50] * 100})


def _write_tensors(folder: Path, state: int) -> None:
    write_tensors(folder / "a.safetensors", {"x": torch.full((5000,), float(state))}, {"kind": "k", "state": state})


def _read_tensors(folder: Path) -> int:
    if not (folder / "a.safetensors").exists():
        return 0
    tensors, metadata = read_tensors(folder / "a.safetensors", kind="k")
    assert bool((tensors["x"] == metadata["state"]).all())
    return int(metadata["state"])


def _write_config(folder: Path, state: int) -> None:
    config = MoTEConfig(suppress=[[state, expert] for expert in range(100)], provenance={"state": state})
    config.save_pretrained(folder / "config")


def _read_config(folder: Path) -> int:
    if not (folder / "config" / "mote_config.json").exists():
        return 0
    config = MoTEConfig.from_pretrained(folder / "config")
    assert {layer for layer, _ in config.suppress} == {config.provenance["state"]}
    return int(config.provenance["state"])


def _write_tuned(folder: Path, state: int) -> None:
    # As `TunableMoTE.save_pretrained`, which needs a model: the parameters, and beside them the same as a config.
    made = {"layers": [0, 1], "model_type": "mixtral", "num_experts": [8, 8], "router_sha256": "ab", "top_k": [2, 2]}
    values = TunedValues((0, 1), MoTEConfig(fingerprint=made), torch.full((2, 8), float(state)))
    values._write(folder / "tuned", CardNotes(), [("", values.to_config())], [])


def _read_tuned(folder: Path) -> int:
    if not (folder / "tuned" / TunedValues.file_name).exists():
        return 0
    values = TunedValues.from_pretrained(folder / "tuned")
    assert values.to_config().gain == MoTEConfig.from_pretrained(folder / "tuned").gain
    assert (folder / "tuned" / "README.md").exists()
    assert values.log_gain is not None
    return int(values.log_gain[0, 0])


def _write_map(folder: Path, state: int) -> None:
    counts = torch.full((4, 8), float(state), dtype=torch.float64)
    ActivationMap(counts, counts, (0, 1, 2, 3), 9.0, {"state": state}).save_pretrained(folder / "map")


def _read_map(folder: Path) -> int:
    if not (folder / "map" / "activation_map.safetensors").exists():
        return 0
    found = ActivationMap.from_pretrained(folder / "map")
    assert bool((found.counts == found.provenance["state"]).all())
    return int(found.provenance["state"])


def _write_run(folder: Path, state: int) -> None:
    run = RunFolder(folder / "run", {"seed": 0})
    counts = torch.zeros(2, 3, 4)
    counts[:, :, 0] = 3
    write_batch(run, 0, ImagedBatch([[state], [state]], counts, counts / state, torch.tensor([3.0, 3.0])))


def _read_run(folder: Path) -> int:
    if not (folder / "run").exists():
        return 0
    expected = ExpectedBatch([3, 3], True, [1, 1, 1], num_experts=4, vocab_size=9, max_new_tokens=2)
    batch = read_batch(RunFolder(folder / "run", {"seed": 0}), 0, expected)
    if batch is None:
        return 0
    state = batch.tokens[0][0]
    assert torch.equal(batch.weights, batch.counts / state)
    return state


_MIXTURE = tiny_model("mixtral")


def _measured(run: Path | None, state: int) -> EvaluationReport:
    config = MoTEConfig(suppress=[[1, state]])
    return evaluate_mote(
        _MIXTURE, tiny_tokenizer(), config, ["a", "bb", "c d"], lambda response: len(response) % 2 == 0,
        target=True, num_controls=1, batch_size=2, max_new_tokens=2, run_folder=run, progress=False,
    )  # fmt: skip


def _write_evaluation(folder: Path, state: int) -> None:
    _measured(folder / f"run-{state}", state).save_pretrained(folder / "report")


@cache
def _whole_report(state: int) -> EvaluationReport:
    return _measured(None, state)


def _read_evaluation(folder: Path) -> int:
    if not (folder / "report" / "evaluation_report.json").exists():
        return 0
    report = EvaluationReport.from_pretrained(folder / "report")
    state = int(report.config["suppress"][0][1])
    # As if nobody had been killed.
    assert json.loads(json.dumps(report.to_dict())) == json.loads(json.dumps(_whole_report(state).to_dict()))
    return state


_MODELS = {
    (name, state): TinySAE(name, "autoencoder").model(hookpoint=f"model.layers.{state}")
    for name in ("topk", "jumprelu", "matryoshka")
    for state in (1, 2)
}
for (_, _state), _model in _MODELS.items():
    _model.b_dec.data.fill_(float(_state))


def _which(sae: SAEModel) -> int:
    """Which of the two a model is: by its weights, which its config must agree with."""
    state = int(sae.b_dec[0])
    assert bool((sae.b_dec == state).all())
    assert sae.config.hookpoint in (None, f"model.layers.{state}")
    return state


def _sae_writer(name: str, *, sharded: bool = False) -> Writer:
    def write(folder: Path, state: int) -> None:
        # A state in shards takes the place of one in a single file, and the other way round.
        size = {"max_shard_size": "1KB"} if sharded and state == 2 else {}
        _MODELS[name, state].save_pretrained(folder / "sae", **size)

    def read(folder: Path) -> int:
        if not (folder / "sae").exists():
            return 0
        (folder / "sae" / "mine.txt").write_text("x") if not (folder / "sae" / "mine.txt").exists() else None
        return _which(SAEModel.from_pretrained(folder / "sae"))

    return Writer(f"SAEModel.save_pretrained{', in shards' if sharded else ''}", write, read)


def _export_writer(format: str, name: str) -> Writer:
    def write(folder: Path, state: int) -> None:
        export_sae(_MODELS[name, state], folder / "sae", format, force=True)

    def read(folder: Path) -> int:
        return 0 if not (folder / "sae").exists() else _which(load_sae(folder / "sae"))

    return Writer(f"export_sae, {format}", write, read)


def _write_output(folder: Path, state: int) -> None:
    with writing_to(folder / "new" / "run", force=True) as files:
        # Other files in each state, so that one of the old would be seen among the new.
        names = [f"{state}/{number}.json" for number in range(3)] + ["same.json"]
        for name in names:
            (files / name).parent.mkdir(exist_ok=True)
            write_json(files / name, {"state": state})
        write_page(files / "report.html", Html(f"<p>{state}</p>"))
        write_json(files / REPORT, {"state": state, "files": dict.fromkeys([*names, "report.html", REPORT], "")})


def _read_output(folder: Path) -> int:
    run = folder / "new" / "run"
    if not run.exists():
        return 0
    state = int(read_json(run / REPORT)["state"])
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names - {"mine/notes.txt"} == {f"{state}/{n}.json" for n in range(3)} | {"same.json", "report.html", REPORT}
    assert all(read_json(run / name)["state"] == state for name in names if name.endswith(".json"))
    # What a user puts there stays.
    if (run / "mine").exists():
        assert (run / "mine" / "notes.txt").read_text() == "mine"
    else:
        (run / "mine").mkdir()
        (run / "mine" / "notes.txt").write_text("mine")
    return state


def _write_picture(folder: Path, state: int) -> None:
    plot_expert_map(np.zeros((1, 100 * state)), [0], title="x", path=folder / "a.png")


def _read_picture(folder: Path) -> int:
    if not (folder / "a.png").exists():
        return 0
    content = (folder / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content.endswith(b"IEND\xaeB`\x82")
    return 1 if int.from_bytes(content[16:20], "big") < 1300 else 2


WRITERS: tuple[Writer, ...] = (
    Writer("write_json", _write_json, _read_json),
    Writer("write_tensors", _write_tensors, _read_tensors),
    Writer("MoTEConfig.save_pretrained", _write_config, _read_config),
    Writer("TunableMoTE.save_pretrained", _write_tuned, _read_tuned),
    Writer("ActivationMap.save_pretrained", _write_map, _read_map),
    Writer("RunFolder.write", _write_run, _read_run),
    Writer("evaluate_mote, with run_folder", _write_evaluation, _read_evaluation),
    _sae_writer("topk"),
    _sae_writer("jumprelu", sharded=True),
    _export_writer("saelens", "jumprelu"),
    _export_writer("sparsify", "topk"),
    _export_writer("dictionary_learning", "matryoshka"),
    Writer("a command's --output, with --force", _write_output, _read_output),
    Writer("plot_expert_map", _write_picture, _read_picture),
    *FURTHER,
    *SAE_WRITERS,
)


@dataclass
class Tried:
    """At how many places a writer was killed, and what was found.

    Attributes:
        steps (`int`): Kills at steps.
        inside (`int`): Kills in the middle of a file.
        full (`int`): Full disks.
        found (`list[str]`): What was neither the old state nor the new one.
    """

    steps: int = 0
    inside: int = 0
    full: int = 0
    found: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """Kills of either kind; a full disk is none."""
        return self.steps + self.inside


def tried(writer: Writer, root: Path, *, draw: int | None = None, seed: int = 0) -> Tried:
    """Kill a writer at its steps and in its files, and let it run into full disks.

    Args:
        writer (`Writer`): What writes.
        root (`Path`): A folder of its own.
        draw (`int`, *optional*): Only so many places, half of them steps, drawn with the seed; by default all.
        seed (`int`, *optional*, defaults to 0): Seed of the draw.
    """
    done = Tried()
    chosen = random.Random(f"{writer.name} {seed}")
    # Here, so that what is imported or computed once only is so in this process and not in every child anew.
    written = root / "base-1"
    written.mkdir(parents=True)
    writer.write(written, 1)
    befores = (0, 1) if writer.replaces else (0,)
    if draw is not None:
        befores = befores[-1:]
    for before in befores:
        base = root / f"base-{before}"
        base.mkdir(exist_ok=True)
        if before:
            assert writer.read(base) == 1, writer.name
        whole = _copied(base, root / "whole")
        steps = _steps(lambda whole=whole: writer.write(whole, 2))
        # Of one that writes no file that stays: the size of what it writes meanwhile.
        largest = max((path.stat().st_size for path in whole.rglob("*") if path.is_file()), default=4000)
        # Every size cuts a file at another byte: enough of them where a writer has few steps.
        number = max(12, writer.least // len(befores) + 4 - steps)
        sizes = sorted({largest * part // number for part in range(number)})
        places = [("step", step) for step in range(1, steps + 1)]
        places_in_files = [(how, size) for how in ("inside", "full") for size in sizes]
        if draw is not None:
            places = chosen.sample(places, min(-(-draw // 2), len(places)))
            places_in_files = chosen.sample(places_in_files, min(draw // 2, len(places_in_files)))
        for how, at in places + places_in_files:
            case = _copied(base, root / "case")
            limit = {"step": at} if how == "step" else {"size": at, "killed": how == "inside"}
            ended = _forked(lambda case=case: writer.write(case, 2), **limit)
            if how != "full" and ended != 0:
                done.steps += how == "step"
                done.inside += how == "inside"
                done.found += _looked_at(writer, case, before, f"killed at {how} {at}")
            elif ended not in (0, 4):
                done.found.append(f"{writer.name}: no error of ours on a full disk, at byte {at}")
            elif ended == 4:
                done.full += 1
                if _state(writer, case) != before:
                    done.found.append(f"{writer.name}: {_state(writer, case)} after a full disk, at byte {at}")
                done.found += _looked_at(writer, case, before, f"a full disk at byte {at}")
        for name in ("whole", "case"):
            shutil.rmtree(root / name, ignore_errors=True)
    return done


def _looked_at(writer: Writer, case: Path, before: int, how: str) -> list[str]:
    """Return what is wrong with a folder after a kill, and after another run."""
    found = []
    if (state := _state(writer, case)) not in (before, 2):
        found.append(f"{writer.name}: {state} where {before} was and 2 was to be, {how}")
    if writer.replaces or state != 2:
        ended = _forked(lambda: writer.write(case, 2))
        if ended != 0 or (state := _state(writer, case)) != 2:
            found.append(f"{writer.name}: the next run ended with {ended} and gave {state}, {how}")
    else:
        # It refuses to write over what is there, and clears away what the killed run left.
        _forked(lambda: writer.write(case, 2))
    left = [path.relative_to(case).as_posix() for path in case.rglob("*") if _is_draft(path.name)]
    if left:
        found.append(f"{writer.name}: left {left[:3]} after the next run, {how}")
    return found


def _is_draft(name: str) -> bool:
    return ".hf-mote" in name or name.startswith("hf-mote-staging-")


def _state(writer: Writer, folder: Path) -> object:
    try:
        return writer.read(folder)
    except (HFMoTEError, AssertionError, OSError, LookupError, ValueError) as error:
        return f"{type(error).__name__} {str(error)[:200]}"


def _copied(base: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(base, to, symlinks=True))


def _forked(work: Callable[[], Any], *, step: int | None = None, size: int | None = None, killed: bool = False) -> int:
    """Do something in a child, killed at a step or at a size of a file; 0 if it went through, 4 for our own error."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            if size is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            if step is not None:
                sys.addaudithook(_killer(step))
            work()
            code = 0
        except HFMoTEError:
            code = 4
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _killer(step: int) -> Callable[[str, tuple[Any, ...]], None]:
    left = step

    def kill() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return _at_steps(kill)


def _steps(work: Callable[[], Any]) -> int:
    """Do something in a child that nobody kills; how many steps it took."""
    receiver, sender = os.pipe()

    def counted() -> None:
        sys.addaudithook(_at_steps(lambda: os.write(sender, b".")))
        work()

    # A pipe holds 64 Ki steps.
    _must(_forked(counted))
    os.close(sender)
    with os.fdopen(receiver, "rb") as told:
        return len(told.read())


def _at_steps(do: Callable[[], Any]) -> Callable[[str, tuple[Any, ...]], None]:
    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            writes = isinstance(mode, str) and set(mode) & set("wax+")
            if not writes and not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
        elif not event.startswith(("os.", "shutil.", "tempfile.")) or event in ("os.listdir", "os.scandir", "os.walk"):
            return
        do()

    return audit


def _must(ended: int) -> None:
    assert ended == 0, f"a writer that nobody killed ended with {ended}"


def main() -> int:
    """Run from the command line; 1 if something was found."""
    torch.set_num_threads(1)
    disable_progress_bar()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", type=int, help="only so many places of each writer, by a seeded draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--writer", action="append", help="only those whose name begins so")
    options = parser.parse_args()
    failed, all_kills, began = 0, 0, time.monotonic()
    print(f"{'writer':44} {'kills':>6} {'steps':>6} {'inside':>6} {'full':>6} {'found':>6} {'seconds':>8}")  # noqa: T201
    for writer in WRITERS:
        if options.writer and not writer.name.startswith(tuple(options.writer)):
            continue
        since = time.monotonic()
        with tempfile.TemporaryDirectory() as root:
            done = tried(writer, Path(root), draw=options.draw, seed=options.seed)
        numbers = f"{done.kills:6} {done.steps:6} {done.inside:6} {done.full:6} {len(done.found):6}"
        few = options.draw is None and done.kills < writer.least
        seconds = f"{time.monotonic() - since:8.1f}"
        print(f"{writer.name:44} {numbers} {seconds}{'  too few' if few else ''}", flush=True)  # noqa: T201
        for line in done.found[:10]:
            print(f"    {line}", flush=True)  # noqa: T201
        failed += len(done.found) + few
        all_kills += done.kills
    print(f"{all_kills} kills, {failed} found or too few, {time.monotonic() - began:.0f} s")  # noqa: T201
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
