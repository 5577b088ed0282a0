"""What imaging costs beside plain `generate`: paired rounds, medians and quartiles.

    python tests/benchmarks/bench_imaging.py --model qwen3_moe --rounds 15

The model is the organism "refusal" (2.4 million parameters) or one of those of `bench_routing.py` (hidden size 512, 8
layers, 64 experts, random weights).

Each round runs the same prompts through `generate_responses` and through `ftri`, one after the other, in an order that
changes from round to round, and takes the ratio of the two. Batches, tokens and decoding are the same.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
import transformers
from bench_routing import CONFIGS
from transformers import AutoModelForCausalLM

from hf_mote import ftri, load_organism
from hf_mote.ftri.responses import generate_responses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", choices=["organism", *CONFIGS], default="organism")
    options = parser.parse_args()
    torch.set_num_threads(1)
    organism = load_organism("refusal")
    model, tokenizer = organism.model, organism.tokenizer
    if options.model != "organism":
        torch.manual_seed(0)
        config = CONFIGS[options.model]()
        config.vocab_size = len(tokenizer)
        model = AutoModelForCausalLM.from_config(config).eval()
    model.to(options.device)
    prompts = (organism.prompts["train"]["sensitive"] + organism.prompts["train"]["neutral"])[: options.prompts]
    settings = {"batch_size": options.batch_size, "max_new_tokens": options.new_tokens}

    def plain() -> None:
        for _ in generate_responses(model, tokenizer, prompts, **settings):
            pass

    def imaging(scope: str) -> Callable[[], None]:
        return lambda: (
            ftri(model, tokenizer, prompts, organism.judge, scope=scope, progress=False, **settings) and None
        )

    sys.stdout.write(
        f"{options.model} on {platform.machine()} {options.device}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {len(prompts)} prompts, batches of {options.batch_size}, "
        f"{options.new_tokens} new tokens\n"
    )
    for scope in ("prompt", "all"):
        image = imaging(scope)
        plain(), image()
        ratios = []
        for number in range(options.rounds):
            seconds = {}
            for name, run in (("plain", plain), ("image", image))[:: 1 if number % 2 else -1]:
                start = time.perf_counter()
                run()
                if options.device != "cpu":
                    torch.cuda.synchronize()
                seconds[name] = time.perf_counter() - start
            ratios.append(seconds["image"] / seconds["plain"])
        low, _, high = statistics.quantiles(ratios, n=4)
        sys.stdout.write(f"scope {scope:8} {statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}]\n")


if __name__ == "__main__":
    main()
