"""`steer`: latents of an SAE changed in every pass of a model, by given edits or by a shared config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from hf_mote.errors import ConfigError
from hf_mote.hooks import Intervention
from hf_mote.sae.edits import Edits, Scope
from hf_mote.sae.intervene import steer_latents
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.steering import SteeringConfig

__all__ = ["steer"]


def steer(
    model: nn.Module,
    sae: Any,
    edits: Edits | Sequence[Edits | None] | SteeringConfig | None = None,
    *,
    hookpoint: str | None = None,
    scope: Scope = "all",
    thinking_tokens: tuple[int, int] | None = None,
    strength: float = 1.0,
    keep_error: bool = True,
) -> Intervention:
    """Change latents of an SAE in every pass of a model, until the handle is removed.

    What is added to the activations is decode(z') - decode(z), z' the changed latents: where nothing changes, they
    stay as they are, bit for bit.

    Args:
        model (`nn.Module`): Any model; it stays the same object, with the same weights.
        sae ([`SAEModel`], [`SteeringConfig`], or the folder or Hub id of one):
            In evaluation mode. A config has its edits and its SAE with it, and is given alone.
        edits (`dict[int, Any]`, a list of these, or a [`SteeringConfig`] for this SAE):
            From a latent to a number, which is added; `("multiply", 2.0)`, `("clamp", 5.0)` or `"ablate"`. A list
            holds one for each row of the batch, `None` for rows that stay untouched.
        hookpoint (`str`, *optional*):
            Where; by default the SAE's `config.hookpoint`. This and the following arguments are fields of a config, if
            one is given.
        scope (`str`, *optional*, defaults to `"all"`): On which tokens, as in [`splice_sae`].
        thinking_tokens (`tuple[int, int]`, *optional*): The tokens that open and close the thinking.
        strength (`float`, *optional*, defaults to 1.0): What every change is multiplied by; 0 attaches nothing.
        keep_error (`bool`, *optional*, defaults to `True`):
            Whether the reconstruction error is kept; if not, activations become decode(z').

    Returns:
        [`Intervention`]: usable bare (`.remove()`) or in a `with` block; composes with others and with `apply_mote`.

    Raises:
        [`ConfigError`]: if an edit, the scope or the strength is malformed, or there is no such latent.
        [`ModelMismatchError`]: if a config is for another SAE.
        [`UnknownNameError`]: if the model has no such module.

    Example:

    ```python
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from hf_mote import TopKSAEConfig, TopKSAEModel, steer

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)).eval()
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=16, num_latents=64, k=4, hookpoint="transformer.h.0")).eval()
    prompt = torch.tensor([[1, 2, 3]])
    with steer(model, sae, {7: 4.0, 12: "ablate"}, scope="generation"):
        steered = model.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
    ```
    """
    config = edits if isinstance(edits, SteeringConfig) else None
    if not isinstance(sae, SAEModel):
        if edits is not None:
            raise ConfigError("steer.edits", "a steering config has edits of its own", fix="Give one or the other.")
        config = SteeringConfig.from_pretrained(sae) if isinstance(sae, str | os.PathLike) else sae
        if not isinstance(config, SteeringConfig):
            expected = "an SAEModel, a SteeringConfig, a folder or a Hub id"
            raise ConfigError("steer.sae", "no SAE and no config", got=type(sae).__name__, expected=expected)
        return config.bind().attach(model)
    if config is not None:
        # These arguments are fields of the config already.
        return config.bind(sae).attach(model)
    return steer_latents(
        model,
        sae,
        edits,  # type: ignore[arg-type]
        hookpoint=hookpoint,
        scope=scope,
        thinking_tokens=thinking_tokens,
        strength=strength,
        keep_error=keep_error,
    )
