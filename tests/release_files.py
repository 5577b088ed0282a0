"""Files of public releases, synthesised in exactly the layout of each: random weights in small shapes.

One function for each release. It writes into the root of a repository and returns what `load_sae` and what the reader
of SAELens are to be told.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from safetensors.torch import save_file
from tiny_saes import HIDDEN, LATENTS, activations
from torch import Tensor

__all__ = ["RELEASES", "Release", "unit_rows", "weights"]


class Release(NamedTuple):
    """One synthesised SAE.

    Attributes:
        repo_id (`str`): As on the Hub.
        place (`dict[str, str]`): `subfolder` and `file`, as `load_sae` takes them.
        format (`str`): Its name here.
        base_model (`str`), hookpoint (`str`): What it is of.
        output_hookpoint (`str`, *optional*): What it reconstructs, if another.
        reader (`str`, *optional*): What SAELens calls the format, `None` if it does not read it.
        folder_name (`str`): What SAELens calls the place.
        overrides (`dict[str, Any]`): Further arguments of the reader.
        given (`dict[str, Any]`): Further arguments of `load_sae`.
    """

    repo_id: str
    place: dict[str, str]
    format: str
    base_model: str
    hookpoint: str
    output_hookpoint: str | None = None
    reader: str | None = None
    folder_name: str = ""
    overrides: dict[str, Any] = {}
    given: dict[str, Any] = {}


def weights(seed: int = 3) -> dict[str, Tensor]:
    """Return random tensors under the names and in the orientation of `SAEModel`."""
    return {
        "W_enc": activations(LATENTS, HIDDEN, seed=seed),
        "b_enc": activations(LATENTS, seed=seed + 1) * 0.3,
        "W_dec": activations(LATENTS, HIDDEN, seed=seed + 2),
        "b_dec": activations(HIDDEN, seed=seed + 3) * 0.3,
    }


def unit_rows(matrix: Tensor) -> Tensor:
    """Return a matrix with rows of unit length."""
    return matrix / matrix.norm(dim=1, keepdim=True)


def stored(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Return tensors under other names; `"name.T"` stores the transpose."""
    return {
        name.removesuffix(".T"): (tensors[ours].T if name.endswith(".T") else tensors[ours]).contiguous()
        for ours, name in names.items()
    }


LINEAR = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "decoder.weight.T", "b_dec": "decoder.bias"}


def qwen_scope(root: Path) -> Release:
    names = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec.T", "b_dec": "b_dec"}
    for layer in (0, 3):
        torch.save(stored(weights(layer + 3), names), root / f"layer{layer}.sae.pt")
    return Release(
        "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_5",
        {"file": "layer3.sae.pt"},
        "qwen_scope",
        "Qwen/Qwen3-1.7B-Base",
        "model.layers.3",
        reader="qwen_scope",
        folder_name="layer3.sae.pt",
        overrides={"d_in": HIDDEN, "d_sae": LATENTS},
    )


