"""Activation maps: how many tokens each (layer, expert) took, by count and by routing weight.

Recording returns maps, and contrasts are made from them. A map is plain data with arithmetic, as in "mean of the class
minus mean of the rest"; it saves to one safetensors file. The paper's picture is one
such map (Dahlke et al., "Mixture of Tunable Experts", arXiv 2502.11096).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch

from hf_mote.errors import (
    DataError,
    FileFormatError,
    HFMoTEError,
    ModelMismatchError,
    UnknownNameError,
    is_finite,
    mapping,
)
from hf_mote.hub import Shareable, read_tensors, write_tensors
from hf_mote.maps.engines import count_routed_experts
from hf_mote.maps.grid import check_grid, check_layers, descending, row_of
from hf_mote.printing import Printable, Summary, frame_of, short
from hf_mote.sharing.cards import CardNotes, Evidence, card_header, compose_card, heat_map
from hf_mote.sharing.privacy import without_places

if TYPE_CHECKING:
    import os
    from typing import Self

    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["ActivationMap", "MapValue"]

MapValue: TypeAlias = Literal["count", "weight"]

_KIND = "activation_map"


@dataclass(frozen=True, eq=False, repr=False)
class ActivationMap(Printable, Shareable):
    """Tokens per (layer, expert), by count and by routing weight.

    `+`, `-`, `*` and `/` by a number and unary minus act on counts, weights and `num_tokens`; of the provenance,
    what both sides share is kept. Nothing is changed in place.

    Args:
        counts (`torch.Tensor` of shape `(layers, experts)`, float64, CPU):
            Tokens for which the expert was among the chosen. Float64 keeps counts exact up to 2**53.
        weights (`torch.Tensor` of shape `(layers, experts)`, float64, CPU):
            Sum of the routing weights that it got on those tokens.
        layers (`tuple[int, ...]`):
            Absolute decoder layer of each row, ascending.
        num_tokens (`float`):
            Tokens that each router saw.
        provenance (`dict[str, str | int | float]`, *optional*):
            Where the map comes from: model, prompts, phase.

    Raises:
        [`DataError`]: if a shape, dtype or device is another, or a number is not finite.

    Example:
        ```python
        import torch
        from hf_mote.maps.activation_map import ActivationMap

        counts = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]], dtype=torch.float64)
        prompt = ActivationMap(counts=counts, weights=counts / 2, layers=(1, 2), num_tokens=3.0)
        other = ActivationMap(counts=counts.flip(1), weights=counts.flip(1) / 2, layers=(1, 2), num_tokens=3.0)
        assert (prompt - other).top(1) == [(1, 0)]
        assert ActivationMap.mean([prompt, other]).at(1, 0) == 1.5
        ```
    """

    counts: torch.Tensor
    weights: torch.Tensor
    layers: tuple[int, ...]
    num_tokens: float
    provenance: dict[str, str | int | float] = field(default_factory=dict)

    file_name: ClassVar[str] = "activation_map.safetensors"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers("ActivationMap", self.layers))
        shapes = [
            check_grid(f"ActivationMap.{name}", getattr(self, name), len(self.layers))
            for name in ("counts", "weights")
        ]
        if shapes[0] != shapes[1]:
            got = f"{tuple(shapes[0])} and {tuple(shapes[1])}"
            raise DataError("ActivationMap", "counts and weights differ in shape", got=got)
        if isinstance(self.num_tokens, bool) or not isinstance(self.num_tokens, int | float):
            raise DataError("ActivationMap.num_tokens", "must be a number", got=repr(self.num_tokens))
        if not is_finite(self.num_tokens):
            raise DataError("ActivationMap.num_tokens", "is not finite", got=self.num_tokens)
        object.__setattr__(self, "num_tokens", float(self.num_tokens))
        object.__setattr__(self, "provenance", mapping("ActivationMap.provenance", self.provenance))

    @classmethod
    def mean(cls, maps: Iterable[ActivationMap]) -> ActivationMap:
        """Return the mean of one or more maps of the same layers and experts.

        Raises:
            [`DataError`]: if there are no maps.
            [`ModelMismatchError`]: if their layers or experts differ.
        """
        members = list(maps)
        if not members:
            raise DataError("ActivationMap.mean.maps", "nothing to average", got="no maps", expected="one or more")
        total = members[0]
        for member in members[1:]:
            total = total + member
        return total / len(members)

    @classmethod
    def from_routed_experts(
        cls,
        experts: Any,
        *,
        num_experts: int,
        layers: Sequence[int],
        num_tokens: int | None = None,
        weights: Any | None = None,
        physical_to_logical: Any | None = None,
    ) -> ActivationMap:
        """Return the map of one sequence whose routing an inference engine recorded.

        Args:
            experts (integer array of shape `(tokens, layers, top_k)`):
                What the engine returned: tensor, array or nested lists; all decoder layers, or those of `layers`. A
                token of -1 alone was not recorded and does not count, nor does a last token of zeros alone if `top_k`
                is 2 or more.
            num_experts (`int`): Experts of each layer.
            layers (`Sequence[int]`): Absolute decoder layers that have experts.
            num_tokens (`int`, *optional*):
                Tokens of prompt and response, so that missing ones are noticed. The array has as many, or one less:
                the last sampled token is never fed back.
            weights (float array like `experts`, *optional*): Routing weights; without them the map's are 0.
            physical_to_logical (integer array of shape `(layers, places)`, *optional*):
                The expert at each place, for an engine that balances its load and names places; -1 for one that holds
                none.

        Raises:
            [`DataError`]: for what engines are known to get wrong: a table, a layer, or tokens other than the last of
                zeros alone; missing tokens; numbers of places, or in too few bits; an expert twice.
        """
        found = count_routed_experts(
            experts,
            num_experts=num_experts,
            layers=layers,
            num_tokens=num_tokens,
            weights=weights,
            physical_to_logical=physical_to_logical,
        )
        return cls(
            counts=found.counts,
            weights=found.weights,
            layers=tuple(layers),
            num_tokens=found.num_tokens,
            provenance={"source": "routed_experts", "weights": "not recorded" if weights is None else "recorded"},
        )

    def per_token(self) -> ActivationMap:
        """Return the map divided by its tokens: counts become the fraction of tokens that chose the expert.

        Raises:
            [`DataError`]: if it holds no tokens, as the difference of two maps of equal length does.
        """
        if self.num_tokens == 0:
            raise DataError(
                "ActivationMap.per_token",
                "no tokens to divide by",
                got="num_tokens 0",
                fix="Divide before subtracting: a.per_token() - b.per_token().",
            )
        return self / self.num_tokens

    def value(self, kind: MapValue) -> torch.Tensor:
        """Return the tensor that `kind` names.

        Args:
            kind (`str`): `"count"` or `"weight"`.

        Returns:
            `torch.Tensor` of shape `(layers, experts)`, float64: the map's own, not a copy.

        Raises:
            [`UnknownNameError`]: if `kind` is neither.
        """
        match kind:
            case "count":
                return self.counts
            case "weight":
                return self.weights
        raise UnknownNameError.of("ActivationMap.value", kind, ("count", "weight"))

    def at(self, layer: int, expert: int, value: MapValue = "count") -> float:
        """Return the value of one expert.

        Args:
            layer (`int`): Absolute decoder layer.
            expert (`int`): Index within the layer.
            value (`str`, *optional*, defaults to `"count"`): `"count"` or `"weight"`.

        Raises:
            [`UnknownNameError`]: if the map has no such layer or expert.
        """
        row = row_of("ActivationMap.at", self.layers, self.counts.shape[1], layer, expert)
        return float(self.value(value)[row, expert])

    def top(self, n: int, value: MapValue = "count") -> list[tuple[int, int]]:
        """Return the `n` experts of highest value as (layer, expert), highest first, ties by layer and expert.

        Args:
            n (`int`): How many, 0 to all.
            value (`str`, *optional*, defaults to `"count"`): `"count"` or `"weight"`.

        Raises:
            [`ConfigError`]: if there are fewer than `n`.
        """
        return descending("ActivationMap.top", self.value(value), self.layers, n)

    def __add__(self, other: ActivationMap) -> ActivationMap:
        if not isinstance(other, ActivationMap):
            return NotImplemented
        self._check_same_experts(other)
        shared = {key: value for key, value in self.provenance.items() if other.provenance.get(key) == value}
        return ActivationMap(
            self.counts + other.counts,
            self.weights + other.weights,
            self.layers,
            self.num_tokens + other.num_tokens,
            shared,
        )

    def __radd__(self, other: object) -> ActivationMap:
        # What `sum` begins with.
        return self if other == 0 else NotImplemented

    def __sub__(self, other: ActivationMap) -> ActivationMap:
        if not isinstance(other, ActivationMap):
            return NotImplemented
        return self + -other

    def __mul__(self, factor: float) -> ActivationMap:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        return self._map(lambda number: number * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> ActivationMap:
        if isinstance(divisor, bool) or not isinstance(divisor, int | float):
            return NotImplemented
        if divisor == 0:
            raise DataError("ActivationMap", "division by zero", fix="Check that the class has members and tokens.")
        return self._map(lambda number: number / divisor)

    def __neg__(self) -> ActivationMap:
        return self * -1.0

    def to_dict(self) -> dict[str, Any]:
        """Return layers, counts, weights, tokens and provenance, JSON-native."""
        return {
            "layers": list(self.layers),
            "num_tokens": self.num_tokens,
            "counts": self.counts.tolist(),
            "weights": self.weights.tolist(),
            "provenance": dict(self.provenance),
        }

    def to_pandas(self) -> DataFrame:
        """Return a `pandas.DataFrame` with a row for each expert: layer, expert, tokens, weight."""
        layers, experts = self.counts.shape
        return frame_of(
            {
                "layer": [layer for layer in self.layers for _ in range(experts)],
                "expert": list(range(experts)) * layers,
                "tokens": self.counts.flatten().tolist(),
                "weight": self.weights.flatten().tolist(),
            }
        )

    def plot(self, value: MapValue = "count", *, path: str | os.PathLike[str] | None = None) -> Figure:
        """Return a heat map of layers by experts, as [`~hf_mote.plots.plot_expert_map`] draws it.

        Args:
            value (`str`, *optional*, defaults to `"count"`): `"count"` or `"weight"`.
            path (`str` or `os.PathLike`, *optional*): Where to write it, as PNG, SVG or PDF by its ending.
        """
        from hf_mote.plots import plot_expert_map

        label = "tokens" if value == "count" else "routing weight"
        return plot_expert_map(self.value(value), self.layers, title=self._title(), label=label, path=path)

    def _title(self) -> str:
        layers, experts = self.counts.shape
        return f"ActivationMap: {layers} layers x {experts} experts, {self.num_tokens:g} tokens"

    def _summary(self) -> Summary:
        first = self.top(min(10, self.counts.numel()))
        columns: dict[str, list[object]] = {
            "expert": [f"{layer}.{expert}" for layer, expert in first],
            "tokens": [short(self.at(*pair), 4) for pair in first],
            "routing weight": [short(self.at(*pair, "weight"), 4) for pair in first],
        }
        known = {str(name): str(value) for name, value in self.provenance.items()}
        return Summary(self._title(), known, columns, self.counts.numel())

    def _map(self, function: Callable[[Any], Any]) -> ActivationMap:
        counts, weights, num_tokens = (function(part) for part in (self.counts, self.weights, self.num_tokens))
        return ActivationMap(counts, weights, self.layers, num_tokens, self.provenance)

    def _check_same_experts(self, other: ActivationMap) -> None:
        if self.layers != other.layers or self.counts.shape != other.counts.shape:
            raise ModelMismatchError(
                "ActivationMap",
                "maps of different layers or experts",
                got=f"{tuple(other.counts.shape)} on layers {_span(other.layers)}",
                expected=f"{tuple(self.counts.shape)} on layers {_span(self.layers)}",
                fix="Combine maps of one model only.",
            )

    def _public(self, *, with_texts: bool) -> Self:
        return replace(self, provenance=without_places(self.provenance))

    def _evidence(self) -> Evidence:
        name = self.provenance.get("class")
        title = "tokens per expert" + ("" if name is None else f", class {name!r}")
        picture = heat_map(self.counts, self.layers, title=title, label="tokens", file_name="activation_map.png")
        return Evidence(pictures=[picture])

    def _card(self, notes: CardNotes, evidence: Sequence[Evidence]) -> str:
        layers, experts = self.counts.shape
        made = "\n".join(f"- {key}: {value}" for key, value in sorted(self.provenance.items())) or "- not stated"
        return compose_card(
            card_header(tags=["activation-map"], notes=notes, evidence=evidence),
            "Activation map of experts",
            f"How many of {self.num_tokens:g} tokens chose each of {experts} experts on {layers} layers, "
            f"{_span(self.layers)}, and the sum of the routing weights it got. Layers are absolute decoder layers.",
            load='import hf_mote\n\nhf_mote.ActivationMap.from_pretrained("<this repository or folder>")',
            notes=notes,
            evidence=evidence,
            sections={"How it was made": made},
            intended_use="Comparing which experts prompts use: maps add, subtract and average.",
            misuse="That an expert is used more says nothing about what it causes.",
        )

    def _to_file(self, path: Path) -> None:
        tensors = {
            "counts": self.counts,
            "weights": self.weights,
            "layers": torch.tensor(self.layers, dtype=torch.int64),
        }
        metadata = {"kind": _KIND, "num_tokens": self.num_tokens, "provenance": self.provenance}
        write_tensors(path, tensors, metadata)

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        tensors, metadata = read_tensors(path, kind=_KIND)
        try:
            return cls(
                counts=tensors["counts"],
                weights=tensors["weights"],
                layers=tuple(tensors["layers"].tolist()),
                num_tokens=metadata["num_tokens"],
                provenance=metadata["provenance"],
            )
        except KeyError as error:
            raise FileFormatError(str(path), "lacks an entry", expected=error.args[0]) from error
        except (HFMoTEError, TypeError, ValueError) as error:
            raise FileFormatError(str(path), "holds no activation map", got=str(error).rstrip(".")) from error


def _span(layers: tuple[int, ...]) -> str:
    return f"{layers[0]}..{layers[-1]}" if len(layers) > 8 else ", ".join(map(str, layers))
