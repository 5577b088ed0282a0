"""Hub ids: only the needed files, and errors as everywhere. A stand-in plays the Hub."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from release_files import RELEASES
from tiny_saes import TinySAE

from hf_mote import export_sae, list_saes, load_sae
from hf_mote.errors import FileFormatError, HFMoTEError, UnknownNameError, UnsupportedError
from hf_mote.sae.convert import download
from hf_mote.sharing import transfer


class StubHub:
    """One repository, a folder here, from which `snapshot_download` copies what the patterns allow."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache = repository, cache
        self.calls: list[dict[str, Any]] = []

    def __call__(self, repo_id: str, *, allow_patterns: list[str], **options: Any) -> str:
        self.calls.append({"repo_id": repo_id, **options})
        for path in self.repository.rglob("*"):
            name = str(path.relative_to(self.repository))
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, self.cache / name)
        return str(self.cache)

    @property
    def downloaded(self) -> set[str]:
        return {str(path.relative_to(self.cache)) for path in self.cache.rglob("*") if path.is_file()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubHub:
    stub = StubHub(tmp_path / "repository", tmp_path / "cache")
    stub.cache.mkdir()
    monkeypatch.setattr(transfer, "snapshot_download", stub)
    monkeypatch.chdir(tmp_path)
    return stub


def publish(hub: StubHub, subfolder: str, format: str) -> None:
    export_sae(TinySAE("topk", "autoencoder").model(), hub.repository / subfolder, format)


@pytest.mark.parametrize(
    ("format", "files"),
    [
        ("saelens", {"a/cfg.json", "a/sae_weights.safetensors", "config.json"}),
        ("sparsify", {"a/cfg.json", "a/sae.safetensors", "config.json"}),
        ("dictionary_learning", {"a/config.json", "a/ae.pt", "config.json"}),
        ("hf_mote", {"a/config.json", "a/model.safetensors", "config.json"}),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_load_sae_hub_id_downloads_only_what_it_needs(hub: StubHub, format: str, files: set[str], named: bool) -> None:
    publish(hub, "a", format)
    publish(hub, "b", format)
    (hub.repository / "config.json").write_text("{}")
    for name in ("a/pytorch_model.bin", "a/evil.pt", "a/trainer_state.pt", "model.safetensors", "README.md"):
        (hub.repository / name).write_bytes(b"not to be downloaded")
    sae = load_sae("somebody/saes", format if named else "auto", subfolder="a", revision="v1", token="t")
    assert sae.config.k == 4
    assert hub.downloaded == files
    assert {(call["repo_id"], call["revision"], call["token"]) for call in hub.calls} == {("somebody/saes", "v1", "t")}


def test_load_sae_language_model_is_refused_without_downloading_it(hub: StubHub) -> None:
    hub.repository.mkdir()
    (hub.repository / "config.json").write_text('{"model_type": "llama"}')
    (hub.repository / "model.safetensors").write_bytes(b"ten gigabytes")
    with pytest.raises(FileFormatError, match="holds another model, where a sparse autoencoder is meant"):
        load_sae("somebody/model")
    assert hub.downloaded == {"config.json"}


def test_load_sae_names_in_a_hub_id_say_what_it_is_of(hub: StubHub) -> None:
    publish(hub, "run/layers.7", "sparsify")
    (hub.repository / "run" / "config.json").write_text('{"sae": {}, "model": "somebody/model"}')
    config = load_sae("somebody/saes", subfolder="run/layers.7").config
    assert (config.hookpoint, config.base_model) == ("model.layers.7", "somebody/model")


def test_load_sae_subfolder_with_special_characters_is_taken_literally(hub: StubHub) -> None:
    publish(hub, "a[1]", "saelens")
    publish(hub, "a1", "saelens")
    load_sae("somebody/saes", subfolder="a[1]")
    assert {name.partition("/")[0] for name in hub.downloaded} == {"a[1]"}


@pytest.mark.parametrize("subfolder", ["../other", "/etc", "a/../../b"])
def test_load_sae_subfolder_out_of_the_repository_is_refused(hub: StubHub, subfolder: str) -> None:
    with pytest.raises(FileFormatError, match="leads out of the folder or repository"):
        load_sae("somebody/saes", subfolder=subfolder)
    assert hub.calls == []


def test_load_sae_missing_subfolder_is_refused(hub: StubHub) -> None:
    publish(hub, "a", "saelens")
    with pytest.raises(FileFormatError, match="empty or missing folder.*subfolder of the repository"):
        load_sae("somebody/saes", subfolder="b")


@pytest.mark.parametrize(("subfolder", "named"), [(None, "a/2, a/10, b"), ("a", "a/2, a/10"), ("c", "a/2, a/10, b")])
def test_load_sae_hub_repository_of_several_names_them(
    hub: StubHub, monkeypatch: pytest.MonkeyPatch, subfolder: str | None, named: str
) -> None:
    for folder in ("a/10", "a/2", "b"):
        publish(hub, folder, "saelens")
    asked: list[object] = []

    def listed(self: object, repo_id: str, *, revision: str | None) -> list[str]:
        asked.append((repo_id, revision))
        return [path.relative_to(hub.repository).as_posix() for path in hub.repository.rglob("*.*")]

    monkeypatch.setattr(download.HfApi, "list_repo_files", listed)
    with pytest.raises(FileFormatError, match=rf"somebody/saes: holds no weights.*got {named}\)"):
        load_sae("somebody/saes", subfolder=subfolder, revision="v1")
    assert asked == [("somebody/saes", "v1")]
    with pytest.raises(FileFormatError, match="empty or missing folder"):
        load_sae("somebody/saes", subfolder=subfolder, revision="v1", local_files_only=True)
    assert len(asked) == 1
    assert load_sae("somebody/saes", subfolder="b").config.k == 4
    assert len(asked) == 1


def http_error(kind: type[Exception]) -> Exception:
    return kind("404 Client Error", response=SimpleNamespace(headers={}, request=None, status_code=404))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (lambda: http_error(RepositoryNotFoundError), "'somebody/saes'.*log in or pass token"),
        (lambda: http_error(RevisionNotFoundError), "'somebody/saes'.*no revision"),
        (lambda: LocalEntryNotFoundError("not here"), "not in the cache .got not here.*HF_HUB_OFFLINE"),
    ],
)
def test_load_sae_hub_refusal_becomes_own_error(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception], reason: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise error()

    monkeypatch.setattr(transfer, "snapshot_download", refuse)
    with pytest.raises(UnknownNameError, match=reason):
        load_sae("somebody/saes")


@pytest.mark.parametrize("name", ["nobody/nothing", "./no/such/folder", "a/b/c", "nothing", "no\0thing"])
def test_load_sae_unknown_name_offline_names_it_and_the_way_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Check the path") as caught:
        load_sae(name, cache_dir=tmp_path)
    assert isinstance(caught.value, HFMoTEError)


# Repositories with a file for each SAE


@pytest.fixture
def files(hub: StubHub, monkeypatch: pytest.MonkeyPatch) -> StubHub:
    """The stand-in, which can be asked what it has."""

    def listed(self: object, repo_id: str, *, revision: str | None) -> list[str]:
        return [path.relative_to(hub.repository).as_posix() for path in hub.repository.rglob("*") if path.is_file()]

    monkeypatch.setattr(download.HfApi, "list_repo_files", listed)
    hub.repository.mkdir()
    return hub


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("qwen_scope", {"layer3.sae.pt"}),
        ("mwhanna", {"config.yaml", "layer_4.safetensors"}),
        (
            "hook_z",
            {
                "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_v9.pt",
                "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_v9_cfg.json",
            },
        ),
        ("goodfire", {"Llama-3.1-8B-Instruct-SAE-l19.pth"}),
        ("deepseek_r1", {"DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"}),
    ],
)
def test_load_sae_file_of_a_repository_is_all_that_is_downloaded(files: StubHub, name: str, needed: set[str]) -> None:
    release = RELEASES[name](files.repository)
    (files.repository / "other.pt").write_bytes(b"not to be downloaded")
    sae = load_sae(release.repo_id, **release.place)
    assert files.downloaded == needed
    assert (sae.config.base_model, sae.config.hookpoint) == (release.base_model, release.hookpoint)
    source = sae.config.origin["source"]
    assert (source["repo_id"], source["file"]) == (release.repo_id, release.place["file"])


