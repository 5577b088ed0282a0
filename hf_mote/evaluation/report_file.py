"""The file of an `EvaluationReport`: the parts of its records by one name each.

A file is read whole, and refused where it contradicts itself or lacks what is always written. Earlier releases wrote
the same names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hf_mote.errors import DataError, FileFormatError, is_finite
from hf_mote.evaluation.coherence import Coherence
from hf_mote.evaluation.controls import CONTROL_KINDS
from hf_mote.evaluation.conversations import Conversation
from hf_mote.evaluation.records import Behaviour, ControlRuns, Elsewhere, SideBySide
from hf_mote.evaluation.selectivity import NonInferiority, Selectivity
from hf_mote.evaluation.side_effects import SideEffects
from hf_mote.hub import RESULT_LIMIT, read_json
from hf_mote.mote.config import MoTEConfig
from hf_mote.statistics.rates import Rate
from hf_mote.version import lacking

__all__ = ["FIELDS", "read_report", "report_fields"]

_ROUNDING = 1e-9
_DERIVED = {"effect", "coherent_effect", "p_value", "outcome", "verdict"}
_TEXTS = (
    *("prompts", "responses_before", "responses_after"),
    *("unrelated", "unrelated_before", "unrelated_after"),
    *("labels_before", "labels_after"),
)
# Fields that earlier reports lack, with what they mean there: those that came together are all there, or none of them.
_LATER_FIELDS: tuple[dict[str, Any], ...] = (
    {"conversations": [], "turns_unchanged": None},
    {"disjoint_chances": [], "coherence": None, "selectivity": None, "not_worse": [], "preregistration": None},
    {"controls_exhausted": False, "notes": []},
)
_EVERY = (
    *("target", "before", "after", "controls", "unrelated_unchanged", "config", "dose", "seed", "control_kind"),
    *("side_effects", *_TEXTS, "unclear"),
    *("sharing", "controls_sharing", "control_labels"),
)
FIELDS = (*_EVERY, *(name for fields in _LATER_FIELDS for name in fields))
# Measured by `evaluate_mote` alone: a report with one of them is not of a setting of a sweep.
_OF_ONE_CONFIG = ("dose", "unrelated_unchanged", "turns_unchanged", "side_effects", "notes")
_OF_LATENTS = ("edits", "hookpoint", "sae", "sae_digest", "scope", "thinking_tokens", "strength", "keep_error")


def report_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an [`EvaluationReport`] from its parts.

    Args:
        values (`Mapping[str, Any]`): All of `FIELDS`, by name.
    """
    return {
        "target": values["target"],
        "config": values["config"],
        "behaviour": Behaviour(
            before=values["before"],
            after=values["after"],
            answers=SideBySide(
                prompts=values["prompts"],
                before=values["responses_before"],
                after=values["responses_after"],
                labels_before=values["labels_before"],
                labels_after=values["labels_after"],
            ),
            dose=values["dose"],
            unclear=values["unclear"],
            coherence=values["coherence"],
        ),
        "control_runs": ControlRuns(
            rates=values["controls"],
            labels=values["control_labels"],
            kind=values["control_kind"],
            seed=values["seed"],
            sharing=values["controls_sharing"],
            num_sharing=values["sharing"],
            disjoint_chances=values["disjoint_chances"],
            exhausted=values["controls_exhausted"],
        ),
        "elsewhere": Elsewhere(
            answers=SideBySide(values["unrelated"], values["unrelated_before"], values["unrelated_after"]),
            unchanged=values["unrelated_unchanged"],
            selectivity=values["selectivity"],
            not_worse=values["not_worse"],
            side_effects=values["side_effects"],
            conversations=values["conversations"],
            turns_unchanged=values["turns_unchanged"],
        ),
        "preregistration": values["preregistration"],
        "notes": values["notes"],
    }


