"""The data that a config is measured on: prompts, unrelated and opposite prompts, texts, and conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_mote.commands.bundles.evidence import Reading
from hf_mote.commands.conversations import read_conversations
from hf_mote.commands.model import Organisms
from hf_mote.commands.prompts import PromptSet
from hf_mote.generation.chat import Prompt

if TYPE_CHECKING:
    from hf_mote.evaluation.conversations import Conversation

__all__ = ["Material", "read_material"]


@dataclass(frozen=True)
class Material:
    """The data of an evaluation, read before the model is loaded.

    Attributes:
        asked (`PromptSet`): The prompts.
        groups (`list[str]`, *optional*): A key for each prompt, equal for prompts that count as one.
        unrelated (`list[Prompt]`): Prompts whose answers should not change.
        texts (`list[str]`): Plain texts.
        conversations (`list[Conversation]`): Conversations to answer.
        opposite (`PromptSet`, *optional*): Prompts that do not show the behaviour.
        opposite_groups (`list[str]`, *optional*): As `groups`, for the opposite prompts.
    """

    asked: PromptSet
    groups: list[str] | None
    unrelated: list[Prompt]
    texts: list[str]
    conversations: list[Conversation]
    opposite: PromptSet | None
    opposite_groups: list[str] | None

    def arguments(self) -> dict[str, Any]:
        """Return the data as arguments of `evaluate_mote`, except for the prompts."""
        return {
            "groups": self.groups,
            "unrelated": self.unrelated,
            "texts": self.texts,
            "conversations": self.conversations,
        }


def read_material(
    reading: Reading,
    organisms: Organisms,
    *,
    prompts: str,
    unrelated: str | None,
    opposite: str | None,
    texts: str | None,
    conversations: str | None,
    seed: int,
) -> Material:
    """Read the data from its sources.

    Args:
        reading (`Reading`): How prompts are read.
        organisms (`Organisms`): Where organisms come from.
        prompts (`str`): Source of the prompts.
        unrelated (`str`, *optional*): Source of prompts whose answers should not change.
        opposite (`str`, *optional*): Source of prompts that do not show the behaviour.
        texts (`str`, *optional*): Source of plain texts.
        conversations (`str`, *optional*): File of conversations.
        seed (`int`): Seed of the draws.

    Raises:
        [`UnknownNameError`]: if there is no such source or field.
        [`DataError`]: if one holds an invalid record; its place is named.
    """

    def read(source: str) -> PromptSet:
        return reading.prompts(source, organisms, seed=seed)

    asked = read(prompts)
    others = [] if unrelated is None else read(unrelated).prompts
    opposite_set = None if opposite is None else read(opposite)
    return Material(
        asked=asked,
        groups=reading.groups(asked),
        unrelated=others,
        texts=[] if texts is None else read(texts).texts,
        conversations=[]
        if conversations is None
        else read_conversations(conversations, limit=reading.limit, seed=seed),
        opposite=opposite_set,
        opposite_groups=None if opposite_set is None else reading.groups(opposite_set),
    )
