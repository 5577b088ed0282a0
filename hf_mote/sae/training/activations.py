"""`collect_activations`: a model and a text to a stream of activations, which an SAE is trained on.

The stream is made of windows: so many sequences of text go through the model, and their tokens are shuffled together
by a seed of the window's own. Where it stands is therefore a few numbers and less than one batch of tokens, and a
stream that is stopped goes on with the very same batches, whatever its window holds.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import IterableDataset
from transformers.utils import logging

from hf_mote.errors import ConfigError, DataError, FileFormatError
from hf_mote.files import local_path
from hf_mote.sae.hookpoints import Hookpoint, canonical, resolve_hookpoints
from hf_mote.sae.tapped import activations_of
from hf_mote.sae.training.cache import WindowCache, digest_of, fingerprint_of
from hf_mote.sae.training.sequences import Sequences, batch_of, excluded_positions
from hf_mote.sae.training.stream_state import check_state

__all__ = [
    "NORMALIZATIONS",
    "ActivationStream",
    "Normalization",
    "collect_activations",
    "scales_for",
]

Normalization = Literal["mean_square", "per_dimension"]
NORMALIZATIONS = get_args(Normalization)

_logger = logging.get_logger(__name__)
# Of the length of activations, what another batch or machine may change in float32.
_LEAST_ROUNDING = 1e-3
# Numbers of a window that are squared together.
_MEASURED_TOGETHER = 2**18
# Of whole sequences: which tokens are kept, their ids, and 0 at padding. No hookpoint is named so.
_KEPT, _IDS, _TEXT = ".kept", ".input_ids", ".text_mask"


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
            set of `datasets`, streaming or not: something that can be gone through again.
        hookpoints (`str` or `Iterable[str]`):
            Where activations are taken: `"model.layers.*.output"`, `"model.layers.3.mlp.gate.input"`.
        targets (`str`, *optional*):
            Where a transcoder's targets are taken; `hookpoints` is then one.
        batch_size (`int`, *optional*, defaults to 2048): Tokens of a batch.
        context_length (`int`, *optional*, defaults to 256): Most tokens of a sequence.
        sequences_per_forward (`int`, *optional*, defaults to 16): Sequences that run together.
        window_tokens (`int`, *optional*, defaults to 65,536):
            Tokens that are shuffled together, in whole forwards; what is held in memory. 0 keeps the text's order.
        seed (`int`, *optional*, defaults to 0): Of the shuffling.
        max_tokens (`int`, *optional*): Tokens of a pass, in whole batches and in each process; by default all.
        text_column (`str`, *optional*, defaults to `"text"`): Where a row has its text.
        packed (`bool`, *optional*, defaults to `True`):
            Whether texts follow each other in full contexts; otherwise each begins its own, and is padded.
        exclude_special_tokens (`bool`, *optional*, defaults to `False`): Leave out the tokenizer's special tokens.
        exclude_positions (`str`, *optional*): Leave out positions of each sequence: `"first:4"`, or a slice `"0:4"`.
        max_norm (`float`, *optional*):
            Leave out tokens whose activation is longer than so many times the window's median (attention sinks), at
            any of the hookpoints.
        normalize (`bool`, `"mean_square"` or `"per_dimension"`, *optional*, defaults to `False`):
            Scale activations by what the first window says, so that at each hookpoint their mean square is 1
            (`"mean_square"`, or `True`), or each dimension's variance. [`SAETrainer`] folds it into the SAE in the
            end; after `"per_dimension"`, rows of a dictionary whose latents are compared are not of unit length.
        device (`torch.device` or `str`, *optional*): Where batches go; by default the CPU.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Of the batches.
        prefetch (`bool`, *optional*, defaults to `False`):
            Fill the next window in a thread while this one is used: for a model on a device of its own.
        cache (`str` or `os.PathLike`, *optional*):
            Folder in which windows are kept as Arrow files, in `dtype`, and looked for: a second pass, another run or
            a resumed one reads them, and the model runs for what is not there. Runs may differ in `batch_size`,
            `seed`, `max_tokens`, `max_norm`, `normalize` and `device`; anything else that is not the same is refused.
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
    if max_norm is not None and not max_norm > 0:
        raise ConfigError("collect_activations.max_norm", "out of range", got=max_norm, expected="above 0")
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
    return ActivationStream(
        model,
        Sequences(tokenizer, dataset, text_column=text_column, context_length=context_length, packed=packed),
        points,
        target_points[0] if target_points else None,
        batch_size=batch_size,
        sequences_per_forward=sequences_per_forward,
        forwards_per_window=max(window_tokens // (context_length * sequences_per_forward), 1),
        shuffle=window_tokens > 0,
        seed=seed,
        max_tokens=max_tokens,
        special_tokens=frozenset(tokenizer.all_special_ids) if exclude_special_tokens else frozenset(),
        positions=excluded_positions(exclude_positions),
        max_norm=max_norm,
        normalize="mean_square" if normalize is True else normalize or None,
        device=torch.device(device or "cpu"),
        dtype=dtype,
        prefetch=prefetch,
        cache=None if cache is None else local_path(cache),
        whole_sequences=whole_sequences,
    )


class ActivationStream(IterableDataset[dict[str, Any]]):
    """Batches of activations, shuffled within windows; made by [`collect_activations`].

    Going through it goes on where it stands; after the last batch of a pass it begins the next, shuffled anew.

    Attributes:
        batch_size (`int`): Tokens of a batch.
        whole_sequences (`bool`): Whether batches hold sequences with their token ids.
        hookpoints (`list[str]`): Where activations are taken.
        scales (`dict[str, float | list[float]]`):
            What activations are multiplied by, by hookpoint, one number or one for each dimension; empty without
            `normalize`, and before the first window.
        counts (`dict[str, int]`):
            Tokens so far in this process: `"kept"`, and left out as `"special"`, `"position"` or `"norm"`.
    """

    def __init__(
        self,
        model: nn.Module,
        sequences: Sequences,
        points: list[Hookpoint],
        target: Hookpoint | None,
        *,
        batch_size: int,
        sequences_per_forward: int,
        forwards_per_window: int,
        shuffle: bool,
        seed: int,
        max_tokens: int | None,
        special_tokens: frozenset[int],
        positions: slice | None,
        max_norm: float | None,
        normalize: Normalization | None,
        device: torch.device,
        dtype: torch.dtype,
        prefetch: bool,
        cache: Path | None,
        whole_sequences: bool,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.scales: dict[str, float | list[float]] = {}
        self._model, self._sequences = model, sequences
        self._points, self._target = points, target
        self._per_forward, self._forwards = sequences_per_forward, forwards_per_window
        self._shuffle, self._seed, self._max_tokens = shuffle, seed, max_tokens
        self._special, self._positions, self._max_norm = special_tokens, positions, max_norm
        self._normalize = normalize
        self._device, self._dtype, self._prefetch = device, dtype, prefetch
        self.whole_sequences = whole_sequences
        # Rows of a batch: tokens, or sequences.
        self._unit = batch_size // sequences.context_length if whole_sequences else batch_size
        self._share = (0, 1)
        self._first_window: _Window | None = None
        self._cache = None if cache is None else WindowCache(cache, self._kept_with())
        embeds = getattr(model, "get_input_embeddings", lambda: None)()
        self._vocabulary = embeds.num_embeddings if isinstance(embeds, nn.Embedding) else None
        self._cache_tried = False
        self._widths: dict[str, int] = {}  # of windows that were read
        self.rewind()

    @property
    def hookpoints(self) -> list[str]:
        """Where activations are taken."""
        return [point.name for point in self._points]

    @property
    def model(self) -> nn.Module:
        """The model whose activations they are."""
        return self._model

    @property
    def writes(self) -> Hookpoint:
        """Where a single SAE's reconstructions belong: at the targets of a transcoder, else where it reads."""
        return self._target or self._points[0]

    @property
    def sequences_per_forward(self) -> int:
        """Sequences that run together."""
        return self._per_forward

    def __len__(self) -> int:
        """Batches of a pass, where `max_tokens` says how many."""
        if self._max_tokens is None:
            raise TypeError("without max_tokens the number of batches is not known")
        return self._max_tokens // self.batch_size

    # Where it stands.

    def rewind(self) -> None:
        """Go back to the first batch of the first pass."""
        self._epoch = self._window = self._batch = self._yielded = 0
        self._carried: dict[str, Tensor] | None = None
        self.counts = {"kept": 0, "special": 0, "position": 0, "norm": 0}

    def take_share(self, rank: int, world: int) -> None:
        """Take every `world`-th sequence, from `rank` on: for the processes of a training run."""
        if (rank, world) != self._share:
            self._share, self._first_window = (rank, world), None

    def from_start(self) -> ActivationStream:
        """Return the same stream at its start, which shares the model and nothing else."""
        twin = copy.copy(self)
        twin.rewind()
        return twin

    def scaled_as(self, other: ActivationStream) -> ActivationStream:
        """Return this stream at its start, scaled as another one: for evaluation."""
        twin = self.from_start()
        twin._normalize, twin.scales, twin._first_window = None, dict(other.scales), None
        return twin

    @property
    def normalization(self) -> Normalization | None:
        """What activations are scaled to, if they are."""
        return self._normalize

    def leave_as_they_are(self) -> None:
        """Scale activations no longer: for an SAE into which the scale was folded."""
        self._normalize, self.scales, self._first_window = None, {}, None

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands: numbers, and the tokens left of the last window, less than a batch."""
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
        """Go to where a stream stood that was made with the same arguments.

        Raises:
            [`ConfigError`]: if it was made with others.
            [`DataError`]: if it is no such state; the stream is then as it was.
        """
        check_state(state, self.counts, self._tensors(), self._dtype, self._unit)
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
        self.take_share(*state["share"])
        self._epoch, self._window, self._batch = state["epoch"], state["window"], state["batch"]
        self._yielded, self.scales = state["yielded"], dict(state["scales"])
        self.counts = dict(state["counts"])
        self._carried = dict(state["carried"]) or None

    def _tensors(self) -> list[str]:
        """Names of the tensors of a window."""
        points = [*self.hookpoints, *([] if self._target is None else [self._target.name])]
        return [*points, *((_KEPT, _IDS, _TEXT) if self.whole_sequences else ())]

    def _settings(self) -> dict[str, Any]:
        return {
            "hookpoints": self.hookpoints,
            "targets": None if self._target is None else self._target.name,
            "batch_size": self.batch_size,
            "context_length": self._sequences.context_length,
            "packed": self._sequences.packed,
            "sequences_per_forward": self._per_forward,
            "forwards_per_window": self._forwards,
            "shuffle": self._shuffle,
            "seed": self._seed,
            "max_tokens": self._max_tokens,
            "special_tokens": len(self._special),
            "positions": str(self._positions),
            "max_norm": self._max_norm,
            "normalize": self._normalize,
            "whole_sequences": self.whole_sequences,
            "dtype": str(self._dtype),
        }

    def _kept_with(self) -> dict[str, Any]:
        """All that decides what a window holds, but for its tokens."""
        return {
            "model": fingerprint_of(self._model),
            "hookpoints": self.hookpoints,
            "targets": None if self._target is None else self._target.name,
            "context_length": self._sequences.context_length,
            "sequences_per_forward": self._per_forward,
            "forwards_per_window": self._forwards,
            "special_tokens": sorted(self._special),
            "positions": str(self._positions),
            "dtype": str(self._dtype),
        }

    # What it yields.

    def first(self, num_batches: int) -> list[dict[str, Any]]:
        """Return the first batches of the stream, which stays where it is."""
        twin = self.from_start()
        found = list(islice(twin, num_batches))
        self._first_window = twin._first_window
        return found

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield batches from where the stream stands to the end of the pass; at its end, those of the next pass."""
        windows, before = self._windows(), self._yielded
        try:
            for window in windows:
                rows, left_out = self._rows_of(window), window.left_out
                # Nobody holds a window while the next one is filled.
                del window
                whole = len(next(iter(rows.values()))) // self._unit
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

    def _rows_of(self, window: _Window) -> dict[str, Tensor]:
        """What was left of the last window, and this one's tokens in shuffled order."""
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
            return part * _scale(self.scales[key], part) if key in self.scales else part.clone()

        if self.whole_sequences:
            found = {"activations": ready(self._points[0].name)}
            if self._target is not None:
                found["targets"] = ready(self._target.name)
            return {**found, "attention_mask": ready(_KEPT), "input_ids": ready(_IDS), "text_mask": ready(_TEXT)}
        if self._target is not None:
            return {"activations": ready(self._points[0].name), "targets": ready(self._target.name)}
        if len(self._points) == 1:
            return {"activations": ready(self._points[0].name)}
        return {point.name: {"activations": ready(point.name)} for point in self._points}

    def _windows(self) -> Generator[_Window, None, None]:
        """Yield the windows from the present one on."""
        sequences = self._mine(self._window * self._forwards * self._per_forward)
        first = self._window == 0 and self._epoch == 0
        if self._normalize and not self.scales and not first:
            next(self.from_start()._windows(), None)

        places = count(self._window)

        def fill() -> _Window | None:
            place, taken = next(places), list(islice(sequences, self._forwards * self._per_forward))
            return self._within_norm(self._kept_window(place, taken)) if taken else None

        if first and self._first_window is not None:
            list(islice(sequences, self._forwards * self._per_forward))
            next(places)
            window: _Window | None = self._first_window
        else:
            window = fill()
        with ThreadPoolExecutor(1) as thread:
            while window is not None:
                if first:
                    self._first_window, first = window, False
                    self._fit_scales(window)
                coming: Future[_Window | None] | None = thread.submit(fill) if self._prefetch else None
                # Held for whoever looked at the first batches, and here, not beyond its use.
                handed, window = [window], None
                yield handed.pop()
                self._first_window = None
                window = coming.result() if coming is not None else fill()

    def _mine(self, skip: int) -> Iterator[list[int]]:
        rank, world = self._share
        return islice(iter(self._sequences), rank + skip * world, None, world)

    def _fit_scales(self, window: _Window) -> None:
        if self._normalize is None or self.scales:
            return
        for point in [*self._points, *([] if self._target is None else [self._target])]:
            key, rows = point.name, window.rows[point.name]
            if self.whole_sequences:
                rows = rows[window.rows[_KEPT]]
            measured = _mean_square(rows) if self._normalize == "mean_square" else _variances(rows)
            if not len(rows) or not bool((measured > 0).any()):
                raise DataError(key, "activations are the same throughout, and cannot be scaled")
            # A dimension that never moves stays as it is.
            factors = torch.where(measured > 0, measured, 1.0).rsqrt()
            self.scales[key] = factors.tolist()

    def _kept_window(self, place: int, sequences: list[list[int]]) -> _Window:
        """A window as the model gives it, from the cache if there is one and it has it."""
        if self._cache is None:
            return self._window_of(sequences)
        rank, world = self._share
        name, digest = f"window-{place:06d}-of-{rank}-{world}", digest_of(sequences)
        found = self._cache.read(name, digest)
        if found is None:
            window = self._window_of(sequences)
            self._cache.write(name, digest, window.rows, window.left_out)
            return window
        window = _Window(*found)
        self._check_kept(name, window, sequences)
        if not self._cache_tried:
            self._try_cache(name, window, sequences)
            self._cache_tried = True
        return window

    def _check_kept(self, name: str, window: _Window, sequences: list[list[int]]) -> None:
        """Refuse a window that was read unless it has the columns of this stream, and a row for each of its tokens."""
        points = self._tensors()
        tokens = sum(map(len, sequences)) - sum(window.left_out.get(kind, 0) for kind in ("special", "position"))
        found = {key: len(rows) for key, rows in window.rows.items()}
        widths = {key: rows.shape[1] for key, rows in window.rows.items()}
        counted = set(window.left_out) == set(self.counts)
        if found != dict.fromkeys(points, tokens) or not counted or widths != {**widths, **self._widths}:
            raise FileFormatError(
                f"cache: {name}",
                "is not of this stream",
                got=", ".join(f"{key}: {number} of width {widths[key]}" for key, number in found.items()) or "nothing",
                expected=f"{tokens} rows at {', '.join(points)}",
                fix="Delete the file; it is made again.",
            )
        self._widths |= widths

    def _try_cache(self, name: str, window: _Window, sequences: list[list[int]]) -> None:
        """Hold the start of a window that was read against what the model gives now, whatever is attached to it."""
        now = self._window_of(sequences[: self._per_forward]).rows
        fits = {
            key: len(rows) >= len(now[key]) and rows.shape[1] == now[key].shape[1] for key, rows in window.rows.items()
        }
        if fits.keys() != now.keys() or not all(fits.values()):
            raise ConfigError(f"cache: {name}", "has other columns than the model", fix="Empty the folder.")
        rounding = max(_LEAST_ROUNDING, 8 * torch.finfo(next(self._model.parameters()).dtype).eps)
        for key, rows in now.items():
            kept = window.rows[key][: len(rows)].double()
            off = torch.linalg.vector_norm(kept - rows.double()) / torch.linalg.vector_norm(kept).clamp(min=1e-300)
            if len(rows) and not bool(off <= rounding):
                raise ConfigError(
                    f"cache: {name}",
                    f"does not hold what the model gives at {key}",
                    got=f"off by {float(off):.1e} of the length",
                    expected=f"at most {rounding:.1e}, rounding",
                    fix="Take off what is attached to the model, or name another folder.",
                )

    def _window_of(self, sequences: list[list[int]]) -> _Window:
        """Run the model on sequences; tokens too long for `max_norm` are still there."""
        points = [*self._points, *([] if self._target is None else [self._target])]
        parts: dict[str, list[Tensor]] = {point.name: [] for point in points}
        if self.whole_sequences:
            parts |= {_KEPT: [], _IDS: [], _TEXT: []}
        left_out = {"kept": 0, "special": 0, "position": 0, "norm": 0}
        for start in range(0, len(sequences), self._per_forward):
            ids, mask = batch_of(sequences[start : start + self._per_forward])
            if self._vocabulary is not None and int(ids.max()) >= self._vocabulary:
                what, expected = "holds a token that the model does not have", f"below {self._vocabulary}"
                raise DataError("collect_activations: dataset", what, got=int(ids.max()), expected=expected)
            found = activations_of(self._model, ids, mask, points)
            keep = mask.bool()
            if self._special:
                special = torch.isin(ids, torch.tensor(sorted(self._special))) & keep
                left_out["special"] += int(special.sum())
                keep &= ~special
            if self._positions is not None:
                excluded = torch.zeros_like(keep)
                excluded[:, self._positions] = True
                left_out["position"] += int((excluded & keep).sum())
                keep &= ~excluded
            for name, values in found.items():
                kept = values[keep.to(values.device)]
                if not bool(kept.isfinite().all()):
                    raise DataError(name, "the model's activations hold NaN or infinite numbers")
                stored = kept.to("cpu", self._dtype)
                if not bool(stored.isfinite().all()):
                    raise DataError(
                        name,
                        f"activations are too large for {self._dtype}",
                        got=f"{float(kept.abs().max()):.3g}",
                        expected=f"at most {torch.finfo(self._dtype).max:.3g}",
                        fix="Take dtype=torch.float32 or torch.bfloat16.",
                    )
                if self.whole_sequences:
                    placed = stored.new_zeros(len(ids), self._sequences.context_length, stored.shape[1])
                    placed[:, : ids.shape[1]][keep] = stored
                    stored = placed
                parts[name].append(stored)
            if self.whole_sequences:
                room = (0, self._sequences.context_length - ids.shape[1])
                for name, values in ((_KEPT, keep), (_IDS, ids), (_TEXT, mask)):
                    parts[name].append(functional.pad(values, room))
        return _Window({name: torch.cat(values) for name, values in parts.items()}, left_out)

    def _within_norm(self, window: _Window) -> _Window:
        rows, left_out = dict(window.rows), dict(window.left_out)
        kept = rows.get(_KEPT)
        num_tokens = len(rows[self._points[0].name]) if kept is None else int(kept.sum())
        if self._max_norm is not None:
            fits = torch.ones(num_tokens, dtype=torch.bool)
            for point in self._points:
                values = rows[point.name] if kept is None else rows[point.name][kept]
                lengths = torch.linalg.vector_norm(values, dim=1, dtype=torch.float32)
                if num_tokens:
                    fits &= lengths <= self._max_norm * lengths.median()
            left_out["norm"] += int((~fits).sum())
            num_tokens = int(fits.sum())
            if kept is None:
                rows = {name: values[fits] for name, values in rows.items()}
            else:
                rows[_KEPT] = kept.masked_scatter(kept, fits)
        left_out["kept"] = num_tokens
        return _Window(rows, left_out)


