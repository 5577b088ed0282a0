"""`EvaluationReport`: what `evaluate_mote` measured, as plain numbers that can be saved and read again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from hf_mote.errors import DataError, FileFormatError
from hf_mote.evaluation.controls import CONTROL_KINDS
from hf_mote.evaluation.conversations import Conversation
from hf_mote.evaluation.side_effects import SideEffects
from hf_mote.hub import RESULT_LIMIT, Shareable, read_json, write_json
from hf_mote.mote.config import MoTEConfig
from hf_mote.sharing.cards import CardNotes, Evidence, card_header, compose_card, effect_plot
from hf_mote.sharing.privacy import without_places
from hf_mote.statistics.rates import SIGNIFICANT, Rate

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["EvaluationReport", "Flips", "reaches", "too_few"]

# A rate is a count over prompts, so that equal changes differ by rounding at most.
_ROUNDING = 1e-9
_TEXTS = (
    *("prompts", "responses_before", "responses_after"),
    *("unrelated", "unrelated_before", "unrelated_after"),
    *("labels_before", "labels_after"),
)
# What an earlier report may leave out.
_LATER_FIELDS: dict[str, Any] = {
    "conversations": [],
    "turns_unchanged": None,
    "unclear": 0,
    "labels_before": [],
    "labels_after": [],
    "sharing": 0,
    "controls_sharing": [],
    "control_labels": [],
}


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


@dataclass(frozen=True)
class EvaluationReport(Shareable):
    """What a config does, measured.

    Attributes:
        target (`str`): The label whose rate is reported.
        before (`Rate`): Its rate in the untouched model.
        after (`Rate`): Its rate with the config.
        controls (`list[float]`): Its rate under each random control.
        unrelated_unchanged (`Rate`, *optional*): Share of unrelated answers that stay word for word the same.
        dose (`list[tuple[float, float]]`): (strength, rate) pairs.
        config (`dict`): The config.
        prompts (`list[str]`): The prompts.
        responses_before (`list[str]`): The untouched model's responses.
        responses_after (`list[str]`): Those with the config.
        seed (`int`): Seed of the controls.
        control_kind (`str`): What the controls are matched by beside their number: `"layer"`, or `"usage"` too.
        unclear (`int`): Responses, of all runs on the prompts, that the judge could not label, as [`ServerJudge`] says
            of a reply that it cannot read. They do not count as `target`.
        labels_before (`list[str]`): The judge's labels of `responses_before`.
        labels_after (`list[str]`): Those of `responses_after`.
        sharing (`int`): Controls that hold some of the config's own experts, as they may where experts are few.
        controls_sharing (`list[bool]`): For each control, whether it is one of these.
        control_labels (`list[list[str]]`): For each control the judge's labels of its responses.
        unrelated (`list[str]`): The unrelated prompts.
        unrelated_before (`list[str]`): The untouched model's responses to them.
        unrelated_after (`list[str]`): Those with the config.
        side_effects (`SideEffects`, *optional*): Divergence and perplexity on plain texts.
        conversations (`list[Conversation]`): Conversations with the answers before and after.
        turns_unchanged (`Rate`, *optional*): Share of their answers that stay word for word the same. A later answer
            can change because an earlier one did.
    """

    target: str
    before: Rate
    after: Rate
    controls: list[float]
    unrelated_unchanged: Rate | None
    config: dict[str, Any]
    dose: list[tuple[float, float]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    responses_before: list[str] = field(default_factory=list)
    responses_after: list[str] = field(default_factory=list)
    seed: int = 0
    control_kind: str = "layer"
    unrelated: list[str] = field(default_factory=list)
    unrelated_before: list[str] = field(default_factory=list)
    unrelated_after: list[str] = field(default_factory=list)
    side_effects: SideEffects | None = None
    conversations: list[Conversation] = field(default_factory=list)
    turns_unchanged: Rate | None = None
    unclear: int = 0
    labels_before: list[str] = field(default_factory=list)
    labels_after: list[str] = field(default_factory=list)
    sharing: int = 0
    controls_sharing: list[bool] = field(default_factory=list)
    control_labels: list[list[str]] = field(default_factory=list)

    file_name: ClassVar[str] = "evaluation_report.json"

    @property
    def effect(self) -> float:
        """Change of the rate, -1 to 1."""
        return self.after.rate - self.before.rate

    @property
    def p_value(self) -> float | None:
        """Share of controls, itself counted among them, that change the rate at least as much; `None` without any.

        If the experts were picked at random among matched ones, without a look at these prompts, it is at most `a` in
        at most a share `a` of cases, for every `a`: the config and its controls are exchangeable then, see
        [`random_controls`]. It is never below `1 / (1 + number of controls)`.
        """
        if not self.controls:
            return None
        as_far = sum(reaches(rate - self.before.rate, self.effect) for rate in self.controls)
        return (1 + as_far) / (1 + len(self.controls))

    @property
    def disjoint_p(self) -> float | None:
        """Like `p_value`, against the controls alone that hold none of the config's own experts; `None` without any.

        A control that holds an expert of the config can do what it does because of that expert. That makes `p_value`
        large for a config that works, and this the number to look at beside it. It does not have the guarantee of
        `p_value`: which controls it is taken over depends on the config.
        """
        if len(self.controls_sharing) != len(self.controls):
            return None
        pairs = zip(self.controls, self.controls_sharing, strict=True)
        others = [rate for rate, shares in pairs if not shares]
        if not others:
            return None
        as_far = sum(reaches(rate - self.before.rate, self.effect) for rate in others)
        return (1 + as_far) / (1 + len(others))

    @property
    def flips(self) -> Flips | None:
        """Prompts whose label the config changes, both ways; `None` in a report that holds no labels."""
        return self._flips(self.labels_after) if self.labels_before and self.labels_after else None

    @property
    def control_flips(self) -> list[Flips]:
        """The same of each control: how much labels flip by chance; empty in a report that holds no labels."""
        return [self._flips(labels) for labels in self.control_labels] if self.labels_before else []

    def _flips(self, after: list[str]) -> Flips:
        pairs = list(zip(self.labels_before, after, strict=True))
        lost = sum(one == self.target != other for one, other in pairs)
        gained = sum(one != self.target == other for one, other in pairs)
        return Flips(lost, gained, sum(one != other for one, other in pairs) - lost - gained)

    def beats_controls(self, adjusted_p: float | None = None) -> bool:
        """Return whether the config beats its controls: intervals before and after apart, and p at most 0.05.

        That takes 19 controls or more, of which none comes as far (with 39 or more, a few may).

        Args:
            adjusted_p (`float`, *optional*, defaults to `p_value`): p, adjusted for other configs that were tried.
        """
        apart = self.after.high < self.before.low or self.after.low > self.before.high
        p = self.p_value if adjusted_p is None else adjusted_p
        return apart and p is not None and p <= SIGNIFICANT

    @property
    def verdict(self) -> str:
        """One sentence: whether the config beats its controls, with the numbers, or that so few cannot show it."""
        change = f"{self.target} goes from {self.before} to {self.after}{self._other_weights}"
        if self.p_value is None:
            return f"{change}; without random controls that says nothing about these experts."
        mean = fmean(self.controls)
        against = f"under {len(self.controls)} random controls it is {mean:.1%} on average (p = {self.p_value:.3g})"
        beats = "beats" if self.beats_controls() else "does not beat"
        verdict = f"The config {beats} its controls: {change}, while {against}"
        if self.sharing:
            verdict += f"; {self.sharing} of them hold some of its own experts, as its layers have too few others"
            if self.disjoint_p is not None:
                verdict += f" (against the other {len(self.controls) - self.sharing} alone p = {self.disjoint_p:.3g})"
        if too_few(len(self.controls)):
            verdict += f"; {too_few(len(self.controls))}"
        if self.unclear:
            verdict += f"; {self.unclear} responses of all runs could not be judged"
        return f"{verdict}."

    @property
    def _other_weights(self) -> str:
        """In the verdict's words, that the model is not the one that the config was made for."""
        note = MoTEConfig.from_dict(self.config).on_other_weights if "suppress" in self.config else None
        return "" if note is None else f" ({note})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, the effect, the p value and the verdict, JSON-native."""
        derived = {"effect": self.effect, "p_value": self.p_value, "verdict": self.verdict}
        return {**dataclasses.asdict(self), **derived}

    def _to_file(self, path: Path) -> None:
        write_json(path, self.to_dict(), limit=None)

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        data = {**_LATER_FIELDS, **read_json(path, limit=RESULT_LIMIT)}
        try:
            names = {f.name for f in dataclasses.fields(cls)}
            unknown = sorted(set(data) - names - {"effect", "p_value", "verdict"})
            if unknown:
                raise DataError("EvaluationReport", "unknown field", got=", ".join(unknown))
            values = {name: data[name] for name in names}
            for name in ("before", "after", "unrelated_unchanged", "turns_unchanged"):
                values[name] = None if values[name] is None else Rate(**values[name])
            if values["side_effects"] is not None:
                # One without a scope was measured with the config's own.
                scope = {"scope": values["config"].get("scope", "all")}
                values["side_effects"] = SideEffects(**scope | values["side_effects"])
            values["conversations"] = [Conversation(**entry) for entry in values["conversations"]]
            values["dose"] = [(float(strength), float(rate)) for strength, rate in values["dose"]]
            _check_values(values)
            _check_turns(values["conversations"], values["turns_unchanged"])
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            got = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise FileFormatError(str(path), "holds no evaluation report", got=got) from error

    def _texts(self) -> list[str]:
        talks = [[*one.turns, *one.answers_before, *one.answers_after] for one in self.conversations]
        named = [getattr(self, name) for name in _TEXTS[:6]]
        return [text for texts in (*named, *talks) for text in texts]

    def _public(self, *, with_texts: bool) -> Self:
        if with_texts:
            return dataclasses.replace(self, config=without_places(self.config))
        kept: dict[str, Any] = dict.fromkeys(_TEXTS[:6], [])
        talks = [dataclasses.replace(one, **_without_words(one)) for one in self.conversations]
        return dataclasses.replace(self, **kept, conversations=talks, config=without_places(self.config))

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
            intended_use="Reading what a config does, and holding it against a measurement of one's own.",
            misuse="Rates are those of one judge on one set of prompts.",
        )


