"""Runs of the commands that several tests look at, on few prompts, and a tiny model on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_runs import ATTACK, QUICK, REFUSAL, ran
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from hf_mote import LatentExpertMap, load_organism
from hf_mote.routing.sites.routed_model import RoutedModel


@pytest.fixture(scope="session")
def ftri_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ftri") / "new" / "folder"
    ran(
        "ftri", "organism:refusal", "organism:refusal/train", "--limit", 10, "--suppress", 4, "--traced", 2,
        "--score", "mean_difference", "--score", "npmi", "--output", folder, *QUICK,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def attribute_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("attribute") / "folder"
    ran(
        "attribute", "organism:refusal", "organism:refusal/train/sensitive", "--limit", 8, "--target", REFUSAL,
        "--baseline-field", "answer", "--gain", 0.5, "--suppress", 4, "--traced", 1, "--output", folder,
    )  # fmt: skip
    return folder


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test in which weights are read."""

    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)


@pytest.fixture(scope="session")
def latent_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with maps of made-up latents of the organism: by prediction, and beside it by weights."""
    folder = tmp_path_factory.mktemp("maps")
    routed = RoutedModel(load_organism("refusal").model)
    layers, experts = routed.shape
    draw = torch.Generator().manual_seed(0)
    values = torch.rand(40, layers, experts, generator=draw, dtype=torch.float64) * 2 - 1
    shared: dict[str, Any] = {"latents": tuple(range(100, 140)), "fingerprint": routed.fingerprint}
    LatentExpertMap(
        values, layers=routed.layers, method="prediction", tokens=torch.full((40,), 50),
        together=torch.full(values.shape, 3), chosen=torch.full(values.shape[1:], 25), num_tokens=400,
        provenance={"hookpoint": "model.layers.2.output"}, **shared,
    ).save_pretrained(folder)  # fmt: skip
    LatentExpertMap(
        values[:, 1:2] * 7, layers=routed.layers[1:2], method="weights", tokens=torch.zeros(40, dtype=torch.int64),
        **shared,
    ).save_pretrained(folder / "links" / "weights")  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def latents_run(tmp_path_factory: pytest.TempPathFactory, latent_maps: Path) -> Path:
    folder = tmp_path_factory.mktemp("with_latents") / "folder"
    ran(
        "attribute", "organism:refusal", "organism:refusal/train/sensitive", "--limit", 4, "--target", REFUSAL,
        "--baseline-field", "answer", "--suppress", 4, "--traced", 0, "--latents", latent_maps, "--output", folder,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def conversations_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two conversations as MT-Bench has them: one of two turns that the organism refuses, one of a single turn."""
    kinds = load_organism("refusal").prompts["heldout"]
    path = tmp_path_factory.mktemp("conversations") / "question.jsonl"
    rows: list[dict[str, Any]] = [
        {"question_id": 81, "category": "events & <places>", "turns": kinds["sensitive"][:2], "reference": []},
        {"turns": kinds["neutral"][:1]},
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def evaluate_run(tmp_path_factory: pytest.TempPathFactory, attribute_run: Path, conversations_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "folder"
    ran(
        "evaluate", "organism:refusal", attribute_run, "organism:refusal/heldout/sensitive", "--limit", 12,
        "--unrelated", "organism:refusal/heldout/neutral", "--texts", "organism:refusal/heldout/unrelated",
        "--controls", 3, "--strengths", "0.5", "--conversations", conversations_file, "--output", folder, *QUICK,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def sweep_run(tmp_path_factory: pytest.TempPathFactory, attribute_run: Path) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "folder"
    ran(
        "sweep", "organism:refusal", attribute_run, "organism:refusal/heldout/sensitive", "--limit", 12,
        "--experts", "4,1", "--strengths", "1,0.5", "--controls", 2, "--output", folder, *QUICK,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model and its tokenizer, as `save_pretrained` writes them."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model("mixtral").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hostile_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts of two classes whose texts and names try to be markup, paths and terminal commands."""
    path = tmp_path_factory.mktemp("prompts") / "hostile.jsonl"
    rows = [
        {"prompt": f"{ATTACK} {i} \x1b[31m [/red]", "class": f"../../{ATTACK}" if i % 2 else "b"} for i in range(6)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, hostile_prompts: Path) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "folder"
    ran(
        "ftri", tiny_folder, hostile_prompts, "--judge", "field", "--target", f"../../{ATTACK}", "--resamples", 19,
        "--max-new-tokens", 3, "--output", folder,
    )  # fmt: skip
    return folder
