"""Suppress, random, stimulate: the paper's table, for the user's own model and config.

If experts carry a behaviour, suppressing them should remove it where it is shown, and stimulating them should cause it
where it is not, both more than random experts do. One of the two alone is half of the evidence.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import ConfigError
from hf_mote.evaluation.evaluate import evaluate_mote
from hf_mote.evaluation.report import EvaluationReport
from hf_mote.generation.chat import Prompt
from hf_mote.judges.judge import Judge
from hf_mote.mote.checks import check_against_model
from hf_mote.mote.config import MoTEConfig
from hf_mote.routing.sites.routed_model import RoutedModel

__all__ = ["BothWays", "evaluate_both_ways", "stimulating"]


class BothWays(NamedTuple):
    """The effects of experts, suppressed and stimulated.

    Attributes:
        suppressed (`EvaluationReport`): Suppressed, on prompts that show the behaviour.
        stimulated (`EvaluationReport`): Stimulated, on prompts that do not.
    """

    suppressed: EvaluationReport
    stimulated: EvaluationReport

    @property
    def columns(self) -> list[str]:
        """The columns of the table."""
        return ["experts", "untouched", "with the config", "random experts, mean", "p", "outcome"]

    @property
    def rows(self) -> list[list[str]]:
        """The table: the change, the rate, that of random experts, p, and the outcome."""
        found = []
        for name, report in zip(("suppressed", "stimulated"), self, strict=True):
            p = "" if report.p_value is None else f"{report.p_value:.3g}"
            mean = f"{fmean(report.controls):.1%}" if report.controls else ""
            found.append([name, str(report.before), str(report.after), mean, p, report.outcome()])
        return found

    @property
    def table(self) -> str:
        """The rows as Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stimulating(config: MoTEConfig, slots: Mapping[int, int], **fields: Any) -> MoTEConfig:
    """Return the config that stimulates what another suppresses, in each layer at most as many as a token has slots.

    Args:
        config (`MoTEConfig`): One that suppresses.
        slots (`Mapping[int, int]`): Experts of a token, by layer.
        **fields: Further fields of [`MoTEConfig`], such as `stimulate_weight` or `strength`.

    Raises:
        [`ConfigError`]: if it suppresses nothing.
    """
    if not config.suppress:
        raise ConfigError("evaluate_both_ways.config", "suppresses nothing", got=f"{config.to_dict()}"[:80])
    seen: Counter[int] = Counter()
    kept = []
    for layer, expert in config.suppress:
        seen[layer] += 1
        if seen[layer] <= slots[layer]:
            kept.append([layer, expert])
    changed: dict[str, Any] = {"suppress": [], "stimulate": kept, "strength": 1.0, **fields}
    return dataclasses.replace(config, **changed)


def evaluate_both_ways(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: MoTEConfig,
    prompts: Sequence[Prompt],
    opposite: Sequence[Prompt],
    judge: Judge,
    *,
    unrelated: Sequence[Prompt] = (),
    stimulation: Mapping[str, Any] | None = None,
    run_folder: str | os.PathLike[str] | None = None,
    **options: Any,
) -> BothWays:
    """Measure experts both ways: suppressed on prompts that show a behaviour, stimulated on prompts that do not.

    Args:
        model (`PreTrainedModel`): A mixture-of-experts language model; left as it is.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        config (`MoTEConfig`): A config that suppresses experts.
        prompts (`Sequence[str]` or chats): Prompts that show the behaviour.
        opposite (`Sequence[str]` or chats): Prompts that do not show it, on which the experts are stimulated.
        judge (`Callable`): As in [`evaluate_mote`].
        unrelated (`Sequence[str]` or chats, *optional*): As in [`evaluate_mote`], for both.
        stimulation (`Mapping[str, Any]`, *optional*): How to stimulate, as fields of [`MoTEConfig`]; by default with
            the largest weight that a token's own experts have: `{"stimulate_weight": "max"}`.
        run_folder (`str` or `os.PathLike`, *optional*): As in [`evaluate_mote`]; each of the two has a folder in it.
        **options: Further arguments of [`evaluate_mote`], for both.

    Returns:
        [`BothWays`]: the two reports, and the table.

    Raises:
        [`ConfigError`]: if the config suppresses nothing; and as [`evaluate_mote`].

    Example:

    ```python
    from hf_mote import MoTEConfig, evaluate_both_ways, load_organism

    organism = load_organism("refusal")
    held = organism.prompts["heldout"]
    config = MoTEConfig.for_model(organism.model, suppress=organism.planted)
    found = evaluate_both_ways(
        organism.model, organism.tokenizer, config, held["sensitive"][:8], held["neutral"][:8], organism.judge,
        num_controls=2, max_new_tokens=12, progress=False,
    )
    assert found.suppressed.after.rate < found.stimulated.after.rate
    ```
    """
    routed = RoutedModel(model)
    check_against_model(config, routed)
    slots = {site.layer: site.top_k for site in routed.sites}
    fields = {"stimulate_weight": "max"} if stimulation is None else dict(stimulation)
    runs = (("suppressed", config, prompts), ("stimulated", stimulating(config, slots, **fields), opposite))
    reports = []
    for name, one, asked in runs:
        kept = None if run_folder is None else Path(run_folder) / name
        reports.append(
            evaluate_mote(model, tokenizer, one, asked, judge, unrelated=unrelated, run_folder=kept, **options)
        )
    return BothWays(*reports)
