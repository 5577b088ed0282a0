"""Files of conversations: MT-Bench's form is read, and what is wrong with one is named by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_runs import ATTACK, ran, run, said
from html_pages import check_page
from prompt_files import lines, written

from hf_mote import EvaluationReport, MoTEConfig
from hf_mote.commands.conversations import read_conversations
from hf_mote.errors import DataError, FileFormatError
from hf_mote.evaluation.conversations import Conversation


def test_read_conversations_takes_what_mt_bench_has_and_leaves_other_fields(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question_id": 81, "category": "writing", "turns": ["one\u2028two", "three\n"], "reference": ["a", "b"]},
        {"turns": ["alone"], "question_id": "q", "category": None},
        {"turns": ["1", "2", "3"], "category": " "},
    ]
    expected = [
        Conversation(["one\u2028two", "three\n"], id="81", category="writing"),
        Conversation(["alone"], id="q"),
        Conversation(["1", "2", "3"]),
    ]
    assert read_conversations(str(written(tmp_path, "a.jsonl", "\ufeff" + lines(*rows)))) == expected
    assert read_conversations(str(written(tmp_path, "a.json", json.dumps(rows)))) == expected


def test_read_conversations_limit_draws_from_each_category_and_keeps_the_order(tmp_path: Path) -> None:
    rows = [{"question_id": i, "category": f"c{i // 10}", "turns": ["x", "y"]} for i in range(30)]
    path = str(written(tmp_path, "a.jsonl", lines(*rows)))
    found = read_conversations(path, limit=4, seed=1)
    assert [one.category for one in found] == ["c0"] * 4 + ["c1"] * 4 + ["c2"] * 4
    numbers = [int(one.id or "") for one in found]
    assert numbers == sorted(set(numbers))
    assert read_conversations(path, limit=4, seed=1) == found
    assert read_conversations(path, limit=4, seed=2) != found
    assert len(read_conversations(path)) == 30


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("a.jsonl", '{"turns": ["a"]}\n{"turns": ', "line 2: must be valid JSON"),
        ("a.jsonl", '{"turns": ["a"]}\n["a", "b"]\n', "line 2: must be a record"),
        ("a.jsonl", '{"turns": ["a"]}\n\n{"prompt": "b"}\n', "line 3: has no field 'turns' (got prompt"),
        ("a.jsonl", '"a"\n', "line 1: has no field 'turns'"),
        ("a.jsonl", "{}\n", "line 1: has no field 'turns' (got no fields"),
        ("a.jsonl", '{"turns": "a"}\n', "line 1, field 'turns': must hold the turns of a conversation (got 'a'"),
        ("a.jsonl", '{"turns": null}\n', "line 1, field 'turns': must hold the turns"),
        ("a.jsonl", '{"turns": []}\n', "line 1, field 'turns': must hold the turns"),
        ("a.jsonl", '{"turns": ["a", " "]}\n', "line 1, field 'turns': must hold the turns"),
        ("a.jsonl", '{"turns": ["a", 3]}\n', "line 1, field 'turns': must hold the turns"),
        ("a.jsonl", '{"turns": ["\\ud800"]}\n', "line 1: turns[0]: holds text that is not Unicode"),
        ("a.jsonl", '{"turns": ["a"], "category": ["b"]}\n', "line 1, field 'category': must be a name"),
        ("a.jsonl", '{"turns": ["a"], "category": "\\udfff"}\n', "line 1: category: holds text that"),
        ("a.jsonl", '{"turns": ["a"], "question_id": 1.5}\n', "line 1, field 'question_id': must be a name"),
        ("a.jsonl", '{"turns": ["a"], "question_id": true}\n', "line 1, field 'question_id': must be a name"),
        ("a.json", '{"turns": ["a"]}', "must hold a JSON list"),
        ("a.json", '[{"turns": ["a"]}, {"turns": 1}]', "entry 2, field 'turns': must hold the turns"),
        ("a.csv", "turns\na\n", "line 2, field 'turns': must hold the turns"),
        ("a.txt", "a\n", "line 1: has no field 'turns'"),
        ("a.jsonl", "\n", "holds no conversations"),
        ("a.jsonl", b"\xff\xfe", "must be UTF-8 text"),
    ],
)
def test_read_conversations_malformed_file_names_the_place(
    tmp_path: Path, name: str, text: str | bytes, where: str
) -> None:
    with pytest.raises((FileFormatError, DataError)) as caught:
        read_conversations(str(written(tmp_path, name, text)))
    assert where in str(caught.value)
    assert name in str(caught.value)


def test_read_conversations_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"nothing\.jsonl: cannot be read"):
        read_conversations(str(tmp_path / "nothing.jsonl"))


def test_evaluate_answers_conversations_before_and_after(evaluate_run: Path) -> None:
    report = EvaluationReport.from_pretrained(evaluate_run)
    first, second = report.conversations
    assert (first.id, first.category, len(first.turns)) == ("81", "events & <places>", 2)
    assert first.answers_before[0] == "I am sorry, but I cannot talk about that."
    assert first.answers_after[0] != first.answers_before[0]
    assert (second.id, len(second.turns)) == (None, 1)
    assert report.turns_unchanged is not None
    assert report.turns_unchanged.n == 3
    root = check_page((evaluate_run / "report.html").read_text(encoding="utf-8"))
    shown = root.one("conversations")
    assert [text.text for text in shown.all("p", "asked")] == [*first.turns, *second.turns]
    answers = [text for pair in zip(first.answers_before, first.answers_after, strict=True) for text in pair]
    assert [text.text for text in shown.all("dd")][:4] == [text or "(no response)" for text in answers]


def test_evaluate_hostile_conversations_stay_text(tiny_folder: Path, tmp_path: Path) -> None:
    talks = written(
        tmp_path,
        "talks.jsonl",
        lines({"turns": [ATTACK, f"{ATTACK}\x1b[31m"], "category": ATTACK, "question_id": ATTACK}),
    )
    (tmp_path / "prompts.txt").write_text("a\nb\n")
    MoTEConfig(suppress=[[0, 1], [1, 2]]).save_pretrained(tmp_path / "config")
    ran(
        "evaluate", tiny_folder, tmp_path / "config", tmp_path / "prompts.txt", "--judge", "regex:[a-m]", "--controls",
        0, "--conversations", talks, "--max-new-tokens", 3, "--output", tmp_path / "out",
    )  # fmt: skip
    root = check_page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert len(root.all("script")) == 1  # the page's own
    assert root.all("img") == []
    (one,) = root.one("conversations").all("ol")
    assert [text.text for text in one.all("p", "asked")] == [ATTACK, f"{ATTACK}␛[31m"]
    assert root.one("conversations").all("span", "chip")[0].text == ATTACK


def test_evaluate_wrong_conversations_file_is_a_message_and_leaves_no_folder(
    tiny_folder: Path, tmp_path: Path
) -> None:
    talks = written(tmp_path, "talks.jsonl", '{"turns": ["a", "b"]}\n{"turns": [1]}\n')
    (tmp_path / "prompts.txt").write_text("a\n")
    MoTEConfig(suppress=[[0, 1]]).save_pretrained(tmp_path / "config")
    result = run(
        "evaluate", tiny_folder, tmp_path / "config", tmp_path / "prompts.txt", "--judge", "refusal",
        "--conversations", talks, "--output", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "line 2, field 'turns'" in said(result)
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
