"""A small decoder around any router, listed or not: embedding, two layers of routed experts, head.

It has no attention, so that a test of routers reads no more than routers; its block finds weights and indices in
whatever its router returns.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

__all__ = ["EXPERTS", "LAYERS", "TOKENS", "WIDTH", "SmallDecoder", "logits_of"]

EXPERTS, LAYERS, VOCABULARY, WIDTH = 8, 2, 120, 32
TOKENS = torch.arange(2, 50).view(2, 24)


class SmallConfig(PreTrainedConfig):
    model_type = "small_decoder"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"pad_token_id": 0, "eos_token_id": 1, **kwargs})


class Block(nn.Module):
    """Routed experts; `batched` routers see `(batch, seq, hidden)`, the others one row per token."""

    def __init__(self, gate: nn.Module, batched: bool) -> None:
        super().__init__()
        self.gate = gate
        self.batched = batched
        self.experts = nn.Parameter(torch.empty(EXPERTS, WIDTH, WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.flatten(0, 1)
        output = self.gate(hidden if self.batched else flat)
        tensors = [item for item in output if isinstance(item, Tensor) and item.ndim == 2]
        indices = next(item for item in tensors if not item.is_floating_point())
        weights = next(item for item in tensors if item.is_floating_point() and item.shape == indices.shape)
        return self.infer(flat, indices, weights).view_as(hidden)

    def infer(self, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        outputs = torch.einsum("th,ehd->ted", hidden.tanh(), self.experts)
        chosen = outputs.gather(1, indices[..., None].expand(-1, -1, WIDTH))
        return (chosen * weights[..., None].to(chosen.dtype)).sum(dim=1)


class Layer(nn.Module):
    def __init__(self, mlp: Block) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.mlp(hidden)


class SmallDecoder(PreTrainedModel):
    """Two layers around routers that `make` returns; the same weights for the same shapes of routers."""

    config_class = SmallConfig

    def __init__(self, make: Callable[[], nn.Module], *, batched: bool = False, block: type[Block] = Block) -> None:
        super().__init__(SmallConfig())
        with torch.random.fork_rng(devices=[]):
            self.embed = nn.Embedding(VOCABULARY, WIDTH)
            self.layers = nn.ModuleList(Layer(block(make(), batched)) for _ in range(LAYERS))
            self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for name, value in self.state_dict().items():
            # By name, so that two decoders differ in nothing but their routers.
            values = torch.randn(value.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
            value.copy_(values * (0.1 if "bias" in name else 0.4))
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> CausalLMOutput:
        hidden = self.embed(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return CausalLMOutput(logits=self.head(hidden))


def logits_of(model: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    """Logits of the small decoder, without gradients."""
    with torch.no_grad():
        return model(tokens).logits
