"""How imaging results grow with prompts: time and memory to collect, save, load, rank and compare them.

    python tests/benchmarks/bench_scale.py [--prompts 1000 10000] [--layers 58] [--experts 256] [--folder DIR]

Each number of prompts runs in a process of its own. Maps are synthetic (Poisson counts; ten experts are used more by
the first half of the prompts), put batch by batch as `ftri` puts them; the model's forward passes are left out.
`--prompts 100000` needs 40 GB of disk in DIR, and in TMPDIR.

Seconds are wall clock. Memory is the most that a process held that is not backed by a file (`RssAnon`), less what it
held before; "mapped" is the most that the system kept of files for it, which it gives back where memory is short.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hf_mote import FTRIResult
from hf_mote.ranking.imaging.collected import Collected

BATCH = 50
PLANTED = [(layer, 7 * layer) for layer in range(3, 13)]


def say(text: str) -> None:
    """Print a line of the table."""
    print(text, flush=True)  # noqa: T201


def held() -> dict[str, int]:
    """Return the memory of this process in bytes, by kind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.startswith("Rss")}


class Peak:
    """The most memory that this process holds within the block, looked at every 20 ms."""

    def __enter__(self) -> Peak:
        self.anonymous = self.mapped = 0
        self._going = True
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join()

    def _look(self) -> None:
        while self._going:
            now = held()
            self.anonymous = max(self.anonymous, now["RssAnon"])
            self.mapped = max(self.mapped, now["RssFile"] + now["RssShmem"])
            time.sleep(0.02)


def collected(prompts: int, layers: int, experts: int) -> Collected:
    """Return maps of so many prompts, put batch by batch."""
    found = Collected(prompts)
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(layers, experts, generator=generator) * 0.8
    for start in range(0, prompts, BATCH):
        places = range(start, min(start + BATCH, prompts))
        counts = torch.poisson(rates.expand(len(places), -1, -1), generator=generator)
        more = torch.tensor(places) < prompts // 2
        for layer, expert in PLANTED:
            counts[more, layer % layers, expert % experts] += 1
        batch: Any = SimpleNamespace(
            tokens=[[1]] * len(places), counts=counts, weights=counts / 8, num_tokens=torch.full((len(places),), 40.0)
        )
        found.put(places, batch)
    return found


def measure(prompts: int, layers: int, experts: int, folder: Path) -> dict[str, Any]:
    """Return seconds and bytes of each step."""
    row: dict[str, Any] = {"prompts": prompts, "experts": layers * experts}
    base = held()["RssAnon"]

    def step(name: str, run: Callable[[], Any]) -> Any:
        with Peak() as peak:
            start = time.perf_counter()
            result = run()
            row[name] = time.perf_counter() - start
        row[f"{name}_memory"], row[f"{name}_mapped"] = peak.anonymous - base, peak.mapped
        return result

    found = step("collect", lambda: collected(prompts, layers, experts))
    classes = ["refusal" if place < prompts // 2 else "answer" for place in range(prompts)]
    result = FTRIResult(
        prompts=[f"Question number {place} of many?" for place in range(prompts)],
        responses=["An answer."] * prompts,
        classes=classes,
        counts=found.counts,
        weights=found.weights,
        num_tokens=found.num_tokens,
        layers=tuple(range(layers)),
        scope="prompt",
        fingerprint=None,
        response_tokens=found.tokens,
    )
    step("save", lambda: result.save_pretrained(folder / "result"))
    row["file"] = sum(file.stat().st_size for file in (folder / "result").iterdir())
    del result, found
    result = step("load", lambda: FTRIResult.from_pretrained(folder / "result"))
    ranking = step("rank", lambda: result.rank("refusal"))
    step("rank_log_odds", lambda: result.rank("refusal", score="log_odds"))
    asked = [(layer % layers, expert % experts) for layer, expert in PLANTED]
    step("alike", lambda: result.alike(asked))
    planted = {(layer % layers, expert % experts) for layer, expert in PLANTED}
    row["found"] = len(planted & set(ranking.top(len(planted)))) / len(planted)
    row["significant"] = int((ranking.q <= 0.05).sum())
    return row


def main() -> None:
    """Measure each number of prompts in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--layers", type=int, default=58)
    parser.add_argument("--experts", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where results are saved; by default a temporary folder")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        torch.set_num_threads(1)
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            say(json.dumps(measure(asked.prompts[0], asked.layers, asked.experts, Path(folder))))
        return
    say(f"{platform.processor() or platform.machine()}, one thread, torch {torch.__version__}")
    steps = ("collect", "save", "load", "rank", "rank_log_odds", "alike")
    say("| prompts | file | " + " | ".join(steps) + " | most memory | planted found |")
    say("| --- " * (4 + len(steps)) + "|")
    for prompts in asked.prompts:
        command = [sys.executable, __file__, "--one", "--prompts", str(prompts)]
        command += ["--layers", str(asked.layers), "--experts", str(asked.experts)]
        command += [] if asked.folder is None else ["--folder", str(asked.folder)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        most = max(row[f"{name}_memory"] for name in steps)
        cells = [f"{prompts:,}", f"{row['file'] / 1e9:.2f} GB", *(f"{row[name]:.1f} s" for name in steps)]
        say("| " + " | ".join([*cells, f"{most / 1e9:.2f} GB", f"{row['found']:.0%}"]) + " |")


if __name__ == "__main__":
    main()
