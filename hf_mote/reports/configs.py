"""A config as text, and as JSON to copy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hf_mote.reports.markup import Child, Html, join, tag
from hf_mote.reports.rankings import expert_links
from hf_mote.reports.tables import table

__all__ = ["UNMEASURED", "config_part"]

UNMEASURED = "Made of the first experts; a hypothesis until hf-mote evaluate has measured it."


def config_part(
    config: Mapping[str, Any], *, note: str | None = None, linked: bool = False, part: str = "config"
) -> Html:
    """Return a description of a config, without unused settings, and its file to copy.

    Args:
        config (`Mapping`): As `MoTEConfig.to_dict` gives it, or `SteeringConfig.to_dict`.
        note (`str`, *optional*): What is known of it.
        linked (`bool`, *optional*, defaults to `False`): Whether the page can show its experts.
        part (`str`, *optional*, defaults to `"config"`): What ids on the page begin with; one for each config.
    """
    latents = "edits" in config
    fields = ["scope", "thinking_tokens", "positions", "strength", "base_model"]
    if latents:
        fields = ["sae", "hookpoint", "scope", "thinking_tokens", "strength", "keep_error", "base_model"]
    for name, settings in (
        ("suppress", ["suppress_mode"]),
        ("stimulate", ["stimulate_weight"]),
        ("bias", ["bias_on"]),
        ("gain", []),
    ):
        if config.get(name):
            fields = [name, *settings, *fields]
    rows: list[Sequence[Child]] = []
    for latent, operation, value in config.get("edits", []):
        rows.append(
            [f"latent {latent}", tag("code", operation if operation == "ablate" else f"{operation} {value:g}")]
        )
    for name in fields:
        if config.get(name) or (latents and config.get(name) is not None):
            rows.append([name, tag("code", _value(name, config[name], linked), id=f"{part}-{name}")])
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
    name, take = ("steering_config.json", "steer") if latents else ("mote_config.json", "apply_mote(model, FOLDER)")
    how = f"As {name} in a folder, {take} and hf-mote evaluate take it."
    file = [tag("p", how, class_="faint"), tag("pre", tag("code", text, id=f"{part}-json"), tabindex=0)]
    what = "Which latents, and how" if latents else "Which experts, as layer.expert, and how"
    return join(
        [
            None if note is None else tag("p", note, class_="faint"),
            table(what, ["field", "value"], rows),
            tag("p", class_="controls", id=f"{part}-controls"),
            tag("details", tag("summary", name), *file, id=f"{part}-file"),
        ]
    )


def _value(name: str, value: object, linked: bool) -> Child:
    if isinstance(value, list) and all(isinstance(entry, list) for entry in value):
        if linked and name in ("suppress", "stimulate"):
            return expert_links([(layer, expert) for layer, expert in value])
        return "  ".join(f"{entry[0]}.{entry[1]}" + "".join(f" ({extra})" for extra in entry[2:]) for entry in value)
    return str(value)
