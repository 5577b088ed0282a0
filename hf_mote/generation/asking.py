"""How a model is asked: `Chat`, how prompts become tokens, and `Decoding`, how responses are generated.

Prompts become tokens only here, so that imaging, attribution and evaluation see the same tokens. Public functions take
the fields as separate arguments and pass on these two objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hf_mote.errors import ConfigError, DataError, real, whole
from hf_mote.generation.chat import Prompt, check_template_kwargs, rendered
from hf_mote.generation.decoding import pad_token_of
from hf_mote.generation.prompts import prompt_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Chat", "Decoding"]

_STAND_IN = "\ue000user text\ue001"


@dataclass(frozen=True, eq=False)
class Chat:
    """How prompts become tokens.

    A tokenizer with a chat template gets it applied, with the generation prompt; one without gets the text as it is.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        system_prompt (`str`, *optional*): First message of every prompt that is a text.
        template_kwargs (`Mapping[str, Any]`, *optional*):
            Further arguments of the template, as `{"enable_thinking": False}`; it must read each name.

    Raises:
        [`ConfigError`]: if `template_kwargs` is not a mapping of names, or the tokenizer has no template.
        [`UnknownNameError`]: if the template does not read a name.
    """

    tokenizer: PreTrainedTokenizerBase
    system_prompt: str | None = None
    template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "template_kwargs", check_template_kwargs(self.tokenizer, self.template_kwargs))

    def text(self, prompt: Prompt, where: str) -> str:
        """Return the text of a prompt; see [`rendered`]."""
        return rendered(self.tokenizer, prompt, self.system_prompt, self.template_kwargs or {}, where)

    def encode(self, prompts: Sequence[Prompt], where: str = "prompts") -> list[list[int]]:
        """Return each prompt's token ids, ready for a response to follow.

        Args:
            prompts (`Sequence[Prompt]`): Texts or chats.
            where (`str`, *optional*, defaults to `"prompts"`): The place, for errors.

        Raises:
            [`ConfigError`]: if a chat or a system prompt meets a tokenizer without a template, or the template fails.
            [`DataError`]: if a prompt has no token, or is not Unicode; it is named.
        """
        plain = self.tokenizer.chat_template is None
        texts = [self.text(prompt, f"{where}[{index}]") for index, prompt in enumerate(prompts)]
        if not texts:
            return []
        encoded = [list(ids) for ids in self.tokenizer(texts, add_special_tokens=plain)["input_ids"]]
        for index, ids in enumerate(encoded):
            if not ids:
                raise DataError(
                    f"{where}[{index}]",
                    "has no token that the tokenizer knows",
                    got=repr(prompts[index])[:60],
                    expected="one token or more",
                    fix="Leave the prompt out.",
                )
        return encoded

    def user_text(self, prompts: Sequence[Prompt], where: str = "prompts") -> list[list[bool]]:
        """Return for each prompt which of the tokens of `encode` are the user's own text, not the template's.

        Args:
            prompts (`Sequence[Prompt]`): Texts, or chats, of which the last message counts.
            where (`str`, *optional*, defaults to `"prompts"`): The place, for errors.

        Raises:
            [`ConfigError`]: if the tokenizer gives no positions of its tokens in the text.
            [`DataError`]: if the template changes the user's text, so that it is not found again.
        """
        if not self.tokenizer.is_fast:
            raise ConfigError(
                "tokenizer",
                "does not give the positions of its tokens",
                got=type(self.tokenizer).__name__,
                expected="a fast tokenizer",
            )
        marks = []
        plain = self.tokenizer.chat_template is None
        for index, prompt in enumerate(prompts):
            place = f"{where}[{index}]"
            text, own = self.text(prompt, place), prompt_text(prompt)
            # A placeholder that no template contains gives the position; the text itself may occur in the template,
            # too.
            other = _STAND_IN if isinstance(prompt, str) else [*prompt[:-1], {**prompt[-1], "content": _STAND_IN}]
            before, _, after = self.text(other, place).partition(_STAND_IN)
            if text != before + own + after:
                own = own.strip()
            if text != before + own + after:
                raise DataError(place, "is changed by the chat template", got=repr(own)[:60])
            start, end = len(before), len(before) + len(own)
            spans = self.tokenizer(text, add_special_tokens=plain, return_offsets_mapping=True)["offset_mapping"]
            marks.append([a < end and b > start and b > a for a, b in spans])
        return marks


@dataclass(frozen=True, eq=False)
class Decoding:
    """How responses are decoded: greedily, one for each prompt, unless `generate_kwargs` say otherwise.

    Args:
        max_new_tokens (`int`, *optional*, defaults to 64): Longest response, in tokens.
        generate_kwargs (`Mapping[str, Any]`, *optional*): Further arguments of `generate`.
        batch_size (`int`, *optional*, defaults to 16): Prompts that run together.
        seed (`int`, *optional*): Seed of sampled responses, batch by batch; without it the caller's random state is
            used.

    Raises:
        [`ConfigError`]: if more than one plain response for each prompt is asked for, or a number is out of range.
    """

    max_new_tokens: int = 64
    generate_kwargs: Mapping[str, Any] | None = None
    batch_size: int = 16
    seed: int | None = None

    def __post_init__(self) -> None:
        whole("batch_size", self.batch_size, least=1)
        given = {} if self.generate_kwargs is None else self.generate_kwargs
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            got = repr(self.generate_kwargs)[:60]
            raise ConfigError(
                "generate_kwargs",
                "must be a mapping of names to values",
                got=got,
                expected='as in {"do_sample": True}',
            )
        for name, usual in (("num_return_sequences", 1), ("num_beams", 1), ("return_dict_in_generate", False)):
            if given.get(name, usual) not in (usual, None):
                what = "one plain response is needed for each prompt"
                raise ConfigError(f"generate_kwargs.{name}", what, got=self.generate_kwargs)
        whole("max_new_tokens", self.max_new_tokens, least=1)
        whole("generate_kwargs.max_new_tokens", given.get("max_new_tokens", 1), least=1)
        for name, most in (("temperature", math.inf), ("top_p", 1.0)):
            fix = "Greedy decoding is the default: leave it out." if name == "temperature" else None
            if given.get(name) is not None:
                real(f"generate_kwargs.{name}", given[name], above=0, most=most, fix=fix)

    @property
    def stop(self) -> Any:
        """The tokens that end a response instead of the model's own, as `generate` takes them, or `None`."""
        return (self.generate_kwargs or {}).get("eos_token_id")

    def settings(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Return the arguments of `generate`.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer, whose padding is used.
        """
        own = {"do_sample": False, "max_new_tokens": self.max_new_tokens, "pad_token_id": pad_token_of(tokenizer)}
        return {**own, **(self.generate_kwargs or {})}
