"""`--preregister`: compares the planned measurement with an earlier pre-registration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_mote.commands.evaluation.configs import of_experts
from hf_mote.commands.evaluation.material import Material
from hf_mote.errors import ConfigError

if TYPE_CHECKING:
    from hf_mote.evaluation.changes import Change
    from hf_mote.routing.sites.routed_model import RoutedModel

__all__ = ["registered_digest"]


def registered_digest(
    path: Path,
    routed: RoutedModel,
    changes: Sequence[Change],
    material: Material,
    *,
    judge: object,
    target: str,
    settings: Mapping[str, Any],
) -> str | None:
    """Return the digest of a matching pre-registration; write one and return `None` if the file does not exist.

    Args:
        path (`Path`): The file of the pre-registration.
        routed (`RoutedModel`): The model.
        changes (`Sequence[Change]`): The configs that are measured.
        material ([`Material`]): The data that they are measured on.
        judge (`object`): The judge.
        target (`str`): The label of interest.
        settings (`Mapping[str, Any]`): The other settings that the result depends on.

    Raises:
        [`ConfigError`]: if a config is of latents, or the pre-registration differs.
    """
    from hf_mote.evaluation.preregistration import Preregistration, preregister

    if len(of_experts(changes)) < len(changes):
        fix = "Leave it out, or give configs of experts."
        raise ConfigError("--preregister", "does not support configs of latents yet", fix=fix)
    against = [change.to_dict() for change in changes[1:]]
    plan = preregister(
        model=routed.fingerprint,
        config=changes[0].to_dict(),
        prompts=material.asked.prompts,
        judge=judge,
        target=target,
        unrelated=material.unrelated,
        groups=material.groups,
        opposite=[] if material.opposite is None else material.opposite.prompts,
        opposite_groups=material.opposite_groups,
        texts=material.texts,
        conversations=[dataclasses.asdict(one) for one in material.conversations],
        **settings,
        **({"against": against[0]} if against else {}),
    )
    if not path.exists():
        plan.write(path)
        return None
    known = Preregistration.read(path)
    known.check(plan)
    return known.digest
