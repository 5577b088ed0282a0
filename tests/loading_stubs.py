"""Models as conversions, kernels and patches leave them: what does not run here is stood in for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from tiny_families import TINY_FAMILIES
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel, pipeline
from transformers.integrations import mxfp4 as integration

from hf_mote import register_routers

__all__ = [
    "PRUNED",
    "fp8_linears",
    "fused_block",
    "fused_router",
    "in_a_pipeline",
    "mxfp4",
    "packed_linears",
    "patched_faithful",
    "patched_unfaithful",
    "pruned",
    "pruned_stale",
    "remote",
    "remote_registered",
    "through_gguf",
]

PRUNED = {0: 8, 1: 7, 2: 7}
"""Experts that pruning has left in each layer."""


class _Data(NamedTuple):
    gate_scal: Tensor
    sizes: Tensor
    num_experts: int
    top_k: int


class _Indices(NamedTuple):
    src_indx: Tensor
    dst_indx: Tensor


def _product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    data: _Data,
    gather_indx: _Indices | None = None,
    scatter_indx: _Indices | None = None,
    precision_config: Any = None,
    gammas: Tensor | None = None,
    fused_activation: Any = None,
) -> Tensor:
    """Each expert's product with the rows that were sorted to it."""
    rows = x if gather_indx is None else x[gather_indx.src_indx.long() // data.top_k]
    parts = rows.split(data.sizes.long().tolist())
    out = torch.cat([part @ weight[e] + bias[e] for e, part in enumerate(parts)])
    if fused_activation is not None:
        alpha, limit = fused_activation
        gate, up = out[..., ::2].clamp(max=limit), out[..., 1::2].clamp(-limit, limit)
        out = gate * torch.sigmoid(gate * alpha) * (up + 1)
    if gammas is not None:
        out = out * gammas[:, None]
    if scatter_indx is not None:
        tokens = scatter_indx.dst_indx.long() // data.top_k
        out = torch.zeros(len(out) // data.top_k, out.shape[1]).index_add(0, tokens, out)
    return out


def _sorted_by_expert(indices: Tensor, weights: Tensor, num_experts: int) -> Any:
    """What `routing_from_top_k` makes; that counts integers by `torch.histc`, which a CPU has not."""
    order = indices.flatten().argsort(stable=True)
    data = _Data(
        weights.flatten()[order], indices.flatten().bincount(minlength=num_experts), num_experts, indices.shape[1]
    )
    return data, _Indices(order, order.argsort()), _Indices(order.argsort(), order)


def _routing(logits: Tensor, top_k: int) -> Any:
    values, indices = logits.topk(top_k, dim=-1)
    return _sorted_by_expert(indices, values.softmax(dim=-1), logits.shape[-1])


KERNELS = SimpleNamespace(
    routing=SimpleNamespace(routing=_routing),
    matmul_ogs=SimpleNamespace(
        FnSpecs=lambda *_: None, FusedActivation=lambda specs, numbers, _: numbers, matmul_ogs=_product
    ),
    swiglu=SimpleNamespace(swiglu_fn=None),
)


def mxfp4(family: str = "gpt_oss") -> PreTrainedModel:
    """The model with the blocks that MXFP4 weights get, real classes over stubbed kernels and unpacked weights."""
    if not hasattr(integration, "Mxfp4GptOssMLP"):
        pytest.skip("needs a transformers with a class for blocks of MXFP4")
    model = TINY_FAMILIES[family]()
    integration.triton_kernels_hub, integration.routing_from_top_k = KERNELS, _sorted_by_expert
    for path, block in list(model.named_modules()):
        if path.endswith(".mlp"):
            experts = integration.Mxfp4GptOssExperts(model.config)
            for name, value in block.experts.named_parameters():
                experts._parameters.pop(name)
                setattr(experts, name, value.detach())  # as the loader does with what the kernels read
            experts.alpha, experts.limit = block.experts.alpha, block.experts.limit
            model.set_submodule(path, integration.Mxfp4GptOssMLP(block.router, experts))
    return model.eval()


def _fused_softmax_top_k(self: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a fused kernel does: the softmax of the chosen alone, off by a rounding, in int32 and unsorted."""
    logits = nn.functional.linear(hidden.reshape(-1, self.hidden_dim), self.weight)
    values, indices = logits.float().topk(self.top_k, dim=-1)
    return logits, values.softmax(dim=-1).to(logits.dtype).flip(-1), indices.to(torch.int32).flip(-1).long()


def fused_router(family: str) -> PreTrainedModel:
    """Routers whose forward was replaced on the module, as `kernelize` replaces it."""
    model = TINY_FAMILIES[family]()
    for part in model.modules():
        if type(part).__name__.endswith("TopKRouter"):
            part.forward = MethodType(_fused_softmax_top_k, part)
    return model


def _fused_mlp(self: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    flat = hidden.reshape(-1, hidden.shape[-1])
    logits = nn.functional.linear(flat, self.router.weight, self.router.bias)
    values, indices = logits.topk(self.router.top_k, dim=-1)
    return self.experts(flat, indices, values.softmax(dim=-1)).view_as(hidden), logits


def fused_block(family: str) -> PreTrainedModel:
    """Blocks whose forward was replaced by one that never calls the router."""
    model = TINY_FAMILIES[family]()
    for path, part in model.named_modules():
        if path.endswith(".mlp"):
            part.forward = MethodType(_fused_mlp, part)
    return model


class PackedLinear(nn.Module):
    """A linear map that holds integers and scales and no parameter, as GPTQ, AWQ and compressed-tensors keep it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scales = linear.weight.detach().abs().amax(dim=1, keepdim=True) / 7
        self.register_buffer("qweight", (linear.weight.detach() / scales).round().to(torch.int32))
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, (self.qweight * self.scales).to(x.dtype))


class Fp8Linear(nn.Linear):
    """A linear map whose weight is codes of one byte, with a scale beside it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        scale = linear.weight.detach().abs().max() / 448
        self.weight = nn.Parameter((linear.weight.detach() / scale).to(torch.float8_e4m3fn), requires_grad=False)
        self.weight_scale_inv = nn.Parameter(scale.reshape(1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.weight_scale_inv.to(x.dtype))


def _with_linears(family: str, kind: type[nn.Module]) -> PreTrainedModel:
    model = TINY_FAMILIES[family]()
    for path, part in list(model.named_modules()):
        if type(part) is nn.Linear and not path.endswith("lm_head"):
            model.set_submodule(path, kind(part))
    return model.eval()


def packed_linears(family: str) -> PreTrainedModel:
    """The model with every plain linear map packed in integers."""
    return _with_linears(family, PackedLinear)


def fp8_linears(family: str) -> PreTrainedModel:
    """The model with every plain linear map packed in bytes of eight-bit floats."""
    return _with_linears(family, Fp8Linear)


def pruned(family: str = "mixtral", stale: bool = False) -> PreTrainedModel:
    """Experts cut out of each layer, another number in each."""
    model = tiny_model(family)
    for layer, left in PRUNED.items():
        block = model.model.layers[layer].mlp
        for owner, name in ((block.gate, "weight"), (block.experts, "gate_up_proj"), (block.experts, "down_proj")):
            setattr(owner, name, nn.Parameter(getattr(owner, name)[:left].detach().clone()))
        block.experts.num_experts = left
        if not stale:
            block.gate.num_experts = left
    return model


def pruned_stale(family: str = "mixtral") -> PreTrainedModel:
    """Pruned, with the numbers beside the weights left as they were."""
    return pruned(family, stale=True)


def _faithful(self: Any, hidden: Tensor) -> Tensor:
    flat = hidden.reshape(-1, hidden.shape[-1])
    _, weights, indices = self.gate(flat)
    return self.experts(flat, indices, weights).view_as(hidden)


def _unfaithful(self: Any, hidden: Tensor) -> Tensor:
    """As blocks were written once: the router is called for its logits, and the choice made anew."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    weights, indices = self.gate(flat)[0].softmax(dim=-1).topk(self.top_k, dim=-1)
    return self.experts(flat, indices, weights / weights.sum(dim=-1, keepdim=True)).view_as(hidden)


def _patched(family: str, forward: Any) -> PreTrainedModel:
    model = tiny_model(family)
    for layer in model.model.layers:
        layer.mlp.forward = MethodType(forward, layer.mlp)
    return model


def patched_faithful(family: str = "mixtral") -> PreTrainedModel:
    """Blocks whose forward somebody has replaced by one that uses what the router decides."""
    return _patched(family, _faithful)


def patched_unfaithful(family: str = "mixtral") -> PreTrainedModel:
    """Blocks whose forward somebody has replaced by one that decides for itself."""
    return _patched(family, _unfaithful)


def in_a_pipeline(family: str = "mixtral") -> Any:
    """A text-generation pipeline around the model."""
    return pipeline("text-generation", model=tiny_model(family), tokenizer=tiny_tokenizer())


class ForeignRouter(nn.Module):
    """A router as remote code has it: a class that transformers does not know."""

    def __init__(self, weight: Tensor, top_k: int) -> None:
        super().__init__()
        self.num_experts, self.top_k = len(weight), top_k
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = nn.functional.linear(hidden, self.weight)
        values, indices = logits.topk(self.top_k, dim=-1)
        return logits, values.softmax(dim=-1), indices


class ForeignRegisteredRouter(ForeignRouter):
    """The same, taken in for the rest of the process."""


def remote(family: str = "mixtral", kind: type[ForeignRouter] = ForeignRouter) -> PreTrainedModel:
    """Routers of remote code in the blocks."""
    model = tiny_model(family)
    for layer in model.model.layers:
        layer.mlp.gate = kind(layer.mlp.gate.weight, layer.mlp.gate.top_k)
    return model


def remote_registered(family: str = "mixtral") -> PreTrainedModel:
    """Routers of remote code, after `register_routers`."""
    model = remote(family, ForeignRegisteredRouter)
    register_routers(model)
    return model


def through_gguf(dtype: str) -> PreTrainedModel:
    """Qwen3-MoE written to a GGUF file as llama.cpp names its tensors, and loaded from there by transformers.

    Args:
        dtype: The GGUF type of the matrices, `"F32"` or `"Q8_0"`; routers stay in float32, as llama.cpp keeps them.
    """
    import gguf

    # The loader reads neither the width of an expert nor whether weights are renormalised: both as configs have them.
    sizes = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 768}
    model = TINY_FAMILIES["qwen3_moe"](num_experts=8, mlp_only_layers=[], norm_topk_prob=False, **sizes)
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3MOE, config.num_hidden_layers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(path, "qwen3moe")
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        head = config.hidden_size // config.num_attention_heads
        writer.add_key_length(head)
        writer.add_value_length(head)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(10000.0)
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_vocab_size(config.vocab_size)
        for name, tensor in _gguf_tensors(model.state_dict(), config.moe_intermediate_size):
            found = names.get_name(name, try_suffixes=(".weight",))
            values = tensor.float().numpy()
            packed = dtype != "F32" and tensor.ndim >= 2 and "ffn_gate_inp" not in found
            kind = gguf.GGMLQuantizationType[dtype]
            if packed:
                writer.add_tensor(found, gguf.quants.quantize(values, kind), raw_dtype=kind)
            else:
                writer.add_tensor(found, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return type(model).from_pretrained(folder, gguf_file=path.name, dtype=torch.float32).eval()


def _gguf_tensors(state: dict[str, Tensor], width: int) -> list[tuple[str, Tensor]]:
    found = []
    for name, tensor in state.items():
        if name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            found += [(f"{stem}gate_proj.weight", tensor[:, :width]), (f"{stem}up_proj.weight", tensor[:, width:])]
        elif name.endswith("experts.down_proj"):
            found.append((f"{name}.weight", tensor))
        else:
            found.append((name, tensor))
    return found
