"""What patching and recording cost: decode step and prefill, recorder memory, time to attach.

Run: `python tests/benchmarks/bench_routing.py [--rounds 40]`. Each round times the two variants one right after the
other, in turns; the ratio is taken round by round and its median and quartiles are printed. "same" is the untouched
model against itself: the noise of the machine. With one CPU thread (`OMP_NUM_THREADS=1`) the time is the thread's own,
so that other jobs on the machine count only by the caches that they take away.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, DeepseekV3Config, PreTrainedModel, Qwen3MoeConfig

from hf_mote import MoTEConfig, apply_mote, find_routers, record_routing

sys.path.insert(0, str(Path(__file__).parents[1]))
from caches import cache_of, taking

COMMON = {
    "vocab_size": 2000,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 256,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 4096,
    "eos_token_id": None,
    "pad_token_id": 0,
}
CONFIGS = {
    "qwen3_moe": lambda: Qwen3MoeConfig(**COMMON, num_experts=64, head_dim=64, norm_topk_prob=True),
    "deepseek_v3": lambda: DeepseekV3Config(
        **COMMON, n_routed_experts=64, n_group=1, topk_group=1, first_k_dense_replace=0, kv_lora_rank=128,
        q_lora_rank=None, qk_rope_head_dim=32, qk_nope_head_dim=32, v_head_dim=64,
    ),
}  # fmt: skip
Variant = Callable[[], AbstractContextManager[object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", choices=list(CONFIGS), action="append", help="default: all")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    threads = torch.get_num_threads()
    show(f"{machine}, {threads} threads, torch {torch.__version__}, transformers {transformers.__version__}")
    for name in arguments.model or CONFIGS:
        model = AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32).to(device).eval()
        for prompt, label in (
            (1, "decode step, 1 sequence"),
            (8, "decode step, 8 sequences"),
            (0, "prefill, 512 tokens"),
        ):
            step = decode_step(model, prompt) if prompt else prefill(model)
            for variant, make in variants(model).items():
                low, median, high = ratio(step, make, arguments.rounds)
                show(f"{name:12} {label:25} {variant:22} {median:.3f}  [{low:.3f}, {high:.3f}]")
        show(f"{name:12} recorder memory after 8, 64 and 256 new tokens: {recorder_bytes(model)} bytes")
    show(f"attach and check, DeepSeek-R1 shape on the meta device, nothing hashed: {attach_seconds():.2f} s")


def variants(model: PreTrainedModel) -> dict[str, Variant]:
    """What is done to the model, by name."""
    draw = random.Random(0)
    sites = find_routers(model)
    pairs = {(draw.choice(sites).layer, draw.randrange(64)) for _ in range(40)}
    chosen = sorted(pairs)[:: len(pairs) // 10][:10]
    config = MoTEConfig.for_model(model, suppress=chosen)
    reroute = MoTEConfig.for_model(model, suppress=chosen, suppress_mode="reroute")
    return {
        "same": nullcontext,
        "10 experts, drop": lambda: apply_mote(model, config),
        "10 experts, reroute": lambda: apply_mote(model, reroute),
        "record": lambda: record_routing(model, eos_token_id=[]),
    }


def decode_step(model: PreTrainedModel, batch: int) -> Callable[[], float]:
    """Seconds of 16 decode steps, each with another token, on a cache of 16 tokens and more."""
    prompt = torch.randint(5, 2000, (batch, 16), device=model.device)
    first, *others = torch.randint(5, 2000, (17, batch, 1), device=model.device)

    def run() -> float:
        with torch.no_grad():
            cache = cache_of(model(prompt, use_cache=True))
            model(first, **taking(model, cache), use_cache=True)
            began = now(model)
            for token in others:
                model(token, **taking(model, cache), use_cache=True)
            return now(model) - began

    return run


def prefill(model: PreTrainedModel) -> Callable[[], float]:
    """Seconds of one forward over 512 tokens."""
    prompt = torch.randint(5, 2000, (1, 512), device=model.device)

    def run() -> float:
        with torch.no_grad():
            began = now(model)
            model(prompt, use_cache=False)
            return now(model) - began

    return run


def ratio(step: Callable[[], float], variant: Variant, rounds: int) -> tuple[float, float, float]:
    """Quartiles of variant over untouched, round by round, in alternating order."""
    ratios = []
    for index in range(rounds + 2):
        seconds = {}
        for touched in (False, True) if index % 2 else (True, False):
            with variant() if touched else nullcontext():
                seconds[touched] = step()
        if index >= 2:  # warm-up
            ratios.append(seconds[True] / seconds[False])
    low, median, high = statistics.quantiles(ratios, n=4)
    return low, median, high


def recorder_bytes(model: PreTrainedModel) -> list[int]:
    """Bytes of tensors that a record holds after more and more tokens."""
    sizes = []
    prompt = torch.randint(5, 2000, (2, 16), device=model.device)
    for tokens in (8, 64, 256):
        with record_routing(model, eos_token_id=[]) as record:
            model.generate(prompt, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        (batch,) = record._batches.values()
        held = [*(tensor for pair in batch.sums.values() for tensor in pair), *batch.tokens.values(), batch._starts]
        sizes.append(sum(part.nbytes for part in held if isinstance(part, torch.Tensor)))
    return sizes


def attach_seconds() -> float:
    """Median seconds of making a config for, and attaching it to, 58 layers of 256 experts: no values, so no hash."""
    config = DeepseekV3Config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        made = MoTEConfig.for_model(model, suppress=[[layer, 7] for layer in range(3, 61, 6)])
        apply_mote(model, made).remove()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def now(model: PreTrainedModel) -> float:
    """Seconds on a clock, once the device is done with what it was given."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    alone = model.device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time() if alone else time.perf_counter()


def show(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
