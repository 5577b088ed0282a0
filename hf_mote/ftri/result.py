"""`FTRIResult`: what imaging saw, prompt by prompt, and the rankings that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers.utils import logging

from hf_mote.errors import ConfigError, DataError, FileFormatError, HFMoTEError, UnknownNameError
from hf_mote.ftri.contrast import contrast, length_confound
from hf_mote.ftri.ranking import ExpertRanking
from hf_mote.ftri.scopes import check_scope
from hf_mote.ftri.scores import SCORES
from hf_mote.ftri.stability import Stability, top_stability
from hf_mote.hub import Shareable, read_tensors, write_tensors
from hf_mote.mote.config import MoTEConfig
from hf_mote.routing.maps import ActivationMap, MapValue

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FTRIResult"]

_KIND = "ftri_result"
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
        prompt_index (`torch.Tensor` of shape `(prompts,)`, int64, *optional*):
            Where prompts were run several times, equal for the runs of one prompt.
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
    prompt_index: Tensor | None = None

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
        score: str = "mean_difference",
        value: MapValue = "count",
        normalize: bool = False,
        paired: bool = False,
        confidence: float = 0.95,
        resamples: int = 999,
        seed: int = 0,
    ) -> ExpertRanking:
        """Return all experts by how much more the target class's prompts use them than all others.

        Args:
            target (`str`): The class.
            score (`str`, *optional*, defaults to `"mean_difference"`):
                `"mean_difference"` per prompt (the paper's), `"risk_difference"` per token, `"log_odds"` ratio,
                `"npmi"` (normalised pointwise mutual information), or `"weight_difference"`, of routing weight per
                token. All but the first are free of prompt length. See `hf_mote.ftri.scores`.
            value (`str`, *optional*, defaults to `"count"`): `"count"` (the paper's) or `"weight"`.
            normalize (`bool`, *optional*, defaults to `False`):
                Divide each prompt's map by its tokens. The paper does not mention it; advisable where the classes'
                prompts differ in length.
            paired (`bool`, *optional*, defaults to `False`):
                Compare the i-th prompt of the class with the i-th other prompt: a request and its harmless twin.
            confidence (`float`, *optional*, defaults to 0.95): Coverage of the bootstrap intervals.
            resamples (`int`, *optional*, defaults to 999): For intervals and permutation tests; 0 for scores alone.
            seed (`int`, *optional*, defaults to 0): Seed of both.

        Raises:
            [`UnknownNameError`]: if no response is of that class, or there is no such score.
            [`DataError`]: if every response is, or pairs do not come out even.
            [`ConfigError`]: if the score and `value` or `normalize` do not go together.

        Source: arXiv 2502.11096, differential maps: mean over the class minus mean over all other prompts, ranked over
        all layers together. Intervals, p and q values are this package's.
        """
        name = self._class_of("rank", target)
        values, lengths, is_target = self._values("rank", name, score, value, normalize)
        confound = length_confound(self.counts.numpy(), [label == name for label in self.classes]).relative
        if abs(confound) > LENGTH_CONFOUND and not normalize and score == "mean_difference":
            logger.warning(
                f"FTRIResult.rank: prompts of class {name!r} differ from the others by {confound:+.0%} in length, "
                "which shows in every expert's counts. Consider normalize=True."
            )
        found = contrast(
            values.numpy(),
            is_target,
            score=score,
            tokens=lengths.numpy(),
            rest="paired" if paired else "pooled",
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
                "score": score,
                "paired": paired,
                "value": value,
                "normalize": normalize,
                "length_confound": round(confound, 4),
                "scope": self.scope,
                "prompts": len(self.prompts),
                "target_prompts": self.classes.count(name),
            },
        )

    def stability(
        self,
        target: object,
        n: int,
        *,
        score: str = "mean_difference",
        value: MapValue = "count",
        normalize: bool = False,
        resamples: int = 200,
        seed: int = 0,
    ) -> Stability:
        """Return how many of the best `n` experts stay the best when the prompts are drawn anew.

        Args:
            target (`str`): The class.
            n (`int`): Size of the top.
            score (`str`, *optional*): As in [`rank`]; so are `value` and `normalize`.
            value (`str`, *optional*): See [`rank`].
            normalize (`bool`, *optional*): See [`rank`].
            resamples (`int`, *optional*, defaults to 200): Draws.
            seed (`int`, *optional*, defaults to 0): Of the draws.

        Raises:
            [`DataError`]: if a class has fewer than 2 prompts.
        """
        name = self._class_of("stability", target)
        values, lengths, is_target = self._values("stability", name, score, value, normalize)
        return top_stability(
            values.numpy(), is_target, n, score=score, tokens=lengths.numpy(), resamples=resamples, seed=seed
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

    def _class_of(self, where: str, target: object) -> str:
        name = str(target)
        if name not in self.classes:
            raise UnknownNameError.of(
                f"FTRIResult.{where}.target",
                name,
                self.class_sizes,
                fix="No response was of that class: look at .responses, or change the prompts or the judge.",
            )
        if len(self.class_sizes) == 1:
            raise DataError(
                f"FTRIResult.{where}.target",
                f"all {len(self.classes)} responses are of this class, so there is nothing to compare with",
                got=self.class_sizes,
                expected="at least two classes",
                fix="Add prompts that the model answers in another way.",
            )
        return name

    def _values(
        self, where: str, name: str, score: str, value: str, normalize: bool
    ) -> tuple[Tensor, Tensor, list[bool]]:
        """Return what a score is computed from: values `(prompts, layers, experts)`, tokens, and who is of the class.

        Runs of one prompt that fall on the same side become their mean: a prompt asked ten times is not ten prompts.
        """
        if score not in SCORES:
            raise UnknownNameError.of(f"FTRIResult.{where}.score", score, SCORES)
        if value not in ("count", "weight"):
            raise UnknownNameError.of(f"FTRIResult.{where}.value", value, ("count", "weight"))
        if score != "mean_difference" and (normalize or value != "count"):
            raise ConfigError(
                f"FTRIResult.{where}",
                f"score {score!r} says by itself what it counts, per token",
                got=f"value={value!r}, normalize={normalize}",
                fix="Leave value and normalize out.",
            )
        by_weight = value == "weight" or score == "weight_difference"
        values = (self.weights if by_weight else self.counts).double()
        lengths = self.num_tokens.double()
        values = values / lengths[:, None, None] if normalize else values
        is_target = [label == name for label in self.classes]
        if self.prompt_index is None:
            return values, lengths, is_target
        keys = [(int(index), of_class) for index, of_class in zip(self.prompt_index, is_target, strict=True)]
        units = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        rows = torch.tensor([units[key] for key in keys])
        times = torch.bincount(rows).double()
        mean = torch.zeros(len(units), *values.shape[1:], dtype=torch.float64).index_add_(0, rows, values)
        tokens = torch.zeros(len(units), dtype=torch.float64).index_add_(0, rows, lengths)
        return mean / times[:, None, None], tokens / times, [of_class for _, of_class in units]

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
        if self.prompt_index is not None:
            tensors["prompt_index"] = self.prompt_index
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
                prompt_index=tensors.get("prompt_index"),
                **{name: metadata[name] for name in names},
            )
            check_scope("FTRIResult.scope", result.scope)
            if not all(isinstance(label, str) for label in result.classes):
                raise DataError("FTRIResult", "classes are malformed")
            sizes = {len(result.prompts), len(result.responses), len(result.classes), len(result.counts)}
            sizes |= {len(result.weights), len(result.num_tokens)}
            sizes |= set() if result.prompt_index is None else {len(result.prompt_index)}
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
