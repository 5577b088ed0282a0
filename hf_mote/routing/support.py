"""What is supported, what is not, and why: one list for the README, the command line and the error messages."""

from __future__ import annotations

import functools
from typing import NamedTuple

import transformers
from packaging.version import Version

from hf_mote.routing.adapters import ADAPTERS
from hf_mote.routing.families import RULES

__all__ = ["REFUSED", "Refusal", "SupportRow", "refusals_here", "support_markdown", "support_table"]


class Refusal(NamedTuple):
    """A family that cannot work.

    Attributes:
        family (`str`): Its `model_type`.
        reason (`str`): Why not.
        remedy (`str`): What can be done instead.
        before (`str`, *optional*): The first release of transformers that the reason does not hold for.
    """

    family: str
    reason: str
    remedy: str
    before: str | None = None

    @property
    def full_reason(self) -> str:
        """Why not, and in which releases."""
        return self.reason if self.before is None else f"before transformers {self.before}, {self.reason}"


class SupportRow(NamedTuple):
    """A routing rule and who follows it.

    Attributes:
        rule (`str`): The rule's name.
        families (`tuple[str, ...]`): Model families.
        cannot (`tuple[str, ...]`): Interventions that its routers have no way of.
    """

    rule: str
    families: tuple[str, ...]
    cannot: tuple[str, ...]


_BARE = "its router is a bare linear layer, and the block around it chooses the experts"

REFUSED: dict[str, Refusal] = {
    "AriaTextMoELayer": Refusal("aria", _BARE, "Upgrade to transformers 5.18 or newer.", before="5.18"),
    "DiffusionGemmaTextRouter": Refusal(
        "diffusion_gemma",
        "its encoder and its decoder have a router each in every layer, so that a layer does not name a router",
        "Use gemma4.",
    ),
    "DogeCDMoE": Refusal(
        "doge",
        "its experts are chosen by product keys inside the block's forward, with no router that a hook could reach",
        "Use a model whose router is a module of its own.",
    ),
    "JambaSparseMoeBlock": Refusal("jamba", _BARE, "Upgrade to transformers 5.23 or newer.", before="5.23"),
    "LongcatFlashTopkRouter": Refusal(
        "longcat_flash", "its router returns no logits", "Upgrade to transformers 5.19 or newer.", before="5.19"
    ),
    "NllbMoeTop2Router": Refusal(
        "nllb_moe",
        "up to transformers 5.24 only experts 0 and 1 of each layer ever run, whatever its router decides",
        "Wait for the fix in transformers.",
    ),
    "SwitchTransformersTop1Router": Refusal(
        "switch_transformers",
        "its router hands out a dispatch mask limited by capacity, in which tokens depend on each other",
        "Use a decoder-only model, such as olmoe or mixtral.",
    ),
}
"""By the class of the router, or of the block that routes without one."""


def refusals_here() -> dict[str, Refusal]:
    """Return the refusals that hold for the installed transformers, by class."""
    return _refusals_of(transformers.__version__)


@functools.cache
def _refusals_of(version: str) -> dict[str, Refusal]:
    here = Version(version)
    return {name: one for name, one in REFUSED.items() if one.before is None or here < Version(one.before)}


def support_table() -> list[SupportRow]:
    """Return the supported families, by routing rule in the order of the table."""
    return [
        SupportRow(
            rule.name,
            rule.families,
            () if rule.adapter is None else tuple(sorted(ADAPTERS[rule.adapter].refuses)),
        )
        for rule in RULES
    ]


def support_markdown() -> str:
    """Return the supported and refused families as the README shows them."""
    lines = ["| routing rule | families | cannot |", "| --- | --- | --- |"]
    for row in support_table():
        cannot = ", ".join(row.cannot).replace("_", " ")
        lines.append(f"| {row.rule} | {', '.join(row.families)} | {cannot} |")
    lines += [f"| refused | {refusal.family} | {refusal.full_reason} |" for refusal in REFUSED.values()]
    return "\n".join(lines)
