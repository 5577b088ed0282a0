"""A patch under every way of decoding: assisted, beams, several texts by turns, cached and not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from caches import cache_of, taking
from routing_cases import GREEDY, no_gradients, transformers_calls_itself_deprecated  # noqa: F401
from tiny_models import tiny_model
from transformers import PreTrainedModel

from hf_mote import MoTEConfig, apply_mote
from hf_mote.errors import ConfigError, UnsupportedError

PROMPT = torch.tensor([[10, 11, 12, 13, 14, 15, 16]])
PAIR = torch.tensor([[10, 11, 12, 13, 14, 15, 16], [40, 41, 42, 43, 44, 45, 46]])
EXPERTS = [[layer, expert] for layer in (1, 2) for expert in (0, 3, 5)]
REROUTE = {"suppress": EXPERTS, "suppress_mode": "reroute"}
# A prompt begins with the token that opens the thinking; these close it. The tiny models write them now and then.
OPENS, CLOSES = 10, {"deepseek_v3": 82, "mixtral": 54}


@pytest.fixture(params=["deepseek_v3", "mixtral"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


def written(model: PreTrainedModel, ids: torch.Tensor = PROMPT, new: int = 12, **how: Any) -> torch.Tensor:
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new, **GREEDY, **how}
    return model.generate(ids, **options)


def written_under(model: PreTrainedModel, config: Any, ids: torch.Tensor = PROMPT, **how: Any) -> torch.Tensor:
    with apply_mote(model, config):
        return written(model, ids, **how)


def assistant_for(model: PreTrainedModel, noise: float) -> PreTrainedModel:
    """An unpatched model that always guesses four tokens: the less noise, the more of them right."""
    assistant = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in assistant.parameters():
        parameter += noise * torch.randn(parameter.shape, generator=generator)
    options = {"num_assistant_tokens": 4, "num_assistant_tokens_schedule": "constant"}
    assistant.generation_config.update(**options, assistant_confidence_threshold=0.0)
    return assistant


def parts(model: PreTrainedModel, scope: str) -> MoTEConfig:
    return MoTEConfig(**REROUTE, scope=scope, thinking_tokens=[OPENS, CLOSES[model.config.model_type]])


@pytest.mark.parametrize("noise", [0.0, 0.03])
@pytest.mark.parametrize("scope", ["all", "thinking", "answer"])
def test_generate_assisted_under_a_patch_writes_what_it_writes_unassisted(
    model: PreTrainedModel, scope: str, noise: float
) -> None:
    """Guesses that are taken back leave no trace, the token that closes the thinking among them."""
    config = MoTEConfig(**REROUTE) if scope == "all" else parts(model, scope)
    assistant, passes = assistant_for(model, noise), []
    counter = model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    plain = written_under(model, config, new=24)
    alone = len(passes)
    assert torch.equal(written_under(model, config, new=24, assistant_model=assistant), plain)
    counter.remove()
    assert len(passes) - alone < alone  # some guesses were right
    assert not torch.equal(plain, written(model, new=24))


@pytest.mark.parametrize("scope", ["prompt", "generation"])
@pytest.mark.parametrize("new", [2, 5, 12])
def test_generate_assisted_under_a_phase_is_refused_and_the_remedy_works(
    model: PreTrainedModel, scope: str, new: int
) -> None:
    """However short: a text that is guessed right ends with the pass that reads the prompt."""
    config = MoTEConfig(**REROUTE, scope=scope)
    for how in ({"assistant_model": assistant_for(model, 0.0)}, {"prompt_lookup_num_tokens": 4}):
        repeated = PROMPT.repeat(1, 3)
        with pytest.raises(UnsupportedError, match=r"Generate without .*assistant or prompt lookup.*scope 'all'"):
            written_under(model, config, repeated, new=new, **how)
        assert written_under(model, config, repeated, new=new).shape[1] == repeated.shape[1] + new
        everywhere = written_under(model, MoTEConfig(**REROUTE), repeated, new=new)
        guessed = written_under(model, MoTEConfig(**REROUTE), repeated, new=new, **how)
        # transformers 5.13 takes a last guess more than was asked for.
        assert torch.equal(guessed[:, : everywhere.shape[1]], everywhere)


def test_generate_assisted_by_the_patched_model_writes_what_the_other_writes(model: PreTrainedModel) -> None:
    """A patch on the assistant changes its guesses alone."""
    plain = written(model)
    assistant = assistant_for(model, 0.0)
    with apply_mote(assistant, MoTEConfig(**REROUTE)):
        assert torch.equal(written(model, assistant_model=assistant), plain)


@pytest.mark.parametrize("scope", ["all", "prompt", "generation", "thinking", "answer"])
def test_generate_with_beams_under_a_patch_writes_the_same_with_a_cache_and_without(
    model: PreTrainedModel, scope: str
) -> None:
    """Without a cache every step runs the whole text, so that nothing needs to be carried from row to row."""
    config = parts(model, scope) if scope in ("thinking", "answer") else MoTEConfig(**REROUTE, scope=scope)
    how = {"num_beams": 3, "num_return_sequences": 3, "new": 14}
    cached = written_under(model, config, PAIR, **how)
    assert torch.equal(written_under(model, config, PAIR, use_cache=False, **how), cached)
    assert not torch.equal(cached, written(model, PAIR, **how))


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_with_beams_under_a_config_for_each_prompt_writes_what_each_writes_alone(
    model: PreTrainedModel, use_cache: bool
) -> None:
    first, second = MoTEConfig(**REROUTE), MoTEConfig(bias=[[1, 4, 2.0], [2, 6, 3.0]])
    how = {"num_beams": 3, "use_cache": use_cache}
    with pytest.raises(ConfigError, match=r"got 6, expected 2.*beams, repeat each as often"):
        written_under(model, [first, second], PAIR, **how)
    together = written_under(model, [first] * 3 + [second] * 3, PAIR, **how)
    assert torch.equal(together[:1], written_under(model, first, PAIR[:1], **how))
    assert torch.equal(together[1:], written_under(model, second, PAIR[1:], **how))


@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_with_beams_of_one_prompt_under_different_configs_is_refused_and_the_remedy_works(
    model: PreTrainedModel, use_cache: bool
) -> None:
    config = MoTEConfig(**REROUTE)
    how = {"num_beams": 3, "use_cache": use_cache, "new": 20}
    with pytest.raises(UnsupportedError, match="Give the beams of one prompt the same config"):
        written_under(model, [config, None, MoTEConfig(bias=[[1, 4, 2.0]])], **how)
    assert torch.equal(written_under(model, [config] * 3, **how), written_under(model, config, **how))


def test_generate_same_prompt_under_different_configs_without_beams_is_no_matter(model: PreTrainedModel) -> None:
    config = MoTEConfig(**REROUTE)
    together = written_under(model, [config, None], PROMPT.repeat(2, 1))
    assert torch.equal(together, torch.cat([written_under(model, config), written(model)]))


def _steps(model: PreTrainedModel, texts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits of texts that are read by turns: a few tokens at first, then one by one, each with a cache of its own."""
    outputs = [model(ids[:, :3], use_cache=True) for ids in texts]
    seen = [[out.logits] for out in outputs]
    for column in range(3, texts[0].shape[1]):
        for turn, ids in enumerate(texts):
            cache = cache_of(outputs[turn])
            outputs[turn] = model(ids[:, column : column + 1], **taking(model, cache), use_cache=True)
            seen[turn].append(outputs[turn].logits)
    return [torch.cat(logits, dim=1) for logits in seen]


