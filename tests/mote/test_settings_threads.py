"""Models that run in several threads at once: each pass keeps to its own tokens, each recording to its own texts.

The threads run in lockstep, meeting at every decoder layer, so that their passes overlap for certain.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import torch
from caches import cache_of, taking
from tiny_models import tiny_model
from torch import nn
from transformers import PreTrainedModel

from hf_mote import MoTEConfig, apply_mote, record_routing

OPENS, CLOSES = 90, 91
EXPERTS = [[layer, expert] for layer in (1, 2) for expert in (0, 3, 5)]
REROUTE = MoTEConfig(suppress=EXPERTS, suppress_mode="reroute")
BIAS = MoTEConfig(bias=[[1, 4, 2.0], [2, 6, -3.0]])
ONE = torch.tensor([[10, 11, 12, 13, 14, 15, 16, 17]])
OTHER = torch.tensor([[40, 41, 42, 43, 44, 45, 46, 47]])
T = TypeVar("T")


@pytest.fixture(params=["deepseek_v3", "mixtral"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@contextmanager
def lockstep(*models: nn.Module) -> Iterator[None]:
    """Make two threads wait for each other before every decoder layer."""
    meeting = threading.Barrier(2)
    layers = {layer for model in models for layer in model.model.layers}

    def meet(*_: object) -> None:
        meeting.wait(timeout=10)

    handles = [layer.register_forward_pre_hook(meet) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def at_once(*acts: Callable[[], T]) -> list[T]:
    """Return what the acts return, each in a thread of its own; raise what one of them raised."""
    found: dict[int, T] = {}
    failures: list[BaseException] = []

    def work(place: int, act: Callable[[], T]) -> None:
        try:
            with torch.no_grad():
                found[place] = act()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=work, args=(place, act)) for place, act in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [found[place] for place in range(len(acts))]


def run(model: PreTrainedModel, ids: torch.Tensor, **how: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, **how).logits


def test_apply_mote_two_models_in_two_threads_keep_their_own_configs(model: PreTrainedModel) -> None:
    twin = copy.deepcopy(model)

    def patched(which: PreTrainedModel, config: MoTEConfig, ids: torch.Tensor) -> torch.Tensor:
        with apply_mote(which, config):
            return run(which, ids)

    alone = [patched(model, REROUTE, ONE), patched(twin, BIAS, ONE)]
    with lockstep(model, twin):
        together = at_once(lambda: patched(model, REROUTE, ONE), lambda: patched(twin, BIAS, ONE))
    assert torch.equal(together[0], alone[0])
    assert torch.equal(together[1], alone[1])
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("scope", ["prompt", "generation"])
def test_apply_mote_one_model_in_two_threads_tells_their_phases_apart(model: PreTrainedModel, scope: str) -> None:
    """As many rows in both, so that nothing but the thread tells them apart: eight prompt tokens, and a batch of eight
    texts that get a token each."""
    batch = torch.arange(24, 48).view(8, 3)

    def prompt() -> torch.Tensor:
        run(model, OTHER)  # in step with the other thread's prompt
        return run(model, ONE)

    def step() -> torch.Tensor:
        cache = cache_of(model(batch[:, :2], use_cache=True))
        return run(model, batch[:, 2:], **taking(model, cache))

    with torch.no_grad(), apply_mote(model, MoTEConfig(suppress=EXPERTS, suppress_mode="reroute", scope=scope)):
        alone = [prompt(), step()]
        with lockstep(model):
            together = at_once(prompt, step)
    assert torch.equal(together[0], alone[0])
    assert torch.equal(together[1], alone[1])


@pytest.mark.parametrize("scope", ["thinking", "answer"])
def test_apply_mote_one_model_in_two_threads_carries_the_parts_of_each_text(
    model: PreTrainedModel, scope: str
) -> None:
    texts = [torch.tensor([[OPENS, 5, 6, 7, 8, 9]]), torch.tensor([[OPENS, 5, CLOSES, 7, 8, 9]])]

    def written(ids: torch.Tensor) -> torch.Tensor:
        options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 8}
        return model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    config = MoTEConfig(suppress=EXPERTS, suppress_mode="reroute", scope=scope, thinking_tokens=[OPENS, CLOSES])
    with apply_mote(model, config):
        alone = [written(text) for text in texts]
        with lockstep(model):
            together = at_once(*(lambda text=text: written(text) for text in texts))
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one, other)


def test_apply_mote_first_forwards_in_two_threads_at_once_raise_no_false_alarm(model: PreTrainedModel) -> None:
    with lockstep(model), apply_mote(model, REROUTE):
        patched = at_once(lambda: run(model, ONE), lambda: run(model, ONE))
    native = run(model, ONE)
    assert torch.equal(patched[0], patched[1])
    assert not torch.equal(patched[0], native)


def test_apply_mote_two_threads_patching_one_model_get_the_sum_of_both(model: PreTrainedModel) -> None:
    """An intervention belongs to the model, whoever attached it; a copy of the model gives each thread its own."""
    with apply_mote(model, REROUTE), apply_mote(model, BIAS):
        both = run(model, ONE)
    with apply_mote(model, REROUTE):
        alone = run(model, ONE)
    attached = threading.Barrier(2)
    done = threading.Barrier(2)

    def work(which: PreTrainedModel, config: MoTEConfig) -> torch.Tensor:
        with apply_mote(which, config):
            attached.wait(timeout=10)
            found = run(which, ONE)
            done.wait(timeout=10)
        return found

    shared = at_once(lambda: work(model, REROUTE), lambda: work(model, BIAS))
    assert torch.equal(shared[0], both)
    assert torch.equal(shared[1], both)
    twin = copy.deepcopy(model)
    own = at_once(lambda: work(twin, REROUTE), lambda: work(model, BIAS))
    assert torch.equal(own[0], alone)
    assert not torch.equal(own[1], both)


def test_record_routing_two_threads_at_once_count_each_text_by_itself(model: PreTrainedModel) -> None:
    def read(ids: torch.Tensor) -> None:
        cache = cache_of(model(ids[:, :6], use_cache=True))
        for column in (6, 7):
            cache = cache_of(model(ids[:, column : column + 1], **taking(model, cache)))

    with torch.no_grad(), record_routing(model, trace=True, eos_token_id=[]) as alone:
        read(ONE)
        read(OTHER)
    with record_routing(model, trace=True, eos_token_id=[]) as together, lockstep(model):
        at_once(lambda: read(ONE), lambda: read(OTHER))
    # Which of the two began first is left to chance.
    key = lambda trace: trace.indices.flatten().tolist()  # noqa: E731
    for one, other in zip(sorted(together.traces(), key=key), sorted(alone.traces(), key=key), strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.generated, other.generated)
    for phase, tokens in (("prompt", 6), ("generation", 2)):
        assert [found.num_tokens for found in together.maps(phase)] == [tokens, tokens]
        assert torch.equal(
            sum(found.counts for found in together.maps(phase)), sum(found.counts for found in alone.maps(phase))
        )


@pytest.mark.parametrize("scope", ["all", "prompt"])
def test_apply_mote_backward_in_another_thread_gives_the_same_gradients(model: PreTrainedModel, scope: str) -> None:
    """Gradient checkpointing runs the layers again there, and must ask which pass they belonged to."""
    model.train()
    # The name that 5.23 deprecates is the only one that 5.16 has.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    gradients = []
    with apply_mote(model, MoTEConfig(suppress=EXPERTS, suppress_mode="reroute", scope=scope)):
        for backward in (lambda loss: loss.backward(), lambda loss: at_once(loss.backward)):
            model.zero_grad()
            backward(model(ONE, labels=ONE, use_cache=False).loss)
            gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)
