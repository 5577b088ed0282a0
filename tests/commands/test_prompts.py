"""Prompt files of every kind are read in full, and what is wrong with one is named by its line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from prompt_files import lines, written

from hf_mote.commands.model import Organisms
from hf_mote.commands.prompts import PromptSet, read_prompts
from hf_mote.errors import DataError, FileFormatError, HFMoTEError, UnknownNameError


def read(path: Path | str, **options: Any) -> PromptSet:
    return read_prompts(str(path), Organisms(), **options)


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "Go"}]


def test_read_prompts_json_lines_hold_texts_chats_and_plain_strings(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", "\n" + lines({"prompt": "one\u2028two"}, {"prompt": CHAT}, "three"))
    found = read(path)
    assert found.prompts == ["one\u2028two", CHAT, "three"]
    assert found.texts == ["one\u2028two", "Go", "three"]
    assert found.classes is None


def test_read_prompts_messages_stand_for_the_prompt(tmp_path: Path) -> None:
    assert read(written(tmp_path, "a.ndjson", lines({"messages": CHAT, "label": 1}))).prompts == [CHAT]


@pytest.mark.parametrize("name", ["class", "label"])
def test_read_prompts_class_is_read_where_every_record_has_one(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, "a.json", json.dumps([{"prompt": "a", name: "x"}, {"prompt": "b", name: 2}]))
    assert read(path).classes == ["x", "2"]
    path = written(tmp_path, "b.json", json.dumps([{"prompt": "a", name: "x"}, {"prompt": "b", name: None}]))
    assert read(path).classes is None


def test_read_prompts_csv_keeps_line_breaks_and_separators_in_quotes(tmp_path: Path) -> None:
    text = '\ufeffprompt,class\r\n"a, b\nc",x\r\n\r\n"say ""hi""",y\r\n'
    found = read(written(tmp_path, "a.csv", text))
    assert found.prompts == ["a, b\nc", 'say "hi"']
    assert found.classes == ["x", "y"]
    assert read(written(tmp_path, "a.tsv", "prompt\tclass\na, b\tx\n")).prompts == ["a, b"]


def test_read_prompts_csv_field_may_be_long_and_the_limit_of_others_stays(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    assert read(written(tmp_path, "a.csv", f"prompt\n{'x' * (limit + 1)}\n")).texts == ["x" * (limit + 1)]
    assert csv.field_size_limit() == limit


def test_read_prompts_plain_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    assert read(written(tmp_path, "a.txt", "one\n\n  two, three  \n")).prompts == ["one", "two, three"]


def test_read_prompts_other_fields_are_found_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "question,topic,answer\nWhy?,x,Because\nHow?,y,So\n")
    found = read(path, prompt_field="question", class_field="topic")
    assert (found.prompts, found.classes) == (["Why?", "How?"], ["x", "y"])
    assert found.column("answer") == ["Because", "So"]
    assert found.has("answer")
    with pytest.raises(UnknownNameError, match="one of answer, question, topic"):
        found.column("anser")


def test_read_prompts_limit_draws_from_each_class_and_keeps_the_order(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i:02}", "class": "few" if i % 5 == 0 else "many"} for i in range(20)]
    path = written(tmp_path, "a.jsonl", lines(*rows))
    found = read(path, limit=6, seed=1)
    assert found.classes is not None
    assert (found.classes.count("few"), found.classes.count("many")) == (4, 6)
    assert found.prompts == sorted(found.texts)
    assert [record.fields["prompt"] for record in found.records] == found.prompts
    assert read(path, limit=6, seed=1).prompts == found.prompts
    assert read(path, limit=6, seed=2).prompts != found.prompts


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', "line 2: must be valid JSON (got Expecting value at column 12)"),
        ("a.json", '["a",\n"b" "c"]', "a.json: must be valid JSON (got Expecting ',' delimiter at line 2, column 5)"),
        ("a.jsonl", '{"prompt": "a"}\n3\n', "line 2: must be a record"),
        ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}\n', "line 2: has no field 'prompt'"),
        ("a.jsonl", '{"prompt": ""}\n', "line 1, field 'prompt': must be a prompt"),
        ("a.jsonl", '{"prompt": 3}\n', "line 1, field 'prompt': must be a prompt"),
        ("a.jsonl", '{"prompt": "  "}\n', "line 1, field 'prompt': must hold text"),
        ("a.jsonl", '{"prompt": [{"role": "user"}]}\n', "line 1, field 'prompt': must be a prompt"),
        ("a.jsonl", '{"prompt": [{"role": "user", "content": [1]}]}\n', "line 1, field 'prompt': must"),
        ("a.jsonl", '{"prompt": [{"role": 1, "content": "a"}]}\n', "line 1, field 'prompt': must be a prompt"),
        ("a.jsonl", '{"prompt": "\\ud800"}\n', "line 1: prompt: holds text that is not Unicode"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b", "score": NaN}\n', "line 2: score: must be a finite number"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}\n', "line 1: holds a key twice"),
        ("a.jsonl", f'{{"prompt": "a", "b": {"[" * 40}{"]" * 40}}}', "is nested too deeply"),
        ("a.json", '["a", {"prompt": "b", "c": Infinity}]', "a.json: [1].c: must be a finite number"),
        ("a.csv", "prompt,class\na,x\nprompt, class\nb,y\n", "line 3: holds the names of the columns again"),
        ("a.json", '{"prompt": "a"}', "must hold a JSON list"),
        ("a.json", '["a", 3]', "entry 2: must be a record"),
        ("a.csv", "prompt,class\na,x\nb\n", "line 3: has another number of fields"),
        ("a.csv", "prompt,prompt\na,x\n", "names a column twice"),
        ("a.csv", 'prompt\n"a\n', "is malformed"),
        ("a.txt", b"\xff\xfe", "must be UTF-8 text"),
        ("a.txt", "\n \n", "holds no prompts"),
        ("a.csv", "prompt,class\n", "holds no prompts"),
    ],
)
def test_read_prompts_malformed_file_names_the_place(tmp_path: Path, name: str, text: str | bytes, where: str) -> None:
    with pytest.raises((FileFormatError, DataError)) as caught:
        read(written(tmp_path, name, text))
    assert where in str(caught.value)
    assert name in str(caught.value)


