"""Evaluation reports made of their parts by name, without a model."""

from __future__ import annotations

from typing import Any

from hf_mote import EvaluationReport, MoTEConfig
from hf_mote.evaluation.report_file import FIELDS, report_fields
from hf_mote.statistics.rates import Rate

_UNMEASURED: dict[str, Any] = {
    **{name: [] for name in FIELDS},
    **dict.fromkeys(("unrelated_unchanged", "side_effects", "turns_unchanged", "coherence", "selectivity")),
    **dict.fromkeys(("seed", "unclear", "sharing"), 0),
    "controls_exhausted": False,
    "config": MoTEConfig().to_dict(),
    "control_kind": "layer",
    "preregistration": None,
}


def report_of(target: str, before: Rate, after: Rate, controls: list[float], **parts: Any) -> EvaluationReport:
    """Return a report in which all parts that are not given were not measured."""
    return _made({**_UNMEASURED, "target": target, "before": before, "after": after, "controls": controls, **parts})


def with_parts(report: EvaluationReport, **parts: Any) -> EvaluationReport:
    """Return the report with other parts."""
    return _made({name: getattr(report, name) for name in FIELDS} | parts)


def _made(parts: dict[str, Any]) -> EvaluationReport:
    assert set(parts) == set(FIELDS)
    return EvaluationReport(**report_fields(parts))
