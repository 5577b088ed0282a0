"""How prompts are read, what labels the responses to them, and which two responses are held against each other."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from hf_mote.commands import options as o
from hf_mote.commands.judge_specs import make_judge
from hf_mote.commands.model import Organisms
from hf_mote.commands.prompts import TYPED, PromptSet, read_prompts
from hf_mote.errors import ConfigError, DataError

if TYPE_CHECKING:
    from hf_mote.judges.judge import Judge

__all__ = ["BASELINE", "TARGET", "Judging", "Pairing", "Reading"]

TARGET, BASELINE = "target", "baseline"  # what the two responses are called, here and on pages


@dataclasses.dataclass(frozen=True)
class Reading:
    """How prompts are read.

    Attributes:
        limit (`int`, *optional*): `--limit`; see [`read_prompts`].
        prompt_field (`str`, *optional*): `--prompt-field`.
        group_field (`str`, *optional*): `--group-field`, which is equal for prompts that count as one.
    """

    limit: o.Limit = None
    prompt_field: o.PromptField = None
    group_field: o.GroupField = None

    def prompts(self, source: str, organisms: Organisms, *, seed: int, class_field: str | None = None) -> PromptSet:
        """Return the prompts of a source.

        Args:
            source (`str`): As [`read_prompts`] takes it.
            organisms (`Organisms`): Where organisms come from.
            seed (`int`): Seed of the draw, if there is a limit.
            class_field (`str`, *optional*): The field that holds the class.
        """
        return read_prompts(
            source, organisms, prompt_field=self.prompt_field, class_field=class_field, limit=self.limit, seed=seed
        )

    def groups(self, asked: PromptSet) -> list[str] | None:
        """Return the value of the group field for each prompt, or `None` if no field was given.

        Args:
            asked (`PromptSet`): The prompts.

        Raises:
            [`UnknownNameError`]: if no record has the field.
            [`DataError`]: if a record lacks it.
        """
        return None if self.group_field is None else asked.column(self.group_field)


@dataclasses.dataclass(frozen=True)
class Judging:
    """What labels responses, and which label is of interest.

    Attributes:
        judge (`str`, *optional*): `--judge`; see [`make_judge`].
        target (`str`, *optional*): `--target`, the label of interest; the judge's own by default.
        judge_model (`str`, *optional*): `--judge-model`.
        judge_url (`str`, *optional*): `--judge-url`.
        judge_allow_http (`bool`, *optional*, defaults to `False`): `--judge-allow-http`.
    """

    judge: o.JudgeName = None
    target: o.Target = None
    judge_model: o.JudgeModel = None
    judge_url: o.JudgeURL = None
    judge_allow_http: o.JudgeAllowHTTP = False

    @property
    def named(self) -> str:
        """The name of the judge in a report."""
        return self.judge or "the organism's own"

    def make(self, asked: PromptSet, organisms: Organisms, *, model: str) -> Judge:
        """Return the judge.

        Args:
            asked (`PromptSet`): The prompts.
            organisms (`Organisms`): Where organisms come from.
            model (`str`): The model that is judged, as it was given.
        """
        return make_judge(
            self.judge,
            asked,
            organisms,
            model=model,
            judge_model=self.judge_model,
            judge_url=self.judge_url,
            allow_http=self.judge_allow_http,
        )


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Two responses to each prompt, of which one is held against the other.

    Attributes:
        target (`str`, *optional*): `--target`, the response whose causes are sought.
        baseline (`str`, *optional*): `--baseline`, the response it is held against.
        target_field (`str`, *optional*, defaults to `"target"`): `--target-field`, which holds the target without
            `--target`.
        baseline_field (`str`, *optional*, defaults to `"baseline"`): `--baseline-field`, likewise.
    """

    target: o.TargetResponse = None
    baseline: o.BaselineResponse = None
    target_field: o.TargetField = TARGET
    baseline_field: o.BaselineField = BASELINE

    def responses(self, asked: PromptSet) -> tuple[list[str], list[str]]:
        """Return the target and the baseline response to each prompt.

        Args:
            asked (`PromptSet`): The prompts.

        Raises:
            [`ConfigError`]: if one is neither given nor a field of the prompts.
            [`DataError`]: if one is empty, or the two are the same; the prompt is named by its number.
        """
        targets = _responses("--target", self.target, asked, self.target_field)
        baselines = _responses("--baseline", self.baseline, asked, self.baseline_field)
        for number, (target, baseline) in enumerate(zip(targets, baselines, strict=True), start=1):
            where = f"{asked.source}: prompt {number}"
            for option, text in (("--target", target), ("--baseline", baseline)):
                if not text.strip():
                    raise DataError(where, f"the response that {option} gives is empty", expected="text")
            if target == baseline:
                fix = "Give two responses that differ: the one that shows the behaviour, and one that does not."
                raise DataError(where, "--target and --baseline are the same", got=repr(target)[:80], fix=fix)
        return targets, baselines


def _responses(option: str, given: str | None, asked: PromptSet, field: str) -> list[str]:
    if given is not None:
        return [given] * len(asked.prompts)
    if asked.source == TYPED:
        raise ConfigError(option, "is missing", fix=f"Give {option} TEXT.")
    if not asked.has(field):
        raise ConfigError(
            option,
            "is missing",
            got=f"prompts without a field {field!r}",
            fix=f"Give {option} TEXT, or {option}-field NAME for a field of {asked.source}.",
        )
    return asked.column(field)
