"""A tiny random model of every mixture-of-experts family of transformers, built in memory from one table.

A new family is one line of `_FAMILIES`: its model class and what its config needs beyond `_COMMON`. As in
`tiny_models`, weights are seeded, and the routers are wide enough that chosen experts and the rest are well apart.
`COMMON_MODELS`, at the end, are the configs of the few models that most tests run on.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import ALLOWED_LAYER_TYPES
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

__all__ = ["COMMON_MODELS", "NOT_BUILT", "TINY_FAMILIES", "common_config", "family_inputs"]

_NUMBER_OF_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

# Every config, and every config inside it, takes from here the names that it declares.
_COMMON: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "unpadded_vocab_size"), 100),
    **dict.fromkeys(("hidden_size", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "dense_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "shared_experts_intermediate_size"), 24),
    **dict.fromkeys(("expert_ffn_hidden_size", "share_expert_dim"), 24),
    "num_hidden_layers": 3,
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 4),
    **dict.fromkeys(("head_dim", "swa_head_dim"), 8),
    "max_position_embeddings": 128,
    # Close to 1 / sqrt(hidden_size), so that no layer fades.
    "initializer_range": 0.2,
    **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1},
    **{"image_token_id": 90, "video_token_id": 91, "audio_token_id": 92},
    # Vision and audio towers, as small as they build.
    **dict.fromkeys(("depth", "encoder_layers"), 1),
    **dict.fromkeys(("num_heads", "encoder_attention_heads", "num_position_embeddings"), 4),
    **dict.fromkeys(("out_hidden_size", "output_dim", "projector_hidden_size"), 32),
    **dict.fromkeys(("encoder_ffn_dim", "mlp_dim", "projection_intermediate_size", "adapter_out_dim"), 32),
    **dict.fromkeys(("global_attn_indexes", "deepstack_visual_indexes"), [0]),
    **dict.fromkeys(("pos_emb_height", "pos_emb_width"), 2),
    **dict.fromkeys(("num_mel_bins", "downsample_hidden_size", "n_window"), 8),
    **dict.fromkeys(("depths", "hidden_sizes", "patch_sizes"), (1, 1, 1)),
    "mlp_ratio": 2.0,
    **{"image_size": 28, "patch_size": 14, "output_channels": 16, "downsample_channels": [16, 32]},
    **dict.fromkeys(("image_start_token_id", "video_start_token_id", "vision_start_token_id"), 93),
    **dict.fromkeys(("image_end_token_id", "video_end_token_id", "vision_end_token_id"), 94),
    # Experts.
    **dict.fromkeys(_NUMBER_OF_EXPERTS, 8),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 3),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("routed_scaling_factor", "router_scaling_factor", "route_scale"), 1.5),
    **dict.fromkeys(("moe_routed_scaling_factor", "moe_router_scaling_factor"), 1.5),
    "norm_topk_prob": True,
    **{"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"},
    # Dense layers.
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    "mlp_only_layers": [0],
    "mlp_layer_types": ["dense", "sparse", "sparse"],
    # Latent, sparse and linear attention.
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "index_topk", "index_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("index_n_heads", "linear_num_key_heads"), 2),
}

_LINEAR = ["full_attention", "linear_attention", "full_attention"]
# Called otherwise before transformers 5.18.
_INDEXED_LAYER = "indexed_attention" if "indexed_attention" in ALLOWED_LAYER_TYPES else "deepseek_sparse_attention"
_INDEXED = [_INDEXED_LAYER, "linear_attention", _INDEXED_LAYER]
_INDEXER = {
    **dict.fromkeys(("indexer_head_dim", "indexer_budget"), 16),
    **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_compress_ratio": 4},
}
_MAMBA = {"mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 8, "chunk_size": 16}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_ENCODER_DECODER = {
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), 48),
    "d_kv": 8,
    "decoder_start_token_id": 0,
}
_DBRX = {
    # Before transformers 5.18 or so its router was as wide as the experts are inside: take them as wide as the rest.
    **{"n_layers": 2, "n_heads": 4, "max_seq_len": 128, "ffn_config": {"moe_top_k": 3, "ffn_hidden_size": 32}},
    # Left to itself, DBRX asks for a rope_theta that its config has not, and clamps between None and None.
    "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
}
_JAMBA = {
    **{"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 0, "expert_layer_period": 2},
}

# Family directory: model class, then what its config needs beyond `_COMMON`.
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": ("AfmoeForCausalLM", {}),
    "aria": ("AriaTextForCausalLM", {}),
    "axk1": ("AXK1ForCausalLM", {}),
    "axk2": ("AXK2ForCausalLM", {}),
    "bailing_hybrid": ("BailingHybridForCausalLM", {"layer_types": _LINEAR}),
    "beam": ("BeamForCausalLM", {}),
    "cohere2_moe": ("Cohere2MoeForCausalLM", {}),
    "dbrx": ("DbrxForCausalLM", _DBRX),
    "deepseek_ocr2": ("DeepseekOcr2ForConditionalGeneration", {}),
    "deepseek_v2": ("DeepseekV2ForCausalLM", {}),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {}),
    "deepseek_v32": ("DeepseekV32ForCausalLM", {}),
    "deepseek_v4": (
        "DeepseekV4ForCausalLM",
        {"mlp_layer_types": ["hash_moe", "moe", "moe"], "o_groups": 2, "o_lora_rank": 16},
    ),
    "diffusion_gemma": (
        "DiffusionGemmaForBlockDiffusion",
        {"canvas_length": 8, "text_config": {"global_head_dim": 16}, "vision_config": {"model_type": "gemma4_vision"}},
    ),
    "doge": ("DogeForCausalLM", {"is_moe": True, "num_experts": 16}),
    "dots1": ("Dots1ForCausalLM", {}),
    "dots3_note": (
        "Dots3NoteForCausalLM",
        {"layer_types": ["indexed_attention"] * 3},
    ),
    "ernie4_5_moe": ("Ernie4_5_MoeForCausalLM", {}),
    "ernie4_5_vl_moe": (
        "Ernie4_5_VLMoeForConditionalGeneration",
        {"text_config": {"moe_intermediate_size": [24, 16], "rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}}},
    ),
    "exaone_moe": ("ExaoneMoeForCausalLM", {}),
    "flex_olmo": ("FlexOlmoForCausalLM", {}),
    "flint": ("FlintForCausalLM", {}),
    "gemma4": (
        "Gemma4ForCausalLM",
        {"enable_moe_block": True, "hidden_size_per_layer_input": 0, "global_head_dim": 16},
    ),
    "glm4_moe": ("Glm4MoeForCausalLM", {}),
    "glm4_moe_lite": ("Glm4MoeLiteForCausalLM", {}),
    "glm4v_moe": (
        "Glm4vMoeForConditionalGeneration",
        {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 0]}}},
    ),
    "glm5_next": (
        "Glm5NextForConditionalGeneration",
        {"text_config": {"qk_rope_head_dim": 0, "layer_types": _INDEXED}},
    ),
    "glm_moe_dsa": ("GlmMoeDsaForCausalLM", {}),
    "gpt_oss": ("GptOssForCausalLM", {}),
    "granitemoe": ("GraniteMoeForCausalLM", {}),
    "granitemoe_swa": ("GraniteMoeSWAForCausalLM", {}),
    "granitemoehybrid": (
        "GraniteMoeHybridForCausalLM",
        {"layer_types": _LINEAR, "mamba_n_heads": 4, "mamba_d_state": 8},
    ),
    "granitemoeshared": ("GraniteMoeSharedForCausalLM", {}),
    "hunyuan_v1_moe": ("HunYuanMoEV1ForCausalLM", {}),
    "hy_v3": ("HYV3ForCausalLM", {}),
    "hy_v4": ("HYV4ForCausalLM", {}),
    "hy_v4_vl": (
        "HYV4VLForConditionalGeneration",
        {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}}},
    ),
    "inkling": ("InklingForCausalLM", {"d_rel": 4, "rel_extent": 64}),
    "inkling2": ("Inkling2ForCausalLM", {"d_rel": 4, "rel_extent": 64}),
    "inkling2_loop": (
        "Inkling2LoopForCausalLM",
        # Three layers of which the middle one runs three times.
        {
            **{"d_rel": 4, "rel_extent": 64, "loop_gate_rank": 8},
            **{"n_layers_per_attn_res_block": 1, "loop_layer_index_start": 1, "loop_layer_index_end": 2},
            "loop_num_passes": 3,
        },
    ),
    "jamba": ("JambaForCausalLM", _JAMBA),
    "jetmoe": ("JetMoeForCausalLM", {"num_key_value_heads": 2, "kv_channels": 8}),
    "kimi_linear": ("KimiLinearForCausalLM", {"layer_types": _LINEAR}),
    "kolibri1": ("Kolibri1ForCausalLM", {}),
    "laguna": ("LagunaForCausalLM", {"moe_router_logit_softcapping": 3.0}),
    "lara_mini": ("LaraMiniForCausalLM", {"layer_types": ["linear_attention", "sliding_attention", "full_attention"]}),
    "lfm2_moe": ("Lfm2MoeForCausalLM", {"layer_types": ["full_attention", "conv", "full_attention"]}),
    "llama4": ("Llama4ForCausalLM", {"moe_layers": [1, 2], "intermediate_size_mlp": 48}),
    "longcat_flash": (
        "LongcatFlashForCausalLM",
        {"num_layers": 2, "zero_expert_num": 4},
    ),
    "mellum": ("MellumForCausalLM", {}),
    "mimo_v2_flash": ("MiMoV2FlashForCausalLM", {"num_key_value_heads": 2}),
    "minimax": ("MiniMaxForCausalLM", {}),
    "minimax_m2": ("MiniMaxM2ForCausalLM", {}),
    "minimax_m3_vl": ("MiniMaxM3VLForCausalLM", {}),
    "mistral4": ("Mistral4ForCausalLM", {}),
    "mistral_large4": ("MistralLarge4ForConditionalGeneration", {"vision_config": {"model_type": "pixtral"}}),
    "mixtral": ("MixtralForCausalLM", {}),
    "muse_spark": (
        "MuseSparkForConditionalGeneration",
        {"text_config": {"moe_hidden_size": 32, "output_multiplier": 0.5}},
    ),
    "nemotron_h": (
        "NemotronHForCausalLM",
        {"layers_block_type": ["linear_attention", "moe", "full_attention", "moe"], **_MAMBA},
    ),
    "nllb_moe": (
        "NllbMoeForConditionalGeneration",
        {"encoder_sparse_step": 2, "decoder_sparse_step": 2, "init_std": 0.2, **_ENCODER_DECODER},
    ),
    "olmoe": ("OlmoeForCausalLM", {}),
    "openai_privacy_filter": ("OpenAIPrivacyFilterModel", {}),
    "phimoe": ("PhimoeForCausalLM", {"num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {}),
    "qwen3_5_moe": ("Qwen3_5MoeForCausalLM", {"layer_types": _LINEAR}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {}),
    "qwen3_next": ("Qwen3NextForCausalLM", {"layer_types": _LINEAR}),
    "qwen3_omni_moe": ("Qwen3OmniMoeThinkerForConditionalGeneration", {"vision_start_token_id": 93}),
    "qwen3_vl_moe": ("Qwen3VLMoeForConditionalGeneration", {}),
    "qwen4_exp": ("Qwen4ExpForCausalLM", {"layer_types": _LINEAR, "hc_lowrank": 8, **_INDEXER}),
    "sarvam_mla": ("DeepseekV3ForCausalLM", {"model_type": "sarvam_mla"}),
    "sarvam_moe": ("Glm4MoeForCausalLM", {"model_type": "sarvam_moe"}),
    "solar_open": ("SolarOpenForCausalLM", {}),
    "step3p7": ("Step3p7ForConditionalGeneration", {"text_config": {"sliding_window": 64}}),
    "switch_transformers": (
        "SwitchTransformersForConditionalGeneration",
        {"num_layers": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, **_ENCODER_DECODER},
    ),
    "unlimited_ocr": ("UnlimitedOcrForConditionalGeneration", {}),
    "zaya": ("ZayaForCausalLM", {"num_experts_per_tok": 1, "router_hidden_size": 16}),
}

# Families whose models are built of another family's classes.
_BORROWED = {"sarvam_mla": "deepseek_v3", "sarvam_moe": "glm4_moe"}

# Families that cannot be built, and why: none on transformers 5.24.
NOT_BUILT: dict[str, str] = {}

# Paths and class names of what routes.
_ROUTER = re.compile(r"(router_gate .*|Router|TopKGating|MoEV1Gate)$")


def _config(cls: type[PreTrainedConfig], given: dict[str, Any]) -> PreTrainedConfig:
    """Return a config of that class: what is given, before what `_COMMON` has for the names that it declares."""
    if model_type := given.get("model_type"):
        if model_type not in CONFIG_MAPPING:
            raise ImportError(f"no config of model type {model_type!r}")
        cls = CONFIG_MAPPING[model_type]
    names = {field.name for field in fields(cls)}
    common = {name: value for name, value in _COMMON.items() if name in names}
    if "n_group" in names:
        # Four groups of four, so that the two best of a group are not the whole group.
        common.update({name: 16 for name in _NUMBER_OF_EXPERTS if name in names})
    for name, sub in cls.sub_configs.items():
        common[name] = _config(sub, given.get(name, {}))
    given = {name: value for name, value in given.items() if name not in cls.sub_configs and name != "model_type"}
    return cls(**{**common, **given})


def _randomise(model: PreTrainedModel) -> None:
    """Spread what the routers read, and what no initialisation touches: selection biases, scales, hash tables."""
    for path, module in model.named_modules():
        if not _ROUTER.search(f"{path} {type(module).__name__}"):
            continue
        for name, parameter in module.named_parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=0.4 / getattr(module, "scalar_root_size", 1.0))
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
            elif name.endswith("scale"):
                torch.nn.init.uniform_(parameter, 0.7, 1.4)
        if hasattr(module, "tid2eid"):
            table = torch.rand(len(module.tid2eid), module.num_experts).argsort(dim=-1)
            module.tid2eid.copy_(table[:, : module.top_k])
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("e_score_correction_bias", "expert_bias", "balancing_biases")):
            torch.nn.init.normal_(tensor, std=0.2)


def _build(family: str, dtype: torch.dtype = torch.float32, **overrides: Any) -> PreTrainedModel:
    """Return the tiny model of a family, in evaluation mode; `overrides` go to the config that holds the experts."""
    class_name, given = _FAMILIES[family]
    home = _BORROWED.get(family, family)
    cls = getattr(importlib.import_module(f"transformers.models.{home}.modeling_{home}"), class_name)
    if "text_config" in cls.config_class.sub_configs:
        given = {**given, "text_config": {**given.get("text_config", {}), **overrides}}
    else:
        given = {**given, **overrides}
    config = _config(cls.config_class, given)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = cls._from_config(config, dtype=torch.float32)
        _randomise(model)
    if dtype != torch.float32:
        # As a checkpoint loads, with what the family keeps in float32; a second time, for what loading resets (zaya).
        weights = model.state_dict()
        copies = {name: tensor.clone() for name, tensor in weights.items()}
        model = cls.from_pretrained(None, config=config, state_dict=copies, dtype=dtype)
        model.load_state_dict(weights)
    return model.eval()


def family_inputs(model: PreTrainedModel, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what a forward of that model needs: encoder-decoders, and text diffusion, also want a second sequence."""
    inputs = {"input_ids": input_ids}
    if model.config.is_encoder_decoder or hasattr(model.config, "canvas_length"):
        inputs["decoder_input_ids"] = input_ids[:, -getattr(model.config, "canvas_length", 4) :]
    return inputs


TINY_FAMILIES: dict[str, Callable[..., PreTrainedModel]] = {name: partial(_build, name) for name in _FAMILIES}

# The models that most tests run on: three families, two of them with and without groups of experts. `tiny_models`
# builds them with the vocabulary of its tokenizer.
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
_DEEPSEEK: dict[str, Any] = {
    **_SIZES,
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
COMMON_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v2": ("deepseek_v2", {**_DEEPSEEK, "topk_method": "greedy", "num_experts_per_tok": 3}),
    "deepseek_v2_groups": (
        "deepseek_v2",
        {**_DEEPSEEK, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3},
    ),
    "deepseek_v3": ("deepseek_v3", {**_DEEPSEEK, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 4}),
    "deepseek_v3_groups": ("deepseek_v3", {**_DEEPSEEK, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}),
    "mixtral": ("mixtral", {**_SIZES, "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2}),
}


def common_config(name: str, **overrides: Any) -> PreTrainedConfig:
    """Return the config of one of `COMMON_MODELS`; `overrides` are further fields of it."""
    family, given = COMMON_MODELS[name]
    return CONFIG_MAPPING[family](**{**given, **overrides})
