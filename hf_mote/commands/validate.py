"""`hf-mote validate`: whether a folder can be shared, says where it is from, and holds what it says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_mote.commands.session import reporting, tell
from hf_mote.errors import ConfigError, FileFormatError, HFMoTEError
from hf_mote.files import local_path

__all__ = ["MARKS", "RECIPE", "problems_in", "validate_command"]

MARKS = ("measured here", "from the paper, not measured here", "a recipe, not measured here")
RECIPE = "recipe.yaml"
CONFIG, STEERING, RANKING, REPORT = (
    "mote_config.json",
    "steering_config.json",
    "expert_ranking.safetensors",
    "evaluation_report.json",
)
_MAP = re.compile(r"maps/[\w.-]+/(?:activation_map\.safetensors|activation_map\.png)")
_FILES = {CONFIG, STEERING, RANKING, REPORT, RECIPE, "README.md"}
_HEADINGS = ("How it was made", "Measured|Effect and controls", "Use and misuse|Misuse and limits")
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 8 * 2**20


def validate_command(
    folder: Annotated[str, typer.Argument(help="Folder of a config, a steering config or an SAE recipe.")],
) -> None:
    """Check a folder before it is shared: files, fingerprint, source, card, pictures, and nothing private."""
    with reporting():
        found = problems_in(local_path(folder))
        for problem in found:
            tell(f"- {problem}")
        if found:
            what = f"has {len(found)} problem{'s' * (len(found) > 1)}, listed above"
            raise ConfigError(folder, what, fix="Mend them and run the command again.")
        tell(f"{folder}: valid.")


def problems_in(folder: Path) -> list[str]:
    """Return what is wrong with a folder that is to be shared, each in a sentence; nothing for one that is right.

    Args:
        folder (`Path`): The folder.

    Raises:
        [`FileFormatError`]: if it is no folder.
    """
    if not folder.is_dir():
        raise FileFormatError(str(folder), "must be a folder", fix="Give the folder that save_pretrained wrote.")
    return [
        problem
        for check in (_files, _config, _steering, _recipe, _beside, _card, _private)
        for problem in check(folder)
    ]


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _files(folder: Path) -> Iterator[str]:
    names = _names(folder)
    if not {CONFIG, STEERING, RECIPE} & set(names):
        yield f"holds none of {CONFIG}, {STEERING} and {RECIPE}"
    for name in names:
        path = folder / name
        if path.is_symlink():
            yield f"{name}: is a link"
        elif name not in _FILES and not _MAP.fullmatch(name) and not re.fullmatch(r"[\w.-]+\.png", name):
            yield f"{name}: is no file that such a folder has"
        elif path.stat().st_size > _MOST_BYTES:
            yield f"{name}: has {path.stat().st_size} bytes, more than {_MOST_BYTES}"


def _said(read: Callable[[], Any]) -> tuple[Any, list[str]]:
    """Return what was read, or what is wrong with it."""
    try:
        return read(), []
    except HFMoTEError as error:
        return None, [str(error)]


def _config(folder: Path) -> Iterator[str]:
    if not (folder / CONFIG).is_file():
        return
    from hf_mote.mote.config import MoTEConfig

    config, wrong = _said(lambda: MoTEConfig.from_pretrained(folder))
    yield from wrong
    if config is None:
        return
    yield from _provenance(config.provenance)
    mark = config.provenance.get("status")
    if mark == MARKS[0]:
        if config.fingerprint is None or config.fingerprint["router_sha256"] is None:
            yield "says that it was measured here, and has no fingerprint of the model's router weights"
        if config.unverified is not None:
            yield "says that it was measured here, and is marked as unverified"
    elif config.unverified is None:
        yield "was not measured here, and has no mark `unverified` that keeps it from being applied without a flag"
    if config.is_empty:
        yield "changes nothing: no experts, or strength 0"


def _steering(folder: Path) -> Iterator[str]:
    if not (folder / STEERING).is_file():
        return
    from hf_mote.sae.steering import SteeringConfig

    config, wrong = _said(lambda: SteeringConfig.from_pretrained(folder))
    yield from wrong
    if config is not None:
        yield from _provenance(config.provenance)
        if config.sae_digest is None:
            yield "its steering config has no digest of its SAE"


def _provenance(known: dict[str, Any]) -> Iterator[str]:
    if known.get("status") not in MARKS:
        yield f"provenance.status must be one of {', '.join(map(repr, MARKS))}; it is {known.get('status')!r}"
    if not isinstance(known.get("source"), str) or not known["source"].strip():
        yield "provenance.source must say where it is from"


def _recipe(folder: Path) -> Iterator[str]:
    path = folder / RECIPE
    if not path.is_file():
        return
    from typer.main import get_command

    from hf_mote.cli import app
    from hf_mote.sae.convert.documents import read_yaml
    from hf_mote.sae.register import registered_saes

    try:
        options = read_yaml(path)
    except FileFormatError as error:
        no_object = "must hold an object" in str(error)
        yield f"{RECIPE}: " + ("holds no options" if no_object else f"cannot be read as YAML ({error})")
        return
    group: Any = get_command(app)
    train: Any = group.commands["sae"].commands["train"]
    try:
        # By the command itself: what it takes is valid, and what it refuses it refuses in its own words.
        train.make_context("train", ["MODEL", "TEXT", "--settings", str(path), "--output", "folder"])
    except Exception as error:  # whatever the library of the command line raises
        told = getattr(error, "format_message", None)
        yield f"{RECIPE}: {' '.join((told() if told is not None else str(error)).split())}"
    kinds = sorted({name.removesuffix("_sae") for name in registered_saes()})
    if options.get("architecture") not in kinds:  # a list, as what the file holds may have no hash
        yield f"{RECIPE}: architecture: must be one of {', '.join(kinds)}"


def _beside(folder: Path) -> Iterator[str]:
    """What lies beside a config must be of it."""
    if not (folder / CONFIG).is_file():
        return
    from hf_mote.evaluation.report import EvaluationReport
    from hf_mote.maps.activation_map import ActivationMap
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.mote.fields import TARGETS
    from hf_mote.ranking.expert_ranking import ExpertRanking

    config, _ = _said(lambda: MoTEConfig.from_pretrained(folder))
    if config is None:
        return
    mark = config.provenance.get("status")
    if mark == MARKS[0] and not (folder / REPORT).is_file():
        yield f"says that it was measured here, and holds no {REPORT}"
    if (folder / REPORT).is_file():
        report, wrong = _said(lambda: EvaluationReport.from_pretrained(folder))
        yield from wrong
        if report is not None:
            if mark != MARKS[0]:
                yield f"says that it was not measured here, and holds {REPORT}"
            told, measured = config.to_dict(), report.config
            for field in (*TARGETS, "suppress_mode", "scope", "positions", "strength", "fingerprint"):
                if measured.get(field) != told.get(field):
                    yield f"{REPORT}: was measured with another config: {field} differs"
            if report.prompts:
                yield f"{REPORT}: holds prompts and responses; a push takes them out"
    layers = None if config.fingerprint is None else tuple(config.fingerprint["layers"])
    for path, kind in [(folder / RANKING, ExpertRanking)] + [
        (place, ActivationMap) for place in sorted(folder.glob("maps/*/activation_map.safetensors"))
    ]:
        if path.is_file():
            held, wrong = _said(partial(kind.from_pretrained, path))
            yield from wrong
            if held is not None and layers is not None and held.layers != layers:
                yield f"{path.relative_to(folder).as_posix()}: is of other layers than the config's model"


def _card(folder: Path) -> Iterator[str]:
    path = folder / "README.md"
    if not path.is_file():
        yield "holds no README.md"
        return
    from huggingface_hub import ModelCard

    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found: Any = ModelCard(text).data
        data = found.to_dict()
    except Exception as error:  # whatever the library raises on metadata that it cannot read
        yield f"README.md: its metadata cannot be read ({str(error).splitlines()[0]})"
        return
    if data.get("library_name") != "hf_mote":
        yield "README.md: metadata: library_name must be hf_mote"
    if "hf_mote" not in (data.get("tags") or []):
        yield "README.md: metadata: tags must hold hf_mote"
    for wanted in _HEADINGS:
        if not re.search(rf"^## (?:{wanted})\b", text, re.MULTILINE):
            yield f"README.md: has no section {' or '.join(wanted.split('|'))}"
    if not any(mark in " ".join(text.split()) for mark in MARKS):
        yield f"README.md: must say one of {', '.join(map(repr, MARKS))}"
    if "```" not in text:
        yield "README.md: must hold the lines that load it"
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        picture = folder / name
        if ".." in Path(name).parts or not picture.is_file():
            yield f"README.md: shows {name}, which is not there"
        elif not picture.read_bytes().startswith(_PNG):
            yield f"{name}: must be a PNG"


def _private(folder: Path) -> Iterator[str]:
    from hf_mote.sharing.privacy import check_nothing_private

    _, wrong = _said(lambda: check_nothing_private(folder))
    yield from wrong
