"""This checkout beside another one: the same work in both, in turns, and the ratio of the two.

    git worktree add ../before REVISION
    python tests/benchmarks/bench_versions.py ../before --rounds 25

Each checkout has a process of its own, on one thread. Both hold the same models (hidden size 512, 8 layers, 64
experts, top-8, random weights of one seed) and do the same work: a decode step with 10 experts suppressed (modes
"drop" and "reroute"), or recorded, imaging of the organism "refusal", and a training step of a TopK autoencoder. A
round does one piece of work in both processes, one after the other, in an order that changes from round to round. The
ratio of processor times, this checkout over the other, is taken round by round; its median is printed, with an
interval of 95 % for it (order statistics). "untouched" is the model alone, the noise of the machine. Only public
names are used.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from caches import cache_of, taking

REPOSITORY = Path(__file__).parents[2]
WORK = ("untouched", "drop", "reroute", "record", "imaging", "sae step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the checkout to compare with")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    options = parser.parse_args()
    checkouts = {"this": REPOSITORY, "other": options.other.resolve()}
    workers = {name: start(folder) for name, folder in checkouts.items()}
    for name, worker in workers.items():
        show(f"{name}: {checkouts[name]}, {answer(worker)['versions']}")
    for work in options.only:
        ratios = []
        for number in range(options.rounds + 2):
            took = {name: ask(workers[name], work) for name in (("this", "other"), ("other", "this"))[number % 2]}
            if number >= 2:  # warm-up
                ratios.append(took["this"] / took["other"])
        low, middle, high = median_interval(ratios)
        show(f"{work:10} {middle:.3f} [{low:.3f}, {high:.3f}], {options.rounds} rounds, last {took['this']:.3f} s")
    for worker in workers.values():
        worker.communicate("stop\n")


def start(folder: Path) -> subprocess.Popen[str]:
    """A process that works with the package of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, __file__, "work", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=folder,
    )


def answer(worker: subprocess.Popen[str]) -> dict[str, Any]:
    line = worker.stdout.readline() if worker.stdout else ""
    if not line:
        raise SystemExit(f"a worker ended with status {worker.wait()}; what it said is above")
    found: dict[str, Any] = json.loads(line)
    return found


def ask(worker: subprocess.Popen[str], work: str) -> float:
    if worker.stdin is None:
        raise SystemExit("a worker has no standard input")
    worker.stdin.write(work + "\n")
    worker.stdin.flush()
    return float(answer(worker)["seconds"])


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """The median, and the order statistics that hold it with 95 %."""
    from scipy.stats import binom

    ordered = sorted(values)
    rank = int(binom.ppf(0.025, len(ordered), 0.5))
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return ordered[max(rank - 1, 0)], middle, ordered[min(len(ordered) - rank, len(ordered) - 1)]


def show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def work(folder: Path) -> None:
    """The worker: does what each line asks for, and says how long it took."""
    import torch
    import transformers

    import hf_mote

    if folder not in Path(hf_mote.__file__).parents:
        raise SystemExit(f"hf_mote must be imported from {folder}, got {hf_mote.__file__}")
    torch.set_num_threads(1)
    done = {**routing(), **imaging(), **training()}
    version = f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}"
    show(json.dumps({"versions": version}))
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        show(json.dumps({"seconds": done[line.strip()]()}))


def routing() -> dict[str, Callable[[], float]]:
    """16 decode steps of one sequence, on a cache of 17 tokens and more."""
    import random
    from contextlib import nullcontext

    import torch
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    from hf_mote import MoTEConfig, apply_mote, record_routing

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 2000, "hidden_size": 512, "intermediate_size": 1024, "moe_intermediate_size": 256,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8, "num_experts": 64, "head_dim": 64,
        "num_experts_per_tok": 8, "norm_topk_prob": True, "eos_token_id": None, "pad_token_id": 0,
    }  # fmt: skip
    config = Qwen3MoeConfig(**sizes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    pairs = random.Random(0).sample([(layer, expert) for layer in range(8) for expert in range(64)], 10)
    drop = MoTEConfig.for_model(model, suppress=pairs)
    reroute = MoTEConfig.for_model(model, suppress=pairs, suppress_mode="reroute")
    prompt = torch.randint(5, 2000, (1, 16))
    first, *others = torch.randint(5, 2000, (17, 1, 1))

    @torch.no_grad()
    def steps() -> float:
        cache = cache_of(model(prompt, use_cache=True))
        model(first, **taking(model, cache), use_cache=True)
        began = time.process_time()
        for token in others:
            model(token, **taking(model, cache), use_cache=True)
        return time.process_time() - began

    def inside(attach: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            with attach():
                return steps()

        return run

    return {
        "untouched": inside(nullcontext),
        "drop": inside(lambda: apply_mote(model, drop)),
        "reroute": inside(lambda: apply_mote(model, reroute)),
        "record": inside(lambda: record_routing(model, eos_token_id=[])),
    }


def imaging() -> dict[str, Callable[[], float]]:
    """64 prompts of the organism "refusal", 16 new tokens each, generated, judged and recorded."""
    from hf_mote import ftri, load_organism

    organism = load_organism("refusal")
    prompts = (organism.prompts["train"]["sensitive"] + organism.prompts["train"]["neutral"])[:64]

    def run() -> float:
        began = time.process_time()
        ftri(
            organism.model,
            organism.tokenizer,
            prompts,
            organism.judge,
            batch_size=16,
            max_new_tokens=16,
            progress=False,
        )
        return time.process_time() - began

    return {"imaging": run}


def training() -> dict[str, Callable[[], float]]:
    """A step of TopK: 1,024 tokens of width 576, 4,608 latents, k = 32, with Adam."""
    import torch

    from hf_mote import TopKSAEConfig, TopKSAEModel

    torch.manual_seed(0)
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=576, num_latents=4608, k=32)).train()
    optimizer = torch.optim.Adam(sae.parameters(), fused=True)
    batch = torch.randn(1024, 576)

    def run() -> float:
        began = time.process_time()
        sae(batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - began

    return {"sae step": run}


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(Path(sys.argv[2]))
    else:
        main()
