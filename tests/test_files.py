"""Results of long runs are written whatever their size, and read again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from evaluation_reports import report_of
from safetensors.torch import save_file

import hf_mote.files
from hf_mote.errors import FileFormatError
from hf_mote.evaluation.report import EvaluationReport
from hf_mote.files import RESULT_LIMIT, read_json, read_tensors, write_json, write_tensors
from hf_mote.statistics.rates import Rate

LONG = 17 * 2**20  # more than a config may have


def test_write_json_above_the_limit_is_refused_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(FileFormatError, match="too large"):
        write_json(path, {"text": "x" * LONG})
    assert read_json(path) == {"old": 1}


def test_write_json_without_a_limit_is_read_as_a_result_and_not_as_a_config(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"text": "x" * LONG}, limit=None)
    assert read_json(path, limit=RESULT_LIMIT) == {"text": "x" * LONG}
    with pytest.raises(FileFormatError, match="too large"):
        read_json(path)


def test_evaluation_report_of_a_long_run_comes_back_equal(tmp_path: Path) -> None:
    texts = [f"{number} {'word ' * 2000}" for number in range(600)]
    report = report_of(
        target="refusal", before=Rate.of(3, 600), after=Rate.of(1, 600), controls=[0.0],
        prompts=texts, responses_before=texts, responses_after=texts[::-1],
    )  # fmt: skip
    report.save_pretrained(tmp_path)
    assert (tmp_path / report.file_name).stat().st_size > LONG
    assert EvaluationReport.from_pretrained(tmp_path) == report


@pytest.mark.parametrize("limit", [0, 2**20])
def test_write_tensors_metadata_too_long_for_the_header_comes_back_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(hf_mote.files, "_HEADER_LIMIT", limit)
    path = tmp_path / "a.safetensors"
    tensors, responses = (
        {"a": torch.arange(3.0)},
        ['a "quoted" \\ line\n'] * 10,
    )
    write_tensors(path, tensors, {"kind": "map", "responses": list(responses)})
    found, metadata = read_tensors(path, kind="map")
    assert found.keys() == tensors.keys()
    assert torch.equal(found["a"], tensors["a"])
    assert metadata["responses"] == responses


def test_write_tensors_more_text_than_any_header_holds_comes_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    responses = ["x" * 2**20] * 101  # safetensors reads no header above 100 MB
    write_tensors(path, {}, {"kind": "map", "responses": responses})
    assert read_tensors(path, kind="map")[1]["responses"] == responses


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.uint8)], ids=["float", "grid"])
def test_read_tensors_metadata_that_is_no_text_is_refused(tmp_path: Path, wrong: torch.Tensor) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"__hf_mote__": wrong}, path)
    with pytest.raises(FileFormatError, match="holds no metadata"):
        read_tensors(path, kind="map")
    save_file({"__hf_mote__": torch.frombuffer(bytearray(b"{"), dtype=torch.uint8)}, path)
    with pytest.raises(FileFormatError, match="must be valid JSON"):
        read_tensors(path, kind="map")
