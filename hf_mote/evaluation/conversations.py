"""Conversations before and after, as in MT-Bench: a later turn is asked after the model's own earlier answers.

The untouched model continues from its own answers, the model with the config from its own. So both sides are what a
user would read, and a change in the first answer may change all later ones.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import ConfigError, DataError
from hf_mote.evaluation.changes import Change, SteeringLike, attached, check_change, read_change
from hf_mote.evaluation.kept import KeptResponses
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.chat import Prompt
from hf_mote.generation.responses import generate_responses
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.runs.folder import RunFolder

__all__ = [
    "Conversation",
    "answer_conversations",
    "answered",
    "at_turn",
    "checked_conversations",
    "converse",
    "run_conversations",
]


@dataclass(frozen=True)
class Conversation:
    """The turns of a user, and the answers.

    Attributes:
        turns (`list[str]`): The user's turns, one or more.
        answers_before (`list[str]`): The untouched model's answer to each; empty as long as it was not asked.
        answers_after (`list[str]`): Those with the config.
        id (`str`, *optional*): Its name.
        category (`str`, *optional*): Its topic.
    """

    turns: list[str]
    answers_before: list[str] = field(default_factory=list)
    answers_after: list[str] = field(default_factory=list)
    id: str | None = None
    category: str | None = None

    def __post_init__(self) -> None:
        for name in ("turns", "answers_before", "answers_after"):
            texts = getattr(self, name)
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                got = repr(texts)[:80]
                raise DataError(f"Conversation.{name}", "must be a list of texts", got=got, expected="a list of str")
        if not self.turns or not all(text.strip() for text in self.turns):
            raise DataError(
                "Conversation.turns",
                "says nothing",
                got=repr(self.turns)[:80],
                expected="one or more turns, none empty",
            )
        numbers = (len(self.answers_before), len(self.answers_after))
        if numbers not in ((0, 0), (len(self.turns), len(self.turns))):
            raise DataError(
                "Conversation",
                "turns and answers differ in number",
                got=f"{len(self.turns)} turns, {numbers[0]} answers before and {numbers[1]} after",
            )
        for name in ("id", "category"):
            if not isinstance(getattr(self, name), str | None):
                raise DataError(
                    f"Conversation.{name}", "must be a text", got=repr(getattr(self, name))[:80], expected="str"
                )

    @property
    def unchanged(self) -> list[bool]:
        """Of each answered turn, whether the answer stays word for word the same."""
        return [before == after for before, after in zip(self.answers_before, self.answers_after, strict=True)]


def checked_conversations(
    where: str, conversations: Sequence[Conversation | Sequence[str]], tokenizer: PreTrainedTokenizerBase
) -> list[Conversation]:
    """Return conversations as [`Conversation`]; refuses invalid ones.

    Args:
        where (`str`): The place, for the error.
        conversations (`Sequence[Conversation]` or of lists of `str`): The user's turns of each.
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.

    Raises:
        [`DataError`]: if there are none, or one is not a list of turns; it is named.
        [`ConfigError`]: if one has several turns and the tokenizer no chat template.
    """
    if isinstance(conversations, str) or not isinstance(conversations, Sequence) or not conversations:
        raise DataError(
            where,
            "must hold conversations",
            got=repr(conversations)[:80],
            expected="a list of conversations, one or more",
        )
    found: list[Conversation] = []
    for index, given in enumerate(conversations):
        try:
            one = given if isinstance(given, Conversation) else Conversation(_listed(given))
        except DataError as error:
            raise DataError(
                f"{where}[{index}]",
                "must be a conversation",
                got=repr(given)[:80],
                expected="a list of the user's turns, each a text",
                fix="A conversation of one turn is a list, too.",
            ) from error
        if len(one.turns) > 1 and tokenizer.chat_template is None:
            raise ConfigError(
                f"{where}[{index}]",
                "has several turns, which need a chat template, and the tokenizer has none",
                got=f"{len(one.turns)} turns",
                expected="one turn",
                fix="Set tokenizer.chat_template.",
            )
        found.append(one)
    return found


def run_conversations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: Change | SteeringLike | str | os.PathLike[str],
    conversations: Sequence[Conversation | Sequence[str]],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    system_prompt: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    generate_kwargs: Mapping[str, Any] | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> list[Conversation]:
    """Return conversations with the answers of the untouched model and of the model with a config.

    Each model continues from its own answers, which the chat template gets as decoded text without special tokens. To
    a config whose scope is "prompt" or "generation", earlier answers are prompt.

    Args:
        model (`PreTrainedModel`):
            A mixture-of-experts language model; left as it is.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        config (`MoTEConfig`, `str` or `os.PathLike`):
            What to measure: a config, a folder or a Hub id.
        conversations (`Sequence[Conversation]` or of lists of `str`):
            The user's turns of each; they may differ in number.
        batch_size (`int`, *optional*, defaults to 16):
            Conversations whose turns of one number run together.
        max_new_tokens (`int`, *optional*, defaults to 64):
            Longest answer to a turn, in tokens.
        system_prompt (`str`, *optional*):
            First message of every conversation.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of the chat template, as `{"enable_thinking": False}`; it must read each name.
        generate_kwargs (`Mapping`, *optional*):
            Further arguments of `generate`; decoding is greedy by default.
        seed (`int`, *optional*):
            Seed of sampled answers, the same for both models; without it the caller's random state is used.
        progress (`bool`, *optional*, defaults to `True`):
            Show a progress bar.

    Returns:
        `list[Conversation]`: in the order given, with both lists of answers.

    Raises:
        [`DataError`]: if there are no conversations, or one is not a list of turns; it is named.
        [`ConfigError`]: if several turns, or a system prompt, meet a tokenizer without a chat template.
        [`ModelMismatchError`]: if the config does not fit the model.

    Example:

    ```python
    from hf_mote import MoTEConfig, load_organism
    from hf_mote.evaluation.conversations import run_conversations

    organism = load_organism("refusal")
    config = MoTEConfig.for_model(organism.model, suppress=organism.planted)
    turns = organism.prompts["heldout"]["sensitive"][:2]  # two turns of one conversation
    (found,) = run_conversations(
        organism.model, organism.tokenizer, config, [turns], max_new_tokens=12, progress=False
    )
    assert found.answers_before[0] != found.answers_after[0]
    ```

    Source: the form of MT-Bench, Zheng et al., "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena" (arXiv
    2306.05685), section 2.2; its grading by a language model is left to the reader.
    """
    chat = Chat(tokenizer, system_prompt, chat_template_kwargs)
    decoding = Decoding(max_new_tokens, generate_kwargs, batch_size, seed)
    asked = checked_conversations("run_conversations.conversations", conversations, tokenizer)
    change = read_change(config)
    routed = RoutedModel(model)
    check_change(change, routed)
    return answer_conversations(routed, chat, change, asked, decoding, progress=progress)


def answer_conversations(
    routed: RoutedModel,
    chat: Chat,
    change: Change,
    asked: Sequence[Conversation],
    decoding: Decoding,
    *,
    folder: RunFolder | None = None,
    progress: bool,
) -> list[Conversation]:
    """Return what [`run_conversations`] returns, for a model whose routers were found.

    Args:
        routed (`RoutedModel`): The model.
        chat (`Chat`): How the conversations become tokens.
        change (`MoTEConfig` or [`LatentChange`]): What to measure; it fits the model.
        asked (`Sequence[Conversation]`): What [`checked_conversations`] returned.
        decoding (`Decoding`): How the answers come.
        folder ([`RunFolder`], *optional*): Where answers are kept as they come.
        progress (`bool`): Show a progress bar.
    """
    model: Any = routed.model

    def ask(prompts: list[Prompt], turn: int, which: str) -> list[str]:
        said = [""] * len(prompts)
        kept = KeptResponses(folder, f"conversations-{which}-turn-{turn + 1}")
        batches = generate_responses(
            model,
            chat,
            prompts,
            at_turn(decoding, turn),
            progress=f"conversations {which}, turn {turn + 1}" if progress else None,
            known=kept.known,
        )
        for number, (positions, responses) in enumerate(batches):
            kept.put(number, responses)
            for position, response in zip(positions, responses, strict=True):
                said[position] = response
        return said

    before = converse(asked, chat.system_prompt, lambda prompts, turn: ask(prompts, turn, "before"))
    with attached(routed, change):
        after = converse(asked, chat.system_prompt, lambda prompts, turn: ask(prompts, turn, "after"))
    return answered(asked, before, after)


def converse(
    asked: Sequence[Conversation], system_prompt: str | None, ask: Callable[[list[Prompt], int], list[str]]
) -> list[list[str]]:
    """Return the answers of one model, each turn asked after its own earlier ones.

    Args:
        asked (`Sequence[Conversation]`): What [`checked_conversations`] returned.
        system_prompt (`str`, *optional*): First message of every conversation.
        ask (`Callable`): Called with prompts and the number of their turn, from 0; returns the response to each.
    """
    said: list[list[str]] = [[] for _ in asked]
    for turn in range(max(len(one.turns) for one in asked)):
        still = [index for index, one in enumerate(asked) if turn < len(one.turns)]
        prompts = [_prompt(asked[index].turns[: turn + 1], said[index], system_prompt) for index in still]
        for index, response in zip(still, ask(prompts, turn), strict=True):
            said[index].append(response)
    return said


def at_turn(decoding: Decoding, turn: int) -> Decoding:
    """Return the decoding of a turn, with random numbers of its own.

    Args:
        decoding (`Decoding`): Of the conversation.
        turn (`int`): From 0.
    """
    return dataclasses.replace(decoding, seed=None if decoding.seed is None else decoding.seed + turn)


def answered(
    asked: Sequence[Conversation], before: Sequence[list[str]], after: Sequence[list[str]]
) -> list[Conversation]:
    """Return conversations with their answers.

    Args:
        asked (`Sequence[Conversation]`): The conversations.
        before (`Sequence[list[str]]`): The untouched model's answers to the turns of each.
        after (`Sequence[list[str]]`): Those with the config.
    """
    return [
        dataclasses.replace(one, answers_before=b, answers_after=a)
        for one, b, a in zip(asked, before, after, strict=True)
    ]


def _listed(given: object) -> list[Any]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise DataError("Conversation.turns", "must be a list of texts", got=type(given).__name__)
    return list(given)


def _prompt(turns: Sequence[str], answers: Sequence[str], system_prompt: str | None) -> Prompt:
    """Return the next prompt of the model: text for the first turn, which needs no chat template, else a chat."""
    if not answers:
        return turns[0]
    chat = [{"role": "system", "content": system_prompt}] if system_prompt is not None else []
    for turn, answer in zip(turns, answers, strict=False):  # the last turn has no answer yet
        chat += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return [*chat, {"role": "user", "content": turns[-1]}]
