"""Neuronpedia's upload layout: its folders, and its fields with the right values."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from sae.test_intervene import sae_for
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote.commands.sae.top_tokens import neuronpedia_ids
from hf_mote.errors import ConfigError
from hf_mote.sae.neuronpedia import write_neuronpedia
from hf_mote.sae.top_tokens import top_activations

TEXTS = [f"text number {i}: " + "abcdefghij"[i % 7 :] for i in range(12)]


def rows_of(path: Path) -> list[Any]:
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    return [json.loads(line) for line in text.decode().splitlines()]


@torch.no_grad()
def test_layout_and_fields_are_neuronpedia_s(tmp_path: Path) -> None:
    model, sae, tokenizer = (
        tiny_model("mixtral"),
        sae_for("topk", base_model="mistralai/Mixtral-8x7B-v0.1"),
        tiny_tokenizer(),
    )
    profiles = top_activations(model, sae, TEXTS, tokenizer, list(range(64)), top=3)
    written = write_neuronpedia(
        tmp_path, profiles, sae, model_id="tiny", source_set="res-64", dataset="texts", num_tokens=300,
        context_length=128,
    )  # fmt: skip
    place = tmp_path / "tiny" / "1-res-64"
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == set(written)
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {
        *(f"{name}.jsonl" for name in ("model", "release", "source", "sourceset")),
        *(f"{name}/batch-0.jsonl.gz" for name in ("features", "activations")),
    }
    (source,) = rows_of(place / "source.jsonl")
    assert (source["id"], source["setName"], source["modelId"]) == ("1-res-64", "res-64", "tiny")
    features = rows_of(place / "features" / "batch-0.jsonl.gz")
    activations = rows_of(place / "activations" / "batch-0.jsonl.gz")
    assert [feature["index"] for feature in features] == [str(latent) for latent in range(64)]
    tokens = [torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS]
    latents = torch.cat([sae.encode(model(ids, output_hidden_states=True).hidden_states[2][0]) for ids in tokens])
    for feature, column, row in zip(features, latents.T, sae.W_dec, strict=True):
        assert feature["frac_nonzero"] == pytest.approx(float((column > 0).double().mean()))
        assert feature["maxActApprox"] == pytest.approx(float(column.max()), rel=1e-5, abs=1e-6)
        assert sum(feature["freq_hist_data_bar_heights"]) == int((column > 0).sum())
        assert sum(feature["logits_hist_data_bar_heights"]) == len(model.lm_head.weight)
        assert feature["vector"] == pytest.approx(row.tolist())
        effects = model.lm_head.weight @ row
        assert feature["pos_values"][0] == pytest.approx(float(effects.max()), rel=1e-5)
        assert feature["neg_values"][0] == pytest.approx(float(effects.min()), rel=1e-5)
    ids = [activation["id"] for activation in activations]
    assert len(set(ids)) == len(ids) > 20
    for activation in activations:
        assert len(activation["tokens"]) == len(activation["values"])
        assert activation["maxValue"] == activation["values"][activation["maxValueTokenIndex"]]


@pytest.mark.parametrize("wrong", ["tiny", "tiny/", "/set", "a/b/c", "ti ny/set", "../x/set", "-a/b"])
def test_ids_that_are_none_are_refused(wrong: str) -> None:
    assert neuronpedia_ids("gemma-2-2b/gemmascope-res-16k") == ("gemma-2-2b", "gemmascope-res-16k")
    with pytest.raises(ConfigError, match="--neuronpedia: must be a model and a source set"):
        neuronpedia_ids(wrong)


def test_place_in_no_layer_is_refused(tmp_path: Path) -> None:
    sae = sae_for("topk", hookpoint="model.embed_tokens.output")
    settings: dict[str, Any] = {"dataset": "texts", "num_tokens": 1, "context_length": 1}
    with pytest.raises(ConfigError, match="is in no layer"):
        write_neuronpedia(tmp_path, [], sae, model_id="tiny", source_set="res", **settings)
    assert list(tmp_path.iterdir()) == []
