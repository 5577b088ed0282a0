"""Run by tests as two processes that share a model: `python two_processes.py RANK FOLDER` writes what each saw.

The folder holds one tiny model for each name. Of every setting of transformers, `RANK.pt` gets the logits untouched,
patched and after removal, the recorded counts and the tokens written; or the error. Of torch's own wrappers, it gets
the patched logits, and the gradients of a training step with one row of the batch in each process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.distributed import DistributedConfig

from hf_mote import MoTEConfig, apply_mote, record_routing
from hf_mote.errors import HFMoTEError

__all__ = ["EXPERTS", "NAMES", "PAIR", "SETTINGS", "gradients", "seen_of"]

NAMES = ("deepseek_v3", "mixtral")
PAIR = torch.tensor([[10, 11, 12, 13, 14, 15, 16], [40, 41, 42, 43, 44, 45, 46]])
EXPERTS = {"suppress": [[layer, expert] for layer in (1, 2) for expert in (0, 3, 5)], "suppress_mode": "reroute"}
# The plan of earlier versions in which routers hand each process its own experts.
EP_ROUTER = {"model.layers.*.mlp.gate": "ep_router", "model.layers.*.mlp.experts": "moe_tp_experts"}
SETTINGS: dict[str, dict[str, Any]] = {
    "tensor": {"tp_size": 2, "tp_plan": "auto"},
    "experts": {"tp_size": 2, "tp_plan": "auto", "ep_size": 2},
    "experts by router": {"tp_size": 2, "ep_size": 2, "ep_plan": EP_ROUTER},
    "sharded": {"fsdp_size": 2},
    "pipeline": {"pp_size": 2},
}


def seen_of(model: PreTrainedModel, config: MoTEConfig) -> dict[str, torch.Tensor]:
    """What a model does untouched, patched and after removal."""
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 6}
    seen = {"native": model(PAIR).logits}
    with apply_mote(model, config), record_routing(model, eos_token_id=[]) as record:
        seen["patched"] = model(PAIR).logits
    seen["counts"] = torch.stack([found.counts for found in record.maps()])
    with apply_mote(model, MoTEConfig.for_model(model, scope="generation", **EXPERTS)):
        seen["written"] = model.generate(PAIR, attention_mask=torch.ones_like(PAIR), **options)
    seen["removed"] = model(PAIR).logits
    return seen


def gradients(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a training step under a patch, by the parameter's name."""
    inside = getattr(model, "module", model)
    with torch.enable_grad(), apply_mote(model, MoTEConfig.for_model(inside, **EXPERTS)):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return {name: value.grad for name, value in inside.named_parameters() if value.grad is not None}


def _main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name in NAMES:
        plain = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
        config = MoTEConfig.for_model(plain, **EXPERTS)
        for setting, fields in SETTINGS.items():
            try:
                model = AutoModelForCausalLM.from_pretrained(
                    folder / name, dtype=torch.float32, distributed_config=DistributedConfig(**fields)
                )
            except ValueError as error:
                found[f"{name} {setting}"] = {"not here": str(error)}
                continue
            try:
                with torch.no_grad():
                    found[f"{name} {setting}"] = seen_of(model.eval(), config)
            except HFMoTEError as error:
                found[f"{name} {setting}"] = {"error": str(error)}
        wrapped = DistributedDataParallel(plain)
        with torch.no_grad(), apply_mote(wrapped, config):
            patched = wrapped(PAIR).logits
        found[f"{name} data"] = {"patched": patched, "gradients": gradients(wrapped, PAIR[rank : rank + 1])}
        plain.zero_grad()
        with torch.no_grad(), apply_mote(plain, config):
            sharded = FullyShardedDataParallel(plain, device_id=torch.device("cpu"))
            found[f"{name} flat shards"] = {"patched": sharded(PAIR).logits}
    torch.save(found, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    _main(int(sys.argv[1]), Path(sys.argv[2]))
