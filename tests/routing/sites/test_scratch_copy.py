"""`register_routers` tries routers that change as they run, and leaves them bit for bit as they were."""

from __future__ import annotations

import functools
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from routing.small_decoder import EXPERTS, TOKENS, WIDTH, SmallDecoder
from routing_cases import nothing_registered  # noqa: F401
from torch import Tensor, nn

from hf_mote import MoTEConfig, apply_mote, register_routers
from hf_mote.errors import UnsupportedError
from hf_mote.routing.rules import registry
from hf_mote.routing.sites.scratch_copy import scratch_copy


class Restless(nn.Module):
    """A router that changes whatever it holds each time it runs; its choice depends on its weight alone."""

    raises = False

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.top_k = EXPERTS, 2
        self.weight = nn.Parameter(torch.zeros(EXPERTS, WIDTH))
        self.tied = self.weight
        self.load_bias = nn.Parameter(torch.zeros(EXPERTS))
        self.load_buffer = nn.Buffer(torch.zeros(EXPERTS, dtype=torch.long))
        self.view_buffer = self.load_buffer[:4]
        self.norm = nn.BatchNorm1d(EXPERTS).train()
        self.plain = torch.zeros(EXPERTS)
        self.graph = torch.ones(EXPERTS, requires_grad=True) * 2
        self.array = np.zeros(EXPERTS)
        self.stats: dict[str, Any] = {"load": torch.zeros(EXPERTS), "seen": [0], "times": Counter()}
        self.recent: deque[Tensor] = deque([torch.zeros(2)], maxlen=3)
        self.pair = (torch.zeros(2), "name")
        self.record = SimpleNamespace(load=torch.zeros(EXPERTS), owner=self)
        self.generator = torch.Generator().manual_seed(3)
        self.lock = threading.Lock()
        self.count = self._count
        self.count_later = functools.partial(self._count, 2)
        self.calls = 0

    def _count(self, times: int = 1) -> None:
        self.calls += times
        self.plain += times

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = hidden @ self.weight.T
        weights, indices = logits.topk(self.top_k)
        load = torch.bincount(indices.flatten(), minlength=EXPERTS)
        with self.lock, torch.no_grad():
            self.load_bias += load
            self.load_buffer += load
            self.view_buffer += 1
            self.norm(logits + torch.randn_like(logits) + torch.randn(1, generator=self.generator))
            self.norm.train()
            self.norm(logits)
            self.graph += 1
            self.array += 1
            self.stats["load"] += load
            self.stats["seen"].append(len(hidden))
            self.stats["times"]["forward"] += 1
            self.recent.append(load)
            self.pair[0].add_(1)
            self.record.load += 1
            self.record.owner.calls += 1
            self.count()
            self.count_later()
        if self.raises:
            raise ArithmeticError("no more")
        return logits, weights.softmax(dim=-1), indices


class Failing(Restless):
    raises = True


class Unlike(Restless):
    """Follows no rule."""

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, indices = super().forward(hidden)
        return logits, weights.sqrt(), indices


def flattened(value: Any, seen: set[int]) -> Iterator[Any]:
    """All numbers that an object leads to."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value.detach().clone()
    elif isinstance(value, torch.Generator):
        yield value.get_state()
    elif isinstance(value, np.ndarray):
        yield torch.from_numpy(value.copy())
    elif isinstance(value, dict):
        for item in value.values():
            yield from flattened(item, seen)
    elif isinstance(value, list | tuple | deque):
        yield torch.tensor(len(value))
        for item in value:
            yield from flattened(item, seen)
    elif isinstance(value, int | float):
        yield torch.tensor(value)
    elif isinstance(value, nn.Module | SimpleNamespace):
        yield from flattened(vars(value), seen)


def state(model: nn.Module) -> list[Tensor]:
    return [*flattened(model, set()), torch.get_rng_state()]


def assert_untouched(model: nn.Module, act: Callable[[], object]) -> None:
    model.train()  # the trials run in evaluation mode, and must not leave it behind
    before, ids = state(model), [id(item) for item in (*model.parameters(), *model.buffers())]
    act()
    after = state(model)
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
    assert ids == [id(item) for item in (*model.parameters(), *model.buffers())]
    assert all(module.training for module in model.modules())


def refused(model: nn.Module) -> None:
    with pytest.raises(UnsupportedError):
        register_routers(model)


def test_a_restless_router_changes_as_it_runs() -> None:
    model = SmallDecoder(Restless)
    gate = model.layers[0].mlp.gate
    before = state(gate)
    gate(torch.ones(3, WIDTH))
    assert sum(not torch.equal(one, other) for one, other in zip(before, state(gate), strict=False)) > 12


def test_register_routers_leaves_a_router_that_changes_as_it_runs() -> None:
    model = SmallDecoder(Restless)
    assert_untouched(model, lambda: register_routers(model))
    assert [site.rule.name for site in register_routers(model)] == ["top-k, softmax of the chosen"] * 2


@pytest.mark.parametrize("router", [Failing, Unlike])
def test_register_routers_that_refuses_leaves_a_router_that_changes_as_it_runs(router: type[Restless]) -> None:
    model = SmallDecoder(router)
    assert_untouched(model, lambda: refused(model))


def test_apply_mote_checks_a_registered_router_and_leaves_it() -> None:
    model = SmallDecoder(Restless)
    register_routers(model)

    def attach() -> None:
        with apply_mote(model, MoTEConfig(suppress=[[0, 1]])):
            pass

    assert_untouched(model, attach)


def test_register_routers_offloaded_router_is_tried_with_its_weights_and_left() -> None:
    expected = [site.rule.name for site in register_routers(SmallDecoder(Restless))]
    registry._REGISTERED.clear()
    model = SmallDecoder(Restless)
    weights = [layer.mlp.gate.weight.detach().clone() for layer in model.layers]
    cpu_offload(model)
    assert [site.rule.name for site in register_routers(model)] == expected
    for layer, weight in zip(model.layers, weights, strict=True):
        assert layer.mlp.gate.weight.is_meta
        assert torch.equal(layer.mlp.gate._hf_hook.weights_map["weight"], weight)
        assert int(layer.mlp.gate.load_buffer.sum()) == 0


class Inner(nn.Module):
    """Its weights are a submodule's."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.top_k, self.hidden_size = EXPERTS, 2, WIDTH
        self.linear = nn.Linear(WIDTH, EXPERTS, bias=False)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.linear(hidden)
        weights, indices = logits.topk(self.top_k)
        return logits, weights.softmax(dim=-1), indices


