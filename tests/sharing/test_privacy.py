"""What of the author must not reach others: names without places, and a search of everything that goes out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hf_mote.errors import UnsupportedError
from hf_mote.sharing.privacy import check_nothing_private, is_hub_id, public_name, without_places


@pytest.mark.parametrize(
    ("given", "public"),
    [
        ("org/model", "org/model"),
        ("model", "model"),
        ("organism:refusal", "organism:refusal"),
        ("/home/me/secret/model", "model"),
        ("../secret/model/", "model"),
        ("~/model", "model"),
        ("secret/checkpoints/model", "model"),
        ("C:\\Users\\me\\model", "model"),
        ("organism:/home/me/mine", "mine"),
        ("/home/me/.cache/huggingface/hub/models--org--model/snapshots/0a1b", "org/model"),
        ("/home/me/.cache/huggingface/hub/models--gpt2/snapshots/0a1b", "gpt2"),
        ("", None),
        (None, None),
        ("/", None),
    ],
)
def test_public_name_says_nothing_of_where_a_model_lies(given: str | None, public: str | None) -> None:
    assert public_name(given) == public


def test_public_name_of_a_folder_that_reads_as_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "secret")
    assert public_name("model") == "model"
    assert public_name(".") == "secret"
    assert public_name(tmp_path / "secret") == "secret"
    monkeypatch.chdir(tmp_path)
    assert public_name("secret/model") == "model"


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/me/secret/model", "model"),
        (
            "hf-mote ftri /home/me/model /srv/data/prompts.jsonl --output ~/runs/one",
            "hf-mote ftri model prompts.jsonl --output one",
        ),
        ("--model=/home/me/model", "--model=model"),
        ("'/home/me/model'", "'model'"),
        ("C:\\Users\\me\\model", "model"),
        ("org/model", "org/model"),
        ("https://huggingface.co/org/model", "https://huggingface.co/org/model"),
        ("counts and/or weights, 3/4 of them", "counts and/or weights, 3/4 of them"),
        ("/", "/"),
        ("/off", "/off"),
    ],
)
def test_without_places_keeps_names_alone(text: str, public: str) -> None:
    assert without_places(text) == public


def test_without_places_goes_through_lists_and_dicts_and_leaves_the_rest() -> None:
    value = {"/a/b": [1, 2.5, None, True, {"x": "/home/me/model"}], "n": 3}
    assert without_places(value) == {"b": [1, 2.5, None, True, {"x": "model"}], "n": 3}


def test_is_hub_id_is_none_of_a_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("org/model")
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert not is_hub_id("org/model")
    assert not is_hub_id("/org/model")


TOKEN = "hf_" + "q" * 34


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"nothing of that kind, hf_mote and hf_hub_download", None),
        (b"x" * 100 + TOKEN.encode() + b"\0\0", "the token that you are logged in with"),
        (b"hf_" + b"z" * 34, "what looks like a token"),
        (b"key=sk-" + b"z" * 34, "what looks like a token"),
        (b"Wie geht es dir, mein Freund?", "the text of a prompt or response"),
        (os.fsencode(Path.home() / "models"), "a path in your home folder"),
    ],
)
def test_check_nothing_private_names_the_file_and_not_the_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, found: str | None
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "maps").mkdir()
    (tmp_path / "README.md").write_text("fine")
    (tmp_path / "maps" / "a.bin").write_bytes(content)
    if found is None:
        check_nothing_private(tmp_path, texts=["Wie geht es dir, mein Freund?", "short"])
        return
    with pytest.raises(UnsupportedError, match=f"maps/a.bin: holds {found}") as caught:
        check_nothing_private(tmp_path, texts=["Wie geht es dir, mein Freund?", "short"])
    assert TOKEN not in str(caught.value)


def test_check_nothing_private_knows_the_token_that_is_passed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a-token-of-another-kind")
    check_nothing_private(tmp_path)
    with pytest.raises(UnsupportedError, match="logged in"):
        check_nothing_private(tmp_path, token="a-token-of-another-kind")
