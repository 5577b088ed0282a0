"""Continuous batching puts many requests into one row: refused where rows or phases matter, right elsewhere."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers
from tiny_models import tiny_model
from transformers import GenerationConfig, PreTrainedModel

from hf_mote import MoTEConfig, apply_mote, record_routing
from hf_mote.errors import UnsupportedError

PROMPTS = [[3, 4, 5, 6, 7], [8, 9, 10]]
NEEDS_ROWS: dict[str, Any] = {
    "record": lambda model: record_routing(model),
    "prompt": lambda model: apply_mote(model, MoTEConfig(suppress=[[1, 2]], scope="prompt")),
    "generation": lambda model: apply_mote(model, MoTEConfig(suppress=[[1, 2]], scope="generation")),
    "answer": lambda model: apply_mote(model, MoTEConfig(suppress=[[1, 2]], scope="answer", thinking_tokens=[5, 6])),
    "rows": lambda model: apply_mote(model, [None, MoTEConfig(suppress=[[1, 2]])]),
}


def answers(model: PreTrainedModel) -> list[list[int]]:
    how = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # A small cache: by default it takes a share of the machine's memory.
    small = transformers.ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    found = model.generate_batch(PROMPTS, generation_config=how, continuous_batching_config=small)
    assert [answer.error for answer in found.values()] == [None, None]
    return [answer.generated_tokens for answer in found.values()]


@pytest.fixture
def model() -> PreTrainedModel:
    found = tiny_model("mixtral")
    if not hasattr(transformers, "ContinuousBatchingConfig"):
        pytest.skip("this transformers has no ContinuousBatchingConfig")
    return found


@pytest.mark.parametrize("needs", NEEDS_ROWS)
def test_generate_batch_is_refused_in_the_callers_thread_where_rows_or_phases_matter(
    model: PreTrainedModel, needs: str
) -> None:
    plain = answers(model)
    with NEEDS_ROWS[needs](model) as handle:
        for entrance in (lambda: answers(model), model.init_continuous_batching):
            with pytest.raises(UnsupportedError, match="continuous batching packs the tokens .* Use generate with"):
                entrance()
        handle.active = False
        assert answers(model) == plain
    assert answers(model) == plain
    assert not [name for name in vars(model) if "batch" in name]


def test_generate_batch_under_one_config_for_all_tokens_equals_generate(model: PreTrainedModel) -> None:
    config = MoTEConfig(suppress=[[1, 2], [2, 0], [2, 1]])
    with apply_mote(model, config):
        batched = answers(model)
        for prompt, found in zip(PROMPTS, batched, strict=True):
            alone = model.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False, eos_token_id=None)
            assert found == alone[0, len(prompt) :].tolist()
    assert batched != answers(model)


def test_copies_and_pickles_of_a_recorded_model_batch_as_the_plain_model(model: PreTrainedModel) -> None:
    plain = answers(model)
    with record_routing(model):
        copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in copies:
        assert answers(other) == plain
        assert other.generate_batch.__self__ is other


def test_record_routing_while_a_manager_runs_is_refused(model: PreTrainedModel) -> None:
    small = transformers.ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    manager = model.init_continuous_batching(continuous_batching_config=small)
    model._kept = manager
    manager.start()
    try:
        with pytest.raises(UnsupportedError, match="continuous batching"):
            record_routing(model)
    finally:
        manager.stop(block=True)
        del model._kept
    with record_routing(model):
        pass
