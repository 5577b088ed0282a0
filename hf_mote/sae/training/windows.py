"""Windows of a stream: sequences of tokens to their activations, from the model or from the cache.

The content of a window is decided here: which tokens are left out, and why. How windows are shuffled, scaled and cut
into batches is decided by the stream in `activations.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_mote.errors import ConfigError, DataError, FileFormatError
from hf_mote.sae.hookpoints import Hookpoint
from hf_mote.sae.tapped import activations_of
from hf_mote.sae.training.cache import WindowCache, digest_of, fingerprint_of
from hf_mote.sae.training.sequences import batch_of

__all__ = ["COUNTED", "IDS", "KEPT", "TEXT", "Window", "WindowSource"]

COUNTED = ("kept", "special", "position", "norm")
"""What tokens are counted as: kept, or the reason why they were left out."""
KEPT, IDS, TEXT = ".kept", ".input_ids", ".text_mask"
"""Of whole sequences: which tokens are kept, their ids, and 0 at padding. No hookpoint is named so."""

# Relative difference of activations in float32 between batches or machines.
_LEAST_ROUNDING = 1e-3


class Window:
    """Tokens of a window in the text's order, by hookpoint, and how many were left out, by reason."""

    def __init__(self, rows: dict[str, Tensor], left_out: dict[str, int]) -> None:
        self.rows, self.left_out = rows, left_out


