"""What is damaged or contradicts itself in this package's own records, and was accepted once; each must be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from readers import READERS
from test_refused import put

from hf_mote import EvaluationReport, MoTEConfig
from hf_mote.commands.config_problems import read_all
from hf_mote.errors import ConfigError, HFMoTEError
from hf_mote.sae.steering import SteeringConfig

BY_NAME = {reader.name: reader for reader in READERS}
REPORT = ("evaluation_report", "evaluation_report.json")
MOTE = ("mote_config", "mote_config.json")
STEERING = ("steering_config", "steering_config.json")


def without(*places: Any) -> Callable[[Any], Any]:
    """Return what takes an entry out of a JSON document."""

    def change(document: Any) -> Any:
        inner = document
        for place in places[:-1]:
            inner = inner[place]
        del inner[places[-1]]
        return document

    return change


def both(*changes: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return what makes several changes."""

    def change(document: Any) -> Any:
        for one in changes:
            document = one(document)
        return document

    return change


def refused(reader: str, folder: Path, reason: str) -> None:
    """Hold that a folder is refused for a reason, by an error of this package."""
    with pytest.raises(HFMoTEError, match=reason):
        BY_NAME[reader].read(folder)


@pytest.mark.parametrize(
    ("reader", "file", "change", "reason"),
    [
        *((*MOTE, without(name), rf"MoTEConfig\.{name}: is missing .got no {name}.\. Write it again") for name in (
            "hf_mote_version", "transformers_version", "suppress", "stimulate", "bias", "suppress_mode",
            "stimulate_weight", "bias_on", "scope", "thinking_tokens", "strength", "fingerprint", "base_model",
            "provenance",
        )),
        *((*STEERING, without(name), rf"SteeringConfig\.{name}: is missing .got no {name}.") for name in (
            "edits", "hookpoint", "sae", "sae_digest", "scope", "thinking_tokens", "strength", "keep_error",
            "base_model", "provenance",
        )),
        (*STEERING, put("hf_mote_version", value=3), "hf_mote_version: must be text .got 3"),
        *((*REPORT, without(name), rf"EvaluationReport\.{name}: is missing .got no {name}") for name in (
            "sharing", "labels_before", "labels_after", "control_labels", "controls_sharing", "unclear",
            "conversations", "turns_unchanged", "coherence", "disjoint_chances", "controls_exhausted", "notes",
            "selectivity", "not_worse", "preregistration", "seed",
        )),
        (*REPORT, put("labels_before", value=[]), "must go together .got labels_after"),
        (*REPORT, put("labels_after", value=[]), "must go together .got labels_before"),
        (*REPORT, both(put("labels_before", value=[]), put("labels_after", value=[])), "got control_labels"),
        (*REPORT, put("controls_sharing", value=[]), "controls_sharing: wrong type or value .*1 of 3 controls"),
        (*REPORT, put("unclear", value=25), "unclear: wrong type or value .got 25, expected .* from 0 to 24"),
        (*REPORT, without("side_effects", "scope"), "side_effects.scope: is missing"),
        (*REPORT, without("conversations", 0, "id"), r"conversations\[0\].id: is missing"),
        (*REPORT, without("config", "strength"), "MoTEConfig.strength: is missing"),
    ],
)  # fmt: skip
def test_json_record_is_refused(
    tmp_path: Path, reader: str, file: str, change: Callable[[Any], Any], reason: str
) -> None:
    BY_NAME[reader].make(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    refused(reader, tmp_path, reason)


def test_report_of_latents_lacks_a_field_of_its_config(tmp_path: Path) -> None:
    BY_NAME[REPORT[0]].make(tmp_path)
    path = tmp_path / REPORT[1]
    report = json.loads(path.read_text())
    whole = SteeringConfig({3: "ablate"}, hookpoint="model.layers.1").to_dict()
    path.write_text(json.dumps({**report, "config": whole}))
    assert EvaluationReport.from_pretrained(tmp_path).units == "latents"
    for name in ("strength", "scope", "keep_error", "sae_digest"):
        config = {key: value for key, value in whole.items() if key != name}
        path.write_text(json.dumps({**report, "config": config}))
        refused(REPORT[0], tmp_path, f"config.{name}: is missing")


def test_unclear_responses_of_a_setting_of_a_sweep_count_those_of_all(tmp_path: Path) -> None:
    BY_NAME[REPORT[0]].make(tmp_path)
    path = tmp_path / REPORT[1]
    report = json.loads(path.read_text())
    emptied: dict[str, Any] = dict.fromkeys(("unrelated", "unrelated_before", "unrelated_after", "dose"), [])
    emptied |= {"conversations": [], **dict.fromkeys(("unrelated_unchanged", "turns_unchanged", "side_effects"))}
    path.write_text(json.dumps({**report, **emptied, "unclear": 1000}))
    assert EvaluationReport.from_pretrained(tmp_path).unclear == 1000


def test_config_written_by_hand_may_leave_fields_out(tmp_path: Path) -> None:
    for data in ({"schema_version": 1, "suppress": [[2, 1]]}, {"schema_version": 1}):
        (tmp_path / MoTEConfig.file_name).write_text(json.dumps(data))
        assert MoTEConfig.from_pretrained(tmp_path) == MoTEConfig(suppress=data.get("suppress", []))  # type: ignore[arg-type]
    short = {"schema_version": 1, "edits": [[3, "ablate", 0.0]], "hookpoint": "model.layers.1"}
    (tmp_path / SteeringConfig.file_name).write_text(json.dumps(short))
    assert SteeringConfig.from_pretrained(tmp_path).strength == 1.0
    with pytest.raises(ConfigError, match="hookpoint: is missing"):
        SteeringConfig.from_dict({"schema_version": 1, "edits": []})


def test_fields_that_are_written_only_where_they_are_used_may_be_missing(tmp_path: Path) -> None:
    config = MoTEConfig(suppress=[[2, 1]])
    assert not {"gain", "positions", "unverified"} & config.to_dict().keys()
    config.save_pretrained(tmp_path)
    assert MoTEConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize("kind", [MoTEConfig, SteeringConfig])
def test_validate_shows_missing_fields_beside_the_other_problems(tmp_path: Path, kind: Any) -> None:
    reader = MOTE if kind is MoTEConfig else STEERING
    BY_NAME[reader[0]].make(tmp_path)
    path = tmp_path / kind.file_name
    data = json.loads(path.read_text())
    for name in ("hf_mote_version", "base_model", "thinking_tokens"):
        del data[name]
    stamped = kind is MoTEConfig  # by the version of transformers still
    path.write_text(
        json.dumps({**data, "strength": "x", "hf_mote_version": "0"} if not stamped else {**data, "strength": "x"})
    )
    found = read_all(path, kind)
    assert found.config is not None
    assert {"strength", "base_model", "thinking_tokens"} <= found.left_out
    lost = (
        "hf_mote_version: is missing (got no hf_mote_version, " if stamped else "thinking_tokens: is missing (got no "
    )
    assert [one for one in found.wrong if one.startswith(f"{kind.file_name}: {lost}")], found.wrong
    assert [one for one in found.wrong if one.startswith(f"{kind.file_name}: strength: ")], found.wrong
    assert len(found.wrong) == 2
