"""`hf-mote find`: on every organism it removes the behaviour and leaves the text whole, or says why it cannot."""

import dataclasses
import json

import pytest
from command_runs import ran, run, said

from hf_mote import MoTEConfig, apply_mote, load_organism
from hf_mote.commands.find import _halves, find_experts
from hf_mote.commands.run_files import finish, writing_to
from hf_mote.evaluation.report import EvaluationReport
from hf_mote.organisms import make_variant
from hf_mote.organisms.building.measure import respond
from hf_mote.organisms.variants import VARIANTS

EVERY = [("refusal", "-"), ("language", "-"), ("diffuse-refusal", "-")]
EVERY += [(base, variant) for base in ("refusal", "language") for variant in VARIANTS]


def made(base, variant, seed=0):
    organism = load_organism(base)
    return organism if variant == "-" else make_variant(variant, organism, seed=seed)


def found_in(organism, number=32, controls=40, seed=0):
    train = organism.prompts["train"]
    return find_experts(
        organism.model, organism.tokenizer, [*train["sensitive"][:number], *train["neutral"][:number]],
        organism.judge, target=organism.judge.target, num_controls=controls, max_new_tokens=24, batch_size=64,
        seed=seed, announce=lambda _: None,
    )  # fmt: skip


def without(organism, config):
    """The behaviour left, and whole answers (of right names, in whichever language), on questions held out."""
    asked = organism.prompts["heldout"]["sensitive"][40:70]
    with apply_mote(organism.model, config):
        responses = respond(organism, asked)
    left = sum(organism.judge(one) == organism.judge.target for one in responses) / len(asked)
    ends = sum(one.endswith(organism.answers[prompt][-6:]) for one, prompt in zip(responses, asked, strict=True))
    return left, ends / len(asked)


def check(organism, found):
    """What may be claimed is true; what is not claimed has a reason."""
    if found.config is None:
        assert found.reason
        assert found.verdict.startswith("No config is written: ")
        return
    assert found.report.beats_controls()
    left, whole = without(organism, found.config)
    assert left <= 0.2
    assert whole >= 0.6


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
    # With so few prompts, three of them look as good, and leave junk that the untouched model's answers do not tell.
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
    assert [path.name for path in out.iterdir()] == ["report.json"]


class Unsure:
    """A judge that takes every answer which is no refusal for no answer at all."""

    target = "refusal"

    def __init__(self, judge):
        self.judge = judge

    def __call__(self, response):
        return "refusal" if self.judge(response) == "refusal" else "neither"


def test_find_takes_what_is_no_answer_for_no_example_of_another_class():
    organism = load_organism("refusal")
    organism = dataclasses.replace(organism, judge=Unsure(organism.judge))
    found = found_in(organism, number=16, controls=1)
    assert found.config is None
    assert "16 are of class 'refusal' and 0 of another" in found.verdict


def test_halves_have_no_group_in_common():
    keys = [place // 3 for place in range(60)]  # some groups of one class, some of both
    shown, others = list(range(0, 25)), list(range(25, 60))
    for seed in range(5):
        look, prove, look_others, prove_others = _halves(shown, others, keys, seed)
        assert sorted([*look, *prove]) == shown
        assert sorted([*look_others, *prove_others]) == others
        assert not {keys[place] for place in (*look, *look_others)} & {keys[p] for p in (*prove, *prove_others)}
        assert min(map(len, (look, prove))) >= 10
        assert min(map(len, (look_others, prove_others))) >= 15


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


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("base", "variant"), EVERY)
def test_find_is_right_or_says_that_it_cannot_on_every_organism(base, variant, seed):
    organism = made(base, variant, seed)
    check(organism, found_in(organism, seed=seed))
