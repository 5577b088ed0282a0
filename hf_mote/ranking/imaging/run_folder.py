"""The run folder: imaging results kept batch by batch, so that a run that was killed goes on where it stopped.

A folder holds `run.json`, which says what is being imaged, and one file for each finished batch, written whole or not
at all. Another run with the same settings reads what is there and does the rest; with other settings it is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_mote.errors import DataError, FileFormatError, ModelMismatchError, first_line
from hf_mote.files import read_json, read_tensors, write_json, write_tensors
from hf_mote.ranking.imaging.result_file import check_recorded, split_tokens

__all__ = ["ExpectedBatch", "ImagedBatch", "RunFolder"]

_KIND = "ftri_batch"
_FORMAT = 2  # of what is compared and kept; another version's folder is not gone on with


class ImagedBatch(NamedTuple):
    """What imaging saw of one batch.

    Attributes:
        tokens (`list[list[int]]`): The tokens of each prompt's response.
        counts (`torch.Tensor` of shape `(prompts, layers, experts)`, float32): Tokens for which an expert was chosen.
        weights (`torch.Tensor` of shape `(prompts, layers, experts)`, float32): Sum of its routing weights.
        num_tokens (`torch.Tensor` of shape `(prompts,)`, float32): Tokens counted.
    """

    tokens: list[list[int]]
    counts: Tensor
    weights: Tensor
    num_tokens: Tensor


class ExpectedBatch(NamedTuple):
    """What a batch of a run can hold.

    Attributes:
        prompt_lengths (`Sequence[int]`): Tokens of each prompt in it.
        counts_prompts (`bool`): Whether all tokens of a prompt are counted.
        top_k (`Sequence[int]`): Experts that each router chooses for a token.
        num_experts (`int`): Experts of a layer.
        vocab_size (`int`, *optional*): Tokens that the model knows.
        max_new_tokens (`int`): Most tokens of a response.
    """

    prompt_lengths: Sequence[int]
    counts_prompts: bool
    top_k: Sequence[int]
    num_experts: int
    vocab_size: int | None
    max_new_tokens: int


class RunFolder:
    """A folder of finished batches.

    Args:
        path (`str` or `os.PathLike`): The folder, made if it does not exist.
        settings (`Mapping[str, Any]`): JSON-native: what is imaged, and how.

    Raises:
        [`ModelMismatchError`]: if the folder is that of a run with other settings, which are named, or was written by
            another version.
        [`FileFormatError`]: if it cannot be a run folder.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        manifest = self.path / "run.json"
        settings = {"format": _FORMAT, **settings}
        if os.path.exists(manifest):
            found = read_json(manifest)
            if not isinstance(found, dict) or found.get("format") != _FORMAT:
                raise ModelMismatchError(
                    str(manifest),
                    "was written by another version of hf_mote, which did not keep all that a run depends on",
                    got=f"format {found.get('format', 1) if isinstance(found, dict) else 'unknown'}",
                    expected=f"format {_FORMAT}",
                    fix="Give another folder, and run anew.",
                )
            other = sorted(key for key in {*found, *settings} if found.get(key) != settings.get(key))
            if other:
                raise ModelMismatchError(
                    str(self.path),
                    "holds a run with other settings",
                    got=", ".join(_differing(key, found.get(key), settings.get(key)) for key in other),
                    expected=", ".join(_differing(key, settings.get(key), found.get(key)) for key in other),
                    fix="Give another folder, or the settings it was begun with.",
                )
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise FileFormatError(str(self.path), "cannot be made a folder", got=first_line(error)) from error
        # Hidden files are what a killed run was writing; run.json may be another process's of this very run.
        if any(not file.name.startswith(".") and file != manifest for file in self.path.iterdir()):
            raise FileFormatError(
                str(self.path), "is no run folder", got="other files, and no run.json", expected="an empty folder"
            )
        write_json(manifest, settings)

    def read(self, number: int, batch: ExpectedBatch) -> ImagedBatch | None:
        """Return a finished batch, or `None` if it is not finished.

        Args:
            number (`int`): Which.
            batch ([`ExpectedBatch`]): What it can hold, in the run that it stands in.

        Raises:
            [`FileFormatError`]: if its file is damaged, or holds what no batch of this run can.
        """
        path = self._file(number)
        if not path.exists():
            return None
        fix = "Delete it; it will be made again."
        try:
            tensors, _ = read_tensors(path, kind=_KIND)
            tokens = split_tokens(tensors, batch.vocab_size)
            counts, weights, num_tokens = (tensors[name] for name in ("counts", "weights", "num_tokens"))
            check_recorded(counts, weights, num_tokens)
            shape, grid = tuple(counts.shape), (len(batch.top_k), batch.num_experts)
            number_of_prompts = len(batch.prompt_lengths)
            if shape != (number_of_prompts, *grid) or len(tokens) != number_of_prompts:
                got = f"{len(tokens)} responses, maps of shape {shape}"
                expected = f"{number_of_prompts} responses, and maps of {grid[0]} layers and {grid[1]} experts"
                raise DataError("batch", "is of another run", got=got, expected=expected)
            longest = max((len(part) for part in tokens), default=0)
            if longest > batch.max_new_tokens:
                raise DataError("response_tokens", "are too many", got=longest, expected=batch.max_new_tokens)
            for counted, prompt, response in zip(num_tokens.tolist(), batch.prompt_lengths, tokens, strict=True):
                least = prompt if batch.counts_prompts else 0
                if not least <= counted <= prompt + len(response):
                    expected = f"{least}..{prompt + len(response)}"
                    raise DataError("num_tokens", "is not of this prompt", got=counted, expected=expected)
            most = torch.tensor(batch.top_k, dtype=torch.float64) * num_tokens.double()[:, None]
            if bool((counts.double().sum(-1) > most).any()):
                expected = "at most top_k of each token"
                raise DataError("counts", "are of more experts than are chosen", expected=expected)
        except FileFormatError as error:
            raise FileFormatError(str(path), "is damaged", got=str(error).rstrip("."), fix=fix) from error
        except (KeyError, DataError) as error:
            got = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise FileFormatError(str(path), "holds no batch of this run", got=got, fix=fix) from error
        return ImagedBatch(tokens, counts, weights, num_tokens)

    def write(self, number: int, batch: ImagedBatch) -> None:
        """Keep a finished batch."""
        tensors = {
            "counts": batch.counts,
            "weights": batch.weights,
            "num_tokens": batch.num_tokens,
            "response_tokens": torch.tensor([token for tokens in batch.tokens for token in tokens], dtype=torch.int64),
            "response_lengths": torch.tensor([len(tokens) for tokens in batch.tokens]),
        }
        write_tensors(self._file(number), tensors, {"kind": _KIND})

    def _file(self, number: int) -> Path:
        return self.path / f"batch-{number:06d}.safetensors"


def _differing(key: str, value: object, other: object) -> str:
    """Return a setting as an error shows it: of several values those that differ."""
    if isinstance(value, dict) and isinstance(other, dict):
        value = {name: entry for name, entry in value.items() if other.get(name) != entry}
    return f"{key}: {str(value)[:80]}"
