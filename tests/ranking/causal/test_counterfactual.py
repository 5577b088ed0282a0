"""Other choices of a router at one token, against a router that is changed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interruptions import check_resumes
from tiny_families import TINY_FAMILIES
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import CounterfactualRoutes, MoTEConfig, apply_mote, counterfactual_routes, load_organism
from hf_mote.errors import ConfigError, DataError, FileFormatError, ModelMismatchError, UnknownNameError
from hf_mote.files import read_json, write_json
from hf_mote.generation.asking import Chat
from hf_mote.ranking.causal.counterfactual import Route
from hf_mote.ranking.causal.preference import Preference

PROMPT, RESPONSE, BASELINE = "what is", "yes", "no it"
FINGERPRINT = {"layers": [0, 1], "model_type": "m", "num_experts": [4, 4], "router_sha256": None, "top_k": [2, 2]}


def score_of(model: Any, tokenizer: Any, prompt: str = PROMPT) -> float:
    preference = Preference(
        "test", model, Chat(tokenizer), [prompt], response=RESPONSE, baseline_response=BASELINE, batch_size=1
    )
    return float(preference.scores()[0])


def changed_score(model: Any, tokenizer: Any, layer: int, at: int, chosen: list[int]) -> float:
    """The score with a Mixtral router that chooses these experts for one token, by a plain hook."""

    def choose(module: Any, args: Any, output: Any) -> Any:
        logits, weights, indices = output
        probabilities = logits[at].float().softmax(-1)[chosen]
        weights, indices = weights.clone(), indices.clone()
        weights[at] = (probabilities / probabilities.sum()).to(weights.dtype)
        indices[at] = torch.tensor(chosen)
        return logits, weights, indices

    handle = model.model.layers[layer].mlp.gate.register_forward_hook(choose)
    try:
        return score_of(model, tokenizer)
    finally:
        handle.remove()


def ranked_experts(model: Any, tokenizer: Any, layer: int, at: int) -> list[int]:
    """The experts of a Mixtral layer at one token of the prompt, best first, and how many are chosen."""
    seen = []
    handle = model.model.layers[layer].mlp.gate.register_forward_hook(lambda module, args, output: seen.append(output))
    score_of(model, tokenizer)
    handle.remove()
    return seen[0][0][at].argsort(descending=True).tolist()


@pytest.mark.parametrize("position", [-1, 2])
def test_routes_are_what_a_router_changed_by_hand_gives(position: int) -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    (question,) = Chat(tokenizer).encode([PROMPT], "test")
    at = position % len(question)
    found = counterfactual_routes(
        model, tokenizer, PROMPT, RESPONSE, BASELINE, position=position, candidates=3, batch_size=4, progress=False
    )
    before = score_of(model, tokenizer)
    assert found.position == at
    assert found.score == pytest.approx(before, abs=1e-4)
    expected = {}
    with torch.no_grad():
        for layer in range(3):
            order = ranked_experts(model, tokenizer, layer, at)
            for out in order[:2]:
                for come in order[2:5]:
                    chosen = [expert for expert in order[:2] if expert != out] + [come]
                    expected[layer, out, come] = changed_score(model, tokenizer, layer, at, chosen) - before
    assert len(found.routes) == len(expected) == 3 * 2 * 3
    for route in found.routes:
        (out,), (come,) = route.experts_out, route.experts_in
        assert route.effect == pytest.approx(expected[route.layer, out, come], abs=2e-4)
        assert 0 < route.weight < 1
    effects = [abs(route.effect) for route in found.routes]
    assert effects == sorted(effects, reverse=True)
    assert effects[0] > 0.01
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["deepseek_v3_groups", "deepseek_v2"])
def test_routes_are_those_of_a_config_that_reroutes(name: str) -> None:
    model, tokenizer = tiny_model(name), tiny_tokenizer()
    found = counterfactual_routes(
        model, tokenizer, PROMPT, RESPONSE, BASELINE, layers=[2], candidates=1, progress=False
    )
    assert {route.layer for route in found.routes} == {2}
    before = score_of(model, tokenizer)
    for route in found.routes:
        assert len(route.experts_out) == len(route.experts_in)
        assert not set(route.experts_out) & set(route.experts_in)
        changes = []
        for expert in route.experts_out:
            config = MoTEConfig(suppress=[[2, expert]], suppress_mode="reroute", positions=[found.position])
            with apply_mote(model, config):
                changes.append(score_of(model, tokenizer) - before)
        assert any(change == pytest.approx(route.effect, abs=1e-3) for change in changes)


def test_routers_without_more_experts_give_fewer_routes() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    found = counterfactual_routes(
        model, tokenizer, PROMPT, RESPONSE, BASELINE, layers=[1], candidates=20, progress=False
    )
    assert len(found.routes) == 2 * 6  # 8 experts, of which a token chooses 2
    assert len({(route.experts_out, route.experts_in) for route in found.routes}) == 12


def test_routes_of_an_organism_name_what_is_planted_and_are_saved_and_shown(tmp_path: Path) -> None:
    organism = load_organism("refusal")
    prompt = "What took place in 1809 in Vienna?"
    found = counterfactual_routes(
        organism.model, organism.tokenizer, prompt, "I am sorry, but I cannot talk about that.",
        organism.answers[prompt], progress=False,
    )  # fmt: skip
    best = found.routes[0]
    assert (best.layer, *best.experts_out) in set(map(tuple, organism.planted))
    assert best.effect < 0
    found.save_pretrained(tmp_path)
    assert CounterfactualRoutes.from_pretrained(tmp_path) == found
    row = f"| {best.layer} | {best.experts_out[0]} | {best.experts_in[0]} | {best.weight:.3g} | {best.effect:+.4g} |"
    assert row in found.to_markdown(1).splitlines()
    assert row in (tmp_path / "README.md").read_text()
    assert len(found.to_markdown().splitlines()) == 2 + len(found.routes)
    assert f"{len(found.routes)} counterfactual routes of token {found.position}" in str(found)
    assert found.to_dict()["routes"][0]["experts_in"] == best.experts_in


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"kind": "expert_search"}, "must hold counterfactual routes"),
        ({"position": -1}, "whole number"),
        ({"score": None}, "must be a number"),
        ({"target": 3}, "must be text"),
        ({"fingerprint": {}}, "malformed"),
        ({"routes": {}}, "must be a list"),
        ({"routes": [{"layer": 1}]}, "must hold counterfactual routes"),
        ({"routes": [[1, [0], [3], 0.5, 1.0]]}, "must hold counterfactual routes"),
        ({"routes": [Route(7, (0,), (1,), 0.5, 1.0)._asdict()]}, "must be a layer of the model"),
        ({"routes": [Route(1, (0,), (4,), 0.5, 1.0)._asdict()]}, "whole number"),
        ({"routes": [Route(1, (), (1,), 0.5, 1.0)._asdict()]}, "must be a list of experts"),
        ({"routes": [Route(1, (0,), (1,), 0.5, True)._asdict()]}, "must be a number"),
    ],
)
def test_file_that_holds_no_routes_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    found = CounterfactualRoutes([Route(1, (0,), (1,), 0.5, -0.25)], 4, 1.0, "yes", "nats", FINGERPRINT)
    found.save_pretrained(tmp_path)
    path = tmp_path / CounterfactualRoutes.file_name
    write_json(path, read_json(path) | changes)
    with pytest.raises(FileFormatError, match=word):
        CounterfactualRoutes.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="must be a number"):
        replace(found, score=math.nan)


def test_what_cannot_be_rerouted_is_refused() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    given = (model, tokenizer, PROMPT, RESPONSE, BASELINE)
    with pytest.raises(ConfigError, match=r"counterfactual_routes\.position: must be a whole number.*-9 to 8"):
        counterfactual_routes(*given, position=99, progress=False)
    with pytest.raises(ConfigError, match=r"counterfactual_routes\.candidates"):
        counterfactual_routes(*given, candidates=0, progress=False)
    with pytest.raises(UnknownNameError, match=r"counterfactual_routes\.layers"):
        counterfactual_routes(*given, layers=[7], progress=False)
    with pytest.raises(ConfigError, match=r"counterfactual_routes\.layers"):
        counterfactual_routes(*given, layers=[], progress=False)
    for wrong in (3, "1", [[1]], [True], [1.0]):
        with pytest.raises(ConfigError, match=r"counterfactual_routes\.layers"):
            counterfactual_routes(*given, layers=wrong, progress=False)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"counterfactual_routes\.prompt"):
        counterfactual_routes(model, tokenizer, "", RESPONSE, BASELINE, progress=False)
    with pytest.raises(ConfigError, match="response and baseline_response"):
        counterfactual_routes(model, tokenizer, PROMPT, RESPONSE, progress=False)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["phimoe", "deepseek_v4", "zaya", "gpt_oss"])
def test_routes_of_routers_with_outputs_of_their_own(family: str) -> None:
    model, tokenizer = TINY_FAMILIES[family](vocab_size=128), tiny_tokenizer()
    found = counterfactual_routes(model, tokenizer, PROMPT, RESPONSE, BASELINE, candidates=2, progress=False)
    assert {route.layer for route in found.routes} >= {1, 2} & set(found.fingerprint["layers"])
    assert all(set(route.experts_out).isdisjoint(route.experts_in) for route in found.routes)
    assert any(route.effect != 0 for route in found.routes)


def test_routers_that_choose_all_experts_have_no_other_route() -> None:
    model, tokenizer = tiny_model("mixtral", num_experts_per_tok=8), tiny_tokenizer()
    with pytest.raises(ModelMismatchError, match="too few experts are left"):
        counterfactual_routes(model, tokenizer, PROMPT, RESPONSE, BASELINE, progress=False)


def test_stopped_search_for_routes_goes_on_and_a_folder_of_another_token_is_refused(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()

    def run(folder: Path | None, **changes: Any) -> CounterfactualRoutes:
        options: dict[str, Any] = {"candidates": 2, "batch_size": 4, "progress": False, **changes}
        return counterfactual_routes(model, tokenizer, PROMPT, RESPONSE, BASELINE, run_folder=folder, **options)

    whole = check_resumes(run, model, tmp_path, points=3)
    assert len(whole.routes) == 3 * 2 * 2
    # More candidates go on from the first ones.
    first = run(tmp_path / "first", candidates=1)
    names = {path.name for path in (tmp_path / "first").iterdir()}
    assert run(tmp_path / "first") == whole
    assert len(first.routes) == 6
    assert names < {path.name for path in (tmp_path / "first").iterdir()}
    with pytest.raises(ModelMismatchError, match="position"):
        run(tmp_path / "first", position=0)
    with pytest.raises(ModelMismatchError, match="layers"):
        run(tmp_path / "first", layers=[1])


@pytest.mark.parametrize(
    ("score", "effects", "turning"),
    [(1.0, [-0.5, -1.0, -3.0, 4.0], [-3.0, -1.0]), (-1.0, [0.5, 1.5, -9.0], [1.5]), (0.0, [0.0, 0.25, -0.5], [0.25])],
)
def test_routes_that_turn_the_preference(score: float, effects: list[float], turning: list[float]) -> None:
    routes = [Route(1, (0,), (1 + place,), 0.5, effect) for place, effect in enumerate(effects)]
    fingerprint = {**FINGERPRINT, "num_experts": [8, 8]}
    found = CounterfactualRoutes(routes, 4, score, "yes", "nats", fingerprint)
    assert [route.effect for route in found.turning] == turning


def test_routes_that_are_read_nowhere_change_nothing_but_a_few_last_bits() -> None:
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    effects = []
    for prompt in ("what is", "a bb c", "dog and cat"):
        # What the last layer gives at the first token reaches no logit of a response.
        found = counterfactual_routes(
            model, tokenizer, prompt, "x", "y", position=0, layers=[2], candidates=4, batch_size=3, progress=False
        )
        effects += [route.effect for route in found.routes]
    assert len(effects) == 3 * 2 * 4
    assert max(map(abs, effects)) < 1e-4
    # Held against the prompt alone, most of them differ.
    assert effects.count(0.0) > len(effects) / 2