def test_register_routers_hooks_on_a_submodule_do_not_run_in_trials() -> None:
    model = SmallDecoder(Inner)
    calls: list[int] = []
    handle = model.layers[0].mlp.gate.linear.register_forward_hook(lambda *args: calls.append(1))
    register_routers(model)
    assert calls == []
    model(TOKENS)
    assert calls == [1]
    handle.remove()


def test_register_routers_offloaded_submodule_is_tried_with_its_weights() -> None:
    model = cpu_offload(SmallDecoder(Inner))
    assert [site.rule.name for site in register_routers(model)] == ["top-k, softmax of the chosen"] * 2
    assert model.layers[0].mlp.gate.linear.weight.is_meta


def test_register_routers_router_on_the_meta_device_is_refused() -> None:
    model = SmallDecoder(Restless).to("meta")
    with pytest.raises(UnsupportedError, match="meta device"):
        register_routers(model)


def test_set_aside_shares_the_parameters_of_what_is_no_router(monkeypatch: pytest.MonkeyPatch) -> None:
    router = Restless()
    monkeypatch.setattr("hf_mote.routing.sites.scratch_copy.MOST_COPIED_BYTES", router.weight.nbytes)
    with scratch_copy(router) as twin:
        assert twin.weight is router.weight
        assert twin.norm.weight is router.norm.weight
        assert twin.load_buffer is not router.load_buffer


def test_register_routers_of_a_block_without_a_router_copies_no_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole(nn.Module):
        """A block that chooses experts itself."""

        def __init__(self) -> None:
            super().__init__()
            self.num_experts, self.top_k = EXPERTS, 2
            self.scorer = nn.Linear(WIDTH, EXPERTS)
            self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

        def forward(self, hidden: Tensor) -> Tensor:
            weights, indices = self.scorer(hidden).topk(self.top_k)
            outputs = torch.stack([expert(hidden) for expert in self.experts], 1)
            return (outputs.gather(1, indices[..., None].expand(-1, -1, WIDTH)) * weights[..., None]).sum(1)

    copied: list[Tensor] = []
    plain = nn.Parameter.__deepcopy__
    monkeypatch.setattr("hf_mote.routing.sites.scratch_copy.MOST_COPIED_BYTES", 4 * EXPERTS * WIDTH * 2)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", lambda self, memo: (copied.append(self), plain(self, memo))[1])
    model = SmallDecoder(Whole)
    with pytest.raises(UnsupportedError, match="Whole does not have the signature that most routers share"):
        register_routers(model)
    assert copied == []


def test_set_aside_keeps_what_is_tied_tied_and_shares_what_is_not_the_routers() -> None:
    router, other = Restless(), nn.Linear(2, 2)
    router.__dict__["other"] = other
    router.__dict__["others"] = [other, router.norm]
    with scratch_copy(router) as twin:
        assert twin.tied is twin.weight is not router.weight
        assert twin.record.owner is twin
        assert twin.count.__self__ is twin
        assert twin.other is twin.others[0] is other
        assert twin.others[1] is twin.norm is not router.norm
        assert twin.lock is router.lock
        assert torch.equal(twin.generator.get_state(), router.generator.get_state())
        assert twin.training == router.training
        assert [name for name, _ in twin.named_modules()] == [name for name, _ in router.named_modules()]
