"""Damaged and hostile files of every release's layout end in our own errors, and nothing of them runs."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from release_files import RELEASES
from tiny_saes import HIDDEN, LATENTS, TinySAE

from hf_mote import SAEModel, load_sae
from hf_mote.documents import read_document
from hf_mote.errors import FileFormatError, HFMoTEError


class _Evil:
    """Runs something when it is unpickled by whoever lets it."""

    def __reduce__(self) -> Any:
        return (os.mkdir, ("ran",))


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and "wan" not in path.name)


def is_refused_or_read(root: Path, release: Any) -> bool:
    """Load and return whether that was refused; whatever else it raises is a fault."""
    try:
        load_sae(root, **release.place, **release.given)
    except HFMoTEError:
        return True
    return False


@pytest.fixture
def made(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    (tmp_path / "made").mkdir()
    release = RELEASES[request.param](tmp_path / "made")
    root = tmp_path / release.repo_id
    root.parent.mkdir(parents=True)
    (tmp_path / "made").rename(root)
    monkeypatch.chdir(tmp_path)
    return release, root


@pytest.mark.parametrize("made", RELEASES, indirect=True)
def test_load_sae_damaged_files_are_refused(made: tuple[Any, Path]) -> None:
    release, root = made
    assert not is_refused_or_read(root, release)
    needed = 0
    for path in files_of(root):
        content = path.read_bytes()
        halves = [content[:7], content[: len(content) // 2]]
        for damaged in (b"", *halves, b"\0" * 64, b"{" * 5000, random.Random(1).randbytes(64)):
            path.write_bytes(damaged)
            needed += is_refused_or_read(root, release)
        path.unlink()
        is_refused_or_read(root, release)
        path.write_bytes(content)
    assert needed >= 5
    assert not is_refused_or_read(root, release)


@pytest.mark.parametrize("made", RELEASES, indirect=True)
def test_load_sae_changed_bytes_are_read_or_refused(made: tuple[Any, Path]) -> None:
    release, root = made
    chance = random.Random(0)
    for path in files_of(root):
        content = path.read_bytes()
        for _ in range(15):
            changed = bytearray(content)
            for _ in range(chance.randint(1, 4)):
                changed[chance.randrange(min(len(changed), 1500))] = chance.randrange(256)
            path.write_bytes(changed)
            is_refused_or_read(root, release)
        path.write_bytes(content)


@pytest.mark.parametrize(
    "made", ["qwen_scope", "hook_z", "goodfire", "deepseek_r1", "dictionary_learning_topk_of_2024"], indirect=True
)
def test_load_sae_code_in_a_torch_file_never_runs(made: tuple[Any, Path], tmp_path: Path) -> None:
    release, root = made
    for path in files_of(root):
        if path.suffix not in (".pt", ".pth"):
            continue
        good = torch.load(path, weights_only=True)
        evil = io.BytesIO()
        torch.save({**good, "more": _Evil()}, evil)
        for content in (evil.getvalue(), pickle.dumps(_Evil()), pickle.dumps({"W_enc": _Evil()})):
            path.write_bytes(content)
            assert is_refused_or_read(root, release) or "layer0" in path.name
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("made", ["qwen_scope", "hook_z", "goodfire", "deepseek_r1"], indirect=True)
def test_load_sae_decoder_of_another_width_is_refused(made: tuple[Any, Path]) -> None:
    release, root = made
    for path in files_of(root):
        if path.suffix in (".pt", ".pth"):
            state = torch.load(path, weights_only=True)
            name = next(name for name in state if name.startswith(("W_dec", "decoder")) and state[name].ndim == 2)
            axis = state[name].shape.index(HIDDEN)
            bias = next(name for name in state if name.startswith(("b_dec", "decoder")) and state[name].ndim == 1)
            state[name], state[bias] = state[name].narrow(axis, 0, 7).clone(), state[bias][:7].clone()
            torch.save(state, path)
    with pytest.raises(FileFormatError, match="decoder: must be as wide as what is reconstructed .got 7, expected 12"):
        load_sae(root, **release.place, **release.given)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("act_size", ..., "is missing"),
        ("act_size", 0, "wrong type or value"),
        ("dict_size", ..., "is missing"),
        ("act_name", ..., "is missing or empty"),
        ("act_name", "", "is missing or empty"),
        ("act_name", "blocks.5.attn.hook_zx", "is no place that is known"),
    ],
)
@pytest.mark.parametrize("made", ["hook_z"], indirect=True)
def test_load_sae_of_heads_without_the_keys_of_its_config_is_refused(
    made: tuple[Any, Path], key: str, value: Any, reason: str
) -> None:
    release, root = made
    (path,) = root.glob("*_cfg.json")
    config = {**json.loads(path.read_text()), key: value}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))
    with pytest.raises(HFMoTEError, match=rf"_cfg\.json: {key}: {reason}"):
        load_sae(root, **release.place, **release.given)


MISSPELT = {
    "mwhanna": ("config.yaml", "feature_output_hooks"),
    "llama_scope": ("hyperparams.json", "jump_relu_treshold"),
    "llama_scope_r1": ("config.json", "norm_activations"),
    "hook_z": ("_cfg.json", "Act_Size"),
    "dictionary_learning_topk_of_2024": ("config.json", "trainer_clas"),
    "saelens_of_openai": ("cfg.json", "normalize_activation"),
}


@pytest.mark.parametrize("made", MISSPELT, indirect=True)
def test_load_sae_key_that_is_one_letter_off_is_refused(made: tuple[Any, Path], request: Any) -> None:
    release, root = made
    ending, key = MISSPELT[request.node.callspec.params["made"]]
    (path,) = (one for one in files_of(root) if one.name.endswith(ending))
    document = read_document(path)
    section = document.get("trainer", document)
    # What is written for other purposes is left alone.
    section["anything"] = 3
    path.write_text(json.dumps(document))
    load_sae(root, **release.place, **release.given)
    section[key] = 3
    path.write_text(json.dumps(document))
    with pytest.raises(FileFormatError, match=rf"{ending}: {key}: unknown key.*Did you mean "):
        load_sae(root, **release.place, **release.given)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &x [1]\nb: *x\n", "holds an alias"),
        ("a: 1\na: 2\n", "holds a key twice"),
        ("[1, 2]\n", "must hold an object .got list"),
        ("a: !!python/object/apply:os.mkdir [ran]\n", "must be valid YAML"),
        ("a: " + "[" * 50 + "]" * 50 + "\n", "nested deeper"),
        ("a: .nan\n", "NaN or an infinite number"),
        ("a: .inf\n", "NaN or an infinite number"),
        ("3: a\n", "keys must be texts"),
        ("a: 2024-13-45\n", "must be valid YAML"),
        ("a: 2024-01-02\n", "what JSON cannot .got date"),
        ("a: !!binary aGk=\n", "what JSON cannot .got bytes"),
        ("a: !!set {b, c}\n", "what JSON cannot .got set"),
        ("a: [\n", "must be valid YAML"),
        ("a: \x07\n", "must be valid YAML"),
        ("", "must hold an object"),
        ("a: " + "x" * 2**20 + "\n", "too large"),
    ],
)
def test_read_document_yaml_that_is_no_plain_document_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(FileFormatError, match=rf"config\.yaml.*{reason}"):
        read_document(path)
    assert not (tmp_path / "ran").exists()


def test_read_document_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(FileFormatError, match="must be valid YAML"):
        read_document(tmp_path / "config.yaml")
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_document(tmp_path / "missing.yaml")


def test_read_document_plain_yaml_is_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\nb: [x, 2.5, null, true]\nc: {d: e}\n")
    assert read_document(tmp_path / "config.yaml") == {"a": 1, "b": ["x", 2.5, None, True], "c": {"d": "e"}}


def test_load_sae_archive_that_is_no_torch_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "layer3.sae.pt", "w") as archive:
        archive.writestr("data.pkl", b"nothing")
    with pytest.raises(FileFormatError, match=r"layer3\.sae\.pt: cannot be read as plain tensors"):
        load_sae(tmp_path)


def test_load_sae_file_outside_of_the_folder_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    torch.save({"W_enc": torch.zeros(LATENTS, HIDDEN)}, tmp_path / "layer3.sae.pt")
    for file in ("../layer3.sae.pt", str(tmp_path / "layer3.sae.pt")):
        with pytest.raises(FileFormatError, match="file: leads out of the folder"):
            load_sae(tmp_path / "inside", file=file)


@pytest.mark.parametrize("load", [load_sae, SAEModel.from_pretrained])
def test_subfolder_outside_of_the_folder_is_not_looked_at(tmp_path: Path, load: Any) -> None:
    (tmp_path / "inside").mkdir()
    TinySAE("topk", "autoencoder").model().save_pretrained(tmp_path / "beside")
    assert isinstance(load(str(tmp_path), subfolder="beside"), SAEModel)
    for subfolder in ("../beside", str(tmp_path / "beside")):
        with pytest.raises(FileFormatError, match="subfolder: leads out of the folder"):
            load(str(tmp_path / "inside"), subfolder=subfolder)