class WindowSource:
    """Makes windows of sequences.

    Args:
        model (`nn.Module`): The model.
        points (`list[Hookpoint]`): Where activations are taken.
        target (`Hookpoint`, *optional*): Where a transcoder's targets are taken.
        context_length (`int`): Most tokens of a sequence.
        sequences_per_forward (`int`): Sequences that run together.
        forwards_per_window (`int`): Forward passes of a window.
        special_tokens (`frozenset[int]`): Token ids to leave out.
        positions (`slice`, *optional*): Positions of each sequence to leave out.
        max_norm (`float`, *optional*): Times the window's median length above which tokens are left out.
        dtype (`torch.dtype`): Of the activations.
        whole_sequences (`bool`): Whether rows are sequences, and not tokens.
        cache (`Path`, *optional*): Folder in which windows are kept.

    Raises:
        [`ConfigError`]: if the cache is another model's or setting's.
        [`FileFormatError`]: if the cache cannot be read or written.
    """

    def __init__(
        self,
        model: nn.Module,
        points: list[Hookpoint],
        target: Hookpoint | None,
        *,
        context_length: int,
        sequences_per_forward: int,
        forwards_per_window: int,
        special_tokens: frozenset[int],
        positions: slice | None,
        max_norm: float | None,
        dtype: torch.dtype,
        whole_sequences: bool,
        cache: Path | None,
    ) -> None:
        self.model, self.points, self.target = model, points, target
        self.context_length, self.sequences_per_forward = context_length, sequences_per_forward
        self.forwards_per_window = forwards_per_window
        self.special_tokens, self.positions, self.max_norm = special_tokens, positions, max_norm
        self.dtype, self.whole_sequences = dtype, whole_sequences
        self._cache = None if cache is None else WindowCache(cache, self._cache_settings())
        embeds = getattr(model, "get_input_embeddings", lambda: None)()
        self._vocabulary = embeds.num_embeddings if isinstance(embeds, nn.Embedding) else None
        self._cache_tried = False
        self._widths: dict[str, int] = {}  # of windows that were read

    @property
    def sequences_per_window(self) -> int:
        """Sequences of a window."""
        return self.forwards_per_window * self.sequences_per_forward

    @property
    def tapped(self) -> list[Hookpoint]:
        """All hookpoints, the targets' included."""
        return [*self.points, *([] if self.target is None else [self.target])]

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors of a window."""
        return [*(point.name for point in self.tapped), *((KEPT, IDS, TEXT) if self.whole_sequences else ())]

    def window(self, place: int, share: tuple[int, int], sequences: list[list[int]]) -> Window:
        """Return a window of sequences.

        Args:
            place (`int`): Its number in the pass, by which the cache names it.
            share (`tuple[int, int]`): The process, and how many there are.
            sequences (`list[list[int]]`): Its sequences.

        Raises:
            [`ConfigError`]: if the cache holds another text's window, or not what the model gives.
            [`DataError`]: if a token is not in the vocabulary, or activations are not finite.
            [`FileFormatError`]: if the window in the cache is damaged.
        """
        return self._within_norm(self._kept_window(place, share, sequences))

    def _cache_settings(self) -> dict[str, Any]:
        """All that decides the content of a window, except its tokens."""
        return {
            "model": fingerprint_of(self.model),
            "hookpoints": [point.name for point in self.points],
            "targets": None if self.target is None else self.target.name,
            "context_length": self.context_length,
            "sequences_per_forward": self.sequences_per_forward,
            "forwards_per_window": self.forwards_per_window,
            "special_tokens": sorted(self.special_tokens),
            "positions": str(self.positions),
            "dtype": str(self.dtype),
        }

    def _kept_window(self, place: int, share: tuple[int, int], sequences: list[list[int]]) -> Window:
        """A window from the cache, or from the model."""
        if self._cache is None:
            return self._window_of(sequences)
        rank, world = share
        name, digest = f"window-{place:06d}-of-{rank}-{world}", digest_of(sequences)
        found = self._cache.read(name, digest)
        if found is None:
            window = self._window_of(sequences)
            self._cache.write(name, digest, window.rows, window.left_out)
            return window
        window = Window(*found)
        self._check_kept(name, window, sequences)
        if not self._cache_tried:
            self._try_cache(name, window, sequences)
            self._cache_tried = True
        return window

    def _check_kept(self, name: str, window: Window, sequences: list[list[int]]) -> None:
        """Refuse a cached window unless it has the columns of this stream, and a row for each of its tokens."""
        points = self.tensors
        expected = dict.fromkeys(COUNTED, 0)  # tokens too long for `max_norm` are left out after a window was kept
        tokens = 0
        for start in range(0, len(sequences), self.sequences_per_forward):
            keep, excluded = self._kept_of(*batch_of(sequences[start : start + self.sequences_per_forward]))
            tokens += int(keep.sum())
            for kind, number in excluded.items():
                expected[kind] += number
        if window.left_out != expected:
            what, fix = "counts other tokens than the text has", "Delete the file; it is made again."
            raise FileFormatError(f"cache: {name}: left_out", what, got=window.left_out, expected=expected, fix=fix)
        found = {key: len(rows) for key, rows in window.rows.items()}
        widths = {key: rows.shape[1] for key, rows in window.rows.items()}
        if found != dict.fromkeys(points, tokens) or widths != {**widths, **self._widths}:
            raise FileFormatError(
                f"cache: {name}",
                "is not of this stream",
                got=", ".join(f"{key}: {number} of width {widths[key]}" for key, number in found.items()) or "nothing",
                expected=f"{tokens} rows at {', '.join(points)}",
                fix="Delete the file; it is made again.",
            )
        self._widths |= widths

    def _try_cache(self, name: str, window: Window, sequences: list[list[int]]) -> None:
        """Compare the start of a cached window with the model's present output, attachments included."""
        now = self._window_of(sequences[: self.sequences_per_forward]).rows
        fits = {
            key: len(rows) >= len(now[key]) and rows.shape[1] == now[key].shape[1] for key, rows in window.rows.items()
        }
        if fits.keys() != now.keys() or not all(fits.values()):
            raise ConfigError(f"cache: {name}", "has other columns than the model", fix="Empty the folder.")
        rounding = max(_LEAST_ROUNDING, 8 * torch.finfo(next(self.model.parameters()).dtype).eps)
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

    def _window_of(self, sequences: list[list[int]]) -> Window:
        """Run the model on sequences; tokens too long for `max_norm` are still there."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self.tensors}
        left_out = dict.fromkeys(COUNTED, 0)
        for start in range(0, len(sequences), self.sequences_per_forward):
            ids, mask = batch_of(sequences[start : start + self.sequences_per_forward])
            if self._vocabulary is not None and int(ids.max()) >= self._vocabulary:
                what, expected = "holds a token that the model does not have", f"below {self._vocabulary}"
                raise DataError("collect_activations: dataset", what, got=int(ids.max()), expected=expected)
            found = activations_of(self.model, ids, mask, self.tapped)
            keep, excluded = self._kept_of(ids, mask)
            for kind, number in excluded.items():
                left_out[kind] += number
            for name, values in found.items():
                kept = values[keep.to(values.device)]
                if not bool(kept.isfinite().all()):
                    raise DataError(name, "the model's activations hold NaN or infinite numbers")
                stored = kept.to("cpu", self.dtype)
                if not bool(stored.isfinite().all()):
                    raise DataError(
                        name,
                        f"activations are too large for {self.dtype}",
                        got=f"{float(kept.abs().max()):.3g}",
                        expected=f"at most {torch.finfo(self.dtype).max:.3g}",
                        fix="Take dtype=torch.float32 or torch.bfloat16.",
                    )
                if self.whole_sequences:
                    placed = stored.new_zeros(len(ids), self.context_length, stored.shape[1])
                    placed[:, : ids.shape[1]][keep] = stored
                    stored = placed
                parts[name].append(stored)
            if self.whole_sequences:
                room = (0, self.context_length - ids.shape[1])
                for name, values in ((KEPT, keep), (IDS, ids), (TEXT, mask)):
                    parts[name].append(functional.pad(values, room))
        return Window({name: torch.cat(values) for name, values in parts.items()}, left_out)

    def _kept_of(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, dict[str, int]]:
        """Return which tokens of a forward are kept, bool `(batch, length)`, and how many are not, by reason."""
        keep, left_out = mask.bool(), {}
        if self.special_tokens:
            special = torch.isin(ids, torch.tensor(sorted(self.special_tokens))) & keep
            left_out["special"] = int(special.sum())
            keep = keep & ~special
        if self.positions is not None:
            excluded = torch.zeros_like(keep)
            excluded[:, self.positions] = True
            left_out["position"] = int((excluded & keep).sum())
            keep = keep & ~excluded
        return keep, left_out

    def _within_norm(self, window: Window) -> Window:
        rows, left_out = dict(window.rows), dict(window.left_out)
        kept = rows.get(KEPT)
        num_tokens = len(rows[self.points[0].name]) if kept is None else int(kept.sum())
        if self.max_norm is not None:
            fits = torch.ones(num_tokens, dtype=torch.bool)
            for point in self.points:
                values = rows[point.name] if kept is None else rows[point.name][kept]
                lengths = torch.linalg.vector_norm(values, dim=1, dtype=torch.float32)
                if num_tokens:
                    fits &= lengths <= self.max_norm * lengths.median()
            left_out["norm"] += int((~fits).sum())
            num_tokens = int(fits.sum())
            if kept is None:
                rows = {name: values[fits] for name, values in rows.items()}
            else:
                rows[KEPT] = kept.masked_scatter(kept, fits)
        left_out["kept"] = num_tokens
        return Window(rows, left_out)
