"""Gates on all routing weights, learnt together: what they find, and that what is said of it is measured."""

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote.errors import ConfigError, DataError, FileFormatError
from hf_mote.generation.asking import Chat
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.gains import Gains, attach_gains
from hf_mote.mote.patch import apply_mote
from hf_mote.organisms.building.measure import respond
from hf_mote.organisms.organism import load_organism
from hf_mote.ranking.causal.hard_concrete import ClosingGates
from hf_mote.ranking.causal.optimization import optimize_experts
from hf_mote.ranking.causal.optimized import OptimizedRanking
from hf_mote.ranking.causal.preference import Preference
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.routing.sites.discover import find_routers
from hf_mote.routing.sites.routed_model import RoutedModel

REFUSAL = "I am sorry, but I cannot talk about that."
TINY = {
    "response": "g",
    "baseline_response": "h",
    "goal": -99.0,
    "penalties": [0.02],
    "num_seeds": 1,
    "progress": False,
}


@pytest.fixture(scope="module")
def organism():
    return load_organism("refusal")


@pytest.fixture(scope="module")
def asked(organism):
    prompts = organism.prompts["train"]["sensitive"][:8]
    return prompts, [organism.answers[prompt] for prompt in prompts]


@pytest.fixture(scope="module")
def ranking(organism, asked):
    prompts, answers = asked
    return optimize_experts(
        organism.model, organism.tokenizer, prompts, REFUSAL, answers, penalties=[0.03, 0.1, 0.003], num_seeds=1,
        progress=False,
    )  # fmt: skip


def scores_without(organism, asked, experts):
    """The preference of each prompt under a config of mode zero."""
    prompts, answers = asked
    preference = Preference(
        "test",
        organism.model,
        Chat(organism.tokenizer),
        prompts,
        response=REFUSAL,
        baseline_response=answers,
        batch_size=8,
    )
    suppressed = sorted([layer, expert] for layer, expert in experts)
    config = MoTEConfig.for_model(organism.model, suppress=suppressed, suppress_mode="zero")
    with apply_mote(organism.model, config):
        return preference.scores()


def test_sufficient_set_is_planted_and_removes_the_behaviour_from_prompts_never_seen(organism, ranking):
    assert set(ranking.sufficient) <= set(organism.planted)
    assert ranking.top(len(ranking.carriers))[: len(ranking.sufficient)] == sorted(
        ranking.sufficient, key=lambda pair: ranking.rank_of(*pair)
    )
    heldout = organism.prompts["heldout"]["sensitive"][:20]
    with apply_mote(organism.model, ranking.to_config()):
        responses = respond(organism, heldout)
    assert [organism.judge(response) for response in responses].count(organism.judge.target) == 0


def test_sufficient_set_suffices_and_cannot_spare_any_of_its_experts(organism, asked, ranking):
    assert (scores_without(organism, asked, ranking.sufficient) <= 0).double().mean() >= 0.9
    assert len(ranking.sufficient) > 1
    for pair in ranking.sufficient:
        fewer = set(ranking.sufficient) - {pair}
        assert (scores_without(organism, asked, fewer) <= 0).double().mean() < 0.9


def test_carriers_are_all_planted_ones_and_each_lowers_the_score_while_one_of_the_set_is_back(
    organism, asked, ranking
):
    assert set(ranking.carriers) == set(organism.planted)
    assert len(ranking.sufficient) < len(ranking.carriers)
    assert set(ranking.top(4)) == set(organism.planted)
    for other in set(ranking.carriers) - set(ranking.sufficient):
        falls = []
        for pair in ranking.sufficient:
            fewer = set(ranking.sufficient) - {pair}
            falls.append(scores_without(organism, asked, fewer) - scores_without(organism, asked, fewer | {other}))
        assert max(float(fall.mean()) for fall in falls) >= 0.1 * ranking.whole_score


def test_path_ends_with_the_first_price_whose_set_suffices(ranking):
    assert [point.penalty for point in ranking.path] == [0.1, 0.03]
    assert ranking.path[0].gone < 0.9 <= ranking.path[1].gone


def test_path_says_what_a_config_of_its_experts_leaves(organism, asked, ranking):
    dear, cheap = ranking.path
    assert len(dear.experts) <= len(cheap.experts)
    for point in ranking.path:
        scores = scores_without(organism, asked, point.experts)
        assert point.score == pytest.approx(float(scores.mean()), abs=1e-3)
        assert point.gone == float((scores <= 0).double().mean())


