"""Passes of compiled graphs: what they are is right, or an error says that the graph is the reason."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from caches import taking
from tiny_models import tiny_model
from transformers import CompileConfig, DynamicCache, PreTrainedModel, StaticCache

from hf_mote import MoTEConfig, apply_mote
from hf_mote.errors import LivenessError, RouterContractError, UnsupportedError

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 5}
SUPPRESS = [[layer, expert] for layer in range(2) for expert in range(3)]
COMPILE = CompileConfig(backend="eager", mode=None)
COMPILE._compile_all_devices = True


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[PreTrainedModel]:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # which transformers sets where it compiles
    torch._dynamo.reset()
    yield tiny_model("mixtral", num_hidden_layers=2, hidden_size=16, intermediate_size=16).requires_grad_(False)
    torch._dynamo.reset()


def config(scope: str) -> MoTEConfig:
    return MoTEConfig(
        suppress=SUPPRESS, scope=scope, thinking_tokens=[6, 9] if scope in ("thinking", "answer") else None
    )


def logits(model: Any, ids: torch.Tensor, cache: Any) -> torch.Tensor:
    return model(ids, use_cache=True, **taking(getattr(model, "_orig_mod", model), cache)).logits


@pytest.mark.parametrize("scope", ["prompt", "generation"])
@pytest.mark.parametrize(("first", "fullgraph"), [(1, True), pytest.param(6, False, marks=pytest.mark.slow)])
def test_scopes_of_a_compiled_model_on_a_growing_cache_equal_those_of_the_model(
    model: PreTrainedModel, scope: str, first: int, fullgraph: bool
) -> None:
    compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
    native = logits(model, IDS[:, :first], DynamicCache(config=model.config))
    with apply_mote(model, config(scope)):
        for _ in range(2):
            cache, other = DynamicCache(config=model.config), DynamicCache(config=model.config)
            for step, ids in enumerate([IDS[:, :first], torch.tensor([[7]]), torch.tensor([[8]])]):
                wanted, found = logits(model, ids, other), logits(compiled, ids, cache)
                assert torch.allclose(found, wanted, atol=1e-5)
                if not step:
                    assert torch.allclose(found, native, atol=1e-5) is (scope == "generation")


@pytest.mark.parametrize("scope", ["prompt", "generation"])
def test_one_token_on_an_empty_cache_of_fixed_size_is_right_or_refused_by_a_compiled_model(
    model: PreTrainedModel, scope: str
) -> None:
    compiled = torch.compile(model, backend="eager")
    with apply_mote(model, config(scope)):
        cache, other = (StaticCache(config=model.config, max_cache_len=8) for _ in range(2))
        wanted = logits(model, IDS[:, :1], other)
        assert torch.allclose(logits(compiled, IDS[:, :1], cache), wanted, atol=1e-5)
        assert torch.allclose(logits(compiled, IDS[:, 1:2], cache), logits(model, IDS[:, 1:2], other), atol=1e-5)
        cache.reset()  # which keeps its tensors, so that the graph cannot branch on its length
        with pytest.raises(RuntimeError, match=r"one token on an empty cache of fixed size.*disable_compile=True"):
            logits(compiled, IDS[:, :1], cache)


@pytest.mark.parametrize(
    ("scope", "first"), [("prompt", 1), ("generation", 1), ("generation", 6), ("thinking", 6), ("answer", 1)]
)
def test_generate_that_compiles_by_itself_is_right_or_refused(model: PreTrainedModel, scope: str, first: int) -> None:
    how = {**GREEDY, "cache_implementation": "static", "return_dict_in_generate": True, "output_logits": True}
    with apply_mote(model, config(scope)):
        wanted = model.generate(IDS[:, :first], disable_compile=True, **how)
        for _ in range(2):
            if scope in ("thinking", "answer"):
                with pytest.raises(
                    UnsupportedError, match="a compiled graph, which cannot know .*disable_compile=True"
                ):
                    model.generate(IDS[:, :first], compile_config=COMPILE, **how)
                continue
            found = model.generate(IDS[:, :first], compile_config=COMPILE, **how)
            assert torch.equal(found.sequences, wanted.sequences)
            assert torch.allclose(torch.stack(found.logits), torch.stack(wanted.logits), atol=1e-5)


@pytest.mark.parametrize("scope", ["thinking", pytest.param("answer", marks=pytest.mark.slow)])
def test_thinking_of_a_compiled_model_is_right_for_whole_texts_and_refused_on_a_cache(
    model: PreTrainedModel, scope: str
) -> None:
    compiled = torch.compile(model, backend="eager")
    native = model(IDS, use_cache=False).logits
    with apply_mote(model, config(scope)):
        wanted = model(IDS, use_cache=False).logits
        assert not torch.allclose(wanted, native, atol=1e-3)
        assert torch.allclose(compiled(IDS, use_cache=False).logits, wanted, atol=1e-5)
        caches = [DynamicCache(config=model.config) for _ in range(2)]
        for cache, ids in zip(caches, (IDS, IDS.flip(1)), strict=True):  # two texts that take turns
            assert torch.allclose(logits(compiled, ids, cache), model(ids, use_cache=False).logits, atol=1e-5)
        for cache in caches:
            with pytest.raises(UnsupportedError, match="a compiled graph, which cannot know .*disable_compile=True"):
                logits(compiled, IDS[:, :1], cache)


def test_chunks_and_guesses_of_a_compiled_model_are_refused(model: PreTrainedModel) -> None:
    how = {**GREEDY, "prefill_chunk_size": 5}
    with apply_mote(model, config("prompt")):
        model.compile(backend="eager")
        with pytest.raises(RouterContractError, match="got 5 prompt tokens, expected 6.*disable_compile=True"):
            model.generate(IDS, **how)
        with pytest.raises(UnsupportedError, match="a compiled graph cannot distinguish them.*disable_compile=True"):
            model.generate(IDS, cache_implementation="static", **how)
        with pytest.raises(UnsupportedError, match="guesses of assisted decoding"):
            model.generate(torch.tensor([[5, 6, 7, 5, 6, 7, 5, 6]]), **GREEDY, prompt_lookup_num_tokens=2)
        model.generate(IDS, **GREEDY)


def test_several_tokens_on_a_cache_in_a_compiled_graph_are_refused_for_that_reason(model: PreTrainedModel) -> None:
    compiled = torch.compile(model, backend="eager")
    with apply_mote(model, config("prompt")):
        cache = DynamicCache(config=model.config)
        logits(compiled, IDS, cache)
        with pytest.raises(UnsupportedError, match="a compiled graph cannot distinguish them.*disable_compile=True"):
            logits(compiled, IDS[:, :2], cache)


def test_threads_that_share_compiled_layers_get_their_own_tokens_edited(model: PreTrainedModel) -> None:
    """The graph of a layer cannot ask in which thread it runs; where it might be another's, the layer runs eagerly."""
    reached, go_on = threading.Event(), threading.Event()
    texts = [IDS, torch.tensor([[9, 8, 6, 7, 10, 5]])]  # other tokens are thinking
    found: list[Any] = []

    def wait(*_: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            reached.set()
            go_on.wait(20)

    with apply_mote(model, config("thinking")):
        wanted = [model(text, use_cache=False).logits for text in texts]
    for layer in model.model.layers:
        layer.compile(backend="eager")
    with apply_mote(model, config("thinking")):
        for text, right in zip(texts, wanted, strict=True):
            assert torch.allclose(model(text, use_cache=False).logits, right, atol=1e-5)
        pause = model.model.embed_tokens.register_forward_pre_hook(wait)
        thread = threading.Thread(target=lambda: found.append(model(texts[1], use_cache=False).logits))
        thread.start()
        assert reached.wait(20)
        assert torch.allclose(model(IDS, use_cache=False).logits, wanted[0], atol=1e-5)
        go_on.set()
        thread.join()
        pause.remove()
    assert torch.allclose(found[0], wanted[1], atol=1e-5)


def test_thread_that_begins_while_another_ends_takes_nothing_from_its_compiled_layers(model: PreTrainedModel) -> None:
    ended_layers, begun, ended = threading.Event(), threading.Event(), threading.Event()
    failures: list[BaseException] = []

    def at_norm(*_: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            ended_layers.set()
            begun.wait(20)

    def at_embedding(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            begun.set()
            assert ended.wait(20)

    def run() -> None:
        try:
            model(IDS, use_cache=False)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)
        ended.set()

    for layer in model.model.layers:
        layer.compile(backend="eager")
    with apply_mote(model, config("all")):
        model(IDS, use_cache=False)
        pauses = [
            model.model.norm.register_forward_pre_hook(at_norm),
            model.model.embed_tokens.register_forward_pre_hook(at_embedding),
        ]
        thread = threading.Thread(target=run)
        thread.start()
        assert ended_layers.wait(20)
        model(IDS, use_cache=False)
        thread.join()
        for pause in pauses:
            pause.remove()
    assert not failures


def test_cache_in_an_object_of_a_compiled_model_is_refused(model: PreTrainedModel) -> None:
    class Box:
        def __init__(self, held: Any) -> None:
            self.held = held

    decoder = model.model
    plain, name = type(decoder).forward, next(iter(taking(decoder, None)))

    class Decoder(type(decoder)):  # type: ignore[misc]
        def forward(self, *args: Any, box: Box | None = None, **kwargs: Any) -> Any:
            return plain(self, *args, **kwargs, **{name: box.held})

    decoder.__class__ = Decoder
    compiled = torch.compile(decoder, backend="eager")
    with apply_mote(decoder, config("prompt")):
        cache = DynamicCache(config=model.config)
        for ids in (IDS, IDS[:, :1]):
            with pytest.raises(UnsupportedError, match="box is a Box, which may hold tokens read before"):
                compiled(ids, box=Box(cache))


@pytest.mark.parametrize(("layers", "how"), [([0], "call"), ([1], "forward")], ids=str)
def test_layers_compiled_by_themselves_do_not_share_the_graph_of_one_without_edits(
    model: PreTrainedModel, layers: list[int], how: str
) -> None:
    """torch runs the graph of one layer for the next, and does not look at the hooks of its parts."""
    edits = [[layer, expert] for layer in layers for expert in range(layer, layer + 3)]
    layers_of = model.model.layers
    with apply_mote(model, MoTEConfig(suppress=edits)) as handle:
        wanted = model(IDS, use_cache=False).logits
        for layer in layers_of:
            if how == "call":
                layer.compile(backend="eager")
            else:
                layer.forward = torch.compile(layer.forward, backend="eager")

        def passes() -> None:
            for _ in range(3):
                model(IDS, use_cache=False)

        with pytest.raises(
            LivenessError, match="torch runs the graph of one part for all of its kind.*attach it again"
        ):
            passes()
        handle.remove()
    with apply_mote(model, MoTEConfig(suppress=edits)):
        for _ in range(3):
            assert torch.allclose(model(IDS, use_cache=False).logits, wanted, atol=1e-5)