class _Window:
    """Tokens of a window in the text's order, by hookpoint, and how many were left out, by reason."""

    def __init__(self, rows: dict[str, Tensor], left_out: dict[str, int]) -> None:
        self.rows, self.left_out = rows, left_out


def _mean_square(rows: Tensor) -> Tensor:
    """The mean of all squares, float64, a few tokens at a time: a window is large, and in float64 larger."""
    return torch.stack([part.double().pow(2).sum() for part in _few(rows)]).sum() / rows.numel()


def _variances(rows: Tensor) -> Tensor:
    """The variance of each dimension, float64 `(width,)`, a few tokens at a time."""
    mean = torch.stack([part.double().sum(0) for part in _few(rows)]).sum(0) / len(rows)
    return torch.stack([(part.double() - mean).pow(2).sum(0) for part in _few(rows)]).sum(0) / len(rows)


def _few(rows: Tensor) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = rows.split(max(_MEASURED_TOGETHER // max(rows.shape[1], 1), 1))
    return parts


def scales_for(stream: ActivationStream, hookpoint: str | None) -> tuple[float | Tensor, float | Tensor]:
    """Return what a stream multiplies an SAE's activations and targets by; 1 where it does not.

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

    target = stream._target
    return of(name), of(name if target is None else target.name)


def _scale(scale: float | list[float], rows: Tensor) -> float | Tensor:
    return torch.tensor(scale, dtype=rows.dtype, device=rows.device) if isinstance(scale, list) else scale
