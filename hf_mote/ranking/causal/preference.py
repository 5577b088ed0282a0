"""The score of causal rankings: how much a model prefers one response to another, or any score of its logits.

The causal rankings (`attribution`, `ablation`) compute it many times: one number for each prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hf_mote.errors import ConfigError, DataError, whole
from hf_mote.generation.asking import Chat
from hf_mote.generation.chat import Prompt
from hf_mote.generation.decoding import pad_token_of
from hf_mote.generation.prompts import checked_prompts, padded
from hf_mote.generation.randomness import without_randomness
from hf_mote.mote.fields import token_positions
from hf_mote.mote.gains import Gains
from hf_mote.passes.forward import are_at
from hf_mote.runs.folder import RunFolder, digest_of
from hf_mote.runs.identity import model_settings, plain

__all__ = ["Block", "LogitScore", "Preference"]

LogitScore: TypeAlias = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""From logits `(batch, seq, vocab)` and the batch (`input_ids`, `attention_mask`, right padding) to `(batch,)`."""


class Block(NamedTuple):
    """Prompts that run together.

    Attributes:
        first (`int`): Position of the first of them.
        batch (`dict[str, torch.Tensor]`): `input_ids` and `attention_mask`, padded on the right.
        lengths (`list[tuple[int, int]]`): Tokens of each prompt and of its response.
    """

    first: int
    batch: dict[str, Tensor]
    lengths: list[tuple[int, int]]

    def tokens_at(self, positions: Sequence[int] | None) -> Tensor:
        """Return which tokens are at some positions of prompt and response, bool `(prompts * columns,)`.

        Args:
            positions (`Sequence[int]`, *optional*): As `MoTEConfig.positions`; `None` for all but padding.
        """
        real = self.batch["attention_mask"].bool()
        if positions is None:
            return real.reshape(-1)
        places = torch.arange(real.shape[1], device=real.device).expand_as(real)
        ends = torch.tensor([prompt for prompt, _ in self.lengths], device=real.device)
        return (are_at(positions, places, places < ends[:, None]) & real).reshape(-1)


