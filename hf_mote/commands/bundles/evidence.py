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
        limit (`int`, *optional*): `--limit`; so are the others, as [`read_prompts`] has them.
        prompt_field (`str`, *optional*): See there.
        group_field (`str`, *optional*): The field that is equal for prompts that count as one.
    """

    limit: o.Limit = None
    prompt_field: o.PromptField = None
    group_field: o.GroupField = None

    def prompts(self, source: str, organisms: Organisms, *, seed: int, class_field: str | None = None) -> PromptSet:
        """Return the prompts of a source.

        Args:
            source (`str`): As [`read_prompts`] takes it.
            organisms (`Organisms`): Where organisms come from.
            seed (`int`): Of the draw, if there is a limit.
            class_field (`str`, *optional*): The field that holds the class.
        """
        return read_prompts(
            source, organisms, prompt_field=self.prompt_field, class_field=class_field, limit=self.limit, seed=seed
        )

    def groups(self, asked: PromptSet) -> list[str] | None:
        """Return what each prompt has in the group field, or `None` if none was named.

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
        judge (`str`, *optional*): `--judge`; so are the others, as [`make_judge`] has them.
        target (`str`, *optional*): The label of interest; the judge's own by default.
        judge_model (`str`, *optional*): See there.
        judge_url (`str`, *optional*): See there.
        judge_allow_http (`bool`, *optional*, defaults to `False`): See there.
    """

    judge: o.JudgeName = None
    target: o.Target = None
    judge_model: o.JudgeModel = None
    judge_url: o.JudgeURL = None
    judge_allow_http: o.JudgeAllowHTTP = False

    @property
    def named(self) -> str:
        """What the judge is called in a report."""
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
