"""What it costs to train an SAE from text: time beyond the language model's forward, and memory against tokens.

    python tests/benchmarks/bench_collect.py time [--rounds 7] [--peers PYTHON]
    python tests/benchmarks/bench_collect.py second [--rounds 31]
    python tests/benchmarks/bench_collect.py memory [--sizes 0 1 2]

`time`: a Llama of SmolLM2-135M's shape with random weights, activations after layer 15, a dictionary of 4,608 latents,
TopK 32, batches of 2,048 tokens. A round takes one batch through each of these in turn: the model as far as the
hookpoint, a plain forward; the kernel's step alone, on activations that are there; text to SAE (`collect_activations`
and `SAETrainer`, whole steps); the same with two SAEs on one stream; with `--peers`, the steps of SAELens' TopK and
of sparsify, in processes of their own, by the interpreter of an environment with both. Processor time on one thread;
medians and quartiles over rounds, of ratios within a round.

`second`: what a second SAE on one stream costs, in steps of the kernel alone. In `time` that is the difference of two
runs in which the language model takes most of the time; here the model has one layer, so that the difference is seen.
How often the model runs is counted, with one SAE and with two.

`memory`: peak resident memory of processes that collect and train (Linux), each started for one size, beside the
formula of docs/training_saes.md, term by term: batches, latents, widths, k, one SAE and several, and 1, 4 and 16 times
as much text. The language model is small, two sequences run together, and memory is counted from the end of a run of
one step, after free memory was given back.
"""

from __future__ import annotations

import argparse
import ctypes
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
from bench_sae import Worker, median_and_interval, with_repository
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_mote import (
    MutualChoiceSAEConfig,
    MutualChoiceSAEModel,
    ReLUSAEConfig,
    ReLUSAEModel,
    SAETrainer,
    SAETrainingArguments,
    TopKSAEConfig,
    TopKSAEModel,
    collect_activations,
)