def read_report(path: Path) -> dict[str, Any]:
    """Return the fields of an [`EvaluationReport`] that was written to a file.

    Args:
        path (`Path`): The file.

    Raises:
        [`FileFormatError`]: if a part is missing, unknown or of another type, or contradicts another.
    """
    data = read_json(path, limit=RESULT_LIMIT)
    try:
        data = _with_later_fields(data)
        unknown = sorted(set(data) - set(FIELDS) - _DERIVED)
        if unknown:
            raise DataError("EvaluationReport", "unknown field", got=", ".join(unknown))
        values = {name: data[name] for name in FIELDS}
        for name in ("conversations", "dose", "not_worse"):
            _check(name, isinstance(values[name], list), values[name], "a list")
        for name in ("before", "after", "unrelated_unchanged", "turns_unchanged"):
            values[name] = None if values[name] is None else Rate(**values[name])
        if values["side_effects"] is not None:
            values["side_effects"] = _record(SideEffects, "side_effects", values["side_effects"])
        talks = values["conversations"]
        values["conversations"] = [_record(Conversation, f"conversations[{at}]", one) for at, one in enumerate(talks)]
        values["dose"] = [(_number("dose", strength), _number("dose", rate)) for strength, rate in values["dose"]]
        if values["coherence"] is not None:
            # Reports of 2026-11-28, shipped ones among them, lack `surprise`, which nothing is decided by.
            _check_fields("coherence", values["coherence"], set(_names_of(Coherence)) - {"surprise"})
            values["coherence"] = Coherence.from_dict(values["coherence"])
        if values["selectivity"] is not None:
            values["selectivity"] = Selectivity.from_dict(values["selectivity"])
        values["not_worse"] = [NonInferiority(**entry) for entry in values["not_worse"]]
        _check_values(values)
        _check_unchanged(values)
        return report_fields(values)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        got = f"no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise FileFormatError(str(path), "must hold an evaluation report", got=got) from error


def _with_later_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a file and those that earlier reports lack; refuse one that lacks others."""
    _check_fields("", data, _EVERY)
    held = [not fields.keys().isdisjoint(data) for fields in _LATER_FIELDS]
    for place, fields in enumerate(_LATER_FIELDS):
        if any(held[place:]):  # what came later was never written without it
            _check_fields("", data, fields)
    return {name: value for fields in _LATER_FIELDS for name, value in fields.items()} | dict(data)


def _names_of(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _check_fields(name: str, found: Mapping[str, Any], wanted: Iterable[str]) -> None:
    """Raise [`DataError`] if an entry of a file lacks fields that this package always writes."""
    if lost := [field for field in wanted if field not in found]:
        where = ".".join(filter(None, ("EvaluationReport", name, lost[0])))
        fix = "Take a whole copy of the file, or measure again."
        raise DataError(where, "is missing", got=f"no {', '.join(lost)}", expected="every field", fix=fix)


def _record(kind: Any, name: str, found: Mapping[str, Any]) -> Any:
    """Return a record of which every field is in the file."""
    _check_fields(name, found, _names_of(kind))
    return kind(**found)


def _check_values(values: Mapping[str, Any]) -> None:
    """Raise [`DataError`] unless the fields of a file are of their types, and say nothing that others contradict."""
    for name in ("target", "control_kind"):
        _check(name, isinstance(values[name], str), values[name], "a text")
    _check("control_kind", values["control_kind"] in CONTROL_KINDS, values["control_kind"], f"one of {CONTROL_KINDS}")
    for name in (*_TEXTS, "notes"):
        right = isinstance(values[name], list) and all(isinstance(text, str) for text in values[name])
        _check(name, right, values[name], "a list of texts")
    for name, most in (("seed", None), ("unclear", _num_responses(values)), ("sharing", len(values["controls"]))):
        value = values[name]
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        expected = "a whole number, 0 or more" if most is None else f"a whole number from 0 to {most}"
        _check(name, whole and (most is None or value <= most), value, expected)
    _check("controls", isinstance(values["controls"], list), values["controls"], "a list of rates")
    for rate in [*values["controls"], *(rate for _, rate in values["dose"])]:
        _check("controls, dose", is_finite(rate) and 0 <= rate <= 1, rate, "rates from 0 to 1")
        of_all = rate * values["before"].n
        _check("controls, dose", abs(of_all - round(of_all)) < 1e-6, rate, f"shares of {values['before'].n} prompts")
    for strength, _ in values["dose"]:
        _check("dose", is_finite(strength) and strength >= 0, strength, "strengths from 0")
    _check_config(values["config"])
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
    labelled = [name for name in ("labels_before", "labels_after") if values[name]]
    if len(labelled) == 1 or (values["control_labels"] and not labelled):
        got, expected = ", ".join(labelled) or "control_labels", "labels of all responses, or of none"
        fix = "Take a whole copy of the file, or measure again."
        raise DataError(
            "EvaluationReport.labels_before, labels_after", "must go together", got=got, expected=expected, fix=fix
        )
    shares, kept = values["controls_sharing"], values["control_labels"]
    right = isinstance(shares, list) and all(isinstance(one, bool) for one in shares)
    right = right and len(shares) in (0, len(values["controls"])) and sum(shares) == values["sharing"]
    _check("controls_sharing", right, shares, f"{values['sharing']} of {len(values['controls'])} controls")
    right = isinstance(kept, list) and all(isinstance(labels, list) and len(labels) == asked for labels in kept)
    right = right and len(kept) in (0, len(values["controls"]))
    right = right and all(isinstance(label, str) for labels in kept for label in labels)
    _check("control_labels", right, kept, f"{asked} labels for each of {len(values['controls'])} controls")
    for labels, rate in zip(kept, values["controls"], strict=False):  # of a report without labels there are none
        share = labels.count(values["target"]) / asked
        _check("controls", abs(share - rate) < _ROUNDING, rate, f"{share}, by the labels of the control")
    chances = values["disjoint_chances"]
    sane = isinstance(chances, list) and all(is_finite(one) and 0 < one <= 1 for one in chances)
    sane = sane and len(chances) in (0, len(values["controls"]) - values["sharing"] + 1)
    _check("disjoint_chances", sane and chances == sorted(chances), chances, "chances that rise")
    exhausted = values["controls_exhausted"]
    _check("controls_exhausted", isinstance(exhausted, bool), exhausted, "true or false")
    effects = values["side_effects"]
    explained = effects is None or effects.kl is not None or bool(values["notes"])
    _check("side_effects", explained, None, "a divergence, or a note on why it is missing")
    known = values["preregistration"]
    digest = known is None or (isinstance(known, str) and re.fullmatch("[0-9a-f]{64}", known) is not None)
    _check("preregistration", digest, known, "a SHA-256 hash")
    beside = values["selectivity"]
    number = len(values["controls"])
    _check("selectivity", beside is None or len(beside.controls_on) == number, beside, f"{number} controls")
    if (seen := values["coherence"]) is not None:
        counts = len(seen.before) == asked == len(values["labels_after"]) and len(seen.controls) == len(kept)
        wrong = "flags for each response and each control"
        _check("coherence", counts and len(kept) == len(values["controls"]), len(seen.before), wrong)
    for name in ("before", "after"):
        _check(name, asked in (0, values[name].n), values[name].n, f"{asked} prompts")


def _num_responses(values: Mapping[str, Any]) -> int | None:
    """Return how many responses a report is of; `None` where other settings of a sweep may count, too."""
    if not any(values[name] for name in _OF_ONE_CONFIG):
        return None
    return int(values["before"].n) * (2 + len(values["controls"]) + len(values["dose"]))


def _check(name: str, right: bool, got: object, expected: str) -> None:
    if not right:
        raise DataError(f"EvaluationReport.{name}", "wrong type or value", got=repr(got)[:80], expected=expected)


def _check_config(config: object) -> None:
    """Raise unless a report's config is one of experts that can be, or of latents, which have edits at a hookpoint."""
    if not isinstance(config, dict) or "edits" not in config:
        MoTEConfig.from_dict(config)  # type: ignore[arg-type]
        return
    if lost := lacking(config, _OF_LATENTS):
        _check_fields("config", config, lost)
    edits, strength = config["edits"], config.get("strength", 1.0)
    right = isinstance(edits, list) and all(isinstance(edit, list) and len(edit) == 3 for edit in edits)
    right = right and isinstance(config.get("hookpoint"), str) and is_finite(strength) and "suppress" not in config
    _check("config", right, config, "[latent, operation, value] edits, a hookpoint, and a strength")


