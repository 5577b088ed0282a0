"""What lives in one file: whole or absent, read strictly, in folders; the Hub is in `sharing/`."""

from __future__ import annotations

import stat
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from shareable_note import Note

import hf_mote.hub
from hf_mote.errors import FileFormatError, HFMoTEError, UnknownNameError
from hf_mote.files import SCHEMA_VERSION
from hf_mote.hub import read_json, read_tensors, write_json, write_tensors


class HalfWritten(Note):
    """A noun whose writing stops in the middle."""

    def _to_file(self, path: Path) -> None:
        path.write_text('{"te')
        raise RuntimeError("disk full")


_JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(data=st.dictionaries(st.text(), _JSON_VALUES, max_size=4))
def test_write_json_any_json_object_comes_back_equal(tmp_path_factory: pytest.TempPathFactory, data: dict) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    write_json(path, data)
    assert read_json(path) == data


def test_write_json_is_sorted_indented_and_ends_in_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1], "a": "ü"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": [\n    1\n  ]\n}\n'


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"a": {"b": [0, float("nan")]}}, "a.b[1]"),
        ({"a": float("-inf")}, "a"),
        ({"a": {1: 2}}, "a"),
        ({"a": torch.zeros(1)}, "a"),
        ({"a": {1, 2}}, "a"),
        ({"a": "\ud800"}, "Unicode"),
    ],
)
def test_write_json_foreign_value_is_refused_by_field_and_old_file_stays(
    tmp_path: Path, value: dict, field: str
) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(FileFormatError, match=r"a\.json") as caught:
        write_json(path, value)
    assert field in str(caught.value)
    assert read_json(path) == {"old": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": NaN}', "a: must be a finite"),
        (b'{"a": [1, -Infinity]}', r"a\[1\]: must be a finite"),
        (b'{"a": 1e999}', "a: must be a finite"),
        (b'{"a": {"b": 1, "b": 1}}', "holds a key twice .*'b'"),
        (b"[1]", "must hold a JSON object .*list"),
        (b"null", "must hold a JSON object"),
        (b'{"a": 1,\n "b": ', "line 2, column 7"),
        (b'{"a": 1} {}', "line 1, column 10"),
        (b"", "line 1, column 1"),
        (b"\xff\xfe{}", "must be valid JSON"),
        (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "must be valid JSON|nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "must be valid JSON"),
    ],
)
def test_read_json_malformed_content_is_refused_with_place(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=reason) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_read_json_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 2.5, None], "b": {"c": "text"}})
    whole = path.read_bytes().rstrip()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError):
            read_json(path)


def test_read_json_size_limit_is_inclusive(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": 1}')
    assert read_json(path, limit=8) == {"a": 1}
    with pytest.raises(FileFormatError, match="at most 7 bytes"):
        read_json(path, limit=7)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_read_json_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_json(tmp_path / name)


def test_write_tensors_comes_back_equal_with_stamped_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {"transposed": base.t(), "shared": base, "half": base.bfloat16(), "leaf": base.clone().requires_grad_()}
    write_tensors(path, tensors, {"kind": "map", "prompts": 3})
    loaded, metadata = read_tensors(path, kind="map")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert loaded["half"].dtype == torch.bfloat16
    assert metadata.pop("transformers_version")
    assert metadata == {
        "hf_mote_version": hf_mote.hub.__version__,
        "kind": "map",
        "prompts": 3,
        "schema_version": SCHEMA_VERSION,
    }


def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {"kind": "map"})
    write_json(tmp_path / "a.json", {})
    (tmp_path / "usual").touch()
    assert len({stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("metadata", [{}, {"kind": 1}, {"kind": "map", "rate": float("nan")}])
def test_write_tensors_bad_metadata_is_refused(tmp_path: Path, metadata: dict) -> None:
    with pytest.raises(FileFormatError):
        write_tensors(tmp_path / "a.safetensors", {}, metadata)
    assert list(tmp_path.iterdir()) == []


def test_read_tensors_wrong_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(1)}, {"kind": "map"})
    with pytest.raises(FileFormatError, match="kind: is another .got 'map', expected 'ranking'"):
        read_tensors(path, kind="ranking")


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, 0, "1", None, True, 1.0])
def test_read_tensors_unknown_schema_version_is_refused(tmp_path: Path, version: object) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {}, {"kind": "map", "schema_version": version})
    with pytest.raises(FileFormatError, match="schema_version: .*Upgrade hf_mote"):
        read_tensors(path, kind="map")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"hf_mote": '{"kind": "map"'}, {"hf_mote": "[]"}])
def test_read_tensors_missing_or_edited_metadata_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    with pytest.raises(FileFormatError, match="metadata"):
        read_tensors(path, kind="map")


def test_read_tensors_truncated_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(100)}, {"kind": "map"})
    whole = path.read_bytes()
    for length in (0, 4, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FileFormatError, match=r"a\.safetensors"):
            read_tensors(path, kind="map")


def test_read_tensors_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="cannot be read"):
        read_tensors(tmp_path / "a.safetensors", kind="map")


def test_save_pretrained_makes_folder_file_and_card(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    Note("hello").save_pretrained(folder)
    assert sorted(entry.name for entry in folder.iterdir()) == ["README.md", "note.json"]
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.library_name == "hf_mote"
    assert Note.from_pretrained(folder).text == "hello"
    assert Note.from_pretrained(str(folder / "note.json")).text == "hello"
    assert Note.from_pretrained(tmp_path, subfolder="new/folder").text == "hello"


def test_save_pretrained_keeps_a_card_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    Note("hello").save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("broken", "error"), [(HalfWritten("new"), RuntimeError), (Note(float("nan")), FileFormatError)]
)
def test_save_pretrained_failure_keeps_old_file_and_leaves_nothing_else(
    tmp_path: Path, broken: Note, error: type[Exception]
) -> None:
    Note("old").save_pretrained(tmp_path)
    with pytest.raises(error):
        broken.save_pretrained(tmp_path)
    assert Note.from_pretrained(tmp_path).text == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["README.md", "note.json"]


def test_save_pretrained_into_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileFormatError, match="cannot be made a folder"):
        Note("hello").save_pretrained(tmp_path / "file")


def test_from_pretrained_folder_without_file_lists_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    with pytest.raises(FileFormatError, match=r"holds no note\.json .got config\.json.*Note\.save_pretrained"):
        Note.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["note.pkl", "note.pt", "note.BIN", "note.pth", "note.ckpt", "note.pickle"])
def test_from_pretrained_pickle_is_refused_unread(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n")
    monkeypatch.setattr(Note, "_from_file", classmethod(lambda cls, path: pytest.fail("was read")))
    with pytest.raises(FileFormatError, match="pickle"):
        Note.from_pretrained(tmp_path / name)


@pytest.mark.parametrize("name", ["nobody/nothing", "nothing", "./no/such/folder", "a/b/c", ""])
def test_from_pretrained_unknown_name_offline_names_it_and_the_way_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"Check the path|is not a file or folder") as caught:
        Note.from_pretrained(name or "no\0thing", cache_dir=tmp_path)
    assert isinstance(caught.value, HFMoTEError)
