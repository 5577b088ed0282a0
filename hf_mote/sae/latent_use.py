"""`LatentUse`: on how many tokens each latent of an SAE is active while a model runs.

It gives the latents of similar density, for controls.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hf_mote.errors import UnsupportedError
from hf_mote.hooks import Attachment, Intervention, attach, stack_on
from hf_mote.passes.decoder_hook import DecoderHook, decoder_of
from hf_mote.passes.forward import DecoderParticipant, all_of
from hf_mote.sae.hookpoints import AtHookpoint, attachments_at
from hf_mote.sae.intervene import sites_of, unwrapped
from hf_mote.sae.kernels.sparse import SparseLatents
from hf_mote.sae.modeling import SAEModel

__all__ = ["LatentUse"]


class LatentUse(Intervention):
    """Counts in a model's passes on how many tokens each latent is active; removing it keeps the counts.

    Padding is not counted, and each token is counted once; tokens after the end of a sequence are not counted if they
    are `skipped`.

    Attributes:
        counts (`torch.Tensor` of shape `(latents,)`, int64, CPU): Tokens on which each latent is active.
        tokens (`int`): Tokens seen.
    """

    def __init__(self, model: nn.Module, sae: SAEModel, *, hookpoint: str | None, skipped: int | None) -> None:
        self.counts = torch.zeros(sae.config.num_latents, dtype=torch.long)
        self.tokens = 0
        model = unwrapped(model)
        reads, _ = sites_of(model, sae, hookpoint, "LatentUse")
        decoder = decoder_of(model, [reads.path])
        watcher = DecoderParticipant()

        def attachments() -> list[Attachment]:
            tracker = stack_on(decoder, DecoderHook) or DecoderHook()
            counter = _Counter(self, sae, tracker, skipped)
            watcher.expect(reads.name, counter)
            return [Attachment(decoder, tracker, watcher), *attachments_at([(reads, counter)])]

        super().__init__()
        attach(attachments, handle=self)


class _Counter(AtHookpoint):
    """Counts at the hookpoint."""

    def __init__(self, use: LatentUse, sae: SAEModel, tracker: DecoderHook, skipped: int | None) -> None:
        self.use, self.sae, self.tracker, self.skipped = use, sae, tracker, skipped

    @torch.no_grad()
    def apply(self, activations: Tensor) -> None:
        rows = activations.reshape(-1, activations.shape[-1])
        forward = self.tracker.forward_of(len(rows))
        if forward is None:
            fix = "Call the model itself rather than its parts."
            raise UnsupportedError("LatentUse", "a module ran outside the model's forward", fix=fix)
        new = torch.arange(forward.length, device=forward.device) >= forward.first_new_column
        kept = all_of(
            new.repeat(forward.batch),
            None if forward.real is None else forward.real.reshape(-1),
            None if self.skipped is None or forward.ids is None else (forward.ids != self.skipped).reshape(-1),
        )
        assert kept is not None
        chosen = rows[kept.to(rows.device)].to(self.sae.W_dec.device)
        self.use.tokens += len(chosen)
        if len(chosen):
            latents = self.sae._encode(self.sae._tokens(chosen, None)).latents
            sparse = latents if isinstance(latents, SparseLatents) else SparseLatents.from_dense(latents)
            self.use.counts += sparse.pattern.latent_counts().cpu()
