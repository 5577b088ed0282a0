"""The files that `hf-mote evaluate` writes: reports, configs, the picture, the figures and the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hf_mote.commands.run_files import finish

if TYPE_CHECKING:
    from hf_mote.evaluation.changes import Change
    from hf_mote.reports.evaluation import Evaluation

__all__ = ["AGAINST", "STIMULATED", "write_evaluation"]

# Folders of the second report.
AGAINST = "against"
STIMULATED = "stimulated"


def write_evaluation(folder: Path, found: Evaluation, changes: Sequence[Change], provenance: dict[str, str]) -> None:
    """Write everything that was measured.

    Args:
        folder (`Path`): The folder to write to.
        found (`Evaluation`): What was measured.
        changes (`Sequence[Change]`): The configs, in the order of the reports.
        provenance (`dict[str, str]`): The model, settings and versions of the run, by name.
    """
    from hf_mote.mote.config import MoTEConfig
    from hf_mote.plots import EffectRow, plot_effect
    from hf_mote.reports.evaluation import evaluation_page, points_of
    from hf_mote.sae.steering import SteeringConfig

    report = found.report
    configs = [
        change if isinstance(change, MoTEConfig) else SteeringConfig.from_dict(change.to_dict()) for change in changes
    ]
    report.save_pretrained(folder)
    configs[0].save_pretrained(folder / "config")
    second = {}
    if found.against is not None:
        found.against.save_pretrained(folder / AGAINST)
        configs[1].save_pretrained(folder / AGAINST / "config")
        second = {
            f"{AGAINST}/{report.file_name}": "the same for the other config",
            f"{AGAINST}/config/{configs[1].file_name}": f"the other config ({type(configs[1]).__name__})",
        }
    if found.both is not None:
        found.both.stimulated.save_pretrained(folder / STIMULATED)
        second[f"{STIMULATED}/{report.file_name}"] = "the same for the experts stimulated on the opposite prompts"
    rows = [
        EffectRow(
            point.label,
            point.rate,
            point.low or 0.0,
            1.0 if point.high is None else point.high,
            point.controls,
            point.n,
        )
        for point in points_of(report)
    ]
    target = report.target.replace("$", r"\$")
    plot_effect(rows, rate_name=f"responses of class {target!r}", path=folder / "effect.png")
    holds = {
        report.file_name: "everything measured, with all responses (EvaluationReport)",
        f"config/{configs[0].file_name}": f"the config that was measured ({type(configs[0]).__name__})",
        "effect.png": "the rate before and after, with the controls",
        **second,
    }
    figures: dict[str, object] = {
        "kind": "evaluation",
        "verdict": report.verdict,
        "found": report.beats_controls(),
        "outcome": report.outcome(),
        "target": report.target,
        "before": report.before.rate,
        "after": report.after.rate,
        "controls": list(report.controls),
        "p_value": report.p_value,
        "labels_before": report.labels_before,
        "labels_after": report.labels_after,
    }
    if found.against is not None:
        other = found.against
        figures["against"] = {
            "verdict": other.verdict,
            "found": other.beats_controls(),
            "after": other.after.rate,
            "controls": list(other.controls),
            "p_value": other.p_value,
            "labels_after": other.labels_after,
        }
    if found.both is not None:
        figures["both_ways"] = [dict(zip(found.both.columns, row, strict=True)) for row in found.both.rows]
    page = lambda files: evaluation_page(found, provenance=provenance, files=files)  # noqa: E731
    finish(folder, figures, provenance, holds, page)
