"""The card of an exported SAE: model, origin, and what its format does not hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hf_mote.sae.modeling import SAEModel
from hf_mote.version import __version__

__all__ = ["CARD", "write_card"]

CARD = "README.md"


def write_card(sae: SAEModel, folder: Path, format: str, lost: Sequence[str]) -> None:
    """Write the card of a model that was exported to a folder.

    Args:
        sae ([`SAEModel`]): The model.
        folder (`Path`): The folder that its files were written to.
        format (`str`): The format it was written in.
        lost (`Sequence[str]`): What the format does not hold.
    """
    (folder / CARD).write_text(_text(sae, format, lost), encoding="utf-8")


def _text(sae: SAEModel, format: str, lost: Sequence[str]) -> str:
    config, origin = sae.config, sae.config.origin or {}
    source = origin.get("source")
    source = source if isinstance(source, dict) else {}
    head = ["---", "tags:", "- sparse-autoencoder"]
    if config.base_model is not None:
        head.append(f"base_model: {_plain(config.base_model)}")
    targets = config.output_hookpoints or [config.output_hookpoint or ""]
    rows = {
        "architecture": config.model_type,
        "base model": config.base_model,
        "hookpoint": config.hookpoint,
        "reconstructs": ", ".join(targets) or None,
        "latents": str(config.num_latents),
        "width": str(config.hidden_size)
        if config.decoder_size == config.hidden_size
        else f"{config.hidden_size} to {config.decoder_size}",
        "normalises its input": config.input_normalization,
        "from": "/".join(str(source[key]) for key in ("repo_id", "subfolder", "file") if key in source) or None,
        "read as": str(origin["format"]) if "format" in origin else None,
    }
    lines = [*head, "---", "", f"# A sparse {'transcoder' if config.is_transcoder else 'autoencoder'}", ""]
    lines += [f"Written in the format of `{format}` by hf_mote {__version__}.", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | `{_plain(value)}` |" for name, value in rows.items() if value is not None]
    lines += ["", "## What the files do not hold", ""]
    lines += [f"- `{_plain(one)}`" for one in lost] or ["Nothing is lost."]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Return text as one line without characters that end a cell or a quotation."""
    return " ".join(text.split()).replace("|", "/").replace("`", "'")
