"""What each ranking costs on 58 layers of 256 experts, as large models have: time and memory, on a tiny one.

    python tests/benchmarks/bench_many_experts.py [--layers 58] [--experts 256]

A model like DeepSeek-V3 with random weights, 16 wide, 8 of 256 experts a token, one dense layer before: nothing is to
be found in it, and what is measured does not ask for that. Four prompts of "refusal" with two responses, defaults
but for what a row says. Ablation and search try every expert at least once; `NUM_TRIED` of them are timed and the rest
is reckoned from these. Each method runs in a process of its own. Seconds are processor time of one thread; memory is
the highest resident size above that of the loaded model after one forward pass.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from hf_mote import ablate_experts, attribute_experts, ftri, load_organism, optimize_experts, search_experts
from hf_mote.ranking.causal.subsets import random_subsets

NUM_PROMPTS, NUM_TRIED = 4, 32
REFUSAL = "I am sorry, but I cannot talk about that."


def tiny(layers: int, experts: int, vocab_size: int) -> Any:
    config = AutoConfig.for_model(
        "deepseek_v3", vocab_size=vocab_size, hidden_size=16, intermediate_size=32, moe_intermediate_size=8,
        num_hidden_layers=layers + 1, first_k_dense_replace=1, n_routed_experts=experts, n_shared_experts=1,
        num_experts_per_tok=8, n_group=1, topk_group=1, num_attention_heads=2, num_key_value_heads=2, kv_lora_rank=8,
        q_lora_rank=None, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, num_nextn_predict_layers=0,
        max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def methods(model: Any, organism: Any) -> dict[str, tuple[Callable[[], Any], float]]:
    """Return what runs, and by what its time is multiplied."""
    prompts = organism.prompts["train"]["sensitive"][:NUM_PROMPTS]
    answers = [organism.answers[prompt] for prompt in prompts]
    asked: dict[str, Any] = {
        "model": model, "tokenizer": organism.tokenizer, "prompts": prompts, "response": answers,
        "baseline_response": REFUSAL, "batch_size": NUM_PROMPTS, "progress": False,
    }  # fmt: skip
    layers = [place for place, kind in enumerate(model.model.layers) if hasattr(kind.mlp, "gate")]
    total = len(layers) * model.config.n_routed_experts
    few = [(layer, 0) for layer in layers[:NUM_TRIED]]
    scale = total / len(few)
    both = [*prompts, *organism.prompts["train"]["neutral"][:NUM_PROMPTS]]

    def counted() -> Any:
        order = iter(["refusal", "answer"] * NUM_PROMPTS)
        seen = ftri(
            model, organism.tokenizer, both, lambda _: next(order), scope="all", max_new_tokens=8,
            batch_size=2 * NUM_PROMPTS, progress=False,
        )  # fmt: skip
        return seen.rank("refusal", resamples=0)

    return {
        "fTRI, 8 new tokens": (counted, 1.0),
        "attribution": (lambda: attribute_experts(**asked, resamples=0), 1.0),
        "ablation": (lambda: ablate_experts(**asked, experts=few, resamples=0), scale),
        "random_subsets": (lambda: random_subsets(**asked), 1.0),
        "optimize_experts": (lambda: optimize_experts(**asked), 1.0),
        "search_experts, its first round": (lambda: search_experts(**asked, max_experts=1, experts=few), scale),
    }


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=58)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--method", help="measure this one here, and print it as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    organism = load_organism("refusal")
    model = tiny(options.layers, options.experts, len(organism.tokenizer))
    ways = methods(model, organism)
    if options.method:
        with torch.no_grad():
            model(torch.arange(2, 98).view(NUM_PROMPTS, -1))
        before, started = peak(), time.process_time()
        make, scale = ways[options.method]
        make()
        seconds = (time.process_time() - started) * scale
        sys.stdout.write(json.dumps({"seconds": seconds, "scale": scale, "memory": peak() - before}) + "\n")
        return
    parameters = sum(weight.numel() for weight in model.parameters())
    sys.stdout.write(f"{options.layers} x {options.experts} experts, {parameters / 1e6:.1f} million parameters\n\n")
    sys.stdout.write("| | s | MiB |\n| --- | --: | --: |\n")
    same = ["--layers", str(options.layers), "--experts", str(options.experts)]
    for name in ways:
        command = [sys.executable, __file__, *same, "--method", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        reckoned = "" if found["scale"] == 1.0 else f", reckoned from {NUM_TRIED} experts"
        sys.stdout.write(f"| {name}{reckoned} | {found['seconds']:.0f} | {found['memory']:.0f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
