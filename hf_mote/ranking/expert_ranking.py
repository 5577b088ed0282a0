"""Expert rankings: every (layer, expert) with its score and its uncertainty.

`FTRIResult.rank` and `attribute_experts` return a ranking, and a `MoTEConfig` is made from it. A ranking is an ordered
hypothesis: `evaluate_mote` measures whether its top experts control the behaviour.
"""

from __future__ import annotations

import operator
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from hf_mote.errors import ConfigError, DataError, FileFormatError, HFMoTEError, mapping
from hf_mote.hub import Shareable, read_tensors, write_tensors
from hf_mote.maps.grid import check_grid, check_layers, descending, row_of
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.fields import check_experts_of, checked_fingerprint
from hf_mote.printing import Printable, Summary, frame_of, short
from hf_mote.ranking.finding import Finding, finding_of, least_q_of
from hf_mote.ranking.p_values import check_p_values
from hf_mote.sharing.cards import CardNotes, Evidence, card_header, compose_card, heat_map
from hf_mote.sharing.privacy import without_places
from hf_mote.statistics.contrast import Contrast

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from typing import Self

    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["ExpertRanking", "RankedExpert"]

_KIND = "expert_ranking"
_GATED = "optimization"  # of 0.1 scored the gates of experts that a layer does not have, too
_OPTIONAL = ("low", "high", "p", "q")
_OF_RESPONSES = ("attribution", "ablation")  # methods that hold two responses to a prompt against each other
_UNITS = {
    "mean_difference": "tokens per prompt",
    "risk_difference": "of the tokens",
    "log_odds": "log odds",
    "npmi": "npmi",
    "weight_difference": "routing weight per token",
}


class RankedExpert(NamedTuple):
    """One row of a ranking; what was not computed is `None`, an interval that does not exist is NaN."""

    layer: int
    expert: int
    score: float
    low: float | None
    high: float | None
    p: float | None
    q: float | None


