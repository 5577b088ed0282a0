"""What was odd in folders of language models and is refused: weights in torch files, numbers of norms, tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from changes import BY_NAME, put
from test_refused_inputs import EXPERT, changed, stored
from torch_models import as_torch_files

from hf_mote.commands.model import Organisms, load_subject
from hf_mote.errors import FileFormatError


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


def test_the_file_of_weights_that_a_config_names_is_looked_at(folder: Path) -> None:
    whole = folder / "model.safetensors"
    (folder / "other.safetensors").write_bytes(whole.read_bytes())
    stored(folder, EXPERT, torch.int8)
    changed(folder / "config.json", put("transformers_weights", value="other.safetensors"))
    load_subject(str(folder), Organisms(), device="cpu")
    (folder / "other.safetensors").write_bytes(whole.read_bytes())
    with pytest.raises(FileFormatError, match="other.safetensors: must hold weights"):
        load_subject(str(folder), Organisms(), device="cpu")
