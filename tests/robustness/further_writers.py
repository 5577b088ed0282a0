"""Writers beyond files and SAEs: everything that is saved as one file, bundles, caches, exports, uploads, commands.

Part of the table of `kill.py`, and by the same rule: the old state or the new one, whole.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import readers
import torch
import typer
from evaluation_reports import with_parts
from tiny_models import tiny_model, tiny_tokenizer
from tiny_saes import TinySAE
from writer import Writer

from hf_mote import (
    ActivationMap,
    EvaluationReport,
    ExpertRanking,
    MoTEConfig,
    SAEModel,
    bake_mote,
    export_sae,
    load_sae,
)
from hf_mote.commands.grid import grid_command
from hf_mote.commands.init import init_command
from hf_mote.commands.record_files import read_records
from hf_mote.errors import FileFormatError, HFMoTEError
from hf_mote.evaluation.model_check import CheckRow, ModelCheck
from hf_mote.evaluation.preregistration import Preregistration
from hf_mote.files import read_json, write_json
from hf_mote.hub import Shareable
from hf_mote.maps import storage
from hf_mote.organisms.building import build
from hf_mote.sae.neuronpedia import write_neuronpedia
from hf_mote.sae.pictures import draw_report
from hf_mote.sae.training.cache import WindowCache

__all__ = ["FURTHER"]


# What is saved as one file, each of two that differ.


def _two(one: Any, **changes: Any) -> dict[int, Any]:
    return {1: one, 2: dataclasses.replace(one, **changes)}


def _saved(name: str, two: dict[int, Shareable]) -> Writer:
    kind = type(two[1])

    @cache
    def contents() -> dict[bytes, int]:
        found = {}
        for state, one in two.items():
            with tempfile.TemporaryDirectory() as folder:
                one.save_pretrained(folder)
                found[Path(folder, kind.file_name).read_bytes()] = state
        assert len(found) == 2
        return found

    contents()  # here and not in a child that is killed

    def read(folder: Path) -> int:
        path = folder / "saved" / kind.file_name
        if not path.exists():
            return 0
        kind.from_pretrained(folder / "saved")
        return contents()[path.read_bytes()]

    return Writer(name, lambda folder, state: two[state].save_pretrained(folder / "saved"), read)


def _shareables() -> list[Writer]:
    ranking, result, search = readers._ranking(), readers._result(), readers._search()
    steering, links, report = readers._steering(), readers._links(), readers._report()
    return [
        _saved("ExpertRanking.save_pretrained", _two(ranking, target="other")),
        _saved("ExpertSearch.save_pretrained", _two(search, evaluations=8)),
        _saved("CounterfactualRoutes.save_pretrained", _two(readers._routes(), position=5)),
        _saved("FTRIResult.save_pretrained", _two(result, weights=result.weights * 2)),
        _saved("EvaluationReport.save_pretrained", {1: report, 2: with_parts(report, seed=1)}),
        _saved("SteeringConfig.save_pretrained", _two(steering, sae_digest="cd")),
        _saved("SAEReport.save_pretrained", _two(readers._sae_report(), model="y")),
        _saved("LatentExpertMap.save_pretrained", _two(links, values=links.values * 2)),
    ]


# A config with what it was made from and measured with: several files that belong together.


def _write_bundle(folder: Path, state: int) -> None:
    counts = torch.full((3, 4), float(state), dtype=torch.float64)
    shown = {"refusal": ActivationMap(counts, counts, (0, 1, 2), 9.0, {"state": state})}
    config = MoTEConfig(suppress=[[0, state]], provenance={"state": state})
    report = with_parts(readers._report(), seed=state, config=config.to_dict())
    ranking = dataclasses.replace(readers._ranking(), target=f"refusal {state}")
    config.save_pretrained(folder / "bundle", ranking=ranking, report=report, maps=shown)


def _read_bundle(folder: Path) -> int:
    place = folder / "bundle"
    if not (place / MoTEConfig.file_name).exists():
        assert not place.exists() or not any(place.iterdir())
        return 0
    state = int(MoTEConfig.from_pretrained(place).provenance["state"])
    shown = ActivationMap.from_pretrained(place, subfolder="maps/refusal")
    assert bool((shown.counts == state).all())
    assert EvaluationReport.from_pretrained(place).seed == state
    assert ExpertRanking.from_pretrained(place).target == f"refusal {state}"
    assert (place / "README.md").exists()
    for picture in place.rglob("*.png"):
        assert picture.read_bytes().endswith(b"IEND\xaeB`\x82")
    notes = place / "mine.txt"
    assert not notes.exists() or notes.read_text() == "mine"
    notes.write_text("mine")
    return state


# Activations on disk.


def _write_cache(folder: Path, state: int) -> None:
    kept = WindowCache(folder / "cache", {"model": "m", "dtype": "torch.float32"})
    rows = {"a": torch.full((200, 3), float(state)), "b": torch.full((200, 5), float(state))}
    for window in range(3):
        kept.write(f"window-{window}", str(state), rows, {"kept": state, "norm": 0})


def _read_cache(folder: Path) -> int:
    """Which state the last window is of; each is whole, and of one state, whenever a run ends."""
    if not (folder / "cache" / "cache.json").exists():
        return 0
    kept = WindowCache(folder / "cache", {"model": "m", "dtype": "torch.float32"})
    states = []
    for window in range(3):
        if not (folder / "cache" / f"window-{window}.arrow").exists():
            states.append(0)
            continue
        found = [state for state in (1, 2) if _window_is_of(kept, window, state)]
        assert len(found) == 1
        states += found
    # Windows are written one after the other: new ones first, then those of before.
    assert states == sorted(states, reverse=True) or states in ([2, 1, 1], [2, 2, 1])
    return states[-1]


def _window_is_of(kept: WindowCache, window: int, state: int) -> bool:
    try:
        found = kept.read(f"window-{window}", str(state))
    except HFMoTEError as error:
        if "another text" not in str(error):
            raise
        return False
    assert found is not None
    rows, left_out = found
    assert left_out == {"kept": state, "norm": 0}
    assert all(bool((part == state).all()) for part in rows.values())
    return True


@cache
def _model() -> Any:
    return tiny_model("mixtral")


# Maps that lie in a file that nobody sees.


def _write_maps(folder: Path, state: int) -> None:
    storage.HELD, usual = 0, storage.HELD
    try:
        for _ in range(12):
            maps = storage.empty_maps((state * 100, 10), folder)
            maps += state
            assert bool((maps == state).all())
    finally:
        storage.HELD = usual
    write_json(folder / "done.json", {"state": state})


def _read_maps(folder: Path) -> int:
    path = folder / "done.json"
    return int(read_json(path)["state"]) if path.exists() else 0


# Exports.


def _profiles(state: int) -> list[Any]:
    from hf_mote.sae.top_tokens import Excerpt, Histogram, LatentProfile

    excerpt = Excerpt(["a", "b"], [0.0, float(state)], 1)
    shape = Histogram([1, 2], [0.0, 1.0])
    return [
        LatentProfile(
            latent=latent, density=0.5, largest=float(state), excerpts=[excerpt], promoted=[("a", 1.0)],
            suppressed=[("b", -1.0)], histogram=shape, logit_histogram=shape,
        )
        for latent in range(3)
    ]  # fmt: skip


@cache
def _sae(name: str) -> SAEModel:
    return TinySAE(name, "autoencoder").model(hookpoint="model.layers.3", base_model="org/model")


def _write_neuronpedia(folder: Path, state: int) -> None:
    told: Any = {"model_id": "m", "source_set": "res", "dataset": "d", "num_tokens": 8, "context_length": 4}
    write_neuronpedia(folder, _profiles(state), _sae("topk"), **told)


def _read_neuronpedia(folder: Path) -> int:
    place = folder / "m" / "3-res"
    if not place.exists():
        return 0
    names = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    single = {f"{name}.jsonl" for name in ("release", "model", "sourceset", "source")}
    assert names == single | {"features/batch-0.jsonl.gz", "activations/batch-0.jsonl.gz"}
    states = set()
    for kind, key in (("features", "maxActApprox"), ("activations", "maxValue")):
        lines = gzip.decompress((place / kind / "batch-0.jsonl.gz").read_bytes()).splitlines()
        states |= {int(json.loads(line)[key]) for line in lines}
    assert len(states) == 1
    return states.pop()


_TRANSCODERS = {}
for _state in (1, 2):
    _TRANSCODERS[_state] = TinySAE("relu", "transcoder").model(
        base_model="Qwen/Qwen3-4B", hookpoint="model.layers.4.mlp.input", output_hookpoint="model.layers.4.mlp",
        output_size=12,
    )  # fmt: skip
    _TRANSCODERS[_state].b_dec.data.fill_(float(_state))


def _read_exported(folder: Path) -> int:
    if not (folder / "sae").exists():
        return 0
    sae = load_sae(folder / "sae")
    state = int(sae.b_dec[0])
    assert bool((sae.b_dec == state).all())
    return state


def _native(folder: Path, state: int) -> None:
    export_sae(_TRANSCODERS[state], folder / "sae", "hf_mote", force=True)


# Models.


@cache
def _baked() -> Any:
    model = _model()
    config = MoTEConfig.for_model(model, suppress=[[0, 1]], suppress_mode="zero")
    return bake_mote(model, config)


def _read_baked(folder: Path) -> int:
    place = folder / "baked"
    if not place.exists():
        return 0
    from transformers import AutoModelForCausalLM

    names = {path.name for path in place.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "baked_mote.json"} <= names
    AutoModelForCausalLM.from_pretrained(place)
    assert read_json(place / "baked_mote.json")["config"]["suppress"] == [[0, 1]]
    return 2


def _write_organism(folder: Path, state: int) -> None:
    build._write(folder, {"seed": state, "name": "language"})


def _read_organism(folder: Path) -> int:
    path = folder / "organism.json"
    return int(read_json(path)["seed"]) if path.exists() else 0


# Commands, and what they leave.


def _quietly(work: Callable[[], Any]) -> None:
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            work()
        except typer.Exit as error:  # how a command says one of our errors
            raise FileFormatError("command", said.getvalue()) from error


def _write_init(folder: Path, state: int) -> None:
    _quietly(lambda: init_command(folder / "begun", "organism:refusal", "refusal"))


def _read_init(folder: Path) -> int:
    place = folder / "begun"
    if not place.exists():
        return 0
    assert {path.name for path in place.iterdir()} == {"prompts.jsonl", "heldout.jsonl", "run.sh", "README.md"}
    assert os.access(place / "run.sh", os.X_OK)
    return 2


def _write_grid(folder: Path, state: int) -> None:
    path = folder / "prompts.jsonl"
    value = [f"place=Rome {state}|Bonn {state}"]
    _quietly(lambda: grid_command("Where is {place}?", value, path, [], append=path.exists() and state == 2))


def _read_grid(folder: Path) -> int:
    path = folder / "prompts.jsonl"
    if not path.exists():
        return 0
    states = [int(record.fields["prompt"].rstrip("?")[-1]) for record in read_records(path)]
    # What was there stays, and a run that is made again adds its rows again.
    assert states in ([1, 1], [2, 2], [1, 1, 2, 2], [2, 2, 2, 2], [1, 1, 2, 2, 2, 2])
    return states[-1]


def _write_plan(folder: Path, state: int) -> None:
    _plan().write(folder / "plan.json")


@cache
def _plan() -> Preregistration:
    from further_readers import _preregistration

    return _preregistration()


def _read_plan(folder: Path) -> int:
    path = folder / "plan.json"
    if not path.exists():
        return 0
    _plan().check(Preregistration.read(path))
    return 2


def _check(state: int) -> ModelCheck:
    return ModelCheck("a model", (CheckRow("a row", True, "x" * 100),), {"state": str(state)})


def _write_check(folder: Path, state: int) -> None:
    _check(state).save(folder / "check.json")


def _read_check(folder: Path) -> int:
    path = folder / "check.json"
    return int(read_json(path)["versions"]["state"]) if path.exists() else 0


# Uploads: the folder that is made for one holds what may not be for others, and must not stay.


def _write_upload(folder: Path, state: int) -> None:
    from unittest.mock import patch

    def upload(made: Path, *_: object, **__: object) -> str:
        write_json(folder / "there.json", {"state": state, "files": sorted(os.listdir(made))})
        return "url"

    tempfile.tempdir, usual = str(folder), tempfile.tempdir
    try:
        with patch("hf_mote.hub.upload", upload), patch("hf_mote.sae.sharing.upload", upload):
            MoTEConfig(suppress=[[0, state]]).push_to_hub("org/config")
            _sae("topk").push_to_hub("org/sae")
    finally:
        tempfile.tempdir = usual


def _read_upload(folder: Path) -> int:
    path = folder / "there.json"
    return int(read_json(path)["state"]) if path.exists() else 0


def _picture(name: str, draw: Callable[[Path, int], Any]) -> Writer:
    @cache
    def sizes() -> dict[tuple[int, int], int]:
        found = {}
        for state in (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                draw(Path(folder, "a.png"), state)
                content = Path(folder, "a.png").read_bytes()
            found[len(content), hash(content)] = state
        assert len(found) == 2
        return found

    sizes()

    def read(folder: Path) -> int:
        if not (folder / "a.png").exists():
            return 0
        content = (folder / "a.png").read_bytes()
        return sizes()[len(content), hash(content)]

    return Writer(name, lambda folder, state: draw(folder / "a.png", state), read)


def _draw_report(path: Path, state: int) -> None:
    draw_report([0.1 * state, 0.01, 1.0], None, {"clean": 1.0, "sae": 1.5}, [1.0, 2.0, 3.0], title="x", path=path)


FURTHER: tuple[Writer, ...] = (
    *_shareables(),
    Writer("MoTEConfig with ranking, report and maps", _write_bundle, _read_bundle),
    Writer("the cache of collect_activations", _write_cache, _read_cache),
    Writer("maps in a file", _write_maps, _read_maps),
    Writer("write_neuronpedia", _write_neuronpedia, _read_neuronpedia),
    Writer(
        "export_sae, circuit_tracer",
        lambda folder, state: export_sae(
            _TRANSCODERS[state], folder / "sae", "circuit_tracer", force=True, card=state == 1
        ),
        _read_exported,
    ),
    Writer("export_sae, native", _native, _read_exported),
    Writer(
        "BakedModel.save_pretrained",
        lambda folder, _: _baked().save_pretrained(folder / "baked", tiny_tokenizer()),
        _read_baked,
        replaces=False,
    ),
    Writer("an organism's record", _write_organism, _read_organism),
    Writer("hf-mote init", _write_init, _read_init, replaces=False),
    Writer("hf-mote grid", _write_grid, _read_grid),
    Writer("Preregistration.write", _write_plan, _read_plan, replaces=False),
    Writer("ModelCheck.save", _write_check, _read_check),
    Writer("push_to_hub", _write_upload, _read_upload),
    _picture("draw_report", _draw_report),
)
