"""Odd input to rankings: refused before anything is computed, or ranked as it should be; no raw error, no NaN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor
from transformers import PreTrainedModel

from hf_mote import (
    ExpertRanking,
    MoTEConfig,
    ablate_experts,
    apply_mote,
    attribute_experts,
    ftri,
    search_experts,
)
from hf_mote.errors import ConfigError, DataError, HFMoTEError, UnknownNameError, UnsupportedError
from hf_mote.evaluation.side_effects import side_effects
from hf_mote.files import read_tensors, write_tensors
from hf_mote.judges.language_model import LMJudge
from hf_mote.statistics.contrast import contrast
from hf_mote.statistics.scores import SCORES
from hf_mote.statistics.stability import top_stability

PROMPTS = ["hello", "what is it?", "go"]
EXPERTS = [(1, 0), (2, 3), (1, 4)]


def attribute(model: PreTrainedModel, *responses: Any, **options: Any) -> ExpertRanking:
    given = responses or (() if "logit_score" in options else ("yes", "nope!"))
    return attribute_experts(
        model, tiny_tokenizer(), PROMPTS, *given, **{"resamples": 0, "progress": False, **options}
    )


def ablate(model: PreTrainedModel, *responses: Any, **options: Any) -> ExpertRanking:
    given = responses or (() if "logit_score" in options else ("yes", "nope!"))
    fixed = {"resamples": 0, "progress": False, "experts": EXPERTS}
    return ablate_experts(model, tiny_tokenizer(), PROMPTS, *given, **{**fixed, **options})


def search(model: PreTrainedModel, *responses: Any, **options: Any) -> Any:
    given = responses or (() if "logit_score" in options else ("yes", "nope!"))
    fixed = {"max_experts": 2, "progress": False, "experts": EXPERTS}
    return search_experts(model, tiny_tokenizer(), PROMPTS, *given, **{**fixed, **options})


every_ranking = pytest.mark.parametrize("rank", [attribute, ablate, search])


def assert_untouched(model: PreTrainedModel) -> None:
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def model() -> PreTrainedModel:
    return tiny_model("mixtral")


def with_dropout(model: PreTrainedModel) -> PreTrainedModel:
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    return model.train()


def checkpointed(model: PreTrainedModel, *settings: dict[str, bool]) -> None:
    # Its name from transformers 5.23 on, and the one before.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    getattr(model, next(name for name in names if hasattr(model, name)))(*settings)


# The model.


@every_ranking
def test_rankings_of_a_model_with_dropout_are_refused_and_draw_nothing(rank: Any, model: PreTrainedModel) -> None:
    with_dropout(model)
    state = torch.get_rng_state()
    with pytest.raises(UnsupportedError, match=r"draws random numbers.*training mode\). Call model\.eval"):
        rank(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert_untouched(model)
    rank(model.eval())  # the remedy


def test_side_effects_and_judges_of_a_model_with_dropout_are_refused_and_draw_nothing(model: PreTrainedModel) -> None:
    with_dropout(model)
    state = torch.get_rng_state()
    config = MoTEConfig.for_model(model, suppress=[[1, 0]])
    for act in (
        lambda: side_effects(model, tiny_tokenizer(), config, ["a text"], progress=False),
        lambda: LMJudge(model, tiny_tokenizer(), "Is it?")("a", "b"),
    ):
        with pytest.raises(UnsupportedError, match="draws random numbers"):
            act()
        assert torch.equal(torch.get_rng_state(), state)
    assert_untouched(model)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3"])
def test_attribute_experts_in_training_mode_without_dropout_is_the_same(
    name: str, frozen: bool, checkpointing: bool
) -> None:
    expected = attribute(tiny_model(name)).matrix()
    model = tiny_model(name).train().requires_grad_(not frozen)
    if checkpointing:
        checkpointed(model)
    hooks = [len(module._forward_hooks) for module in model.modules()]  # checkpointing may have one of its own
    assert torch.equal(attribute(model).matrix(), expected)
    assert model.training
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attribute_experts_under_reentrant_checkpointing_is_refused_and_says_why(model: PreTrainedModel) -> None:
    checkpointed(model.train(), {"use_reentrant": True})
    with pytest.raises(UnsupportedError, match=r"use_reentrant=True\. .*switch checkpointing off"):
        attribute(model)
    attribute(model.eval())


@every_ranking
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rankings_of_logits_that_are_not_finite_are_refused(rank: Any, value: float, model: PreTrainedModel) -> None:
    with (
        model.lm_head.register_forward_hook(lambda module, args, output: torch.full_like(output, value)),
        pytest.raises(DataError, match=r"_experts\.prompts\[0\]: its score is not finite"),
    ):
        rank(model)
    assert_untouched(model)


def test_rankings_under_a_patch_are_of_the_patched_model(model: PreTrainedModel) -> None:
    plain = ablate(model, experts=[(1, 0), (2, 0)])
    with apply_mote(model, MoTEConfig(suppress=[[1, 0]], suppress_mode="zero")):
        for rank in (attribute, ablate):
            found = rank(model, **({"experts": [(1, 0), (2, 0)]} if rank is ablate else {}))
            assert float(found.matrix()[1, 0]) == 0  # suppressed already
            assert float(found.matrix()[2, 0]) != float(plain.matrix()[2, 0])
    assert torch.equal(ablate(model, experts=[(1, 0), (2, 0)]).matrix(), plain.matrix())


# transformers 5.19 warns of it in generate, needlessly.
@pytest.mark.filterwarnings("ignore:You are calling .generate.. with the `input_ids` being on a device:UserWarning")
@pytest.mark.parametrize(
    "measure",
    [
        lambda model: attribute(model).matrix().tolist(),
        lambda model: ablate(model).matrix().tolist(),
        lambda model: search(model).scores,
        lambda model: side_effects(model, tiny_tokenizer(), MoTEConfig(suppress=[[1, 0]]), ["a text"], progress=False),
        lambda model: LMJudge(model, tiny_tokenizer(), "Is it?")("a", "b"),
        lambda model: ftri(model, tiny_tokenizer(), PROMPTS, len, max_new_tokens=3, progress=False).counts.tolist(),
    ],
    ids=["attribute_experts", "ablate_experts", "search_experts", "side_effects", "LMJudge", "ftri"],
)
def test_measurements_of_an_offloaded_model_are_the_same(measure: Any) -> None:
    offloaded = cpu_offload(tiny_model("mixtral"))
    assert offloaded.device.type == "meta"
    assert measure(offloaded) == measure(tiny_model("mixtral"))


# What they are asked.


@every_ranking
@pytest.mark.parametrize(
    ("responses", "place"),
    [
        (("yes", "yes"), "baseline_response: is the response itself"),
        ((["a", "b", "c"], ["a", "b", "c"]), "baseline_response: is the response itself"),
        (("yes", "\n"), r"baseline_response\[0\]: not a response"),
        (("yes", None), "needs response and baseline_response"),
        (("yes", 3), "baseline_response: not a response"),
        (("yes", ["no", 3, "no"]), r"baseline_response\[1\]: not a response"),
    ],
)
def test_rankings_of_odd_responses_are_refused(
    rank: Any, responses: tuple[Any, ...], place: str, model: PreTrainedModel
) -> None:
    with pytest.raises((DataError, ConfigError), match=place):
        rank(model, *responses)
    assert_untouched(model)


@every_ranking
def test_rankings_of_text_without_tokens_are_refused(rank: Any, model: PreTrainedModel, monkeypatch: Any) -> None:
    kind = type(tiny_tokenizer())
    real = kind.__call__

    def forgetful(self: Any, text: Any, *args: Any, **kwargs: Any) -> Any:
        found = real(self, text, *args, **kwargs)
        if isinstance(text, str):
            found["input_ids"] = [] if "nope" in text else found["input_ids"]
        else:
            found["input_ids"] = [
                [] if "nope" in one else ids for one, ids in zip(text, found["input_ids"], strict=True)
            ]
        return found

    monkeypatch.setattr(kind, "__call__", forgetful)
    with pytest.raises(DataError, match=r"baseline_response\[0\]: has no token that the tokenizer knows .got 'nope!'"):
        rank(model)
    with pytest.raises(DataError, match=r"prompts\[1\]: has no token"):
        attribute_experts(model, tiny_tokenizer(), ["a", "nope"], "yes", "no", progress=False)


def test_rankings_of_one_response_that_is_the_same_in_both_are_made(model: PreTrainedModel) -> None:
    found = ablate(model, ["yes", "yes", "yes"], ["yes", "no", "nope!"])
    assert found.target == "yes"
    assert float(found.matrix().abs().max()) > 0


@pytest.mark.parametrize(
    "options",
    [{"resamples": -1}, {"resamples": 1.5}, {"confidence": 0}, {"confidence": "0.9"}, {"seed": -1}, {"seed": True}],
)
@pytest.mark.parametrize("rank", [attribute, ablate])
def test_rankings_refuse_settings_before_the_model_runs(
    rank: Any, options: dict[str, Any], model: PreTrainedModel
) -> None:
    with (
        model.register_forward_pre_hook(lambda module, args: pytest.fail("the model ran")),
        pytest.raises(ConfigError, match=rf"_experts\.{next(iter(options))}"),
    ):
        rank(model, **options)


@pytest.mark.parametrize("rank", [ablate, search])
@pytest.mark.parametrize("experts", [[(1, 2.7)], [("1", "0")], [(1, 0, 1)], [1, 0], 5, ["10"], [None]])
def test_rankings_of_what_are_no_experts_are_refused(rank: Any, experts: Any, model: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match=r"_experts\.experts: not an expert"):
        rank(model, experts=experts)


@pytest.mark.parametrize(
    "experts", [np.array([[1, 0], [2, 3]]), torch.tensor([[1, 0], [2, 3]]), {(1, 0): 1, (2, 3): 1}]
)
def test_ablate_experts_takes_experts_in_any_form_of_whole_numbers(experts: Any, model: PreTrainedModel) -> None:
    expected = ablate(model, experts=[(1, 0), (2, 3)]).matrix()
    assert torch.equal(ablate(model, experts=experts).matrix(), expected)


@pytest.mark.parametrize("least_gain", [math.nan, math.inf, "1", None, True])
def test_search_experts_least_gain_that_is_no_number_is_refused(least_gain: Any, model: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match="least_gain"):
        search(model, least_gain=least_gain)


@every_ranking
def test_rankings_of_a_score_that_is_none_are_refused(rank: Any, model: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match="logit_score: cannot be called"):
        rank(model, logit_score=3)
    with pytest.raises(DataError, match=r"prompts\[1\]: its score is not finite .got inf"):
        rank(model, logit_score=lambda logits, batch: logits[:, 0, 0] + torch.tensor([0.0, math.inf, 0.0]))
    assert_untouched(model)


def test_attribute_experts_of_a_score_without_a_derivative_is_refused(model: PreTrainedModel) -> None:
    with pytest.raises(UnsupportedError, match="no derivative.*without detach"):
        attribute(model, logit_score=lambda logits, batch: logits.detach()[:, 0, 0])
    assert_untouched(model)


def test_rankings_say_the_unit_of_their_score(model: PreTrainedModel) -> None:
    def score(logits: Tensor, batch: Any) -> Tensor:
        return logits[:, 0, 5]

    for rank in (attribute, ablate):
        assert rank(model).provenance["unit"] == "nats"
        assert rank(model, logit_score=score).provenance["unit"] == "the score's"


# Maps of classes.

COUNTS = st.sampled_from([0.0, 0.0, 1.0, 2.0, 3.0, 1e6])


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    score=st.sampled_from(sorted(SCORES)),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    paired=st.booleans(),
)
def test_contrast_of_any_counts_is_a_ranking(
    data: st.DataObject, score: str, sizes: tuple[int, int], paired: bool
) -> None:
    prompts = sum(sizes)
    values = data.draw(arrays(np.float64, (prompts, 2, 3), elements=COUNTS))
    tokens = values.sum(axis=(1, 2)) * data.draw(st.sampled_from([1.0, 0.5, 3.0]))
    target = np.arange(prompts) < sizes[0]
    rest = "paired" if paired and sizes[0] == sizes[1] else "pooled"
    found = contrast(values, target, score=score, tokens=tokens, rest=rest, resamples=19)
    assert found.p is not None
    assert found.q is not None
    assert (found.p > 0).all()
    assert (found.p <= found.q).all()
    ranking = ExpertRanking.from_contrast(found, (0, 3), method="ftri", target="a")
    assert len(set(ranking.top(6))) == 6
    never = (values == 0).all(axis=0)
    assert (found.score[never] == 0).all()
    assert (found.p[never] == 1).all()


def test_stability_of_experts_that_tie_is_chance() -> None:
    values = np.ones((20, 2, 10))
    found = top_stability(values, np.arange(20) < 10, 4, resamples=400)
    assert found.chance == 0.2
    assert found.overlap == pytest.approx(0.2, abs=0.03)
    assert float(found.frequency.max()) < 0.4


def test_stability_of_a_clear_expert_among_ties_is_whole() -> None:
    values = np.ones((20, 2, 10))
    values[:10, 1, 7] = 5
    found = top_stability(values, np.arange(20) < 10, 1)
    assert (found.overlap, found.frequency[1, 7]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({"n": 0}, ConfigError, "n: must be a whole number"),
        ({"n": True}, ConfigError, "n: must be a whole number"),
        ({"n": 2.0}, ConfigError, "n: must be a whole number"),
        ({"n": 7}, ConfigError, "n: must be a whole number"),
        ({"resamples": 0}, ConfigError, "resamples"),
        ({"resamples": 2.5}, ConfigError, "resamples"),
        ({"seed": -1}, ConfigError, "seed"),
        ({"score": "log_odd"}, UnknownNameError, "Did you mean 'log_odds'"),
        ({"score": "log_odds"}, DataError, "needs the tokens"),
        ({"tokens": [1.0]}, DataError, "tokens"),
        ({"values": np.full((6, 2, 3), np.nan)}, DataError, "not finite"),
        ({"values": np.ones((6, 6))}, DataError, "wrong shape"),
        ({"is_target": [1, 1, 1, 0, 0, 0]}, DataError, "does not mark"),
        ({"is_target": [True] * 6}, DataError, "rest is empty"),
        ({"is_target": [True] * 5 + [False]}, DataError, "too few prompts"),
    ],
)
def test_stability_of_odd_input_is_refused(options: dict[str, Any], kind: type[HFMoTEError], word: str) -> None:
    fixed = {"values": np.ones((6, 2, 3)), "is_target": [True] * 3 + [False] * 3, "n": 2}
    with pytest.raises(kind, match=word):
        top_stability(**{**fixed, **options})


# Files.

GRIDS = arrays(np.float64, (2, 3), elements=st.floats(allow_nan=False, allow_infinity=False))
TEXT = st.text(st.characters(codec="utf-8"))


@settings(max_examples=40, deadline=None)
@given(
    score=GRIDS,
    probabilities=arrays(np.float64, (2, 3), elements=st.floats(0, 1) | st.just(math.nan)),
    method=TEXT,
    target=TEXT,
    provenance=st.dictionaries(TEXT, TEXT | st.integers() | st.floats(allow_nan=False, allow_infinity=False)),
)
def test_ranking_of_any_numbers_and_text_is_saved_and_loaded(
    tmp_path_factory: pytest.TempPathFactory,
    score: np.ndarray,
    probabilities: np.ndarray,
    method: str,
    target: str,
    provenance: dict[str, Any],
) -> None:
    folder = tmp_path_factory.mktemp("ranking")
    grid = torch.from_numpy(probabilities)
    ends = torch.from_numpy(np.where(np.isnan(probabilities), np.nan, score))
    saved = ExpertRanking(
        score=torch.from_numpy(score),
        layers=(1, 4),
        method=method,
        target=target,
        low=ends,
        high=ends.clone(),
        p=grid,
        q=grid,
        confidence=0.9,
        provenance=provenance,
    )
    saved.save_pretrained(folder)
    loaded = ExpertRanking.from_pretrained(folder)
    for name in ("score", "low", "high", "p", "q"):
        assert np.array_equal(getattr(loaded, name).numpy(), getattr(saved, name).numpy(), equal_nan=True)
    assert (loaded.method, loaded.target, loaded.provenance) == (method, target, provenance)
    assert loaded.top(6) == saved.top(6)


@pytest.mark.parametrize(
    ("field", "value"), [("target", None), ("target", 3), ("method", ["ftri"]), ("confidence", 2)]
)
def test_ranking_file_with_a_field_of_another_kind_is_refused(tmp_path: Any, field: str, value: object) -> None:
    grid = torch.zeros(2, 3, dtype=torch.float64)
    ranking = ExpertRanking(score=grid, layers=(1, 2), method="ftri", target="a", low=grid, high=grid, confidence=0.9)
    ranking.save_pretrained(tmp_path)
    path = tmp_path / "expert_ranking.safetensors"
    tensors, metadata = read_tensors(path, kind="expert_ranking")
    write_tensors(path, tensors, {**metadata, field: value})
    with pytest.raises(HFMoTEError, match=field):
        ExpertRanking.from_pretrained(tmp_path)
    write_tensors(path, {**tensors, "low": grid + 1}, metadata)
    with pytest.raises(HFMoTEError, match="low: is above high"):
        ExpertRanking.from_pretrained(tmp_path)


@pytest.mark.parametrize("count", [2.5, "2", None, [1], -1, 7])
def test_ranking_to_config_of_what_is_no_number_is_refused(count: Any) -> None:
    ranking = ExpertRanking(score=torch.ones(2, 3, dtype=torch.float64), layers=(1, 2), method="ftri", target="a")
    with pytest.raises(ConfigError, match="to_config|top"):
        ranking.to_config(suppress=count)
    assert len(ranking.to_config(suppress=np.int64(2)).suppress) == 2
