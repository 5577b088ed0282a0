"""A sweep: a report for each setting of one ranking, with p adjusted for having tried them all."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import ConfigError, one_of, real, whole
from hf_mote.evaluation.evaluate import evaluate_settings
from hf_mote.evaluation.report import EvaluationReport, more_controls, reaches, too_few
from hf_mote.evaluation.verdict import Outcome
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.chat import Prompt
from hf_mote.hub import public_name
from hf_mote.judges.judge import Judge
from hf_mote.mote.config import MoTEConfig
from hf_mote.printing import Printable, Summary, frame_of, short
from hf_mote.routing.sites.routed_model import RoutedModel

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Ranked", "Setting", "Sweep", "settings_of", "sweep_mote"]

ACTIONS = ("suppress", "stimulate")
_SHARES = ("before", "after", "incoherent", "coherent_effect", "controls")


class Ranked(Protocol):
    """A ranking of experts, as `ExpertRanking` is one."""

    @property
    def method(self) -> str:
        """How the experts were ranked."""

    @property
    def target(self) -> Any:
        """What they were ranked for."""

    def to_config(self, *, suppress: int | None = None, stimulate: int | None = None, **fields: Any) -> MoTEConfig:
        """Return the config of the first experts."""


class Setting(NamedTuple):
    """One setting of a sweep and its report.

    Attributes:
        num_experts (`int`): How many of the first experts were suppressed or stimulated.
        strength (`float`): The strength.
        report (`EvaluationReport`): Its report.
    """

    num_experts: int
    strength: float
    report: EvaluationReport

    def __str__(self) -> str:
        which = "the first expert" if self.num_experts == 1 else f"the first {self.num_experts} experts"
        return f"{which} at strength {self.strength:g}"

    @property
    def incoherent(self) -> float | None:
        """Share of the responses that are incoherent; `None` where this was not measured."""
        return None if self.report.coherence is None else self.report.coherence.share_after.rate


class Sweep(NamedTuple):
    """A sweep over settings of one ranking, each with as many random controls.

    Attributes:
        model (`str`): The model's name.
        source (`str`): Where the ranking comes from: its method and target.
        action (`str`): "suppress" or "stimulate".
        settings (`list[Setting]`): One or more.
    """

    model: str
    source: str
    action: str
    settings: list[Setting]

    @property
    def adjusted_p(self) -> list[float | None]:
        """The p value of each setting, adjusted for having tried them all; `None` without controls.

        It is the p of the coherent effect: the change of the rate with every incoherent response counted against it,
        of the setting and of its controls alike; see `EvaluationReport.coherent_effect`. A setting is compared with
        the largest such change that each control makes over all settings, those that break the text among them, so
        that which of them do is no choice that p would have to allow for. Control `b` of every setting comes from one
        exchange of experts, so that its settings hold each other as the ranking's do; see [`evaluate_settings`].

        Guaranteed: if the ranking is random, so that any matched experts could have stood at its places, the
        chance that any setting gets 0.05 or less is at most 0.05. Not guaranteed: if the first experts have an
        effect, a larger setting that holds them has it, too, which shows nothing about its other experts.

        Source: Westfall and Young (1993), "Resampling-Based Multiple Testing", single-step max-T; what differs here:
        random experts in the place of permuted labels.
        """
        changes = [[abs(effect) for effect in s.report.control_effects] for s in self.settings]
        if not changes[0]:
            return [None] * len(self.settings)
        largest = [max(column) for column in zip(*changes, strict=True)]
        reach = [sum(reaches(most, s.report.coherent_effect) for most in largest) for s in self.settings]
        return [(1 + count) / (1 + len(largest)) for count in reach]

    @property
    def beating(self) -> list[Setting]:
        """The settings that beat their controls by adjusted p: intervals apart, coherent text, no control decides."""
        pairs = zip(self.settings, self.adjusted_p, strict=True)
        return [setting for setting, p in pairs if setting.report.beats_controls(p)]

    @property
    def most(self) -> Setting:
        """The setting of the largest coherent effect among those that leave the text whole; of all, if none does."""
        return max(self.settings, key=lambda one: (not one.report.breaks_text, abs(one.report.coherent_effect)))

    @property
    def smallest(self) -> Setting | None:
        """The smallest of `beating`, if there is one."""
        return min(self.beating, key=_size, default=None)

    @property
    def breaking(self) -> list[Setting]:
        """The settings that break the text: what they change is no effect on the behaviour."""
        return [setting for setting in self.settings if setting.report.breaks_text]

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcome of each setting by adjusted p, as `EvaluationReport.outcome` has it."""
        pairs = zip(self.settings, self.adjusted_p, strict=True)
        return [setting.report.outcome(p) for setting, p in pairs]

    @property
    def verdict(self) -> str:
        """The smallest setting that beats its controls, or that none does, and which break the text, in sentences."""
        least, number = self.smallest, len(self.settings)
        controls = len(self.settings[0].report.controls)
        said = []
        if least is not None:
            p, mean = self.adjusted_p[self.settings.index(least)], fmean(least.report.controls)
            said.append(
                f"{len(self.beating)} of {number} settings beat their {controls} random controls. The smallest is "
                f"{least}: {_change(least)}, under its controls to {mean:.1%} on average (p = {p:.3g}, adjusted for "
                f"the {number} settings){_counted(least)}."
            )
        elif controls:
            few = too_few(controls)
            said.append(f"No setting of {number} beats its {controls} random controls{few and f'; {few}'}.")
        if self.most is not least and not self.most.report.breaks_text:
            p = self.adjusted_p[self.settings.index(self.most)]
            known = "" if p is None else f" (adjusted p = {p:.3g})"
            against = "" if controls else "; without random controls that says nothing about these experts"
            change = _change(self.most) if least is None else f"to {self.most.report.after}"
            said.append(f"Most is changed by {self.most}: {change}{known}{_counted(self.most)}{against}.")
        said += [self._broken, self._undecided, self._held]
        if missed := self.settings[0].report.unclear:
            said.append(f"{missed} responses of all runs could not be judged.")
        return " ".join(filter(None, said))

    @property
    def _broken(self) -> str:
        """How many settings break the text, and the smallest of them."""
        if not self.breaking:
            return ""
        least, number = min(self.breaking, key=_size), len(self.breaking)
        which = f"{number} of {len(self.settings)} settings break{'s' * (number == 1)} the text"
        return (
            f"{which}, which is not an effect on the behaviour; the smallest is {least}: {least.report.incoherence}, "
            f"where {_change(least)}."
        )

    @property
    def _undecided(self) -> str:
        """What would decide the smallest undecided setting, where none beats its controls."""
        left = [one for one, said in zip(self.settings, self.outcomes, strict=True) if said == "undecided"]
        if self.beating or not left:
            return ""
        least = min(left, key=_size)
        report, p = least.report, self.adjusted_p[self.settings.index(least)]
        if doubt := report.doubted(p):
            return f"Undecided is {least}: it may beat its controls, or write incoherent text; {doubt}."
        more = more_controls(len(report.controls), report.controls_exhausted)
        return f"Undecided is {least}: it may beat its controls, or not, {more}."

    @property
    def _held(self) -> str:
        """How many controls hold some of the experts of their own setting, where none beats its controls."""
        sharing = max(setting.report.sharing for setting in self.settings)
        if self.beating or not sharing:
            return ""
        exhausted = ", and no more controls exist" if self.settings[0].report.controls_exhausted else ""
        which = "control of a setting holds" if sharing == 1 else "controls of a setting hold"
        return f"Up to {sharing} {which} some of its own experts, as there are too few others{exhausted}."

    def _columns(self) -> dict[str, list[Any]]:
        reports = [setting.report for setting in self.settings]
        return {
            "experts": [setting.num_experts for setting in self.settings],
            "strength": [setting.strength for setting in self.settings],
            "before": [report.before.rate for report in reports],
            "after": [report.after.rate for report in reports],
            "incoherent": [setting.incoherent for setting in self.settings],
            "coherent_effect": [report.coherent_effect for report in reports],
            "controls": [fmean(report.controls) if report.controls else None for report in reports],
            "p": [report.p_value for report in reports],
            "adjusted_p": self.adjusted_p,
            "outcome": self.outcomes,
            "beats_controls": [outcome == "beats" for outcome in self.outcomes],
        }

    def to_pandas(self) -> DataFrame:
        """Return a `pandas.DataFrame` with a row for each setting."""
        return frame_of(self._columns())

    def __repr__(self) -> str:
        return repr(_Printed(self))

    def _repr_html_(self) -> str:
        return _Printed(self)._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, JSON-native."""
        rows = [
            {
                "num_experts": s.num_experts,
                "strength": s.strength,
                "before": s.report.before.rate,
                "after": s.report.after.rate,
                "interval": [s.report.after.low, s.report.after.high],
                "incoherent": s.incoherent,
                "coherent_effect": s.report.coherent_effect,
                "controls": list(s.report.controls),
                "p_value": s.report.p_value,
                "adjusted_p": p,
                "outcome": outcome,
                "beats_controls": outcome == "beats",
            }
            for s, p, outcome in zip(self.settings, self.adjusted_p, self.outcomes, strict=True)
        ]
        return {"source": self.source, "action": self.action, "verdict": self.verdict, "settings": rows}


def settings_of(
    ranking: Ranked,
    num_experts: Sequence[int] = (1, 2, 5, 10),
    strengths: Sequence[float] = (1.0,),
    *,
    action: str = "suppress",
    suppress_mode: str = "drop",
) -> dict[tuple[int, float], MoTEConfig]:
    """Return the config of each setting of a sweep, by number of experts and strength.

    Args:
        ranking (`ExpertRanking`): Whose first experts are taken.
        num_experts (`Sequence[int]`, *optional*, defaults to `(1, 2, 5, 10)`): How many of them.
        strengths (`Sequence[float]`, *optional*, defaults to `(1.0,)`): At which strengths.
        action (`str`, *optional*, defaults to `"suppress"`): `"suppress"` or `"stimulate"`.
        suppress_mode (`str`, *optional*, defaults to `"drop"`): As in [`MoTEConfig`].

    Raises:
        [`ConfigError`], [`UnknownNameError`]: if a number is out of range, or there is nothing to try.
    """
    one_of("sweep_mote.action", action, ACTIONS)
    numbers = [whole("sweep_mote.num_experts", number, least=1) for number in num_experts]
    doses = [real("sweep_mote.strengths", strength, above=0) for strength in strengths]
    if not numbers or not doses:
        raise ConfigError("sweep_mote", "nothing to try", got=f"num_experts {numbers}, strengths {doses}")
    found = {}
    for number, strength in product(numbers, doses):
        fields: dict[str, Any] = {action: number, "suppress_mode": suppress_mode, "strength": strength}
        found[number, strength] = ranking.to_config(**fields)
    return found


def sweep_mote(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ranking: Ranked,
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    num_experts: Sequence[int] = (1, 2, 5, 10),
    strengths: Sequence[float] = (1.0,),
    action: Literal["suppress", "stimulate"] = "suppress",
    suppress_mode: Literal["drop", "reroute", "zero"] = "drop",
    target: object = None,
    num_controls: int = 60,
    control_kind: Literal["layer", "usage"] = "layer",
    seed: int = 0,
    confidence: float = 0.95,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    groups: Sequence[Hashable] | None = None,
    allow_other_weights: bool = False,
    run_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Sweep:
    """Suppress or stimulate 1, 2, 5, 10, ... of a ranking's first experts, at each strength, against random controls.

    Args:
        model (`PreTrainedModel`):
            A mixture-of-experts language model; left as it is.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        ranking (`ExpertRanking`):
            Whose first experts are tried.
        prompts (`Sequence[str]` or chats):
            Prompts that the ranking has not seen.
        judge (`Callable`):
            As in [`evaluate_mote`].
        num_experts (`Sequence[int]`, *optional*, defaults to `(1, 2, 5, 10)`):
            How many of the first experts.
        strengths (`Sequence[float]`, *optional*, defaults to `(1.0,)`):
            At which strengths.
        action (`str`, *optional*, defaults to `"suppress"`):
            `"suppress"` or `"stimulate"`.
        suppress_mode (`str`, *optional*, defaults to `"drop"`):
            As in [`MoTEConfig`].
        target (*optional*):
            Label whose rate is measured, as in [`evaluate_mote`].
        num_controls (`int`, *optional*, defaults to 60):
            Random controls of each setting; more than [`evaluate_mote`] draws, as p is adjusted for the settings.
        control_kind (`str`, *optional*, defaults to `"layer"`):
            `"layer"` or `"usage"`, as in [`evaluate_mote`].
        seed (`int`, *optional*, defaults to 0):
            Seed of the controls, and of sampled responses.
        confidence (`float`, *optional*, defaults to 0.95):
            Confidence of the intervals.
        batch_size (`int`, *optional*, defaults to 16):
            Prompts that run together.
        max_new_tokens (`int`, *optional*, defaults to 64):
            Longest response, in tokens.
        system_prompt (`str`, *optional*):
            First message of every prompt that is a text.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of the chat template.
        generate_kwargs (`Mapping`, *optional*):
            Further arguments of `generate`; decoding is greedy by default.
        groups (`Sequence`, *optional*):
            One key for each prompt, by which the intervals are; see [`evaluate_mote`].
        allow_other_weights (`bool`, *optional*, defaults to `False`):
            Try the ranking of a model on one of the same shape with other weights, as its fine-tune. The reports then
            state it.
        run_folder (`str` or `os.PathLike`, *optional*):
            Where responses are kept as they come, so that a killed run continues; see [`evaluate_mote`].
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        [`Sweep`]: a report for each setting, with adjusted p and a verdict over all.

    Raises:
        [`ConfigError`]: if a number is out of range, before anything runs.

    Example:

    ```python
    from hf_mote import attribute_experts, load_organism, sweep_mote

    organism = load_organism("refusal")
    prompts = organism.prompts["train"]["sensitive"]
    refusal = "I am sorry, but I cannot talk about that."
    ranking = attribute_experts(
        organism.model, organism.tokenizer, prompts[:4], refusal, "Berlin, Germany", progress=False
    )
    found = sweep_mote(
        organism.model, organism.tokenizer, ranking, prompts[4:8], organism.judge, num_experts=[2, 4],
        num_controls=2, max_new_tokens=8, progress=False,
    )
    assert [setting.num_experts for setting in found.settings] == [2, 4]
    ```
    """
    configs = settings_of(ranking, num_experts, strengths, action=action, suppress_mode=suppress_mode)
    if allow_other_weights:
        routed = RoutedModel(model)
        configs = {setting: config.for_other_weights_of(routed) for setting, config in configs.items()}
    reports = evaluate_settings(
        model,
        Chat(tokenizer, system_prompt, chat_template_kwargs),
        list(configs.values()),
        prompts,
        judge,
        Decoding(max_new_tokens, generate_kwargs, batch_size, seed),
        target=target,
        num_controls=num_controls,
        control_kind=control_kind,
        confidence=confidence,
        groups=groups,
        run_folder=run_folder,
        progress=progress,
    )
    settings = [Setting(*setting, report) for setting, report in zip(configs, reports, strict=True)]
    name = public_name(model.config.name_or_path) or str(model.config.model_type)
    return Sweep(name, f"{ranking.method} for {ranking.target!r}", action, settings)


class _Printed(Printable):
    """The printed form of a sweep; a named tuple cannot have a mixin."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep

    def _summary(self) -> Summary:
        columns = self.sweep._columns()
        del columns["beats_controls"]  # the outcome says it
        shown = {name: [_cell(name, value) for value in values] for name, values in columns.items()}
        number = len(self.sweep.settings)
        title = f"Sweep: {number} settings, experts by {self.sweep.source}"
        return Summary(title, {"verdict": self.sweep.verdict}, shown, number)


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or name not in _SHARES:
        return short(value)
    return f"{value:+.1%}" if name == "coherent_effect" and value else f"{abs(value):.1%}"


def _size(setting: Setting) -> tuple[int, float]:
    return setting.num_experts, setting.strength


def _change(setting: Setting) -> str:
    report = setting.report
    return f"{report.target} goes from {report.before} to {report.after}"


def _counted(setting: Setting) -> str:
    """Return how many responses count against a setting's effect, as a clause."""
    return f"; {setting.report.incoherence}, and count against it" if setting.report.incoherence else ""
