"""How prompts become tokens, and how responses come."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from hf_mote.commands import options as o
from hf_mote.commands.verbosity import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_mote.generation.asking import Chat, Decoding

__all__ = ["AS_SHIPPED", "Generating", "Sampling", "Templating", "say_if_plain"]


@dataclasses.dataclass(frozen=True)
class Templating:
    """How prompts become tokens.

    Attributes:
        system_prompt (`str`, *optional*): `--system-prompt`; so are the others.
        chat_template (`Path`, *optional*): File of a chat template, in the place of the tokenizer's.
        template_arg (`list[str]`, *optional*): Its further arguments, as `name=JSON`.
    """

    system_prompt: o.SystemPrompt = None
    chat_template: o.ChatTemplate = None
    template_arg: o.TemplateArgs = None

    def settings(self) -> dict[str, Any]:
        """Return the arguments by which functions of this package take system prompt and template arguments.

        Raises:
            [`ConfigError`]: if a template argument is no name and JSON, or comes twice.
        """
        return {"system_prompt": self.system_prompt, "chat_template_kwargs": o.template_args(self.template_arg)}

    def chat(self, tokenizer: PreTrainedTokenizerBase) -> Chat:
        """Return how prompts become this tokenizer's tokens.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): The model's, with the chat template that is to be used.
        """
        from hf_mote.generation.asking import Chat

        return Chat(tokenizer, self.system_prompt, o.template_args(self.template_arg))


AS_SHIPPED = Templating()


def say_if_plain(tokenizer: PreTrainedTokenizerBase) -> None:
    """Say that prompts reach the model as plain text, if its tokenizer has no chat template.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's, with the chat template that is to be used.
    """
    if tokenizer.chat_template is None:
        say("the tokenizer has no chat template: prompts are read as plain text")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: greedily by default.

    Attributes:
        temperature (`float`, *optional*): `--temperature`; so is the other, as [`options.sampling`] has them.
        top_p (`float`, *optional*): See there.
    """

    temperature: o.Temperature = None
    top_p: o.TopP = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `generate`: none for greedy decoding.

        Raises:
            [`ConfigError`]: if one is out of range.
        """
        return o.sampling(self.temperature, self.top_p)


@dataclasses.dataclass(frozen=True)
class Generating:
    """How many responses are generated together, and how long they may be.

    Attributes:
        batch_size (`int`, *optional*, defaults to 16): `--batch-size`.
        max_new_tokens (`int`, *optional*, defaults to 64): `--max-new-tokens`.
    """

    batch_size: o.BatchSize = 16
    max_new_tokens: o.MaxNewTokens = 64

    def decoding(self, seed: int, sampled: dict[str, Any] | None = None) -> Decoding:
        """Return how responses are decoded.

        Args:
            seed (`int`): Of the draws.
            sampled (`dict[str, Any]`, *optional*): What [`Sampling.arguments`] returned; greedy by default.
        """
        from hf_mote.generation.asking import Decoding

        return Decoding(self.max_new_tokens, sampled, self.batch_size, seed)
