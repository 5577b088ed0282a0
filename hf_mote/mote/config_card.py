"""The card of a shared config, and the files that may be beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_mote.errors import ConfigError
from hf_mote.hub import Shareable
from hf_mote.sharing.cards import CardNotes, Evidence, card_header, compose_card

__all__ = ["MISUSE", "beside_config", "config_card"]

MISUSE = (
    "A config changes what a model does, in ways that were measured on few prompts or not at all. One that reduces "
    "refusals takes away a safeguard, one that adds them makes a model less useful; neither is for a product that "
    "others rely on. It says nothing about other models, other prompts or other languages."
)


def beside_config(
    ranking: Shareable | None, report: Shareable | None, maps: Mapping[str, Shareable] | None
) -> list[tuple[str, Shareable]]:
    """Return the objects beside a config, each with its folder.

    Args:
        ranking ([`ExpertRanking`], *optional*): The ranking it was made from.
        report ([`EvaluationReport`], *optional*): What it does, measured.
        maps (`Mapping[str, ActivationMap]`, *optional*): Maps by class.

    Raises:
        [`ConfigError`]: if one is of another kind, or the name of a class cannot name a folder.
    """
    found = []
    for name, one, file_name in (
        ("ranking", ranking, "expert_ranking.safetensors"),
        ("report", report, "evaluation_report.json"),
    ):
        if one is not None:
            found.append(("", _of_kind(name, one, file_name)))
    for label, one in (maps or {}).items():
        if not isinstance(label, str) or not re.fullmatch(r"\w[\w.-]*", label):
            what, expected = "must be the name of a folder", "letters, digits, '.', '_' and '-'"
            raise ConfigError("MoTEConfig: maps", what, got=repr(label), expected=expected)
        found.append((f"maps/{label}", _of_kind("maps", one, "activation_map.safetensors")))
    return found


def config_card(
    fields: Mapping[str, Any],
    notes: CardNotes,
    evidence: Sequence[Evidence],
    *,
    unverified: str | None = None,
    other_weights: str | None = None,
) -> str:
    """Return the card of a config, as Markdown.

    Args:
        fields (`Mapping[str, Any]`): The config, as its `to_dict` has it.
        notes (`CardNotes`): What the user states.
        evidence (`Sequence[Evidence]`): What was measured.
        unverified (`str`, *optional*): Why it was not checked against a model.
        other_weights (`str`, *optional*): On which other weights it was used.
    """
    targets = (
        (f"suppressed ({fields['suppress_mode']})", fields["suppress"]),
        (f"stimulated (weight {fields['stimulate_weight']})", fields["stimulate"]),
        (f"biased (on {fields['bias_on']})", fields["bias"]),
        *([("multiplied (weight times value)", fields["gain"])] if "gain" in fields else []),
    )
    rows = "\n".join(f"| {what} | {len(entries)} | {_shown(entries)} |" for what, entries in targets)
    made = "\n".join(f"- {key}: {value}" for key, value in sorted(fields["provenance"].items())) or "- not stated"
    at = f", at the positions {', '.join(map(str, fields['positions']))}" if "positions" in fields else ""
    name = fields["base_model"] or "a model that is not named"
    measured = any(part.results for part in evidence)
    opening = (
        f"For `{name}`. Scope: {fields['scope']}{at}. Strength: {fields['strength']}.\n\n"
        f"{'' if unverified is None else f'**Not verified: {unverified}** '}"
        f"{'' if other_weights is None else f'**It is {other_weights}.** '}"
        f"{'' if measured else 'What it does was not measured for this card.'}\n\n"
        f"| what | experts | [layer, expert] |\n| --- | --- | --- |\n{rows}\n\n"
        "Layers are absolute decoder layers, experts indices within them. The config is checked against the "
        "model's type, layers, experts and weights when it is applied. It is data: loading it runs no code."
    )
    return compose_card(
        card_header(tags=["mote"], base_model=fields["base_model"], notes=notes, name=name, evidence=evidence),
        "Mixture of tunable experts",
        opening,
        load='from hf_mote import apply_mote\n\nhandle = apply_mote(model, "<this repository or folder>"'
        f"{'' if unverified is None else ', allow_other_weights=True'})",
        notes=notes,
        evidence=evidence,
        sections={"How it was made": made},
        intended_use="Studying what the named experts do in the model it was made for; no other use is stated.",
        misuse=MISUSE,
    )


def _of_kind(name: str, one: object, file_name: str) -> Shareable:
    if not isinstance(one, Shareable) or one.file_name != file_name:
        kinds = {"ranking": "an ExpertRanking", "report": "an EvaluationReport", "maps": "ActivationMaps by class"}
        raise ConfigError(f"MoTEConfig: {name}", "is another thing", got=type(one).__name__, expected=kinds[name])
    return one


def _shown(entries: list[list[Any]], most: int = 20) -> str:
    shown = ", ".join(str(entry) for entry in entries[:most]) or "none"
    return shown if len(entries) <= most else f"{shown}, and {len(entries) - most} more"
