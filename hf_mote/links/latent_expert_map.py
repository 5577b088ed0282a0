"""`LatentExpertMap`: a table of the effect of each latent of an SAE on each (layer, expert)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from hf_mote.errors import DataError, FileFormatError, HFMoTEError, UnknownNameError, one_of, whole
from hf_mote.hub import Shareable, read_tensors, write_tensors
from hf_mote.maps.grid import check_layers, row_of

if TYPE_CHECKING:
    from typing import Self

__all__ = ["METHODS", "LatentExpertMap", "LatentLink"]

METHODS = ("weights", "intervention")
_KIND = "latent_expert_map"


class LatentLink(NamedTuple):
    """The effect of one latent on one expert; `value` as in [`LatentExpertMap`]."""

    latent: int
    layer: int
    expert: int
    value: float


@dataclass(frozen=True, eq=False, repr=False)
class LatentExpertMap(Shareable):
    """The effect of each latent on each expert.

    Args:
        values (`torch.Tensor` of shape `(latents, layers, experts)`, float64, CPU):
            By method `"weights"`: what a unit of the latent adds to the expert's router logit, less the mean over the
            layer's experts, because experts compete with each other. By `"intervention"`: how much more
            often the expert is chosen, for each token that the latent is changed on. 0 where a layer has no such
            expert.
        latents (`tuple[int, ...]`): Latent of each row.
        layers (`tuple[int, ...]`): Absolute decoder layers, ascending.
        method (`str`): `"weights"` or `"intervention"`.
        tokens (`torch.Tensor` of shape `(latents,)`, int64): Tokens that each latent was changed on; 0 by weights.
        provenance (`dict[str, str | int | float]`, *optional*): Where it comes from: model, SAE, edit.

    Raises:
        [`DataError`]: if shapes or dtypes do not fit, or a number is not finite.

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
            tensor = getattr(self, name)
            if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tensor.device.type != "cpu":
                got = getattr(tensor, "dtype", type(tensor).__name__)
                raise DataError(f"{where}.{name}", "wrong type", got=got, expected=f"{dtype} on the CPU")
            if tensor.ndim != dims or len(tensor) != len(latents):
                got, expected = tuple(tensor.shape), f"{dims} dimensions, the first of {len(latents)}"
                raise DataError(f"{where}.{name}", "wrong shape", got=got, expected=expected)
        if self.values.shape[1] != len(self.layers) or not self.values.shape[2]:
            raise DataError(f"{where}.values", "wrong shape", got=tuple(self.values.shape), expected=len(self.layers))
        if not bool(self.values.isfinite().all()):
            raise DataError(f"{where}.values", "not finite", fix="Check the SAE and the model for NaN.")
        if bool((self.tokens < 0).any()):
            raise DataError(f"{where}.tokens", "are below 0", got=int(self.tokens.min()))
        object.__setattr__(self, "provenance", dict(self.provenance))

    def at(self, latent: int, layer: int, expert: int) -> float:
        """Return the effect of a latent on an expert.

        Raises:
            [`UnknownNameError`]: if there is no such latent, layer or expert.
        """
        row = row_of("LatentExpertMap.at", self.layers, self.values.shape[2], layer, expert)
        return float(self.values[self._place(latent), row, expert])

    def top(self, n: int) -> list[LatentLink]:
        """Return the `n` strongest links of either sign, strongest first; all if there are fewer.

        Args:
            n (`int`): How many, 0 or more.
        """
        return self._strongest(n, range(len(self.latents)), range(len(self.layers)), range(self.values.shape[2]))

    def for_latent(self, latent: int, n: int = 10) -> list[LatentLink]:
        """Return the experts that a latent drives most, for or against, strongest first.

        Raises:
            [`UnknownNameError`]: if there is no such latent.
        """
        place = self._place(latent)
        return self._strongest(n, [place], range(len(self.layers)), range(self.values.shape[2]))

    def for_expert(self, layer: int, expert: int, n: int = 10) -> list[LatentLink]:
        """Return the latents that drive an expert most, for or against, strongest first.

        Raises:
            [`UnknownNameError`]: if there is no such layer or expert.
        """
        row = row_of("LatentExpertMap.for_expert", self.layers, self.values.shape[2], layer, expert)
        return self._strongest(n, range(len(self.latents)), [row], [expert])

    def __repr__(self) -> str:
        latents, layers, experts = self.values.shape
        return f"LatentExpertMap({latents} latents x {layers} layers x {experts} experts, by {self.method})"

    def _place(self, latent: int) -> int:
        if latent not in self.latents:
            known = ", ".join(map(str, self.latents[:12])) + (", ..." if len(self.latents) > 12 else "")
            raise UnknownNameError("LatentExpertMap", f"latent {latent} is not here", got=latent, expected=known)
        return self.latents.index(latent)

    def _strongest(
        self, n: int, latents: Sequence[int], rows: Sequence[int], experts: Sequence[int]
    ) -> list[LatentLink]:
        whole("LatentExpertMap.n", n)
        part = self.values[list(latents)][:, list(rows)][:, :, list(experts)]
        order = part.abs().flatten().argsort(descending=True, stable=True)[:n].tolist()
        found = []
        for index in order:
            latent, rest = divmod(index, part.shape[1] * part.shape[2])
            row, expert = divmod(rest, part.shape[2])
            value = float(part[latent, row, expert])
            if value == 0:
                break
            found.append(LatentLink(self.latents[latents[latent]], self.layers[rows[row]], experts[expert], value))
        return found

    def _to_file(self, path: Path) -> None:
        tensors = {
            "values": self.values,
            "tokens": self.tokens,
            "latents": torch.tensor(self.latents, dtype=torch.int64),
            "layers": torch.tensor(self.layers, dtype=torch.int64),
        }
        write_tensors(path, tensors, {"kind": _KIND, "method": self.method, "provenance": self.provenance})

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        tensors, metadata = read_tensors(path, kind=_KIND)
        try:
            return cls(
                values=tensors["values"],
                latents=tuple(tensors["latents"].tolist()),
                layers=tuple(tensors["layers"].tolist()),
                method=metadata["method"],
                tokens=tensors["tokens"],
                provenance=metadata["provenance"],
            )
        except KeyError as error:
            raise FileFormatError(str(path), "lacks an entry", expected=error.args[0]) from error
        except (HFMoTEError, TypeError, ValueError) as error:
            raise FileFormatError(str(path), "must hold such a map", got=str(error).rstrip(".")) from error
