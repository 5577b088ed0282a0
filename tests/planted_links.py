"""A tiny model and an SAE of which it is known what each latent does to expert 5 of layer 0.

Layer 0 is given the embeddings alone. Coordinate 0 of them is above 0, by amounts that differ, for marked tokens, and
below for the others; coordinate 1 is a copy that has one amount for all marked tokens. The router reads coordinate 0
for expert 5 and nothing of coordinate 1. So `DRIVER` causes the choice of the expert, and `COPY` goes along with it,
more closely than the driver's amounts do. The other latents are random directions.
"""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import tiny_model, tiny_tokenizer
from torch.nn.functional import normalize

from hf_mote import ReLUSAEConfig, ReLUSAEModel, find_routers

__all__ = ["COPY", "DRIVER", "EXPERT", "HOOKPOINT", "MARKED", "TEXTS", "planted_links"]

DRIVER, COPY, EXPERT, LATENTS = 9, 4, 5, 24
MARKED = "aeiou "
HOOKPOINT = "model.layers.0.mlp.gate.input"
TEXTS = [f"the quick brown fox number {i} jumps over {'lazy dogs and cats'[i % 7 :]}" for i in range(12)]


@torch.no_grad()
def planted_links(hookpoint: str = HOOKPOINT) -> tuple[Any, ReLUSAEModel]:
    """Return the model and the SAE, both in evaluation mode.

    Args:
        hookpoint (`str`, *optional*): Where the SAE belongs; a place with other activations makes it none of this.
    """
    draw = torch.Generator().manual_seed(0)
    model = tiny_model("mixtral")
    first = model.model.layers[0]
    first.self_attn.o_proj.weight.zero_()
    first.post_attention_layernorm.weight.fill_(1.0)
    embeddings = model.model.embed_tokens.weight
    embeddings.copy_(torch.randn(embeddings.shape, generator=draw))
    embeddings[:, :2] = -1.5
    marked = tiny_tokenizer()(MARKED)["input_ids"]
    embeddings[marked, 0] = torch.linspace(0.8, 6.0, len(marked))
    embeddings[marked, 1] = 2.0
    router = find_routers(model)[0].module.weight
    router.copy_(0.1 * torch.randn(router.shape, generator=draw))
    router[:, :2] = 0.0
    router[EXPERT] = 0.0
    router[EXPERT, 0] = 4.0
    sae = ReLUSAEModel(ReLUSAEConfig(hidden_size=32, num_latents=LATENTS, hookpoint=hookpoint))
    rows = torch.randn(LATENTS, 32, generator=draw)
    rows[:, :2] = 0.0
    for place, latent in enumerate((DRIVER, COPY)):
        rows[latent] = torch.eye(32)[place]
    for weights in (sae.W_enc, sae.W_dec):
        weights.copy_(normalize(rows, dim=1))
    sae.b_enc.zero_()
    sae.b_dec.zero_()
    return model, sae.eval()
