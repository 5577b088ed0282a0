"""Folders of language models whose weights lie in files of torch."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

__all__ = ["as_torch_files"]


def as_torch_files(folder: Path, *, shards: bool = False, archive: bool = True) -> None:
    """Store the weights of a model's folder as torch stores them: whole or in two parts, as an archive or not."""
    path = folder / "model.safetensors"
    tensors = {key: value.contiguous() for key, value in load_file(path).items()}
    path.unlink()
    if not shards:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=archive)
        return
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    index = {key: names[place % 2] for place, key in enumerate(tensors)}
    for name in names:
        torch.save({key: tensors[key] for key in tensors if index[key] == name}, folder / name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
