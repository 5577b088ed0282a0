"""`collect_activations`: a stream of a model's activations on a text, which an SAE is trained on.

The stream is made of windows: a number of sequences go through the model (`windows.py`), and their tokens are shuffled
together by a seed of the window's own. The position of a stream is therefore a few numbers and less than one batch of
tokens. A stream that was stopped continues with the same batches.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset
from transformers.utils import logging

from hf_mote.errors import ConfigError, DataError, real
from hf_mote.files import local_path
from hf_mote.sae.fields import excluded_positions
from hf_mote.sae.hookpoints import Hookpoint, canonical, resolve_hookpoints
from hf_mote.sae.training.scaling import NORMALIZATIONS, Normalization, factor_for, fitted_scale
from hf_mote.sae.training.sequences import Sequences
from hf_mote.sae.training.stream_state import check_state
from hf_mote.sae.training.windows import COUNTED, IDS, KEPT, TEXT, Window, WindowSource

__all__ = [
    "NORMALIZATIONS",
    "ActivationStream",
    "Normalization",
    "collect_activations",
    "scales_for",
]

_logger = logging.get_logger(__name__)


def collect_activations(
    model: nn.Module,
    tokenizer: Any,
    dataset: Iterable[Any],
    hookpoints: str | Iterable[str],
    *,
    targets: str | None = None,
    batch_size: int = 2048,
    context_length: int = 256,
    sequences_per_forward: int = 16,
    window_tokens: int = 65_536,
    seed: int = 0,
    max_tokens: int | None = None,
    text_column: str = "text",
    packed: bool = True,
    exclude_special_tokens: bool = False,
    exclude_positions: str | None = None,
    max_norm: float | None = None,
    normalize: bool | Normalization = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    prefetch: bool = False,
    cache: str | os.PathLike[str] | None = None,
    whole_sequences: bool = False,
) -> ActivationStream:
    """Return a shuffled, resumable stream of a model's activations on a text.

    Args:
        model (`nn.Module`):
            Any model that takes `input_ids` and `attention_mask`. It is run without gradients, in evaluation mode, and
            no further than the last hookpoint.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        dataset (`Iterable`):
            Texts, or rows of columns: a text, `"messages"` for the chat template, or `"input_ids"`. A list, or a data
            set of `datasets`, streaming or not: it must be iterable more than once.
        hookpoints (`str` or `Iterable[str]`):
            Where activations are taken: `"model.layers.*.output"`, `"model.layers.3.mlp.gate.input"`.
        targets (`str`, *optional*):
            Where a transcoder's targets are taken; `hookpoints` is then one.
        batch_size (`int`, *optional*, defaults to 2048): Tokens of a batch.
        context_length (`int`, *optional*, defaults to 256): Most tokens of a sequence.
        sequences_per_forward (`int`, *optional*, defaults to 16): Sequences that run together.
        window_tokens (`int`, *optional*, defaults to 65,536):
            Tokens that are shuffled together, in whole forwards, and held in memory. 0 keeps the text's order.
        seed (`int`, *optional*, defaults to 0): Of the shuffling.
        max_tokens (`int`, *optional*): Tokens of a pass, in whole batches and in each process; by default all.
        text_column (`str`, *optional*, defaults to `"text"`): Where a row has its text.
        packed (`bool`, *optional*, defaults to `True`):
            Whether texts follow each other in full contexts; otherwise each begins its own, and is padded.
        exclude_special_tokens (`bool`, *optional*, defaults to `False`): Leave out the tokenizer's special tokens.
        exclude_positions (`str`, *optional*): Leave out positions of each sequence: `"first:4"`, or a slice `"0:4"`.
        max_norm (`float`, *optional*):
            Leave out tokens whose activation is longer than this factor times the window's median (attention sinks),
            at any of the hookpoints.
        normalize (`bool`, `"mean_square"` or `"per_dimension"`, *optional*, defaults to `False`):
            Scale activations, measured on the first window, so that at each hookpoint their mean square is 1
            (`"mean_square"`, or `True`), or each dimension's variance. [`SAETrainer`] folds it into the SAE in the
            end; after `"per_dimension"`, rows of a dictionary whose latents are compared are not of unit length.
        device (`torch.device` or `str`, *optional*): Where batches go; by default the CPU.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Of the batches.
        prefetch (`bool`, *optional*, defaults to `False`):
            Fill the next window in a thread while this one is used: for a model on a device of its own.
        cache (`str` or `os.PathLike`, *optional*):
            Folder in which windows are kept as Arrow files, in `dtype`: a second pass, another run or a resumed one
            reads them, and the model runs only for missing ones. Runs may differ in `batch_size`,
            `seed`, `max_tokens`, `max_norm`, `normalize` and `device`; any other difference is refused.
        whole_sequences (`bool`, *optional*, defaults to `False`):
            Shuffle sequences instead of tokens, and yield them with their token ids, as the end-to-end losses of
            [`SAETrainer`] need them. A batch has `batch_size / context_length` sequences.

    Returns:
        [`ActivationStream`], which yields batches `{"activations": (batch_size, width)}`, with `"targets"` for
        transcoders; where there are several hookpoints, such a batch for each by its name, of the same tokens. With
        `whole_sequences`, activations are `(sequences, context_length, width)`, `"attention_mask"` is 0 where a token
        is padding or left out, and `"input_ids"` and `"text_mask"`, 0 at padding, are the text's.

    Raises:
        [`UnknownNameError`]: if a hookpoint matches nothing.
        [`ConfigError`]: if an argument is out of range, or the cache is another model's, text's or setting's.
        [`FileFormatError`]: if the cache cannot be read or written; windows that were written stay.
    """
    points = resolve_hookpoints(model, hookpoints)
    target_points = [] if targets is None else resolve_hookpoints(model, targets)
    if targets is not None and (len(points) != 1 or len(target_points) != 1):
        raise ConfigError(
            "targets",
            "a transcoder is from one hookpoint to one",
            got=f"{len(points)} and {len(target_points)}",
            expected="one of each",
        )
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("context_length", context_length, 1),
        ("sequences_per_forward", sequences_per_forward, 1),
        ("window_tokens", window_tokens, 0),
        ("max_tokens", max_tokens, batch_size),
    ):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            expected = f"a whole number, {least} or more"
            raise ConfigError(f"collect_activations.{name}", "out of range", got=value, expected=expected)
    if normalize not in (False, True, *NORMALIZATIONS):
        expected = f"a bool, or one of {', '.join(map(repr, NORMALIZATIONS))}"
        raise ConfigError("collect_activations.normalize", "unknown name", got=repr(normalize), expected=expected)
    if max_norm is not None:
        real("collect_activations.max_norm", max_norm, above=0)
    if whole_sequences and (len(points) != 1 or cache is not None or batch_size % context_length):
        raise ConfigError(
            "collect_activations.whole_sequences",
            "needs one hookpoint, no cache, and a batch_size of whole contexts",
            got=f"{len(points)} hookpoints, cache={cache!r}, {batch_size} / {context_length}",
        )
    if isinstance(dataset, str | Iterator):
        raise ConfigError(
            "collect_activations.dataset",
            "cannot be gone through again",
            got=type(dataset).__name__,
            expected="a list or a data set",
        )
    source = WindowSource(
        model,
        points,
        target_points[0] if target_points else None,
        context_length=context_length,
        sequences_per_forward=sequences_per_forward,
        forwards_per_window=max(window_tokens // (context_length * sequences_per_forward), 1),
        special_tokens=frozenset(tokenizer.all_special_ids) if exclude_special_tokens else frozenset(),
        positions=excluded_positions(exclude_positions),
        max_norm=max_norm,
        dtype=dtype,
        whole_sequences=whole_sequences,
        cache=None if cache is None else local_path(cache),
    )
    return ActivationStream(
        Sequences(tokenizer, dataset, text_column=text_column, context_length=context_length, packed=packed),
        source,
        batch_size=batch_size,
        shuffle=window_tokens > 0,
        seed=seed,
        max_tokens=max_tokens,
        normalize="mean_square" if normalize is True else normalize or None,
        device=torch.device(device or "cpu"),
        prefetch=prefetch,
    )


class ActivationStream(IterableDataset[dict[str, Any]]):
    """Batches of activations, shuffled within windows; made by [`collect_activations`].

    Iteration continues at its position; after the last batch of a pass the next begins, shuffled differently.

    Attributes:
        batch_size (`int`): Tokens of a batch.
        whole_sequences (`bool`): Whether batches hold sequences with their token ids.
        hookpoints (`list[str]`): Where activations are taken.
        scales (`dict[str, float | list[float]]`):
            Factors on activations by hookpoint, one number or one for each dimension; empty without
            `normalize`, and before the first window.
        counts (`dict[str, int]`):
            Tokens so far in this process: `"kept"`, and left out as `"special"`, `"position"` or `"norm"`.
    """

    def __init__(
        self,
        sequences: Sequences,
        source: WindowSource,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        max_tokens: int | None,
        normalize: Normalization | None,
        device: torch.device,
        prefetch: bool,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.scales: dict[str, float | list[float]] = {}
        self.whole_sequences = source.whole_sequences
        self._sequences, self._source = sequences, source
        self._shuffle, self._seed, self._max_tokens = shuffle, seed, max_tokens
        self._normalize, self._device, self._prefetch = normalize, device, prefetch
        # Rows of a batch: tokens, or sequences.
        self._unit = batch_size // sequences.context_length if self.whole_sequences else batch_size
        self._share = (0, 1)
        self._first_window: Window | None = None
        self.rewind()

    @property
    def hookpoints(self) -> list[str]:
        """Where activations are taken."""
        return [point.name for point in self._source.points]

    @property
    def model(self) -> nn.Module:
        """The model whose activations they are."""
        return self._source.model

    @property
    def writes(self) -> Hookpoint:
        """Where a single SAE's reconstructions belong: at the targets of a transcoder, else where it reads."""
        return self._source.target or self._source.points[0]

    @property
    def sequences_per_forward(self) -> int:
        """Sequences that run together."""
        return self._source.sequences_per_forward

    def __len__(self) -> int:
        """Batches of a pass, where `max_tokens` says how many."""
        if self._max_tokens is None:
            raise TypeError("without max_tokens the number of batches is not known")
        return self._max_tokens // self.batch_size

    # Position.

    def rewind(self) -> None:
        """Go back to the first batch of the first pass."""
        self._epoch = self._window = self._batch = self._yielded = 0
        self._carried: dict[str, Tensor] | None = None
        self.counts = dict.fromkeys(COUNTED, 0)

    def take_share(self, rank: int, world: int) -> None:
        """Take every `world`-th sequence, from `rank` on: for the processes of a training run."""
        if (rank, world) != self._share:
            self._share, self._first_window = (rank, world), None

    def from_start(self) -> ActivationStream:
        """Return the same stream at its start, which shares the model and nothing else."""
        twin = copy.copy(self)
        twin._source = copy.copy(self._source)
        twin.rewind()
        return twin

    def scaled_as(self, other: ActivationStream) -> ActivationStream:
        """Return this stream at its start, scaled as another one: for evaluation."""
        twin = self.from_start()
        twin._normalize, twin.scales, twin._first_window = None, dict(other.scales), None
        return twin

    @property
    def normalization(self) -> Normalization | None:
        """The kind of scaling, if any."""
        return self._normalize

    def leave_as_they_are(self) -> None:
        """Stop scaling activations: for an SAE into which the scale was folded."""
        self._normalize, self.scales, self._first_window = None, {}, None

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream: numbers, and the tokens left of the last window, less than a batch."""
        return {
            "epoch": self._epoch,
            "window": self._window,
            "batch": self._batch,
            "yielded": self._yielded,
            "share": list(self._share),
            "settings": self._settings(),
            "scales": dict(self.scales),
            "counts": dict(self.counts),
            "carried": {} if self._carried is None else {key: rows.clone() for key, rows in self._carried.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the position of a stream that was made with the same arguments.

        Raises:
            [`ConfigError`]: if it was made with others, or by another process of a run; see [`take_share`].
            [`DataError`]: if it is not such a state; the stream is then unchanged.
        """
        source = self._source
        of_sequences = source.sequences_per_window if self.whole_sequences else None
        check_state(state, self.counts, source.tensors, source.dtype, self._unit, of_sequences)
        if state["settings"] != self._settings():
            theirs, ours = state["settings"], self._settings()
            changed = sorted(key for key in {*theirs, *ours} if theirs.get(key) != ours.get(key))
            raise ConfigError(
                "ActivationStream",
                f"was made with other settings: {', '.join(changed)}",
                got=", ".join(repr(ours.get(key)) for key in changed),
                expected=", ".join(repr(theirs.get(key)) for key in changed),
                fix="Give collect_activations what the run began with.",
            )
        if tuple(state["share"]) != self._share:
            (rank, world), (own_rank, own_world) = state["share"], self._share
            raise ConfigError(
                "ActivationStream",
                "stood in another process of a run",
                got=f"the state of process {rank} of {world}",
                expected=f"that of process {own_rank} of {own_world}",
                fix="Go on with as many processes as the run began with; take_share says which one a stream is for.",
            )
        self._epoch, self._window, self._batch = state["epoch"], state["window"], state["batch"]
        self._yielded, self.scales = state["yielded"], dict(state["scales"])
        self.counts = dict(state["counts"])
        self._carried = dict(state["carried"]) or None

    def _settings(self) -> dict[str, Any]:
        source = self._source
        return {
            "hookpoints": self.hookpoints,
            "targets": None if source.target is None else source.target.name,
            "batch_size": self.batch_size,
            "context_length": source.context_length,
            "packed": self._sequences.packed,
            "sequences_per_forward": source.sequences_per_forward,
            "forwards_per_window": source.forwards_per_window,
            "shuffle": self._shuffle,
            "seed": self._seed,
            "max_tokens": self._max_tokens,
            "special_tokens": len(source.special_tokens),
            "positions": str(source.positions),
            "max_norm": source.max_norm,
            "normalize": self._normalize,
            "whole_sequences": self.whole_sequences,
            "dtype": str(source.dtype),
        }

    # Batches.

    def first(self, num_batches: int) -> list[dict[str, Any]]:
        """Return the first batches of the stream, whose position does not change."""
        twin = self.from_start()
        found = list(islice(twin, num_batches))
        self._first_window = twin._first_window
        return found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches from the present position to the end of the pass; at its end, those of the next pass."""
        windows, before = self._windows(), self._yielded
        try:
            for window in windows:
                rows, left_out = self._rows_of(window), window.left_out
                # The window is freed before the next one is filled.
                del window
                whole = len(next(iter(rows.values()))) // self._unit
                if self._batch > whole:
                    what, got = "stood behind the end of its window", f"batch {self._batch}"
                    fix = "Give the text that the run began with, or begin anew."
                    raise DataError("ActivationStream", what, got=got, expected=f"up to {whole}", fix=fix)
                while self._batch < whole:
                    if self._max_tokens is not None and self._yielded >= self._max_tokens // self.batch_size:
                        break
                    start = self._batch * self._unit
                    self._batch += 1
                    self._yielded += 1
                    yield self._record({key: part[start : start + self._unit] for key, part in rows.items()})
                else:
                    self._carried = {key: part[whole * self._unit :].clone() for key, part in rows.items()}
                    del rows
                    self._window += 1
                    self._batch = 0
                    for key, number in left_out.items():
                        self.counts[key] += number
                    continue
                break
        finally:
            windows.close()
        if not self._yielded:
            left_out = {key: number for key, number in self.counts.items() if key != "kept" and number}
            raise DataError(
                "collect_activations: dataset",
                "holds no batch of tokens",
                got=f"{self.counts['kept']} tokens, left out {left_out or 'none'}",
                expected=f"batch_size = {self.batch_size} or more",
                fix="Give more text, exclude less, or take a smaller batch_size.",
            )
        if self._max_tokens is not None and self._yielded < self._max_tokens // self.batch_size:
            tokens = self._yielded * self.batch_size
            _logger.warning("The text ended after %d of max_tokens = %d tokens.", tokens, self._max_tokens)
        ended_at_once = self._yielded == before
        self._epoch += 1
        self._window = self._batch = self._yielded = 0
        self._carried = None
        if ended_at_once:
            yield from self

    def _rows_of(self, window: Window) -> dict[str, Tensor]:
        """The rest of the last window, and this one's tokens in shuffled order."""
        order = None
        if self._shuffle:
            generator = torch.Generator().manual_seed(self._seed_of_window())
            order = torch.randperm(len(next(iter(window.rows.values()))), generator=generator)
        rows = {}
        for key, part in window.rows.items():
            held = part[:0] if self._carried is None else self._carried[key]
            if held.shape[1:] != part.shape[1:]:
                got, expected = tuple(held.shape[1:]), tuple(part.shape[1:])
                raise DataError(
                    "ActivationStream", f"was left with another width at {key}", got=got, expected=expected
                )
            rows[key] = part.new_empty(len(held) + len(part), *part.shape[1:])
            rows[key][: len(held)] = held
            # Straight into its place: a window is large.
            place = rows[key][len(held) :]
            place.copy_(part) if order is None else torch.index_select(part, 0, order, out=place)
        return rows

    def _seed_of_window(self) -> int:
        return ((self._seed * 1_000_003 + self._epoch) * 1_000_003 + self._window) % 2**63

    def _record(self, rows: dict[str, Tensor]) -> dict[str, Any]:
        def ready(key: str) -> Tensor:
            part = rows[key].to(self._device)
            # Never a view, which would hold the whole window.
            return part * factor_for(self.scales[key], part) if key in self.scales else part.clone()

        names, target = self.hookpoints, self._source.target
        if len(names) > 1:
            return {name: {"activations": ready(name)} for name in names}
        found = {"activations": ready(names[0])}
        if target is not None:
            found["targets"] = ready(target.name)
        if self.whole_sequences:
            found |= {"attention_mask": ready(KEPT), "input_ids": ready(IDS), "text_mask": ready(TEXT)}
        return found

    def _windows(self) -> Generator[Window, None, None]:
        """Yield the windows from the present one on."""
        size = self._source.sequences_per_window
        sequences = self._mine(self._window * size)
        first = self._window == 0 and self._epoch == 0
        if self._normalize and not self.scales and not first:
            next(self.from_start()._windows(), None)

        places = count(self._window)

        def fill() -> Window | None:
            place, taken = next(places), list(islice(sequences, size))
            return self._source.window(place, self._share, taken) if taken else None

        if first and self._first_window is not None:
            list(islice(sequences, size))
            next(places)
            window: Window | None = self._first_window
        else:
            window = fill()
        with ThreadPoolExecutor(1) as thread:
            while window is not None:
                if first:
                    self._first_window, first = window, False
                    self._fit_scales(window)
                coming: Future[Window | None] | None = thread.submit(fill) if self._prefetch else None
                # Kept for a reader of the first batches, and freed after its use.
                handed, window = [window], None
                yield handed.pop()
                self._first_window = None
                window = coming.result() if coming is not None else fill()

    def _mine(self, skip: int) -> Iterator[list[int]]:
        rank, world = self._share
        return islice(iter(self._sequences), rank + skip * world, None, world)

    def _fit_scales(self, window: Window) -> None:
        if self._normalize is None or self.scales:
            return
        for point in self._source.tapped:
            rows = window.rows[point.name]
            if self.whole_sequences:
                rows = rows[window.rows[KEPT]]
            self.scales[point.name] = fitted_scale(point.name, rows, self._normalize)


def scales_for(stream: ActivationStream, hookpoint: str | None) -> tuple[float | Tensor, float | Tensor]:
    """Return a stream's factors on an SAE's activations and targets; 1 without scaling.

    Args:
        stream ([`ActivationStream`]): The stream.
        hookpoint (`str`, *optional*): The SAE's; needed where the stream has several.

    Returns:
        Two numbers, or float64 tensors `(width,)` where it has one for each dimension.
    """
    names = stream.hookpoints
    name = names[0] if len(names) == 1 else canonical(hookpoint or "")

    def of(key: str) -> float | Tensor:
        scale = stream.scales.get(key, 1.0)
        return torch.tensor(scale, dtype=torch.float64) if isinstance(scale, list) else scale

    target = stream._source.target
    return of(name), of(name if target is None else target.name)
