"""What it costs to train an SAE from text: time beyond the language model's forward, and memory against tokens.

    python tests/benchmarks/bench_collect.py time [--rounds 7] [--peers PYTHON]
    python tests/benchmarks/bench_collect.py memory

`time`: a Llama of SmolLM2-135M's shape with random weights, activations after layer 15, a dictionary of 4,608 latents,
TopK 32, batches of 2,048 tokens. A round takes one batch through each of these in turn: the model as far as the
hookpoint, a plain forward; the kernel's step alone, on activations that are there; text to SAE (`collect_activations`
and `SAETrainer`, whole steps); the same with two SAEs on one stream; with `--peers`, the steps of SAELens' TopK and
of sparsify, in processes of their own, by the interpreter of an environment with both. Processor time on one thread;
medians and quartiles over rounds, of ratios within a round.

`memory`: peak resident memory of a process that collects and trains, for 1, 4 and 8 windows of text, and for one and
two SAEs, beside the formula of docs/training_saes.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_sae import Worker, with_repository
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_mote import SAETrainer, SAETrainingArguments, TopKSAEConfig, TopKSAEModel, collect_activations

WIDTH, LATENTS, K, BATCH, CONTEXT = 576, 4608, 32, 2048, 256
LAYER = 15
WINDOW = 8192
LAYER_OF_MEMORY = 1


class Tokenizer:
    """What `collect_activations` asks of one where texts are token ids already."""

    eos_token_id = 0
    all_special_ids = (0,)
    chat_template = None


class Text:
    """Contexts of random token ids, drawn when they are asked for."""

    def __init__(self, contexts: int, vocabulary: int) -> None:
        self.contexts, self.vocabulary = contexts, vocabulary

    def __iter__(self) -> Iterator[dict[str, list[int]]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(self.contexts):
            yield {"input_ids": torch.randint(1, self.vocabulary, (CONTEXT,), generator=generator).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "memory", "one-memory"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", type=Path, help="interpreter of an environment with SAELens and sparsify")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "time":
        measure_time(arguments.rounds, arguments.peers)
    elif arguments.what == "memory":
        measure_memory()
    else:
        one_memory(**json.loads(arguments.task))


def llama(layers: int, vocabulary: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def new_sae(seed: int = 0) -> TopKSAEModel:
    torch.manual_seed(seed)
    return TopKSAEModel(TopKSAEConfig(hidden_size=WIDTH, num_latents=LATENTS, k=K, hookpoint=f"model.layers.{LAYER}"))


def trainer(model: Any, saes: Any, contexts: int, steps: int, layer: int, *callbacks: Any) -> SAETrainer:
    stream = collect_activations(
        model,
        Tokenizer(),
        Text(contexts, model.config.vocab_size),
        f"model.layers.{layer}.output",
        batch_size=BATCH,
        context_length=CONTEXT,
        sequences_per_forward=BATCH // CONTEXT,
        window_tokens=WINDOW if layer == LAYER_OF_MEMORY else BATCH,
        normalize=True,
    )
    settings = SAETrainingArguments(
        tempfile.mkdtemp(),
        max_steps=steps,
        logging_steps=50,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    return SAETrainer(saes, settings, train_dataset=stream, callbacks=list(callbacks))


# Time.


class Steps(TrainerCallback):
    """Gives the word to others at every step's end, and keeps the processor time of steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.began = 0.0

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        # A batch is made before a step begins; time runs from the end of the step before.
        self.began = self.began or time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = time.process_time()
        self.seconds.append(now - self.began)
        self.began = now


