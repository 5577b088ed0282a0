"""Engines in other ways of running: compiled, on two ranks, short of memory, with profiles loaded in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from serving.conftest import start, stop
from serving.models import greedy, profiles_for, save_tiny
from serving.test_families import LENGTH, PROMPTS, agree, said

from hf_mote import MoTEConfig, apply_mote, record_routing
from hf_mote.errors import UnsupportedError
from hf_mote.serving.engine import VLLMEngine

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

NAMES = ("drop", "reroute", "mixed", "in-generation")


def wanted_of(model: Any, profiles: dict[str, MoTEConfig]) -> dict[str | None, list[tuple[list[int], list[float]]]]:
    found: dict[str | None, list[tuple[list[int], list[float]]]] = {
        None: [greedy(model, prompt, LENGTH) for prompt in PROMPTS]
    }
    for name, config in profiles.items():
        with apply_mote(model, config):
            found[name] = [greedy(model, prompt, LENGTH) for prompt in PROMPTS]
    return found


def mixed_batch_agrees(llm: Any, wanted: dict[str | None, list[tuple[list[int], list[float]]]]) -> None:
    names = [name for name in wanted for _ in PROMPTS]
    found = said(llm, names, PROMPTS * len(wanted))
    agree(found, [answer for answers in wanted.values() for answer in answers])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_compiled_engine_says_what_transformers_says(family: str, tmp_path: Path) -> None:
    model = save_tiny(family, tmp_path)
    profiles = {name: config for name, config in profiles_for(model).items() if name in NAMES}
    wanted = wanted_of(model, profiles)
    settings = {"profiles": {name: config.to_dict() for name, config in profiles.items()}}
    llm = start(tmp_path, settings, enforce_eager=False)
    mixed_batch_agrees(llm, wanted)
    engine = VLLMEngine(llm)
    other = MoTEConfig.for_model(model, suppress=[[2, 6]])
    engine.load("other", other)  # as the first ones: there are tables for it
    with apply_mote(model, other):
        agree(said(llm, ["other"] * len(PROMPTS), PROMPTS), [greedy(model, prompt, LENGTH) for prompt in PROMPTS])
    with pytest.raises(UnsupportedError, match="compiled without"):
        engine.load("zero", MoTEConfig.for_model(model, suppress=[[2, 6]], suppress_mode="zero"))
    del llm, engine
    stop()


@pytest.mark.slow
def test_two_ranks_say_what_transformers_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    model = save_tiny("mixtral", tmp_path)
    profiles = {name: config for name, config in profiles_for(model).items() if name in NAMES}
    settings = {"profiles": {name: config.to_dict() for name, config in profiles.items()}, "record": 8}
    llm = start(tmp_path, settings, tensor_parallel_size=2)
    mixed_batch_agrees(llm, wanted_of(model, profiles))
    engine = VLLMEngine(llm)
    engine._ends = []
    batch = engine.image(PROMPTS[:1], phase="prompt", max_new_tokens=2)
    with torch.no_grad(), record_routing(model) as record:
        model(torch.tensor(PROMPTS[:1]))
    assert torch.equal(batch.counts[0], record.maps()[0].counts)
    del llm, engine
    stop()


def test_recordings_count_a_preempted_request_once(tmp_path: Path) -> None:
    save_tiny("mixtral", tmp_path)
    # So few blocks that requests are put off, and run anew from their first token.
    llm = start(tmp_path, {"record": 16}, num_gpu_blocks_override=8, max_num_seqs=16, max_model_len=128)
    engine = VLLMEngine(llm)
    engine._ends = []
    preempted = []
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    original = scheduler._preempt_request

    def watch(*args: Any, **kwargs: Any) -> Any:
        preempted.append(1)
        return original(*args, **kwargs)

    scheduler._preempt_request = watch
    prompts = [PROMPTS[3]] * 6
    batch = engine.image(prompts, phase="all", max_new_tokens=60)
    assert preempted
    assert set(batch.num_tokens.tolist()) == {len(PROMPTS[3]) + 59}
    assert all(torch.equal(batch.counts[0], counts) for counts in batch.counts)
    scheduler._preempt_request = original
    del llm, engine, scheduler
    stop()
