"""`LatentExpertMap`: a table of the effect of each latent of an SAE on each (layer, expert), or of its prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hf_mote.errors import (
    ConfigError,
    DataError,
    FileFormatError,
    HFMoTEError,
    UnknownNameError,
    mapping,
    one_of,
    whole,
)
from hf_mote.hub import Shareable, read_tensors, write_tensors
from hf_mote.maps.grid import check_layers, row_of
from hf_mote.mote.fields import check_experts_of, checked_fingerprint

if TYPE_CHECKING:
    from typing import Self

__all__ = ["METHODS", "LatentExpertMap", "LatentLink", "LatentPrediction"]

METHODS = ("weights", "intervention", "prediction")
_KIND = "latent_expert_map"
_MOST_TOKENS = 2**53  # whole numbers beyond are not told apart as floats


class LatentLink(NamedTuple):
    """The effect of one latent on one expert; `value` as in [`LatentExpertMap`]."""

    latent: int
    layer: int
    expert: int
    value: float


class LatentPrediction(NamedTuple):
    """How well a latent tells on which tokens of a text an expert is chosen.

    Attributes:
        correlation (`float`): Of its activation with the choice, -1 to 1, as in [`LatentExpertMap`].
        precision (`float`, *optional*):
            Share of the tokens with the latent on which the expert is chosen; `None` if no token has it.
        recall (`float`, *optional*):
            Share of the tokens with the expert that have the latent; `None` if no token has the expert.
        base_rate (`float`): Share of all tokens on which the expert is chosen.
        lift (`float`, *optional*): Precision over base rate; `None` if either is missing or 0 over 0.
    """

    correlation: float
    precision: float | None
    recall: float | None
    base_rate: float
    lift: float | None


@dataclass(frozen=True, eq=False, repr=False)
class LatentExpertMap(Shareable):
    """The effect of each latent on each expert, or how well it predicts that the expert is chosen.

    Args:
        values (`torch.Tensor` of shape `(latents, layers, experts)`, float64, CPU):
            By method `"weights"`: what a unit of the latent adds to the expert's router logit, less the mean over the
            layer's experts, because experts compete with each other. By `"intervention"`: how much more
            often the expert is chosen, for each token that the latent is changed on. By `"prediction"`: correlation
            of the latent's activation with whether the expert is chosen, -1 to 1, over tokens. 0 where a layer has no
            such expert.
        latents (`tuple[int, ...]`): Latent of each row.
        layers (`tuple[int, ...]`): Absolute decoder layers, ascending.
        method (`str`): `"weights"`, `"intervention"` or `"prediction"`.
        tokens (`torch.Tensor` of shape `(latents,)`, int64):
            Tokens that each latent was changed on; by prediction tokens that it is active on; 0 by weights.
        provenance (`dict[str, str | int | float]`, *optional*): Where it comes from: model, SAE, edit.
        fingerprint (`dict`, *optional*): The model's, as [`MoTEConfig.for_model`] stamps it.
        together (`torch.Tensor` of shape `(latents, layers, experts)`, int64, CPU, *optional*):
            By prediction alone: tokens on which the latent is active and the expert chosen.
        chosen (`torch.Tensor` of shape `(layers, experts)`, int64, CPU, *optional*):
            By prediction alone: tokens on which the expert is chosen.
        num_tokens (`int`, *optional*): By prediction alone: tokens that were read.

    Raises:
        [`DataError`]: if shapes or dtypes do not fit, a number is not finite, a latent has an effect on no token, or
            the fingerprint does not have the layers and experts.

    Example:

    ```python
    import torch
    from hf_mote import LatentExpertMap

    values = torch.tensor([[[0.0, 2.0], [0.5, -3.0]]], dtype=torch.float64)
    links = LatentExpertMap(values, latents=(7,), layers=(1, 2), method="weights", tokens=torch.zeros(1).long())
    assert links.top(1)[0] == (7, 2, 1, -3.0)
    assert links.for_expert(1, 1)[0].value == 2.0
    ```
    """

    values: Tensor
    latents: tuple[int, ...]
    layers: tuple[int, ...]
    method: str
    tokens: Tensor
    provenance: dict[str, str | int | float] = field(default_factory=dict)
    fingerprint: dict[str, Any] | None = None
    together: Tensor | None = None
    chosen: Tensor | None = None
    num_tokens: int | None = None

    file_name: ClassVar[str] = "latent_expert_map.safetensors"

    def __post_init__(self) -> None:
        where = "LatentExpertMap"
        object.__setattr__(self, "layers", check_layers(where, self.layers))
        one_of(f"{where}.method", self.method, METHODS)
        latents = tuple(self.latents)
        right = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in latents)
        if not latents or not right or len(set(latents)) != len(latents):
            raise DataError(f"{where}.latents", "must be latents", got=repr(latents)[:60], expected="each once")
        object.__setattr__(self, "latents", latents)
        for name, dims, dtype in (("values", 3, torch.float64), ("tokens", 1, torch.int64)):
            tensor = _checked(f"{where}.{name}", getattr(self, name), dtype)
            if tensor.ndim != dims or len(tensor) != len(latents):
                got, expected = tuple(tensor.shape), f"{dims} dimensions, the first of {len(latents)}"
                raise DataError(f"{where}.{name}", "wrong shape", got=got, expected=expected)
        if self.values.shape[1] != len(self.layers) or not self.values.shape[2]:
            raise DataError(f"{where}.values", "wrong shape", got=tuple(self.values.shape), expected=len(self.layers))
        if not bool(self.values.isfinite().all()):
            raise DataError(f"{where}.values", "not finite", fix="Check the SAE and the model for NaN.")
        if bool((self.tokens < 0).any()):
            raise DataError(f"{where}.tokens", "are below 0", got=int(self.tokens.min()))
        object.__setattr__(self, "provenance", mapping("LatentExpertMap.provenance", self.provenance))
        if self.fingerprint is not None:
            object.__setattr__(self, "fingerprint", checked_fingerprint(self.fingerprint))
            grids = {"values": self.values} | ({} if self.together is None else {"together": self.together})
            check_experts_of(where, self.layers, self.values.shape[2], self.fingerprint, grids)
        self._check_counts(where)
        self._check_measured(where)

    def at(self, latent: int, layer: int, expert: int) -> float:
        """Return the effect of a latent on an expert.

        Raises:
            [`UnknownNameError`]: if there is no such latent, layer or expert.
        """
        row = row_of("LatentExpertMap.at", self.layers, self.values.shape[2], layer, expert)
        return float(self.values[self._place(latent), row, expert])

    def prediction(self, latent: int, layer: int, expert: int) -> LatentPrediction:
        """Return how well a latent tells on which tokens an expert is chosen.

        Raises:
            [`UnknownNameError`]: if there is no such latent, layer or expert.
            [`ConfigError`]: if the map is not by prediction.

        Example:

        ```python
        import torch
        from hf_mote import LatentExpertMap

        links = LatentExpertMap(
            torch.tensor([[[0.5]]], dtype=torch.float64), latents=(7,), layers=(2,), method="prediction",
            tokens=torch.tensor([20]), together=torch.tensor([[[15]]]), chosen=torch.tensor([[30]]), num_tokens=100,
        )
        found = links.prediction(7, 2, 0)
        assert (found.precision, found.recall, found.base_rate, found.lift) == (0.75, 0.5, 0.3, 2.5)
        ```
        """
        row = row_of("LatentExpertMap.prediction", self.layers, self.values.shape[2], layer, expert)
        place = self._place(latent)
        if self.together is None or self.chosen is None or self.num_tokens is None:
            fix = "Take link_latents(..., method='prediction')."
            raise ConfigError("LatentExpertMap.prediction", "is not known of this map", got=self.method, fix=fix)
        both, chosen = int(self.together[place, row, expert]), int(self.chosen[row, expert])
        active = int(self.tokens[place])
        return LatentPrediction(
            correlation=float(self.values[place, row, expert]),
            precision=both / active if active else None,
            recall=both / chosen if chosen else None,
            base_rate=chosen / self.num_tokens,
            lift=both * self.num_tokens / (active * chosen) if active and chosen else None,
        )

    def top(self, n: int) -> list[LatentLink]:
        """Return the `n` strongest links of either sign, strongest first; all if there are fewer.

        Args:
            n (`int`): How many, 0 or more.
        """
        return self._strongest(n)

    def for_latent(self, latent: int, n: int = 10) -> list[LatentLink]:
        """Return the experts that a latent drives or predicts most, for or against, strongest first.

        Raises:
            [`UnknownNameError`]: if there is no such latent.
        """
        place = self._place(latent)
        return self._strongest(n, latent=place)

    def for_expert(self, layer: int, expert: int, n: int = 10) -> list[LatentLink]:
        """Return the latents that drive or predict an expert most, for or against, strongest first.

        Raises:
            [`UnknownNameError`]: if there is no such layer or expert.
        """
        row = row_of("LatentExpertMap.for_expert", self.layers, self.values.shape[2], layer, expert)
        return self._strongest(n, row=row, expert=expert)

    def __repr__(self) -> str:
        latents, layers, experts = self.values.shape
        return f"LatentExpertMap({latents} latents x {layers} layers x {experts} experts, by {self.method})"

    def _place(self, latent: int) -> int:
        if latent not in self._places:
            known = ", ".join(map(str, self.latents[:12])) + (", ..." if len(self.latents) > 12 else "")
            raise UnknownNameError("LatentExpertMap", f"latent {latent} is not here", got=latent, expected=known)
        return self._places[latent]

    @cached_property
    def _places(self) -> dict[int, int]:
        return {latent: place for place, latent in enumerate(self.latents)}

    def _check_counts(self, where: str) -> None:
        """Raise [`DataError`] unless a prediction has counts that can be, and another map none."""
        if self.method != "prediction":
            for name in ("together", "chosen", "num_tokens"):
                if getattr(self, name) is not None:
                    what = "belongs to a map by prediction"
                    raise DataError(f"{where}.{name}", what, got=self.method, fix="Leave it out.")
            return
        values, read = self.values, self.num_tokens
        if isinstance(read, bool) or not isinstance(read, int) or not 1 <= read < _MOST_TOKENS:
            got, expected = repr(read)[:60], "1 or more"
            raise DataError(f"{where}.num_tokens", "must be how many tokens were read", got=got, expected=expected)
        together = _checked(f"{where}.together", self.together, torch.int64, values.shape)
        chosen = _checked(f"{where}.chosen", self.chosen, torch.int64, values.shape[1:])
        least, most = (float(end) for end in values.aminmax())
        if least < -1 or most > 1:
            raise DataError(f"{where}.values", "must be correlations", got=f"{least:g}..{most:g}", expected="-1..1")
        for name, counts in (("tokens", self.tokens), ("chosen", chosen)):
            if bool(((counts < 0) | (counts > read)).any()):
                got = f"{int(counts.min())}..{int(counts.max())}"
                raise DataError(f"{where}.{name}", "must be of the tokens read", got=got, expected=f"0..{read}")
        if bool(((together < 0) | (together > self.tokens[:, None, None]) | (together > chosen)).any()):
            expected = "0 to the tokens of the latent, and to those of the expert"
            raise DataError(f"{where}.together", "must be tokens of both", expected=expected)
        # Of `n` tokens, `a` with the latent and `b` with the expert, at least `a + b - n` have both.
        few = together < self.tokens[:, None, None] + chosen - read
        if bool(few.any()):
            latent, row, expert = few.nonzero()[0].tolist()
            got = (
                f"{int(together[latent, row, expert])} for latent {self.latents[latent]}, {self.layers[row]}.{expert}"
            )
            enough = f"{int(self.tokens[latent] + chosen[row, expert]) - read} or more, of {read} tokens"
            what, fix = (
                "must be as many as the tokens of both require",
                "Take a whole copy of the file, or link again.",
            )
            raise DataError(f"{where}.together", what, got=got, expected=enough, fix=fix)
        constant = (chosen == 0) | (chosen == read)
        if bool((values[:, constant] != 0).any()):
            what = "must be 0 for an expert that is chosen on no token, or on every token"
            raise DataError(f"{where}.values", what, got="another correlation", expected=0)
        if self.fingerprint is not None:
            self._check_chosen(where, together, chosen, read)

    def _check_chosen(self, where: str, together: Tensor, chosen: Tensor, read: int) -> None:
        """Raise [`DataError`] if a layer's experts are chosen more often than its router chooses."""
        known = self.fingerprint or {}
        sizes = dict(zip(known["layers"], known["top_k"], strict=True))
        top_k = torch.tensor([sizes[layer] for layer in self.layers])
        for name, counts, tokens in (("chosen", chosen, read), ("together", together, self.tokens[:, None])):
            if bool((counts.sum(-1) > top_k * tokens).any()):
                what, expected = "must be of at most top_k experts for each token", f"top_k {top_k.tolist()}"
                raise DataError(
                    f"{where}.{name}", what, got=f"more on some layer, of {read} tokens", expected=expected
                )

    def _check_measured(self, where: str) -> None:
        """Raise [`DataError`] for an effect that was measured on no token, or tokens of one that needs none."""
        if self.method == "weights":
            if bool(self.tokens.any()):
                what = "must be 0 by weights, which need no text"
                raise DataError(f"{where}.tokens", what, got=int(self.tokens.max()))
            return
        idle = (self.tokens == 0).nonzero().squeeze(1)
        linked = (self.values[idle] != 0).flatten(1).any(1)
        if bool(linked.any()):
            what = "must be 0 for a latent that was measured on no token"
            got = f"latent {self.latents[int(idle[linked][0])]}"
            raise DataError(f"{where}.values", what, got=got)

    def _strongest(
        self, n: int, *, latent: int | None = None, row: int | None = None, expert: int | None = None
    ) -> list[LatentLink]:
        """The strongest links of one latent, of one expert, or of all."""
        whole("LatentExpertMap.n", n)
        wanted = tuple(slice(None) if one is None else slice(one, one + 1) for one in (latent, row, expert))
        part = self.values[wanted]
        sizes = part.flatten().abs()
        if not n:
            return []
        # Only what can be among them is sorted: a map may hold a hundred million links.
        least = float(sizes.topk(min(n, len(sizes))).values[-1])
        places = (sizes >= least if least > 0 else sizes > 0).nonzero().squeeze(1)
        order = places[sizes[places].argsort(descending=True, stable=True)][:n].tolist()
        found = []
        for index in order:
            at_latent, rest = divmod(index, part.shape[1] * part.shape[2])
            at_row, at_expert = divmod(rest, part.shape[2])
            found.append(
                LatentLink(
                    self.latents[at_latent + (latent or 0)],
                    self.layers[at_row + (row or 0)],
                    at_expert + (expert or 0),
                    float(part[at_latent, at_row, at_expert]),
                )
            )
        return found

    def _to_file(self, path: Path) -> None:
        tensors = {
            "values": self.values,
            "tokens": self.tokens,
            "latents": torch.tensor(self.latents, dtype=torch.int64),
            "layers": torch.tensor(self.layers, dtype=torch.int64),
        }
        counts = {"together": self.together, "chosen": self.chosen}
        tensors |= {name: tensor for name, tensor in counts.items() if tensor is not None}
        known = {name: getattr(self, name) for name in ("method", "provenance", "fingerprint", "num_tokens")}
        write_tensors(path, tensors, {"kind": _KIND, **known})

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        tensors, metadata = read_tensors(path, kind=_KIND)
        try:
            if not {"fingerprint", "num_tokens"}.isdisjoint(metadata):  # which earlier files lack
                metadata = {name: metadata[name] for name in ("fingerprint", "num_tokens", *metadata)}
            return cls(
                values=tensors["values"],
                latents=tuple(tensors["latents"].tolist()),
                layers=tuple(tensors["layers"].tolist()),
                method=metadata["method"],
                tokens=tensors["tokens"],
                provenance=metadata["provenance"],
                fingerprint=metadata.get("fingerprint"),
                together=tensors.get("together"),
                chosen=tensors.get("chosen"),
                num_tokens=metadata.get("num_tokens"),
            )
        except KeyError as error:
            raise FileFormatError(str(path), "lacks an entry", expected=error.args[0]) from error
        except (HFMoTEError, TypeError, ValueError) as error:
            raise FileFormatError(str(path), "must hold such a map", got=str(error).rstrip(".")) from error


def _checked(where: str, tensor: object, dtype: torch.dtype, shape: Sequence[int] | None = None) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.device.type != "cpu":
        got = getattr(tensor, "dtype", type(tensor).__name__)
        raise DataError(where, "wrong type", got=got, expected=f"{dtype} on the CPU")
    if shape is not None and tensor.shape != shape:
        raise DataError(where, "wrong shape", got=tuple(tensor.shape), expected=tuple(shape))
    return tensor
