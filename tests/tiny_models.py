"""The five tiny random models that most tests run on, and a tokenizer for them; all built in memory.

Their configs are in `tiny_families.py`, which has one for every family: a new one goes there. Weights are seeded
and wide enough that experts matter and that a chosen expert and the next best are well apart, so that a test about
selection is not a test about rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from string import ascii_letters, digits, punctuation
from typing import Any

import torch
from tiny_families import COMMON_MODELS, common_config
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

__all__ = ["TINY_MODELS", "tiny_model", "tiny_tokenizer"]

_SPECIAL = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>"]
_VOCABULARY = [*_SPECIAL, *ascii_letters, *digits, *punctuation, " ", "\n"]

TINY_MODELS: dict[str, Callable[..., PreTrainedConfig]] = {
    name: partial(common_config, name, vocab_size=len(_VOCABULARY)) for name in COMMON_MODELS
}


def tiny_model(name: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    """Return the model of that name, in evaluation mode, the same at every call; `overrides` go to its config."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(TINY_MODELS[name](**overrides), dtype=torch.float32)
        for module in model.modules():
            # Routers are the modules that hold `top_k` and a weight with one row per expert.
            if hasattr(module, "top_k") and isinstance(getattr(module, "weight", None), torch.nn.Parameter):
                torch.nn.init.normal_(module.weight, std=0.4)
                if hasattr(module, "e_score_correction_bias"):
                    torch.nn.init.normal_(module.e_score_correction_bias, std=0.2)
    # Parameters only: `from_pretrained`, too, leaves the selection bias and the rotary frequencies in float32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model.eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token per character, with pad, eos and unk, left padding and a chat template."""
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(_VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = (
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
        "{% if message.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return fast
