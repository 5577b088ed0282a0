"""`hf-mote validate`: checks that a folder can be shared, names its source, and agrees with its own files."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_mote.commands.config_problems import Reading, read_all
from hf_mote.commands.names import ARCHITECTURES
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
_METADATA = {"library_name": "be hf_mote", "tags": "hold hf_mote"}
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_BYTES = 8 * 2**20
_MOST_SHOWN = 200  # problems, for a folder that is not meant to be shared
# Fields other than the experts that determine the effect of a config.
_EFFECT = ("suppress_mode", "stimulate_weight", "bias_on", "scope", "thinking_tokens", "positions", "strength")


def validate_command(
    folder: Annotated[str, typer.Argument(help="Folder of a config, a steering config or an SAE recipe.")],
) -> None:
    """Check a folder before it is shared: files, fingerprint, source, card, pictures, and nothing private."""
    with reporting():
        found = problems_in(local_path(folder))
        for problem in found[:_MOST_SHOWN]:
            tell(f"- {problem}")
        if len(found) > _MOST_SHOWN:
            tell(f"- and {len(found) - _MOST_SHOWN:,} more")
        if found:
            what = f"has {len(found)} problem{'s' * (len(found) > 1)}, listed above"
            raise ConfigError(folder, what, fix="Fix them and run the command again.")
        tell(f"{folder}: valid.")


def problems_in(folder: Path) -> list[str]:
    """Return the problems of a folder that is to be shared, one sentence each; none for a valid folder.

    Args:
        folder (`Path`): The folder.

    Raises:
        [`FileFormatError`]: if it is not a folder.
    """
    if not folder.is_dir():
        raise FileFormatError(str(folder), "must be a folder", fix="Give the folder that save_pretrained wrote.")
    # Fast checks first.
    found = [problem for check in (_files, _recipe, _card, _private) for problem in check(folder)]
    if (folder / CONFIG).is_file():
        from hf_mote.mote.config import MoTEConfig

        read = read_all(folder / CONFIG, MoTEConfig)
        found += [*read.wrong, *_config(read), *_beside(folder, read), *_base_model(folder, read)]
    return [*found, *_steering(folder)]


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def _files(folder: Path) -> Iterator[str]:
    names = _names(folder)
    if not {CONFIG, STEERING, RECIPE} & set(names):
        yield f"the folder: holds none of {CONFIG}, {STEERING} and {RECIPE}"
    for name in names:
        path = folder / name
        if path.is_symlink():
            yield f"{name}: is a link"
        elif name not in _FILES and not _MAP.fullmatch(name) and not re.fullmatch(r"[\w.-]+\.png", name):
            yield f"{name}: is not a file of such a folder (expected {', '.join(sorted(_FILES))}, maps or *.png)"
        elif path.stat().st_size > _MOST_BYTES:
            yield f"{name}: is too large (got {path.stat().st_size} bytes, expected not more than {_MOST_BYTES})"


def _read_or_problems(read: Callable[[], Any], folder: Path | None = None) -> tuple[Any, list[str]]:
    """Return the object that was read, or the problems; files are named by their path in the folder."""
    try:
        return read(), []
    except HFMoTEError as error:
        return None, [str(error).removeprefix(f"{folder}{os.sep}").rstrip(".")]


def _config(read: Reading) -> Iterator[str]:
    config, unsure = read.config, read.left_out
    if config is None:
        return
    mark = config.provenance.get("status")
    if "provenance" not in unsure:
        yield from _provenance(CONFIG, config.provenance)
    if mark == MARKS[0]:
        if "fingerprint" not in unsure and (config.fingerprint is None or config.fingerprint["router_sha256"] is None):
            yield f"{CONFIG}: says that it was measured here, but has no fingerprint of the model's router weights"
        if config.unverified is not None:
            yield f"{CONFIG}: says that it was measured here, but is marked as unverified"
    elif mark in MARKS and config.unverified is None and not unsure & {"provenance", "unverified"}:
        what = "was not measured here, and has no mark `unverified` that keeps it from being applied without a flag"
        yield f"{CONFIG}: {what}"
    from hf_mote.mote.fields import TARGETS

    if config.is_empty and not unsure & {*TARGETS, "strength"}:
        yield f"{CONFIG}: changes nothing: no experts, or strength 0"


def _steering(folder: Path) -> Iterator[str]:
    if not (folder / STEERING).is_file():
        return
    from hf_mote.sae.steering import SteeringConfig

    read = read_all(folder / STEERING, SteeringConfig)
    yield from read.wrong
    if read.config is not None:
        if "provenance" not in read.left_out:
            yield from _provenance(STEERING, read.config.provenance)
        if read.config.sae_digest is None and "sae_digest" not in read.left_out:
            yield f"{STEERING}: has no digest of its SAE"


def _provenance(name: str, known: dict[str, Any]) -> Iterator[str]:
    if known.get("status") not in MARKS:
        expected = f"one of {', '.join(map(repr, MARKS))}"
        yield f"{name}: provenance.status: unknown name (got {known.get('status')!r}, expected {expected})"
    if not isinstance(known.get("source"), str) or not known["source"].strip():
        got = repr(known.get("source"))[:60]
        yield f"{name}: provenance.source: must say where it is from (got {got}, expected a text)"


def _recipe(folder: Path) -> Iterator[str]:
    path = folder / RECIPE
    if not path.is_file():
        return
    from typer.main import get_command

    from hf_mote.cli import app
    from hf_mote.commands.sae.settings import read_settings, wrong_architecture
    from hf_mote.commands.sae.train import field_of

    group: Any = get_command(app)
    train: Any = group.commands["sae"].commands["train"]
    given, wrong = read_settings(path, train.make_context("train", ["MODEL", "TEXT", "--output", "folder"]), RECIPE)
    yield from (str(error).rstrip(".") for error in wrong)
    if not given and wrong:
        return
    entries = given["option"] if isinstance(given.get("option"), list) else []
    fields: list[str] = []
    for entry in entries:
        field, problems = _read_or_problems(partial(field_of, str(entry)))
        fields += [] if field is None else [field[0]]
        yield from (f"{RECIPE}: {text.removeprefix('--')}" for text in problems)
    if given.get("architecture") is None:
        yield f"{RECIPE}: architecture: is missing (expected one of {', '.join(ARCHITECTURES)})"
    # Of a list, an object and a truth value it was said above that it must be one value.
    elif isinstance(given["architecture"], str | int | float) and not isinstance(given["architecture"], bool):
        for error in wrong_architecture(given["architecture"], given.get("k"), fields):
            yield f"{RECIPE}: {str(error).removeprefix('--').rstrip('.')}"


def _beside(folder: Path, read: Reading) -> Iterator[str]:
    """Check that the files beside a config belong to it."""
    config = read.config
    if config is None:
        return
    from hf_mote.evaluation.report import EvaluationReport
    from hf_mote.maps.activation_map import ActivationMap
    from hf_mote.mote.fields import TARGETS
    from hf_mote.ranking.expert_ranking import ExpertRanking

    mark = config.provenance.get("status")
    if mark == MARKS[0] and not (folder / REPORT).is_file():
        yield f"{CONFIG}: says that it was measured here, but there is no {REPORT}"
    if (folder / REPORT).is_file():
        report, wrong = _read_or_problems(lambda: EvaluationReport.from_pretrained(folder), folder)
        yield from wrong
        if report is not None:
            if mark in MARKS[1:]:
                yield f"{CONFIG}: says that it was not measured here, but there is {REPORT}"
            own, measured = config.to_dict(), report.config
            for field in (*TARGETS, *_EFFECT, "fingerprint"):
                if field not in read.left_out and measured.get(field) != own.get(field):
                    yield f"{REPORT}: was measured with another config: {field} differs"
            if report.prompts:
                yield f"{REPORT}: holds prompts and responses; a push removes them"
    layers = None if config.fingerprint is None else tuple(config.fingerprint["layers"])
    for path, kind in [(folder / RANKING, ExpertRanking)] + [
        (place, ActivationMap) for place in sorted(folder.glob("maps/*/activation_map.safetensors"))
    ]:
        if path.is_file():
            held, wrong = _read_or_problems(partial(kind.from_pretrained, path), folder)
            yield from wrong
            if held is not None and layers is not None and held.layers != layers:
                yield f"{path.relative_to(folder).as_posix()}: is of other layers than the config's model"


def _tagged(metadata: dict[str, Any]) -> bool:
    return "hf_mote" in (metadata.get("tags") or [])


def _card(folder: Path) -> Iterator[str]:
    path = folder / "README.md"
    if not path.is_file():
        yield "README.md: is missing (expected the folder's card)"
        return
    from huggingface_hub import ModelCard

    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        found: Any = ModelCard(text).data
        data = found.to_dict()
    except Exception as error:  # the library raises errors of many classes for metadata that it cannot read
        yield f"README.md: its metadata cannot be read (got {str(error).splitlines()[0]}, expected YAML)"
    else:
        for field, right in (("library_name", data.get("library_name") == "hf_mote"), ("tags", _tagged(data))):
            if not right:
                got = repr(data.get(field))[:60]
                yield f"README.md: metadata: {field} must {_METADATA[field]} (got {got})"
    for heading in _HEADINGS:
        if not re.search(rf"^## (?:{heading})\b", text, re.MULTILINE):
            sections = heading.split("|")
            yield f"README.md: has no section {' or '.join(sections)} (expected a line ## {sections[0]})"
    if not any(mark in " ".join(text.split()) for mark in MARKS):
        yield f"README.md: must say one of {', '.join(map(repr, MARKS))}"
    if "```" not in text:
        yield "README.md: must hold the lines that load it"
    for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
        picture = folder / name
        if ".." in Path(name).parts or not picture.is_file():
            yield f"README.md: shows {name}, which does not exist"
        elif not picture.read_bytes().startswith(_PNG):
            yield f"{name}: must be a PNG"


def _base_model(folder: Path, read: Reading) -> Iterator[str]:
    """Check that the card names the config's model, where both name one of the Hub."""
    path = folder / "README.md"
    own = None if read.config is None or "base_model" in read.left_out else read.config.base_model
    if own is None or not path.is_file():
        return
    from huggingface_hub import ModelCard

    from hf_mote.sharing.cards import reads_as_repository

    try:
        data: Any = ModelCard(path.read_text(encoding="utf-8", errors="replace")).data
        said = data.to_dict().get("base_model")
    except Exception:  # of which `_card` says what is wrong
        return
    named = [said] if isinstance(said, str) else said
    if reads_as_repository(own) and isinstance(named, list) and named and own not in named:
        yield f"README.md: metadata: base_model must be the config's (got {said!r}, expected {own!r})"


def _private(folder: Path) -> Iterator[str]:
    from hf_mote.sharing.privacy import private_in

    for name, what in private_in(folder):
        yield f"{name}: holds {what}, which others would read"
