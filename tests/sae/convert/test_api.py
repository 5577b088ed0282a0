"""Which format a folder is in, which folders are written to, and that a failed write leaves nothing."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import pytest
import torch
from tiny_saes import ALL_SAES, HIDDEN, TinySAE, activations

from hf_mote import SAEModel, export_sae, load_sae
from hf_mote.errors import FileFormatError, UnknownNameError
from hf_mote.sae.convert import saelens

WRITTEN = ["saelens", "sparsify", "dictionary_learning", "hf_mote"]


@pytest.fixture
def topk() -> SAEModel:
    return TinySAE("topk", "autoencoder").model(hookpoint="model.layers.3")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("format", WRITTEN)
def test_load_sae_finds_out_the_format(tmp_path: Path, topk: SAEModel, format: str) -> None:
    export_sae(topk, tmp_path / "sub" / "layers.3", format)
    (tmp_path / "sub" / "layers.3" / "README.md").write_text("a card")
    for sae in (load_sae(tmp_path, subfolder="sub/layers.3"), load_sae(tmp_path / "sub/layers.3", format)):
        assert (sae.config.origin or {"format": "hf_mote"})["format"] == format
        assert not sae.training
        batch = activations(20, HIDDEN)
        assert torch.equal(sae.encode(batch), topk.encode(batch))
        assert sae.config.hookpoint == "model.layers.3"


@pytest.mark.parametrize("sae", ALL_SAES, ids=str)
def test_load_sae_takes_our_own_files_and_export_sae_writes_them(tmp_path: Path, sae: TinySAE) -> None:
    model = sae.model()
    assert export_sae(model, tmp_path / "a", "hf_mote") == []
    again = load_sae(tmp_path / "a")
    assert type(again) is type(model)
    export_sae(again, tmp_path / "b", "hf_mote")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_load_sae_several_formats_in_one_folder_are_refused_unless_named(tmp_path: Path, topk: SAEModel) -> None:
    for format in ("saelens", "dictionary_learning"):
        export_sae(topk, tmp_path / format, format)
        for path in (tmp_path / format).iterdir():
            path.rename(tmp_path / path.name)
    with pytest.raises(FileFormatError, match=r"several formats .got saelens, dictionary_learning.*by format"):
        load_sae(tmp_path)
    for format in ("saelens", "dictionary_learning"):
        assert load_sae(tmp_path, format).config.origin["format"] == format


def test_load_sae_config_decides_between_weights_side_by_side(tmp_path: Path, topk: SAEModel) -> None:
    export_sae(topk, tmp_path / "other", "sparsify")
    export_sae(topk, tmp_path / "a", "saelens")
    (tmp_path / "other" / "sae.safetensors").rename(tmp_path / "a" / "sae.safetensors")
    assert load_sae(tmp_path / "a").config.origin["format"] == "saelens"


def test_load_sae_weights_with_another_s_config_are_refused(tmp_path: Path, topk: SAEModel) -> None:
    export_sae(topk, tmp_path, "saelens")
    (tmp_path / "cfg.json").write_text('{"d_in": 12, "k": 3}')
    with pytest.raises(FileFormatError, match=r"cfg\.json: is missing, or does not belong.*the config of saelens"):
        load_sae(tmp_path)


@pytest.mark.parametrize("name", ["", "empty", "text", "language model"])
def test_load_sae_folder_without_an_sae_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").touch()
    (tmp_path / "language model").mkdir()
    (tmp_path / "language model" / "model.safetensors").touch()
    (tmp_path / "language model" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(FileFormatError, match="holds no weights|holds another model") as caught:
        load_sae(tmp_path, subfolder=name)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("format", ["auto", "sparsify"])
def test_load_sae_folder_of_several_names_them(tmp_path: Path, topk: SAEModel, format: str) -> None:
    for layer in (10, 9, 2):
        export_sae(topk, tmp_path / "run" / f"layers.{layer}", "sparsify")
    (tmp_path / "run" / "layers.4").mkdir()
    (tmp_path / "run" / "layers.4" / "sae.safetensors").touch()  # without its config: none that could be loaded
    export_sae(topk, tmp_path / "run" / ".cache" / "layers.5", "sparsify")
    with pytest.raises(FileFormatError, match=r"got run/layers\.2, run/layers\.9, run/layers\.10\)\. Say which one"):
        load_sae(tmp_path, format)
    with pytest.raises(FileFormatError, match=r"run: holds no weights.*got layers\.2, layers\.9, layers\.10\)"):
        load_sae(tmp_path, format, subfolder="run")


def test_load_sae_folder_of_many_names_the_first_and_how_many_more(tmp_path: Path, topk: SAEModel) -> None:
    for layer in range(15):
        export_sae(topk, tmp_path / str(layer), "saelens")
    with pytest.raises(FileFormatError, match=r"got 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more\)"):
        load_sae(tmp_path)


def test_load_sae_wrong_format_beside_subfolders_names_the_files_there_are(tmp_path: Path, topk: SAEModel) -> None:
    export_sae(topk, tmp_path, "sparsify")
    export_sae(topk, tmp_path / "other", "saelens")
    with pytest.raises(FileFormatError, match=r"holds no sae_weights\.safetensors.*got cfg\.json, sae\.safetensors\)"):
        load_sae(tmp_path, "saelens")


def test_sae_model_from_pretrained_folder_of_several_names_what_is_in_it(tmp_path: Path, topk: SAEModel) -> None:
    for layer in (2, 3):
        topk.save_pretrained(tmp_path / f"layers.{layer}")
    with pytest.raises(FileFormatError, match=r"holds no config\.json \(got layers\.2, layers\.3\).*by subfolder"):
        SAEModel.from_pretrained(tmp_path)
    assert type(SAEModel.from_pretrained(tmp_path, subfolder="layers.2")) is type(topk)


def test_load_sae_file_of_a_folder_stands_for_the_folder(tmp_path: Path, topk: SAEModel) -> None:
    export_sae(topk, tmp_path, "sparsify")
    assert torch.equal(load_sae(tmp_path / "sae.safetensors").b_dec, topk.b_dec)
    with pytest.raises(
        FileFormatError, match=r"sae\.safetensors: is a file, so subfolder and file cannot be given .got a"
    ):
        load_sae(tmp_path / "sae.safetensors", subfolder="a")
    (tmp_path / "cfg.json").unlink()
    with pytest.raises(FileFormatError, match=r"cfg\.json: is missing"):
        load_sae(tmp_path / "sae.safetensors")


@pytest.mark.parametrize("format", [*WRITTEN, "gemma_scope", "gemma_scope_2"])
def test_load_sae_named_format_whose_weights_are_missing_is_refused(tmp_path: Path, format: str) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileFormatError, match=rf"holds no .*, the weights of {format} .got notes\.txt"):
        load_sae(tmp_path, format)


def test_unknown_format_lists_those_there_are(tmp_path: Path, topk: SAEModel) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'saelens'"):
        load_sae(tmp_path, "sae_lens")
    with pytest.raises(UnknownNameError, match="Did you mean 'sparsify'"):
        export_sae(topk, tmp_path / "out", "sparsifi")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", WRITTEN)
def test_export_sae_overwrites_its_own_format_only_when_told(tmp_path: Path, topk: SAEModel, format: str) -> None:
    export_sae(topk, tmp_path / "a", format)
    (tmp_path / "a" / "README.md").write_text("mine")
    topk.b_dec.data += 1
    before = contents(tmp_path / "a")
    with pytest.raises(FileFormatError, match="holds a sparse autoencoder already.*force=True"):
        export_sae(topk, tmp_path / "a", format)
    assert contents(tmp_path / "a") == before
    export_sae(topk, tmp_path / "a", format, force=True)
    assert torch.equal(load_sae(tmp_path / "a").b_dec, topk.b_dec)
    assert (tmp_path / "a" / "README.md").read_text() == "mine"
    export_sae(topk, tmp_path / "b", format)
    assert {*contents(tmp_path / "a")} == {*contents(tmp_path / "b"), "README.md"}


def test_export_sae_over_a_sharded_model_leaves_no_index_of_old_shards(tmp_path: Path, topk: SAEModel) -> None:
    topk.save_pretrained(tmp_path, max_shard_size="1KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    assert torch.equal(load_sae(tmp_path).b_dec, topk.b_dec)
    topk.b_dec.data += 1
    export_sae(topk, tmp_path, "hf_mote", force=True)
    assert not (tmp_path / "model.safetensors.index.json").exists()
    assert torch.equal(load_sae(tmp_path).b_dec, topk.b_dec)


@pytest.mark.parametrize(("there", "format"), list(permutations(WRITTEN, 2)))
def test_export_sae_refuses_a_folder_of_another_format(
    tmp_path: Path, topk: SAEModel, there: str, format: str
) -> None:
    export_sae(topk, tmp_path, there)
    before = contents(tmp_path)
    with pytest.raises(FileFormatError, match="files that are not of .*another folder"):
        export_sae(topk, tmp_path, format)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("format", "name"), [("saelens", "cfg.json"), ("hf_mote", "config.json")])
def test_export_sae_refuses_to_replace_a_config_that_stands_alone(
    tmp_path: Path, topk: SAEModel, format: str, name: str
) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(FileFormatError, match=f"not of {format}.*{name}"):
        export_sae(topk, tmp_path, format)
    assert (tmp_path / name).read_text() == "{}"


def test_export_sae_where_a_folder_has_a_file_s_name_is_refused(tmp_path: Path, topk: SAEModel) -> None:
    (tmp_path / "sae_weights.safetensors").mkdir()
    with pytest.raises(FileFormatError, match=r"got sae_weights\.safetensors"):
        export_sae(topk, tmp_path, "saelens")
    assert [path.name for path in tmp_path.iterdir()] == ["sae_weights.safetensors"]


def test_export_sae_into_a_file_is_refused(tmp_path: Path, topk: SAEModel) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileFormatError, match="is a file"):
        export_sae(topk, tmp_path / "file", "saelens")
    with pytest.raises(FileFormatError, match="cannot be made"):
        export_sae(topk, tmp_path / "file" / "below", "saelens")


@pytest.mark.parametrize("exists", [False, True])
def test_export_sae_failure_leaves_what_was_there(
    tmp_path: Path, topk: SAEModel, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    if exists:
        export_sae(topk, tmp_path / "out", "saelens")
    before = contents(tmp_path)

    def full(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saelens, "write_json", full)
    topk.b_dec.data += 1
    with pytest.raises(FileFormatError, match="out: cannot be written .got No space left"):
        export_sae(topk, tmp_path / "out", "saelens", force=exists)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if exists else [])


def test_export_sae_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = TinySAE("feature_choice_uniform", "autoencoder").model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    export_sae(model, tmp_path, "saelens")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_dict() == config
    assert model.training


def test_origin_survives_our_own_files_and_is_left_out_of_other_formats(tmp_path: Path, topk: SAEModel) -> None:
    export_sae(topk, tmp_path / "a", "saelens")
    config = json.loads((tmp_path / "a" / "cfg.json").read_text())
    config["metadata"]["dataset_path"] = "somebody/text"
    (tmp_path / "a" / "cfg.json").write_text(json.dumps(config))
    load_sae(tmp_path / "a").save_pretrained(tmp_path / "ours")
    again = load_sae(tmp_path / "ours")
    export_sae(again, tmp_path / "b", "saelens")
    assert json.loads((tmp_path / "b" / "cfg.json").read_text()) == config
    export_sae(again, tmp_path / "c", "sparsify")
    assert "somebody" not in (tmp_path / "c" / "cfg.json").read_text()


@pytest.mark.parametrize("origin", [{"format": "saelens"}, {"format": "saelens", "config": {"metadata": None}}, {}])
def test_export_sae_origin_without_its_config_is_no_hindrance(tmp_path: Path, topk: SAEModel, origin: dict) -> None:
    topk.config.origin = origin
    export_sae(topk, tmp_path, "saelens")
    assert load_sae(tmp_path).config.k == topk.config.k


def test_export_sae_card_says_what_it_is_of_and_what_is_lost(tmp_path: Path) -> None:
    model = TinySAE("mutual_choice", "autoencoder").model(
        base_model="me/model", hookpoint="model.layers.3", input_normalization=None
    )
    lost = export_sae(model, tmp_path / "a", "saelens", card=True)
    card = (tmp_path / "a" / "README.md").read_text()
    assert card.startswith("---\ntags:\n- sparse-autoencoder\nbase_model: me/model\n---\n")
    assert "| hookpoint | `model.layers.3` |" in card
    assert lost
    assert all(f"- `{one}`" in card for one in lost)
    before = contents(tmp_path / "a")
    with pytest.raises(FileFormatError, match=r"README\.md: exists already"):
        export_sae(model, tmp_path / "a", "saelens", card=True, force=True)
    assert contents(tmp_path / "a") == before
    assert export_sae(model, tmp_path / "b", "hf_mote", card=True) == []
    assert "Nothing is lost." in (tmp_path / "b" / "README.md").read_text()
    assert load_sae(tmp_path / "a").config.hookpoint == "model.layers.3"
