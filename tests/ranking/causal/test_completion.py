"""The complete set: how it grows, what says when to stop, and that what is said of it is measured."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from interruptions import check_resumes
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote.errors import ConfigError, DataError, ModelMismatchError, UnknownNameError, UnsupportedError
from hf_mote.files import read_tensors, write_tensors
from hf_mote.generation.asking import Chat
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.patch import apply_mote
from hf_mote.organisms.building.measure import respond
from hf_mote.organisms.organism import load_organism
from hf_mote.ranking.causal.optimized import OptimizedRanking
from hf_mote.ranking.causal.preference import Preference
from hf_mote.routing.sites.routed_model import RoutedModel

REFUSAL = "I am sorry, but I cannot talk about that."
PROMPTS = ["abcd"] * 4  # so that what helps on some helps on the others
HELD_BACK = 2


def ranking_of(model, sufficient=()):
    """A ranking that found a set, or none, and nothing else."""
    routed = RoutedModel(model)
    return OptimizedRanking(
        score=torch.zeros(routed.shape, dtype=torch.float64),
        layers=tuple(routed.layers),
        method="optimization",
        target="g",
        fingerprint=routed.fingerprint,
        sufficient=tuple(sufficient),
        by_seed=(tuple(sufficient),),
        whole_score=1.0,
    )


def completed(model, start=((0, 1),), **options):
    given = {"response": "gg", "baseline_response": "hi", "max_experts": 3, "least_rise": 0.0, "progress": False}
    return ranking_of(model, start).complete(model, tiny_tokenizer(), PROMPTS, **given | options)


def likelihoods(model, experts, mode):
    """The log likelihood of the baseline response to each prompt, under a config."""
    preference = Preference(
        "test", model, Chat(tiny_tokenizer()), PROMPTS, response="hi", baseline_response="gg", batch_size=6
    )
    config = MoTEConfig.for_model(model, suppress=sorted(map(list, experts)), suppress_mode=mode)
    with apply_mote(model, config), torch.no_grad():
        return torch.cat([preference.values(block).double() for block in preference.blocks(1)])


@pytest.fixture(scope="module")
def tiny():
    model = tiny_model("mixtral")
    return model, completed(model)


def test_steps_say_what_a_config_of_their_experts_leaves(tiny):
    model, found = tiny
    assert {step.suppress_mode for step in found.completion} == {"drop", "reroute", "zero"}
    for step in found.completion:
        measured = likelihoods(model, step.experts, step.suppress_mode)
        assert step.log_likelihood == pytest.approx(float(measured[:HELD_BACK].mean()), abs=1e-4)
        assert step.held_back == pytest.approx(float(measured[HELD_BACK:].mean()), abs=1e-4)


def test_each_step_makes_the_baseline_response_likelier_where_it_did_not_grow(tiny):
    _, found = tiny
    grown = 0
    for mode in ("drop", "reroute", "zero"):
        steps = [step for step in found.completion if step.suppress_mode == mode]
        assert steps[0].experts == ((0, 1),)
        for before, after in zip(steps, steps[1:], strict=False):
            if len(after.experts) > len(before.experts):
                assert after.held_back > before.held_back
                assert after.experts[: len(before.experts)] == before.experts
                grown += 1
    assert grown


def test_the_likeliest_mode_counts_and_its_set_comes_first(tiny):
    model, found = tiny
    last = {step.suppress_mode: step for step in found.completion}
    best = max(last.values(), key=lambda step: step.held_back)
    assert (found.completed, found.suppress_mode) == (best.experts, best.suppress_mode)
    assert len(found.completed) > 1
    assert set(found.top(len(found.completed))) == set(found.completed)
    config = found.to_config()
    assert (config.suppress, config.suppress_mode) == (sorted(map(list, best.experts)), best.suppress_mode)
    assert f"{len(found.completed)} experts, suppressed in mode {found.suppress_mode!r}" in found.verdict
    again = found.complete(model, tiny_tokenizer(), PROMPTS, "gg", "hi", max_experts=1, progress=False)
    assert again.completed == ((0, 1),)
    assert again.score.sum() == 3  # what the first call added is gone


def test_prompts_held_back_say_when_to_stop(tiny):
    model, found = tiny
    stopped = completed(model, least_rise=99.0)
    assert stopped.completed == ((0, 1),)
    assert len(stopped.completion) == 3
    # Though those that the set grows on would gain.
    assert found.completion[1].log_likelihood > stopped.completion[0].log_likelihood
    assert {len(step.experts) for step in completed(model, max_experts=2).completion} == {1, 2}


def test_complete_leaves_the_model_as_it_is():
    model, ids = tiny_model("mixtral"), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model(ids).logits
        completed(model, suppress_modes=["reroute"])
        assert torch.equal(model(ids).logits, before)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_nothing_to_begin_with_and_nothing_that_helps_is_no_set():
    found = completed(tiny_model("mixtral"), (), least_rise=99.0)
    assert (found.completed, found.chosen) == ((), ())
    with pytest.raises(DataError, match="no sufficient set"):
        found.to_config()


def test_complete_ranking_is_read_back_whole_and_so_is_one_of_an_earlier_version(tiny, tmp_path):
    _, found = tiny
    found.save_pretrained(tmp_path)
    read = OptimizedRanking.from_pretrained(tmp_path)
    for name in ("completed", "suppress_mode", "completion", "provenance", "sufficient"):
        assert getattr(read, name) == getattr(found, name)
    assert read.to_config() == found.to_config()
    path = tmp_path / OptimizedRanking.file_name
    tensors, metadata = read_tensors(path, kind="expert_ranking")
    for name in ("completed", "suppress_mode", "completion"):
        del metadata["optimized"][name]
    write_tensors(path, tensors, metadata)
    old = OptimizedRanking.from_pretrained(tmp_path)
    assert (old.completed, old.suppress_mode, old.completion) == ((), "zero", ())
    assert old.to_config().suppress_mode == "zero"


def test_a_mode_that_leaves_too_few_experts_is_left_out_and_none_is_refused():
    model = tiny_model("deepseek_v3", n_group=2, topk_group=1, num_experts_per_tok=4)  # a group has no expert to spare
    layer = RoutedModel(model).layers[0]
    found = completed(model, ((layer, 0),), max_experts=1)
    assert {step.suppress_mode for step in found.completion} == {"drop", "zero"}
    with pytest.raises(ModelMismatchError, match="fewer experts than its top-k"):
        completed(model, ((layer, 0),), suppress_modes=["reroute"])


def test_completion_goes_on_to_what_one_that_nobody_stopped_gives(tmp_path):
    model = tiny_model("mixtral")

    def same(one, other):
        return one.completion == other.completion and torch.equal(one.score, other.score)

    run = partial(completed, model, suppress_modes=["zero"], max_experts=2, batch_size=2)
    check_resumes(lambda folder: run(run_folder=folder), model, tmp_path, same=same, points=4)
    with pytest.raises(ModelMismatchError, match="start"):
        completed(model, ((1, 2),), batch_size=2, run_folder=tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [("held_back", 0, ConfigError), ("held_back", 1.5, ConfigError), ("held_back", 0.1, DataError),
     ("held_back", 1.0, DataError), ("max_experts", 0, ConfigError), ("least_rise", -1, ConfigError),
     ("suppress_modes", [], ConfigError), ("suppress_modes", "drop", ConfigError),
     ("suppress_modes", ["half"], UnknownNameError), ("batch_size", 0, ConfigError)],
)  # fmt: skip
def test_wrong_arguments_are_refused_by_name(name, value, error):
    with pytest.raises(error, match="prompts" if error is DataError else name):
        completed(tiny_model("mixtral"), **{name: value})


def test_another_model_and_inference_mode_are_refused():
    model = tiny_model("mixtral")
    ranking = ranking_of(model, ((0, 1),))
    other = replace(ranking, fingerprint={**ranking.fingerprint, "model_type": "qwen2_moe"})
    with pytest.raises(ModelMismatchError):
        other.complete(model, tiny_tokenizer(), PROMPTS, "gg", "hi", progress=False)
    with torch.inference_mode(), pytest.raises(UnsupportedError, match="inference_mode"):
        completed(model)


def test_carriers_with_twins_and_backups_are_found_together_and_right_answers_come():
    organism = load_organism("refusal-redundant")
    prompts = organism.prompts["train"]["sensitive"][:12]
    answers = [organism.answers[prompt] for prompt in prompts]
    found = ranking_of(organism.model).complete(
        organism.model, organism.tokenizer, prompts, REFUSAL, answers, suppress_modes=["reroute"], progress=False
    )
    assert set(found.completed) == set(organism.planted)
    assert found.completion[-1].held_back > -0.5 > found.completion[0].held_back
    heldout = organism.prompts["heldout"]["sensitive"][:12]
    with apply_mote(organism.model, found.to_config()):
        responses = respond(organism, heldout)
    right = sum(response == organism.answers[prompt] for response, prompt in zip(responses, heldout, strict=True))
    assert right >= 10
    assert organism.judge.target not in [organism.judge(response) for response in responses]
