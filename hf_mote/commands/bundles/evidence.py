"""How prompts are read, and what labels the responses to them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from hf_mote.commands import options as o
from hf_mote.commands.judge_specs import make_judge
from hf_mote.commands.model import Organisms
from hf_mote.commands.prompts import PromptSet, read_prompts

if TYPE_CHECKING:
    from hf_mote.judges.judge import Judge

__all__ = ["Judging", "Reading"]


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
