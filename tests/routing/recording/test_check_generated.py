"""After `generate`, what was recorded must add up to what came out; and threads that share a model share no counts."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
import torch
from routing_cases import GREEDY
from tiny_models import tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from hf_mote import record_routing
from hf_mote.errors import RouterContractError, UnsupportedError
from hf_mote.maps.activation_map import ActivationMap

PROMPT = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.fixture(params=["mixtral", "deepseek_v3"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.mark.parametrize("how", [{}, {"use_cache": False}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
@pytest.mark.parametrize("phase", ["all", "prompt", "generation"])
def test_check_generated_passes_what_adds_up(model: PreTrainedModel, how: dict, phase: str) -> None:
    with record_routing(model, phase=phase, eos_token_id=[]) as record:
        for new in (1, 4):
            output = model.generate(PROMPT, max_new_tokens=new, **{**GREEDY, **how})
            record.check_generated(output, PROMPT.shape[1])


def test_check_generated_refuses_passes_that_do_not_add_up(model: PreTrainedModel) -> None:
    with record_routing(model, eos_token_id=[]) as record:
        model.generate(PROMPT, max_new_tokens=3, **GREEDY)
        with pytest.raises(RouterContractError, match="got 5 prompt and 2 generated tokens, expected 5 and 3"):
            record.check_generated(torch.zeros(1, 9), 5)
        with pytest.raises(RouterContractError, match="expected 4 and 3"):
            record.check_generated(torch.zeros(1, 8), 4)


def test_check_generated_before_anything_ran_is_refused(model: PreTrainedModel) -> None:
    with record_routing(model) as record, pytest.raises(RouterContractError, match="do not add up"):
        record.check_generated(PROMPT, 4)


@pytest.fixture
def switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def known_by(found: ActivationMap) -> tuple[float, ...]:
    return (found.num_tokens, *found.counts.flatten().tolist())


@pytest.mark.usefixtures("switching_often")
@pytest.mark.parametrize("phase", ["all", "prompt", "generation"])
def test_record_routing_in_threads_counts_what_each_would_alone(model: PreTrainedModel, phase: str) -> None:
    prompts = [torch.randint(2, 90, (2, length), generator=torch.Generator().manual_seed(length)) for length in (4, 6)]
    failures: list[BaseException] = []

    def run(prompt: Tensor) -> None:
        try:
            for _ in range(3):
                model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, **GREEDY)
        except BaseException as error:
            failures.append(error)

    with record_routing(model, phase=phase, eos_token_id=[]) as alone:
        for prompt in prompts:
            run(prompt)
    with record_routing(model, phase=phase, eos_token_id=[]) as record:
        threads = [threading.Thread(target=run, args=(prompt,)) for prompt in prompts * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert sorted(map(known_by, record.maps())) == sorted(map(known_by, alone.maps() * 2))


def test_record_routing_prompt_in_equal_chunks_is_refused_at_once(model: PreTrainedModel) -> None:
    with record_routing(model), pytest.raises(UnsupportedError, match="a chunk of a long prompt"):
        model.generate(PROMPT, max_new_tokens=3, prefill_chunk_size=2, **GREEDY)