@pytest.mark.parametrize("name", ["goodfire", "deepseek_r1", "hook_z"])
def test_load_sae_only_file_of_a_repository_need_not_be_named(files: StubHub, name: str) -> None:
    release = RELEASES[name](files.repository)
    assert load_sae(release.repo_id).config.hookpoint == release.hookpoint
    assert load_sae(release.repo_id, release.format).config.hookpoint == release.hookpoint


@pytest.mark.parametrize("format", ["auto", "qwen_scope"])
def test_load_sae_repository_of_many_files_lists_them_and_downloads_none(files: StubHub, format: str) -> None:
    RELEASES["qwen_scope"](files.repository)
    with pytest.raises(FileFormatError, match=r"several files .*got layer0\.sae\.pt, layer3\.sae\.pt\)\. .*by file"):
        load_sae("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5", format)
    assert files.downloaded == set()
    assert list_saes("Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5") == ["layer0.sae.pt", "layer3.sae.pt"]


def test_load_sae_release_and_id_download_only_what_they_need(files: StubHub) -> None:
    place = "layer_20/width_16k/average_l0_71"
    folder = files.repository / place
    folder.mkdir(parents=True)
    arrays = {"W_enc": np.ones((12, 40)), "W_dec": np.ones((40, 12)), "b_dec": np.ones(12)}
    np.savez(folder / "params.npz", **arrays, b_enc=np.ones(40), threshold=np.ones(40))
    sae = load_sae("gemma-scope-2b-pt-res-canonical", sae_id="layer_20/width_16k/canonical")
    assert files.downloaded == {f"{place}/params.npz"}
    assert {call["repo_id"] for call in files.calls} == {"google/gemma-scope-2b-pt-res"}
    assert (sae.config.base_model, sae.config.hookpoint) == ("google/gemma-2-2b", "model.layers.20")
    assert sae.config.origin["source"] == {
        "repo_id": "google/gemma-scope-2b-pt-res",
        "subfolder": place,
        "file": "params.npz",
        "release": "gemma-scope-2b-pt-res-canonical",
        "sae_id": "layer_20/width_16k/canonical",
    }
    same = load_sae("gemma-2-2b/20-gemmascope-res-16k")
    assert same.config.origin["source"]["sae_id"] == "layer_20/width_16k/canonical"


