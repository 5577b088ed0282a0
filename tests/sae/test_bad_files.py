"""Damaged, edited and foreign files: refused with the tensor's name, whoever loads them, and left as they are."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_saes import SOME_SAES, THRESHOLDED, TinySAE
from torch import Tensor
from transformers import AutoConfig, AutoModel, BertConfig

import hf_mote
from hf_mote import SAEModel
from hf_mote.errors import FileFormatError, HFMoTEError, ModelMismatchError, UnknownNameError

some_saes = pytest.mark.parametrize("sae", SOME_SAES, ids=str)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TinySAE, Path], Path]:
    """Gives a folder with a model of its own."""
    folders: dict[TinySAE, Path] = {}

    def copy_to(sae: TinySAE, folder: Path) -> Path:
        if sae not in folders:
            folders[sae] = tmp_path_factory.mktemp(str(sae))
            sae.model().save_pretrained(folders[sae])
        return Path(shutil.copytree(folders[sae], folder / "sae"))

    return copy_to


def refused(folder: Path, error: type[HFMoTEError], message: str) -> None:
    """Assert that a folder is refused, whoever loads it, and left as it is."""
    before = files(folder)
    for load in (SAEModel, AutoModel):
        with pytest.raises(error, match=message):
            load.from_pretrained(folder)
    assert files(folder) == before


def edit(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a saved model."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(
        {name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"}
    )


@some_saes
def test_from_pretrained_damaged_weights_are_refused(sae: TinySAE, saved: Any, tmp_path: Path) -> None:
    folder = saved(sae, tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    for content in (b"", whole[:4], whole[:40], whole[: len(whole) // 2], whole[:-1], b"\x80\x04" + whole):
        (folder / "model.safetensors").write_bytes(content)
        refused(folder, FileFormatError, "cannot be loaded.*model.safetensors")
    (folder / "model.safetensors").unlink()
    refused(folder, FileFormatError, r"holds no model\.safetensors .got config\.json")


@some_saes
def test_from_pretrained_tensors_that_do_not_fit_are_refused_by_name(sae: TinySAE, saved: Any, tmp_path: Path) -> None:
    names = list(load_file(saved(sae, tmp_path) / "model.safetensors"))
    may_lack = {"tokens_since_fired", "threshold_steps", "threshold_k", "density", "density_tokens"}
    for index, name in enumerate(names):
        folder = saved(sae, tmp_path / str(index))
        shape = tuple(load_file(folder / "model.safetensors")[name].shape)
        edit(folder, lambda tensors, n=name: tensors.update({n: torch.zeros(3, 3, 3)}))
        refused(
            folder, FileFormatError, rf"{name}: wrong shape \(got \(3, 3, 3\), expected \({', '.join(map(str, shape))}"
        )
        if name not in may_lack:
            edit(folder, lambda tensors, n=name: tensors.pop(n))
            refused(folder, FileFormatError, rf"weights: have missing keys \(got {name}, ")
    folder = saved(sae, tmp_path / "more")
    edit(folder, lambda tensors: tensors.update(W_other=torch.zeros(2)))
    refused(folder, FileFormatError, r"weights: have unexpected keys \(got W_other")


@some_saes
def test_from_pretrained_values_that_cannot_be_are_refused_by_name(sae: TinySAE, saved: Any, tmp_path: Path) -> None:
    for index, (name, tensor) in enumerate(load_file(saved(sae, tmp_path) / "model.safetensors").items()):
        for value in (math.nan, math.inf, -math.inf) if tensor.is_floating_point() else (-1,):
            if name == "threshold" and math.isnan(value) and tensor.ndim == 0:
                continue  # never set, which is no mistake
            folder = saved(sae, tmp_path / f"{index}{value}")
            edit(folder, lambda tensors, n=name, v=value: tensors[n].view(-1)[-1:].fill_(v))
            refused(folder, FileFormatError, rf"{name}: holds {'NaN' if tensor.is_floating_point() else 'a negative'}")


def test_from_pretrained_learned_thresholds_that_are_nan_throughout_are_refused(saved: Any, tmp_path: Path) -> None:
    folder = saved(TinySAE("jumprelu", "autoencoder"), tmp_path)
    edit(folder, lambda tensors: tensors["threshold"].fill_(math.nan))
    refused(folder, FileFormatError, "threshold: holds NaN")


def test_from_pretrained_ranks_that_are_no_order_are_refused(saved: Any, tmp_path: Path) -> None:
    folder = saved(TinySAE("feature_choice", "autoencoder"), tmp_path)
    for value in (0, 40):
        edit(folder, lambda tensors, v=value: tensors["latent_rank"][:2].fill_(v))
        refused(folder, FileFormatError, "latent_rank: does not hold each rank once")


def test_from_pretrained_pickled_weights_are_refused_unread(saved: Any, tmp_path: Path) -> None:
    folder = saved(TinySAE("topk", "autoencoder"), tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, FileFormatError, r"holds no model\.safetensors .got config\.json")
    with pytest.raises(FileFormatError, match=r"holds no model\.safetensors"):
        SAEModel.from_pretrained(folder, use_safetensors=False)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model_type": "topk_sae", "k": NaN}'])
def test_from_pretrained_damaged_config_is_refused(content: str, saved: Any, tmp_path: Path) -> None:
    folder = saved(TinySAE("topk", "autoencoder"), tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(HFMoTEError):
        SAEModel.from_pretrained(folder)


def test_from_pretrained_folder_that_is_none_or_empty_is_refused(tmp_path: Path) -> None:
    for load in (SAEModel.from_pretrained, hf_mote.TopKSAEModel.from_pretrained):
        with pytest.raises(FileFormatError, match=r"holds no config\.json"):
            load(tmp_path)
        for path in (tmp_path / "nothing", "nobody/nothing"):
            with pytest.raises(UnknownNameError, match="is not a file or folder here"):
                load(path)


def test_from_pretrained_foreign_model_type_is_refused(saved: Any, tmp_path: Path) -> None:
    BertConfig(hidden_size=8).save_pretrained(tmp_path / "bert")
    with pytest.raises(ModelMismatchError, match=r"model_type: is not a sparse autoencoder.*got 'bert'.*load_sae"):
        SAEModel.from_pretrained(tmp_path / "bert")
    with pytest.raises(ModelMismatchError, match=r"model_type: is not a sparse autoencoder.*got 'bert'"):
        SAEModel.from_pretrained(tmp_path / "bert", config=BertConfig())
    with pytest.raises(
        ModelMismatchError, match=r"model_type: is another architecture's \(got 'bert', expected 'topk_sae'"
    ):
        hf_mote.TopKSAEModel.from_pretrained(tmp_path / "bert")
    folder = saved(TinySAE("relu", "autoencoder"), tmp_path)
    expected = r"model_type: is another architecture's \(got 'relu_sae', expected 'topk_sae'\).*AutoModel"
    with pytest.raises(ModelMismatchError, match=expected):
        hf_mote.TopKSAEModel.from_pretrained(folder)
    with pytest.raises(ModelMismatchError, match=expected):
        hf_mote.TopKSAEModel.from_pretrained(folder, config=AutoConfig.from_pretrained(folder))
    with pytest.raises(ModelMismatchError, match=expected):
        hf_mote.TopKSAEConfig.from_pretrained(folder)
    for model_type in ("newer_sae", None):
        config = {**json.loads((folder / "config.json").read_text()), "model_type": model_type}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelMismatchError, match="model_type: is not a sparse autoencoder"):
            SAEModel.from_pretrained(folder)


@pytest.mark.parametrize("name", THRESHOLDED)
def test_from_pretrained_threshold_edited_in_one_entry_is_refused(name: str, saved: Any, tmp_path: Path) -> None:
    folder = saved(TinySAE(name, "autoencoder"), tmp_path)
    edit(folder, lambda tensors: tensors["threshold"].view(-1)[:1].fill_(math.inf))
    refused(folder, FileFormatError, "threshold: holds NaN or infinite")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_from_pretrained_of_a_file_asks_for_its_folder(tmp_path: Path, name: str) -> None:
    model = TinySAE("topk", "autoencoder").model()
    model.save_pretrained(tmp_path)
    for load in (SAEModel, type(model)):
        with pytest.raises(FileFormatError, match=rf"{name}: is a file .expected the folder"):
            load.from_pretrained(tmp_path / name)


def test_from_pretrained_of_a_missing_subfolder_says_so(tmp_path: Path) -> None:
    TinySAE("topk", "autoencoder").model().save_pretrained(tmp_path / "a")
    with pytest.raises(FileFormatError, match=r"b: holds no config\.json .got an empty or missing folder"):
        SAEModel.from_pretrained(tmp_path, subfolder="b")
