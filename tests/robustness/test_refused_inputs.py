"""Odd prompts, texts, answers of servers, recipes and language models that were accepted once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from changes import put
from further_readers import _MODEL_SAYS
from readers import READERS
from safetensors.torch import load_file, save_file
from tiny_models import tiny_tokenizer
from transformers import AutoModelForCausalLM, MixtralConfig

from hf_mote import ServerJudge
from hf_mote.commands.model import Organisms, load_subject, served_subject
from hf_mote.commands.model_files import check_dtypes, check_tokens
from hf_mote.commands.prompts import read_prompts
from hf_mote.commands.sae.texts import read_texts
from hf_mote.commands.validate import problems_in
from hf_mote.errors import DataError, FileFormatError, UnsupportedError
from hf_mote.generation.chat import rendered
from hf_mote.generation.prompts import checked_prompts
from hf_mote.sae.training.sequences import Sequences
from hf_mote.serving import client
from hf_mote.serving.client import ServerEngine

BY_NAME = {reader.name: reader for reader in READERS}
TURNS = [{"role": "user", "content": "Hi"}]


# Servers.


def engine(monkeypatch: pytest.MonkeyPatch, reply: Any = None, events: list[Any] | None = None, **more: Any) -> Any:
    """Return an engine whose server answers everything with one reply, or with events."""
    told = {"/v1/mote/model": {**_MODEL_SAYS, **more}, "/v1/models": {"data": [{"id": "served"}]}}
    monkeypatch.setattr(
        client, "ask", lambda url, *_, **__: json.dumps(told.get(url.removeprefix("http://a:1"), reply)).encode()
    )
    lines = [*(b"data: " + json.dumps(one).encode() for one in events or []), b"data: [DONE]\n"]
    monkeypatch.setattr(client, "ask_in_parts", lambda *_, **__: iter([b"\n\n".join(lines)]))
    return ServerEngine("http://a:1")


def message(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", **fields}}]}


def part(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"delta": fields}]}


CALL = [{"function": {"name": "f", "arguments": "{}"}}]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (message(), "its reply must have content .got {'role': 'assistant'}, expected a text, or null"),
        (message(content=None, tool_calls=CALL), "its reply must be an answer .got a call of a tool"),
    ],
)
def test_an_answer_without_content_is_refused(reply: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        engine(monkeypatch, reply).chat(TURNS)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"content": None}, ""),
        ({"content": ""}, ""),
        ({"content": None, "reasoning": "Well,"}, "Well,"),
        ({"reasoning": "Well,"}, "Well,"),
        ({"content": None, "reasoning_content": "Well,", "tool_calls": []}, "Well,"),
        ({"content": "Hi.", "reasoning": "Well,", "tool_calls": None}, "Hi."),
    ],
)
def test_an_answer_that_says_nothing_or_only_thinks_is_one(
    fields: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine(monkeypatch, message(**fields)).chat(TURNS) == expected
    came: list[str] = []
    assert engine(monkeypatch, events=[part(**fields)]).chat(TURNS, on_text=came.append) == expected
    assert "".join(came) == expected


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([], "its reply must have content .got no part that has it"),
        ([{"choices": [], "usage": {}}], "no part that has it"),
        ([part(role="assistant"), part()], "no part that has it"),
        ([part(role="assistant", content=""), part(tool_calls=CALL)], "must be an answer .got a call of a tool"),
    ],
)
def test_a_stream_without_a_part_is_refused(events: list[Any], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[str] = []
    with pytest.raises(UnsupportedError, match=reason):
        engine(monkeypatch, events=events).chat(TURNS, on_text=came.append)
    assert not came


@pytest.mark.parametrize(
    ("tokens", "told", "reason"),
    [
        ([2**64], {}, f"expected 1 to 3, each from 0 to {2**31 - 1}"),
        ([2**31], {}, f"each from 0 to {2**31 - 1}"),
        ([100], {"config": {"vocab_size": 100}}, r"must hold tokens of its model .got \[100\].* each from 0 to 99"),
        ([], {}, r"got \[\], expected 1 to 3"),
        ([1, 2, 3, 4], {}, "got 4 tokens, expected 1 to 3"),
    ],
)
def test_tokens_that_no_answer_has_are_refused(
    tokens: list[int], told: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choice = {"token_ids": tokens, "logprobs": {"token_logprobs": [-0.5] * len(tokens)}}
    asking = engine(monkeypatch, {"choices": [choice]}, logprobs_mode="raw_logprobs", **told)
    for ask in (asking.answer, asking.image):
        with pytest.raises(UnsupportedError, match=reason):
            ask([[1, 2]], max_new_tokens=3)


def test_tokens_of_the_whole_vocabulary_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = {"token_ids": [0, 99], "logprobs": {"token_logprobs": [-0.5, -0.5]}}
    asking = engine(monkeypatch, {"choices": [choice]}, config={"vocab_size": 100})
    assert asking.answer([[1, 2]], max_new_tokens=2)[0].tokens == [0, 99]


def test_a_reply_to_a_judge_that_holds_several_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ServerJudge("http://localhost:1/v1", "m", "Is it?")
    said: list[dict[str, Any]] = message(content="yes")["choices"]
    monkeypatch.setattr(judge, "_reply", lambda _: json.dumps({"choices": said}).encode())
    assert judge("a", "b") == "yes"
    said += message(content="no")["choices"]
    with pytest.raises(DataError, match="not a chat completion .*expected one choice, whose message has content"):
        judge("a", "b")


# Chats.

CHATS: list[tuple[Any, str]] = [
    ([{"role": "user"}], "must have content that is a text .got no content"),
    ([{"role": "user", "content": None}], "must have content that is a text .got None"),
    ([{"role": "user", "content": 3}], "must have content that is a text .got 3"),
    ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "Join the texts of its parts"),
    ([{"role": "user", "content": {"text": "Hi"}}], "must have content that is a text"),
    ([{"role": "", "content": "Hi"}], "must have a role that is a word .got ''"),
    ([{"role": " ", "content": "Hi"}], "must have a role that is a word .got ' '"),
    ([{"role": "../user", "content": "Hi"}], "must have a role that is a word"),
    ([{"role": "<user>", "content": "Hi"}], "must have a role that is a word"),
    ([{"role": "\u202e", "content": "Hi"}], "must have a role that is a word"),
    ([{"content": "Hi"}], "must have a role that is a word .got None"),
    ([{"role": "user", "content": "Hi"}, "Hi"], "must be "),
    ([{"role": "assistant", "tool_calls": CALL}, {"role": "user"}], "message 1: must have content"),
]


@pytest.mark.parametrize(("chat", "reason"), CHATS)
def test_a_message_without_role_or_text_is_refused_wherever_it_comes_from(
    chat: Any, reason: str, tmp_path: Path
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for one in messages %}{{ one.role }}{{ one.content }}{{ one.tool_calls }}{% endfor %}"
    )
    with pytest.raises(DataError, match=reason):
        list(Sequences(tokenizer, [{"messages": chat}], text_column="text", context_length=8, packed=False))
    with pytest.raises(DataError, match=reason):
        checked_prompts("prompts", [TURNS, chat])
    with pytest.raises(DataError, match=reason):
        rendered(tokenizer, chat, None, {}, "prompt 1")
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": chat}))
    with pytest.raises(DataError, match=f"line 1, field 'prompt': must be a prompt .*{reason}"):
        read_prompts(str(path), Organisms())


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool", "developer", "ipython", "tool-call", "用户"])
def test_a_role_may_be_any_word(role: str) -> None:
    chat = [{"role": role, "content": ""}, {"role": "user", "content": "Hi", "name": None}]
    assert checked_prompts("prompts", [chat]) == [chat]


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": "I look."}])
def test_a_call_of_a_tool_needs_no_content_where_the_template_writes_it(content: Any) -> None:
    tokenizer = tiny_tokenizer()
    chat = [*TURNS, {"role": "assistant", "tool_calls": CALL, **content}, {"role": "user", "content": "So?"}]
    rows = Sequences(tokenizer, [{"messages": chat}], text_column="text", context_length=99, packed=False)
    assert checked_prompts("prompts", [chat]) == [chat]
    if content.get("content") is None:
        with pytest.raises(DataError, match="message 1: must have content that is a text"):
            list(rows)
        with pytest.raises(DataError, match="prompt 1, message 1: must have content that is a text"):
            rendered(tokenizer, chat, None, {}, "prompt 1")
    tokenizer.chat_template = (
        "{% for one in messages %}{{ one.content or one.tool_calls[0].function.name }}|{% endfor %}"
    )
    expected = f"Hi|{content.get('content') or 'f'}|So?|"
    assert rendered(tokenizer, chat, None, {}, "prompt 1") == expected
    assert list(rows) == [tokenizer(expected)["input_ids"]]


def test_a_chat_may_be_an_array_as_pandas_reads_it() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for one in messages %}{{ one.content }}|{% endfor %}"
    rows = [{"messages": np.array(TURNS, dtype=object)}]
    found = list(Sequences(tokenizer, rows, text_column="text", context_length=8, packed=True))
    assert found == [tokenizer("Hi|")["input_ids"]]


@pytest.mark.parametrize("chat", [{}, [], "Hi", None, 3, [TURNS, TURNS]])
def test_a_row_of_messages_holds_one_chat(chat: Any) -> None:
    rows = [{"messages": chat}]
    with pytest.raises(DataError, match="dataset, row 0, column 'messages': must be one chat"):
        list(Sequences(tiny_tokenizer(), rows, text_column="text", context_length=8, packed=True))


@pytest.mark.parametrize("name", ["a.txt", "b.jsonl", "c.md"])
def test_text_that_holds_a_nul_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b'{"text": "one"}\n' + bytes(8) + b'{"text": "two"}\n')
    with pytest.raises(DataError, match=f"{name}: must be text, and holds a NUL"):
        read_texts(str(tmp_path), "text", Organisms())


@pytest.mark.parametrize(("name", "content"), [("a.txt", "one"), ("b.jsonl", '{"text": "one"}\n')])
def test_a_byte_order_mark_is_no_text(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    rows = read_texts(str(tmp_path / name), "text", Organisms())
    assert [row if isinstance(row, str) else row["text"] for row in rows] == ["one"]


# Files of prompts.


@pytest.mark.parametrize("field", ["class", "label", "answer"])
@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_class_and_no_answer(field: str, value: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": "a", field: one}) + "\n" for one in ("yes", value)))
    with pytest.raises(DataError, match=f"line 2, field '{field}': must be a text, not a truth value .got {value},"):
        read_prompts(str(path), Organisms()).column(field)
    path.write_text(json.dumps({"prompt": "a", field: str(value)}) + "\n" + json.dumps({"prompt": "b", field: 0}))
    assert read_prompts(str(path), Organisms()).column(field) == [str(value), "0"]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["prompt,", "a,b"], "line 1: must have a name for each column .got none for column 2, which holds 'b'"),
        (["prompt,  ,class", "a,b,c"], "none for column 2, which holds 'b'"),
        ([",prompt", "x,a", "y,b"], "none for column 1, which holds 'x'"),
        ([",prompt", "0,a", ",b"], "none for column 1, which holds '0'"),
        (["prompt,", "a,0", "b,1"], "none for column 2, which holds '0'"),
        (["prompt,,", "a,,x"], "none for column 3, which holds 'x'"),
        (["prompt,prompt", "a,b"], "names a column twice"),
    ],
)
def test_a_column_without_a_name_is_refused(lines: list[str], reason: str, tmp_path: Path) -> None:
    for name, separator in (("a.csv", ","), ("a.tsv", "\t")):
        (tmp_path / name).write_text("\n".join(lines).replace(",", separator))
        with pytest.raises(FileFormatError, match=reason):
            read_prompts(str(tmp_path / name), Organisms())


@pytest.mark.parametrize(
    "lines",
    [[",prompt", "3,a", "7,b"], [",prompt", "0,a", "0,b"], ["prompt,,", "a,,", "b,,"], [",prompt,", "0,a,", "1,b, "]],
)
def test_the_numbers_of_rows_and_empty_columns_need_no_name(lines: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join(lines))
    found = read_prompts(str(tmp_path / "a.csv"), Organisms())
    assert found.prompts == ["a", "b"]
    assert [record.fields for record in found.records] == [{"prompt": "a"}, {"prompt": "b"}]


# Recipes.


@pytest.mark.parametrize("recipe", ["", "{}", "# architecture: topk", "k: 4", "architecture: null\nk: 4"])
def test_a_recipe_without_an_architecture_is_a_problem(recipe: str, tmp_path: Path) -> None:
    BY_NAME["shared_folder"].make(tmp_path)
    assert problems_in(tmp_path) == []
    (tmp_path / "recipe.yaml").write_text(recipe)
    (problem,) = problems_in(tmp_path)
    assert problem.startswith("recipe.yaml: architecture: is missing (expected one of ")


@pytest.mark.parametrize("architecture", [0.5, 7])
def test_an_architecture_that_is_a_number_is_a_problem(architecture: float, tmp_path: Path) -> None:
    BY_NAME["shared_folder"].make(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "architecture": architecture}))
    (problem,) = problems_in(tmp_path)
    assert problem.startswith(f"recipe.yaml: architecture: unknown name (got {architecture}, expected one of ")


# Language models.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    BY_NAME["model_folder"].make(tmp_path)
    return tmp_path


def changed(path: Path, change: Callable[[Any], Any]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def both(folder: Path) -> list[Callable[[], Any]]:
    return [
        lambda: load_subject(str(folder), Organisms(), device="cpu"),
        lambda: served_subject(str(folder), Organisms(), revision=None, chat_template=None),
    ]


LINEAR = {"rope_type": "linear", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put("rope_parameters", "rope_theta", value=0), "rope_parameters.rope_theta: must .*got 0.*expected above 0"),
        (put("rope_parameters", "rope_theta", value=-1e4), "rope_theta: must be a number that the model can compute"),
        (
            put("rope_parameters", value={**LINEAR, "factor": 0.0}),
            "rope_parameters.factor: .*got 0.0, expected above 0",
        ),
        (put("rope_parameters", value={**LINEAR, "factor": -2.0}), "rope_parameters.factor: .*expected above 0"),
        (put("rms_norm_eps", value=-1e-6), "config.json: rms_norm_eps: must .*got -1e-06, expected 0 or more"),
        (put("rms_norm_eps", value=-2.0), "config.json: rms_norm_eps: must be a number"),
        (
            put("num_hidden_layers", value=2**31),
            "config.json: num_hidden_layers: must .*got 2147483648, .*at most 1000",
        ),
        (put("pad_token_id", value=-2), "config.json: pad_token_id: must be a token .*got -2, expected .* from 0 to"),
    ],
)
def test_a_number_of_a_config_that_gives_no_numbers_is_refused(
    change: Callable[[Any], Any], reason: str, folder: Path
) -> None:
    changed(folder / "config.json", change)
    for load in both(folder):
        with pytest.raises(FileFormatError, match=reason):
            load()


@pytest.mark.parametrize(
    "change",
    [
        put("rope_parameters", "rope_theta", value=1),
        put("rope_parameters", value={**LINEAR, "factor": 2.0}),
        put("rms_norm_eps", value=0.0),
        put("pad_token_id", value=None),
        put("pad_token_id", value=-1),
        put("pad_token_id", value=len(tiny_tokenizer()) - 1),
    ],
)
def test_a_number_of_a_config_at_the_edge_is_taken(change: Callable[[Any], Any], folder: Path) -> None:
    changed(folder / "config.json", change)
    for load in both(folder):
        load()


@pytest.mark.parametrize("value", [-2, 10**6, "0", [0], True])
def test_padding_of_a_file_on_generation_that_is_no_token_is_refused(value: Any, folder: Path) -> None:
    path = folder / "generation_config.json"
    changed(path, put("pad_token_id", value=value))
    with pytest.raises(FileFormatError, match=r"generation_config.json: pad_token_id: must be a token of the model"):
        load_subject(str(folder), Organisms(), device="cpu")
    changed(path, put("pad_token_id", value=-1))
    load_subject(str(folder), Organisms(), device="cpu")


def test_a_config_with_a_key_twice_is_refused_for_a_server_too(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"vocab_size": 7, ', 1))
    for load in both(folder):
        with pytest.raises(FileFormatError, match="config.json: holds a key twice .got 'vocab_size'"):
            load()


def test_ends_of_a_text_without_a_token_are_refused(folder: Path) -> None:
    changed(folder / "generation_config.json", put("eos_token_id", value=[]))
    with pytest.raises(FileFormatError, match=r"generation_config.json: eos_token_id: must be tokens .*got \[\]"):
        load_subject(str(folder), Organisms(), device="cpu")


EXPERT = "model.layers.1.block_sparse_moe.experts.4.w1.weight"


def stored(folder: Path, name: str, dtype: torch.dtype, **more: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, name: (tensors[name].float() * 50).to(dtype), **more}, path, metadata={"format": "pt"})


@pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning")
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", [EXPERT, "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_weights_of_whole_numbers_need_a_quantization(name: str, dtype: torch.dtype, folder: Path) -> None:
    stored(folder, name, dtype)
    with pytest.raises(FileFormatError, match=rf"model.safetensors: must hold weights .got {name} as \w+, expected"):
        load_subject(str(folder), Organisms(), device="cpu")


def test_weights_of_whole_numbers_in_a_shard_are_found(folder: Path) -> None:
    stored(folder, EXPERT, torch.int8)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    half = len(tensors) // 2
    parts = [dict(list(tensors.items())[:half]), dict(list(tensors.items())[half:])]
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for name, tensors_of in zip(names, parts, strict=True):
        save_file(tensors_of, folder / name, metadata={"format": "pt"})
    path.unlink()
    index = {key: name for name, tensors_of in zip(names, parts, strict=True) for key in tensors_of}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    with pytest.raises(FileFormatError, match=rf"{index[EXPERT]}: must hold weights .got {EXPERT} as I8"):
        load_subject(str(folder), Organisms(), device="cpu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_weights_of_another_floating_point_dtype_are_taken(dtype: torch.dtype, folder: Path) -> None:
    stored(folder, EXPERT, dtype)
    load_subject(str(folder), Organisms(), device="cpu")
    if dtype == torch.float8_e4m3fn:
        stored(folder, EXPERT, dtype, **{f"{EXPERT}_scale_inv": torch.ones(1, 1)})
        with pytest.raises(FileFormatError, match=f"got {EXPERT} as F8_E4M3, expected .* without scales"):
            load_subject(str(folder), Organisms(), device="cpu")


def test_a_table_of_whole_numbers_is_no_weight(tmp_path: Path) -> None:
    from tiny_families import TINY_FAMILIES  # isort: skip

    model = TINY_FAMILIES["deepseek_v4"]()
    model.save_pretrained(tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    tables = [name for name, tensor in load_file(path).items() if not tensor.is_floating_point()]
    assert tables
    check_dtypes(str(tmp_path), None, model.config, model, [])


def test_a_quantization_may_be_in_the_config_of_the_text(folder: Path) -> None:
    from transformers import AutoConfig, Gemma3Config

    stored(folder, EXPERT, torch.int8)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    said = {"quant_method": "compressed-tensors"}
    config = Gemma3Config(text_config={"quantization_config": said})
    check_dtypes(str(folder), None, config, model, [])
    with pytest.raises(FileFormatError, match="must hold weights"):
        check_dtypes(str(folder), None, Gemma3Config(), model, [])


def test_shards_beside_the_whole_file_are_not_looked_at(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    save_file({EXPERT: whole[EXPERT].to(torch.int8)}, folder / "old.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(whole, "old.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_subject(str(folder), Organisms(), device="cpu")


def test_a_limit_of_a_config_may_be_infinite(folder: Path) -> None:
    changed(folder / "config.json", put("time_step_limit", value=[0.0, float("inf")]))  # as of Nemotron-H
    assert "Infinity" in (folder / "config.json").read_text()
    for load in both(folder):
        load()
    changed(folder / "config.json", put("time_step_limit", value=[0.0, float("nan")]))
    for load in both(folder):
        with pytest.raises(FileFormatError, match="time_step_limit.*must be a finite number"):
            load()


def test_numbers_for_each_layer_and_several_ends_are_no_odd_numbers(folder: Path) -> None:
    changed(folder / "config.json", put("vocab_size_per_layer", value=2**31))
    for load in both(folder):
        load()
    config = MixtralConfig(vocab_size=100)
    vars(config)["eos_token_id"] = (1, 99)  # as the default of some families is
    check_tokens("here", config)
    vars(config)["eos_token_id"] = (1, 100)
    with pytest.raises(FileFormatError, match="here: config.json: eos_token_id"):
        check_tokens("here", config)


def test_a_model_that_gives_no_numbers_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(FileFormatError, match="must give logits that are numbers.*got NaN or infinite ones"):
        load_subject(str(folder), Organisms(), device="cpu")


def test_a_scale_that_is_divided_by_may_not_be_zero(tmp_path: Path) -> None:
    from tiny_families import TINY_FAMILIES

    TINY_FAMILIES["granitemoe"](vocab_size=len(tiny_tokenizer())).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    load_subject(str(tmp_path), Organisms(), device="cpu")
    changed(tmp_path / "config.json", put("logits_scaling", value=0.0))
    with pytest.raises(FileFormatError, match="must give logits that are numbers"):
        load_subject(str(tmp_path), Organisms(), device="cpu")
