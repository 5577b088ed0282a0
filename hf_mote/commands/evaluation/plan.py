"""The plan that `hf-mote evaluate --dry-run` prints, from one timed batch of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_mote.commands.evaluation.material import Material
from hf_mote.commands.plan import TimedJudge, plan_responses

if TYPE_CHECKING:
    from hf_mote.commands.model import Subject
    from hf_mote.evaluation.changes import Change
    from hf_mote.evaluation.conversations import Conversation
    from hf_mote.generation.asking import Chat, Decoding
    from hf_mote.judges.judge import Judge

__all__ = ["plan_evaluation"]


def plan_evaluation(
    subject: Subject,
    material: Material,
    changes: Sequence[Change],
    labels: Judge,
    *,
    chat: Chat,
    decoding: Decoding,
    judge: str,
    controls: int,
    strengths: int,
    shared: Mapping[str, Any],
) -> None:
    """Print what would be done.

    Args:
        subject (`Subject`): The model.
        material ([`Material`]): The data that the configs are measured on.
        changes (`Sequence[Change]`): The configs.
        labels (`Judge`): The judge.
        chat (`Chat`): How prompts become tokens.
        decoding (`Decoding`): How responses are decoded.
        judge (`str`): The name of the judge.
        controls (`int`): Number of random configs that each is compared with.
        strengths (`int`): Number of further strengths that each is measured at.
        shared (`Mapping[str, Any]`): Arguments of `evaluate_mote` for all its calls.
    """
    from hf_mote.evaluation.evaluate import OFF_TARGET, evaluate_mote

    timed, others, opposite = TimedJudge(labels), len(material.unrelated), material.opposite
    off_target = (2 + controls) * [min(others, OFF_TARGET)] if others else []
    all_others = 2 * [others] if others > OFF_TARGET else []
    turns = _turns_of(material.conversations)
    plan_responses(
        subject,
        material.asked,
        chat,
        decoding,
        runs={
            "untouched": len(changes),
            "with the config": len(changes),
            "with random controls": controls * len(changes),
            **({"at other strengths": strengths * len(changes)} if strengths else {}),
        },
        others=[
            *len(changes) * [*off_target, *all_others, *turns, *turns],
            *([] if opposite is None else (2 + controls) * [len(opposite.prompts)]),
        ],
        judge=judge,
        left_out=[*timed.left_out, *(["the passes over --texts"] if material.texts else [])],
        once=lambda some, longest: evaluate_mote(
            subject.model,
            subject.tokenizer,
            changes[0],
            some,
            timed,
            target="any",
            num_controls=0,
            max_new_tokens=longest,
            progress=False,
            **shared,
        ),
        each=2,  # untouched, and with the config
        pictures=1,
    )


def _turns_of(conversations: Sequence[Conversation]) -> list[int]:
    """Return the number of conversations that have a first turn, a second one, and so on."""
    most = max((len(one.turns) for one in conversations), default=0)
    return [sum(turn < len(one.turns) for one in conversations) for turn in range(most)]
