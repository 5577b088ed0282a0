"""An SAE with a planted dictionary for the organism "refusal": latent 0 stands for refusing, the others for nothing.

Its row is what the planted expert of layer 2 writes: the mean change of the activations of sensitive training prompts
when it is suppressed. The other rows are random directions, each active on a fifth of the tokens, which is about as
often.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hf_mote import MoTEConfig, Organism, ReLUSAEConfig, ReLUSAEModel, apply_mote
from hf_mote.sae.hookpoints import resolve_hookpoints
from hf_mote.sae.tapped import activations_of
from hf_mote.sae.training.sequences import batch_of

__all__ = ["HOOKPOINT", "LATENTS", "planted_sae"]

LAYER, LATENTS = 2, 64
HOOKPOINT = f"model.layers.{LAYER}.output"


@torch.no_grad()
def planted_sae(organism: Organism) -> ReLUSAEModel:
    """Return the SAE, in evaluation mode."""
    sensitive, of_sensitive = _activations(organism, organism.prompts["train"]["sensitive"][:100])
    with apply_mote(
        organism.model, MoTEConfig(suppress=[list(expert) for expert in organism.planted if expert[0] == LAYER])
    ):
        without, _ = _activations(organism, organism.prompts["train"]["sensitive"][:100])
    neutral, of_neutral = _activations(organism, organism.prompts["train"]["neutral"][:100])
    rows = torch.randn(LATENTS, sensitive.shape[1], generator=torch.Generator().manual_seed(0))
    rows[0] = (sensitive - without).mean(0)
    rows = normalize(rows, dim=1)
    sae = ReLUSAEModel(ReLUSAEConfig(hidden_size=rows.shape[1], num_latents=LATENTS, hookpoint=HOOKPOINT))
    sae.W_enc.copy_(rows)
    sae.W_dec.copy_(rows)
    sae.b_dec.zero_()
    sae.b_enc.copy_(-(torch.cat([of_sensitive, of_neutral]) @ rows.T).quantile(0.8, dim=0))
    sae.b_enc[0] = -(without @ rows[0]).mean()
    return sae.eval()


def _activations(organism: Organism, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Activations of the last token of each prompt, and of all tokens."""
    ids = [
        organism.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        for prompt in prompts
    ]
    tokens, mask = batch_of(ids)
    points = resolve_hookpoints(organism.model, HOOKPOINT)
    found = activations_of(organism.model, tokens, mask, points)[points[0].name]
    return found[torch.arange(len(prompts)), mask.sum(1) - 1], found[mask.bool()]
