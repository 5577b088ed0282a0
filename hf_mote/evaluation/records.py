"""The records of an `EvaluationReport`: what a config does on its prompts, what its controls do, what else changes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hf_mote.evaluation.coherence import Coherence
from hf_mote.evaluation.conversations import Conversation
from hf_mote.evaluation.selectivity import NonInferiority, Selectivity
from hf_mote.evaluation.side_effects import SideEffects
from hf_mote.statistics.rates import Rate

__all__ = ["Behaviour", "ControlRuns", "Elsewhere", "PartsByName", "SideBySide"]


@dataclass(frozen=True)
class SideBySide:
    """Prompts with the responses of the untouched model and those with the config; empty in a report without texts.

    Attributes:
        prompts (`list[str]`): The prompts.
        before (`list[str]`): The untouched model's responses.
        after (`list[str]`): Those with the config.
        labels_before (`list[str]`): The judge's labels of `before`, where it was asked.
        labels_after (`list[str]`): Those of `after`.
    """

    prompts: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    labels_before: list[str] = field(default_factory=list)
    labels_after: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Behaviour:
    """How often the behaviour shows on the prompts.

    Attributes:
        before (`Rate`): The rate of the target label in the untouched model.
        after (`Rate`): Its rate with the config.
        answers (`SideBySide`): The responses and their labels.
        dose (`list[tuple[float, float]]`): (strength, rate) pairs.
        unclear (`int`): Responses, of all runs on the prompts, that the judge could not label, as [`ServerJudge`]
            does for a reply that it cannot read. They do not count as the target label.
        coherence (`Coherence`, *optional*): Which responses are incoherent. Without it, incoherent text that is not
            of the target class counts as a change like any other.
    """

    before: Rate
    after: Rate
    answers: SideBySide = field(default_factory=SideBySide)
    dose: list[tuple[float, float]] = field(default_factory=list)
    unclear: int = 0
    coherence: Coherence | None = None


@dataclass(frozen=True)
class ControlRuns:
    """What random controls do on the same prompts.

    Attributes:
        rates (`list[float]`): The rate of the target label under each.
        labels (`list[list[str]]`): For each the judge's labels of its responses.
        kind (`str`): What they are matched by, besides their number: `"layer"`, or also `"usage"`.
        seed (`int`): The seed that they were drawn by.
        sharing (`list[bool]`): For each, whether it holds some of the config's own experts, as it may where experts
            are few.
        num_sharing (`int`): How many do.
        disjoint_chances (`list[float]`): Where some do: for each number of the others the chance that at most so many
            come as far, as [`chance_of_reach`] has it.
        exhausted (`bool`): Whether no more controls exist.
    """

    rates: list[float] = field(default_factory=list)
    labels: list[list[str]] = field(default_factory=list)
    kind: str = "layer"
    seed: int = 0
    sharing: list[bool] = field(default_factory=list)
    num_sharing: int = 0
    disjoint_chances: list[float] = field(default_factory=list)
    exhausted: bool = False


@dataclass(frozen=True)
class Elsewhere:
    """What the config changes besides the behaviour.

    Attributes:
        answers (`SideBySide`): Unrelated prompts and the responses to them; without labels.
        unchanged (`Rate`, *optional*): Share of these responses that stay word for word the same.
        selectivity (`Selectivity`, *optional*): The changes on the prompts and on unrelated ones, for the config and
            its controls.
        not_worse (`list[NonInferiority]`): Tests, with a margin stated before, that unrelated answers stay as they are
            or as good.
        side_effects (`SideEffects`, *optional*): Divergence and perplexity on plain texts.
        conversations (`list[Conversation]`): Conversations with the answers before and after.
        turns_unchanged (`Rate`, *optional*): Share of their answers that stay word for word the same. A later answer
            can change because an earlier one did.
    """

    answers: SideBySide = field(default_factory=SideBySide)
    unchanged: Rate | None = None
    selectivity: Selectivity | None = None
    not_worse: list[NonInferiority] = field(default_factory=list)
    side_effects: SideEffects | None = None
    conversations: list[Conversation] = field(default_factory=list)
    turns_unchanged: Rate | None = None


class PartsByName:
    """The parts of a report's records by one name each, which is also their name in the report's file; a mixin."""

    if TYPE_CHECKING:
        behaviour: Behaviour
        control_runs: ControlRuns
        elsewhere: Elsewhere

    @property
    def before(self) -> Rate:
        """The rate of the target label in the untouched model: `behaviour.before`."""
        return self.behaviour.before

    @property
    def after(self) -> Rate:
        """Its rate with the config: `behaviour.after`."""
        return self.behaviour.after

    @property
    def prompts(self) -> list[str]:
        """The prompts: `behaviour.answers.prompts`."""
        return self.behaviour.answers.prompts

    @property
    def responses_before(self) -> list[str]:
        """The untouched model's responses: `behaviour.answers.before`."""
        return self.behaviour.answers.before

    @property
    def responses_after(self) -> list[str]:
        """The responses with the config: `behaviour.answers.after`."""
        return self.behaviour.answers.after

    @property
    def labels_before(self) -> list[str]:
        """The judge's labels of `responses_before`: `behaviour.answers.labels_before`."""
        return self.behaviour.answers.labels_before

    @property
    def labels_after(self) -> list[str]:
        """The judge's labels of `responses_after`: `behaviour.answers.labels_after`."""
        return self.behaviour.answers.labels_after

    @property
    def dose(self) -> list[tuple[float, float]]:
        """(strength, rate) pairs: `behaviour.dose`."""
        return self.behaviour.dose

    @property
    def unclear(self) -> int:
        """Responses of all runs that could not be labelled: `behaviour.unclear`."""
        return self.behaviour.unclear

    @property
    def coherence(self) -> Coherence | None:
        """Which responses are incoherent: `behaviour.coherence`."""
        return self.behaviour.coherence

    @property
    def controls(self) -> list[float]:
        """The rate of the target label under each random control: `control_runs.rates`."""
        return self.control_runs.rates

    @property
    def control_labels(self) -> list[list[str]]:
        """For each control the judge's labels of its responses: `control_runs.labels`."""
        return self.control_runs.labels

    @property
    def control_kind(self) -> str:
        """What controls are matched by, besides their number: `control_runs.kind`."""
        return self.control_runs.kind

    @property
    def seed(self) -> int:
        """The seed of the controls: `control_runs.seed`."""
        return self.control_runs.seed

    @property
    def controls_sharing(self) -> list[bool]:
        """For each control, whether it holds some of the config's own experts: `control_runs.sharing`."""
        return self.control_runs.sharing

    @property
    def sharing(self) -> int:
        """How many controls hold some of the config's own experts: `control_runs.num_sharing`."""
        return self.control_runs.num_sharing

    @property
    def disjoint_chances(self) -> list[float]:
        """Chances of the controls that hold none of its experts: `control_runs.disjoint_chances`."""
        return self.control_runs.disjoint_chances

    @property
    def controls_exhausted(self) -> bool:
        """Whether no more controls exist: `control_runs.exhausted`."""
        return self.control_runs.exhausted

    @property
    def unrelated(self) -> list[str]:
        """The unrelated prompts: `elsewhere.answers.prompts`."""
        return self.elsewhere.answers.prompts

    @property
    def unrelated_before(self) -> list[str]:
        """The untouched model's responses to them: `elsewhere.answers.before`."""
        return self.elsewhere.answers.before

    @property
    def unrelated_after(self) -> list[str]:
        """The responses to them with the config: `elsewhere.answers.after`."""
        return self.elsewhere.answers.after

    @property
    def unrelated_unchanged(self) -> Rate | None:
        """Share of unrelated answers that stay word for word the same: `elsewhere.unchanged`."""
        return self.elsewhere.unchanged

    @property
    def selectivity(self) -> Selectivity | None:
        """The changes on the prompts and on unrelated ones: `elsewhere.selectivity`."""
        return self.elsewhere.selectivity

    @property
    def not_worse(self) -> list[NonInferiority]:
        """Tests that unrelated answers stay as they are or as good: `elsewhere.not_worse`."""
        return self.elsewhere.not_worse

    @property
    def side_effects(self) -> SideEffects | None:
        """Divergence and perplexity on plain texts: `elsewhere.side_effects`."""
        return self.elsewhere.side_effects

    @property
    def conversations(self) -> list[Conversation]:
        """Conversations with the answers before and after: `elsewhere.conversations`."""
        return self.elsewhere.conversations

    @property
    def turns_unchanged(self) -> Rate | None:
        """Share of their answers that stay word for word the same: `elsewhere.turns_unchanged`."""
        return self.elsewhere.turns_unchanged
