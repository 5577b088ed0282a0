"""What a training step of a sparse autoencoder costs: time over the encoder's matrix product, and peak memory.

Run: `python tests/benchmarks/bench_sae.py [--rounds 9] [--threads 2] [--peers FOLDER] [--kinds TopK]`. With `--peers`,
SAELens and sparsify are measured in the same run, each in its own environment: `FOLDER/sae-lens` and
`FOLDER/eai-sparsify`, made there, with this torch, if they are not. An interpreter that has both will do, too.
`--batch 512 2048 4096` measures one size after the other; `--kinds` leaves out all but some architectures.

Every autoencoder lives in a process of its own (`bench_sae_worker.py`) and only one works at a time. A round takes
one step of each in turn, every step right after the encoder's product `x @ W_enc.T`; the ratio of the two is taken
step by step, and its median and quartiles are printed; so is the ratio to our TopK's step of the same round, with an
interval of 95 % for its median (order statistics). `--clock cpu` counts processor time, for a busy machine. Peak
memory is the growth of a process's peak resident set (getrusage) from before its model is made, with imports and
batches done, to the end; beside it, the same over pre-activations + parameters + Adam's state, gradients not counted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch

WORKER = Path(__file__).with_name("bench_sae_worker.py")
REPOSITORY = Path(__file__).parents[2]
OURS = ["TopK", "Mutual Choice", "Feature Choice, uniform", "Feature Choice, Zipf"]
PEERS = {
    "sae-lens": ("saelens", ["TopK", "TopK, sparse", "BatchTopK"]),
    "eai-sparsify": ("sparsify", ["TopK"]),
}
ENCODER = ("encoder", "product")
TOPK = ("hf_mote", "TopK")
Name = tuple[str, str]


def main() -> None:
    arguments = parse()
    pythons = {("hf_mote", kind): sys.executable for kind in OURS}
    for package, (library, kinds) in PEERS.items() if arguments.peers else ():
        given = arguments.peers
        python = str(given if given.is_file() else environment(given / package, package))
        pythons |= {(library, kind): python for kind in kinds}
    wanted = arguments.kinds or [kind for _, kind in pythons]
    pythons = {name: python for name, python in pythons.items() if name[1] in wanted}
    show(f"{machine()}, {arguments.threads} threads, float32, {arguments.clock} time")
    for batch in arguments.batch:
        sizes = {name: getattr(arguments, name) for name in ("hidden", "latents", "k", "threads")} | {"batch": batch}
        compare(arguments, sizes, pythons)


def compare(arguments: argparse.Namespace, sizes: dict[str, int], pythons: dict[Name, str]) -> None:
    """Measure at one size, and print."""
    loads = [os.getloadavg()[0]]
    show("\n" + ", ".join(f"{name} {value}" for name, value in sizes.items()) + f", {arguments.rounds} rounds")
    workers = {name: Worker(python, name, sizes, arguments.clock) for name, python in pythons.items()}
    encoder = Worker(sys.executable, ENCODER, sizes, arguments.clock)
    try:
        ratios, seconds = measure(encoder, workers, arguments.rounds)
        peaks = {name: worker.stop() for name, worker in workers.items()}
        encoder.stop()
    finally:
        for worker in (encoder, *workers.values()):
            worker.process.kill()
    loads.append(os.getloadavg()[0])
    show(f"load of the machine before and after: {loads[0]:.1f}, {loads[1]:.1f}")
    show(f"encoder product: {quartiles(seconds.pop(ENCODER), 1000, '.0f')} ms")
    parameters = 2 * sizes["latents"] * sizes["hidden"] + sizes["latents"] + sizes["hidden"]
    allowed = 4 * (sizes["batch"] * sizes["latents"] + 3 * parameters)
    show(f"pre-activations + parameters + Adam's state: {allowed / 2**20:.0f} MiB")
    show(f"{'':42}{'step / product':24}{'step, ms':24}{'step / our TopK':24}{'peak, MiB':>10}{'peak / above':>14}")
    for name, peak in peaks.items():
        step = f"{quartiles(ratios[name], 1, '.2f'):24}{quartiles(seconds[name], 1000, '.0f'):24}"
        over = [a / b for a, b in zip(seconds[name], seconds.get(TOPK, []), strict=False)]
        step += f"{median_and_interval(over) if over else '':24}"
        show(f"{': '.join(name):42}{step}{peak / 2**20:10.0f}{peak / allowed:14.2f}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--latents", type=int, default=24_576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, nargs="+", default=[4096])
    parser.add_argument("--kinds", nargs="+", help="architectures, as the table names them; all by default")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument(
        "--peers",
        type=Path,
        help="folder of the peers' environments, or an interpreter that has both; without it they are left out",
    )
    return parser.parse_args()


class Worker:
    """A process that takes training steps when told to."""

    def __init__(self, python: str, name: Name, sizes: dict[str, int], clock: str) -> None:
        task = json.dumps({"library": name[0], "kind": name[1], **sizes})
        self.name = name
        self.clock = clock
        self.process = subprocess.Popen(
            [python, str(WORKER), task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=with_repository(),
        )
        show(f"{': '.join(name)}: torch {self.answer()['torch']}")

    def step(self) -> float:
        """Seconds of one step."""
        self.say("step")
        seconds: float = self.answer()[self.clock]
        return seconds

    def stop(self) -> int:
        """Bytes of peak memory."""
        self.say("stop")
        peak: int = self.answer()["bytes"]
        return peak

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} failed:\n{self.process.communicate()[1]}")
        fields: dict[str, Any] = json.loads(line)
        return fields


def measure(
    encoder: Worker, workers: dict[Name, Worker], rounds: int
) -> tuple[dict[Name, list[float]], dict[Name, list[float]]]:
    """Ratios to the product, and seconds, of each worker and of the product itself."""
    ratios: dict[Name, list[float]] = {name: [] for name in workers}
    seconds: dict[Name, list[float]] = {name: [] for name in (ENCODER, *workers)}
    for index in range(rounds + 2):
        names = list(workers)[:: 1 if index % 2 else -1]
        for name in names:
            product, step = encoder.step(), workers[name].step()
            if index >= 2:  # warm-up
                ratios[name].append(step / product)
                seconds[name].append(step)
                seconds[ENCODER].append(product)
    return ratios, seconds


def environment(folder: Path, package: str) -> Path:
    """The interpreter of a virtual environment with `package`, made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        show(f"installing {package}")
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", package, f"torch=={torch.__version__}"], check=True)
    return python


def with_repository() -> dict[str, str]:
    """The environment in which the checkout is imported, not what is installed."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}


def machine() -> str:
    """The processor's name, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()


def quartiles(values: list[float], scale: float, form: str) -> str:
    low, median, high = (format(scale * value, form) for value in statistics.quantiles(values, n=4))
    return f"{median}  [{low}, {high}]"


def median_and_interval(values: list[float]) -> str:
    """The median, and the closest pair of order statistics that holds it with 95 % at least."""
    ordered, n = sorted(values), len(values)
    # Below the median lie as many values as heads in n throws.
    tail, rank = 0.0, 0
    while rank < n // 2 and (tail := tail + math.comb(n, rank) / 2**n) <= 0.025:
        rank += 1
    low, high = ordered[max(rank - 1, 0)], ordered[n - max(rank, 1)]
    return f"{statistics.median(ordered):.2f}  [{low:.2f}, {high:.2f}]"


def show(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
