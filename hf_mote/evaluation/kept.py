"""Keeps the measurements of an evaluation in a run folder: responses batch by batch, labels of a costly judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_mote.evaluation.changes import Change, Use
from hf_mote.evaluation.preregistration import judge_identity
from hf_mote.generation.certainty import Signs
from hf_mote.generation.chat import Prompt
from hf_mote.judges.judge import Judge, classify
from hf_mote.runs.folder import Record, RunFolder, digest_of

__all__ = ["KeptResponses", "change_of", "keep_use", "kept_labels", "kept_use", "told_of_judge"]

_USE = "use"


class KeptResponses:
    """The responses to some prompts, batch by batch; without a run folder none are kept.

    Args:
        folder ([`RunFolder`], *optional*): The run's.
        name (`str`): Their name in it.
        anew (`bool`, *optional*, defaults to `False`): Whether to generate also those that are kept.
    """

    def __init__(self, folder: RunFolder | None, name: str, *, anew: bool = False) -> None:
        self._folder, self._name, self._anew = folder, name, anew
        self._found: dict[int, Record] = {}

    def known(self, number: int, positions: Sequence[int]) -> list[str] | None:
        """Return the responses of a batch, or `None` if they are to be generated.

        Args:
            number (`int`): Which batch.
            positions (`Sequence[int]`): The positions of its prompts.

        Raises:
            [`FileFormatError`]: if its record is damaged, or is not a batch of this run.
        """
        if self._folder is None or self._anew:
            return None
        record = self._folder.read(self._at(number))
        if record is None:
            return None
        self._found[number] = record
        return _texts(self._folder, self._at(number), record.notes.get("responses"), len(positions))

    def put(self, number: int, responses: Sequence[str]) -> None:
        """Keep a batch, if it is not kept yet.

        Args:
            number (`int`): Which batch.
            responses (`Sequence[str]`): Its responses.
        """
        if self._folder is not None and self._found.pop(number, None) is None:
            self._folder.write(self._at(number), {}, {"responses": list(responses)})

    def put_signed(self, number: int, responses: Sequence[str], signs: Callable[[], list[Signs]]) -> list[Signs]:
        """Keep a batch with the signs of its responses, and return these, or those that are kept.

        Args:
            number (`int`): Which batch.
            responses (`Sequence[str]`): Its responses.
            signs (`Callable[[], list[Signs]]`): Returns the signs of responses that were generated just now.
        """
        known = self._found.pop(number, None)
        if known is None:
            found = signs()
            if self._folder is not None:
                numbers = torch.tensor([list(map(float, one)) for one in found], dtype=torch.float64)
                self._folder.write(self._at(number), {"signs": numbers}, {"responses": list(responses)})
            return found
        numbers = known.tensors.get("signs", torch.empty(0))
        if self._folder is not None and numbers.shape != (len(responses), len(Signs._fields)):
            raise self._folder.damaged(self._at(number), f"signs of shape {tuple(numbers.shape)}")
        return [Signs(surprise, repeated, bool(empty)) for surprise, repeated, empty in numbers.tolist()]

    def _at(self, number: int) -> str:
        return f"responses-{self._name}-{number:06d}"


def change_of(change: Change | None) -> dict[str, Any] | None:
    """Return what identifies a change, JSON-native; `None` for none.

    The provenance of a config is left out.
    """
    described = None if change is None else dict(change.to_dict())
    return (
        described if described is None else {name: value for name, value in described.items() if name != "provenance"}
    )


def told_of_judge(judge: Judge) -> dict[str, Any]:
    """Return what identifies a judge, JSON-native, without the key of a server, which may change.

    Args:
        judge (`Callable`): The judge.
    """
    described = judge_identity(judge)
    described["given"] = {name: value for name, value in described["given"].items() if name != "_headers"}
    return described


def kept_labels(
    folder: RunFolder | None, name: str, judge: Judge, prompts: Sequence[Prompt], responses: Sequence[str]
) -> list[str]:
    """Return what [`classify`] returns; of a judge whose attribute `costly` is true, labels are kept.

    Other judges label kept responses again, so that an unnoticed change of the judge has an effect.

    Args:
        folder ([`RunFolder`], *optional*): The run's.
        name (`str`): The name of the responses in it.
        judge (`Callable`): The judge.
        prompts (`Sequence[Prompt]`): The prompts.
        responses (`Sequence[str]`): One response to each.
    """
    if folder is None or not getattr(judge, "costly", False):
        return classify(judge, prompts, responses)
    place = f"labels-{name}"
    judged = digest_of(list(responses))
    record = folder.read(place)
    if record is not None and record.notes.get("responses_sha256") == judged:
        return _texts(folder, place, record.notes.get("labels"), len(responses))
    labels = classify(judge, prompts, responses)
    folder.write(place, {}, {"labels": labels, "responses_sha256": judged})
    return labels


def kept_use(folder: RunFolder | None) -> Use | None:
    """Return how often each expert or latent is used, if it was counted before."""
    record = None if folder is None else folder.read(_USE)
    return None if record is None else {int(key): counts for key, counts in record.tensors.items()}


def keep_use(folder: RunFolder | None, use: Mapping[int, Tensor]) -> None:
    """Keep how often each expert or latent is used."""
    if folder is not None:
        folder.write(_USE, {str(key): counts for key, counts in use.items()})


def _texts(folder: RunFolder, name: str, found: object, number: int) -> list[str]:
    if not isinstance(found, list) or len(found) != number or not all(isinstance(text, str) for text in found):
        got = f"{len(found)} texts" if isinstance(found, list) else type(found).__name__
        raise folder.damaged(name, got, expected=f"{number} texts")
    return found
