"""The real `huggingface_hub` client against a Hub on loopback: up, down, cut off, refused, hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import huggingface_hub
import pytest
import torch
from hub_server import ALICE, BOB, HubServer
from shareable_note import Note

from hf_mote import MoTEConfig
from hf_mote.errors import FileFormatError, HFMoTEError, UnknownNameError, UnsupportedError
from hf_mote.hub import Shareable, read_json, read_tensors, write_tensors
from hf_mote.sharing.transfer import download, download_matching, text_there, upload


class Numbers(Shareable):
    """Stored as a large file, as safetensors are."""

    file_name = "numbers.safetensors"

    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers

    def _to_file(self, path: Path) -> None:
        write_tensors(path, {"numbers": self.numbers}, {"kind": "numbers"})

    @classmethod
    def _from_file(cls, path: Path) -> Numbers:
        return cls(read_tensors(path, kind="numbers")[0]["numbers"])


NUMBERS = torch.arange(2000.0)


def test_regular_and_large_files_go_up_and_come_down(hub: HubServer) -> None:
    url = Note("hello").push_to_hub("alice/one")
    assert url.startswith(f"{hub.url}/alice/one/commit/")
    Numbers(NUMBERS).push_to_hub("one")
    assert sorted(hub.files("alice/one")) == [".gitattributes", "README.md", "note.json", "numbers.safetensors"]
    assert Note.from_pretrained("alice/one").text == "hello"
    assert torch.equal(Numbers.from_pretrained("alice/one").numbers, NUMBERS)
    ways = [path for _, path in hub.requests if "lfs" in path]
    assert ways[0] == "/alice/one.git/info/lfs/objects/batch"
    assert len([way for way in ways if way.startswith("/lfs/")]) == 1


def test_large_file_goes_up_in_parts(hub: HubServer) -> None:
    hub.part_size = 3000
    Numbers(NUMBERS).push_to_hub("alice/one")
    assert [len(parts) for parts in hub.parts.values()] == [3]
    assert torch.equal(Numbers.from_pretrained("alice/one").numbers, NUMBERS)


def test_pushing_the_same_again_commits_nothing(hub: HubServer) -> None:
    first = Note("hello").push_to_hub("alice/one")
    assert Note("hello").push_to_hub("alice/one") == first
    assert sum(path.endswith("/commit/main") for _, path in hub.requests) == 1


def test_connection_cut_off_is_taken_up_where_it_broke(hub: HubServer) -> None:
    Numbers(NUMBERS).push_to_hub("alice/one")
    hub.cut["numbers.safetensors"] = [2048, 1024]
    assert torch.equal(Numbers.from_pretrained("alice/one").numbers, NUMBERS)
    assert [wanted.partition("-")[0] for wanted in hub.ranges] == ["bytes=2048", "bytes=3072"]


def test_connection_that_stays_cut_is_one_error_and_leaves_nothing_to_load(hub: HubServer, tmp_path: Path) -> None:
    Numbers(NUMBERS).push_to_hub("alice/one")
    hub.cut["numbers.safetensors"] = [0] * 20
    with pytest.raises(UnknownNameError, match=r"'alice/one'.*cannot be downloaded.*try again"):
        Numbers.from_pretrained("alice/one")
    assert list((tmp_path / "hub-cache").rglob("*.safetensors")) == []
    hub.cut.clear()
    assert torch.equal(Numbers.from_pretrained("alice/one").numbers, NUMBERS)


def test_subfolder_and_revision_are_places_of_their_own(hub: HubServer) -> None:
    places: list[tuple[str, dict[str, Any]]] = [
        ("main", {}),
        ("draft", {"revision": "draft"}),
        ("sub", {"subfolder": "a/b"}),
    ]
    for text, place in places:
        Note(text).push_to_hub("alice/one", **place)
    for text, place in places:
        assert Note.from_pretrained("alice/one", **place).text == text
    first = next(iter(hub.repositories["alice/one"].commits))
    with pytest.raises(FileFormatError, match=r"'alice/one'.*holds no note\.json .*revision"):
        Note.from_pretrained("alice/one", revision=first)
    pinned = hub.repositories["alice/one"].branches["draft"]
    Note("later").push_to_hub("alice/one", revision="draft")
    assert Note.from_pretrained("alice/one", revision=pinned).text == "draft"
    assert Note.from_pretrained("alice/one", revision="draft").text == "later"


def test_pull_request_is_returned_and_leaves_the_branch(hub: HubServer) -> None:
    Note("old").push_to_hub("alice/one")
    url = Note("new").push_to_hub("alice/one", create_pr=True)
    assert url == f"{hub.url}/alice/one/discussions/1"
    assert Note.from_pretrained("alice/one").text == "old"
    assert Note.from_pretrained("alice/one", revision="refs/pr/1").text == "new"


def test_private_repository_is_there_for_its_owner_alone(hub: HubServer, tmp_path: Path) -> None:
    Note("mine").push_to_hub("alice/quiet", private=True)
    assert hub.repositories["alice/quiet"].private
    assert Note.from_pretrained("alice/quiet", cache_dir=tmp_path / "1").text == "mine"
    with hub.connected(token=None):
        with pytest.raises(UnknownNameError, match=r"'alice/quiet'.*log in or pass token"):
            Note.from_pretrained("alice/quiet", cache_dir=tmp_path / "2")
        assert Note.from_pretrained("alice/quiet", cache_dir=tmp_path / "3", token=ALICE).text == "mine"
    with pytest.raises(UnknownNameError, match=r"'alice/quiet'.*log in or pass token"):
        Note.from_pretrained("alice/quiet", cache_dir=tmp_path / "4", token=BOB)


def test_wrong_token_is_named_and_not_repeated(hub: HubServer, tmp_path: Path) -> None:
    Note("hello").push_to_hub("alice/one")
    wrong = "hf_" + "w" * 34
    with pytest.raises(UnknownNameError, match=r"'alice/one': the Hub refuses the token.*hf auth login") as caught:
        Note.from_pretrained("alice/one", token=wrong, cache_dir=tmp_path / "other")
    assert wrong not in str(caught.value)
    with pytest.raises(UnknownNameError, match=r"'alice/one': the Hub refuses the token") as caught:
        Note("new").push_to_hub("alice/one", token=wrong)
    assert wrong not in str(caught.value)
    assert Note.from_pretrained("alice/one").text == "hello"


def test_push_without_the_right_to_is_refused_with_the_reason(hub: HubServer) -> None:
    Note("hello").push_to_hub("alice/one")
    before = hub.files("alice/one")
    with pytest.raises(UnsupportedError, match=r"'alice/one'.*write access"):
        Note("evil").push_to_hub("alice/one", token=BOB)
    with hub.connected(token=None), pytest.raises(HFMoTEError, match="'alice/one'"):
        Note("evil").push_to_hub("alice/one")
    with pytest.raises(UnknownNameError, match="cannot be a Hub id"):
        Note("evil").push_to_hub("a/b/c")
    assert hub.files("alice/one") == before


def test_missing_repository_revision_and_file_are_told_apart(hub: HubServer) -> None:
    Note("hello").push_to_hub("alice/one")
    with pytest.raises(UnknownNameError, match=r"'alice/none'.*no repository of that name"):
        Note.from_pretrained("alice/none")
    with pytest.raises(UnknownNameError, match=r"'alice/one': .*no revision 'v9'"):
        Note.from_pretrained("alice/one", revision="v9")
    with pytest.raises(FileFormatError, match=r"'alice/one'.*holds no mote_config\.json"):
        MoTEConfig.from_pretrained("alice/one")


def test_cached_file_is_loaded_without_the_hub(hub: HubServer, tmp_path: Path) -> None:
    Note("hello").push_to_hub("alice/one")
    with pytest.raises(UnknownNameError, match=r"not in the cache.*local_files_only"):
        Note.from_pretrained("alice/one", local_files_only=True)
    Note.from_pretrained("alice/one")
    asked = len(hub.requests)
    assert Note.from_pretrained("alice/one", local_files_only=True).text == "hello"
    assert Note.from_pretrained("alice/one", cache_dir=tmp_path / "hub-cache", local_files_only=True).text == "hello"
    # Not by monkeypatch, which would put back what the connection set after that has been undone.
    with patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True):
        assert Note.from_pretrained("alice/one").text == "hello"
        with pytest.raises(UnknownNameError, match="HF_HUB_OFFLINE"):
            Note.from_pretrained("alice/two")
    assert len(hub.requests) == asked


def test_hub_that_went_away_leaves_the_cache_usable(tmp_path: Path) -> None:
    with HubServer() as server, server.connected(cache=tmp_path):
        Note("hello").push_to_hub("alice/one")
        Note.from_pretrained("alice/one")
    with server.connected(cache=tmp_path):
        assert Note.from_pretrained("alice/one").text == "hello"


@pytest.mark.parametrize(("kind", "name"), [(Note, "note.json"), (Numbers, "numbers.safetensors")])
def test_other_content_than_the_digest_says_is_refused(hub: HubServer, kind: Any, name: str) -> None:
    given = Note("hello") if kind is Note else Numbers(NUMBERS)
    given.push_to_hub("alice/one")
    hub.served[name] = hub.files("alice/one")[name][:-2] + b"!!"
    for _ in range(2):  # from the Hub, then from the cache
        with pytest.raises(FileFormatError, match=rf"'alice/one': {name}: its content is not what the Hub says"):
            kind.from_pretrained("alice/one")


def test_shortened_content_is_refused(hub: HubServer) -> None:
    Numbers(NUMBERS).push_to_hub("alice/one")
    hub.served["numbers.safetensors"] = hub.files("alice/one")["numbers.safetensors"][:3000]
    with pytest.raises(UnknownNameError, match=r"'alice/one'.*Consistency check failed"):
        Numbers.from_pretrained("alice/one")


@pytest.mark.parametrize(
    "headers", [{"ETag": '"../../../escaped"'}, {"X-Repo-Commit": "../../escaped"}, {"X-Repo-Commit": ""}]
)
def test_names_of_a_hostile_server_are_refused(hub: HubServer, tmp_path: Path, headers: dict[str, str]) -> None:
    Note("hello").push_to_hub("alice/one")
    hub.headers["note.json"] = headers
    with pytest.raises(HFMoTEError, match="'alice/one'"):
        Note.from_pretrained("alice/one", cache_dir=tmp_path / "a" / "b")


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b", "..\\other", "C:\\other"])
def test_subfolder_or_revision_that_leads_out_is_refused_before_anything(hub: HubServer, path: str) -> None:
    for option in ("subfolder", "revision"):
        with pytest.raises(FileFormatError, match=f"{option}: leads out of the folder or repository"):
            Note.from_pretrained("alice/one", **{option: path})
        with pytest.raises(FileFormatError, match=f"{option}: leads out of the folder or repository"):
            Note("x").push_to_hub("alice/one", **{option: path})
    assert hub.requests == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"text": NaN}', b"\xff\xfe", b"version https://git-lfs"])
def test_file_of_somebody_else_is_read_as_strictly_as_a_local_one(hub: HubServer, content: bytes) -> None:
    hub.put("bob/odd", {"note.json": content})
    with pytest.raises(FileFormatError, match=r"note\.json"):
        Note.from_pretrained("bob/odd")


def test_card_of_the_repository_is_kept_and_ours_is_made_anew(hub: HubServer) -> None:
    Note("a").push_to_hub("alice/one", intended_use="Once.")
    assert b"Once." in hub.files("alice/one")["README.md"]
    Note("b").push_to_hub("alice/one", intended_use="Twice.")
    assert b"Twice." in hub.files("alice/one")["README.md"]
    hub.put("alice/one", {"README.md": b"my own words"})
    Note("c").push_to_hub("alice/one")
    assert hub.files("alice/one")["README.md"] == b"my own words"
    assert Note.from_pretrained("alice/one").text == "c"


def test_text_there_cannot_be_asked_is_an_error_and_not_an_absence(hub: HubServer) -> None:
    options: dict[str, Any] = {"subfolder": None, "revision": None, "token": None}
    assert text_there("alice/none", "README.md", **options) is None
    Note("a").push_to_hub("alice/one")
    assert text_there("alice/one", "none.md", **options) is None
    assert text_there("alice/one", "README.md", **{**options, "revision": "none"}) is None
    hub.cut["README.md"] = [0] * 20
    with pytest.raises(UnknownNameError):
        text_there("alice/one", "README.md", **options)


def test_token_goes_to_the_hub_and_not_to_the_store(hub: HubServer) -> None:
    Numbers(NUMBERS).push_to_hub("alice/one", private=True)
    Numbers.from_pretrained("alice/one")
    assert hub.authorized_store == [False]


def test_upload_of_something_private_sends_nothing(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.json").write_text(json.dumps({"token": ALICE}))
    with pytest.raises(UnsupportedError, match=r"a\.json.*token"):
        upload(tmp_path / "out", "alice/one", commit_message="x")
    assert hub.requests == []


def test_download_matching_takes_what_matches_and_checks_it(hub: HubServer) -> None:
    hub.put("bob/many", {"a/w.safetensors": b"1" * 100, "b/w.safetensors": b"2" * 100, "c.txt": b"3"})
    root = download_matching("bob/many", ["a/*"])
    assert sorted(path.name for path in root.rglob("*") if path.is_file()) == ["w.safetensors"]
    hub.served["b/w.safetensors"] = b"4" * 100
    with pytest.raises(FileFormatError, match="not what the Hub says"):
        download_matching("bob/many", ["b/*"])


def test_download_forced_is_asked_for_anew(hub: HubServer) -> None:
    Note("hello").push_to_hub("alice/one")
    first = download("alice/one", "note.json")
    first.resolve().write_text("{}")
    with pytest.raises(FileFormatError, match="delete"):
        download("alice/one", "note.json")
    assert read_json(download("alice/one", "note.json", force_download=True)) == {"text": "hello"}