def test_load_sae_repository_and_folder_of_the_list_are_known_by_it(files: StubHub) -> None:
    """As `gpt2-small-mlp-tm` needs a factor that only the list has."""
    release = RELEASES["saelens_of_gemma_1"](files.repository)
    repo_id, subfolder = release.repo_id, release.place["subfolder"]
    assert load_sae(repo_id, subfolder=subfolder).config.origin["source"]["release"] == "gemma-2b-res-jb"
    with pytest.raises(UnsupportedError, match="Give norm_scaling_factor"):
        load_sae("somebody/else", subfolder=subfolder)


def test_load_sae_file_out_of_the_repository_is_refused(files: StubHub) -> None:
    with pytest.raises(FileFormatError, match="file: leads out of the folder or repository"):
        load_sae("somebody/saes", file="../other.pt")
    assert files.calls == []


def test_load_sae_sharded_model_of_our_own_comes_with_its_parts(files: StubHub) -> None:
    TinySAE("topk", "autoencoder").model().save_pretrained(files.repository, max_shard_size="1KB")
    sae = load_sae("somebody/ours")
    assert sae.config.k == 4
    assert any(name.startswith("model-00001-of-") for name in files.downloaded)


def test_list_saes_of_a_folder(tmp_path: Path) -> None:
    for layer in (2, 3):
        export_sae(TinySAE("topk", "autoencoder").model(), tmp_path / "run" / f"layers.{layer}", "sparsify")
    assert list_saes(tmp_path) == ["run/layers.2", "run/layers.3"]
