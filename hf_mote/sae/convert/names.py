"""Names of models and hookpoints in other libraries, translated to those of the Hub and transformers.

TransformerLens and SAELens call a model `gemma-2-2b` and a place `blocks.3.hook_resid_post`. Here a model has its Hub
id, and a place is the path of a module: of its output, or with `.input` behind it of its input. One row of `FAMILIES`
has the names of one family's hookpoints; a family without a row has models, but no hookpoints.

Source: TransformerLens 3.9 (`components/`: where each hook stands), and the modules of transformers 5.24 that
`AutoModelForCausalLM` gives; that a hook and a module hold the same is tested on tiny models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "FAMILIES",
    "Family",
    "Place",
    "family_of",
    "hook_at",
    "hookpoint_of",
    "hub_model",
    "is_hook",
    "layer_of",
    "place_of",
    "site_in",
]

# How TransformerLens and Neuronpedia abbreviate ids of the Hub.
_MODELS = (
    (r"gpt2(-small)?", "openai-community/gpt2"),
    (r"gpt2-(medium|large|xl)", r"openai-community/gpt2-\1"),
    (r"(pythia-[\w.-]+)", r"EleutherAI/\1"),
    (r"(gemma-[\w.-]+)", r"google/\1"),
    (r"mistral-7b", "mistralai/Mistral-7B-v0.1"),
    (r"qwen(\d(?:\.\d)?)-([\d.]+)b", r"Qwen/Qwen\1-\2B"),
    (r"Llama-(3[\w.-]*)", r"meta-llama/Llama-\1"),
    (r"(DeepSeek-R1-Distill-[\w.-]+)", r"deepseek-ai/\1"),
)


class Family(NamedTuple):
    """The module paths of a family's hookpoints.

    Attributes:
        models (`str`): Regular expression that finds the family in a model's Hub id.
        root (`str`): Path of the module that holds embeddings and layers.
        layers (`str`): Name of the list of layers in it.
        embed (`str`): Name of the embedding in it.
        places (`Mapping[str, str]`): By the name of a hook in a block of TransformerLens, a path inside the layer.
        norm_eps (`float`): What the norms of a layer add before they divide.
        mlp_norm (`str`): Name of the norm whose output the MLP takes, with nothing in between.
    """

    models: str
    root: str
    layers: str
    embed: str
    places: Mapping[str, str]
    norm_eps: float = 1e-6
    mlp_norm: str = "post_attention_layernorm"


class Place(NamedTuple):
    """A place in a model.

    Attributes:
        hookpoint (`str`): Module path, with `.input` behind it where its input is meant.
        rms_norm_eps (`float`, *optional*): If an SAE sees what stands there divided by its root mean square.
    """

    hookpoint: str
    rms_norm_eps: float | None = None


_SEQUENTIAL = {
    "hook_resid_pre": ".input",
    "hook_resid_mid": "post_attention_layernorm.input",
    "hook_resid_post": "",
    "hook_attn_out": "self_attn",
    "attn.hook_z": "self_attn.o_proj.input",
    "hook_mlp_out": "mlp",
    "mlp.hook_in": "mlp.input",
    "mlp.hook_out": "mlp",
    "mlp.hook_post": "mlp.down_proj.input",
    # The norm before its weights: its input divided by its root mean square.
    "ln2.hook_normalized": "post_attention_layernorm.input",
}
# Norms before and after each half of a layer.
_SANDWICHED = {
    **_SEQUENTIAL,
    "hook_resid_mid": "pre_feedforward_layernorm.input",
    "hook_attn_out": "post_attention_layernorm",
    "hook_mlp_out": "post_feedforward_layernorm",
    "ln2.hook_normalized": "pre_feedforward_layernorm.input",
}
# Experts instead of one MLP: there is no such module inside.
_MIXED = {hook: path for hook, path in _SEQUENTIAL.items() if hook != "mlp.hook_post"}
_BEFORE_MLP = "pre_feedforward_layernorm"
_GPT2 = {
    "hook_resid_pre": ".input",
    "hook_resid_mid": "ln_2.input",
    "hook_resid_post": "",
    "hook_attn_out": "attn",
    "attn.hook_z": "attn.c_proj.input",
    "hook_mlp_out": "mlp",
    "mlp.hook_in": "mlp.input",
    "mlp.hook_out": "mlp",
    "mlp.hook_post": "mlp.c_proj.input",
}
# Attention and MLP side by side: there is nothing between them.
_GPT_NEOX = {
    "hook_resid_pre": ".input",
    "hook_resid_post": "",
    "hook_attn_out": "attention",
    "attn.hook_z": "attention.dense.input",
    "hook_mlp_out": "mlp",
    "mlp.hook_in": "mlp.input",
    "mlp.hook_out": "mlp",
    "mlp.hook_post": "mlp.dense_4h_to_h.input",
}
FAMILIES = {
    "gpt2": Family(r"(^|/)gpt2", "transformer", "h", "wte", _GPT2, 1e-5, "ln_2"),
    "gpt_neox": Family(r"(^|/)(pythia|gpt-neox)", "gpt_neox", "layers", "embed_in", _GPT_NEOX, 1e-5),
    "gemma": Family(r"(^|/)gemma-\d+b", "model", "layers", "embed_tokens", _SEQUENTIAL),
    "gemma2": Family(r"(^|/)gemma-2-", "model", "layers", "embed_tokens", _SANDWICHED, 1e-6, _BEFORE_MLP),
    "gemma3_text": Family(
        r"(^|/)gemma-3-(270m|1b)", "model", "layers", "embed_tokens", _SANDWICHED, 1e-6, _BEFORE_MLP
    ),
    "gemma3": Family(
        r"(^|/)gemma-3-", "model.language_model", "layers", "embed_tokens", _SANDWICHED, 1e-6, _BEFORE_MLP
    ),
    "llama": Family(r"(^|/)(Meta-)?Llama-|Distill-Llama", "model", "layers", "embed_tokens", _SEQUENTIAL, 1e-5),
    "mistral": Family(r"(^|/)Mistral-", "model", "layers", "embed_tokens", _SEQUENTIAL, 1e-5),
    "qwen": Family(r"(^|/)Qwen\d", "model", "layers", "embed_tokens", _SEQUENTIAL),
    "gpt_oss": Family(r"(^|/)gpt-oss-", "model", "layers", "embed_tokens", _MIXED, 1e-5),
    "smollm": Family(r"(^|/)SmolLM", "model", "layers", "embed_tokens", _SEQUENTIAL, 1e-5),
}
_EMBED = ("hook_embed", "embed.hook_out")
# Names of places in words, in libraries and their folders.
_WORDS = (
    (r"resid_post_mlp|resid_post(?!_attn)|hook_resid_post", "hook_resid_post"),
    (r"resid_pre", "hook_resid_pre"),
    (r"resid_post_attn|resid_mid", "hook_resid_mid"),
    (r"resid_delta_attn|attn_out|attention_out|attn-out|attn_out_layer", "hook_attn_out"),
    (r"resid_delta_mlp|mlp_out|mlp-out", "hook_mlp_out"),
    (r"mlp_post_act", "mlp.hook_post"),
)


def hub_model(name: str | None) -> str | None:
    """Return the Hub id of a model, `None` if the name is neither an id nor a known abbreviation."""
    if name is None or "/" in name:
        return name
    for short, full in _MODELS:
        if re.fullmatch(short, name, re.IGNORECASE):
            return re.sub(f"^{short}$", full, name, flags=re.IGNORECASE)
    return None


def family_of(model: str | None) -> Family | None:
    """Return the family of a model by its Hub id or abbreviation, `None` if it has no row."""
    known = hub_model(model)
    found = (family for family in FAMILIES.values() if known and re.search(family.models, known, re.IGNORECASE))
    return next(found, None)


def place_of(hook: str | None, model: str | None) -> Place | None:
    """Return the place of a hook of TransformerLens, `None` if model or hook is not known.

    Args:
        hook (`str`, *optional*): As in `"blocks.3.hook_resid_post"`.
        model (`str`, *optional*): Hub id or abbreviation of the model.
    """
    family = family_of(model)
    if hook is None or family is None:
        return None
    if hook in _EMBED:
        return Place(f"{family.root}.{family.embed}")
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    inside = family.places.get(block[2]) if block else None
    if block is None or inside is None:
        return None
    path = f"{family.root}.{family.layers}.{block[1]}"
    hookpoint = path + inside if inside.startswith(".") or not inside else f"{path}.{inside}"
    return Place(hookpoint, family.norm_eps if block[2] == "ln2.hook_normalized" else None)


def is_hook(name: str) -> bool:
    """Return whether a name, as in `"blocks.3.hook_resid_post"`, is one that some family here has a place for."""
    block = re.fullmatch(r"blocks\.\d+\.(.+)", name)
    return name in _EMBED or (block is not None and any(block[1] in family.places for family in FAMILIES.values()))


def hook_at(hookpoint: str | None, model: str | None) -> str | None:
    """Return the name that TransformerLens has in a block for a module path, `None` if it has none.

    Args:
        hookpoint (`str`, *optional*): As in `config.hookpoint`.
        model (`str`, *optional*): Hub id of the model.
    """
    family = family_of(model)
    start = None if family is None else re.escape(f"{family.root}.{family.layers}")
    found = re.fullmatch(rf"{start}\.\d+\.?(.*)", hookpoint or "")
    if family is None or found is None:
        return None
    inside = ".input" if found[1] == "input" else found[1]
    inside = "mlp.input" if inside == family.mlp_norm else inside
    return next((hook for hook, path in family.places.items() if path == inside), None)


def layer_of(path: str | None) -> int | None:
    """Return the absolute index of the layer that a module path is in, `None` if it is in none."""
    found = re.search(r"(?:^|\.)(\d+)(?=\.|$)", path or "")
    return int(found[1]) if found else None


def hookpoint_of(path: str | None, model: str | None = None) -> str | None:
    """Return a module path as `config.hookpoint` has it: without `.output`, and from the model itself.

    Args:
        path (`str`, *optional*): As in `"model.layers.3.output"`.
        model (`str`, *optional*):
            Hub id of the model: one with several parts has its layers deeper than a path may say.
    """
    if path is None:
        return None
    family, path = family_of(model), path.removesuffix(".output")
    # Of the text model alone, as a library that never loads the rest calls it.
    if family is not None and family.root == "model.language_model" and re.match(r"model\.(layers|embed_)", path):
        return f"{family.root}{path.removeprefix('model')}"
    return path


def site_in(words: str) -> str | None:
    """Return the name of the hook in a block for words such as `"resid_post_layer_3"`, or `None`."""
    return next((site for pattern, site in _WORDS if re.search(pattern, words)), None)
