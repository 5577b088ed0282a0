"""The rules by which latents are chosen, gathered: one file each, all shown the same blocks."""

from hf_mote.sae.kernels.by_latent import SelectByLatent
from hf_mote.sae.kernels.by_token import SelectByToken
from hf_mote.sae.kernels.mutual import SelectMutual
from hf_mote.sae.kernels.selectors import Selector

__all__ = ["SelectByLatent", "SelectByToken", "SelectMutual", "Selector"]
