"""What commands say of latents that are never active."""

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
    """Return what many dead latents mean, and what was measured to help; `None` if they are few.

    Args:
        report (`SAEReport`): What was measured.
        config (`SAEConfig`, *optional*): The SAE's, if it was trained just now.
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
            f" The auxiliary loss aux_k has revived none: it takes a latent for dead after {after:,} tokens, and "
            f"{trained_on:,} were read. --option dead_after_tokens={max(trained_on // 5, 1)} has it begin earlier, "
            "which left fewer dead on one model and more on another."
        )
    return f"{note} Fewer latents (--latents) left fewer dead. The guide to SAEs has what was measured, and its cost."


def silent_note(source: str, config: SAEConfig, latents: Iterable[int]) -> str | None:
    """Return which of some latents the report that lies beside an SAE never saw active; `None` without a report.

    Args:
        source (`str`): The folder of the SAE; of one on the Hub nothing is known.
        config (`SAEConfig`): Its config.
        latents (`Iterable[int]`): Which latents.
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
