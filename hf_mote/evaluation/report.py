"""`EvaluationReport`: what `evaluate_mote` measured, as plain numbers that can be saved and read again."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from hf_mote.evaluation.coherence import coherent_effect
from hf_mote.evaluation.conversations import Conversation
from hf_mote.evaluation.records import Behaviour, ControlRuns, Elsewhere, PartsByName, SideBySide
from hf_mote.evaluation.report_file import FIELDS, read_report
from hf_mote.evaluation.verdict import Outcome, decide, one_fewer
from hf_mote.hub import Shareable, write_json
from hf_mote.mote.config import MoTEConfig
from hf_mote.printing import Printable, Summary, frame_of
from hf_mote.sharing.cards import CardNotes, Evidence, card_header, compose_card, effect_plot
from hf_mote.sharing.privacy import without_places
from hf_mote.statistics.rates import SIGNIFICANT

if TYPE_CHECKING:
    import os
    from typing import Self

    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["EvaluationReport", "Flips", "more_controls", "reaches", "too_few"]

# A rate is a count over prompts, so equal changes differ at most by rounding.
_ROUNDING = 1e-9


class Flips(NamedTuple):
    """Prompts whose label changes.

    Attributes:
        lost (`int`): From the target label to another.
        gained (`int`): From another to the target label: newly refused, say.
        others (`int`): From one other label to another.
    """

    lost: int
    gained: int
    others: int


@dataclass(frozen=True, repr=False)
class EvaluationReport(PartsByName, Printable, Shareable):
    """The measured effects of a config.

    Each part of its records has a name here too: `report.responses_after` is `report.behaviour.answers.after`. The
    report's file and `to_dict` have these names.

    Attributes:
        target (`str`): The label whose rate is reported.
        config (`dict`): The config.
        behaviour (`Behaviour`): The rates before and after, with the responses and their labels.
        control_runs (`ControlRuns`): The rates under random controls.
        elsewhere (`Elsewhere`): What else changes: unrelated answers, plain texts, conversations.
        preregistration (`str`, *optional*): SHA-256 of the file in which all of this was written down before.
        notes (`list[str]`): What an engine could not measure; empty for a model in transformers.
    """

    target: str
    config: dict[str, Any]
    behaviour: Behaviour
    control_runs: ControlRuns = field(default_factory=ControlRuns)
    elsewhere: Elsewhere = field(default_factory=Elsewhere)
    preregistration: str | None = None
    notes: list[str] = field(default_factory=list)

    file_name: ClassVar[str] = "evaluation_report.json"

    @property
    def units(self) -> str:
        """What the config changes: `"experts"`, or `"latents"` of an SAE."""
        return "latents" if "edits" in self.config else "experts"

    @property
    def effect(self) -> float:
        """Change of the rate, -1 to 1."""
        return self.after.rate - self.before.rate

    @property
    def coherent_effect(self) -> float:
        """Change of the rate with every incoherent response counted against it, -1 to 1; see [`coherent_effect`]."""
        if self.coherence is None:
            return self.effect
        return coherent_effect(self.before.rate, self.labels_after, self.coherence.after, self.target)

    @property
    def breaks_text(self) -> bool:
        """Whether the config breaks the text, so that what it changes is no effect; see [`Coherence`]."""
        return self.coherence is not None and self.coherence.broken

    @property
    def incoherence(self) -> str:
        """How many responses are incoherent, in words; empty if none is and the text does not break."""
        seen = self.coherence
        if seen is None or not (seen.broken or any(seen.after)):
            return ""
        share, was = seen.share_after, seen.share_before
        text = f"{share} of the responses with it are incoherent ({was.rate:.1%} of the untouched model's)"
        if seen.unsure is not None and seen.broken:
            text += f", and it is less sure of {seen.unsure:.0%} than the untouched model of others"
        return text

    @property
    def control_effects(self) -> list[float]:
        """The same of each control."""
        if self.coherence is None:
            return [rate - self.before.rate for rate in self.controls]
        runs = zip(self.control_labels, self.coherence.controls, strict=True)
        return [coherent_effect(self.before.rate, labels, broken, self.target) for labels, broken in runs]

    @property
    def p_value(self) -> float | None:
        """Share of controls, itself counted among them, that change the rate at least as much; `None` without any.

        Changes are those of `coherent_effect`. If the experts were picked at random among matched ones, without a look
        at these prompts, it is at most `a` in at most a share `a` of cases, for every `a`: the config and its controls
        are exchangeable then, see [`random_controls`]. It is never below `1 / (1 + number of controls)`.
        """
        others = self.control_effects
        if not others:
            return None
        return (1 + sum(reaches(effect, self.coherent_effect) for effect in others)) / (1 + len(others))

    @property
    def disjoint_p(self) -> float | None:
        """Like `p_value`, against the controls alone that hold none of the config's own experts; `None` without any.

        A control that holds an expert of the config can do what it does because of that expert. That makes `p_value`
        large for a config that works. If no expert has more effect than another except by chance, it
        is calibrated as `p_value` is, and allows for controls that overlap each other; see [`chance_of_reach`]. It
        shows that these experts do more than others. It does not show that a random choice would not have found one of
        them, which `p_value` does.
        """
        found = self._disjoint
        return None if found is None else found[0]

    @property
    def _disjoint(self) -> tuple[float, float] | None:
        """`disjoint_p`, and its value with one fewer control that reaches the effect."""
        if len(self.controls_sharing) != len(self.controls):
            return None
        pairs = zip(self.control_effects, self.controls_sharing, strict=True)
        others = [effect for effect, shares in pairs if not shares]
        if not others:
            return None
        reached = sum(reaches(effect, self.coherent_effect) for effect in others)
        chances = self.disjoint_chances or [(1 + few) / (1 + len(others)) for few in range(len(others) + 1)]
        return chances[reached], chances[max(0, reached - 1)]

    @property
    def flips(self) -> Flips | None:
        """Prompts whose label the config changes, both ways; `None` in a report without labels."""
        return self._flips(self.labels_after) if self.labels_before and self.labels_after else None

    @property
    def control_flips(self) -> list[Flips]:
        """The same of each control: how many labels change by chance; empty in a report without labels."""
        return [self._flips(labels) for labels in self.control_labels] if self.labels_before else []

    def _flips(self, after: list[str]) -> Flips:
        pairs = list(zip(self.labels_before, after, strict=True))
        lost = sum(one == self.target != other for one, other in pairs)
        gained = sum(one != self.target == other for one, other in pairs)
        return Flips(lost, gained, sum(one != other for one, other in pairs) - lost - gained)

    def outcome(self, adjusted_p: float | None = None) -> Outcome:
        """Return the outcome for the config by [`decide`].

        If some controls share experts with it, it is compared with the others, and incoherent responses count against
        it. It is also undecided if it beats its controls but its responses cannot be
        classified as coherent or incoherent: `doubt` states this, and more controls would not decide.

        Args:
            adjusted_p (`float`, *optional*): p against all controls, adjusted for other configs that were tried.
        """
        said = self._held(adjusted_p)
        return "undecided" if said == "beats" and self.coherence is not None and self.coherence.doubtful else said

    def _held(self, adjusted_p: float | None) -> Outcome:
        """Compare the config with its controls, and its responses with all references."""
        counted = self.after if self.coherence is None else self.coherence.counted
        apart = counted.high < self.before.low or counted.low > self.before.high
        p = self.p_value if adjusted_p is None else adjusted_p
        p_less = one_fewer(p, len(self.controls))
        if adjusted_p is None and self.sharing:
            found = self._disjoint
            p, p_less = (None, 0.0) if found is None else found
        said = decide(p, p_less, apart=apart, broken=self.breaks_text)
        # No disjoint control reaches the effect, but they overlap, or are too few, for a significant p.
        short = adjusted_p is None and self.sharing > 0 and p is not None and p_less == p
        return "undecided" if short and apart and said == "does not beat" else said

    @property
    def doubt(self) -> str:
        """Why it is undecided though it beats its controls: its responses may be incoherent. Otherwise empty."""
        return self.doubted()

    def doubted(self, adjusted_p: float | None = None) -> str:
        """Return `doubt`, with the p of `outcome`.

        Args:
            adjusted_p (`float`, *optional*): p against all controls, adjusted for other configs that were tried.
        """
        seen = self.coherence
        if seen is None or not seen.doubtful or seen.unsure is None or self._held(adjusted_p) != "beats":
            return ""
        return (
            f"it is less sure of {seen.unsure:.0%} of what it writes than the untouched model of its answers to "
            "unrelated prompts, which is too much for coherent text and too little for incoherent text: give "
            "unrelated prompts of this kind that the model answers well, and read the responses"
        )

    def beats_controls(self, adjusted_p: float | None = None) -> bool:
        """Return whether the config beats its controls, by `outcome`: never if it breaks the text.

        Args:
            adjusted_p (`float`, *optional*): p against all controls, adjusted for other configs that were tried.
        """
        return self.outcome(adjusted_p) == "beats"

    @property
    def verdict(self) -> str:
        """One or two sentences: whether the config beats its controls, with the numbers, or why this is undecided."""
        change = f"{self.target} goes from {self.before} to {self.after}{self._other_weights}"
        outcome, doubt, incoherence = self.outcome(), self.doubt, self.incoherence
        if self.p_value is None:
            text = f"{change}; without random controls that says nothing about these {self.units}"
            return f"{text}; {incoherence}." if incoherence else f"{text}."
        mean = fmean(self.controls)
        against = f"under {len(self.controls)} random controls it is {mean:.1%} on average (p = {self.p_value:.3g})"
        said = {
            "beats": "beats its controls",
            "undecided": (
                "may beat its controls, or write incoherent text"
                if doubt
                else f"may beat its controls, or not, {more_controls(len(self.controls), self.controls_exhausted)}"
            ),
            "breaks the text": "breaks the text, which is not an effect on the behaviour",
            "untested": "cannot be held against these controls",
        }.get(outcome, "does not beat its controls")
        verdict = f"The config {said}: "
        verdict += (
            f"{incoherence}; {change}, while {against}"
            if outcome == "breaks the text"
            else f"{change}, while {against}"
        )
        if self.sharing:
            verdict += f"; {self.sharing} of them hold some of its own {self.units}, as there are too few others"
            if self.disjoint_p is not None:
                verdict += f" (against the other {len(self.controls) - self.sharing} alone p = {self.disjoint_p:.3g})"
        if too_few(len(self.controls) - self.sharing):
            verdict += f"; {too_few(len(self.controls) - self.sharing)}"
        if incoherence and outcome != "breaks the text":
            verdict += f"; {incoherence}, and count against it"
        if doubt:
            verdict += f"; {doubt}"
        if self.unclear:
            verdict += f"; {self.unclear} responses of all runs could not be judged"
        if self.selectivity is not None and self.selectivity.p_value is not None:
            verdict += f"; {self.selectivity}"
        return f"{verdict}."

    @property
    def _other_weights(self) -> str:
        """A note for the verdict that the model is not the one that the config was made for."""
        note = MoTEConfig.from_dict(self.config).on_other_weights if "suppress" in self.config else None
        return "" if note is None else f" ({note})"

    def to_pandas(self) -> DataFrame:
        """Return a `pandas.DataFrame` with a row for each prompt: its responses and labels, before and after."""
        columns = {
            "prompt": self.prompts,
            "response_before": self.responses_before,
            "label_before": self.labels_before,
            "response_after": self.responses_after,
            "label_after": self.labels_after,
        }
        return frame_of({name: values for name, values in columns.items() if len(values) == len(self.prompts)})

    def plot(self, *, path: str | os.PathLike[str] | None = None) -> Figure:
        """Return the rate before and after with its controls, as [`~hf_mote.plots.plot_effect`] draws it.

        Args:
            path (`str` or `os.PathLike`, *optional*): Where to write it, as PNG, SVG or PDF by its ending.
        """
        from hf_mote.plots import EffectRow, plot_effect

        before, after = self.before, self.after
        rows = [
            EffectRow("untouched", before.rate, before.low, before.high, None, before.n),
            EffectRow("with the config", after.rate, after.low, after.high, self.controls, after.n),
        ]
        return plot_effect(rows, rate_name=f"responses of class {self.target!r}".replace("$", r"\$"), path=path)

    def _summary(self) -> Summary:
        facts = {"verdict": self.verdict, "before": f"{self.before}", "after": f"{self.after}"}
        if self.controls:
            low, high = min(self.controls), max(self.controls)
            facts[f"{len(self.controls)} random controls"] = f"{fmean(self.controls):.1%} [{low:.1%} to {high:.1%}]"
        if self.unrelated_unchanged is not None:
            facts["unrelated answers unchanged"] = f"{self.unrelated_unchanged}"
        if self.side_effects is not None:
            facts["side effects"] = f"{self.side_effects}"
        if self.notes:
            facts["not measured"] = "; ".join(self.notes)
        return Summary(f"EvaluationReport: {self.target!r} on {self.before.n} prompts", facts)

    def to_dict(self) -> dict[str, Any]:
        """Return the parts of the records by name, the effect, the p value and the verdict, JSON-native."""
        parts = {name: _plain(getattr(self, name)) for name in FIELDS}
        derived = {
            "effect": self.effect,
            "coherent_effect": self.coherent_effect,
            "p_value": self.p_value,
            "outcome": self.outcome(),
            "verdict": self.verdict,
        }
        return {**parts, **derived}

    def _to_file(self, path: Path) -> None:
        write_json(path, self.to_dict(), limit=None)

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        return cls(**read_report(path))

    def _texts(self) -> list[str]:
        asked = [(one.prompts, one.before, one.after) for one in (self.behaviour.answers, self.elsewhere.answers)]
        talks = [(one.turns, one.answers_before, one.answers_after) for one in self.conversations]
        return [text for sides in (*asked, *talks) for texts in sides for text in texts]

    def _public(self, *, with_texts: bool) -> Self:
        shared = dataclasses.replace(self, config=without_places(self.config))
        if with_texts:
            return shared
        labels = SideBySide(labels_before=self.labels_before, labels_after=self.labels_after)
        talks = [dataclasses.replace(one, **_without_words(one)) for one in self.conversations]
        return dataclasses.replace(
            shared,
            behaviour=dataclasses.replace(self.behaviour, answers=labels),
            elsewhere=dataclasses.replace(self.elsewhere, answers=SideBySide(), conversations=talks),
        )

    def _evidence(self) -> Evidence:
        rows = [("untouched", f"{self.before}"), ("with the config", f"{self.after}")]
        if self.controls:
            least, most = min(self.controls), max(self.controls)
            rows.append(
                (
                    f"{len(self.controls)} random controls",
                    f"{fmean(self.controls):.1%} on average, {least:.1%} to {most:.1%}",
                )
            )
        rows += [(f"strength {strength:g}", f"{rate:.1%}") for strength, rate in self.dose]
        table = "\n".join(f"| {name} | {value} |" for name, value in rows)
        effect = f"{self.verdict}\n\n| | responses of class {self.target!r} |\n| --- | --- |\n{table}"
        sides = []
        if (flips := self.flips) is not None:
            sides.append(f"- prompts newly of class {self.target!r}: {flips.gained} of {self.before.n}")
        if self.unrelated_unchanged is not None:
            sides.append(f"- answers to other prompts that stay word for word the same: {self.unrelated_unchanged}")
        if self.turns_unchanged is not None:
            sides.append(f"- answers in conversations that stay word for word the same: {self.turns_unchanged}")
        if self.side_effects is not None:
            sides.append(f"- on plain texts: {self.side_effects}")
        sides += [f"- not measured: {note}" for note in self.notes]
        name = f"{self.target} rate"
        results = [(f"{name}, untouched", self.before.rate), (f"{name}, with the config", self.after.rate)]
        if self.controls:
            results.append((f"{name}, random controls", fmean(self.controls)))
        if self.p_value is not None:
            results.append(("p against random controls", self.p_value))
        if self.unrelated_unchanged is not None:
            results.append(("other answers unchanged", self.unrelated_unchanged.rate))
        bars: list[tuple[str, float, float, float, list[float] | None]] = [
            ("untouched", self.before.rate, self.before.low, self.before.high, None),
            ("with the config", self.after.rate, self.after.low, self.after.high, self.controls or None),
        ]
        return Evidence(
            sections={
                "Effect and controls": effect,
                "Side effects": "\n".join(sides) or "None were measured.",
            },
            results=results,
            measured_on=f"{self.before.n} prompts",
            pictures=[effect_plot(bars, rate_name=f"responses of class {self.target!r}")],
        )

    def _card(self, notes: CardNotes, evidence: Sequence[Evidence]) -> str:
        header = card_header(tags=["evaluation"], notes=notes, evidence=evidence, name="MoTE config")
        return compose_card(
            header,
            "Evaluation of a MoTE config",
            self.verdict,
            load='import hf_mote\n\nhf_mote.EvaluationReport.from_pretrained("<this repository or folder>")',
            notes=notes,
            evidence=evidence,
            intended_use="Reading what a config does, and comparing it with one's own measurement.",
            misuse="Rates are those of one judge on one set of prompts.",
        )


def _plain(value: Any) -> Any:
    """Return a part as dictionaries, lists, texts and numbers."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return copy.deepcopy(value)


