"""`hf-mote find`: what it writes, and what it says."""

import copy
import json

import pytest
from command_runs import ran, run, said
from organism_answers import without

from hf_mote import MoTEConfig, load_organism
from hf_mote.commands.run_files import finish, writing_to
from hf_mote.evaluation.report import EvaluationReport
from hf_mote.workflow.find import find_experts


def test_find_writes_a_proven_config_and_what_it_rests_on(tmp_path):
    result = ran(
        "find", "organism:refusal", "organism:refusal/train", "--limit", 24, "--controls", 19, "--max-new-tokens", 16,
        "--batch-size", 64, "--output", tmp_path / "run",
    )  # fmt: skip
    figures = json.loads((tmp_path / "run" / "report.json").read_text())
    assert figures["found"]
    assert "experts carry 'refusal'" in said(result)
    assert "routing tells the classes" in said(result)
    config = MoTEConfig.from_pretrained(tmp_path / "run" / "config")
    organism = load_organism("refusal")
    # With so few prompts, three of them look as good, and leave incoherent text that the untouched model's answers do
    # not tell.
    assert {tuple(pair) for pair in config.suppress} == set(organism.planted)
    assert without(organism, config) == (0.0, 1.0)
    assert EvaluationReport.from_pretrained(tmp_path / "run" / "evaluation").beats_controls()
    assert (tmp_path / "run" / "rankings" / "optimization").is_dir()
    assert "config/mote_config.json" in figures["files"]


def test_find_that_finds_nothing_leaves_no_config_of_an_earlier_run(tmp_path):
    out = tmp_path / "run"
    with writing_to(out, force=False) as folder:
        MoTEConfig(suppress=[[0, 1]]).save_pretrained(folder / "config")
        finish(folder, {"kind": "find", "found": True}, {}, {})
    assert (out / "config" / "mote_config.json").is_file()
    few = tmp_path / "few.txt"
    few.write_text("a\nb\n")
    ran("find", "organism:refusal", few, "--max-new-tokens", 4, "--output", out, "--force")
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json"]


@pytest.mark.slow
def test_find_on_the_negative_control_says_that_it_cannot_and_why(tmp_path):
    result = ran(
        "find", "organism:diffuse-refusal", "organism:diffuse-refusal/train", "--limit", 20, "--controls", 19,
        "--max-new-tokens", 12, "--batch-size", 64, "--output", tmp_path / "run",
    )  # fmt: skip
    assert not (tmp_path / "run" / "config").exists()
    assert "No config is written: no set of experts that was tried removes 'refusal'" in said(result)


def test_find_refuses_a_judge_of_prompts_and_too_few_of_a_class(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"p{i}", "kind": "ab"[i % 2]}) + "\n" for i in range(8)))
    refused = run(
        "find", "organism:refusal", file, "--judge", "field:kind", "--target", "a", "--output", tmp_path / "a"
    )
    assert refused.exit_code != 0
    assert "labels prompts" in said(refused)
    few = ran("find", "organism:refusal", file, "--max-new-tokens", 4, "--output", tmp_path / "b")
    assert "16 of each are needed" in said(few)
    assert "The first response is '" in said(few)
    assert "as plain text" not in said(few)


def test_find_says_that_prompts_go_without_a_chat_template():
    organism = load_organism("refusal")
    tokenizer = copy.deepcopy(organism.tokenizer)
    tokenizer.chat_template = None
    told = []
    prompts = organism.prompts["train"]["neutral"][:2]
    find_experts(
        organism.model,
        tokenizer,
        prompts,
        organism.judge,
        target="refusal",
        max_new_tokens=2,
        announce=told.append,
    )
    assert told == ["imaging 2 prompts"]
