"""Profiles of latents in the file layout that Neuronpedia imports, for `hf-mote sae top-tokens --neuronpedia`.

Source: docs.neuronpedia.org, "Exports", for the folders; the names of fields are those of its public converter
(`convert-saedashboard-to-neuronpedia-export.py` of hijohnnylin/neuronpedia, read in November 2026). Values that are
not measured here (correlations, alignments, attribution) are left empty, as by the converter. An import was not
tested.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_mote.errors import ConfigError
from hf_mote.folders import replacing_folder
from hf_mote.sae.convert.names import hook_at, layer_of
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.top_tokens import LatentProfile

__all__ = ["neuronpedia_layer", "write_neuronpedia"]

# The owner of bulk imports in the converter; it may be replaced for an import.
_CREATOR = "clkht01d40000jv08hvalcvly"
_BATCH = 1024  # latents of a file


def neuronpedia_layer(sae: SAEModel, hookpoint: str | None = None) -> int:
    """Return the layer that an SAE is in, by which Neuronpedia orders its sources.

    Args:
        sae ([`SAEModel`]): The SAE.
        hookpoint (`str`, *optional*): Where it belongs; by default its `config.hookpoint`.

    Raises:
        [`ConfigError`]: if no layer can be read from the hookpoint.
    """
    where = hookpoint or sae.config.hookpoint
    layer = layer_of(where)
    if layer is None:
        fix = "Neuronpedia orders its sources by layer; give --hookpoint."
        raise ConfigError("--neuronpedia", "the SAE's place is in no layer", got=repr(where), fix=fix)
    return layer


def write_neuronpedia(
    folder: Path,
    profiles: Sequence[LatentProfile],
    sae: SAEModel,
    *,
    model_id: str,
    source_set: str,
    dataset: str,
    num_tokens: int,
    context_length: int,
    hookpoint: str | None = None,
) -> list[str]:
    """Write profiles as Neuronpedia's bulk import takes them, and return the files, by their path in the folder.

    Args:
        folder (`Path`): It exists; the files go to `model_id/layer-source_set` in it.
        profiles (`Sequence[LatentProfile]`): The latents.
        sae ([`SAEModel`]): Their SAE.
        model_id (`str`): What Neuronpedia calls the model.
        source_set (`str`): What it shall call SAEs of this kind.
        dataset (`str`): The text that was read.
        num_tokens (`int`): Tokens that were read, at most.
        context_length (`int`): Most tokens of a sequence.
        hookpoint (`str`, *optional*): Where the SAE belongs; by default its `config.hookpoint`.

    Raises:
        [`ConfigError`]: if no layer can be read from the hookpoint.
        [`FileFormatError`]: if it cannot be written; what was there is then as it was.
    """
    where = hookpoint or sae.config.hookpoint
    source = f"{neuronpedia_layer(sae, hookpoint)}-{source_set}"
    hook = hook_at(where, sae.config.base_model)
    now = datetime.now(UTC).isoformat()
    made: dict[str, Any] = {"creatorId": _CREATOR, "createdAt": now}
    release = source_set
    single = {
        "release": {
            **made, "name": release, "description": release, "descriptionShort": release, "urls": [],
            "creatorName": "", "creatorNameShort": "",
        },
        "model": {
            **made, "id": model_id, "instruct": False, "displayName": model_id, "displayNameShort": model_id,
            "updatedAt": now,
        },
        "sourceset": {
            **made, "modelId": model_id, "name": source_set, "creatorName": "", "releaseName": release,
            "description": f"{sae.config.model_type}, {sae.config.num_latents} latents", "visibility": "PUBLIC",
        },
        "source": {
            "creatorId": _CREATOR, "modelId": model_id, "setName": source_set, "visibility": "PUBLIC",
            "dataset": dataset, "id": source, "num_prompts": -(-num_tokens // context_length),
            "num_tokens_in_prompt": context_length, "hfRepoId": None, "hfFolderId": None,
        },
    }  # fmt: skip
    place = Path(model_id) / source
    files = []
    shared = {"modelId": model_id, "layer": source, **made}
    # Whole, and without the batches of an earlier export of more latents.
    with replacing_folder(folder / place, str(folder / place), _earlier) as new:
        for name, record in single.items():
            files.append(f"{name}.jsonl")
            _write(new / files[-1], [record])
        for number, start in enumerate(range(0, len(profiles), _BATCH)):
            part = profiles[start : start + _BATCH]
            for kind, records in (
                ("features", [_feature(profile, sae, hook, shared) for profile in part]),
                ("activations", [entry for profile in part for entry in _activations(profile, shared)]),
            ):
                files.append(f"{kind}/batch-{number}.jsonl.gz")
                _write(new / files[-1], records)
    return [(place / name).as_posix() for name in files]


def _earlier(folder: Path) -> list[str]:
    """Return the batches that lie in a folder."""
    return [path.relative_to(folder).as_posix() for path in folder.glob("*/batch-*.jsonl.gz")]


def _feature(profile: LatentProfile, sae: SAEModel, hook: str | None, shared: dict[str, Any]) -> dict[str, Any]:
    empty: dict[str, list[float]] = {
        f"{what}_{part}": []
        for what, parts in (
            ("neuron_alignment", ("indices", "values", "l1")),
            ("correlated_neurons", ("indices", "pearson", "l1")),
            ("correlated_features", ("indices", "pearson", "l1")),
        )
        for part in parts
    }
    return {
        **shared,
        "index": str(profile.latent),
        "maxActApprox": profile.largest,
        "frac_nonzero": profile.density,
        "pos_str": [piece for piece, _ in profile.promoted],
        "pos_values": [value for _, value in profile.promoted],
        "neg_str": [piece for piece, _ in profile.suppressed],
        "neg_values": [value for _, value in profile.suppressed],
        "freq_hist_data_bar_heights": profile.histogram.heights,
        "freq_hist_data_bar_values": profile.histogram.values,
        "logits_hist_data_bar_heights": profile.logit_histogram.heights,
        "logits_hist_data_bar_values": profile.logit_histogram.values,
        "decoder_weights_dist": [],
        "topkCosSimIndices": [],
        "topkCosSimValues": [],
        **empty,
        "vector": sae.W_dec[profile.latent].float().tolist(),
        "hasVector": True,
        "vectorLabel": None,
        "vectorDefaultSteerStrength": profile.largest,
        "hookName": hook,
    }


def _activations(profile: LatentProfile, shared: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for number, excerpt in enumerate(profile.excerpts):
        key = f"{shared['modelId']}/{shared['layer']}/{profile.latent}/{number}/{excerpt.pieces}"
        largest = max(excerpt.values)
        found.append(
            {
                **shared,
                "id": "c" + hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()[:24],
                "index": str(profile.latent),
                "tokens": excerpt.pieces,
                "values": excerpt.values,
                "maxValue": largest,
                "maxValueTokenIndex": excerpt.values.index(largest),
                "minValue": min(excerpt.values),
                "qualifyingTokenIndex": excerpt.place,
                "dfaValues": [],
                "lossValues": [],
                "logitContributions": None,
                "dataIndex": None,
                "dataSource": None,
            }
        )
    return found


def _write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
