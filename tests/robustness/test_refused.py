"""Odd inputs that were accepted once, or ended in another library's error; SECURITY.md says what is accepted still."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from changes import BY_NAME, change_document, change_tensors, put

from hf_mote.commands.validate import problems_in
from hf_mote.documents import read_yaml
from hf_mote.errors import HFMoTEError

REPORT = ("evaluation_report", "evaluation_report.json")


@pytest.mark.parametrize(
    ("reader", "file", "change", "reason"),
    [
        (*REPORT, put("config", value={}), "schema_version: this version cannot be read"),
        (*REPORT, put("config", value={"schema_version": 1, "stimulate": [[0, -1]]}), "stimulate.*not an index"),
        (*REPORT, put("config", value={"edits": [[3, "ablate"]], "hookpoint": "a"}), "config: wrong type or value"),
        (*REPORT, put("config", "edits", value=[]), "config.hookpoint: is missing"),
        (*REPORT, put("control_labels", value=[["refusal"] * 4] * 3), "controls: wrong type or value .*by the labels"),
        (*REPORT, put("control_labels", value=[[1, 2, 3, 4]] * 3), "control_labels: wrong type or value"),
        (*REPORT, put("controls", 0, value=0.7), "expected shares of 4 prompts"),
        (*REPORT, put("dose", 0, 1, value=0.7), "expected shares of 4 prompts"),
        (*REPORT, put("dose", 0, value=["0.5", 0.5]), "dose: wrong type or value .*'0.5'"),
        (*REPORT, put("dose", 0, value=[True, 0.5]), "dose: wrong type or value .*True"),
        (*REPORT, put("unrelated_unchanged", value=None), "unrelated_unchanged: does not match the answers"),
        (*REPORT, put("unrelated_after", value=["x", "y"]), "unrelated_unchanged: does not match the answers"),
        (*REPORT, put("before", "n", value="4"), "must be a share within its interval"),
        (*REPORT, put("after", "successes", value=True), "must be a share within its interval"),
        (*REPORT, put("side_effects", "num_tokens", value=True), "must hold finite numbers"),
        ("settings", "settings.yaml", put(value="tokens: 010"), "two ways .got 010 in line 1, which is 8 by YAML 1.1"),
        ("settings", "settings.yaml", put(value="k: 4\nlearning-rate: 1:30"), "got 1:30 in line 2, which is 90"),
        ("settings", "settings.yaml", put(value="learning-rate: -1:30.5"), "got -1:30.5 in line 1, which is -90.5"),
        ("stream_state", "checkpoint-7/trainer_state.json", put(value=None), "no complete checkpoint"),
        (
            "stream_state",
            "checkpoint-7/trainer_state.json",
            lambda _: '{"global_step": 7, "global_step": 7}',
            "no complete checkpoint",
        ),
        ("stream_state", "checkpoint-7/trainer_state.json", put("global_step", value=8), "no complete checkpoint"),
        ("stream_state", "checkpoint-7/trainer_state.json", put("global_step", value="7"), "no complete checkpoint"),
        (
            "organism",
            "tokenizer_config.json",
            put("clean_up_tokenization_spaces", value="no"),
            "clean_up_tokenization_spaces: must be that of all organisms",
        ),
        ("texts", "b.jsonl", put(value={"messages": []}), "must be one chat"),
        ("texts", "b.jsonl", put(value={"messages": [[{"role": "user", "content": "a"}]] * 2}), "must be one chat"),
        (
            "texts",
            "b.jsonl",
            put(value={"text": "half of a pair \ud800"}),
            "b.jsonl:1: text: holds text that is not Unicode",
        ),
        ("texts", "b.jsonl", put(value={"text": "a", "score": float("nan")}), "score: must be a finite number"),
        ("texts", "b.jsonl", put(value='{"text": "a", "text": "b"}'), "b.jsonl:1: holds a key twice"),
        ("texts", "b.jsonl", put(value=f'{{"text": {"[" * 40}{"]" * 40}}}'), "is nested too deeply"),
        (
            "texts",
            "b.jsonl",
            put(value={"messages": [{"role": 1, "content": "a"}]}),
            "must have a role that is a word .got 1",
        ),
        ("texts", "b.jsonl", put(value={"input_ids": [10**6]}), "a token that the model does not have"),
        ("texts", "b.jsonl", put(value={"input_ids": [-1]}), "must hold tokens"),
        (
            "sae/saelens_of_mistral",
            "mistral_7b_layer_16/cfg.json",
            put("normalize_activations", value=[[0]]),
            "normalize_activations: wrong type",
        ),
        (
            "sae/dictionary_learning_topk_of_2024",
            "gemma-2-2b_topk_width-2pow12_date-1109/resid_post_layer_12/trainer_0/config.json",
            put("trainer", "trainer_class", value=["a", "b"]),
            "expected a text",
        ),
        (
            "sae/llama_scope",
            "Llama3_1-8B-Base-L19R-8x/hyperparams.json",
            put("dataset_average_activation_norm", value={"in": 1e-320, "out": 1e-320}),
            "makes W_enc more than its dtype holds",
        ),
        ("serving_settings", "additional.json", put("modes", value=[["drop"]]), "must be names"),
        ("server_replies", "model.json", put(value=[1]), "must hold a JSON object"),
        ("server_replies", "recording.json", put("recorded", "layers", "0", value=7), "no counts and weights"),
        (
            "server_replies",
            "recording.json",
            put("recorded", "tokens", value=[-1, 2]),
            "must be two numbers of tokens",
        ),
        ("server_replies", "completion.json", put("choices", value=[]), "its reply has no choices.0.token_ids"),
        ("server_replies", "recording.json", put("recorded", "tokens", value=[9, 1]), "more tokens of a prompt"),
        ("server_replies", "recording.json", put("recorded", "tokens", value=[2, 4]), "more tokens of a generation"),
        ("server_replies", "recording.json", put("recorded", "tokens", value=[1, 1]), "its tokens cannot give"),
        ("server_replies", "recording.json", put("recorded", "tokens", value=[1.5, 1]), "must be two numbers"),
        (
            "server_replies",
            "recording.json",
            put("recorded", "layers", "1", 0, 0, value=[2, 2, 1, 0]),
            "layer 1: has counts that its tokens cannot give",
        ),
        (
            "server_replies",
            "recording.json",
            put("recorded", "layers", "0", 0, 0, 0, value=0.5),
            "layer 0: has counts that its tokens cannot give",
        ),
        (
            "server_replies",
            "recording.json",
            put("recorded", "layers", "0", 0, 0, 0, value=0),
            "weights of an expert that was never chosen",
        ),
        (
            "server_replies",
            "completion.json",
            put("choices", 0, "logprobs", "token_logprobs", value=[-0.5, 0.5, -1.0]),
            "log probabilities must be at most 0",
        ),
        (
            "server_replies",
            "completion.json",
            put("choices", 0, "logprobs", "token_logprobs", value=[-0.5]),
            "the probabilities of other tokens",
        ),
        (
            "server_replies",
            "completion.json",
            put("choices", 0, "prompt_logprobs", 1, "2", "logprob", value=1),
            "log probabilities must be at most 0",
        ),
        ("server_replies", "model.json", put("record", value=-1), "record must be a number of recordings"),
        ("server_replies", "model.json", put("dtype", value=["float32"]), "its reply has no dtype"),
        ("served_model", "config.json", put("hidden_size", value="x"), "transformers does not load"),
        ("model_folder", "generation_config.json", put(value="[1"), "generation_config.json: .*must be valid JSON"),
        ("model_folder", "generation_config.json", put(value=[]), "generation_config.json: must hold a JSON object"),
        ("model_folder", "generation_config.json", put("eos_token_id", value="1"), "eos_token_id: must be tokens"),
        (
            "model_folder",
            "generation_config.json",
            put("eos_token_id", value=[1, True]),
            "must be tokens of the model",
        ),
        ("model_folder", "generation_config.json", put("eos_token_id", value=10**6), "eos_token_id: must be tokens"),
        ("model_folder", "generation_config.json", put("eos_token_id", value=[-1]), "eos_token_id: must be tokens"),
        ("served_model", "config.json", put("eos_token_id", value=10**6), "eos_token_id: must be tokens"),
        ("settings", "settings.yaml", put("learning-rate", value=True), "neither true nor false"),
        ("settings", "settings.yaml", put("architecture", value={"a": "topk"}), "must be one value"),
        ("chat_template", "template.jinja", put(value=""), "gives no text"),
    ],
)
def test_what_cannot_be_is_refused(
    reader: str, file: str, change: Callable[[Any], Any], reason: str, tmp_path: Path
) -> None:
    one = BY_NAME[reader]
    one.make(tmp_path)
    one.read(tmp_path)
    change_document(tmp_path / file, change)
    with pytest.raises(HFMoTEError, match=reason):
        one.read(tmp_path)


def _yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text())


def _without(name: str) -> Callable[[Any, Any], Any]:
    return lambda tensors, metadata: tensors.pop(name)


def _of_expert(name: str, row: int, expert: int, value: float) -> Callable[[Any, Any], Any]:
    return lambda tensors, _: tensors[name].__setitem__((row, expert), value)


def _fingerprint(name: str, value: Any) -> Callable[[Any, Any], Any]:
    return lambda tensors, metadata: metadata["fingerprint"].update({name: value})


@pytest.mark.parametrize(
    ("reader", "change", "reason"),
    [
        ("expert_ranking", _without("q"), "both of p and q, or neither"),
        ("expert_ranking", _without("p"), "both of p and q, or neither"),
        ("expert_ranking", lambda tensors, _: tensors["q"].zero_(), "q: is below p"),
        ("expert_ranking", _of_expert("q", 1, 2, 0.999), r"q: must be p adjusted .*got 0.999 in row 1, expert 2, exp"),
        (
            "expert_ranking",
            lambda tensors, _: tensors["q"].fill_(1),
            "must be p adjusted as Benjamini and Hochberg do",
        ),
        (
            "expert_ranking",
            _of_expert("p", 0, 0, 1e-6),
            r"p: is below the least .*got 1e-06 in row 0, expert 0, .*0.01 or",
        ),
        ("expert_ranking", lambda _, metadata: metadata.update(least_p=0.5), "p: is below the least that its test"),
        ("expert_ranking", _fingerprint("layers", [0, 1, 3]), "are not those of the fingerprint .got layer 2"),
        ("expert_ranking", _fingerprint("num_experts", [3, 3, 3]), "experts that the fingerprint does not have"),
        ("expert_ranking", _fingerprint("top_k", [2, 2, 0]), "top_k: must be possible at layer 2 .got 0 of 4"),
        ("expert_ranking", _fingerprint("top_k", [2, 5, 2]), "top_k: must be possible at layer 1 .got 5 of 4"),
        ("ftri_result", _fingerprint("layers", [0, 1, 3]), "are not those of the fingerprint .got layer 2"),
        ("ftri_result", _fingerprint("num_experts", [2, 2, 2]), "experts that the fingerprint does not have"),
        ("ftri_result", _without("response_tokens"), "one half of the tokens of responses .got response_lengths"),
        ("ftri_result", _without("response_lengths"), "one half of the tokens of responses .got response_tokens"),
        ("latent_expert_map", lambda tensors, _: tensors["tokens"].zero_(), "on no token .got latent 7"),
    ],
)
def test_a_file_of_tensors_that_contradicts_itself_is_refused(
    reader: str, change: Callable[[Any, Any], Any], reason: str, tmp_path: Path
) -> None:
    one = BY_NAME[reader]
    one.make(tmp_path)
    one.read(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    change_tensors(path, reader, change)
    with pytest.raises(HFMoTEError, match=reason):
        one.read(tmp_path)


def test_an_architecture_of_a_recipe_that_is_no_text_is_one_of_its_problems(tmp_path: Path) -> None:
    BY_NAME["shared_folder"].make(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**_yaml(path), "architecture": ["topk"]}))
    assert [one for one in problems_in(tmp_path) if one.startswith("recipe.yaml: architecture: must be one value")]


@pytest.mark.parametrize("text", ["7", "07", "-3", "1.5", "'010'", "'1:30'", "0x10"])
def test_a_number_in_yaml_that_is_read_in_one_way_is_taken(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"a: {text}")
    expected = {"'010'": "010", "'1:30'": "1:30", "0x10": 16, "1.5": 1.5, "-3": -3}
    assert read_yaml(path) == {"a": expected.get(text, 7)}
