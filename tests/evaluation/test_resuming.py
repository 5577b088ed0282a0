"""Measurements that were stopped go on from their run folder and give what they would have given."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import check_resumes, passes_of
from planted_latents import planted_sae
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import (
    ExpertRanking,
    MoTEConfig,
    SteeringConfig,
    apply_mote,
    evaluate_both_ways,
    evaluate_mote,
    load_organism,
    sweep_mote,
)
from hf_mote.errors import DataError, FileFormatError, ModelMismatchError, UnsupportedError

PROMPTS = [f"{'word ' * (index % 4)}{index}?" for index in range(6)]
FIXED: dict[str, Any] = {"target": True, "max_new_tokens": 3, "batch_size": 3, "progress": False}
SAMPLED = {"generate_kwargs": {"do_sample": True}}
MORE: dict[str, Any] = {
    "unrelated": ["a", "bb", "c d"],
    "texts": ["hello there", "more of it", "x y z"],
    "conversations": [["hi"], ["you"]],
    "strengths": [0.5],
}


class Even:
    """Whether a response is of even length; counts how often it was asked."""

    labels = ("True", "False")

    def __init__(self, *, costly: bool = False, rest: int = 0) -> None:
        self.costly, self.rest = costly, rest

    def __call__(self, response: str) -> bool:
        ASKED.append(response)
        return len(response) % 2 == self.rest


ASKED: list[str] = []


def config(expert: int = 0) -> MoTEConfig:
    return MoTEConfig.for_model(tiny_model("mixtral"), suppress=[[1, expert]])


def measured(folder: Path | None, *, model: Any = None, **options: Any) -> Any:
    given = {"config": config(), "prompts": PROMPTS, "judge": Even(), "num_controls": 2, **FIXED, **SAMPLED, **options}
    parts = [given.pop(name) for name in ("config", "prompts", "judge")]
    model = tiny_model("mixtral") if model is None else model
    return evaluate_mote(model, tiny_tokenizer(), *parts, run_folder=folder, **given)


@pytest.mark.parametrize("kind", ["layer", "usage"])
def test_evaluation_goes_on_to_the_report_of_one_that_nobody_stopped(kind: str, tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    report = check_resumes(partial(measured, model=model, control_kind=kind, **MORE), model, tmp_path)
    assert report == measured(None, control_kind=kind, **MORE)
    assert report.conversations
    assert report.side_effects is not None


def test_evaluation_of_latents_goes_on_with_the_same_sae_alone(tmp_path: Path) -> None:
    organism = load_organism("refusal")
    sae = planted_sae(organism)

    def run(folder: Path | None) -> Any:
        change = SteeringConfig.for_sae(sae, {0: "ablate"}).bind(sae)
        given = {**FIXED, "target": None, "num_controls": 2, "control_kind": "usage"}
        prompts = organism.prompts["heldout"]["sensitive"][:4]
        return evaluate_mote(
            organism.model, organism.tokenizer, change, prompts, organism.judge, run_folder=folder, **given
        )

    check_resumes(run, organism.model, tmp_path, points=2)
    with torch.no_grad():
        sae.W_dec.add_(1)
    with pytest.raises(ModelMismatchError, match="configs_sha256"):
        run(tmp_path / "whole")


def test_sweep_goes_on_to_what_one_that_nobody_stopped_finds(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    score = torch.arange(24, dtype=torch.float64).reshape(3, 8)
    layers, fingerprint = (0, 1, 2), config().fingerprint
    ranking = ExpertRanking(score=score, layers=layers, method="test", target="x", fingerprint=fingerprint)

    def run(folder: Path | None, **options: Any) -> Any:
        given = {"num_experts": [1, 2], "num_controls": 2, **FIXED, **options}
        return sweep_mote(model, tiny_tokenizer(), ranking, PROMPTS, Even(), run_folder=folder, **given)

    check_resumes(run, model, tmp_path, points=2)
    with pytest.raises(ModelMismatchError, match="configs_sha256"):
        run(tmp_path / "whole", num_experts=[1, 3])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"prompts": [*PROMPTS[:-1], "other"]}, "prompts_sha256"),
        ({"prompts": PROMPTS[::-1]}, "prompts_sha256"),
        ({"config": config(1)}, "configs_sha256"),
        ({"judge": Even(rest=1)}, "judge_sha256"),
        ({"judge": lambda response: len(response) % 2 == 0}, "judge_sha256"),
        ({"max_new_tokens": 4}, "max_new_tokens': 3"),
        ({"generate_kwargs": {}}, "do_sample"),
        ({"seed": 1}, "seed: 0"),
        ({"batch_size": 2}, "batch_size"),
        ({"num_controls": 3}, "num_controls"),
        ({"control_kind": "usage"}, "control_kind"),
        ({"strengths": [0.5]}, "strengths"),
        ({"unrelated": ["a"]}, "unrelated_sha256"),
        ({"texts": ["a b"]}, "texts_sha256"),
        ({"conversations": [["a"]]}, "conversations_sha256"),
        ({"model": "other", "allow_other_weights": True}, "weights_sha256"),
        ({"model": "bfloat16"}, "dtype"),
        ({"model": "patched"}, "attached"),
    ],
)
def test_evaluation_of_something_else_is_refused_and_says_what_differs(
    options: dict[str, Any], word: str, tmp_path: Path
) -> None:
    measured(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    model = tiny_model("mixtral", **({"dtype": torch.bfloat16} if options.get("model") == "bfloat16" else {}))
    if options.get("model") == "patched":
        apply_mote(model, config(3))
    if options.get("model") == "other":
        model.lm_head.weight.data *= -1
    with passes_of(model) as passes, pytest.raises(ModelMismatchError, match=word) as caught:
        measured(tmp_path / "run", **{**options, "model": model})
    assert passes.made == 0
    assert "delete it to begin anew" in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_evaluation_by_other_intervals_and_margins_reads_the_same_responses(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    measured(tmp_path, model=model)
    with passes_of(model) as passes:
        found = measured(tmp_path, model=model, confidence=0.8)
    assert passes.made == 0
    assert found == measured(None, model=model, confidence=0.8)


def test_every_damaged_record_is_refused_and_made_again_once_it_is_gone(tmp_path: Path) -> None:
    whole = measured(tmp_path, **MORE, control_kind="usage", judge=Even(costly=True))
    names = {path.name.partition("-")[0] for path in tmp_path.glob("*.safetensors")}
    assert names == {"responses", "use.safetensors", "side", "labels"}
    for kind in ("responses", "responses-conversations-after", "use", "side", "labels"):
        path = sorted(tmp_path.glob(f"{kind}*.safetensors"))[-1]
        content = path.read_bytes()
        for damaged in (content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1])):
            path.write_bytes(damaged)
            with pytest.raises(FileFormatError, match=f"{path.name}.*Delete it"):
                measured(tmp_path, **MORE, control_kind="usage", judge=Even(costly=True))
        path.unlink()
        assert measured(tmp_path, **MORE, control_kind="usage", judge=Even(costly=True)) == whole


def test_labels_of_a_costly_judge_are_kept_and_of_others_given_again(tmp_path: Path) -> None:
    for costly in (False, True):
        ASKED.clear()
        first = measured(tmp_path / str(costly), judge=Even(costly=costly))
        asked = len(ASKED)
        assert measured(tmp_path / str(costly), judge=Even(costly=costly)) == first
        assert len(ASKED) == (asked if costly else 2 * asked)


def test_judge_that_fails_keeps_the_responses(tmp_path: Path) -> None:
    def judge(response: str) -> bool:
        if FAILING:
            raise ValueError("out of order")
        return len(response) % 2 == 0

    model = tiny_model("mixtral")
    FAILING.append(True)
    with pytest.raises(DataError, match="out of order"):
        measured(tmp_path, model=model, judge=judge)
    FAILING.clear()
    with passes_of(model) as passes:
        found = measured(tmp_path, model=model, judge=judge)
    with passes_of(model) as all_passes:
        assert found == measured(None, model=model, judge=judge)
    assert 0 < passes.made < all_passes.made


FAILING: list[bool] = []


def test_evaluation_that_no_later_run_can_be_compared_with_needs_to_do_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="without a run folder"):
        measured(tmp_path / "run", generate_kwargs={"prefix_allowed_tokens_fn": lambda batch, ids: [5, 6]})
    assert not (tmp_path / "run").exists()


def test_wrong_arguments_make_no_run_folder(tmp_path: Path) -> None:
    for wrong in ({"texts": [""]}, {"strengths": "x"}, {"margin": 0.0}, {"confidence": 2.0}, {"num_controls": -1}):
        with pytest.raises((DataError, ValueError)):
            measured(tmp_path / "run", **wrong)


def test_both_ways_go_on_each_in_a_folder_of_its_own(tmp_path: Path) -> None:
    model = tiny_model("mixtral")

    def run(folder: Path | None) -> Any:
        given = {"num_controls": 1, "run_folder": folder, **FIXED}
        return evaluate_both_ways(model, tiny_tokenizer(), config(), PROMPTS[:3], PROMPTS[3:], Even(), **given)

    check_resumes(run, model, tmp_path, points=2)
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["stimulated", "suppressed"]