def _without_words(one: Conversation) -> dict[str, Any]:
    """Fields of a conversation that say as much about which answers stayed the same, and nothing else."""
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


def too_few(num_controls: int) -> str:
    """Return in words that no p value can be at most 0.05 with so many controls; nothing where one can.

    Args:
        num_controls (`int`): How many, 1 or more.
    """
    if 1 / (1 + num_controls) <= SIGNIFICANT:
        return ""
    return f"with {num_controls} control{'s' * (num_controls > 1)} p cannot be below {1 / (1 + num_controls):.3g}"


def _check_values(values: Mapping[str, Any]) -> None:
    """Raise [`DataError`] unless the fields of a file are of their types, and say nothing that others contradict."""
    for name in ("target", "control_kind"):
        _check(name, isinstance(values[name], str), values[name], "a text")
    _check("control_kind", values["control_kind"] in CONTROL_KINDS, values["control_kind"], f"one of {CONTROL_KINDS}")
    for name in _TEXTS:
        right = isinstance(values[name], list) and all(isinstance(text, str) for text in values[name])
        _check(name, right, values[name], "a list of texts")
    for name, most in (("seed", None), ("unclear", None), ("sharing", len(values["controls"]))):
        value = values[name]
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        _check(name, whole and (most is None or value <= most), value, "a whole number, 0 or more")
    _check("controls", isinstance(values["controls"], list), values["controls"], "a list of rates")
    for rate in [*values["controls"], *(rate for _, rate in values["dose"])]:
        right = isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate <= 1
        _check("controls, dose", right, rate, "rates from 0 to 1")
    for strength, _ in values["dose"]:
        _check("dose", 0 <= strength < math.inf, strength, "strengths from 0")
    _check("config", isinstance(values["config"], dict), values["config"], "a config")
    if "suppress" in values["config"]:
        MoTEConfig.from_dict(values["config"])
    for sides in _TEXTS[:3], _TEXTS[3:6]:
        sizes = [len(values[name]) for name in sides]
        if len(set(sizes)) > 1:
            raise DataError(f"EvaluationReport.{sides[0]}", "prompts and responses differ in number", got=sizes)
    asked = len(values["prompts"]) or values["before"].n  # a report that was shared holds no texts
    for name, rate in (("labels_before", values["before"]), ("labels_after", values["after"])):
        labels = values[name]
        if len(labels) not in (0, asked):
            raise DataError(f"EvaluationReport.{name}", "responses and their labels differ in number", got=len(labels))
        _check(
            name, not labels or labels.count(values["target"]) == rate.successes, labels, f"{rate.successes} targets"
        )
    shares, kept = values["controls_sharing"], values["control_labels"]
    right = isinstance(shares, list) and all(isinstance(one, bool) for one in shares)
    right = right and (not shares or (len(shares) == len(values["controls"]) and sum(shares) == values["sharing"]))
    _check("controls_sharing", right, shares, f"{values['sharing']} of {len(values['controls'])} controls")
    right = isinstance(kept, list) and all(isinstance(labels, list) and len(labels) == asked for labels in kept)
    right = right and len(kept) in (0, len(values["controls"]))
    _check("control_labels", right, kept, f"{asked} labels for each of {len(values['controls'])} controls")
    for name in ("before", "after"):
        _check(name, asked in (0, values[name].n), values[name].n, f"{asked} prompts")


def _check(name: str, right: bool, got: object, expected: str) -> None:
    if not right:
        raise DataError(f"EvaluationReport.{name}", "wrong type or value", got=repr(got)[:80], expected=expected)


def _check_turns(conversations: list[Conversation], unchanged: Rate | None) -> None:
    turns = sum(len(one.turns) for one in conversations)
    kept = [same for one in conversations for same in one.unchanged]
    counted = (0, 0) if unchanged is None else (unchanged.successes, unchanged.n)
    if len(kept) != turns or counted != (sum(kept), turns):
        raise DataError(
            "EvaluationReport.turns_unchanged",
            "is not what the conversations say",
            got=f"{counted[0]} of {counted[1]}",
            expected=f"{sum(kept)} of {len(kept)} answers, to {turns} turns",
        )
