"""Which tokens are imaged: every scope against the trace of the same tokens; repeats count as one prompt."""

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import FTRIResult, ftri, record_routing
from hf_mote.errors import ConfigError, UnknownNameError
from hf_mote.generation.asking import Chat

PROMPTS = ["a", "what is b?", "cc", "tell me of d and e", "f", "g?"]
THINKING = tuple(tiny_tokenizer().convert_tokens_to_ids(["(", ")"]))


def by_prompt(prompt, response):
    return "question" if "?" in prompt else "other"


def image(scope, **options):
    options = {"batch_size": 4, "max_new_tokens": 5, "progress": False, **options}
    return ftri(tiny_model("deepseek_v3"), tiny_tokenizer(), PROMPTS, by_prompt, scope=scope, **options)


@pytest.fixture(scope="module")
def traces():
    """Token by token routing of each prompt alone, with its ids."""
    model, tokenizer, found = tiny_model("deepseek_v3"), tiny_tokenizer(), []
    for ids in Chat(tokenizer).encode(PROMPTS):
        with record_routing(model, trace=True) as record:
            model(torch.tensor([ids]))
        found.append((ids, record.traces()[0]))
    return found


def counted(trace, keep, num_experts=8):
    chosen = trace.indices[torch.tensor(keep)].long()
    return torch.stack(
        [torch.bincount(chosen[:, row].reshape(-1), minlength=num_experts) for row in range(chosen.shape[1])]
    )


@pytest.mark.parametrize(
    ("scope", "keeps"),
    [
        ("last", lambda n: [place == n - 1 for place in range(n)]),
        ("first:1", lambda n: [place == 0 for place in range(n)]),
        ("first:3", lambda n: [place < 3 for place in range(n)]),
        ("first:999", lambda n: [True] * n),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_scope_of_prompt_tokens_counts_these_tokens(traces, scope, keeps, batch_size):
    result = image(scope, batch_size=batch_size)
    for index, (ids, trace) in enumerate(traces):
        keep = keeps(len(ids))
        assert torch.equal(result.counts[index].long(), counted(trace, keep))
        assert result.num_tokens[index] == sum(keep)


def test_scope_user_counts_the_users_text_and_not_the_template(traces):
    tokenizer = tiny_tokenizer()
    result = image("user")
    for index, (ids, trace) in enumerate(traces):
        # The template of the tiny tokenizer is special tokens around the text, one token per character.
        keep = [token not in tokenizer.all_special_ids for token in ids]
        assert sum(keep) == len(PROMPTS[index])
        assert torch.equal(result.counts[index].long(), counted(trace, keep))


def test_user_text_is_the_last_message_and_not_a_word_of_it_elsewhere():
    tokenizer = tiny_tokenizer()
    chat = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}, {"role": "user", "content": "b"}]
    (ids,), (marks,) = Chat(tokenizer).encode([chat]), Chat(tokenizer).user_text([chat])
    places = [place for place, token in enumerate(ids) if tokenizer.decode([token]) == "b"]
    assert [place for place, mark in enumerate(marks) if mark] == places[-1:]


@pytest.mark.parametrize("part", ["thinking", "answer"])
def test_scope_of_thinking_and_answer_counts_between_and_after_the_marks(part):
    prompts = ["x(yy", "(ab)c", "no marks", "k(l)mn"]
    model, tokenizer = tiny_model("deepseek_v3"), tiny_tokenizer()
    result = ftri(
        model,
        tokenizer,
        prompts,
        lambda response: "a",
        scope=part,
        thinking_tokens=THINKING,
        max_new_tokens=4,
        batch_size=4,
        progress=False,
    )
    for index, ids in enumerate(Chat(tokenizer).encode(prompts)):
        with record_routing(model, trace=True) as record:
            output = model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False)[0].tolist()
        trace = record.traces()[0]
        state, keep = "neither", []
        for token in output[: len(trace.indices)]:
            state = "thinking" if token == THINKING[0] else "answer" if token == THINKING[1] else state
            keep.append(state == part)
        assert result.num_tokens[index] == sum(keep)
        assert torch.equal(result.counts[index].long(), counted(trace, keep))


@pytest.mark.parametrize("scope", ["first", "first:0", "first:<n>", "prompts", None])
def test_scope_that_is_none_lists_the_known_ones(scope):
    with pytest.raises(UnknownNameError, match="generation"):
        image(scope)


def test_scope_thinking_without_its_tokens_says_how_to_give_them():
    with pytest.raises(ConfigError, match="convert_tokens_to_ids"):
        image("thinking")
    assert image("thinking", thinking_tokens=THINKING).scope == "thinking"


def sampled(**options):
    return image("prompt", generate_kwargs={"do_sample": True, "temperature": 3.0}, repeats=5, **options)


def test_repeats_run_each_prompt_several_times_and_count_it_once():
    result = sampled()
    assert result.prompts == [prompt for prompt in PROMPTS for _ in range(5)]
    assert len(set(result.responses[:5])) > 1
    once = image("prompt")
    # The prompt's routing is the same in every run, so that the ranking must be that of one run, intervals included.
    one, five = once.rank("question", resamples=99), result.rank("question", resamples=99)
    assert torch.allclose(one.matrix(), five.matrix(), atol=1e-9)
    for name in ("low", "high", "p", "q"):
        assert torch.allclose(getattr(one, name), getattr(five, name), atol=1e-9)
    assert one.provenance["prompts"] == 6


def test_repeats_that_fall_into_both_classes_stand_on_both_sides():
    result = sampled(seed=1)
    classes = ["a" if position % 5 < 2 else "b" for position in range(len(result.prompts))]
    mixed = FTRIResult(
        **{
            name: getattr(result, name)
            for name in ("prompts", "responses", "counts", "weights", "num_tokens", "layers", "scope", "fingerprint")
        },
        classes=classes,
        prompt_index=result.prompt_index,
    )
    # Each prompt routes alike in all its runs, so that the classes do not differ at all.
    assert torch.allclose(mixed.rank("a", resamples=0).matrix(), torch.zeros(2, 8, dtype=torch.float64), atol=1e-9)


def test_repeats_are_the_same_for_one_seed_and_leave_the_random_state(tmp_path):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one = sampled(seed=3)
    assert torch.equal(torch.rand(1), expected)
    assert one.responses == sampled(seed=3).responses != sampled(seed=4).responses
    one.save_pretrained(tmp_path)
    again = FTRIResult.from_pretrained(tmp_path)
    assert torch.equal(again.prompt_index, one.prompt_index)


def test_repeats_of_greedy_decoding_are_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="do_sample"):
        image("prompt", repeats=2)
    assert len(sampled().prompts) == 30
