"""Causal rankings that were stopped go on from their run folder and give what they would have given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import check_resumes, passes_of
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import (
    ExpertRanking,
    MoTEConfig,
    ablate_experts,
    apply_mote,
    attribute_experts,
    optimize_experts,
    search_experts,
)
from hf_mote.errors import FileFormatError, ModelMismatchError, UnknownNameError, UnsupportedError
from hf_mote.ranking.causal.subsets import random_subsets

PROMPTS = ["a", "bb", "c d", "what?", "x y z"]
SOME = [(layer, expert) for layer in (0, 1) for expert in range(4)]


class LastToken:
    """The logit of a token at the end."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, logits: torch.Tensor, batch: Any) -> torch.Tensor:
        last = batch["attention_mask"].sum(1) - 1
        return logits[torch.arange(len(last)), last, self.token]


def ranked(method: Callable[..., Any], folder: Path | None, *, model: Any = None, **options: Any) -> Any:
    given = {"prompts": PROMPTS, "response": "yes", "baseline_response": "no it is", "batch_size": 2, **options}
    prompts = given.pop("prompts")
    model = tiny_model("mixtral") if model is None else model
    return method(model, tiny_tokenizer(), prompts, run_folder=folder, progress=False, **given)


def same(one: Any, other: Any) -> bool:
    if not isinstance(one, ExpertRanking):
        return bool(one == other)
    grids = [(getattr(one, name), getattr(other, name)) for name in ("score", "low", "high", "p", "q")]
    equal = all((a is None and b is None) or torch.equal(a.nan_to_num(9), b.nan_to_num(9)) for a, b in grids)
    more = ("sufficient", "carriers", "by_seed", "path", "whole_score", "provenance")
    return equal and all(getattr(one, name, None) == getattr(other, name, None) for name in more)


# Far below what these responses get from a model that nothing is known of.
LEARNT = {"penalties": [0.1, 0.01], "num_seeds": 2, "steps": 6, "enough": 0.6, "goal": -60.0}


@pytest.mark.parametrize(
    ("method", "options", "points"),
    [
        (attribute_experts, {"gain": 0.5}, 4),
        (attribute_experts, {"response": None, "baseline_response": None, "logit_score": LastToken(7)}, 2),
        (ablate_experts, {"experts": SOME, "resamples": 99}, 4),
        (search_experts, {"experts": SOME[::2], "max_experts": 3, "least_gain": -100.0}, 3),
        (random_subsets, {"num_subsets": 6}, 2),
    ],
    ids=["attribute", "attribute a score", "ablate", "search", "subsets"],
)
def test_ranking_goes_on_to_what_one_that_nobody_stopped_gives(
    method: Callable[..., Any], options: dict[str, Any], points: int, tmp_path: Path
) -> None:
    model = tiny_model("mixtral")
    check_resumes(partial(ranked, method, model=model, **options), model, tmp_path, same=same, points=points)


def test_optimization_goes_on_in_the_middle_of_learning(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    run = partial(ranked, optimize_experts, model=model, **LEARNT)
    found = check_resumes(run, model, tmp_path, same=same, points=5)
    assert len(found.path) >= 2
    # Whatever was learnt was learnt with the same random numbers.
    names = {path.name.partition("-")[0] for path in (tmp_path / "whole").glob("*.safetensors")}
    assert {"gates", "without"} <= names


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"prompts": PROMPTS[::-1]}, "prompts_sha256"),
        ({"response": "yess"}, "responses_sha256"),
        ({"batch_size": 3}, "batch_size"),
        ({"gain": 0.5}, "gain"),
        ({"model": "other weights"}, "weights_sha256"),
        ({"model": "patched"}, "attached"),
        ({"method": ablate_experts}, "function"),
    ],
)
def test_ranking_of_something_else_is_refused_and_says_what_differs(
    options: dict[str, Any], word: str, tmp_path: Path
) -> None:
    ranked(attribute_experts, tmp_path)
    model = tiny_model("mixtral")
    if options.get("model") == "other weights":
        model.lm_head.weight.data *= -1
    if options.get("model") == "patched":
        apply_mote(model, MoTEConfig.for_model(model, suppress=[[1, 0]]))
    given = {"method": attribute_experts, **options, "model": model}
    method = given.pop("method")
    with passes_of(model) as passes, pytest.raises(ModelMismatchError, match=word):
        ranked(method, tmp_path, **given)
    assert passes.made == 0


def test_damaged_record_is_refused_and_made_again_once_it_is_gone(tmp_path: Path) -> None:
    whole = ranked(optimize_experts, tmp_path, **LEARNT)
    for kind in ("gates", "without"):
        path = sorted(tmp_path.glob(f"{kind}-*"))[0]
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(FileFormatError, match=r"Delete it"):
            ranked(optimize_experts, tmp_path, **LEARNT)
        path.unlink()
        assert same(ranked(optimize_experts, tmp_path, **LEARNT), whole)


def test_wrong_arguments_and_functions_make_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError):
        ranked(ablate_experts, tmp_path / "run", experts=[(9, 9)])
    score = {"response": None, "baseline_response": None, "logit_score": lambda logits, batch: logits[:, 0, 0]}
    with pytest.raises(UnsupportedError, match="without a run folder"):
        ranked(ablate_experts, tmp_path / "run", experts=SOME, **score)
    assert not (tmp_path / "run").exists()
    assert ranked(ablate_experts, None, experts=SOME, resamples=0, **score).method == "ablation"