def test_read_prompts_class_field_asked_for_must_be_filled(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", lines({"prompt": "a", "kind": "x"}, {"prompt": "b", "kind": " "}))
    with pytest.raises(DataError, match="line 2, field 'kind': must have a value"):
        read(path, class_field="kind")


def test_read_prompts_saved_data_set_names_its_classes(tmp_path: Path) -> None:
    features = datasets.Features(
        {"prompt": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    data = datasets.Dataset.from_dict({"prompt": ["a", "b"], "label": [1, 0]}, features=features)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"dev": data}).save_to_disk(tmp_path / "several")
    assert read(tmp_path / "one").classes == ["yes", "no"]
    assert read(f"{tmp_path / 'several'}:dev").prompts == ["a", "b"]
    with pytest.raises(UnknownNameError, match="one of dev"):
        read(tmp_path / "several")


def test_read_prompts_folder_of_data_is_loaded_by_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = tmp_path / "data"
    data.mkdir()
    (data / "test.csv").write_text("prompt,class\na,x\nb,y\n")
    found = read(f"{data}:test")
    assert (found.prompts, found.classes) == (["a", "b"], ["x", "y"])
    with pytest.raises(HFMoTEError, match="split"):
        read(f"{data}:validation")


def test_read_prompts_name_that_is_nothing_says_what_it_could_be() -> None:
    with pytest.raises(UnknownNameError, match="is not a prompt file here, and datasets loads no data set"):
        read("somebody/nothing-of-this-name")


@pytest.mark.parametrize("spec", ["a:b:c:d", "a::b", ":a"])
def test_read_prompts_malformed_data_set_name_is_refused(spec: str) -> None:
    with pytest.raises(UnknownNameError, match="NAME:SUBSET:SPLIT"):
        read(spec)


def test_read_prompts_organism_gives_its_questions_with_kind_and_answer() -> None:
    organisms = Organisms()
    found = read_prompts("organism:refusal/heldout", organisms, limit=3)
    organism = organisms.get("refusal")
    assert found.classes == ["sensitive"] * 3 + ["neutral"] * 3 + ["unrelated"] * 3
    assert found.column("answer") == [organism.answers[text] for text in found.texts]
    only = read_prompts("organism:refusal/heldout/neutral", organisms)
    assert only.prompts == organism.prompts["heldout"]["neutral"]
    for wrong in ("organism:refusal", "organism:refusal/test", "organism:refusal/train/odd", "organism:nobody/train"):
        with pytest.raises(UnknownNameError):
            read_prompts(wrong, organisms)


def test_read_prompts_folder_is_handed_to_datasets_by_its_full_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of "..", datasets would make folders beside its cache.
    import datasets

    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    asked = []

    def load(name: str, *args: object, **kwargs: object) -> None:
        asked.append(name)
        raise FileNotFoundError(name)

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(UnknownNameError):
        read_prompts("..", Organisms())
    assert asked == [str(tmp_path)]


def test_read_prompts_does_not_let_datasets_search_a_folder_of_very_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []

    def load(name: str, *args: object, **kwargs: object) -> None:
        searched.append(name)
        raise FileNotFoundError(name)

    monkeypatch.setattr(datasets, "load_dataset", load)
    for number in range(40):
        (tmp_path / f"{number}").mkdir()
        for other in range(50):
            (tmp_path / f"{number}" / f"{other}.bin").touch()
    with pytest.raises(DataError, match=r"too many files .* Give the folder that holds only the data set"):
        read_prompts(str(tmp_path), Organisms())
    assert searched == []
    with pytest.raises(UnknownNameError):
        read_prompts(str(tmp_path / "1"), Organisms())
    assert searched == [str(tmp_path / "1")]
