"""`FTRIResult`: the result of imaging, prompt by prompt, and the rankings from it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.utils import logging

from hf_mote.errors import DataError, UnsupportedError
from hf_mote.generation.chat import Prompt
from hf_mote.generation.likeness import near_duplicates
from hf_mote.generation.prompts import prompt_text
from hf_mote.hub import Shareable, public_name
from hf_mote.maps.activation_map import ActivationMap, MapValue
from hf_mote.maps.grid import row_of
from hf_mote.maps.storage import row_blocks
from hf_mote.mote.config import MoTEConfig
from hf_mote.printing import Printable, Summary, frame_of
from hf_mote.ranking.expert_ranking import ExpertRanking
from hf_mote.ranking.imaging.prompt_maps import PromptMaps
from hf_mote.ranking.imaging.result_file import parts_from_maps, read_parts, write_parts
from hf_mote.ranking.imaging.units import (
    Evidence,
    check_score,
    check_tokens,
    checked_class,
    checked_keys,
    make_pairs,
    make_units,
    merge_groups,
)
from hf_mote.sharing.privacy import without_places
from hf_mote.statistics.alike import most_alike_in_blocks
from hf_mote.statistics.contrast import contrast, length_confound
from hf_mote.statistics.groups import checked_groups
from hf_mote.statistics.large import LEAST_OF_CLASS, MANY, contrast_in_blocks
from hf_mote.statistics.stability import Stability, top_stability

if TYPE_CHECKING:
    import os
    from typing import Self

    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["LENGTH_CONFOUND", "FTRIResult"]

AlikeExpert: TypeAlias = tuple[tuple[int, int], float]

LIKENESS = 0.2  # share of prompts similar to another one above which a ranking without groups warns
LENGTH_CONFOUND = 0.1  # relative difference of lengths above which a ranking by counts warns

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class FTRIResult(Printable, Shareable):
    """The result of `ftri`: one response, class and activation map for each prompt.

    Attributes:
        prompts (`list[str]`): The prompts.
        responses (`list[str]`): The model's response to each.
        classes (`list[str]`): The judge's label of each response.
        counts (`torch.Tensor` of shape `(prompts, layers, experts)`, float32): Tokens for which the expert was chosen.
        weights (`torch.Tensor` of shape `(prompts, layers, experts)`, float32): Sum of its routing weights.
        num_tokens (`torch.Tensor` of shape `(prompts,)`, float32): Tokens counted.
        layers (`tuple[int, ...]`): Absolute decoder layer of each row.
        scope (`str`): Which tokens were counted.
        fingerprint (`dict`, *optional*): The model's.
        base_model (`str`, *optional*): The model's name: a Hub id, or a folder's own name without its path.
        prompt_index (`torch.Tensor` of shape `(prompts,)`, int64, *optional*):
            Where prompts were run several times, or given twice, equal for the runs of one prompt.
        response_tokens (`list[list[int]]`, *optional*): The tokens of each response, special ones included.
    """

    prompts: list[str]
    responses: list[str]
    classes: list[str]
    counts: Tensor
    weights: Tensor
    num_tokens: Tensor
    layers: tuple[int, ...]
    scope: str
    fingerprint: dict[str, Any] | None
    base_model: str | None = None
    provenance: dict[str, str | int | float] = field(default_factory=dict)
    prompt_index: Tensor | None = None
    response_tokens: list[list[int]] | None = None

    file_name: ClassVar[str] = "ftri_result.safetensors"

    @classmethod
    def from_maps(
        cls,
        maps: Sequence[ActivationMap],
        classes: Sequence[object],
        *,
        prompts: Sequence[Prompt] | None = None,
        responses: Sequence[str] | None = None,
        scope: str = "all",
        fingerprint: Mapping[str, Any] | None = None,
        base_model: str | None = None,
    ) -> Self:
        """Return the result of prompts whose routing was recorded elsewhere, as by an inference engine.

        Args:
            maps (`Sequence[ActivationMap]`): One for each prompt, such as `ActivationMap.from_routed_experts` gives.
            classes (`Sequence[str]`): The class of each, such as a judge gives them.
            prompts (`Sequence[str]` or chats, *optional*): The prompts, for pages and files; equal ones count once.
            responses (`Sequence[str]`, *optional*): The response to each.
            scope (`str`, *optional*, defaults to `"all"`): Which tokens were counted.
            fingerprint (`Mapping`, *optional*):
                The model's, such as `MoTEConfig.for_model(model).fingerprint`; configs of rankings then carry it.
            base_model (`str`, *optional*): The model's name.

        Raises:
            [`DataError`]: if there are no maps, numbers differ, or maps are of different layers or experts, or of some
                that the fingerprint does not have.
            [`ConfigError`]: if the fingerprint is malformed.
            [`UnknownNameError`]: if there is no such scope.

        Example:

        ```python
        import numpy as np
        from hf_mote import ActivationMap, FTRIResult

        routing = np.random.default_rng(0).integers(0, 4, (6, 9, 3, 1))  # prompts, tokens, layers, top-k
        maps = [ActivationMap.from_routed_experts(table, num_experts=4, layers=range(3)) for table in routing]
        result = FTRIResult.from_maps(maps, ["refusal", "answer"] * 3)
        assert result.class_sizes == {"answer": 3, "refusal": 3}
        ```
        """
        return cls(**parts_from_maps(maps, classes, prompts, responses, scope, fingerprint), base_model=base_model)

    @property
    def class_sizes(self) -> dict[str, int]:
        """Number of prompts of each class, by name."""
        return {name: self.classes.count(name) for name in sorted(set(self.classes))}

    @property
    def maps(self) -> dict[str, ActivationMap]:
        """The mean activation map of each class."""
        return {name: self._mean_of(name) for name in self.class_sizes}

    def rank(
        self,
        target: object,
        *,
        score: str = "mean_difference",
        value: MapValue = "count",
        normalize: bool = False,
        paired: bool | Sequence[Hashable] = False,
        groups: Sequence[Hashable] | None = None,
        confidence: float = 0.95,
        resamples: int = 999,
        permutations: int | None = None,
        seed: int = 0,
    ) -> ExpertRanking:
        """Return all experts by how much more the target class's prompts use them than all others.

        Args:
            target (`str`): The class.
            score (`str`, *optional*, defaults to `"mean_difference"`):
                `"mean_difference"` per prompt (the paper's), `"risk_difference"` per token, `"log_odds"` ratio,
                `"npmi"` (normalised pointwise mutual information), or `"weight_difference"`, of routing weight per
                token. All but the first are free of prompt length. See `hf_mote.statistics.scores`.
            value (`str`, *optional*, defaults to `"count"`): `"count"` (the paper's) or `"weight"`.
            normalize (`bool`, *optional*, defaults to `False`):
                Divide each prompt's map by its tokens. The paper does not mention it; advisable where the classes'
                prompts differ in length. A prompt without tokens is left out, as it is with every score per token.
            paired (`bool` or `Sequence`, *optional*, defaults to `False`):
                Compare within pairs, such as a request and its harmless twin: one key for each prompt, equal for the
                two of a pair. A key with other than one prompt of the class and one other is left out, and counted in
                the provenance. `True` takes the i-th prompt of the class and the i-th other one, where the order shows
                that these are the pairs: the two are always equally far apart.
            groups (`Sequence`, *optional*):
                One key for each prompt, equal for those that are wordings of one subject or fillings of one template:
                those of a group and class count as one, by their mean, in score, intervals and tests, and pairs of one
                group as one pair. By default every prompt counts, which gives false p values where prompts of a group
                have similar routing and are of one class: on 12 subjects with 8 wordings each p <= 0.05 for a third of
                all experts without a difference. A warning is given for similar prompts.
            confidence (`float`, *optional*, defaults to 0.95): Coverage of the intervals.
            resamples (`int`, *optional*, defaults to 999): Bootstrap resamples; 0 for scores alone.
            permutations (`int`, *optional*): Of the tests; by default enough for one expert alone to be found.
            seed (`int`, *optional*, defaults to 0): Seed of both.

        Of more than 2,000 prompts, with 200 of each class, intervals and p values come from moments, in bounded memory
        (`hf_mote.statistics.large`); `permutations` requests relabellings nevertheless.

        Raises:
            [`UnknownNameError`]: if no response is of that class, or there is no such score.
            [`DataError`]: if every response is, no token was counted, or no 2 pairs come out.
            [`ConfigError`]: if the score and `value` or `normalize` do not go together.

        Source: arXiv 2502.11096, differential maps: mean over the class minus mean over all other prompts, ranked over
        all layers together. Intervals, p and q values are this package's.
        """
        name = checked_class("FTRIResult.rank.target", self.classes, target)
        keys = None if isinstance(paired, bool) else paired
        units = self._units("rank", name, score, value, normalize, keys, groups)
        if keys is not None:
            units = make_pairs("FTRIResult.rank", units)
        counted = len(units.is_target)
        units = merge_groups("FTRIResult.rank", units, paired=paired is not False)
        alike = 0
        if groups is None and resamples:
            alike = self._warn_of_likeness()
        if units.left_out:
            logger.warning(f"FTRIResult.rank: {units.left_out} of {len(self.prompts)} prompts are left out.")
        routed = torch.cat(
            [self.counts[rows].sum(-1, keepdim=True, dtype=torch.float64) for rows in row_blocks(self.counts)]
        )
        confound = length_confound(routed.numpy(), [label == name for label in self.classes]).relative
        if abs(confound) > LENGTH_CONFOUND and not normalize and score == "mean_difference":
            logger.warning(
                f"FTRIResult.rank: prompts of class {name!r} differ from the others by {confound:+.0%} in length, "
                "which affects every expert's counts. Divide by it: normalize=True."
            )
        mine, others = units.sizes
        many = mine + others > MANY and min(mine, others) >= LEAST_OF_CLASS
        if many:
            found = contrast_in_blocks(
                lambda start, stop: units.values.columns(start, stop).numpy(),
                units.values.grid,
                np.array(units.is_target),
                score=score,
                tokens=units.tokens.numpy(),
                paired=paired is not False,
                confidence=confidence,
                resamples=resamples,
                permutations=permutations,
                seed=seed,
            )
        else:
            found = contrast(
                units.values.whole().numpy(),
                units.is_target,
                score=score,
                tokens=units.tokens.numpy(),
                rest="pooled" if paired is False else "paired",
                confidence=confidence,
                resamples=resamples,
                permutations=permutations,
                seed=seed,
            )
        what = "prompts" if groups is None else f"groups of {counted} prompts"
        return ExpertRanking.from_contrast(
            found,
            self.layers,
            method="ftri",
            target=name,
            fingerprint=self.fingerprint,
            provenance={
                **self.provenance,
                "score": score,
                "paired": paired is not False,
                "compared": f"{mine} against {others} {what}" if paired is False else f"{mine} pairs of {what}",
                **({} if groups is None else {"groups": len(set(groups))}),
                **({"near_duplicates": alike} if alike else {}),
                **({"p_values": "of moments"} if many and resamples and permutations is None else {}),
                "left_out": units.left_out,
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
        groups: Sequence[Hashable] | None = None,
        resamples: int = 200,
        seed: int = 0,
    ) -> Stability:
        """Return how many of the best `n` experts stay the best when the prompts are resampled.

        Args:
            target (`str`): The class.
            n (`int`): Size of the top.
            score (`str`, *optional*): As in [`rank`]; so are `value` and `normalize`.
            value (`str`, *optional*): See [`rank`].
            normalize (`bool`, *optional*): See [`rank`].
            groups (`Sequence`, *optional*): See [`rank`]; groups are resampled.
            resamples (`int`, *optional*, defaults to 200): Draws.
            seed (`int`, *optional*, defaults to 0): Of the draws.

        Raises:
            [`DataError`]: if a class has fewer than 2 prompts.
        """
        name = checked_class("FTRIResult.stability.target", self.classes, target)
        units = self._units("stability", name, score, value, normalize, None, groups)
        units = merge_groups("FTRIResult.stability", units, paired=False)
        return top_stability(
            lambda start, stop: units.values.columns(start, stop).numpy(),
            units.is_target,
            n,
            grid=units.values.grid,
            score=score,
            tokens=units.tokens.numpy(),
            resamples=resamples,
            seed=seed,
        )

    def alike(self, experts: Sequence[tuple[int, int]], n: int = 5) -> dict[tuple[int, int], list[AlikeExpert]]:
        """Return, for some experts, those that the same prompts use.

        Args:
            experts (`Sequence[tuple[int, int]]`): (layer, expert).
            n (`int`, *optional*, defaults to 5): How many for each at most.

        Returns:
            `dict`: for each of the experts ((layer, expert), correlation) pairs, highest first; the correlation, over
            prompts, is of the shares of a prompt's tokens that go to the two. Empty with fewer than 3 prompts.

        Raises:
            [`UnknownNameError`]: if there is no such expert.
        """
        width = self.counts.shape[2]
        chosen = [
            row_of("FTRIResult.alike", self.layers, width, layer, expert) * width + expert for layer, expert in experts
        ]
        kept = self.num_tokens > 0
        if int(kept.sum()) < 3:
            return {}
        tokens, places = self.num_tokens[kept].double()[:, None], torch.nonzero(kept)[:, 0]
        flat = self.counts.flatten(1)

        def shares(start: int, stop: int) -> npt.NDArray[np.float64]:
            return (flat[:, start:stop][places].double() / tokens).numpy()

        found = most_alike_in_blocks(shares, (len(places), flat.shape[1]), chosen, n)
        return {
            (layer, expert): [((self.layers[other // width], other % width), r) for other, r in others]
            for (layer, expert), others in zip(experts, found, strict=True)
        }

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

    def to_dict(self) -> dict[str, Any]:
        """Return prompts, responses, classes and tokens counted, without the maps; JSON-native."""
        return {
            "prompts": list(self.prompts),
            "responses": list(self.responses),
            "classes": list(self.classes),
            "num_tokens": self.num_tokens.tolist(),
            "layers": list(self.layers),
            "scope": self.scope,
            "base_model": self.base_model,
            "provenance": dict(self.provenance),
        }

    def to_pandas(self) -> DataFrame:
        """Return a `pandas.DataFrame` with a row for each prompt: prompt, response, class, tokens."""
        return frame_of(
            {
                "prompt": list(self.prompts),
                "response": list(self.responses),
                "class": list(self.classes),
                "tokens": self.num_tokens.tolist(),
            }
        )

    def plot(self, target: object | None = None, *, path: str | os.PathLike[str] | None = None) -> Figure:
        """Return a heat map: of a class against all others, or of all prompts.

        Args:
            target (`str`, *optional*): The class; by default the mean map of all prompts is shown.
            path (`str` or `os.PathLike`, *optional*): Where to write it, as PNG, SVG or PDF by its ending.
        """
        from hf_mote.plots import plot_expert_map

        if target is not None:
            return self.rank(target, resamples=0).plot(path=path)
        counts = self.counts.mean(dim=0, dtype=torch.float64)
        title = f"{len(self.prompts)} prompts"
        return plot_expert_map(counts, self.layers, title=title, label="tokens per prompt", path=path)

    def _summary(self) -> Summary:
        shape = f"{len(self.layers)} layers x {self.counts.shape[2]} experts"
        facts = {"classes": ", ".join(f"{size} x {name!r}" for name, size in self.class_sizes.items())}
        facts["tokens counted"] = f"{self.scope}, {float(self.num_tokens.double().mean()):.1f} per prompt"
        if self.base_model is not None:
            facts["model"] = self.base_model
        columns = {"class": self.classes, "prompt": self.prompts, "response": self.responses}
        return Summary(f"FTRIResult: {len(self.prompts)} prompts, {shape}", facts, columns, len(self.prompts))

    def _units(
        self,
        where: str,
        name: str,
        score: str,
        value: str,
        normalize: bool,
        keys: Sequence[Hashable] | None,
        groups: Sequence[Hashable] | None,
    ) -> Evidence:
        """Return what a score is computed from, one unit for each prompt."""
        check_score(f"FTRIResult.{where}", score, value, normalize)
        check_tokens(f"FTRIResult.{where}", self.num_tokens, self.scope)
        by_weight = value == "weight" or score == "weight_difference"
        if by_weight and self.provenance.get("weights") == "not recorded":
            what = "routing weights were not recorded, only which experts were chosen"
            raise DataError(f"FTRIResult.{where}", what, fix="Rank by counts, or record weights for every prompt.")
        runs = Evidence(
            values=PromptMaps(self.weights if by_weight else self.counts),
            tokens=self.num_tokens.double(),
            is_target=[label == name for label in self.classes],
            keys=checked_keys(f"FTRIResult.{where}.paired", keys, len(self.classes)),
            left_out=0,
            groups=checked_groups(f"FTRIResult.{where}.groups", groups, len(self.classes)),
        )
        per_token = score != "mean_difference"
        return make_units(f"FTRIResult.{where}", runs, self.prompt_index, per_token=per_token, normalize=normalize)

    def _warn_of_likeness(self) -> int:
        """Warn of prompts that are similar to others; return how many there are."""
        texts = list(dict.fromkeys(prompt_text(prompt) for prompt in self.prompts))
        found = near_duplicates(texts)
        if found.alike >= LIKENESS * len(texts):
            one, other = found.example
            logger.warning(
                f"FTRIResult.rank: {found.alike} of {len(texts)} prompts share most of their words with another one, "
                f"as {one[:60]!r} and {other[:60]!r}. Counted as independent they make p and q too small where those "
                "of a kind are of one class. Give groups=[...], one key for each prompt, such as its subject."
            )
        return found.alike

    def _mean_of(self, name: str) -> ActivationMap:
        """Return the mean map of a class, a block of prompts at a time."""
        member = torch.tensor([label == name for label in self.classes])
        counts, weights = (torch.zeros(self.counts.shape[1:], dtype=torch.float64) for _ in range(2))
        for rows in row_blocks(self.counts):
            here = member[rows]
            counts += self.counts[rows][here].sum(0, dtype=torch.float64)
            weights += self.weights[rows][here].sum(0, dtype=torch.float64)
        number = int(member.sum())
        return ActivationMap(
            counts=counts / number,
            weights=weights / number,
            layers=self.layers,
            num_tokens=float(self.num_tokens[member].double().sum()) / number,
            provenance={"class": name, "scope": self.scope},
        )

    def _texts(self) -> list[str]:
        return [*map(prompt_text, self.prompts), *self.responses]

    def _public(self, *, with_texts: bool) -> Self:
        if not with_texts:
            raise UnsupportedError(
                "FTRIResult.push_to_hub",
                "holds the prompts and responses",
                fix="Push its rankings and maps, which hold no texts, or give with_texts=True.",
            )
        return replace(self, base_model=public_name(self.base_model), provenance=without_places(self.provenance))

    def _to_file(self, path: Path) -> None:
        write_parts(path, {part.name: getattr(self, part.name) for part in fields(self)})

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        return cls(**read_parts(path))