@pytest.mark.parametrize("scope", ["thinking", "answer"])
def test_apply_mote_by_part_texts_read_by_turns_keep_their_parts(model: PreTrainedModel, scope: str) -> None:
    closes = CLOSES[model.config.model_type]
    thinking = torch.tensor([[5, OPENS, 6, 7, 8, 9, 20, 21]])
    answering = torch.tensor([[OPENS, 5, closes, 7, 8, 9, 20, 21]])
    with apply_mote(model, parts(model, scope)):
        alone = [_steps(model, [text])[0] for text in (thinking, answering)]
        for one, other in zip(_steps(model, [thinking, answering]), alone, strict=True):
            assert torch.equal(one, other)


def test_apply_mote_by_part_cache_filled_unseen_is_refused_and_the_remedy_works(model: PreTrainedModel) -> None:
    """A prompt that was read once and copied for each question: whether it ends in thinking is not known."""
    ids = torch.tensor([[OPENS, 5, 6, 7, 8, 9, 20, 21]])
    with apply_mote(model, parts(model, "thinking")):
        whole = model(ids).logits
        cache = cache_of(model(ids[:, :4], use_cache=True))
        with pytest.raises(UnsupportedError, match="Give input_ids and the whole text"):
            model(ids[:, 4:], **taking(model, copy.deepcopy(cache)))
        assert torch.equal(model(ids).logits, whole)
        # The cache itself is known.
        torch.testing.assert_close(
            model(ids[:, 4:], **taking(model, cache)).logits, whole[:, 4:], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("scope", ["prompt", "generation"])
def test_apply_mote_by_phase_shortened_cache_is_refused_and_the_remedy_works(
    model: PreTrainedModel, scope: str
) -> None:
    """As assisted decoding leaves it when a guess was wrong."""
    with apply_mote(model, MoTEConfig(**REROUTE, scope=scope)) as handle:
        cache = cache_of(model(PROMPT, use_cache=True))
        model(PROMPT[:, :1], **taking(model, cache))
        cache.crop(-1)
        with pytest.raises(UnsupportedError, match="without a cache from before; or use scope 'all'"):
            model(PROMPT[:, 1:2], **taking(model, cache))
        fresh = cache_of(model(PROMPT, use_cache=True))
        step = model(PROMPT[:, 1:2], **taking(model, fresh)).logits
        handle.active = False
        native = model(PROMPT[:, 1:2], **taking(model, cache_of(model(PROMPT, use_cache=True)))).logits
    assert not torch.equal(step, native)


def test_apply_mote_embeddings_by_position_are_refused_and_the_remedy_works(model: PreTrainedModel) -> None:
    embeddings = model.get_input_embeddings()(PROMPT)
    with apply_mote(model, MoTEConfig(**REROUTE, scope="prompt")):
        wanted = model.model(PROMPT).last_hidden_state
        with pytest.raises(UnsupportedError, match="by name"):
            model.model(None, None, None, None, embeddings)
        assert torch.equal(model.model(inputs_embeds=embeddings).last_hidden_state, wanted)
