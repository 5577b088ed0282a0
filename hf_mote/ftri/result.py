"""`FTRIResult`: what imaging saw, prompt by prompt, and the rankings that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from transformers.utils import logging

from hf_mote.errors import DataError, FileFormatError, HFMoTEError, UnknownNameError
from hf_mote.ftri.contrast import contrast, length_confound
from hf_mote.ftri.ranking import ExpertRanking
from hf_mote.hub import Shareable, read_tensors, write_tensors
from hf_mote.mote.config import MoTEConfig
from hf_mote.routing.maps import ActivationMap, MapValue

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["SCOPES", "FTRIResult"]

_KIND = "ftri_result"
SCOPES = ("prompt", "generation", "all")
LENGTH_CONFOUND = 0.1  # relative difference of lengths from which a ranking by counts is warned of

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class FTRIResult(Shareable):
    """What `ftri` saw: one response, class and activation map for each prompt.

    Attributes:
        prompts (`list[str]`): The prompts.
        responses (`list[str]`): The model's response to each.
        classes (`list[str]`): The judge's label of each response.
        counts (`torch.Tensor` of shape `(prompts, layers, experts)`, float32): Tokens for which the expert was chosen.
        weights (`torch.Tensor` of shape `(prompts, layers, experts)`, float32): Sum of its routing weights.
        num_tokens (`torch.Tensor` of shape `(prompts,)`, float32): Tokens counted.
        layers (`tuple[int, ...]`): Absolute decoder layer of each row.
        scope (`str`): Which tokens were counted.
        fingerprint (`dict`): The model's.
        base_model (`str`, *optional*): The model's name.
    """

    prompts: list[str]
    responses: list[str]
    classes: list[str]
    counts: Tensor
    weights: Tensor
    num_tokens: Tensor
    layers: tuple[int, ...]
    scope: str
    fingerprint: dict[str, Any]
    base_model: str | None = None
    provenance: dict[str, str | int | float] = field(default_factory=dict)

    file_name: ClassVar[str] = "ftri_result.safetensors"

    @property
    def class_sizes(self) -> dict[str, int]:
        """Number of prompts of each class, by name."""
        return {name: self.classes.count(name) for name in sorted(set(self.classes))}

    @property
    def maps(self) -> dict[str, ActivationMap]:
        """The mean activation map of each class."""
        return {name: ActivationMap.mean(self._maps_of(name)) for name in self.class_sizes}

    def rank(
        self,
        target: object,
        *,
        value: MapValue = "count",
        normalize: bool = False,
        confidence: float = 0.95,
        resamples: int = 999,
        seed: int = 0,
    ) -> ExpertRanking:
        """Return all experts by how much more the target class's prompts use them than all others.

        Args:
            target (`str`): The class.
            value (`str`, *optional*, defaults to `"count"`): `"count"` (the paper's) or `"weight"`.
            normalize (`bool`, *optional*, defaults to `False`):
                Divide each prompt's map by its tokens. The paper does not mention it; advisable where the classes'
                prompts differ in length.
            confidence (`float`, *optional*, defaults to 0.95): Coverage of the bootstrap intervals.
            resamples (`int`, *optional*, defaults to 999): For intervals and permutation tests; 0 for scores alone.
            seed (`int`, *optional*, defaults to 0): Seed of both.

        Raises:
            [`UnknownNameError`]: if no response is of that class.
            [`DataError`]: if every response is.

        Source: arXiv 2502.11096, differential maps: mean over the class minus mean over all other prompts, ranked over
        all layers together. Intervals, p and q values are this package's.
        """
        name = str(target)
        if name not in self.classes:
            raise UnknownNameError.of(
                "FTRIResult.rank.target",
                name,
                self.class_sizes,
                fix="No response was of that class: look at .responses, or change the prompts or the judge.",
            )
        if len(self.class_sizes) == 1:
            raise DataError(
                "FTRIResult.rank.target",
                f"all {len(self.classes)} responses are of this class, so there is nothing to compare with",
                got=self.class_sizes,
                expected="at least two classes",
                fix="Add prompts that the model answers in another way.",
            )
        if value not in ("count", "weight"):
            raise UnknownNameError.of("FTRIResult.rank.value", value, ("count", "weight"))
        values = self.counts if value == "count" else self.weights
        is_target = [label == name for label in self.classes]
        confound = length_confound(self.counts.numpy(), is_target).relative
        if abs(confound) > LENGTH_CONFOUND and not normalize:
            logger.warning(
                f"FTRIResult.rank: prompts of class {name!r} differ from the others by {confound:+.0%} in length, "
                "which shows in every expert's counts. Consider normalize=True."
            )
        if normalize:
            values = values / self.num_tokens[:, None, None]
        found = contrast(
            values.numpy(),
            is_target,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        )
        return ExpertRanking.from_contrast(
            found,
            self.layers,
            method="ftri",
            target=name,
            fingerprint=self.fingerprint,
            provenance={
                **self.provenance,
                "value": value,
                "normalize": normalize,
                "length_confound": round(confound, 4),
                "scope": self.scope,
                "prompts": len(self.prompts),
                "target_prompts": self.classes.count(name),
            },
        )

    def to_config(self, target: object, *, suppress: int | None = None, stimulate: int | None = None) -> MoTEConfig:
        """Return the config that suppresses, or stimulates, the best experts for a class.

        Args:
            target (`str`): The class.
            suppress (`int`, *optional*): How many of the best to suppress.
            stimulate (`int`, *optional*): How many to stimulate instead.
        """
        return self.rank(target, resamples=0).to_config(
            suppress=suppress, stimulate=stimulate, base_model=self.base_model
        )

    def __repr__(self) -> str:
        return f"FTRIResult({len(self.prompts)} prompts, {self.class_sizes}, {len(self.layers)} layers)"

    def _maps_of(self, name: str) -> list[ActivationMap]:
        return [
            ActivationMap(
                counts=self.counts[i].double(),
                weights=self.weights[i].double(),
                layers=self.layers,
                num_tokens=float(self.num_tokens[i]),
                provenance={"class": name, "scope": self.scope},
            )
            for i, label in enumerate(self.classes)
            if label == name
        ]

    def _to_file(self, path: Path) -> None:
        tensors = {"counts": self.counts, "weights": self.weights, "num_tokens": self.num_tokens}
        names = ("prompts", "responses", "classes", "scope", "fingerprint", "base_model", "provenance")
        metadata = {"kind": _KIND, "layers": list(self.layers), **{name: getattr(self, name) for name in names}}
        write_tensors(path, tensors, metadata)

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        tensors, metadata = read_tensors(path, kind=_KIND)
        names = ("prompts", "responses", "classes", "scope", "fingerprint", "base_model", "provenance")
        try:
            result = cls(
                counts=tensors["counts"],
                weights=tensors["weights"],
                num_tokens=tensors["num_tokens"],
                layers=tuple(metadata["layers"]),
                **{name: metadata[name] for name in names},
            )
            if result.scope not in SCOPES or not all(isinstance(label, str) for label in result.classes):
                raise DataError("FTRIResult", "scope or classes are malformed", got=result.scope)
            sizes = {len(result.prompts), len(result.responses), len(result.classes), len(result.counts)}
            sizes |= {len(result.weights), len(result.num_tokens)}
            if len(sizes) != 1:
                raise DataError(
                    "FTRIResult", "prompts, responses, classes and maps differ in number", got=sorted(sizes)
                )
            _ = result.maps
        except KeyError as error:
            raise FileFormatError(str(path), "lacks an entry", expected=error.args[0]) from error
        except (HFMoTEError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(str(path), "holds no fTRI result", got=str(error).rstrip(".")) from error
        return result
