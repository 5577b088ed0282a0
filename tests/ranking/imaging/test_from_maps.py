"""Routing recorded by an inference engine gives the rankings that imaging gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import ActivationMap, FTRIResult, MoTEConfig, find_routers, ftri, record_routing
from hf_mote.errors import DataError, UnknownNameError

PROMPTS = ["a", "bb?", "what is it", "go on!", "d e f", "ggg"]
CLASSES = ["x", "y", "x", "y", "y", "x"]


@pytest.fixture(scope="module")
def recorded() -> tuple[FTRIResult, list[Any], Any]:
    """What imaging saw, and the same as arrays `[tokens, decoder layers, k]` of an engine that pads with zeros."""
    model, tokenizer = tiny_model("deepseek_v3"), tiny_tokenizer()
    judge = lambda prompt, response: CLASSES[PROMPTS.index(prompt)]  # noqa: E731
    result = ftri(model, tokenizer, PROMPTS, judge, scope="all", max_new_tokens=5, progress=False)
    assert result.response_tokens is not None
    tables = []
    for prompt, said in zip(PROMPTS, result.response_tokens, strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with record_routing(model, trace=True) as record, torch.no_grad():
            model(torch.tensor([[*ids, *said[:-1]]]))  # the last token is never fed back
        (trace,) = record.traces()
        table = np.zeros((len(ids) + len(said), 3, trace.indices.shape[2]), dtype=np.int16)
        table[:-1, list(trace.layers)] = trace.indices.numpy()
        tables.append(table)
    return result, tables, model


def maps_of(recorded: tuple[FTRIResult, list[Any], Any]) -> list[ActivationMap]:
    result, tables, model = recorded
    number = find_routers(model)[0].num_experts
    return [ActivationMap.from_routed_experts(table, num_experts=number, layers=result.layers) for table in tables]


def test_from_maps_of_engine_arrays_ranks_as_ftri_does(recorded: Any, tmp_path: Any) -> None:
    imaged, _, model = recorded
    config = MoTEConfig.for_model(model)
    result = FTRIResult.from_maps(
        maps_of(recorded), CLASSES, prompts=PROMPTS, responses=imaged.responses, fingerprint=config.fingerprint
    )
    assert torch.equal(result.counts, imaged.counts)
    assert torch.equal(result.num_tokens, imaged.num_tokens)
    for score in ("mean_difference", "risk_difference", "log_odds", "npmi"):
        ours, theirs = (one.rank("x", score=score, resamples=99) for one in (result, imaged))
        for name in ("score", "low", "high", "p", "q"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), (score, name)
    assert result.rank("x", resamples=0).to_config(suppress=2) == imaged.rank("x", resamples=0).to_config(
        suppress=2, provenance=result.rank("x", resamples=0).to_config(suppress=2).provenance
    )
    assert result.stability("x", 3, resamples=9).overlap == imaged.stability("x", 3, resamples=9).overlap
    result.save_pretrained(tmp_path)
    loaded = FTRIResult.from_pretrained(tmp_path)
    assert torch.equal(loaded.counts, result.counts)
    assert (loaded.prompts, loaded.responses, loaded.classes) == (PROMPTS, imaged.responses, CLASSES)


def test_from_maps_without_weights_refuses_to_rank_by_them(recorded: Any) -> None:
    result = FTRIResult.from_maps(maps_of(recorded), CLASSES)
    assert result.prompts == [""] * 6
    for options in ({"value": "weight"}, {"score": "weight_difference"}):
        with pytest.raises(DataError, match="not recorded"):
            result.rank("x", resamples=0, **options)


def test_from_maps_of_equal_prompts_counts_each_once(recorded: Any) -> None:
    maps = maps_of(recorded)
    twice = FTRIResult.from_maps([*maps, maps[0]], [*CLASSES, "x"], prompts=[*PROMPTS, PROMPTS[0]])
    once = FTRIResult.from_maps(maps, CLASSES, prompts=PROMPTS)
    assert torch.equal(twice.rank("x", resamples=0).score, once.rank("x", resamples=0).score)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"classes": CLASSES[:5]}, "classes.*not one for each map"),
        ({"classes": "xyxyyx"}, "classes"),
        ({"classes": [None, *CLASSES[1:]]}, r"classes\[0\].*missing"),
        ({"maps": []}, "maps"),
        ({"maps": [1] * 6}, r"maps\[0\].*must be a map"),
        ({"prompts": PROMPTS[:2]}, "prompts.*not one for each map"),
        ({"responses": [1] * 6}, r"responses\[0\].*must be a text"),
    ],
)
def test_from_maps_refuses_what_does_not_fit(recorded: Any, change: dict[str, Any], word: str) -> None:
    given: dict[str, Any] = {"maps": maps_of(recorded), "classes": CLASSES, **change}
    with pytest.raises(DataError, match=word):
        FTRIResult.from_maps(**given)


def test_from_maps_of_different_models_is_refused(recorded: Any) -> None:
    maps = maps_of(recorded)
    other = ActivationMap(counts=maps[0].counts, weights=maps[0].weights, layers=(0, 1), num_tokens=1.0)
    with pytest.raises(DataError, match=r"maps\[5\].*another model"):
        FTRIResult.from_maps([*maps[:5], other], CLASSES)
    with pytest.raises(UnknownNameError):
        FTRIResult.from_maps(maps, CLASSES, scope="everything")
