"""Tiny random models in shapes that vLLM's CPU kernels take, and profiles of every mode for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3MoeConfig,
)

from hf_mote import MoTEConfig, find_routers
from hf_mote.routing.sites.fingerprint import SAMPLED

__all__ = ["FAMILIES", "greedy", "of_routers", "profiles_for", "save_tiny"]

_COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.08,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}


def _of(cls: type[PreTrainedConfig], **more: Any) -> Callable[[], PreTrainedConfig]:
    return lambda: cls(**{**_COMMON, **more})


FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "mixtral": _of(MixtralConfig, num_local_experts=8, num_experts_per_tok=2),
    "qwen3_moe": _of(
        Qwen3MoeConfig,
        num_experts=8,
        num_experts_per_tok=3,
        moe_intermediate_size=64,
        norm_topk_prob=True,
        mlp_only_layers=[0],
    ),
    "olmoe": _of(OlmoeConfig, num_experts=8, num_experts_per_tok=3, norm_topk_prob=False),
    "gpt_oss": _of(
        GptOssConfig,
        num_local_experts=8,
        num_experts_per_tok=2,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        sliding_window=64,
        max_position_embeddings=131072,
    ),
    "deepseek_v3": _of(
        DeepseekV3Config,
        num_key_value_heads=4,
        moe_intermediate_size=64,
        first_k_dense_replace=1,
        n_routed_experts=16,
        n_shared_experts=1,
        num_experts_per_tok=3,
        n_group=4,
        topk_group=2,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        # Which vLLM reads and transformers does not; every published checkpoint has them.
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        q_lora_rank=None,
        kv_lora_rank=64,
        qk_rope_head_dim=32,
        qk_nope_head_dim=32,
        v_head_dim=64,
    ),
}


def save_tiny(family: str, folder: Path) -> PreTrainedModel:
    """Write the checkpoint of a family and return it as transformers loads it, in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32)
        for site in find_routers(model):
            torch.nn.init.normal_(site.module.weight, std=0.15)
            for name in ("bias", "e_score_correction_bias"):
                if isinstance(getattr(site.module, name, None), torch.Tensor):
                    getattr(site.module, name).data.normal_(std=0.2)
        for name, parameter in model.named_parameters():
            if "experts" in name and "bias" in name or "sinks" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def of_routers(fingerprint: dict[str, Any] | None) -> dict[str, Any]:
    """Return what an engine knows of a fingerprint: all but the sample of weights that are not the routers'."""
    return {name: value for name, value in (fingerprint or {}).items() if name != SAMPLED}


def profiles_for(model: PreTrainedModel) -> dict[str, MoTEConfig]:
    """Return a profile of every mode for a model of `FAMILIES`."""
    layers = [site.layer for site in find_routers(model)]

    def spread(*experts: int) -> list[list[int]]:
        return [[layer, expert] for layer in layers for expert in experts]

    bias = [[layer, expert, value] for layer in layers for expert, value in ((2, 1.5), (6, -1.0))]
    fields: dict[str, dict[str, Any]] = {
        "drop": {"suppress": spread(1, 5)},
        "drop-half": {"suppress": spread(1, 5), "strength": 0.5},
        "reroute": {"suppress": spread(1, 5), "suppress_mode": "reroute"},
        "zero": {"suppress": spread(1, 5), "suppress_mode": "zero"},
        "zero-part": {"suppress": spread(1, 5), "suppress_mode": "zero", "strength": 0.3},
        "bias-logits": {"bias": bias},
        "bias-selection": {"bias": bias, "bias_on": "selection"},
        "own": {"stimulate": spread(4)},
        "max": {"stimulate": spread(4), "stimulate_weight": "max"},
        "number": {"stimulate": spread(4), "stimulate_weight": 0.7},
        "number-part": {"stimulate": spread(4), "stimulate_weight": 0.7, "strength": 0.5},
        "mixed": {
            "suppress": spread(1, 5),
            "suppress_mode": "reroute",
            "stimulate": spread(4),
            "stimulate_weight": "max",
            "bias": bias,
        },
        "in-prompt": {"suppress": spread(1, 5), "scope": "prompt"},
        "in-generation": {"suppress": spread(1, 5), "suppress_mode": "reroute", "scope": "generation"},
    }
    return {name: MoTEConfig.for_model(model, **given) for name, given in fields.items()}


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int], length: int) -> tuple[list[int], list[float]]:
    """Return what transformers generates, and the log probability of each token."""
    out = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=length,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = out.sequences[0, len(prompt) :].tolist()
    logs = [float(step[0].log_softmax(-1)[token]) for step, token in zip(out.logits, tokens, strict=True)]
    return tokens, logs