def mwhanna(root: Path) -> Release:
    for layer in (0, 4):
        tensors = {**weights(layer + 3), "W_skip": activations(HIDDEN, HIDDEN, seed=9)}
        save_file(
            {name: tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}, root / f"layer_{layer}.safetensors"
        )
    config = {
        "model_name": "Qwen/Qwen3-4B",
        "model_kind": "transcoder_set",
        "feature_input_hook": "mlp.hook_in",
        "feature_output_hook": "hook_mlp_out",
        "scan": "qwen3-4b",
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    wandb = {"d_model": {"value": HIDDEN}, "d_feature": {"value": LATENTS}, "batch_size": {"value": 8}}
    (root / "wandb-config.yaml").write_text(yaml.safe_dump(wandb))
    return Release(
        "mwhanna/qwen3-4b-transcoders",
        {"file": "layer_4.safetensors"},
        "circuit_tracer",
        "Qwen/Qwen3-4B",
        "model.layers.4.mlp.input",
        "model.layers.4.mlp",
        reader="mwhanna_transcoder",
        folder_name="layer_4.safetensors",
    )


def mwhanna_without_config(root: Path) -> Release:
    release = mwhanna(root)
    (root / "config.yaml").unlink()
    (root / "wandb-config.yaml").rename(root / "wanb-config.yaml")
    return release._replace(repo_id="mwhanna/qwen3-14b-transcoders", base_model="Qwen/Qwen3-14B")


def _llama_scope(
    root: Path, layer: str, hook: str, out: str | None = None, **changes: Any
) -> tuple[str, dict[str, Any]]:
    name = f"Llama3_1-8B-Base-{layer}-8x"
    (root / name / "checkpoints").mkdir(parents=True)
    tensors = weights()
    if not changes.pop("free_lengths", False):
        # SAELens leaves the lengths out of the gate.
        tensors["W_dec"] = unit_rows(tensors["W_dec"])
    save_file(
        {key: value.bfloat16() for key, value in stored(tensors, LINEAR).items()},
        root / name / "checkpoints" / "final.safetensors",
    )
    config = {
        "d_model": HIDDEN,
        "d_sae": LATENTS,
        "hook_point_in": hook,
        "hook_point_out": out or hook,
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "act_fn": "jumprelu",
        "jump_relu_threshold": 0.5,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": 2.5, "out": 2.5},
        "sparsity_include_decoder_norm": True,
        "top_k": 50,
        **changes,
    }
    (root / name / "hyperparams.json").write_text(json.dumps(config))
    return name, config


def llama_scope(root: Path) -> Release:
    # Norms that are no matter after rounding to bfloat16: rows of the file are of unit length only nearly.
    name, _ = _llama_scope(root, "L19R", "blocks.19.hook_resid_post", sparsity_include_decoder_norm=False)
    return Release(
        "fnlp/Llama3_1-8B-Base-LXR-8x",
        {"subfolder": name},
        "llama_scope",
        "meta-llama/Llama-3.1-8B",
        "model.layers.19",
        reader="llama_scope",
        folder_name=name,
        overrides={"factor": math.sqrt(HIDDEN) / 2.5},
    )


def llama_scope_mlp(root: Path) -> Release:
    name, _ = _llama_scope(root, "L3M", "blocks.3.hook_mlp_out", sparsity_include_decoder_norm=False)
    release = llama_scope(root)
    return release._replace(
        repo_id="fnlp/Llama3_1-8B-Base-LXM-8x",
        place={"subfolder": name},
        folder_name=name,
        hookpoint="model.layers.3.mlp",
    )


def llama_scope_r1(root: Path) -> Release:
    name = "800M-Slimpajama-0-OpenR1-Math-220k/L7R"
    (root / name).mkdir(parents=True)
    log_threshold = (activations(LATENTS, seed=8).abs() * 0.5 + 0.1).log()
    save_file(
        {**stored(weights(), LINEAR), "log_jumprelu_threshold": log_threshold}, root / name / "sae_weights.safetensors"
    )
    config = {
        "sae_type": "sae",
        "d_model": HIDDEN,
        "expansion_factor": LATENTS / HIDDEN,
        "hook_point_in": "blocks.7.hook_resid_post",
        "hook_point_out": "blocks.7.hook_resid_post",
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": False,
    }
    (root / name / "config.json").write_text(json.dumps(config))
    return Release(
        "fnlp/Llama-Scope-R1-Distill",
        {"subfolder": name},
        "lm_saes",
        "meta-llama/Llama-3.1-8B",
        "model.layers.7",
        reader="llama_scope_r1_distill",
        folder_name=name,
        overrides={"factor": 1.7, "d_sae": LATENTS},
        given={"norm_scaling_factor": 1.7},
    )


def hook_z(root: Path) -> Release:
    file = "gpt2-small_L5_Hcat_z_lr1.20e-03_l11.80e+00_ds24576_v9.pt"
    torch.save(
        stored(weights(), {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}), root / file
    )
    config = {"act_size": HIDDEN, "dict_size": LATENTS, "act_name": "blocks.5.attn.hook_z", "seed": 49}
    (root / file.replace(".pt", "_cfg.json")).write_text(json.dumps(config))
    return Release(
        "ckkissane/attn-saes-gpt2-small-all-layers",
        {"file": file},
        "hook_z",
        "openai-community/gpt2",
        "transformer.h.5.attn.c_proj.input",
        reader="connor_rob_hook_z",
        folder_name=file,
    )


def goodfire(root: Path) -> Release:
    file = "Llama-3.1-8B-Instruct-SAE-l19.pth"
    names = {ours: name.replace("coder.", "coder_linear.") for ours, name in LINEAR.items()}
    torch.save({name: tensor.bfloat16() for name, tensor in stored(weights(), names).items()}, root / file)
    return Release(
        "Goodfire/Llama-3.1-8B-Instruct-SAE-l19",
        {"file": file},
        "goodfire",
        "meta-llama/Llama-3.1-8B-Instruct",
        "model.layers.19",
        reader="goodfire",
        folder_name=file,
        overrides={"d_in": HIDDEN, "d_sae": LATENTS},
    )


def deepseek_r1(root: Path) -> Release:
    file = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt"
    torch.save(stored(weights(), LINEAR), root / file)
    return Release(
        "qresearch/DeepSeek-R1-Distill-Llama-8B-SAE-l19",
        {"file": file},
        "deepseek_r1",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "model.layers.19",
        reader="deepseek_r1",
        folder_name=file,
        overrides={"d_in": HIDDEN, "d_sae": LATENTS},
    )


def _dictionary_learning(root: Path, place: str, trainer: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    (root / place).mkdir(parents=True)
    torch.save(tensors, root / place / "ae.pt")
    document = {"trainer": trainer, "buffer": {"ctx_len": 128, "d_submodule": HIDDEN, "io": "out"}}
    (root / place / "config.json").write_text(json.dumps(document))


def dictionary_learning_topk_of_2024(root: Path) -> Release:
    place = "gemma-2-2b_topk_width-2pow12_date-1109/resid_post_layer_12/trainer_0"
    names = {**LINEAR, "b_dec": "b_dec"}
    trainer = {
        "trainer_class": "TrainerTopK",
        "dict_class": "AutoEncoderTopK",
        "activation_dim": HIDDEN,
        "dict_size": LATENTS,
        "k": 5,
        "layer": 12,
        "lm_name": "google/gemma-2-2b",
        "submodule_name": "resid_post_layer_12",
    }
    _dictionary_learning(root, place, trainer, stored(weights(), names))
    return Release(
        "canrager/saebench_gemma-2-2b_width-2pow12_date-1109",
        {"subfolder": place},
        "dictionary_learning",
        "google/gemma-2-2b",
        "model.layers.12",
        reader="dictionary_learning_1",
        folder_name=place,
    )


def dictionary_learning_of_early_2024(root: Path) -> Release:
    """Without the name of a submodule: the folder says it."""
    place = "pythia70m_sweep_topk_ctx128_0730/resid_post_layer_3/trainer_0"
    trainer = {
        "dict_class": "AutoEncoderTopK",
        "activation_dim": HIDDEN,
        "dict_size": LATENTS,
        "k": 5,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped",
    }
    _dictionary_learning(root, place, trainer, stored(weights(), {**LINEAR, "b_dec": "b_dec"}))
    return Release(
        "canrager/lm_sae",
        {"subfolder": place},
        "dictionary_learning",
        "EleutherAI/pythia-70m-deduped",
        "gpt_neox.layers.3",
        reader="dictionary_learning_1",
        folder_name=place,
    )


def dictionary_learning_misspelt(root: Path) -> Release:
    """SAELens reads the class by its later name alone, and takes this one for a ReLU."""
    place = "MatryoshkaBatchTopK_gemma-2-2b__0108/resid_post_layer_12/trainer_0"
    tensors = stored(weights(), {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"})
    tensors |= {"k": torch.tensor(5), "threshold": torch.tensor(0.6), "group_sizes": torch.tensor([10, 10, 20])}
    trainer = {
        "dict_class": "MatroyshkaBatchTopKSAE",
        "activation_dim": HIDDEN,
        "dict_size": LATENTS,
        "k": 5,
        "layer": 12,
        "lm_name": "google/gemma-2-2b",
        "submodule_name": "resid_post_layer_12",
    }
    _dictionary_learning(root, place, trainer, tensors)
    return Release(
        "adamkarvonen/saebench_gemma-2-2b_width-2pow12_date-0108",
        {"subfolder": place},
        "dictionary_learning",
        "google/gemma-2-2b",
        "model.layers.12",
        folder_name=place,
    )


def _old_saelens(root: Path, place: str, tensors: dict[str, Tensor] | None = None, **config: Any) -> None:
    (root / place).mkdir(parents=True)
    names = {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    save_file(tensors or stored(weights(), names), root / place / "sae_weights.safetensors")
    save_file({"sparsity": torch.zeros(LATENTS)}, root / place / "sparsity.safetensors")
    common = {"d_in": HIDDEN, "d_sae": LATENTS, "dtype": "torch.float32", "device": "cuda", "l1_coefficient": 5}
    (root / place / "cfg.json").write_text(json.dumps({**common, **config}))


def saelens_3(root: Path) -> Release:
    place = "blocks.8.hook_resid_pre"
    tensors = stored(weights(), {"W_enc": "W_enc.T", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"})
    _old_saelens(
        root,
        place,
        {**tensors, "scaling_factor": torch.ones(LATENTS)},
        model_name="gpt2-small",
        hook_point=place,
        hook_point_layer=8,
        hook_point_head_index=None,
        use_ghost_grads=True,
    )
    return Release(
        "jbloom/GPT2-Small-SAEs",
        {"subfolder": place},
        "saelens",
        "openai-community/gpt2",
        "transformer.h.8.input",
        reader="sae_lens",
        folder_name=place,
    )


def saelens_of_openai(root: Path) -> Release:
    place = "v5_32k_layer_3.pt"
    _old_saelens(
        root,
        place,
        architecture="standard",
        activation_fn_str="topk",
        activation_fn_kwargs={"k": 5},
        normalize_activations="layer_norm",
        model_name="gpt2-small",
        hook_name="blocks.3.hook_resid_mid",
        apply_b_dec_to_input=True,
        finetuning_scaling_factor=False,
    )
    return Release(
        "jbloom/GPT2-Small-OAI-v5-32k-resid-mid-SAEs",
        {"subfolder": place},
        "saelens",
        "openai-community/gpt2",
        "transformer.h.3.ln_2.input",
        reader="sae_lens",
        folder_name=place,
    )


def saelens_of_mistral(root: Path) -> Release:
    place = "mistral_7b_layer_16"
    _old_saelens(
        root,
        place,
        normalize_activations="constant_norm_rescale",
        model_name="mistral-7b",
        hook_name="blocks.16.hook_resid_pre",
    )
    return Release(
        "JoshEngels/Mistral-7B-Residual-Stream-SAEs",
        {"subfolder": place},
        "saelens",
        "mistralai/Mistral-7B-v0.1",
        "model.layers.16.input",
        reader="sae_lens",
        folder_name=place,
    )


def saelens_of_gemma_1(root: Path) -> Release:
    place = "gemma_2b_blocks.12.hook_resid_post_16384"
    _old_saelens(
        root,
        place,
        architecture="standard",
        activation_fn_str="relu",
        normalize_activations=True,
        model_name="gemma-2b",
        hook_name="blocks.12.hook_resid_post",
    )
    return Release(
        "jbloom/Gemma-2b-Residual-Stream-SAEs",
        {"subfolder": place},
        "saelens",
        "google/gemma-2b",
        "model.layers.12",
        reader="sae_lens",
        folder_name=place,
        overrides={"factor": 0.21381938399317255},
        given={"norm_scaling_factor": 0.21381938399317255},
    )


def saelens_of_pythia(root: Path) -> Release:
    place = "3-att-sm"
    _old_saelens(root, place, model_name="pythia-70m-deduped", hook_name="blocks.3.hook_attn_out")
    return Release(
        "ctigges/pythia-70m-deduped__att-sm_processed",
        {"subfolder": place},
        "saelens",
        "EleutherAI/pythia-70m-deduped",
        "gpt_neox.layers.3.attention",
        reader="sae_lens",
        folder_name=place,
    )


RELEASES: dict[str, Callable[[Path], Release]] = {
    one.__name__: one
    for one in (
        qwen_scope,
        mwhanna,
        mwhanna_without_config,
        llama_scope,
        llama_scope_mlp,
        llama_scope_r1,
        hook_z,
        goodfire,
        deepseek_r1,
        dictionary_learning_topk_of_2024,
        dictionary_learning_of_early_2024,
        dictionary_learning_misspelt,
        saelens_3,
        saelens_of_openai,
        saelens_of_mistral,
        saelens_of_gemma_1,
        saelens_of_pythia,
    )
}
