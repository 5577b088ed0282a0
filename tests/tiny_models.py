"""Five tiny random models that most tests run on, and a tokenizer for them; all built in memory.

A new family goes into `tiny_families.py`, where every family has one. Weights are seeded and wide enough that experts
matter and that a chosen expert and the next best are well apart, so that a test about selection is not a test about
rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from string import ascii_letters, digits, punctuation
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

__all__ = ["TINY_MODELS", "tiny_model", "tiny_tokenizer"]

_SPECIAL = ["<pad>", "<eos>", "<unk>", "<user>", "<assistant>"]
_VOCABULARY = [*_SPECIAL, *ascii_letters, *digits, *punctuation, " ", "\n"]

_COMMON: dict[str, Any] = {
    "vocab_size": len(_VOCABULARY),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    # Close to 1 / sqrt(hidden_size), so that no layer fades.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
_DEEPSEEK: dict[str, Any] = {
    **_COMMON,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "routed_scaling_factor": 1.5,
}


def _builder(cls: type[PreTrainedConfig], **defaults: Any) -> Callable[..., PreTrainedConfig]:
    return lambda **overrides: cls(**{**defaults, **overrides})


TINY_MODELS: dict[str, Callable[..., PreTrainedConfig]] = {
    "deepseek_v2": _builder(DeepseekV2Config, **_DEEPSEEK, topk_method="greedy", num_experts_per_tok=3),
    "deepseek_v2_groups": _builder(
        DeepseekV2Config,
        **_DEEPSEEK,
        topk_method="group_limited_greedy",
        n_group=4,
        topk_group=2,
        num_experts_per_tok=3,
    ),
    "deepseek_v3": _builder(DeepseekV3Config, **_DEEPSEEK, n_group=1, topk_group=1, num_experts_per_tok=4),
    "deepseek_v3_groups": _builder(DeepseekV3Config, **_DEEPSEEK, n_group=2, topk_group=1, num_experts_per_tok=2),
    "mixtral": _builder(MixtralConfig, **_COMMON, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2),
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
