"""Names of TransformerLens and SAELens as transformers has them: what stands at each place adds up as it should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from hf_mote.sae.convert.names import (
    FAMILIES,
    family_of,
    hook_at,
    hookpoint_of,
    hub_model,
    layer_of,
    place_of,
    site_in,
)
from hf_mote.sae.normalization import normalized

_TINY = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_LLAMA = {**_TINY, "intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 8}
# A model's id that is of the family, the class of its config and what makes it tiny.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("openai-community/gpt2", "GPT2Config", {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "gpt_neox": ("EleutherAI/pythia-70m-deduped", "GPTNeoXConfig", {**_TINY, "intermediate_size": 24}),
    "gemma": ("google/gemma-2b", "GemmaConfig", _LLAMA),
    "gemma2": ("google/gemma-2-2b", "Gemma2Config", _LLAMA),
    "gemma3_text": ("google/gemma-3-1b-pt", "Gemma3TextConfig", _LLAMA),
    "gemma3": ("google/gemma-3-4b-pt", "Gemma3Config", {"text_config": _LLAMA, "vision_config": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 16,
    }}),
    "llama": ("meta-llama/Llama-3.1-8B", "LlamaConfig", {**_LLAMA, "rms_norm_eps": 1e-5}),
    "mistral": ("mistralai/Mistral-7B-v0.1", "MistralConfig", {**_LLAMA, "rms_norm_eps": 1e-5}),
    "qwen": ("Qwen/Qwen3-4B", "Qwen3Config", _LLAMA),
    "gpt_oss": ("openai/gpt-oss-20b", "GptOssConfig", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "smollm": ("HuggingFaceTB/SmolLM2-135M", "LlamaConfig", {**_LLAMA, "rms_norm_eps": 1e-5}),
}  # fmt: skip


def at(model: torch.nn.Module, hookpoint: str, seen: dict[str, Tensor]) -> None:
    """Note what stands at a place while the model runs."""
    module = model.get_submodule(hookpoint.removesuffix(".input"))
    if hookpoint.endswith(".input"):
        module.register_forward_pre_hook(lambda module, args: seen.__setitem__(hookpoint, args[0].detach()))
    else:
        module.register_forward_hook(
            lambda module, args, out: seen.__setitem__(hookpoint, (out[0] if isinstance(out, tuple) else out).detach())
        )


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> tuple[str, torch.nn.Module, dict[str, Tensor]]:
    """What stands at every place of layer 1 of a tiny model of a family, by TransformerLens' names."""
    name, config_class, fields = MODELS[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():
        # Norms that do something, and biases.
        parameter.data += torch.randn(parameter.shape) * 0.3
    by_place: dict[str, Tensor] = {}
    hooks = {hook: place_of(f"blocks.1.{hook}", name) for hook in FAMILIES[request.param].places}
    for place in hooks.values():
        assert place is not None
        at(model, place.hookpoint, by_place)
    with torch.no_grad():
        model(torch.randint(0, 40, (2, 5)))
    return request.param, model, {hook: by_place[place.hookpoint] for hook, place in hooks.items() if place}


@pytest.mark.parametrize("seen", MODELS, indirect=True)
def test_places_of_a_family_add_up(seen: tuple[str, torch.nn.Module, dict[str, Tensor]]) -> None:
    family, model, found = seen
    before, after, attention, mlp = (
        found[f"hook_{name}"] for name in ("resid_pre", "resid_post", "attn_out", "mlp_out")
    )
    torch.testing.assert_close(before + attention + mlp, after)
    between = found.get("hook_resid_mid")
    if between is not None:
        torch.testing.assert_close(before + attention, between)
    else:
        assert family == "gpt_neox"
    if FAMILIES[family].places["hook_mlp_out"] == "mlp":
        torch.testing.assert_close(found["mlp.hook_out"], mlp)
    name = MODELS[family][0]
    norm_path = f"{FAMILIES[family].root}.{FAMILIES[family].layers}.1.{FAMILIES[family].mlp_norm}"
    norm = model.get_submodule(norm_path)
    entered = found["mlp.hook_in"]
    if between is not None:
        with torch.no_grad():
            torch.testing.assert_close(norm(between), entered)
    if "ln2.hook_normalized" in found:
        place = place_of("blocks.1.ln2.hook_normalized", name)
        assert place is not None
        assert place.rms_norm_eps is not None
        unweighted = normalized(found["ln2.hook_normalized"], "rms_norm", place.rms_norm_eps)
        weight = norm.weight.detach() + (1 if "gemma" in family else 0)
        torch.testing.assert_close(unweighted * weight, entered)
    embed = place_of("hook_embed", name)
    assert embed is not None
    assert model.get_submodule(embed.hookpoint) is model.get_input_embeddings()


@pytest.mark.parametrize("family", FAMILIES)
def test_hook_at_is_the_way_back(family: str) -> None:
    name = MODELS[family][0]
    assert family_of(name) is FAMILIES[family]
    for hook, path in FAMILIES[family].places.items():
        place = place_of(f"blocks.3.{hook}", name)
        assert place is not None
        assert layer_of(place.hookpoint) == 3
        back = hook_at(place.hookpoint, name)
        assert back is not None
        assert FAMILIES[family].places[back] == path
    row = FAMILIES[family]
    assert hook_at(f"{row.root}.{row.layers}.3.{row.mlp_norm}", name) == "mlp.hook_in"


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("gpt2-small", "openai-community/gpt2"),
        ("gpt2-xl", "openai-community/gpt2-xl"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("gemma-2-9b-it", "google/gemma-2-9b-it"),
        ("gemma-2b", "google/gemma-2b"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
        ("Llama-3.3-70B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"),
        ("somebody/model", "somebody/model"),
        ("tiny-stories-1M", None),
        (None, None),
    ],
)
def test_hub_model(short: str | None, full: str | None) -> None:
    assert hub_model(short) == full


@pytest.mark.parametrize(
    ("hook", "model"),
    [
        ("blocks.3.hook_resid_post", "somebody/model"),
        ("blocks.3.hook_resid_mid", "EleutherAI/pythia-70m"),
        ("blocks.x.hook_resid_post", "gpt2-small"),
        ("blocks.3.attn.hook_q", "gpt2-small"),
        (None, "gpt2-small"),
        ("blocks.3.hook_resid_post", None),
    ],
)
def test_place_of_what_is_not_known_is_none(hook: str | None, model: str | None) -> None:
    assert place_of(hook, model) is None


def test_hookpoint_of_drops_the_side_that_is_meant_anyway() -> None:
    assert hookpoint_of("model.layers.3.output") == "model.layers.3"
    assert hookpoint_of("model.layers.3.input") == "model.layers.3.input"
    assert hookpoint_of("model.layers.3.output", "google/gemma-3-4b-pt") == "model.language_model.layers.3"
    assert hookpoint_of("model.layers.3.output", "google/gemma-3-1b-pt") == "model.layers.3"
    assert hookpoint_of(None) is None


@pytest.mark.parametrize(
    ("words", "site"),
    [
        ("resid_post_layer_3", "hook_resid_post"),
        ("resid_post_mlp_v5_32k", "hook_resid_post"),
        ("resid_post_attn_v5_32k", "hook_resid_mid"),
        ("resid_delta_mlp_v5_128k", "hook_mlp_out"),
        ("resid_delta_attn_v5_128k", "hook_attn_out"),
        ("mlp_post_act", "mlp.hook_post"),
        ("attn_layer", None),
    ],
)
def test_site_in(words: str, site: str | None) -> None:
    assert site_in(words) == site