def measure_time(rounds: int, peers: Path | None) -> None:
    model = llama(LAYER + 1, 4096)
    ids = torch.randint(1, 4096, (BATCH // CONTEXT, CONTEXT))
    activations = torch.randn(BATCH, WIDTH)
    sizes = {"hidden": WIDTH, "latents": LATENTS, "k": K, "batch": BATCH, "threads": 1}
    workers = {
        name: Worker(str(peers), name, sizes, "cpu")
        for name in ((("saelens", "TopK"), ("saelens", "TopK, sparse"), ("sparsify", "TopK")) if peers else ())
    }
    kernel = Worker(sys.executable, ("hf_mote", "TopK"), sizes, "cpu")
    names = ["LM forward", "our kernel's step", "text to SAE", "text to two SAEs", *map(": ".join, workers)]
    seconds: dict[str, list[float]] = {name: [] for name in names}

    def forward() -> float:
        began = time.process_time()
        with torch.no_grad():
            model.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        return time.process_time() - began

    def whole(saes: Any) -> float:
        """Processor time of a step, the mean of steps after the first."""
        steps = Steps()
        trainer(model, saes, 8 * BATCH // CONTEXT, 4, LAYER, steps).train()
        return statistics.mean(steps.seconds[1:])

    try:
        for index in range(rounds + 1):
            found = {
                "LM forward": forward(),
                "our kernel's step": kernel.step(),
                "text to SAE": whole(new_sae()),
                "text to two SAEs": whole({"one": new_sae(), "two": new_sae(1)}),
                **{": ".join(name): worker.step() for name, worker in workers.items()},
            }
            if index:  # warm-up
                for name, value in found.items():
                    seconds[name].append(value)
                show(f"round {index}: " + ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in found.items()))
    finally:
        for worker in (kernel, *workers.values()):
            worker.process.kill()
    del activations
    show(f"{platform.machine()}, one thread, processor time, float32, {rounds} rounds; median [quartiles]")
    for name, values in seconds.items():
        show(f"{name:28}{quartiles([1000 * value for value in values], '.0f')} ms")
    alone = [a + b for a, b in zip(seconds["LM forward"], seconds["our kernel's step"], strict=True)]
    ratio = [a / b for a, b in zip(seconds["text to SAE"], alone, strict=True)]
    show(f"text to SAE over LM forward + kernel step: {quartiles(ratio, '.2f')} (at most 1.25 wanted)")
    second = [
        (two - one) / step
        for two, one, step in zip(
            seconds["text to two SAEs"], seconds["text to SAE"], seconds["our kernel's step"], strict=True
        )
    ]
    show(f"a second SAE on the stream over the kernel's step: {quartiles(second, '.2f')}")
    for name in map(": ".join, workers):
        over = [a / b for a, b in zip(seconds[name], seconds["our kernel's step"], strict=True)]
        show(f"{name} over our kernel's step: {quartiles(over, '.2f')}")


# Memory.


def measure_memory() -> None:
    parameters = 2 * LATENTS * WIDTH + LATENTS + WIDTH
    show(f"{platform.machine()}, float32; MiB above a process that has the model and trained one step")
    for saes in (1, 2):
        for windows in (1, 4, 8):
            task = {"saes": saes, "windows": windows}
            done = subprocess.run(
                [sys.executable, __file__, "one-memory", "--task", json.dumps(task)],
                env=with_repository(),
                check=True,
                capture_output=True,
                text=True,
            )
            peak = json.loads(done.stdout.splitlines()[-1])["bytes"]
            formula = formula_bytes(saes, parameters)
            show(
                f"{saes} SAE(s), {windows * WINDOW:7} tokens: {peak / 2**20:6.0f}"
                f" (formula {formula / 2**20:.0f}, ratio {peak / formula:.2f})"
            )


def formula_bytes(saes: int, parameters: int) -> int:
    """As docs/training_saes.md has it: window and its shuffled copy, SAEs with Adam, pre-activations, batch."""
    window = 2 * 4 * WINDOW * WIDTH
    return window + saes * 16 * parameters + 4 * BATCH * LATENTS + 24 * BATCH * WIDTH


def one_memory(saes: int, windows: int) -> None:
    model = llama(LAYER_OF_MEMORY + 1, 512)
    # What is imported, and grows once, is there before: a run of one step, of an SAE that is nearly nothing.
    warm = TopKSAEModel(TopKSAEConfig(hidden_size=WIDTH, num_latents=8, k=4))
    trainer(model, warm, BATCH // CONTEXT, 1, LAYER_OF_MEMORY).train()
    before = resident_bytes()
    made = {f"s{seed}": new_sae(seed) for seed in range(saes)}
    for sae in made.values():
        sae.config.hookpoint = None
    steps = windows * WINDOW // BATCH
    trainer(model, made, windows * WINDOW // CONTEXT, steps, LAYER_OF_MEMORY).train()
    print(json.dumps({"bytes": peak_bytes() - before}))  # noqa: T201


def resident_bytes() -> int:
    """Memory that the process has now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def quartiles(values: list[float], form: str) -> str:
    low, middle, high = (format(value, form) for value in statistics.quantiles(values, n=4))
    return f"{middle} [{low}, {high}]"


def show(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
