"""A config, with what it was made from and measured with, on the Hub: all of it comes back, and nothing else goes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hub_server import ALICE, HubServer
from huggingface_hub import ModelCard
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import (
    ActivationMap,
    EvaluationReport,
    ExpertRanking,
    FTRIResult,
    MoTEConfig,
    SteeringConfig,
    apply_mote,
    bake_mote,
    evaluate_mote,
    ftri,
)
from hf_mote.errors import ConfigError, ModelMismatchError, UnsupportedError

PROMPTS = [
    f"{word} a long question about {place}?" for word in ("Ask", "Say") for place in ("Bremen", "Xanten", "Ulm")
]
OTHERS = ["Tell me about your garden, please", "Tell me about my garden, please"]
TALK = ["What do you think of the harbour?", "And of the old lighthouse?"]


def judge(response: str) -> str:
    return "even" if len(response) % 2 == 0 else "odd"


judge.target = "even"  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def found() -> tuple[FTRIResult, ExpertRanking, MoTEConfig, EvaluationReport]:
    """What a user finds, on a model that lies somewhere private."""
    model = tiny_model("mixtral")
    model.config.name_or_path = str(Path.home() / "secret" / "models" / "mine")
    tokenizer = tiny_tokenizer()
    result = ftri(
        model, tokenizer, PROMPTS, lambda prompt, response: "a" if "Ask" in prompt else "b", max_new_tokens=3,
        progress=False,
    )  # fmt: skip
    ranking = result.rank("a", resamples=9)
    ranking = dataclasses.replace(
        ranking, provenance={**ranking.provenance, "command": f"hf-mote ftri {Path.home()}/secret/models/mine"}
    )
    config = ranking.to_config(suppress=1, base_model=result.base_model)
    report = evaluate_mote(
        model,
        tokenizer,
        config,
        PROMPTS,
        judge,
        target="even",
        unrelated=OTHERS,
        texts=OTHERS,
        conversations=[TALK],
        num_controls=2,
        max_new_tokens=8,
        progress=False,
    )
    return result, ranking, config, report


def test_push_takes_all_along_and_each_is_loaded_from_there(hub: HubServer, found: tuple) -> None:
    result, ranking, config, report = found
    config.push_to_hub(
        "alice/one",
        ranking=ranking,
        report=report,
        maps=result.maps,
        datasets=["alice/questions"],
        license="apache-2.0",
        intended_use="Looking at odd and even.",
        misuse="Counting.",
        subfolder="odd",
    )
    place = {"subfolder": "odd"}
    loaded = MoTEConfig.from_pretrained("alice/one", **place)
    assert (loaded.suppress, loaded.fingerprint) == (config.suppress, config.fingerprint)
    assert torch.equal(ExpertRanking.from_pretrained("alice/one", **place).score, ranking.score)
    theirs = EvaluationReport.from_pretrained("alice/one", **place)
    assert (theirs.before, theirs.after, theirs.controls) == (report.before, report.after, report.controls)
    assert (theirs.flips, theirs.verdict) == (report.flips, report.verdict)
    assert (theirs.unrelated_unchanged, theirs.turns_unchanged) == (report.unrelated_unchanged, report.turns_unchanged)
    for label, expected in result.maps.items():
        there = ActivationMap.from_pretrained("alice/one", subfolder=f"odd/maps/{label}")
        assert torch.equal(there.counts, expected.counts)
    files = hub.files("alice/one")
    assert {"odd/expert_map.png", "odd/effect.png", "odd/maps/a/activation_map.png"} <= set(files)
    card = files["odd/README.md"].decode()
    for heading in ("To load it", "Effect and controls", "Side effects", "Intended use", "Misuse and limits"):
        assert f"\n## {heading}\n" in card
    assert report.verdict in card
    assert "(expert_map.png)" in card
    assert "Looking at odd and even." in card
    data = ModelCard(card).data
    assert (data.library_name, data.license, data.datasets) == ("hf_mote", "apache-2.0", ["alice/questions"])
    values = {one.metric_name: one.metric_value for one in data.eval_results}
    assert values["even rate, untouched"] == pytest.approx(report.before.rate, abs=1e-6)
    assert values["even rate, with the config"] == pytest.approx(report.after.rate, abs=1e-6)


def test_push_sends_no_prompt_path_or_token_of_the_author(hub: HubServer, found: tuple) -> None:
    result, ranking, config, report = found
    config.push_to_hub("alice/one", ranking=ranking, report=report, maps=result.maps)
    ranking.push_to_hub("alice/two")
    report.push_to_hub("alice/three")
    result.maps["a"].push_to_hub("alice/four")
    home = str(Path.home() / "models" / "sae")
    SteeringConfig({1: 2.0}, hookpoint="model.layers.1.output", sae=home, base_model=home).push_to_hub("alice/five")
    sent = hub.everything()
    for secret in (*PROMPTS, *OTHERS, *TALK, str(Path.home()) + "/", "secret", ALICE):
        assert secret.encode() not in sent, secret
    assert not [text for text in report.responses_before if len(text) > 5 and text.encode() in sent]
    assert SteeringConfig.from_pretrained("alice/five").sae is None
    assert MoTEConfig.from_pretrained("alice/one").base_model == "mine"


def test_push_with_texts_sends_them_as_asked_for(hub: HubServer, found: tuple) -> None:
    result, _, config, report = found
    config.push_to_hub("alice/one", report=report, with_texts=True)
    assert EvaluationReport.from_pretrained("alice/one").prompts == report.prompts
    with pytest.raises(UnsupportedError, match=r"FTRIResult.*with_texts=True"):
        result.push_to_hub("alice/two")
    assert "alice/two" not in hub.repositories
    result.push_to_hub("alice/two", with_texts=True)
    assert FTRIResult.from_pretrained("alice/two").prompts == result.prompts
    assert str(Path.home()).encode() + b"/" not in hub.everything()


def test_push_token_in_provenance_is_refused(hub: HubServer, found: tuple) -> None:
    config = dataclasses.replace(found[2], provenance={"command": f"HF_TOKEN={ALICE} hf-mote ftri"})
    with pytest.raises(UnsupportedError, match=r"(README\.md|mote_config\.json): holds the token"):
        config.push_to_hub("alice/one")
    assert "alice/one" not in hub.repositories


def test_save_pretrained_beside_draws_and_keeps_texts_here(tmp_path: Path, found: tuple) -> None:
    result, ranking, config, report = found
    config.save_pretrained(tmp_path, ranking=ranking, report=report, maps=result.maps)
    assert EvaluationReport.from_pretrained(tmp_path) == report
    assert (tmp_path / "expert_map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["ranking", "report", "maps"])
def test_push_something_else_beside_it_is_refused(hub: HubServer, found: tuple, name: str) -> None:
    wrong = {"a": found[2]} if name == "maps" else found[2]
    with pytest.raises(ConfigError, match=f"MoTEConfig: {name}: is another thing .got MoTEConfig"):
        found[2].push_to_hub("alice/one", **{name: wrong})
    with pytest.raises(ConfigError, match="must be the name of a folder"):
        found[2].push_to_hub("alice/one", maps={"../up": next(iter(found[0].maps.values()))})
    assert hub.requests == []


# Other weights


@pytest.fixture
def tuned() -> torch.nn.Module:
    """A fine-tune of the model that configs are made for: other router weights, the same shape."""
    model = tiny_model("mixtral")
    with torch.no_grad():
        model.model.layers[0].mlp.gate.weight.mul_(1.5)
    model.config.name_or_path = "org/tuned"
    return model


def test_fine_tune_is_told_apart_and_needs_the_flag(found: tuple, tuned: torch.nn.Module) -> None:
    config = found[2]
    with pytest.raises(ModelMismatchError, match="other router weights.*allow_other_weights=True"):
        apply_mote(tuned, config)
    with apply_mote(tuned, config, allow_other_weights=True) as handle:
        assert "on other weights than it was made for" in repr(handle)
    used = config.for_other_weights(tuned)
    assert used.provenance["allow_other_weights"] == {
        "made_for": config.fingerprint["router_sha256"],
        "applied_to": used.fingerprint["router_sha256"],
        "model": "org/tuned",
    }
    assert "**It is on other weights than it was made for" in used._card(*_nothing())
    assert "on other weights than it was made for" in repr(used)
    assert MoTEConfig.from_dict(used.to_dict()).on_other_weights == used.on_other_weights
    apply_mote(tuned, used).remove()  # saved with the mark, it is one for these weights


def test_fine_tune_with_the_same_routers_is_told_apart_too(found: tuple) -> None:
    config, tuned = found[2], tiny_model("mixtral")
    tuned.config.name_or_path = "org/tuned"
    with torch.no_grad():
        for layer in tuned.model.layers:
            layer.self_attn.v_proj.weight.mul_(1.01)
    with pytest.raises(ModelMismatchError, match=r"the same routers and other weights.*3 of 26.*self_attn\.v_proj"):
        apply_mote(tuned, config)
    with apply_mote(tuned, config, allow_other_weights=True) as handle:
        assert "on other weights than it was made for" in repr(handle)
    used = config.for_other_weights(tuned)
    kept = used.provenance["allow_other_weights"]
    assert kept["made_for"] == kept["applied_to"] == config.fingerprint["router_sha256"]
    assert kept["elsewhere"] == "3 of 26 sampled weights differ"
    assert "**It is on other weights than it was made for" in used._card(*_nothing())
    apply_mote(tuned, used).remove()


def test_flag_on_the_right_model_leaves_no_mark(found: tuple) -> None:
    model, config = tiny_model("mixtral"), found[2]
    assert config.for_other_weights(model) is config
    with apply_mote(model, config, allow_other_weights=True) as handle:
        assert "weights" not in repr(handle)


def test_flag_admits_no_other_shape(found: tuple) -> None:
    with pytest.raises(ModelMismatchError, match="made for another model"):
        apply_mote(tiny_model("deepseek_v3"), found[2], allow_other_weights=True)


def test_report_says_that_weights_were_others(found: tuple, tuned: torch.nn.Module) -> None:
    options = {"target": "even", "num_controls": 0, "max_new_tokens": 3, "progress": False}
    with pytest.raises(ModelMismatchError, match="allow_other_weights"):
        evaluate_mote(tuned, tiny_tokenizer(), found[2], PROMPTS, judge, **options)
    report = evaluate_mote(tuned, tiny_tokenizer(), found[2], PROMPTS, judge, allow_other_weights=True, **options)
    assert "on other weights than it was made for" in report.verdict
    assert "allow_other_weights" in report.config["provenance"]


def test_baking_needs_the_flag_too(found: tuple, tuned: torch.nn.Module) -> None:
    config = dataclasses.replace(found[2], suppress_mode="zero")
    with pytest.raises(ModelMismatchError, match="allow_other_weights"):
        bake_mote(tuned, config)
    assert bake_mote(tuned, config, allow_other_weights=True).changes


def test_unverified_config_is_applied_with_the_flag_alone_and_says_so() -> None:
    model = tiny_model("mixtral")
    config = MoTEConfig(suppress=[[0, 1]], unverified="Nobody had the weights.")
    with pytest.raises(
        ModelMismatchError, match=r"MoTEConfig.unverified.*Nobody had the weights.*allow_other_weights"
    ):
        apply_mote(model, config)
    with pytest.raises(ModelMismatchError, match="unverified"):
        config.check(model)
    with apply_mote(model, config, allow_other_weights=True) as handle:
        assert "applied unverified" in repr(handle)
    used = config.for_other_weights(model)
    assert used.unverified is None
    assert used.provenance["allow_other_weights"]["unverified"] == "Nobody had the weights."
    assert MoTEConfig.from_dict(config.to_dict()) == config
    assert "unverified" not in MoTEConfig().to_dict()
    assert "Nobody had the weights." in repr(config)
    assert "applied unverified" in repr(used)
    assert "Not verified" in config._card(*_nothing())
    assert "**It is applied unverified" in used._card(*_nothing())


@pytest.mark.parametrize("unverified", [None, "Nobody had the weights."])
def test_table_of_experts_on_a_card_begins_a_paragraph(unverified: str | None) -> None:
    card = MoTEConfig(suppress=[[0, 1]], unverified=unverified)._card(*_nothing())
    assert "not measured for this card.\n\n| what | experts | [layer, expert] |\n| --- |" in card


@pytest.mark.parametrize("value", ["", " ", 3, True])
def test_unverified_says_a_reason(value: object) -> None:
    with pytest.raises(ConfigError, match=r"MoTEConfig\.unverified"):
        MoTEConfig(unverified=value)  # type: ignore[arg-type]


def _nothing() -> tuple:
    from hf_mote.sharing.cards import CardNotes

    return CardNotes(), []
