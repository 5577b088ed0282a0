import logging

import pytest
import torch

from hf_mote import ftri
from hf_mote.errors import ConfigError, DataError
from hf_mote.organisms.organism import load_organism
from hf_mote.ranking.imaging.result import FTRIResult


@pytest.fixture(scope="module")
def organism():
    return load_organism("refusal")


def result(classes, counts=None, tokens=None, **fields):
    n = len(classes)
    if counts is None:
        counts = torch.randn(n, 1, 4, generator=torch.Generator().manual_seed(0)).abs()
    tokens = torch.full((n,), 5.0) if tokens is None else torch.tensor(tokens)
    known = {"scope": "prompt", "layers": (0,), "fingerprint": None, **fields}
    text = [str(i) for i in range(n)]
    return FTRIResult(
        prompts=text,
        responses=text,
        classes=list(classes),
        counts=counts,
        weights=counts / 2,
        num_tokens=tokens,
        **known,
    )


def twins(n=12):
    """Pairs on topics of very different size, the first of the two 3 tokens more: (classes, counts, keys)."""
    generator = torch.Generator().manual_seed(0)
    topic = torch.randint(20, 90, (n, 1, 1), generator=generator).repeat_interleave(2, dim=0)
    more = torch.tensor([3, 0] * n).view(-1, 1, 1)
    noise = torch.rand(2 * n, 1, 4, generator=generator)
    return ["refusal", "answer"] * n, (topic + more + noise).float(), [f"topic {i // 2}" for i in range(2 * n)]


def test_rank_paired_by_keys_is_that_by_order_where_the_order_is_right():
    classes, counts, keys = twins()
    by_keys = result(classes, counts).rank("refusal", paired=keys)
    by_order = result(classes, counts).rank("refusal", paired=True)
    assert torch.equal(by_keys.score, by_order.score)
    assert torch.equal(by_keys.p, by_order.p)
    assert by_keys.provenance["compared"] == "12 pairs of prompts"


def test_rank_paired_by_keys_leaves_incomplete_pairs_out_and_says_so(caplog):
    classes, counts, keys = twins()
    classes[2], classes[19] = "answer", "refusal"  # two labels off: both prompts of a pair in one class
    with caplog.at_level(logging.WARNING):
        found = result(classes, counts).rank("refusal", paired=keys)
    assert found.provenance["left_out"] == 4
    kept = [i for i in range(24) if i // 2 not in (1, 9)]
    only = result(["refusal", "answer"] * 10, counts[kept]).rank("refusal", paired=True)
    assert torch.equal(found.score, only.score)
    assert torch.equal(found.low, only.low)
    assert float(found.low.min()) > 1


def test_rank_paired_by_an_order_that_two_labels_have_upset_is_refused():
    classes, counts, _ = twins()
    classes[2], classes[37 % 24] = "answer", "refusal"
    with pytest.raises(DataError, match=r"does not show which prompts are a pair.*paired=\[") as caught:
        result(classes, counts).rank("refusal", paired=True)
    assert "key for each prompt" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ([1, 1, 2, 2, 3], "not one key for each prompt"),
        ("abcdef", "not one key for each prompt"),
        ([1, 1, 2, 3, 4, 5], "too few keys"),
        ([[1], [1], [2], [2], [3], [3]], "must be a key"),
    ],
)
def test_rank_paired_by_odd_keys_is_refused(keys, word):
    with pytest.raises(DataError, match=word):
        result(["a", "b"] * 3).rank("a", paired=keys)


def test_rank_paired_by_keys_takes_runs_of_a_prompt_as_one():
    classes, counts, keys = twins(6)
    index = torch.arange(12).repeat_interleave(3)
    twice = result([c for c in classes for _ in range(3)], counts[index], prompt_index=index)
    found = twice.rank("refusal", paired=[key for key in keys for _ in range(3)])
    assert torch.allclose(found.score, result(classes, counts).rank("refusal", paired=keys).score, atol=1e-5)
    with pytest.raises(DataError, match="several keys"):
        twice.rank("refusal", paired=list(range(36)))


def test_rank_of_a_scope_that_counts_no_token_is_refused_by_its_name():
    empty = result("aabb", torch.zeros(4, 1, 4), [0.0] * 4, scope="thinking")
    for call in (empty.rank, lambda target: empty.stability(target, 2)):
        with pytest.raises(DataError, match="scope 'thinking' counted no token of any of 4 prompts"):
            call("a")


@pytest.mark.parametrize("options", [{"normalize": True}, {"score": "npmi"}, {"score": "weight_difference"}])
def test_rank_per_token_leaves_prompts_without_tokens_out(options):
    counts = torch.rand(7, 1, 4, generator=torch.Generator().manual_seed(1))
    counts[2] = 0
    tokens = [5.0, 4.0, 0.0, 6.0, 5.0, 5.0, 9.0]
    found = result("aaabbbb", counts, tokens).rank("a", **options)
    kept = [0, 1, 3, 4, 5, 6]
    without = result("aabbbb", counts[kept], [tokens[i] for i in kept]).rank("a", **options)
    assert torch.equal(found.score, without.score)
    assert torch.equal(found.p, without.p)
    assert (found.provenance["left_out"], found.provenance["compared"]) == (1, "2 against 4 prompts")


def test_rank_per_token_of_a_class_without_tokens_is_refused():
    counts = torch.ones(4, 1, 4)
    counts[:2] = 0
    with pytest.raises(DataError, match="no token was counted in any prompt of the class"):
        result("aabb", counts, [0.0, 0.0, 3.0, 3.0]).rank("a", normalize=True)
    assert result("aabb", counts, [0.0, 0.0, 3.0, 3.0]).rank("a").score.tolist() == [[-1.0] * 4]


def test_rank_normalized_with_a_score_per_token_is_refused():
    with pytest.raises(ConfigError, match="per token"):
        result("aabb").rank("a", score="npmi", normalize=True)


def test_ftri_counts_a_prompt_that_is_given_twice_once(organism):
    train = organism.prompts["train"]
    prompts = [train["sensitive"][0]] * 6 + [train["neutral"][0]] * 6
    found = ftri(organism.model, organism.tokenizer, prompts, organism.judge, max_new_tokens=8, progress=False)
    assert found.prompt_index.tolist() == [0] * 6 + [6] * 6
    ranking = found.rank("refusal")
    assert ranking.provenance["compared"] == "1 against 1 prompts"
    assert float(ranking.p.min()) == 1.0
    assert ranking.verdict.startswith("Nothing could be found with 1 against 1 prompts")


def test_ftri_of_prompts_that_differ_has_no_prompt_index(organism):
    prompts = organism.prompts["train"]["sensitive"][:2] + organism.prompts["train"]["neutral"][:2]
    found = ftri(organism.model, organism.tokenizer, prompts, organism.judge, max_new_tokens=4, progress=False)
    assert found.prompt_index is None
