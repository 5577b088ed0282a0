"""`SteeringConfig`: saved, read strictly, tied to its SAE, applied in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae.test_intervene import IDS, sae_for
from tiny_models import tiny_model

from hf_mote import SteeringConfig, steer
from hf_mote.errors import ConfigError, FileFormatError, ModelMismatchError
from hf_mote.sae.steering import digest_of


def config(**fields: Any) -> SteeringConfig:
    return SteeringConfig(**{"edits": {7: 4.0, 3: "ablate"}, "hookpoint": "model.layers.1.output", **fields})


@torch.no_grad()
def test_a_shared_config_steers_in_one_line_as_its_parts_do(tmp_path: Path) -> None:
    model, sae = tiny_model("mixtral"), sae_for("topk")
    sae.save_pretrained(tmp_path / "sae")
    made = SteeringConfig.for_sae(sae, {7: 40.0, 3: ("clamp", 2.0)}, path=str(tmp_path / "sae"), scope="prompt")
    made.save_pretrained(tmp_path / "steering")
    assert SteeringConfig.from_pretrained(tmp_path / "steering") == made
    with steer(model, sae, {7: 40.0, 3: ("clamp", 2.0)}, scope="prompt"):
        expected = model(IDS).logits
    with steer(model, str(tmp_path / "steering")):
        assert torch.equal(model(IDS).logits, expected)
    with steer(model, sae, made):
        assert torch.equal(model(IDS).logits, expected)
    card = (tmp_path / "steering" / "README.md").read_text()
    assert "| 7 | add | 40 |" in card
    assert "steering" in card


def test_a_config_for_another_sae_is_refused() -> None:
    model, sae = tiny_model("mixtral"), sae_for("topk")
    made = SteeringConfig.for_sae(sae, {7: 4.0})
    with torch.no_grad():
        sae.W_dec[0, 0] += 1e-3
    with pytest.raises(ModelMismatchError, match="the config is for another SAE"):
        steer(model, sae, made)
    with pytest.raises(ModelMismatchError, match="is not the SAE's"):
        steer(model, sae, config(hookpoint="model.layers.2.output"))
    with pytest.raises(ConfigError, match="does not say where its SAE is"):
        steer(model, config())
    with pytest.raises(ConfigError, match="has no such latent"):
        SteeringConfig.for_sae(sae, {64: 1.0})


def test_digest_is_of_what_is_computed_and_not_of_the_state_of_training() -> None:
    sae = sae_for("batch_topk")
    before = digest_of(sae)
    sae.tokens_since_fired += 5
    assert digest_of(sae) == before
    sae.threshold += 0.1
    assert digest_of(sae) != before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"edits": {3: "erase"}}, "edits"),
        ({"edits": [[3, "add"]]}, "malformed entry"),
        ({"edits": [[3, "ablate", 5.0]]}, "'ablate' takes no value"),
        ({"edits": [[3, "ablate", "<script>"]]}, "'ablate' takes no value"),
        ({"edits": [[3, "add", 1.0], [3, "ablate", 0.0]]}, "the same latent twice"),
        ({"hookpoint": ""}, "hookpoint: is empty"),
        ({"hookpoint": 3}, "hookpoint: is not text"),
        ({"scope": "some"}, "scope: unknown name"),
        ({"scope": "answer"}, "thinking_tokens"),
        ({"scope": "answer", "thinking_tokens": [1, 1]}, "not two token ids"),
        ({"strength": float("nan")}, "strength: must be a finite number"),
        ({"keep_error": 1}, "keep_error"),
        ({"provenance": {"x": {1, 2}}}, "provenance: holds what JSON cannot"),
    ],
)
def test_fields_that_cannot_be_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**fields)


def test_files_are_read_strictly(tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    path = tmp_path / "steering_config.json"
    good = json.loads(path.read_text())
    for change, message in (
        ({"latents": [1]}, "latents: unknown field"),
        ({"schema_version": 9}, "this version cannot be read"),
        ({"edits": [[1, "add", None]]}, "must be an edit"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(FileFormatError, match=message):
            SteeringConfig.from_pretrained(tmp_path)
    path.write_text(json.dumps({key: value for key, value in good.items() if key != "edits"}))
    with pytest.raises(FileFormatError, match="edits: is missing"):
        SteeringConfig.from_pretrained(tmp_path)
