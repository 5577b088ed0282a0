"""Taking experts out: one at a time, and in sets built up greedily."""

import pytest
import torch

from hf_mote.errors import ConfigError, DataError, FileFormatError, UnknownNameError
from hf_mote.files import read_json, write_json
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote
from hf_mote.organisms.organism import load_organism
from hf_mote.ranking.causal.ablation import ablate_experts
from hf_mote.ranking.causal.attribution import attribute_experts
from hf_mote.ranking.causal.search import ExpertSearch, search_experts

REFUSAL = "I am sorry, but I cannot talk about that."


@pytest.fixture(scope="module")
def organism():
    return load_organism("refusal")


@pytest.fixture(scope="module")
def asked(organism):
    prompts = organism.prompts["train"]["sensitive"][:6]
    return prompts, [organism.answers[prompt] for prompt in prompts]


def preference(organism, prompts, baseline, config_for=None):
    """log p(refusal) - log p(right answer) of each prompt, prompt by prompt, by the model's own loss.

    `config_for` gives the config that is attached for a prompt of so many tokens.
    """
    scores = []
    for prompt, other in zip(prompts, baseline, strict=True):
        terms = []
        for response in (REFUSAL, other):
            tokenizer = organism.tokenizer
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            question = tokenizer(text, add_special_tokens=False)["input_ids"]
            answer = tokenizer(response, add_special_tokens=False)["input_ids"]
            config = MoTEConfig() if config_for is None else config_for(len(question))
            with apply_mote(organism.model, config):
                logits = organism.model(torch.tensor([question + answer]), use_cache=False).logits[
                    0, len(question) - 1 : -1
                ]
            terms.append(logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).sum())
        scores.append(terms[0] - terms[1])
    return torch.stack(scores)


@torch.no_grad()
def test_ablation_is_the_fall_of_the_preference_under_a_config_of_mode_zero(organism, asked):
    prompts, baseline = asked
    tried = [organism.planted[0], (1, 7), (4, 2)]
    ranking = ablate_experts(
        organism.model, organism.tokenizer, prompts, REFUSAL, baseline, experts=tried, resamples=99, progress=False
    )
    whole = preference(organism, prompts, baseline)
    for layer, expert in tried:
        config = MoTEConfig.for_model(organism.model, suppress=[[layer, expert]], suppress_mode="zero")
        with apply_mote(organism.model, config):
            expected = (whole - preference(organism, prompts, baseline)).mean()
        row = next(row for row in ranking.rows(len(ranking)) if (row.layer, row.expert) == (layer, expert))
        assert row.score == pytest.approx(float(expected), abs=1e-3)
        assert row.low <= row.score <= row.high
        assert 0 < row.p <= row.q <= 1


@torch.no_grad()
def test_ablation_at_positions_is_the_fall_under_a_config_at_these_tokens(organism, asked):
    prompts, baseline = asked
    tried = [organism.planted[0], organism.planted[1], (1, 7)]
    whole = preference(organism, prompts, baseline)
    for positions in ([-1], [2, -2], [0]):
        ranking = ablate_experts(
            organism.model, organism.tokenizer, prompts, REFUSAL, baseline, experts=tried, resamples=0,
            positions=positions, progress=False,
        )  # fmt: skip
        assert ranking.provenance["positions"] == sorted(positions)
        for layer, expert in tried:

            def config_for(length, pair=(layer, expert), positions=positions):
                at = [position % length for position in positions]
                return MoTEConfig(suppress=[pair], suppress_mode="zero", positions=at)

            expected = (whole - preference(organism, prompts, baseline, config_for)).mean()
            row = next(row for row in ranking.rows(len(ranking)) if (row.layer, row.expert) == (layer, expert))
            assert row.score == pytest.approx(float(expected), abs=1e-3)
    with pytest.raises(DataError, match="ablate_experts.positions: no prompt has a token there"):
        ablate_experts(
            organism.model, organism.tokenizer, prompts, REFUSAL, baseline, positions=[5000, -999], progress=False
        )
    with pytest.raises(ConfigError, match=r"ablate_experts\.positions"):
        ablate_experts(organism.model, organism.tokenizer, prompts, REFUSAL, baseline, positions=[1.5], progress=False)


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_attribution_over_all_tokens_is_the_sum_of_that_over_some_and_over_the_others(organism, asked, gain):
    prompts, baseline = asked

    def scores(positions=None):
        return attribute_experts(
            organism.model, organism.tokenizer, prompts, REFUSAL, baseline, gain=gain, resamples=0,
            positions=positions, progress=False,
        ).score  # fmt: skip

    whole, first, others = scores(), scores([0, 2, 3]), scores([1, *range(4, 400)])
    assert (first != 0).any()
    assert (others != 0).any()
    torch.testing.assert_close(first + others, whole, rtol=1e-4, atol=1e-4)
    last, before = scores([-1]), scores(range(-400, -1))
    assert (last != 0).any()
    assert not torch.allclose(last + before, whole, atol=1e-3)  # the response is at no negative position


