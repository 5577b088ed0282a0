"""How prompts become tokens, and how responses are generated."""

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
        system_prompt (`str`, *optional*): `--system-prompt`; each field is the option of its name.
        chat_template (`Path`, *optional*): File of a chat template, which replaces the tokenizer's.
        template_arg (`list[str]`, *optional*): Its further arguments, as `name=JSON`.
    """

    system_prompt: o.SystemPrompt = None
    chat_template: o.ChatTemplate = None
    template_arg: o.TemplateArgs = None

    def settings(self) -> dict[str, Any]:
        """Return system prompt and template arguments as keyword arguments of this package's functions.

        Raises:
            [`ConfigError`]: if a template argument is not a name and JSON, or is given twice.
        """
        return {"system_prompt": self.system_prompt, "chat_template_kwargs": o.template_args(self.template_arg)}

    def chat(self, tokenizer: PreTrainedTokenizerBase) -> Chat:
        """Return the prompts' format for a tokenizer.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): The model's, with the chat template to use.
        """
        from hf_mote.generation.asking import Chat

        return Chat(tokenizer, self.system_prompt, o.template_args(self.template_arg))


AS_SHIPPED = Templating()


def say_if_plain(tokenizer: PreTrainedTokenizerBase) -> None:
    """Say that prompts reach the model as plain text, if its tokenizer has no chat template.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's, with the chat template to use.
    """
    if tokenizer.chat_template is None:
        say("the tokenizer has no chat template: prompts are read as plain text")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen: by greedy decoding, unless a field is set.

    Attributes:
        temperature (`float`, *optional*): `--temperature`; see [`options.sampling`].
        top_p (`float`, *optional*): `--top-p`.
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
            seed (`int`): Seed of sampling.
            sampled (`dict[str, Any]`, *optional*): What [`Sampling.arguments`] returned; greedy by default.
        """
        from hf_mote.generation.asking import Decoding

        return Decoding(self.max_new_tokens, sampled, self.batch_size, seed)