@dataclass(frozen=True, eq=False, repr=False)
class ExpertRanking(Printable, Shareable):
    """All experts by descending score, ties by layer and expert.

    Args:
        score (`torch.Tensor` of shape `(layers, experts)`, float64, CPU):
            Higher means more of the target behaviour. Unit: the method's.
        layers (`tuple[int, ...]`):
            Absolute decoder layer of each row, ascending.
        method (`str`):
            How the score was made: `"ftri"`, `"attribution"`.
        target (`str`):
            The class of responses that the experts are ranked for.
        low (`torch.Tensor`, *optional*):
            Like `score`: lower end of its interval; NaN if there is none.
        high (`torch.Tensor`, *optional*):
            Upper end.
        p (`torch.Tensor`, *optional*):
            Like `score`: p value, from 0 to 1.
        q (`torch.Tensor`, *optional*):
            p value adjusted for the number of experts; of the methods of this package as Benjamini and Hochberg do.
        confidence (`float`, *optional*):
            Coverage of the interval, between 0 and 1.
        fingerprint (`dict`, *optional*):
            The model's, as `MoTEConfig.for_model` stamps it; passed on to configs made from this ranking.
        provenance (`dict[str, str | int | float]`, *optional*):
            Prompts, seed, versions.
        least_p (`float`, *optional*):
            Least p value that so many prompts and permutations could give, above 0, at most 1.

    Raises:
        [`DataError`]: if a shape, dtype or device is another, a value is not what it can be, only one of `p` and `q`
            is given, `q` does not follow from `p`, a `p` is below the least that the test can give, or the
            fingerprint does not have the layers and experts.
        [`ConfigError`]: if the fingerprint is malformed.

    Example:
        ```python
        import torch
        from hf_mote.ranking.expert_ranking import ExpertRanking

        score = torch.tensor([[0.1, 0.9], [0.5, 0.0]], dtype=torch.float64)
        ranking = ExpertRanking(score=score, layers=(1, 2), method="ftri", target="refusal")
        assert ranking.top(2) == [(1, 1), (2, 0)] and ranking.rank_of(2, 0) == 2
        assert ranking.to_config(suppress=1).suppress == [[1, 1]]
        ```
    """

    score: torch.Tensor
    layers: tuple[int, ...]
    method: str
    target: str
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    p: torch.Tensor | None = None
    q: torch.Tensor | None = None
    confidence: float | None = None
    fingerprint: dict[str, Any] | None = None
    provenance: dict[str, str | int | float] = field(default_factory=dict)
    least_p: float | None = None

    file_name: ClassVar[str] = "expert_ranking.safetensors"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", check_layers("ExpertRanking", self.layers))
        shape = check_grid("ExpertRanking.score", self.score, len(self.layers))
        for name in _OPTIONAL:
            grid = getattr(self, name)
            if grid is None:
                continue
            if check_grid(f"ExpertRanking.{name}", grid, len(self.layers), allow_nan=True) != shape:
                got, expected = tuple(grid.shape), tuple(shape)
                raise DataError(f"ExpertRanking.{name}", "has another shape than score", got=got, expected=expected)
            if name in ("p", "q") and bool(((grid < 0) | (grid > 1)).any()):
                raise DataError(f"ExpertRanking.{name}", "must be a probability", expected="0..1")
        if (self.low is None) != (self.high is None):
            raise DataError("ExpertRanking", "an interval needs two ends", expected="both of low and high, or neither")
        if self.low is not None and self.high is not None and bool((self.low > self.high).any()):
            raise DataError("ExpertRanking.low", "is above high")
        if (self.p is None) != (self.q is None):
            raise DataError("ExpertRanking", "needs q beside p", expected="both of p and q, or neither")
        for pair in ("low", "high"), ("p", "q"):
            one, other = (getattr(self, name) for name in pair)
            if one is not None and other is not None and bool((one.isnan() != other.isnan()).any()):
                row, expert = (one.isnan() != other.isnan()).nonzero()[0].tolist()
                place = f"ExpertRanking.{', '.join(pair)}"
                ends = f"{float(one[row, expert])} and {float(other[row, expert])} in row {row}, expert {expert}"
                raise DataError(place, "must both be numbers, or both NaN", got=ends)
        if self.fingerprint is not None:
            object.__setattr__(self, "fingerprint", checked_fingerprint(self.fingerprint))
            grids = {} if self.method == _GATED else {"score": self.score}
            check_experts_of("ExpertRanking", self.layers, shape[1], self.fingerprint, grids)
        for name in ("method", "target"):
            if not isinstance(getattr(self, name), str):
                raise DataError(
                    f"ExpertRanking.{name}", "must be a text", got=repr(getattr(self, name)), expected="str"
                )
        if self.confidence is not None and not 0 < self.confidence < 1:
            raise DataError("ExpertRanking.confidence", "must be a coverage", got=self.confidence, expected="0..1")
        if (self.low is None) != (self.confidence is None):
            raise DataError("ExpertRanking.confidence", "goes with low and high", got=self.confidence)
        if self.least_p is not None and not 0 < self.least_p <= 1:
            raise DataError(
                "ExpertRanking.least_p", "must be a probability", got=self.least_p, expected="above 0, to 1"
            )
        if self.least_p is not None and self.p is None:
            what = "must not be there without p"
            raise DataError("ExpertRanking.least_p", what, got=self.least_p, fix="Give p and q, or leave it out.")
        object.__setattr__(self, "provenance", mapping("ExpertRanking.provenance", self.provenance))
        if self.p is not None and self.q is not None:
            check_p_values(self.p, self.q, self.method, self.least_p, self.provenance.get("permutations"))

    @classmethod
    def from_contrast(
        cls,
        contrast: Contrast,
        layers: Sequence[int],
        *,
        method: str,
        target: str,
        fingerprint: dict[str, Any] | None = None,
        provenance: dict[str, str | int | float] | None = None,
    ) -> ExpertRanking:
        """Return the ranking by the score of a contrast, with its intervals, p and q values.

        Args:
            contrast (`Contrast`): What [`~hf_mote.statistics.contrast.contrast`] returned.
            layers (`Sequence[int]`): Absolute decoder layer of each row.
            method (`str`): As in the class; so are the others.
            target (`str`): See the class.
            fingerprint (`dict`, *optional*): See the class.
            provenance (`dict`, *optional*): See the class.
        """
        found = {name: getattr(contrast, name) for name in ("score", *_OPTIONAL)}
        grids = {name: torch.tensor(grid) for name, grid in found.items() if grid is not None}
        tried = {} if contrast.permutations is None else {"permutations": contrast.permutations}
        return cls(
            layers=tuple(layers),
            method=method,
            target=target,
            confidence=contrast.confidence,
            fingerprint=fingerprint,
            provenance={**(provenance or {}), **tried},
            least_p=contrast.least_p,
            **grids,
        )

    @property
    def least_q(self) -> float | None:
        """Least q value that one expert alone could have; `None` without p values."""
        if self.least_p is None or self.p is None:
            return None
        return least_q_of(self.least_p, self.p)

    @property
    def verdict(self) -> str:
        """What the ranking shows at q = 0.05: experts, nothing, or that there are too few prompts to show any."""
        return self.finding(f"stand out for {self.target!r}").text

    @property
    def unit(self) -> str:
        """The unit of the scores, as "nats" or "tokens per prompt"; empty where the ranking does not say."""
        known = self.provenance
        if "unit" in known:
            return str(known["unit"])
        score, normalized = str(known.get("score")), bool(known.get("normalize"))
        if score == "mean_difference" and known.get("value") == "weight":
            return f"routing weight per {'token' if normalized else 'prompt'}"
        return "of the tokens" if score == "mean_difference" and normalized else _UNITS.get(score, "")

    def finding(self, relation: str) -> Finding:
        """Return what the ranking shows at q = 0.05.

        Args:
            relation (`str`): What a score above 0 means, after "experts": "are used more by class 'refusal'".
        """
        known = self.provenance
        prompts = f"{known['prompts']} prompts" if "prompts" in known else "so few prompts"
        return finding_of(
            relation,
            score=self.score,
            p=self.p,
            q=self.q,
            least_p=self.least_p,
            permutations=known.get("permutations"),
            compared=str(known.get("compared", prompts)),
            remedy=self._remedy(),
        )

    def _remedy(self) -> str:
        """What is left to do where most experts differ, of what was not done."""
        known = self.provenance
        if self.method == "patching":
            return "Take pairs of prompts that differ in little but what is sought."
        if self.method in _OF_RESPONSES:
            return "Take two responses that differ in little but what is sought."
        left = [
            *(() if known.get("paired") else ("compare pairs of prompts on one topic",)),
            *(() if "groups" in known else ("give the groups of prompts that belong together",)),
        ]
        if not left:
            return "Write prompts of both classes that are alike in all but what is sought."
        advice = ", or ".join(left)
        return f"{advice[:1].upper()}{advice[1:]}."

    def top(self, n: int) -> list[tuple[int, int]]:
        """Return the `n` best experts as (layer, expert), best first.

        Raises:
            [`ConfigError`]: if `n` is negative or there are fewer.
        """
        return descending("ExpertRanking.top", self.score, self.layers, n, self._sizes)

    def rank_of(self, layer: int, expert: int) -> int:
        """Return the place of one expert, 1 for the best.

        Args:
            layer (`int`): Absolute decoder layer.
            expert (`int`): Index within the layer.

        Raises:
            [`UnknownNameError`]: if the ranking has no such expert.
        """
        known = self._sizes[self.layers.index(layer)] if layer in self.layers else self.score.shape[1]
        row_of("ExpertRanking.rank_of", self.layers, known, layer, expert)
        return self._places[layer, expert]

    def rows(self, n: int) -> list[RankedExpert]:
        """Return the `n` best experts with all their values, best first.

        Raises:
            [`ConfigError`]: if `n` is negative or there are fewer.
        """
        rows = {layer: row for row, layer in enumerate(self.layers)}
        return [self._row(rows[layer], expert) for layer, expert in self.top(n)]

    def matrix(self) -> torch.Tensor:
        """Return a copy of the scores, of shape `(layers, experts)`, float64; its rows are `layers`."""
        return self.score.clone()

    def to_config(
        self,
        *,
        suppress: int | None = None,
        stimulate: int | None = None,
        multiply: int | None = None,
        by: float | None = None,
        **fields: Any,
    ) -> MoTEConfig:
        """Return the config that suppresses or stimulates the best experts, or multiplies their weights.

        Args:
            suppress (`int`, *optional*): How many of the best to suppress.
            stimulate (`int`, *optional*): How many to stimulate instead.
            multiply (`int`, *optional*): How many to give a gain instead. Exactly one of the three is given.
            by (`float`, *optional*): With `multiply`: the gain.
            **fields: Further fields of [`MoTEConfig`], such as `suppress_mode`, `scope` or `strength`.

        Returns:
            [`MoTEConfig`]: it carries the fingerprint and provenance of this ranking.

        Raises:
            [`ConfigError`]: if not exactly one of the three is given, it is not a number, or there are fewer experts.
        """
        counts = {"suppress": suppress, "stimulate": stimulate, "multiply": multiply}
        given = {name: n for name, n in counts.items() if n is not None}
        if (multiply is None) != (by is None):
            what, fix = "multiply and by go together", "For example to_config(multiply=8, by=2.0)."
            raise ConfigError("ExpertRanking.to_config", what, got={"multiply": multiply, "by": by}, fix=fix)
        if len(given) != 1:
            what = "needs exactly one of suppress, stimulate and multiply"
            raise ConfigError("ExpertRanking.to_config", what, got=counts, fix="For example to_config(suppress=8).")
        if by is not None and "gain" in fields:
            what = "gain is what multiply and by make, and cannot be given beside them"
            raise ConfigError("ExpertRanking.to_config", what, got=fields["gain"], fix="Leave one of them out.")
        ((name, wanted),) = given.items()
        try:
            n = operator.index(wanted)
        except TypeError as error:
            what, got = "must be a number of experts", repr(wanted)
            raise ConfigError(f"ExpertRanking.to_config: {name}", what, got=got, expected="a whole number") from error
        pairs = self.top(n)
        positive = int((self.score > 0).sum())
        if n > positive:
            warnings.warn(
                f"ExpertRanking.to_config: {name}={n}, but only {positive} experts have a score above 0; the others "
                f"speak against {self.target!r}, or for nothing. Ask for at most {positive}.",
                stacklevel=2,
            )
        chosen: dict[str, Any] = {
            **({name: sorted(map(list, pairs))} if by is None else {"gain": [[*pair, by] for pair in sorted(pairs)]}),
            "fingerprint": self.fingerprint,
            "provenance": {"method": self.method, "target": self.target, **self.provenance},
        }
        return MoTEConfig(**chosen | fields)

    def __len__(self) -> int:
        return sum(self._sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return the values of the ranking and of each expert, best first, JSON-native except NaN."""
        names = ("method", "target", "unit", "confidence", "least_p", "fingerprint")
        known = {name: getattr(self, name) for name in names}
        rows = [row._asdict() for row in self.rows(len(self))]
        return {**known, "layers": list(self.layers), "provenance": dict(self.provenance), "experts": rows}

    def to_pandas(self) -> DataFrame:
        """Return a `pandas.DataFrame` with a row for each expert, best first; its index is the place, from 1."""
        rows = self.rows(len(self))
        frame = frame_of({name: [getattr(row, name) for row in rows] for name in RankedExpert._fields})
        frame.index = frame.index + 1
        frame.index.name = "place"
        return frame

    def plot(self, n: int = 5, *, path: str | os.PathLike[str] | None = None) -> Figure:
        """Return a heat map of layers by experts, the best ones marked; see [`~hf_mote.plots.plot_expert_map`].

        Args:
            n (`int`, *optional*, defaults to 5): How many of the best to mark.
            path (`str` or `os.PathLike`, *optional*): Where to write it, as PNG, SVG or PDF by its ending.
        """
        from hf_mote.plots import plot_expert_map

        best = min(n, len(self))
        return plot_expert_map(
            self.matrix(),
            self.layers,
            title=f"{self.method}: {self.target}"[:80].replace("$", r"\$"),
            label=self.unit or "score",
            marked={f"the first {best}": self.top(best)} if best else None,
            path=path,
        )

    def _summary(self) -> Summary:
        layers, experts = self.score.shape
        title = f"ExpertRanking by {self.method} for {self.target!r}: {layers} layers x {experts} experts"
        facts = {"verdict": self.verdict, **({"score in": self.unit} if self.unit else {})}
        rows = self.rows(min(10, len(self)))
        interval = "interval" if self.confidence is None else f"{self.confidence:.0%} interval"
        columns: dict[str, list[object]] = {
            "expert": [f"{row.layer}.{row.expert}" for row in rows],
            "score": [short(row.score) for row in rows],
        }
        if self.low is not None:
            columns[interval] = [f"{short(row.low)} to {short(row.high)}" for row in rows]
        for name in ("p", "q"):
            if getattr(self, name) is not None:
                columns[name] = [short(getattr(row, name), 2) for row in rows]
        return Summary(title, facts, columns, len(self))

    @cached_property
    def _sizes(self) -> list[int]:
        """Experts of each row: by the fingerprint, as a layer may have fewer than the widest."""
        if self.fingerprint is None:
            return [self.score.shape[1]] * len(self.layers)
        sizes = dict(zip(self.fingerprint["layers"], self.fingerprint["num_experts"], strict=True))
        return [min(sizes[layer], self.score.shape[1]) for layer in self.layers]

    @cached_property
    def _places(self) -> dict[tuple[int, int], int]:
        return {pair: place for place, pair in enumerate(self.top(len(self)), start=1)}

    def _row(self, row: int, expert: int) -> RankedExpert:
        grids = {name: getattr(self, name) for name in _OPTIONAL}
        known = {name: None if grid is None else float(grid[row, expert]) for name, grid in grids.items()}
        return RankedExpert(self.layers[row], expert, float(self.score[row, expert]), **known)

    def _public(self, *, with_texts: bool) -> Self:
        return replace(self, provenance=without_places(self.provenance))

    def _evidence(self) -> Evidence:
        best = self.rows(min(20, len(self)))
        unit = f", in {self.unit}" if self.unit else ""
        table = "\n".join(f"| {row.layer} | {row.expert} | {row.score:.4g} | {_shown(row.q)} |" for row in best)
        text = (
            f"{len(self)} experts ranked for {self.target!r} by {self.method}{unit}. {self.verdict}\n\n"
            f"| layer | expert | score | q |\n|--:|--:|--:|--:|\n{table}"
        )
        picture = heat_map(
            self.score,
            self.layers,
            title=f"{self.method}: experts in favour of {self.target!r}",
            label=self.unit or "score",
            marked={f"best {len(best)}": [(row.layer, row.expert) for row in best]},
        )
        return Evidence(sections={"The experts, ranked": text}, pictures=[picture])

    def _card(self, notes: CardNotes, evidence: Sequence[Evidence]) -> str:
        made = "\n".join(f"- {key}: {value}" for key, value in sorted(self.provenance.items())) or "- not stated"
        own = "" if evidence else self._evidence().sections["The experts, ranked"]
        return compose_card(
            card_header(tags=["expert-ranking"], notes=notes, evidence=evidence),
            f"Experts ranked for {self.target!r}",
            "Layers are absolute decoder layers. A ranking is a hypothesis: whether its best experts control the "
            f"behaviour is for `hf_mote.evaluate_mote` to say, which draws random controls.\n\n{own}",
            load="import hf_mote\n\n"
            'ranking = hf_mote.ExpertRanking.from_pretrained("<this repository or folder>")\n'
            "config = ranking.to_config(suppress=10)",
            notes=notes,
            evidence=evidence,
            sections={"How it was made": made},
            intended_use="Choosing experts to examine, and to compare with random ones.",
            misuse="A high rank of an expert is not evidence of what it causes.",
        )

    def _to_file(self, path: Path) -> None:
        grids = {name: getattr(self, name) for name in ("score", *_OPTIONAL)}
        tensors = {name: grid for name, grid in grids.items() if grid is not None}
        tensors["layers"] = torch.tensor(self.layers, dtype=torch.int64)
        names = ("method", "target", "confidence", "fingerprint", "provenance", "least_p")
        known = {name: getattr(self, name) for name in names}
        write_tensors(path, tensors, {"kind": _KIND, **known, **self._to_metadata()})

    def _to_metadata(self) -> dict[str, Any]:
        """Return further fields for the file, JSON-native; for subclasses with more fields."""
        return {}

    @classmethod
    def _from_metadata(cls, metadata: dict[str, Any]) -> dict[str, Any]:
        """Return the further arguments of the class, checked."""
        return {}

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        tensors, metadata = read_tensors(path, kind=_KIND)
        try:
            names = ("method", "target", "confidence", "fingerprint", "provenance", "least_p")
            known: dict[str, Any] = {name: metadata[name] for name in names}
            known |= {name: tensors[name] for name in _OPTIONAL if name in tensors}
            known |= cls._from_metadata(metadata)
            return cls(score=tensors["score"], layers=tuple(tensors["layers"].tolist()), **known)
        except KeyError as error:
            raise FileFormatError(str(path), "lacks an entry", expected=error.args[0]) from error
        except (HFMoTEError, TypeError, ValueError) as error:
            raise FileFormatError(str(path), "must hold an expert ranking", got=str(error).rstrip(".")) from error


def _shown(number: float | None) -> str:
    return "-" if number is None else f"{number:.3g}"