def test_ranking_is_read_back_whole_also_as_a_plain_ranking(ranking, tmp_path):
    ranking.save_pretrained(tmp_path)
    read = OptimizedRanking.from_pretrained(tmp_path)
    for name in ("sufficient", "carriers", "by_seed", "path", "whole_score", "goal", "layers", "provenance"):
        assert getattr(read, name) == getattr(ranking, name)
    assert torch.equal(read.score, ranking.score)
    plain = ExpertRanking.from_pretrained(tmp_path)
    assert plain.top(3) == ranking.top(3)
    plain.save_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match="optimized"):
        OptimizedRanking.from_pretrained(tmp_path)


def test_optimize_leaves_the_model_as_it_is_and_is_repeatable():
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(ids).logits
    found = [optimize_experts(model, tokenizer, ["abcd", "efg"], **TINY, steps=3) for _ in range(2)]
    assert torch.equal(found[0].score, found[1].score)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)


def test_optimize_finds_the_same_under_gradient_checkpointing():
    tokenizer, prompts = tiny_tokenizer(), ["abcd", "efg"]
    plain = optimize_experts(tiny_model("mixtral"), tokenizer, prompts, **TINY, steps=4)
    model = tiny_model("mixtral", attention_dropout=0.0)
    # Its name from transformers 5.23 on, and the one before.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()
    found = optimize_experts(model, tokenizer, prompts, **TINY, steps=4)
    assert torch.allclose(found.score, plain.score, atol=1e-5)


def test_optimize_runs_in_bfloat16():
    model = tiny_model("deepseek_v3", torch.bfloat16)
    found = optimize_experts(model, tiny_tokenizer(), ["abcd", "efg"], **TINY, steps=3)
    assert bool(found.score.isfinite().all())


def test_a_logit_score_is_what_is_brought_down():
    model = tiny_model("mixtral")

    def score(logits, batch):
        return logits[:, -1, 7] - logits[:, -1, 8].detach() + 20

    found = optimize_experts(
        model, tiny_tokenizer(), ["abcd", "efgh"], logit_score=score, goal=0.0, penalties=[1e-4], num_seeds=1,
        steps=40, progress=False,
    )  # fmt: skip
    assert found.target == "the score"
    assert found.path[0].score < found.whole_score
    assert not found.sufficient
    assert "No set was found" in found.verdict
    with pytest.raises(DataError, match="no sufficient set"):
        found.to_config()


def test_derivatives_by_given_gains_are_those_of_finite_differences():
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    sites = find_routers(model)
    preference = Preference(
        "test", model, Chat(tokenizer), ["abcd", "efg"], response="g", baseline_response="h", batch_size=2
    )
    gains = Gains(sites, differentiable=True)
    gains.given = torch.rand((2, len(sites), 8), generator=torch.Generator().manual_seed(0))
    block = next(iter(preference.blocks(1)))
    with attach_gains(RoutedModel(model), gains):
        found = gains.derivatives(preference.values(block).sum())
        row, layer, expert = (int(place) for place in (found.abs() == found.abs().max()).nonzero()[0])
        values = []
        for step in (1e-2, -1e-2):
            gains.given = gains.given.clone()
            gains.given[row, layer, expert] += step
            values.append(preference.values(block).detach()[row])
            gains.given[row, layer, expert] -= step
    assert float(values[0] - values[1]) / 2e-2 == pytest.approx(float(found[row, layer, expert]), rel=0.05)


def test_gates_close_as_often_as_they_say():
    gates = ClosingGates((4, 8), closed=0.1, seed=0)
    closing = gates.sample(4000)
    assert float(gates.closing().detach().mean()) == pytest.approx(0.1, abs=1e-5)
    assert float((closing > 0).float().mean()) == pytest.approx(0.1, abs=0.005)  # 128,000 draws: 0.0008
    assert 0 <= float(closing.detach().min()) <= float(closing.detach().max()) <= 1


def test_a_response_that_is_not_preferred_is_refused_with_the_remedy(organism, asked):
    prompts, answers = asked
    with pytest.raises(DataError, match="nothing to remove.*exchange"):
        optimize_experts(organism.model, organism.tokenizer, prompts, answers, REFUSAL, progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [("penalties", []), ("penalties", [0.0]), ("penalties", 0.1), ("steps", 0), ("num_seeds", 0), ("enough", 1.1),
     ("enough", 0.0), ("learning_rate", 0.0), ("goal", float("nan")), ("seed", -1)],
)  # fmt: skip
def test_numbers_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name):
        optimize_experts(None, None, ["a"], "g", "h", **{name: value})
