"""Notes of commands on latents that are never active."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hf_mote.errors import HFMoTEError
from hf_mote.sae.report import SAEReport

if TYPE_CHECKING:
    from hf_mote.sae.configuration import SAEConfig

__all__ = ["dead_note", "silent_note"]

_MANY = 0.1  # of the latents


def dead_note(report: SAEReport, config: SAEConfig | None = None, trained_on: int | None = None) -> str | None:
    """Return a note on the cost of many dead latents, and on measured remedies; `None` if they are few.

    Args:
        report (`SAEReport`): What was measured.
        config (`SAEConfig`, *optional*): The config of the SAE, if it was just trained.
        trained_on (`int`, *optional*): Tokens of that training.
    """
    if report.dead_fraction <= _MANY:
        return None
    dead = sum(not density for density in report.density)
    note = (
        f"{dead:,} of {report.num_latents:,} latents ({report.dead_fraction:.0%}) are active on none of these "
        f"{report.tokens:,} tokens: they are dead, or rarer than that. They take memory and time, and reconstruct "
        "nothing here."
    )
    if config is None or trained_on is None:
        return note
    after = config.dead_after_tokens
    if getattr(config, "aux_loss", None) == "aux_k" and after >= trained_on:
        note += (
            f" The auxiliary loss aux_k has revived none: it counts a latent as dead after {after:,} tokens, and "
            f"{trained_on:,} were read. With --option dead_after_tokens={max(trained_on // 5, 1)} it begins earlier, "
            "which left fewer dead on one model and more on another."
        )
    return f"{note} Fewer latents (--latents) left fewer dead. The guide to SAEs has what was measured, and its cost."


def silent_note(source: str, config: SAEConfig, latents: Iterable[int]) -> str | None:
    """Return a note on latents that are never active by the report in the SAE's folder; `None` without a report.

    Args:
        source (`str`): The folder of the SAE; for an SAE on the Hub there is no report.
        config (`SAEConfig`): Its config.
        latents (`Iterable[int]`): The latents to look up.
    """
    try:
        if not (Path(source) / SAEReport.file_name).is_file():
            return None
        report = SAEReport.from_pretrained(source)
    except (HFMoTEError, OSError):
        return None
    if report.num_latents != config.num_latents:
        return None
    silent = [latent for latent in latents if not report.density[latent]]
    if not silent:
        return None
    named = f"latent {silent[0]} is" if len(silent) == 1 else f"latents {', '.join(map(str, silent))} are"
    return (
        f"By the report in {source}, {named} active on none of {report.tokens:,} tokens. To multiply or ablate a "
        "latent changes nothing where it is not active. hf-mote sae top-tokens shows latents that are."
    )