WIDTH, LATENTS, K, BATCH, CONTEXT = 576, 4608, 32, 2048, 256
LAYER = 15
WINDOW = 8192
LAYER_OF_MEMORY = 1
INTERMEDIATE = 1536
# Sequences of a forward, where memory is measured.
FORWARD = 2
# Tensors of the size of a batch's latents that a dense architecture holds at once.
DENSE = 4


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
    parser.add_argument("what", choices=["time", "second", "memory", "one-memory"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", type=Path, help="interpreter of an environment with SAELens and sparsify")
    parser.add_argument("--sizes", type=int, nargs="+", help="of `memory`: these rows only, counted from 0")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "time":
        measure_time(arguments.rounds, arguments.peers)
    elif arguments.what == "second":
        measure_second(arguments.rounds)
    elif arguments.what == "memory":
        measure_memory(arguments.sizes)
    else:
        one_memory(**json.loads(arguments.task))


def llama(layers: int, vocabulary: int, width: int = WIDTH) -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = width // 64
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=3 if heads % 3 == 0 else 4,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def new_sae(seed: int = 0) -> TopKSAEModel:
    torch.manual_seed(seed)
    return TopKSAEModel(TopKSAEConfig(hidden_size=WIDTH, num_latents=LATENTS, k=K, hookpoint=f"model.layers.{LAYER}"))


def trainer(
    model: Any,
    saes: Any,
    contexts: int,
    steps: int,
    layer: int,
    *callbacks: Any,
    batch: int = BATCH,
    window: int = BATCH,
    sequences_per_forward: int = BATCH // CONTEXT,
) -> SAETrainer:
    stream = collect_activations(
        model,
        Tokenizer(),
        Text(contexts, model.config.vocab_size),
        f"model.layers.{layer}.output",
        batch_size=batch,
        context_length=CONTEXT,
        sequences_per_forward=sequences_per_forward,
        window_tokens=window,
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


def measure_second(rounds: int) -> None:
    model, steps_of_run = llama(1, 4096), 8
    sizes = {"hidden": WIDTH, "latents": LATENTS, "k": K, "batch": BATCH, "threads": 1}
    torch.manual_seed(0)
    kernel = Worker(sys.executable, ("hf_mote", "TopK"), sizes, "cpu")
    forwards = 0

    def count(*_: object) -> None:
        nonlocal forwards
        forwards += 1

    model.model.register_forward_hook(count)

    def whole(saes: Any) -> tuple[float, int]:
        """Processor time of a step, the mean of steps after the first; and how often the model ran."""
        before, steps = forwards, Steps()
        trainer(model, saes, 4 * steps_of_run * BATCH // CONTEXT, steps_of_run, 0, steps).train()
        return statistics.mean(steps.seconds[1:]), forwards - before

    ratios = []
    try:
        for index in range(rounds + 1):
            # In turns, so that neither is always the first.
            order = [{"one": new_sae()}, {"one": new_sae(), "two": new_sae(1)}]
            found = {len(saes): whole(saes) for saes in (order if index % 2 else order[::-1])}
            step = statistics.mean(kernel.step() for _ in range(3))
            assert found[1][1] == found[2][1], found
            if index:  # warm-up
                ratios.append((found[2][0] - found[1][0]) / step)
                show(
                    f"round {index}: one SAE {1000 * found[1][0]:.0f} ms, two {1000 * found[2][0]:.0f} ms, "
                    f"kernel {1000 * step:.0f} ms, {found[1][1]} forwards in both"
                )
    finally:
        kernel.process.kill()
    show(
        f"a second SAE on the stream over the kernel's step, {rounds} rounds, processor time of one thread: "
        f"{median_and_interval(ratios)} (median, 95 % interval)"
    )


# Memory.

# What differs from the first row.
SIZES: list[dict[str, Any]] = [
    {},
    {"saes": 2},
    {"saes": 3},
    {"batch": 512},
    {"batch": 8192, "window": 16_384},
    {"latents": 16_384},
    {"width": 1024, "latents": 8192},
    {"k": 256},
    {"kind": "Mutual Choice"},
    {"kind": "ReLU"},
    {"kind": "ReLU", "batch": 512},
    {"windows": 8},
    {"windows": 32},
]
FIRST: dict[str, Any] = {
    "kind": "TopK",
    "saes": 1,
    "width": WIDTH,
    "latents": LATENTS,
    "k": K,
    "batch": BATCH,
    "window": WINDOW,
    "windows": 2,
}
KINDS = {
    "TopK": (TopKSAEConfig, TopKSAEModel),
    "Mutual Choice": (MutualChoiceSAEConfig, MutualChoiceSAEModel),
    "ReLU": (ReLUSAEConfig, ReLUSAEModel),
}
# Lines of a block of pre-activations on a CPU.
LINES = 512


def measure_memory(chosen: list[int] | None) -> None:
    show(f"{platform.machine()}, float32; MiB beyond a process that has the model and trained a step of 8 latents")
    terms = [name for name, _ in formula(FIRST)]
    show(f"{'':34}" + "".join(f"{name:>14}" for name in (*terms, "formula", "measured", "ratio", "(all steps")) + ")")
    for index, changed in enumerate(SIZES):
        if chosen and index not in chosen:
            continue
        size = FIRST | changed
        done = subprocess.run(
            [sys.executable, __file__, "one-memory", "--task", json.dumps(size)],
            env=with_repository(),
            check=True,
            capture_output=True,
            text=True,
        )
        found = json.loads(done.stdout.splitlines()[-1])
        expected = [value for _, value in formula(size)]
        label = ", ".join(f"{name} {value}" for name, value in changed.items()) or f"TopK, {LATENTS} latents"
        cells = [f"{value / 2**20:14.0f}" for value in (*expected, sum(expected), found["peak"])]
        cells.append(f"{found['peak'] / sum(expected):14.2f}")
        cells.append(f"{found['least'] / 2**20:8.0f}-{found['peak'] / 2**20:.0f}")
        show(f"{label:34}" + "".join(cells))


def formula(size: dict[str, Any]) -> list[tuple[str, int]]:
    """The terms of docs/training_saes.md, in bytes."""
    parameters = 2 * size["latents"] * size["width"] + size["latents"] + size["width"]
    dense = size["kind"] == "ReLU"
    lines = size["batch"] if dense else min(size["batch"], LINES)
    return [
        ("window", 2 * 4 * size["window"] * size["width"]),
        ("SAEs", size["saes"] * 16 * parameters),
        ("latents", (DENSE if dense else 1) * 4 * lines * size["latents"]),
        ("batch", (28 + 8 * size["saes"]) * size["batch"] * size["width"]),
        # What the model's own pass takes: gate and up projection, and four tensors of its width.
        ("forward", 4 * FORWARD * CONTEXT * (2 * INTERMEDIATE + 4 * size["width"])),
    ]


def one_memory(**size: Any) -> None:
    model = llama(LAYER_OF_MEMORY + 1, 512, size["width"])
    # What is imported, and grows once, is there before: a run of a step, of an SAE that is nearly nothing.
    small = size | {"latents": 8, "k": 4, "saes": 1, "batch": CONTEXT, "window": CONTEXT, "windows": 1}
    run_for_memory(model, small)
    ctypes.CDLL(None).malloc_trim(0)
    before = resident_bytes()
    forget_peak()
    peaks = run_for_memory(model, size)
    print(json.dumps({"peak": max(peaks) - before, "least": min(peaks) - before}))  # noqa: T201


def run_for_memory(model: LlamaForCausalLM, size: dict[str, Any]) -> list[int]:
    """Peaks of resident memory, from one step's end to the next."""
    config, kind = KINDS[size["kind"]]
    several = {}
    for seed in range(size["saes"]):
        torch.manual_seed(seed)
        choice = {} if size["kind"] == "ReLU" else {"k": size["k"]}
        several[f"s{seed}"] = kind(config(hidden_size=size["width"], num_latents=size["latents"], **choice))
    peaks = Peaks()
    tokens = size["window"] * size["windows"]
    trainer(
        model,
        several,
        tokens // CONTEXT,
        tokens // size["batch"],
        LAYER_OF_MEMORY,
        peaks,
        batch=size["batch"],
        window=size["window"],
        sequences_per_forward=FORWARD,
    ).train()
    return peaks.bytes


class Peaks(TrainerCallback):
    """The most memory between the ends of steps."""

    def __init__(self) -> None:
        self.bytes: list[int] = []

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.bytes.append(peak_bytes())
        forget_peak()


def resident_bytes() -> int:
    """Memory that the process has now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    """Most memory that the process had since [`forget_peak`] (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def quartiles(values: list[float], form: str) -> str:
    low, middle, high = (format(value, form) for value in statistics.quantiles(values, n=4))
    return f"{middle} [{low}, {high}]"


def show(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
