"""`hf-mote ftri` on pairs of prompts, per token, and where nothing could be found."""

import json
from pathlib import Path

import pytest
from command_runs import ran, run, said
from html_pages import check_page

from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.ranking.imaging.result import FTRIResult

LETTERS = "abcde"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four pairs, a letter, which is of the class, and a longer twin; and two prompts without one."""
    records = [
        {"prompt": letter * (1 + 2 * place), "class": ("bad", "good")[place], "topic": letter}
        for letter in LETTERS
        for place in (0, 1)
    ]
    path = tmp_path / "pairs.jsonl"
    records = [*records[1:], {**records[0], "topic": "alone"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def command(model: Path, prompts: Path, output: Path, *more: object) -> list[object]:
    options = ["--judge", "field", "--target", "bad", "--max-new-tokens", 2, "--traced", 0, "--resamples", 19]
    return ["ftri", model, prompts, *options, *more, "--output", output]


def verdict_in(output: Path) -> str:
    return str(json.loads((output / "report.json").read_text())["verdict"])


def test_ftri_pair_field_ranks_by_the_pairs_of_the_file(tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    ran(*command(tiny_folder, pairs, tmp_path / "out", "--pair-field", "topic", "--confidence", 0.8))
    ranking = ExpertRanking.from_pretrained(tmp_path / "out")
    assert (ranking.provenance["compared"], ranking.provenance["left_out"]) == ("4 pairs of prompts", 2)
    assert ranking.confidence == 0.8
    result = FTRIResult.from_pretrained(tmp_path / "out" / "imaging")
    keys = [*"abbccddee", "alone"]
    assert ranking.matrix().equal(result.rank("bad", paired=keys, resamples=0).matrix())


def test_ftri_normalize_divides_by_tokens(tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    ran(*command(tiny_folder, pairs, tmp_path / "out", "--normalize"))
    result = FTRIResult.from_pretrained(tmp_path / "out" / "imaging")
    ranking = ExpertRanking.from_pretrained(tmp_path / "out")
    assert ranking.matrix().equal(result.rank("bad", normalize=True, resamples=0).matrix())
    refused = run(*command(tiny_folder, pairs, tmp_path / "no", "--normalize", "--score", "npmi"))
    assert refused.exit_code == 1
    assert "--normalize" in said(refused)


def test_ftri_pair_field_that_no_record_has_is_refused_before_the_model_runs(
    tiny_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    refused = run(*command(tiny_folder, pairs, tmp_path / "out", "--pair-field", "twin"))
    assert refused.exit_code == 1
    assert "imaging" not in said(refused)
    assert not (tmp_path / "out").exists()


def test_ftri_of_few_prompts_says_that_nothing_could_be_found(tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    ran(*command(tiny_folder, pairs, tmp_path / "out", "--limit", 2))
    verdict = verdict_in(tmp_path / "out")
    assert verdict.startswith("Nothing could be found with 2 against 2 prompts: p cannot be below 0.33")
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert check_page(text).one("verdict").text == verdict


def test_ftri_of_a_scope_without_tokens_names_it_and_keeps_what_it_saw(
    tiny_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    told = ["--scope", "thinking", "--thinking-tokens", "y,z"]
    failed = run(*command(tiny_folder, pairs, tmp_path / "out", *told))
    assert failed.exit_code == 1
    assert said(failed).count("cope 'thinking' counted no token") == 1
    assert verdict_in(tmp_path / "out").startswith("Nothing was ranked. Scope 'thinking' counted no token")
    assert len(FTRIResult.from_pretrained(tmp_path / "out" / "imaging").responses) == 10


def test_ftri_group_field_counts_the_prompts_of_a_topic_as_one(tiny_folder: Path, pairs: Path, tmp_path: Path) -> None:
    ran(*command(tiny_folder, pairs, tmp_path / "out", "--group-field", "topic"))
    ranking = ExpertRanking.from_pretrained(tmp_path / "out")
    assert ranking.provenance["compared"] == "5 against 5 groups of 10 prompts"
    result = FTRIResult.from_pretrained(tmp_path / "out" / "imaging")
    keys = [*"abbccddee", "alone"]
    assert ranking.matrix().equal(result.rank("bad", groups=keys, resamples=0).matrix())
