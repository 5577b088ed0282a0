"""What is found out about a model's routers is found out once for each public call, and anew in the next one."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

import hf_mote
from hf_mote import (
    MoTEConfig,
    ablate_experts,
    apply_mote,
    attribute_experts,
    evaluate_mote,
    find_routers,
    ftri,
    optimize_experts,
    record_routing,
    search_experts,
    sweep_mote,
)
from hf_mote.errors import ModelMismatchError
from hf_mote.routing.sites import fingerprint, routed_model, self_test
from hf_mote.routing.sites.routed_model import RoutedModel

MODEL = "mixtral"
PROMPTS = ["abcd", "efg", "hij"]
ASKED = {"max_new_tokens": 2, "progress": False}
CAUSAL = {"response": "g", "baseline_response": "h", "progress": False}


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[Any]]:
    """Searches, fingerprints, and self-tests by router, wherever in the package they are made."""
    for module in pkgutil.walk_packages(hf_mote.__path__, "hf_mote."):
        if module.name.startswith(("hf_mote.routing", "hf_mote.mote", "hf_mote.ranking", "hf_mote.evaluation")):
            importlib.import_module(module.name)
    seen: Counter[Any] = Counter()
    originals: dict[str, Callable[..., Any]] = {
        "find_routers": find_routers,
        "fingerprint_of": fingerprint.fingerprint_of,
        "self_test": self_test.self_test,
    }

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            seen[f"self_test {args[0].path}" if name == "self_test" else name] += 1
            return originals[name](*args)

        return call

    for name, original in originals.items():
        counted = counting(name)
        for module in [one for place, one in sys.modules.items() if place.startswith("hf_mote.")]:
            if vars(module).get(name) is original:
                monkeypatch.setattr(module, name, counted)
    return seen


def calls(model: Any, tokenizer: Any) -> dict[str, Callable[[], Any]]:
    config = MoTEConfig.for_model(model, suppress=[[0, 1], [1, 2], [2, 3]])
    ranking = attribute_experts(model, tokenizer, PROMPTS, resamples=0, **CAUSAL)
    judge = lambda response: "a" if len(response) % 2 else "b"  # noqa: E731
    judge.labels = ["a", "b"]  # type: ignore[attr-defined]
    evaluated = {"target": "a", **ASKED}

    def evaluate() -> None:
        evaluate_mote(
            model, tokenizer, config, PROMPTS, judge, num_controls=20, strengths=[0.5], unrelated=["a"],
            texts=["some text"], conversations=[["a", "b"]], control_kind="usage", **evaluated,
        )  # fmt: skip

    def sweep() -> None:
        sweep_mote(model, tokenizer, ranking, PROMPTS, judge, num_experts=[1, 2], num_controls=2, **evaluated)

    return {
        "record_routing": lambda: record_routing(model).remove(),
        "apply_mote": lambda: apply_mote(model, config).remove(),
        "ftri": lambda: ftri(model, tokenizer, PROMPTS, lambda response: "a", batch_size=1, **ASKED),
        "evaluate_mote": evaluate,
        "sweep_mote": sweep,
        "attribute_experts": lambda: attribute_experts(model, tokenizer, PROMPTS, resamples=0, **CAUSAL),
        "ablate_experts": lambda: ablate_experts(
            model, tokenizer, PROMPTS, experts=[(0, 1), (1, 0)], resamples=0, **CAUSAL
        ),
        "search_experts": lambda: search_experts(
            model, tokenizer, PROMPTS, experts=[(0, 1), (1, 0)], max_experts=2, **CAUSAL
        ),
        "optimize_experts": lambda: optimize_experts(
            model, tokenizer, PROMPTS, penalties=[1.0], num_seeds=1, steps=1, goal=-100.0, **CAUSAL
        ),
    }


@pytest.mark.parametrize(
    "name",
    [
        "record_routing", "apply_mote", "ftri", "evaluate_mote", "sweep_mote", "attribute_experts", "ablate_experts",
        "search_experts", "optimize_experts",
    ],
)  # fmt: skip
def test_each_public_call_searches_hashes_and_tests_each_router_once(name: str, counts: Counter[Any]) -> None:
    model, tokenizer = tiny_model(MODEL), tiny_tokenizer()
    call = calls(model, tokenizer)[name]
    routers = {f"self_test {site.path}": 1 for site in find_routers(model)}
    for _ in range(2):  # the second call finds out anew
        counts.clear()
        call()
        hashed = {} if name == "record_routing" else {"fingerprint_of": 1}  # a record names no model
        if name == "sweep_mote":  # routers that no setting touches are left alone
            routers = {router: 1 for router in routers if counts[router]}
            assert routers
        assert +counts == {"find_routers": 1, **hashed, **routers}


def test_weights_changed_between_two_calls_are_noticed() -> None:
    model, tokenizer = tiny_model(MODEL), tiny_tokenizer()
    config = MoTEConfig.for_model(model, suppress=[[0, 1]])
    evaluate = lambda: evaluate_mote(  # noqa: E731
        model, tokenizer, config, PROMPTS, lambda response: True, target=True, num_controls=2, **ASKED
    )
    evaluate()
    with torch.no_grad():
        find_routers(model)[0].module.weight.mul_(1.5)
    with pytest.raises(ModelMismatchError, match="other router weights"):
        evaluate()
    with pytest.raises(ModelMismatchError, match="other router weights"):
        apply_mote(model, config)


def test_routed_model_of_given_sites_searches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(MODEL)
    sites = find_routers(model)
    monkeypatch.setattr(routed_model, "find_routers", lambda model: pytest.fail("searched"))
    routed = RoutedModel(model, sites)
    assert routed.layers == (0, 1, 2)
    assert routed.shape == (3, 8)
    assert routed.tested(sites[0]) is routed.tested(sites[0])
