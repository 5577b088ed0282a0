"""What was odd in folders of language models and is refused: weights in torch files, numbers of norms, tokenizers."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from changes import BY_NAME, put
from test_refused_inputs import EXPERT, both, changed, stored
from torch_models import as_torch_files
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from hf_mote.commands.model import Organisms, load_subject
from hf_mote.commands.model_files import check_numbers
from hf_mote.commands.tokenizer_files import check_ids, check_tokens_fit
from hf_mote.errors import FileFormatError
from hf_mote.sae.convert.archives import check_storages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    BY_NAME["model_folder"].make(tmp_path)
    return tmp_path


# Weights.


@pytest.mark.filterwarnings("ignore:Casting complex values to real:UserWarning")
@pytest.mark.parametrize(
    ("dtype", "spelled"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int32, "I32"),
        (torch.int64, "I64"),
        (torch.bool, "BOOL"),
        (torch.complex64, "C64"),
    ],
)
def test_weights_of_whole_numbers_in_a_torch_file_need_a_quantization(
    dtype: torch.dtype, spelled: str, folder: Path
) -> None:
    stored(folder, EXPERT, dtype)
    as_torch_files(folder)
    with pytest.raises(
        FileFormatError, match=rf"pytorch_model.bin: must hold weights .got {EXPERT} as {spelled}, exp"
    ):
        load_subject(str(folder), Organisms(), device="cpu")


@pytest.mark.parametrize("more", [{}, {"archive": False}, {"shards": True}])
def test_torch_files_of_every_kind_are_looked_at(more: dict[str, bool], tmp_path: Path) -> None:
    for name in ("right", "wrong"):
        (tmp_path / name).mkdir()
        BY_NAME["model_folder"].make(tmp_path / name)
    stored(tmp_path / "wrong", EXPERT, torch.int8)
    for name in ("right", "wrong"):
        as_torch_files(tmp_path / name, **more)
    load_subject(str(tmp_path / "right"), Organisms(), device="cpu")
    with pytest.raises(FileFormatError, match=rf"pytorch_model.*bin: must hold weights .got {EXPERT} as I8"):
        load_subject(str(tmp_path / "wrong"), Organisms(), device="cpu")


def _rewritten(path: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], twice: str | None = None) -> None:
    """Write an archive of torch again, with other entries, of which one may be there twice."""
    with zipfile.ZipFile(path) as archive:
        entries = change({name: archive.read(name) for name in archive.namelist()})
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in [*entries.items(), *([(twice, entries[twice])] if twice else [])]:
            archive.writestr(name, content)


STORAGE = "pytorch_model/data/3"


@pytest.mark.parametrize("left", [0, 4])
def test_a_torch_file_of_which_a_piece_is_missing_is_refused(left: int, folder: Path) -> None:
    as_torch_files(folder)
    path = folder / "pytorch_model.bin"
    _rewritten(path, lambda entries: entries)
    load_subject(str(folder), Organisms(), device="cpu")
    _rewritten(path, lambda entries: {**entries, STORAGE: entries[STORAGE][:left]})
    with pytest.raises(FileFormatError, match=rf"bin: data/3: must be as long as its storage .got {left} bytes"):
        load_subject(str(folder), Organisms(), device="cpu")


def test_a_torch_file_with_an_entry_twice_is_refused(folder: Path) -> None:
    as_torch_files(folder)
    _rewritten(folder / "pytorch_model.bin", lambda entries: entries, twice=STORAGE)
    with pytest.raises(FileFormatError, match="pytorch_model.bin: 'pytorch_model/data/3': is there twice"):
        load_subject(str(folder), Organisms(), device="cpu")


def test_a_torch_file_with_bytes_behind_it_is_refused(folder: Path) -> None:
    as_torch_files(folder)
    with (folder / "pytorch_model.bin").open("ab") as file:
        file.write(b"more")
    with pytest.raises(FileFormatError, match="pytorch_model.bin: must end with the directory of its archive"):
        load_subject(str(folder), Organisms(), device="cpu")


def test_a_torch_file_of_shared_and_empty_storages_and_other_values_is_whole(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    held = {"a": whole, "b": whole[2:], "c": torch.empty(0), "d": parameter, "e": 3, "f": "x", "g": [torch.ones(1)]}
    for name, dtype in (("h", torch.float8_e4m3fn), ("i", torch.complex64), ("j", torch.uint16), ("k", torch.bool)):
        held[name] = torch.ones(3).to(dtype)
    torch.save(OrderedDict(held), tmp_path / "a.bin")
    check_storages(tmp_path / "a.bin")


def test_the_file_of_weights_that_a_config_names_is_looked_at(folder: Path) -> None:
    whole = folder / "model.safetensors"
    (folder / "other.safetensors").write_bytes(whole.read_bytes())
    stored(folder, EXPERT, torch.int8)
    changed(folder / "config.json", put("transformers_weights", value="other.safetensors"))
    load_subject(str(folder), Organisms(), device="cpu")
    (folder / "other.safetensors").write_bytes(whole.read_bytes())
    with pytest.raises(FileFormatError, match="other.safetensors: must hold weights"):
        load_subject(str(folder), Organisms(), device="cpu")


# Norms.


@pytest.mark.parametrize("value", [1.0, 1e-6 * 2**60, 1e300, float("inf")])
@pytest.mark.parametrize("field", ["rms_norm_eps", "layer_norm_epsilon", "norm_eps", "layernorm_eps"])
def test_an_epsilon_of_a_norm_that_leaves_nothing_of_a_text_is_refused(field: str, value: float, folder: Path) -> None:
    changed(folder / "config.json", put(field, value=value))
    for load in both(folder):
        with pytest.raises(FileFormatError, match=rf"config.json: {field}: must .*expected 0 or more, and below 1"):
            load()


@pytest.mark.parametrize(("field", "value"), [("rms_norm_eps", 0.999), ("assign_eps", 1.0), ("norm_steps", 7)])
def test_another_epsilon_may_be_larger(field: str, value: float, folder: Path) -> None:
    changed(folder / "config.json", put(field, value=value))
    for load in both(folder):
        load()


def test_no_default_of_a_family_is_refused() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    checked = 0
    for family in CONFIG_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[family]()
        except Exception:  # one that has no defaults, or needs a library
            continue
        check_numbers("here", config)
        checked += any("eps" in field for field in config.to_dict())
    assert checked > 200


# Tokenizers.


def token(vocabulary: dict[str, int], name: str) -> dict[str, Any]:
    """Return an added token of a `tokenizer.json`, as transformers writes it."""
    more = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": vocabulary.get(name, len(vocabulary)), "content": name, "special": True, **more}


def in_vocabulary(**ids: int) -> Callable[[Any], Any]:
    def change(document: Any) -> Any:
        document["model"]["vocab"].update(ids)
        return document

    return change


def added(name: str, **ids: int) -> Callable[[Any], Any]:
    def change(document: Any) -> Any:
        document["model"]["vocab"].update(ids)
        document["added_tokens"].append(token(document["model"]["vocab"], name))
        return document

    return change


@pytest.mark.parametrize(
    ("change", "tokens"),
    [
        (in_vocabulary(a=6), "6 for 'a' and 'b'"),
        (in_vocabulary(a=0), "0 for '<pad>' and 'a'"),
        (in_vocabulary(a=0, b=0), "0 for '<pad>' and 'a' and 'b'"),
        # What is added to a vocabulary with a hole takes the number of its tokens for a free id.
        (added("<new>", a=101), "101 for '<new>' and 'a'"),
    ],
)
def test_a_tokenizer_with_one_id_for_two_tokens_is_refused(
    change: Callable[[Any], Any], tokens: str, folder: Path
) -> None:
    changed(folder / "tokenizer.json", change)
    for load in both(folder):
        with pytest.raises(FileFormatError, match=f"must give each token an id of its own .got {tokens}"):
            load()


@pytest.mark.parametrize("change", [added("a"), added("<new>"), in_vocabulary(a=500), in_vocabulary(a=6, b=5)])
def test_an_added_token_of_the_vocabulary_and_holes_in_it_are_taken(
    change: Callable[[Any], Any], folder: Path
) -> None:
    changed(folder / "tokenizer.json", change)
    for load in both(folder):
        load()


def test_no_tokenizer_that_transformers_makes_gives_one_id_to_two_tokens() -> None:
    checked = 0
    for class_name in sorted({name for name in TOKENIZER_MAPPING_NAMES.values() if name}):
        try:
            tokenizer = getattr(transformers, class_name)()
        except Exception:  # one that needs files, or a library
            continue
        check_ids("here", tokenizer)
        checked += 1
    assert checked > 10


@pytest.mark.parametrize("value", ["<new>", "<pad>x"])
def test_padding_that_is_no_token_of_the_model_is_refused(value: str, folder: Path) -> None:
    changed(folder / "tokenizer_config.json", put("pad_token", value=value))
    for load in both(folder):
        with pytest.raises(FileFormatError, match="pad_token: must be a token of the model .got 101, .* to 100"):
            load()
    changed(folder / "tokenizer_config.json", put("pad_token", value=None))
    for load in both(folder):
        load()


def test_padding_that_only_the_embeddings_have_is_taken(folder: Path) -> None:
    subject = load_subject(str(folder), Organisms(), device="cpu")
    subject.tokenizer.add_special_tokens({"pad_token": "<new>"})
    config, model = subject.model.config, subject.model
    with pytest.raises(FileFormatError, match="pad_token: must be a token of the model"):
        check_tokens_fit("here", config, model, subject.tokenizer)
    vocabulary = config.vocab_size
    model.resize_token_embeddings(vocabulary + 1)
    config.vocab_size = vocabulary
    check_tokens_fit("here", config, model, subject.tokenizer)


def test_a_token_around_each_text_that_the_model_does_not_have_is_refused(folder: Path) -> None:
    changed(folder / "tokenizer_config.json", put("extra_special_tokens", value=["<user>", "<assistant>", "<image>"]))
    for load in both(folder):
        load()  # a text does not have it

    def around(document: Any) -> Any:
        document["added_tokens"].append(token(document["model"]["vocab"], "<image>"))
        first, text = {"SpecialToken": {"id": "<image>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
        special = {"<image>": {"id": "<image>", "ids": [101], "tokens": ["<image>"]}}
        document["post_processor"] = {"type": "TemplateProcessing", "single": [first, text], "pair": [first, text]}
        document["post_processor"]["pair"].append({"Sequence": {"id": "B", "type_id": 1}})
        document["post_processor"]["special_tokens"] = special
        return document

    changed(folder / "tokenizer.json", around)
    for load in both(folder):
        with pytest.raises(FileFormatError, match="must put tokens of the model around a text .got 101 for '<image>'"):
            load()


@pytest.mark.parametrize(
    ("file", "old", "twice"),
    [
        ("tokenizer.json", '"a": 5', '"a": 7, "a": 5'),
        ("tokenizer_config.json", '"pad_token"', '"pad_token": "<eos>", "pad_token"'),
        ("special_tokens_map.json", "{", '{"cls_token": "<eos>", "cls_token": "<pad>", '),
        ("added_tokens.json", "{", '{"a": 5, "a": 6, '),
    ],
)
def test_a_key_twice_in_a_file_of_a_tokenizer_is_refused(file: str, old: str, twice: str, folder: Path) -> None:
    path = folder / file
    whole = json.dumps(json.loads(path.read_text())) if path.exists() else '{"a": 5}'
    assert old in whole
    path.write_text(whole)
    for load in both(folder):
        load()
    path.write_text(whole.replace(old, twice, 1))
    for load in both(folder):
        with pytest.raises(FileFormatError, match=rf"{file}: holds a key twice, with two values .got '\w+'"):
            load()


def test_a_key_twice_with_one_value_is_taken(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace("{", '{"pad_token": "<pad>", ', 1))
    for load in both(folder):
        load()
