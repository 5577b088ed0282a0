"""`ftri`: the maps are the recorded ones, classes come from the judge, nothing is left on the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import FTRIResult, HFMoTEError, MoTEConfig, RefusalJudge, apply_mote, ftri, record_routing
from hf_mote.errors import ConfigError, DataError, FileFormatError, UnknownNameError
from hf_mote.files import read_tensors, write_tensors
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.responses import generate_responses

PROMPTS = ["a", "what is b?", "cc", "tell me of d and e", "f", "g?"]


def by_prompt(prompt: str, response: str) -> str:
    return "question" if "?" in prompt else "other"


@pytest.fixture(scope="module")
def result() -> FTRIResult:
    return ftri(
        tiny_model("deepseek_v3"), tiny_tokenizer(), PROMPTS, by_prompt, batch_size=4, max_new_tokens=5, progress=False
    )


def test_ftri_batched_maps_equal_one_prompt_at_a_time(result: FTRIResult) -> None:
    model, tokenizer = tiny_model("deepseek_v3"), tiny_tokenizer()
    for index, ids in enumerate(Chat(tokenizer).encode(PROMPTS)):
        with record_routing(model) as record:
            model(torch.tensor([ids]))
        seen = record.maps("prompt")[0]
        assert torch.equal(result.counts[index].double(), seen.counts)
        assert torch.allclose(result.weights[index].double(), seen.weights, atol=1e-5)
        assert result.num_tokens[index] == len(ids)


def test_ftri_rank_is_mean_of_class_minus_mean_of_all_others(result: FTRIResult) -> None:
    target = [index for index, prompt in enumerate(PROMPTS) if "?" in prompt]
    rest = [index for index in range(len(PROMPTS)) if index not in target]
    expected = result.counts[target].double().mean(0) - result.counts[rest].double().mean(0)
    ranking = result.rank("question", resamples=0)
    assert torch.allclose(ranking.matrix(), expected, atol=1e-12)
    difference = result.maps["question"] - result.maps["other"]
    assert torch.allclose(difference.counts, expected, atol=1e-12)
    assert ranking.top(3) == difference.top(3)


def test_ftri_normalized_weight_ranking_uses_weights_per_token(result: FTRIResult) -> None:
    values = result.weights.double() / result.num_tokens.double()[:, None, None]
    target = torch.tensor(["?" in prompt for prompt in PROMPTS])
    expected = values[target].mean(0) - values[~target].mean(0)
    ranking = result.rank("question", value="weight", normalize=True, resamples=0)
    assert torch.allclose(ranking.matrix(), expected, atol=1e-6)


def test_ftri_result_survives_saving(result: FTRIResult, tmp_path: Path) -> None:
    result.save_pretrained(tmp_path)
    again = FTRIResult.from_pretrained(tmp_path)
    assert (again.prompts, again.responses, again.classes) == (result.prompts, result.responses, result.classes)
    assert torch.equal(again.counts, result.counts)
    assert again.layers == result.layers
    assert again.rank("question", resamples=0).top(5) == result.rank("question", resamples=0).top(5)
    content = (tmp_path / "ftri_result.safetensors").read_bytes()
    (tmp_path / "ftri_result.safetensors").write_bytes(content[:-40])
    with pytest.raises(FileFormatError, match=r"ftri_result\.safetensors"):
        FTRIResult.from_pretrained(tmp_path)


def test_ftri_config_fits_the_model_it_was_made_with(result: FTRIResult) -> None:
    config = result.to_config("question", suppress=2)
    assert config.fingerprint is not None
    assert len(config.suppress) == 2
    model = tiny_model("deepseek_v3")
    apply_mote(model, config).remove()
    with pytest.raises(ValueError, match="another model"):
        apply_mote(tiny_model("mixtral"), config)


def test_ftri_leaves_no_hooks_when_the_judge_fails() -> None:
    model = tiny_model("mixtral")
    with pytest.raises(DataError, match="prompt 0"):
        ftri(model, tiny_tokenizer(), ["a"], lambda response: 1 / 0, max_new_tokens=2, progress=False)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("prompts", [[], "one text", [""], [3], [[{"role": "user"}]]])
def test_ftri_bad_prompts_are_refused_with_their_place(prompts: object) -> None:
    with pytest.raises(DataError, match=r"ftri\.prompts"):
        ftri(tiny_model("mixtral"), tiny_tokenizer(), prompts, by_prompt, progress=False)  # type: ignore[arg-type]


def test_ftri_rank_unknown_or_lone_class_is_refused(result: FTRIResult) -> None:
    with pytest.raises(UnknownNameError, match="'question'"):
        result.rank("questoin")
    lone = ftri(tiny_model("mixtral"), tiny_tokenizer(), ["a"], len, max_new_tokens=2, progress=False)
    with pytest.raises(DataError, match="nothing to compare"):
        lone.rank(lone.classes[0])


def test_encode_prompts_system_prompt_needs_a_chat_template() -> None:
    tokenizer = tiny_tokenizer()
    plain = Chat(tokenizer).encode(["hi"])[0]
    longer = Chat(tokenizer, system_prompt="be brief").encode(["hi"])[0]
    assert len(longer) > len(plain)
    chat = Chat(tokenizer).encode([[{"role": "user", "content": "hi"}]])[0]
    assert chat == plain
    tokenizer.chat_template = None
    assert Chat(tokenizer).encode(["hi"])[0] == tokenizer("hi")["input_ids"]
    with pytest.raises(ConfigError, match="chat_template"):
        Chat(tokenizer, system_prompt="be brief").encode(["hi"])


def test_generate_responses_batched_equals_one_by_one() -> None:
    model, tokenizer = tiny_model("deepseek_v3"), tiny_tokenizer()
    responses: dict[int, str] = {}
    for positions, answers in generate_responses(
        model, Chat(tokenizer), PROMPTS, Decoding(batch_size=4, max_new_tokens=6)
    ):
        responses.update(zip(positions, answers, strict=True))
    for index, prompt in enumerate(PROMPTS):
        ((_, alone),) = generate_responses(model, Chat(tokenizer), [prompt], Decoding(max_new_tokens=6))
        assert responses[index] == alone[0]


def test_ftri_under_an_intervention_images_the_patched_model() -> None:
    model, tokenizer = tiny_model("deepseek_v3"), tiny_tokenizer()
    with apply_mote(model, MoTEConfig.for_model(model, suppress=[[1, 0], [2, 3]])):
        result = ftri(model, tokenizer, PROMPTS, by_prompt, max_new_tokens=2, progress=False)
    assert result.counts[:, 0, 0].sum() == 0
    assert result.counts[:, 1, 3].sum() == 0


def test_ftri_rank_unknown_value_is_refused(result: FTRIResult) -> None:
    with pytest.raises(UnknownNameError, match="'count'"):
        result.rank("question", value="counts")  # type: ignore[arg-type]


def test_ftri_config_has_the_experts_of_the_ranking_ties_included(result: FTRIResult) -> None:
    for n in (1, 3, 5, 9):
        assert result.to_config("question", suppress=n).suppress == sorted(
            [list(pair) for pair in result.rank("question").top(n)]
        )


@pytest.mark.parametrize(
    ("judge", "options", "place"),
    [
        ("refusal", {}, "judge"),
        (RefusalJudge, {}, "RefusalJudge"),
        (by_prompt, {"scope": "promt"}, "scope"),
        (by_prompt, {"batch_size": 0}, "batch_size"),
        (by_prompt, {"generate_kwargs": {"num_return_sequences": 2, "do_sample": True}}, "num_return_sequences"),
        (by_prompt, {"generate_kwargs": {"return_dict_in_generate": True}}, "return_dict_in_generate"),
    ],
)
def test_ftri_bad_settings_are_refused_before_anything_runs(judge: object, options: dict, place: str) -> None:
    model = tiny_model("mixtral")
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(HFMoTEError, match=place):
        ftri(model, tiny_tokenizer(), PROMPTS, judge, progress=False, **options)  # type: ignore[arg-type]
    handle.remove()
    assert calls == []


@pytest.mark.parametrize("edit", [{"layers": 5}, {"prompts": 5}, {"classes": [1] * 6}, {"scope": "xx"}])
def test_ftri_result_edited_metadata_is_refused(result: FTRIResult, tmp_path: Path, edit: dict) -> None:
    result.save_pretrained(tmp_path)
    file = tmp_path / result.file_name
    tensors, metadata = read_tensors(file, kind="ftri_result")
    write_tensors(file, tensors, {**metadata, **edit})
    with pytest.raises(FileFormatError, match="ftri_result"):
        FTRIResult.from_pretrained(tmp_path)
