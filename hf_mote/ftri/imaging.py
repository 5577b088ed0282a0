"""`ftri`: prompts -> responses -> classes -> activation maps, the paper's pipeline in one call.

Functional token resonance imaging runs prompts through the model, sorts its responses into classes, and compares the
experts that the prompts of each class visited (Dahlke et al., arXiv 2502.11096).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from hf_mote.errors import DataError, FileFormatError, HFMoTEError, UnknownNameError
from hf_mote.ftri.contrast import contrast, length_confound
from hf_mote.ftri.judges import Judge, check_judge, classify
from hf_mote.ftri.ranking import ExpertRanking
from hf_mote.ftri.responses import Prompt, checked_prompts, generate_responses, prompt_text
from hf_mote.hub import Shareable, read_tensors, write_tensors
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.fingerprint import fingerprint_of
from hf_mote.routing.discover import find_routers
from hf_mote.routing.maps import ActivationMap, MapValue
from hf_mote.routing.record import record_routing

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["FTRIResult", "ftri"]

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


def ftri(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    scope: Literal["prompt", "generation", "all"] = "prompt",
    batch_size: int = 16,
    max_new_tokens: int = 64,
    system_prompt: str | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> FTRIResult:
    """Run prompts, sort the responses into classes, and map the experts that each class's prompts visited.

    Args:
        model (`PreTrainedModel`):
            A mixture-of-experts language model; left as it is.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer. A chat template is applied if it has one.
        prompts (`Sequence[str]` or chats):
            What to ask.
        judge (`Callable`):
            `response -> label` or `(prompt, response) -> label`, such as [`RefusalJudge`].
        scope (`str`, *optional*, defaults to `"prompt"`):
            Tokens to count: all prompt tokens, chat template included (the paper's), the generated ones, or both.
        batch_size (`int`, *optional*, defaults to 16):
            Prompts that run together.
        max_new_tokens (`int`, *optional*, defaults to 64):
            Longest response, in tokens.
        system_prompt (`str`, *optional*):
            First message of every prompt that is a text.
        generate_kwargs (`Mapping`, *optional*):
            Further arguments of `generate`; decoding is greedy by default.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        [`FTRIResult`].

    Raises:
        [`DataError`]: if there are no prompts, or the judge fails.
        [`UnsupportedError`]: if the model has no routed experts that the table knows.

    Source: arXiv 2502.11096: experts counted over all prompt tokens, averaged per class of responses.

    Example:

    ```python
    from hf_mote import ftri, load_organism

    organism = load_organism("refusal")
    prompts = organism.prompts["train"]["sensitive"][:8] + organism.prompts["train"]["neutral"][:8]
    result = ftri(organism.model, organism.tokenizer, prompts, organism.judge, max_new_tokens=12, progress=False)
    assert result.class_sizes == {"answer": 8, "refusal": 8}
    config = result.rank("refusal").to_config(suppress=5)
    ```
    """
    asked = checked_prompts("ftri.prompts", prompts)
    check_judge(judge)
    if scope not in SCOPES:
        raise UnknownNameError.of("ftri.scope", scope, SCOPES)
    sites = find_routers(model)
    responses = [""] * len(asked)
    order: list[int] = []
    with record_routing(model, eos_token_id=(generate_kwargs or {}).get("eos_token_id")) as record:
        for positions, answers in generate_responses(
            model,
            tokenizer,
            asked,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            system_prompt=system_prompt,
            generate_kwargs=generate_kwargs,
            progress="imaging" if progress else None,
        ):
            order += positions
            for position, answer in zip(positions, answers, strict=True):
                responses[position] = answer
    maps = [seen for _, seen in sorted(zip(order, record.maps(scope), strict=True), key=lambda item: item[0])]
    texts = [prompt_text(prompt) for prompt in asked]
    return FTRIResult(
        prompts=texts,
        responses=responses,
        classes=classify(judge, texts, responses),
        counts=torch.stack([seen.counts for seen in maps]).float(),
        weights=torch.stack([seen.weights for seen in maps]).float(),
        num_tokens=torch.tensor([seen.num_tokens for seen in maps]),
        layers=record.layers,
        scope=scope,
        fingerprint=fingerprint_of(model, sites),
        base_model=model.config.name_or_path or None,
    )
