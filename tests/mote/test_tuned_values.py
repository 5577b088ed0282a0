"""Learnt gains in files: they come back to the last bit, on their own model alone, and travel as a config too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import ALICE, HubServer
from learnt_gains import TOKENS, logits, randomise
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from torch import nn
from transformers import PreTrainedModel

from hf_mote import MoTEConfig, TunableMoTE, apply_mote, find_routers, tunable_mote
from hf_mote.errors import ConfigError, DataError, FileFormatError, HFMoTEError, ModelMismatchError, UnknownNameError

FILE = "tunable_mote.safetensors"


@pytest.fixture
def model() -> PreTrainedModel:
    model = tiny_model("deepseek_v3")
    model.config.name_or_path = "org/base"
    return model


@pytest.fixture
def saved(model: PreTrainedModel, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A folder, and the logits that it stands for."""
    with tunable_mote(model, bias=True, provenance={"texts": "three"}) as tunable:
        randomise(tunable)
        tunable.save_pretrained(tmp_path / "tuned", license="apache-2.0")
        return tmp_path / "tuned", logits(model)


def test_from_pretrained_is_what_was_saved_and_trains_on(
    model: PreTrainedModel, saved: tuple[Path, torch.Tensor]
) -> None:
    folder, trained = saved
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "mote_config.json", FILE]
    for given in (folder, folder / FILE):
        with TunableMoTE.from_pretrained(given, model) as again:
            assert torch.equal(logits(model), trained)
            assert again.to_config() == MoTEConfig.from_pretrained(folder)
            again(input_ids=TOKENS, labels=TOKENS).loss.backward()
            assert all(table.grad is not None and table.grad.any() for table in again.parameters())
    with apply_mote(model, folder):
        assert torch.equal(logits(model), trained)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "TunableMoTE.from_pretrained" in card
    assert "texts: three" in card
    assert "base_model: org/base" in card


def test_from_pretrained_in_bfloat16_is_the_same_adapter(saved: tuple[Path, torch.Tensor]) -> None:
    half = tiny_model("deepseek_v3", torch.bfloat16)
    with TunableMoTE.from_pretrained(saved[0], half) as again:
        tuned = logits(half)
        assert {table.dtype for table in again.parameters()} == {torch.float32}
    with apply_mote(half, saved[0]):
        assert torch.equal(logits(half), tuned)


def test_from_pretrained_other_model_is_refused_and_left_alone(saved: tuple[Path, torch.Tensor]) -> None:
    for other in (tiny_model("mixtral"), tiny_model("deepseek_v3_groups")):
        with pytest.raises(ModelMismatchError, match="TunableMoTE.fingerprint"):
            TunableMoTE.from_pretrained(saved[0], other, allow_other_weights=True)
        assert all(parameter.requires_grad for parameter in other.parameters())
    tuned = tiny_model("deepseek_v3")
    nn.init.normal_(find_routers(tuned)[0].module.weight)  # type: ignore[arg-type]
    with pytest.raises(ModelMismatchError, match="TunableMoTE.fingerprint.router_sha256"):
        TunableMoTE.from_pretrained(saved[0], tuned)
    with TunableMoTE.from_pretrained(saved[0], tuned, allow_other_weights=True) as again:
        assert "on other weights" in again.note
        assert "allow_other_weights" in again.to_config().provenance


def test_push_to_hub_and_back(model: PreTrainedModel, saved: tuple[Path, torch.Tensor], hub: HubServer) -> None:
    with TunableMoTE.from_pretrained(saved[0], model) as tunable:
        url = tunable.push_to_hub("alice/tuned", token=ALICE, private=True)
    assert "alice/tuned" in url
    with TunableMoTE.from_pretrained("alice/tuned", model, token=ALICE):
        assert torch.equal(logits(model), saved[1])
    with apply_mote(model, MoTEConfig.from_pretrained("alice/tuned", token=ALICE)):
        assert torch.equal(logits(model), saved[1])


def edited(folder: Path, change: Any) -> Path:
    tensors = load_file(folder / FILE)
    with safe_open(folder / FILE, "pt") as file:
        header = json.loads(file.metadata()["hf_mote"])
    change(tensors, header)
    save_file(tensors, folder / FILE, {"hf_mote": json.dumps(header)})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, header: tensors.update(gain=torch.zeros(2)), "must hold the tables that it names"),
        (lambda tensors, header: tensors.clear(), "must hold the tables that it names"),
        (lambda tensors, header: tensors.pop("bias"), "must hold the tables that it names"),
        (lambda tensors, header: header.update(tables=7), "must hold the tables that it names"),
        (lambda tensors, header: tensors.update(bias=torch.zeros(2, 7)), "must be a table"),
        (lambda tensors, header: tensors.update(bias=torch.zeros(2, 8).double()), "must be a table"),
        (lambda tensors, header: tensors["bias"].fill_(float("nan")), "must be finite"),
        (lambda tensors, header: header.pop("layers"), "lacks an entry"),
        (lambda tensors, header: header.update(layers=[2, 1]), "must be layers of the model"),
        (lambda tensors, header: header.update(layers=3), "holds no learnt gains"),
        (
            lambda tensors, header: header["origin"].update(fingerprint=None),
            "must have a fingerprint, name and provenance",
        ),
        (lambda tensors, header: header["origin"].update(suppress=[[1, 2]]), "and nothing else"),
        (lambda tensors, header: header["origin"].update(strength=0.5), "and nothing else"),
        (lambda tensors, header: header["origin"].update(scope="prompt"), "and nothing else"),
        (lambda tensors, header: header["origin"].update(scop="all"), "unknown field"),
        (lambda tensors, header: header.update(kind="activation_map"), "is another"),
    ],
)
def test_from_pretrained_damaged_file_is_refused(
    model: PreTrainedModel, saved: tuple[Path, torch.Tensor], change: Any, message: str
) -> None:
    with pytest.raises(FileFormatError, match=message):
        TunableMoTE.from_pretrained(edited(saved[0], change), model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_from_pretrained_missing_file_is_refused(model: PreTrainedModel, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="holds no tunable_mote.safetensors"):
        TunableMoTE.from_pretrained(tmp_path, model)
    with pytest.raises(UnknownNameError):
        TunableMoTE.from_pretrained(tmp_path / "nowhere", model)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [(float("nan"), DataError, r"must be finite \(got nan for \[2, 3\]"), (100.0, ConfigError, "MoTEConfig.gain")],
)
def test_save_pretrained_diverged_parameters_keep_the_earlier_file(
    model: PreTrainedModel, saved: tuple[Path, torch.Tensor], value: float, error: type[HFMoTEError], message: str
) -> None:
    before = (saved[0] / FILE).read_bytes()
    with tunable_mote(model) as tunable:
        assert tunable.log_gain is not None
        with torch.no_grad():
            tunable.log_gain[1, 3] = value
        for act in (tunable.to_config, lambda: tunable.save_pretrained(saved[0])):
            with pytest.raises(error, match=message):
                act()
    assert (saved[0] / FILE).read_bytes() == before


@pytest.mark.parametrize("threshold", [-0.1, float("nan"), "small", True])
def test_to_config_wrong_threshold_is_refused(model: PreTrainedModel, threshold: Any) -> None:
    with tunable_mote(model) as tunable, pytest.raises(ConfigError, match="to_config.threshold"):
        tunable.to_config(threshold=threshold)