def _number(name: str, value: object) -> float:
    """Return a number of a file; a text or a truth value is none."""
    _check(name, is_finite(value), value, "numbers")
    return float(value)  # type: ignore[arg-type]


def _check_unchanged(values: Mapping[str, Any]) -> None:
    """Raise [`DataError`] unless the shares of answers that stay the same are those of the answers."""
    sides = zip(values["unrelated_before"], values["unrelated_after"], strict=True)
    same = [before == after for before, after in sides]
    if same:  # a report that was shared holds no texts
        _check_share("unrelated_unchanged", values["unrelated_unchanged"], same, f"{len(same)} unrelated prompts")
    turns = sum(len(one.turns) for one in values["conversations"])
    kept = [same for one in values["conversations"] for same in one.unchanged]
    if len(kept) != turns:
        where, got = "EvaluationReport.conversations", f"{len(kept)} answers"
        raise DataError(where, "turns and answers differ in number", got=got, expected=f"one to each of {turns} turns")
    _check_share("turns_unchanged", values["turns_unchanged"], kept, f"{turns} turns of conversations")


def _check_share(name: str, rate: Rate | None, same: list[bool], of: str) -> None:
    counted = (0, 0) if rate is None else (rate.successes, rate.n)
    if counted != (sum(same), len(same)):
        raise DataError(
            f"EvaluationReport.{name}",
            "does not match the answers",
            got=f"{counted[0]} of {counted[1]}",
            expected=f"{sum(same)} of {len(same)}, to {of}",
        )
