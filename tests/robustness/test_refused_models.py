"""What was odd in folders of language models and is refused: weights in torch files, numbers of norms, tokenizers."""

from __future__ import annotations

import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from changes import BY_NAME, put
from test_refused_inputs import EXPERT, both, changed, stored
from torch_models import as_torch_files

from hf_mote.commands.model import Organisms, load_subject
from hf_mote.commands.model_files import check_numbers
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
