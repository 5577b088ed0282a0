"""What imaging costs beside plain `generate`: paired rounds, medians and quartiles.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_imaging.py --model qwen3_moe --rounds 15

The model is the organism "refusal" (2.4 million parameters, where hooks weigh most) or one of those of
`bench_routing.py` (hidden size 512, 8 layers, 64 experts, random weights).

Each round runs the same prompts through `generate_responses` and through `ftri`, one after the other, in an order that
changes from round to round, and takes the ratio of the two. Both encode the prompts, generate in the same batches and
decode the responses. `ftri` also hashes the routers, attaches and removes its hooks, records, judges all responses and
makes the result; ranking, which makes no pass of the model, is not part of it. "same" is `generate_responses` against
itself, the noise of the machine. With one CPU thread the time is the thread's own, as in `bench_routing.py`.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable

import torch
import transformers
from bench_routing import CONFIGS, now
from transformers import AutoModelForCausalLM

from hf_mote import ftri, load_organism
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.responses import generate_responses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", choices=["organism", *CONFIGS], default="organism")
    options = parser.parse_args()
    if options.device == "cpu":
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
        for _ in generate_responses(model, Chat(tokenizer), prompts, Decoding(**settings)):
            pass

    def imaging(scope: str) -> Callable[[], None]:
        return lambda: (
            ftri(model, tokenizer, prompts, organism.judge, scope=scope, progress=False, **settings) and None
        )

    def seconds(run: Callable[[], None]) -> float:
        start = now(model)
        run()
        return now(model) - start

    machine = torch.cuda.get_device_name() if options.device != "cpu" else f"{platform.machine()} CPU"
    sys.stdout.write(
        f"{options.model} on {machine}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"{len(prompts)} prompts, batches of {options.batch_size}, {options.new_tokens} new tokens, "
        f"{options.rounds} rounds\n"
    )
    variants = {"same": plain, "scope prompt": imaging("prompt"), "scope all": imaging("all")}
    for run in (plain, *variants.values()):
        run()
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(options.rounds):
        for name, image in variants.items():
            took = {}
            for which, run in ((0, plain), (1, image))[:: 1 if number % 2 else -1]:
                took[which] = seconds(run)
            ratios[name].append(took[1] / took[0])
    for name, found in ratios.items():
        low, middle, high = statistics.quantiles(found, n=4)
        sys.stdout.write(f"{name:12} {middle:.3f} [{low:.3f}, {high:.3f}]\n")


if __name__ == "__main__":
    main()