def _without_words(one: Conversation) -> dict[str, Any]:
    """Fields of a conversation without texts, with only which answers stayed the same."""
    return {
        "turns": ["-"] * len(one.turns),
        "answers_before": ["-"] * len(one.answers_before),
        "answers_after": ["-" if same else "=/=" for same in one.unchanged],
        "id": None,
    }


def reaches(change: float, effect: float) -> bool:
    """Return whether a change of a rate is as large as an effect, in either direction.

    Args:
        change (`float`): A control's, -1 to 1.
        effect (`float`): The config's.
    """
    return abs(change) >= abs(effect) - _ROUNDING


def more_controls(num_controls: int, exhausted: bool) -> str:
    """Return whether more controls would decide, as a clause.

    Args:
        num_controls (`int`): How many there were.
        exhausted (`bool`): Whether no more exist.
    """
    if exhausted:
        return "and no more of them exist to tell"
    return f"which more of them would tell ({max(100, 2 * num_controls)}, say)"


def too_few(num_controls: int) -> str:
    """Return a note that there are too few controls, or an empty text.

    Args:
        num_controls (`int`): How many, 0 or more.
    """
    if 1 / (1 + num_controls) <= SIGNIFICANT:
        return ""
    return f"with {num_controls} control{'s' * (num_controls != 1)} p cannot be below {1 / (1 + num_controls):.3g}"