def test_ablation_of_experts_not_tried_has_score_0_and_nothing_more(organism, asked):
    prompts, baseline = asked
    tried = [organism.planted[0]]
    ranking = ablate_experts(
        organism.model, organism.tokenizer, prompts, REFUSAL, baseline, experts=tried, resamples=99, progress=False
    )
    others = [row for row in ranking.rows(len(ranking)) if [row.layer, row.expert] != list(tried[0])]
    assert len(others) == len(ranking) - 1
    assert all(row.score == 0 and row.p != row.p and row.low != row.low for row in others)


def test_ablation_agrees_with_attribution_in_sign_where_the_effect_is_small(organism, asked):
    # To first order attribution is the effect; experts of tiny effect are where that holds.
    prompts, baseline = asked
    first_order = attribute_experts(
        organism.model, organism.tokenizer, prompts, REFUSAL, baseline, resamples=0, progress=False
    )
    matrix = first_order.matrix()
    middling = [(layer, int(matrix[row].abs().argsort()[-20])) for row, layer in enumerate(first_order.layers)]
    exact = ablate_experts(
        organism.model,
        organism.tokenizer,
        prompts,
        REFUSAL,
        baseline,
        experts=middling,
        resamples=0,
        progress=False,
    ).matrix()
    for row, (_, expert) in enumerate(middling):
        assert float(exact[row, expert]) == pytest.approx(float(matrix[row, expert]), rel=0.6, abs=0.02)


def test_ablation_leaves_the_model_as_it_was(organism, asked):
    prompts, baseline = asked
    before = {name: tensor.clone() for name, tensor in organism.model.state_dict().items()}
    ids = torch.tensor([[5, 6, 7]])
    logits = organism.model(ids).logits
    ablate_experts(
        organism.model, organism.tokenizer, prompts, REFUSAL, baseline, experts=[(1, 0)], resamples=0, progress=False
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in organism.model.state_dict().items())
    assert torch.equal(organism.model(ids).logits, logits)
    assert all(parameter.grad is None for parameter in organism.model.parameters())
    assert not any(module._forward_hooks for module in organism.model.modules())


def test_search_finds_the_set_that_brute_force_finds_step_by_step(organism, asked, tmp_path):
    prompts, baseline = asked
    candidates = [*map(tuple, organism.planted), (1, 3), (2, 9)]
    found = search_experts(
        organism.model,
        organism.tokenizer,
        prompts,
        REFUSAL,
        baseline,
        max_experts=3,
        experts=candidates,
        progress=False,
    )
    chosen, scores = [], []
    with torch.no_grad():
        scores.append(float(preference(organism, prompts, baseline).mean()))
        for _ in range(3):
            tried = {}
            for pair in set(candidates) - set(chosen):
                config = MoTEConfig.for_model(
                    organism.model, suppress=[list(p) for p in (*chosen, pair)], suppress_mode="zero"
                )
                with apply_mote(organism.model, config):
                    tried[pair] = float(preference(organism, prompts, baseline).mean())
            best = min(tried, key=tried.get)
            chosen.append(best)
            scores.append(tried[best])
    assert found.experts == chosen
    assert found.scores == pytest.approx(scores, abs=1e-3)
    assert found.evaluations == 6 + 5 + 4
    assert found.to_config(2).suppress == sorted(map(list, chosen[:2]))
    found.save_pretrained(tmp_path)
    again = ExpertSearch.from_pretrained(tmp_path)
    assert again == found
    assert again.to_config(2) == found.to_config(2)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"experts": [[1, 2], [1, 2]]}, "names an expert twice"),
        ({"experts": [[1], [0, 3]]}, "not an expert"),
        ({"experts": [[1, -2], [0, 3]]}, "whole number"),
        ({"experts": [[1, 4], [0, 3]]}, "does not exist"),
        ({"scores": [1.0, 0.5]}, "3 scores"),
        ({"scores": [1.0, None, 0.5]}, "must be a number"),
        ({"evaluations": True}, "whole number"),
        ({"fingerprint": {}}, "malformed"),
        ({"kind": "expert_ranking"}, "must be an expert search"),
    ],
)
def test_search_file_that_is_none_is_refused_by_name(tmp_path, changes, word):
    fingerprint = {"layers": [0, 1], "model_type": "m", "num_experts": [4, 4], "router_sha256": None, "top_k": [2, 2]}
    found = ExpertSearch([(1, 2), (0, 3)], [1.0, 0.5, 0.25], 7, fingerprint)
    found.save_pretrained(tmp_path)
    path = tmp_path / ExpertSearch.file_name
    write_json(path, read_json(path) | changes)
    with pytest.raises(FileFormatError, match=word):
        ExpertSearch.from_pretrained(tmp_path)


