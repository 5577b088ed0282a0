"""A run folder goes on with the same run alone: same weights, dtype, interventions and generation config."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from hf_mote import FTRIResult, MoTEConfig, apply_mote, ftri, record_routing
from hf_mote.errors import ModelMismatchError, UnsupportedError
from hf_mote.runs.attached import attached_to
from hf_mote.runs.identity import plain
from hf_mote.runs.weights_digest import weights_digest

PROMPTS = ["a", "bb", "what?"]


class Favours(LogitsProcessor):
    """Makes a token likelier."""

    def __init__(self, token: int) -> None:
        self.token = torch.tensor([token])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_add(1, self.token, torch.ones(len(scores), 1))


def run(model: PreTrainedModel, folder: Path | None, **options: Any) -> FTRIResult:
    judge = lambda response: str(len(response) % 2)  # noqa: E731
    fixed = {"max_new_tokens": 3, "batch_size": 2, "progress": False}
    return ftri(model, tiny_tokenizer(), PROMPTS, judge, run_folder=folder, **fixed, **options)  # type: ignore[arg-type]


def scaled_expert(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.experts.down_proj.data[3] *= 2


def negated_head(model: PreTrainedModel) -> None:
    model.lm_head.weight.data *= -1


def penalty(model: PreTrainedModel) -> None:
    model.generation_config.repetition_penalty = 5.0


def bfloat16(model: PreTrainedModel) -> None:
    model.to(torch.bfloat16)


def patched(model: PreTrainedModel) -> None:
    apply_mote(model, MoTEConfig.for_model(model, suppress=[[1, 0]]))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (scaled_expert, "weights_sha256"),
        (negated_head, "weights_sha256"),
        (penalty, "repetition_penalty"),
        (bfloat16, "dtype: float32"),
        (patched, "attached"),
    ],
)
def test_ftri_goes_on_in_no_folder_of_another_model(
    change: Callable[[PreTrainedModel], None], word: str, tmp_path: Path
) -> None:
    plain_result = run(tiny_model("mixtral"), tmp_path / "plain")
    other = tiny_model("mixtral")
    change(other)
    with pytest.raises(ModelMismatchError, match=word):
        run(other, tmp_path / "plain")
    changed = run(other, tmp_path / "other")
    with pytest.raises(ModelMismatchError, match=word.partition(":")[0]):
        run(tiny_model("mixtral"), tmp_path / "other")
    assert torch.equal(run(other, tmp_path / "other").counts, changed.counts)
    assert torch.equal(run(tiny_model("mixtral"), tmp_path / "plain").counts, plain_result.counts)


def test_ftri_goes_on_with_the_same_intervention_and_not_with_it_switched_off(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    config = MoTEConfig.for_model(model, suppress=[[1, 0]])
    with apply_mote(model, config):
        first = run(model, tmp_path)
    with apply_mote(model, config) as handle:
        assert torch.equal(run(model, tmp_path).counts, first.counts)
        handle.active = False
        with pytest.raises(ModelMismatchError, match="attached"):
            run(model, tmp_path)


def test_ftri_goes_on_with_equal_logits_processors_alone(tmp_path: Path) -> None:
    def given(token: int) -> dict[str, Any]:
        return {"generate_kwargs": {"logits_processor": LogitsProcessorList([Favours(token)])}}

    first = run(tiny_model("mixtral"), tmp_path, **given(7))
    assert run(tiny_model("mixtral"), tmp_path, **given(7)).responses == first.responses
    with pytest.raises(ModelMismatchError, match="logits_processor"):
        run(tiny_model("mixtral"), tmp_path, **given(8))


@pytest.mark.parametrize("value", [lambda batch, ids: [1], LogitsProcessor, object(), torch.Generator()])
def test_ftri_refuses_what_no_later_run_can_be_compared_by(value: object, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="run folder"):
        run(tiny_model("mixtral"), tmp_path / "run", generate_kwargs={"prefix_allowed_tokens_fn": value})
    assert not (tmp_path / "run").exists()


def test_ftri_with_an_unknown_hook_needs_to_do_without_a_folder(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    handle = model.model.layers[0].register_forward_hook(lambda module, args, output: None)
    with pytest.raises(UnsupportedError, match=r"model\.layers\.0.*<lambda>"):
        run(model, tmp_path / "run")
    assert len(run(model, None).classes) == 3
    handle.remove()
    assert len(run(model, tmp_path / "run").classes) == 3


def test_run_folder_of_an_older_version_is_refused_as_such(tmp_path: Path) -> None:
    run(tiny_model("mixtral"), tmp_path)
    manifest = json.loads((tmp_path / "run.json").read_text())
    del manifest["format"]
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelMismatchError, match="another version"):
        run(tiny_model("mixtral"), tmp_path)


def test_attached_to_tells_interventions_and_leaves_recordings_out() -> None:
    model = tiny_model("mixtral")
    assert attached_to("x", model) == []
    with record_routing(model):
        assert attached_to("x", model) == []
    one, other = (MoTEConfig.for_model(model, suppress=[[1, expert]]) for expert in (0, 1))
    told = []
    for config in (one, one, other):
        with apply_mote(model, config):
            told.append(attached_to("x", model))
    assert told[0] == told[1] != told[2]
    assert len(told[0]) == 1
    assert told[0][0][2] is True
    model.lm_head.forward = lambda hidden: hidden  # type: ignore[method-assign]
    with pytest.raises(UnsupportedError, match="lm_head"):
        attached_to("x", model)


def test_weights_digest_tells_weights_dtypes_and_buffers_apart() -> None:
    seen = {weights_digest(tiny_model(name)) for name in ("mixtral", "deepseek_v3")}
    assert weights_digest(tiny_model("mixtral")) in seen
    model = tiny_model("deepseek_v3")
    for name, buffer in model.named_buffers():
        if "e_score_correction_bias" in name:
            buffer += 1
    seen.add(weights_digest(model))
    seen.add(weights_digest(tiny_model("mixtral", dtype=torch.bfloat16)))
    assert len(seen) == 4


def test_plain_is_equal_for_equal_objects_alone() -> None:
    assert plain("x", {"a": (1, [2.5, None]), "b": True}) == {"a": [1, [2.5, None]], "b": True}
    assert plain("x", Favours(3)) == plain("x", Favours(3)) != plain("x", Favours(4))
    assert plain("x", {1, 2}) == plain("x", {2, 1}) != plain("x", {1})
    assert json.loads(json.dumps(plain("x", torch.eye(2)))) == plain("x", torch.eye(2))
    assert "0x" not in json.dumps(plain("x", LogitsProcessorList([Favours(3)])))