class Preference:
    """A score for each prompt: log p(response) - log p(baseline response), in nats, or the caller's own.

    Args:
        where (`str`): What an error names.
        model (`PreTrainedModel`): Where the batches go.
        chat (`Chat`): How prompts become tokens.
        prompts (`Sequence[str]` or chats): The prompts.
        response (`str` or `Sequence[str]`, *optional*): The response whose causes are sought, one for all or for each.
        baseline_response (`str` or `Sequence[str]`, *optional*): The response it is compared with, in the same form.
        logit_score (`LogitScore`, *optional*): A score of the prompts' logits, instead of the two.
        batch_size (`int`): Prompts that run together.
        argument (`str`, *optional*, defaults to `"prompts"`): What the caller's argument of the prompts is called.

    Raises:
        [`DataError`]: if there are no prompts, a prompt or response has no tokens, the numbers differ, or every
            baseline response is the response.
        [`ConfigError`]: if neither both responses nor a score are given.
    """

    def __init__(
        self,
        where: str,
        model: PreTrainedModel,
        chat: Chat,
        prompts: Sequence[Prompt],
        *,
        response: str | Sequence[str] | None = None,
        baseline_response: str | Sequence[str] | None = None,
        logit_score: LogitScore | None = None,
        batch_size: int,
        argument: str = "prompts",
    ) -> None:
        self.place = f"{where}.{argument}"
        asked = checked_prompts(self.place, prompts)
        whole("batch_size", batch_size, least=1)
        given = [response is not None, baseline_response is not None]
        if any(given) == (logit_score is not None) or any(given) != all(given):
            got = f"{response!r}, {baseline_response!r}, {logit_score!r}"
            raise ConfigError(where, "needs response and baseline_response, or logit_score", got=got)
        if logit_score is not None and not callable(logit_score):
            raise ConfigError(f"{where}.logit_score", "cannot be called", got=repr(logit_score), expected="a callable")
        self.where = where
        self.model = model
        self.logit_score = logit_score
        self.num_prompts = len(asked)
        self.batch_size = batch_size
        self._restricted: tuple[Gains, list[int]] | None = None
        self._pad = pad_token_of(chat.tokenizer)
        self._questions = chat.encode(asked, self.place)
        self._known_to_repeat = False
        self._answers: list[list[list[int]]] = [[[]] * len(asked)]
        self.name = "the score"
        if response is not None and baseline_response is not None:
            wanted = _responses(f"{where}.response", response, len(asked))
            rival = _responses(f"{where}.baseline_response", baseline_response, len(asked))
            self._answers = [
                [list(chat.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
                for texts in (wanted, rival)
            ]
            _check_tokens(f"{where}.response", wanted, self._answers[0])
            _check_tokens(f"{where}.baseline_response", rival, self._answers[1])
            if self._answers[0] == self._answers[1]:
                what = "is the response itself, so that no expert has an effect"
                raise DataError(
                    f"{where}.baseline_response", what, got=repr(rival[0])[:60], expected="another response"
                )
            self.name = wanted[0] if len(set(wanted)) == 1 else "the responses"

    @property
    def prompt_lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return [len(question) for question in self._questions]

    @property
    def prompts_digest(self) -> str:
        """A SHA-256 of the prompts' tokens."""
        return digest_of([self._questions, self._pad])

    def restrict(self, gains: Gains, positions: Sequence[int] | None) -> dict[str, Any]:
        """Have gains act at some positions alone, and return what a run depends on by that; `None` for all tokens.

        Args:
            gains ([`Gains`]): The gains of the model.
            positions (`Sequence[int]`, *optional*): As `MoTEConfig.positions`.

        Raises:
            [`ConfigError`]: if they are no positions.
            [`DataError`]: if no prompt has a token there.
        """
        if positions is None:
            return {}
        checked = self.checked_positions(positions)
        self._restricted = gains, checked
        return {"positions": checked}

    def checked_positions(self, positions: Sequence[int]) -> list[int]:
        """Return positions, ascending and each once.

        Args:
            positions (`Sequence[int]`): As `MoTEConfig.positions`.

        Raises:
            [`ConfigError`]: if they are no positions.
            [`DataError`]: if no prompt has a token there.
        """
        checked = token_positions(f"{self.where}.positions", positions)
        lengths = [
            (len(q), len(q) + len(a))
            for answers in self._answers
            for q, a in zip(self._questions, answers, strict=True)
        ]
        if not any(-prompt <= at < whole for prompt, whole in lengths for at in checked):
            longest = f"prompts of up to {max(prompt for prompt, _ in lengths)} tokens"
            longest += f", {max(whole for _, whole in lengths)} with their responses"
            raise DataError(f"{self.where}.positions", "no prompt has a token there", got=checked, expected=longest)
        return checked

    def folder(self, run_folder: str | os.PathLike[str] | None, **more: Any) -> RunFolder | None:
        """Return the folder in which results for this score are kept, or `None` without one.

        Args:
            run_folder (`str` or `os.PathLike`, *optional*): Where it is.
            **more: Further values that results depend on; JSON-native.

        Raises:
            [`ModelMismatchError`]: if the folder is that of a run with other settings.
            [`UnsupportedError`]: if something, as a score that is a function, cannot be compared with a later run's.
        """
        if run_folder is None:
            return None
        place = f"{self.where}.run_folder"
        score = None if self.logit_score is None else plain(f"{self.where}.logit_score", self.logit_score)
        settings = {
            "function": self.where,
            **model_settings(place, self.model),
            "prompts_sha256": self.prompts_digest,
            "responses_sha256": digest_of(self._answers),
            "logit_score": score,
            "batch_size": self.batch_size,
        }
        return RunFolder(run_folder, {**settings, **more})

    @property
    def unit(self) -> str:
        """The unit of the score."""
        return "nats" if self.logit_score is None else "the score's"

    @property
    def sides(self) -> tuple[int, ...]:
        """The terms of the score: 1 for the response, -1 for the baseline response."""
        return (1, -1)[: len(self._answers)]

    def blocks(self, side: int, rows: range | None = None) -> Iterator[Block]:
        """Yield the batches of one term.

        Args:
            side (`int`): Which term, 1 or -1.
            rows (`range`, *optional*): Places of the prompts, one after another; all by default.
        """
        answers = self._answers[self.sides.index(side)]
        rows = range(self.num_prompts) if rows is None else rows
        for first in range(rows.start, rows.stop, self.batch_size):
            block = slice(first, min(first + self.batch_size, rows.stop))
            pairs = list(zip(self._questions[block], answers[block], strict=True))
            batch = padded([q + a for q, a in pairs], self._pad, side="right", device=self.model.device)
            yield Block(first, batch, [(len(q), len(a)) for q, a in pairs])

    def values(self, block: Block) -> Tensor:
        """Return one term of each prompt's score, `(prompts,)`, float32, from a forward of the model.

        Raises:
            [`DataError`]: if the caller's score returns something else, or a number is not finite.
            [`UnsupportedError`]: if the model does not do the same twice.
        """
        if self._restricted is not None:
            gains, positions = self._restricted
            gains.where = block.tokens_at(positions)
        with nullcontext() if self._known_to_repeat else without_randomness(self.where, self.model):
            logits = self.model(**block.batch, use_cache=False).logits
        self._known_to_repeat = True
        if self.logit_score is None:
            found = _response_log_probs(logits, block.batch["input_ids"], block.lengths)
        else:
            found = self.logit_score(logits, block.batch)
            if not isinstance(found, Tensor) or found.shape != logits.shape[:1]:
                got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise DataError(f"{self.where}.logit_score", "does not return one number for each prompt", got=got)
        wrong = (~found.detach().isfinite()).nonzero()
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"{self.place}[{block.first + row}]",
                "its score is not finite",
                got=float(found.detach()[row]),
                fix="The model's logits hold NaN there, or have minus infinity for a token of the response."
                if self.logit_score is None
                else "Check the logits and the score function.",
            )
        return found.float()

    def scores(self) -> Tensor:
        """Return the score of each prompt, `(prompts,)`, float64 on the CPU; no derivative is kept."""
        found = torch.zeros(self.num_prompts, dtype=torch.float64)
        with torch.no_grad():
            for side in self.sides:
                for block in self.blocks(side):
                    rows = slice(block.first, block.first + len(block.lengths))
                    found[rows] += side * self.values(block).double().cpu()
        return found


def _responses(where: str, given: str | Sequence[str], number: int) -> list[str]:
    if not isinstance(given, str | Sequence):
        raise DataError(where, "not a response", got=repr(given)[:60], expected="text, or a list")
    responses = [given] * number if isinstance(given, str) else list(given)
    if len(responses) != number:
        raise DataError(
            where, "not one response for each prompt", got=len(responses), expected=f"one text, or {number}"
        )
    for index, text in enumerate(responses):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}[{index}]", "not a response", got=repr(text), expected="text")
    return responses


def _check_tokens(where: str, texts: Sequence[str], encoded: Sequence[Sequence[int]]) -> None:
    for index, ids in enumerate(encoded):
        if not ids:
            raise DataError(f"{where}[{index}]", "has no token that the tokenizer knows", got=repr(texts[index])[:60])


def _response_log_probs(logits: Tensor, ids: Tensor, lengths: Sequence[tuple[int, int]]) -> Tensor:
    """Log probability of each row's response, `(rows,)`, float32, in nats; `lengths` are (prompt, response) tokens."""
    log_probs = logits[:, :-1].float().log_softmax(dim=-1).gather(-1, ids[:, 1:, None])[..., 0]
    mask = torch.zeros_like(log_probs)
    for row, (prompt, response) in enumerate(lengths):
        mask[row, prompt - 1 : prompt - 1 + response] = 1
    return (log_probs * mask).sum(dim=1)
