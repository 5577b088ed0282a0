"""dictionary_learning files: pickles that are more than tensors, and what is refused. See `test_oracles.py`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_saes import HIDDEN, LATENTS, TinySAE, activations

from hf_mote import export_sae, load_sae
from hf_mote.errors import FileFormatError, UnknownNameError, UnsupportedError

DICT_CLASSES = {
    "relu": "AutoEncoder",
    "gated": "GatedAutoEncoder",
    "topk": "AutoEncoderTopK",
    "batch_topk": "BatchTopKSAE",
    "matryoshka": "MatryoshkaBatchTopKSAE",
    "mutual_choice": "BatchTopKSAE",
}


class Malicious:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def written(folder: Path, name: str = "topk", **overrides: Any) -> Path:
    export_sae(TinySAE(name, "autoencoder").model(**overrides), folder, "dictionary_learning")
    return folder


def change_trainer(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    trainer = config["trainer"] | changes
    config["trainer"] = {key: value for key, value in trainer.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder: Path, **changes: Any) -> None:
    tensors = torch.load(folder / "ae.pt", weights_only=True) | changes
    torch.save({name: tensor for name, tensor in tensors.items() if tensor is not ...}, folder / "ae.pt")


def write_pickle(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("write", [torch.save, lambda content, path: write_pickle(path, content)])
@pytest.mark.parametrize("format", ["auto", "dictionary_learning"])
def test_load_sae_pickle_with_code_is_refused_and_does_not_run(
    tmp_path: Path, format: str, write: Callable[[object, Path], None]
) -> None:
    folder, victim = written(tmp_path / "sae"), tmp_path / "victim"
    write({"encoder.weight": torch.zeros(3, 2), "x": Malicious(victim)}, folder / "ae.pt")
    with pytest.raises(FileFormatError, match=r"ae\.pt: cannot be read as plain tensors .*code would run"):
        load_sae(folder, format)
    assert not victim.exists()


def test_load_sae_malicious_file_would_run_elsewhere(tmp_path: Path) -> None:
    write_pickle(tmp_path / "ae.pt", Malicious(tmp_path / "victim"))
    pickle.loads((tmp_path / "ae.pt").read_bytes())
    assert (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(3)], "holds no dictionary of tensors .got list"),
        (torch.zeros(3), "holds no dictionary of tensors .got Tensor"),
        (
            {"step": 3, "ae": {}, "optimizer": {}, "config": {}, "norm_factor": 1.0},
            "step: must be a plain tensor .got int",
        ),
        ({"ae": {"b_dec": torch.zeros(3)}}, "ae: must be a plain tensor .got dict.*trainer saves it at the end"),
        ({3: torch.zeros(3)}, "3: must be a plain tensor"),
        ({"b_dec": torch.zeros(3, 3).to_sparse()}, "cannot be read as plain tensors .*_rebuild_sparse_tensor"),
        ({"b_dec": torch.zeros(3, device="meta")}, "cannot be read as plain tensors .*_rebuild_meta_tensor"),
        ({}, r"encoder\.weight: missing tensor .got none"),
    ],
)
def test_load_sae_file_that_is_no_state_dict_is_refused(tmp_path: Path, content: object, reason: str) -> None:
    torch.save(content, written(tmp_path) / "ae.pt")
    with pytest.raises(FileFormatError, match=rf"ae\.pt(: )?.*{reason}"):
        load_sae(tmp_path)


@pytest.mark.parametrize("length", [0, 3, 500, -1])
def test_load_sae_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    path = written(tmp_path) / "ae.pt"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileFormatError, match=r"ae\.pt"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"dict_class": "AutoEncoderTopk"}, UnknownNameError, "trainer.dict_class: .*Did you mean 'AutoEncoderTopK'"),
        ({"dict_class": "IdentityDict"}, UnknownNameError, "dict_class"),
        ({"dict_class": ...}, UnknownNameError, "dict_class"),
        ({"dict_class": "GatedAutoEncoder"}, FileFormatError, r"ae\.pt: encoder\.bias: unknown tensor"),
        ({"dict_class": "JumpReluAutoEncoder"}, FileFormatError, r"ae\.pt: W_enc: missing tensor"),
        ({"k": 5}, FileFormatError, r"config\.json: trainer\.k: contradicts the weights .got 5, expected 4"),
        ({"k": ...}, FileFormatError, "k: is missing"),
        ({"activation_dim": 13}, FileFormatError, r"trainer\.activation_dim: contradicts the weights .got 13, .* 12"),
        ({"dict_size": 39}, FileFormatError, r"trainer\.dict_size: contradicts"),
        ({"lm_name": 3}, FileFormatError, "lm_name: wrong type"),
        (
            {"layer": 4, "submodule_name": "h.3.mlp"},
            FileFormatError,
            r"layer: is not that of its module .got 4, .*h\.3",
        ),
        ({"layer": 4, "submodule_name": "resid_post_layer_3"}, FileFormatError, "layer: is not that of its module"),
        ({"layer": "3", "submodule_name": "h.3.mlp"}, FileFormatError, "layer: wrong type"),
        ({"layer": -1}, FileFormatError, "layer: wrong type"),
        ({"layer": True}, FileFormatError, "layer: wrong type"),
    ],
)
def test_load_sae_config_that_contradicts_is_refused(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    change_trainer(written(tmp_path), **changes)
    with pytest.raises(error, match=reason):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"b_dec": torch.zeros(HIDDEN + 1)}, "b_dec: wrong shape"),
        ({"b_dec": torch.full([HIDDEN], torch.nan)}, "b_dec: holds NaN"),
        ({"encoder.weight": torch.zeros(LATENTS)}, r"encoder\.weight: must be a matrix"),
        ({"encoder.weight": torch.zeros(0, 0)}, r"encoder\.weight: must be a matrix"),
        ({"decoder.weight": torch.zeros(HIDDEN, LATENTS - 1)}, r"decoder\.weight: wrong shape"),
        (
            {"decoder.weight": torch.zeros(HIDDEN + 1, LATENTS), "b_dec": torch.zeros(HIDDEN + 1)},
            "decoder: must be as wide as what is reconstructed .got 13, expected 12",
        ),
        ({"k": torch.tensor([4, 4])}, "k: must be a finite number"),
        ({"k": torch.tensor(LATENTS + 1)}, r"trainer\.k: contradicts"),
        ({"threshold": torch.tensor(torch.nan)}, "threshold: must be a finite number"),
        ({"more": torch.zeros(3)}, "more: unknown tensor"),
    ],
)
def test_load_sae_wrong_tensor_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    change_tensors(written(tmp_path, "batch_topk"), **changes)
    with pytest.raises(FileFormatError, match=reason):
        load_sae(tmp_path)


@pytest.mark.parametrize("sizes", [torch.tensor([4.0, 36.0]), torch.tensor(40), torch.tensor([4, 35])])
def test_load_sae_group_sizes_that_are_none_are_refused(tmp_path: Path, sizes: torch.Tensor) -> None:
    change_tensors(written(tmp_path, "matryoshka"), group_sizes=sizes)
    with pytest.raises(FileFormatError, match="group_sizes"):
        load_sae(tmp_path)


@pytest.mark.parametrize("name", DICT_CLASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_export_sae_read_again_computes_the_same(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    model = TinySAE(name, "autoencoder").model(dtype)
    export_sae(model, tmp_path, "dictionary_learning")
    assert json.loads((tmp_path / "config.json").read_text())["trainer"]["dict_class"] == DICT_CLASSES[name]
    again = load_sae(tmp_path, dtype="auto")
    assert again.dtype == dtype
    batch = activations(60, HIDDEN, dtype=dtype, seed=9)
    assert torch.equal(again.encode(batch), model.encode(batch))
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key
    assert getattr(again.config, "k", None) == getattr(model.config, "k", None)
    assert getattr(again.config, "group_sizes", None) == getattr(model.config, "group_sizes", None)


def test_export_sae_names_come_back(tmp_path: Path) -> None:
    model = TinySAE("topk", "autoencoder").model(hookpoint="gpt_neox.layers.3.mlp", base_model="EleutherAI/pythia-70m")
    export_sae(model, tmp_path, "dictionary_learning")
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    assert (trainer["layer"], trainer["submodule_name"]) == (3, "gpt_neox.layers.3.mlp")
    config = load_sae(tmp_path).config
    assert (config.hookpoint, config.base_model) == ("gpt_neox.layers.3.mlp", "EleutherAI/pythia-70m")


def test_load_sae_threshold_that_was_never_set_stays_unset(tmp_path: Path) -> None:
    change_tensors(written(tmp_path / "a", "batch_topk"), threshold=torch.tensor(-1.0))
    sae = load_sae(tmp_path / "a")
    assert not sae.is_calibrated
    with pytest.raises(UnsupportedError, match="calibrate_threshold"):
        sae.encode(activations(3, HIDDEN))
    export_sae(sae, tmp_path / "b", "dictionary_learning")
    assert torch.load(tmp_path / "b" / "ae.pt", weights_only=True)["threshold"] == -1.0
    with pytest.raises(UnsupportedError, match="no threshold yet"):
        export_sae(sae, tmp_path / "c", "saelens")
    sae.calibrate_threshold(activations(200, HIDDEN))
    export_sae(sae, tmp_path / "c", "saelens")


@pytest.mark.parametrize(
    ("name", "kind", "overrides", "reason"),
    [
        ("feature_choice", "autoencoder", {}, "JumpReluAutoEncoder of dictionary_learning never subtracts b_dec"),
        ("jumprelu", "autoencoder", {}, "never subtracts b_dec"),
        ("topk", "autoencoder", {"subtract_decoder_bias": False}, "AutoEncoderTopK .*always subtracts b_dec"),
        ("relu", "transcoder", {}, "no class of transcoders"),
        ("mutual_choice", "autoencoder", {"calibrated": False}, "no threshold yet.*calibrate_threshold"),
    ],
)
def test_export_sae_model_that_the_format_cannot_hold_is_refused(
    tmp_path: Path, name: str, kind: str, overrides: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        export_sae(TinySAE(name, kind).model(**overrides), tmp_path, "dictionary_learning")
    assert list(tmp_path.iterdir()) == []


MODULE = "gpt_neox.layers.3.mlp"


def change_buffer(folder: Path, **buffer: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "buffer": buffer}))


@pytest.mark.parametrize(
    ("buffer", "hookpoint"),
    [
        ({}, MODULE),
        ({"io": "out", "d_submodule": HIDDEN}, MODULE),
        ({"io": None, "d_submodule": None, "ctx_len": 128, "d_submodules": 7}, MODULE),
        ({"io": "in", "d_submodule": HIDDEN}, f"{MODULE}.input"),
    ],
)
def test_the_side_of_the_module_is_that_of_the_buffer(tmp_path: Path, buffer: dict[str, Any], hookpoint: str) -> None:
    folder = written(tmp_path, hookpoint=MODULE)
    change_buffer(folder, **buffer)
    sae = load_sae(folder)
    assert sae.config.hookpoint == hookpoint
    # It is written as it came, and where it was moved, as it is now.
    export_sae(sae, tmp_path / "again", "dictionary_learning")
    assert load_sae(tmp_path / "again").config.hookpoint == hookpoint
    for number, other in enumerate((f"{MODULE}.input", "gpt_neox.layers.4", "gpt_neox.layers.4.input", None)):
        sae.config.hookpoint = other
        export_sae(sae, tmp_path / str(number), "dictionary_learning")
        assert load_sae(tmp_path / str(number)).config.hookpoint == other
    document = json.loads((tmp_path / "0" / "config.json").read_text())
    assert (document["trainer"]["submodule_name"], document["buffer"]["io"]) == (MODULE, "in")


def test_words_for_a_module_do_not_name_its_input(tmp_path: Path) -> None:
    folder = written(tmp_path, base_model="google/gemma-2-2b")
    change_trainer(folder, submodule_name="resid_post_layer_12", layer=12, lm_name="google/gemma-2-2b")
    assert load_sae(folder).config.hookpoint == "model.layers.12"
    change_buffer(folder, io="in")
    assert load_sae(folder).config.hookpoint is None


@pytest.mark.parametrize(
    ("buffer", "error", "reason"),
    [
        (
            {"d_submodule": HIDDEN + 1},
            FileFormatError,
            "buffer.d_submodule: contradicts the weights .got 13, expected 12",
        ),
        (
            {"io": "in_and_out"},
            UnsupportedError,
            "buffer.io: cannot be read: it is trained on what goes into a module",
        ),
        ({"io": "inn"}, UnknownNameError, "buffer.io: .*Did you mean 'in'"),
        ({"io": 1}, FileFormatError, "io: wrong type"),
        ({"io": ""}, FileFormatError, "io: must not be empty"),
    ],
)
def test_a_buffer_of_other_activations_is_refused(
    tmp_path: Path, buffer: dict[str, Any], error: type[Exception], reason: str
) -> None:
    change_buffer(written(tmp_path), **buffer)
    with pytest.raises(error, match=rf"config\.json: {reason}"):
        load_sae(tmp_path)


@pytest.mark.parametrize("buffer", [3, "out", ["out"]])
def test_a_buffer_that_is_no_object_is_refused(tmp_path: Path, buffer: Any) -> None:
    path = written(tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "buffer": buffer}))
    with pytest.raises(FileFormatError, match=r"config\.json: buffer: wrong type"):
        load_sae(tmp_path)
