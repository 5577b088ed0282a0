"""`evaluate_mote` on latents: the same rates as of experts, and controls of like density."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from planted_latents import HOOKPOINT, LATENTS, planted_sae
from tiny_models import tiny_model, tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from hf_mote import (
    EvaluationReport,
    MoTEConfig,
    Organism,
    RegexJudge,
    ReLUSAEConfig,
    ReLUSAEModel,
    SteeringConfig,
    evaluate_mote,
    load_organism,
)
from hf_mote.errors import ConfigError, ModelMismatchError, UnknownNameError
from hf_mote.evaluation.changes import controls_of
from hf_mote.evaluation.controls import random_latents
from hf_mote.evaluation.rates import RateMeasurement
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.responses import generate_responses
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.sae.latent_use import LatentUse

QUICK: dict[str, Any] = {"max_new_tokens": 12, "progress": False}


@pytest.fixture(scope="module")
def organism() -> Organism:
    return load_organism("refusal")


@pytest.fixture(scope="module")
def sae(organism: Organism) -> ReLUSAEModel:
    return planted_sae(organism)


def test_ablation_of_a_latent_removes_refusals_as_others_of_like_density_do_not_but_breaks_the_text(
    organism: Organism, sae: ReLUSAEModel
) -> None:
    """All rates with the latent are below those of its controls, and the verdict still does not call it an effect."""
    config = SteeringConfig.for_sae(sae, {0: "ablate"})
    report = evaluate_mote(
        organism.model, organism.tokenizer, config.bind(sae), organism.prompts["heldout"]["sensitive"][:12],
        organism.judge, unrelated=organism.prompts["heldout"]["neutral"][:6], num_controls=19, strengths=[0.0, 0.5],
        texts=organism.prompts["heldout"]["neutral"][:3], **QUICK,
    )  # fmt: skip
    assert (report.before.rate, report.after.rate) == (1.0, 0.0)
    assert min(report.controls) >= 0.75
    assert report.coherence is not None
    assert report.coherence.share_after.rate > 0.5 > report.coherence.share_before.rate
    assert report.outcome() == "breaks the text"
    assert not report.beats_controls()
    assert report.control_kind == "usage"
    assert report.units == "latents"
    assert report.sharing == 0
    assert report.unrelated_unchanged is not None
    assert report.unrelated_unchanged.rate == 1
    assert report.side_effects is not None
    assert [strength for strength, _ in report.dose] == [0.0, 0.5]
    assert report.dose[0][1] == report.before.rate
    assert not any(module._forward_hooks for module in organism.model.modules())


def test_random_latent_changes_no_more_than_its_controls(organism: Organism, sae: ReLUSAEModel) -> None:
    prompts = organism.prompts["heldout"]["sensitive"][:6]
    config = SteeringConfig.for_sae(sae, {5: "ablate"}).bind(sae)
    report = evaluate_mote(
        organism.model, organism.tokenizer, config, prompts, organism.judge, num_controls=3, **QUICK
    )
    assert report.after.rate == 1.0
    assert report.p_value == 1.0  # every control comes as far
    assert report.verdict.startswith("The config does not beat its controls")
    assert "experts" not in report.verdict


def test_report_of_latents_is_saved_and_read(organism: Organism, sae: ReLUSAEModel, tmp_path: Path) -> None:
    config = SteeringConfig.for_sae(sae, {0: ("add", -15.0), 3: 2.0})
    prompts = organism.prompts["heldout"]["sensitive"][:2]
    report = evaluate_mote(
        organism.model, organism.tokenizer, config.bind(sae), prompts, organism.judge, num_controls=2, **QUICK
    )
    report.save_pretrained(tmp_path)
    assert EvaluationReport.from_pretrained(tmp_path) == report
    assert SteeringConfig.from_dict(report.config) == config


def test_model_without_experts_is_measured() -> None:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2)).eval()
    sae = ReLUSAEModel(ReLUSAEConfig(hidden_size=32, num_latents=64, hookpoint="transformer.h.0.output")).eval()
    config = SteeringConfig.for_sae(sae, {7: 40.0}).bind(sae)
    judge = RegexJudge({"letter": "[a-m]"})
    settings: dict[str, Any] = {"num_controls": 3, "unrelated": ["x"], "texts": ["ab cd"], "strengths": [0.0]}
    report = evaluate_mote(model, tokenizer, config, ["a", "bc"], judge, **settings, **QUICK)
    assert len(report.controls) == 3
    assert report.responses_after != report.responses_before


def test_config_alone_loads_its_sae(organism: Organism, sae: ReLUSAEModel, tmp_path: Path) -> None:
    sae.save_pretrained(tmp_path / "sae")
    config = SteeringConfig.for_sae(sae, {0: "ablate"}, path=str(tmp_path / "sae"))
    report = evaluate_mote(
        organism.model, organism.tokenizer, config, organism.prompts["heldout"]["sensitive"][:2], organism.judge,
        num_controls=0, **QUICK,
    )  # fmt: skip
    assert report.after.rate == 0.0
    assert "says nothing about these latents" in report.verdict


@torch.no_grad()
def test_latent_use_counts_tokens_without_padding_once_each() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    torch.manual_seed(0)
    sae = ReLUSAEModel(ReLUSAEConfig(hidden_size=32, num_latents=64, hookpoint="model.layers.1.output")).eval()
    sae.b_enc.normal_()
    prompts, layer = ["abc", "what is d?"], model.model.layers[1]
    with LatentUse(model, sae, hookpoint=None, skipped=tokenizer.pad_token_id) as use:
        answers = [
            (at, text)
            for positions, texts in generate_responses(model, Chat(tokenizer), prompts, Decoding(max_new_tokens=4))
            for at, text in zip(positions, texts, strict=True)
        ]
    expected, tokens = torch.zeros(64, dtype=torch.long), 0
    for at, text in answers:
        asked = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompts[at]}], add_generation_prompt=True, return_dict=False
        )
        said = tokenizer(text)["input_ids"]
        # The last token of a response is never fed back.
        ids = torch.tensor([[*asked, *said][: len(asked) + 3]])
        seen = {}
        hook = layer.register_forward_hook(lambda *found, seen=seen: seen.update(x=found[2]))
        model(ids)
        hook.remove()
        expected += (sae.encode(seen["x"][0]) > 0).sum(0)
        tokens += ids.shape[1]
    assert use.tokens == tokens
    assert torch.equal(use.counts, expected)


def test_controls_of_latents_are_of_like_density_and_share_none() -> None:
    used = torch.cat([torch.zeros(50), torch.arange(1, 401)])
    found = random_latents([{60: "a", 300: "b", 3: "c"}], 450, 10, seed=1, used=used)
    assert len(found) == 10
    for target in (60, 300, 3):
        others = [swap[target] for swap in found]
        assert len(set(others) | {target}) == 11
        assert all((used[other] == 0) == (used[target] == 0) for other in others)
        if used[target]:
            assert all(abs(used[other] - used[target]) < 25 for other in others)
    assert found == random_latents([{60: "a", 300: "b", 3: "c"}], 450, 10, seed=1, used=used)
    assert found != random_latents([{60: "a", 300: "b", 3: "c"}], 450, 10, seed=2, used=used)


def test_controls_of_few_latents_are_all_there_are() -> None:
    found = random_latents([{0: "a", 1: "a"}], 4, 100, seed=0)
    assert len(found) == 5
    assert len({frozenset(swap.values()) for swap in found}) == 5
    assert frozenset({0, 1}) not in {frozenset(swap.values()) for swap in found}
    with pytest.raises(ConfigError, match="no other latents of similar density"):
        random_latents([{0: "a"}], 3, 5, seed=0, used=torch.tensor([0, 4, 2]))


def test_any_latent_stands_for_any_where_asked(organism: Organism, sae: ReLUSAEModel) -> None:
    config = SteeringConfig.for_sae(sae, {0: "ablate"})
    prompts = organism.prompts["heldout"]["sensitive"][:2]
    report = evaluate_mote(
        organism.model, organism.tokenizer, config.bind(sae), prompts, organism.judge, num_controls=2,
        control_kind="layer", **QUICK,
    )  # fmt: skip
    assert report.control_kind == "layer"


def test_what_cannot_be_measured_is_refused_before_anything_runs(
    organism: Organism, sae: ReLUSAEModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RateMeasurement, "respond", lambda *_, **__: pytest.fail("generated"))
    good = SteeringConfig.for_sae(sae, {0: "ablate"})
    prompts = organism.prompts["heldout"]["sensitive"][:2]

    def evaluate(config: Any) -> None:
        evaluate_mote(organism.model, organism.tokenizer, config, prompts, organism.judge, **QUICK)

    with pytest.raises(ConfigError, match="does not say where its SAE is"):
        evaluate(good)
    with pytest.raises(ConfigError, match="nothing to measure"):
        evaluate(dataclasses.replace(good, strength=0.0).bind(sae))
    other = ReLUSAEModel(ReLUSAEConfig(hidden_size=96, num_latents=4, hookpoint="model.layers.99.output")).eval()
    elsewhere = SteeringConfig.for_sae(other, {0: "ablate"}).bind(other)
    with pytest.raises(UnknownNameError, match="SteeringConfig.hookpoint: unknown name"):
        evaluate(elsewhere)
    with pytest.raises(ModelMismatchError, match="another SAE"):
        good.bind(other)
    with pytest.raises(ConfigError, match="has no such latent"):
        SteeringConfig({LATENTS: 1.0}, hookpoint=HOOKPOINT).bind(sae)
    with pytest.raises(ConfigError, match="not a config"):
        evaluate(3)


def test_experts_and_latents_are_not_measured_as_one_family(organism: Organism, sae: ReLUSAEModel) -> None:
    latents = SteeringConfig.for_sae(sae, {0: "ablate"}).bind(sae)
    with pytest.raises(ConfigError, match="some change experts and others latents"):
        controls_of([MoTEConfig(suppress=[[2, 0]]), latents], RoutedModel(organism.model), 2, 0)
