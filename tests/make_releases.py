"""Makes `hf_mote/sae/convert/releases.json` from the list of public SAEs inside of SAELens.

    python tests/make_releases.py <folder of HF_MOTE_ORACLES, or pretrained_saes.yaml>

Read from the file alone; SAELens is not imported. The list is public data of SAELens (MIT licence).
"""

from __future__ import annotations

import datetime
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

TARGET = Path(__file__).parents[1] / "hf_mote" / "sae" / "convert" / "releases.json"


def list_in(folder: Path) -> tuple[Path, str]:
    """Return the list inside of an environment, and what it is of."""
    path = next(folder.rglob("sae_lens/pretrained_saes.yaml"))
    version = next(path.parents[1].glob("sae_lens-*.dist-info")).name.split("-")[1].removesuffix(".dist")
    return path, f"sae-lens {version.removesuffix('.dist-info')}"


def template(pairs: list[tuple[str, str]]) -> str:
    """Return how most paths of a release follow from the ids, `{}` standing for the id."""
    ways = Counter(path.replace(sae_id, "{}", 1) if sae_id in path else "" for sae_id, path in pairs)
    ways.pop("", None)
    return ways.most_common(1)[0][0] if ways else "{}"


def flatten(saes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the SAEs of a release; the list has one release inside of another by a slip of indentation."""
    return [{key: value for key, value in sae.items() if key != "saes"} for sae in saes]


def table(path: Path, source: str, date: str) -> dict[str, Any]:
    """Return the table of a list."""
    releases: dict[str, Any] = {}
    for name, release in yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader).items():
        saes = flatten(release["saes"])
        way = template([(sae["id"], str(sae["path"])) for sae in saes])
        overrides = release.get("config_overrides") or {}
        about = {
            "repo_id": release["repo_id"],
            "loader": release.get("conversion_func") or "sae_lens",
            "model": release["model"],
            "path": way,
        }
        if "normalize_activations" in overrides:
            about["normalize_activations"] = overrides["normalize_activations"]
        if overrides.get("model_from_pretrained_kwargs", {}).get("center_writing_weights"):
            about["center_writing_weights"] = True
        items: list[Any] = []
        for sae in saes:
            place = str(sae["path"])
            item = [
                sae["id"],
                None if way.replace("{}", sae["id"]) == place else place,
                sae.get("neuronpedia"),
                sae.get("norm_scaling_factor"),
            ]
            while item[-1] is None:
                item.pop()
            items.append(item[0] if len(item) == 1 else item)
        releases[name] = {**about, "saes": items}
    return {"source": source, "date": date, "releases": releases}


def as_text(found: dict[str, Any]) -> str:
    """Return the table as JSON with one SAE a line."""
    blocks = []
    for name, release in found["releases"].items():
        about = {key: value for key, value in release.items() if key != "saes"}
        head = json.dumps(about, ensure_ascii=False)[:-1]
        items = ",\n".join(json.dumps(item, ensure_ascii=False) for item in release["saes"])
        blocks.append(f'{json.dumps(name)}: {head}, "saes": [\n{items}\n]}}')
    head = json.dumps({key: found[key] for key in ("source", "date")})[:-1]
    body = ",\n".join(blocks)
    return f'{head}, "releases": {{\n{body}\n}}}}\n'


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("make_releases.py: give the folder of HF_MOTE_ORACLES")
    where, what = list_in(Path(sys.argv[1]))
    TARGET.write_text(as_text(table(where, what, datetime.date.today().isoformat())), encoding="utf-8")