def test_search_keeps_to_its_budget_and_stops_when_nothing_helps(organism, asked):
    prompts, baseline = asked
    arguments = (organism.model, organism.tokenizer, prompts, REFUSAL, baseline)
    candidates = [*map(tuple, organism.planted), (1, 3), (2, 9)]
    found = search_experts(*arguments, max_experts=4, experts=candidates, max_evaluations=8, progress=False)
    assert found.evaluations == 8
    nothing = search_experts(*arguments, max_experts=4, experts=candidates, least_gain=1e6, progress=False)
    assert nothing.experts == []
    assert len(nothing.scores) == 1


def test_search_budget_below_the_candidates_is_refused_with_the_number_needed(organism, asked):
    prompts, baseline = asked
    arguments = (organism.model, organism.tokenizer, prompts[:1], REFUSAL, baseline[:1])
    with pytest.raises(ConfigError, match="expected 256 or more"):
        search_experts(*arguments, max_experts=2, max_evaluations=255, progress=False)


def test_search_spends_what_is_left_of_its_budget_on_the_strongest(organism, asked):
    prompts, baseline = asked
    arguments = (organism.model, organism.tokenizer, prompts, REFUSAL, baseline)
    last = max(map(tuple, organism.planted))
    idle = [
        (layer, expert)
        for layer in range(1, last[0])
        for expert in range(9)
        if [layer, expert] not in organism.planted
    ]
    strong = sorted(map(tuple, organism.planted), reverse=True)[:2]
    # The first round tries all; of the second one only a single candidate is tried, in whatever order they came.
    found = search_experts(*arguments, max_experts=2, experts=[*idle[:6], *strong], max_evaluations=9, progress=False)
    assert set(found.experts) == set(strong)
    assert found.evaluations == 9


def test_causal_rankings_take_a_score_of_the_callers(organism, asked):
    prompts, _ = asked
    token = organism.tokenizer("I am", add_special_tokens=False)["input_ids"][0]

    def score(logits, batch):
        last = batch["attention_mask"].sum(dim=1) - 1
        return logits[torch.arange(len(logits)), last].log_softmax(-1)[:, token]

    arguments = (organism.model, organism.tokenizer, prompts)
    by_gradient = attribute_experts(*arguments, logit_score=score, gain=0.5, resamples=99, progress=False)
    by_ablation = ablate_experts(*arguments, logit_score=score, experts=organism.planted, resamples=0, progress=False)
    assert set(by_gradient.top(5)) & set(map(tuple, organism.planted))
    assert by_ablation.rows(1)[0].score > 0


def test_causal_rankings_need_both_responses_or_a_score(organism, asked):
    prompts, baseline = asked
    arguments = (organism.model, organism.tokenizer, prompts)
    for given in (
        {},
        {"response": "a"},
        {"response": "a", "baseline_response": "b", "logit_score": lambda logits, batch: logits},
    ):
        with pytest.raises(ConfigError, match="response and baseline_response, or logit_score"):
            ablate_experts(*arguments, **given, progress=False)
    with pytest.raises(DataError, match="one number for each prompt"):
        attribute_experts(*arguments, logit_score=lambda logits, batch: logits.sum(), progress=False)
    with pytest.raises(DataError, match="not one response for each"):
        ablate_experts(*arguments, REFUSAL, baseline[:2], progress=False)


def test_ablation_of_an_expert_that_is_not_there_says_which(organism, asked):
    prompts, baseline = asked
    with pytest.raises(UnknownNameError, match="expert 64"):
        ablate_experts(organism.model, organism.tokenizer, prompts, REFUSAL, baseline, experts=[(1, 64)])
    with pytest.raises(UnknownNameError, match="layer 0"):
        search_experts(organism.model, organism.tokenizer, prompts, REFUSAL, baseline, experts=[(0, 1)], max_experts=1)
    with pytest.raises(ConfigError, match="nothing to try"):
        ablate_experts(organism.model, organism.tokenizer, prompts, REFUSAL, baseline, experts=[])
